"""Numbers as people have them, as plain NumPy arrays: frames, columns that lack values, masked arrays, foreign dtypes."""

from __future__ import annotations

import numbers
from typing import Any

import jax.numpy as jnp
import numpy as np

#: Integers up to here are exact in float32.
EXACT = 2**24


def numeric(value: Any, name: str) -> np.ndarray:
    """`value` as float32, float64, integers or bools; NaN stands for what is null, NA or masked.

    Takes arrays, masked ones too, and frames and series of pandas, Polars and Arrow.

    Raises:
        TypeError: for what holds no numbers, naming the column of a frame; for less than single precision.
    """
    columns = columns_of(value)
    if columns is None:
        return _native(_plain(value, name), name)
    if not columns:
        return np.zeros((len(value), 0))
    placed = ((f"{name}: column {label!r}", column) for label, column in columns)
    return np.column_stack([_native(_plain(column, place), place) for place, column in placed])


def columns_of(value: Any) -> list[tuple[Any, Any]] | None:
    """Names and columns of a frame; None of what is none."""
    if hasattr(value, "itercolumns"):  # Arrow
        return list(zip(value.column_names, value.itercolumns(), strict=True))
    if hasattr(value, "iter_columns"):  # Polars
        return [(column.name, column) for column in value.iter_columns()]
    if hasattr(value, "iloc") and hasattr(value, "columns"):  # pandas
        return list(value.items())
    return None


def _plain(value: Any, name: str) -> np.ndarray:
    """A NumPy array of whatever dtype."""
    if isinstance(value, np.ma.MaskedArray):
        if value.dtype.kind not in "biuf" or not np.ma.getmaskarray(value).any():
            return value.data
        return np.ma.filled(value if value.dtype.kind == "f" else value.astype(np.float64), np.nan)
    if hasattr(value, "tocsr"):
        raise TypeError(f"{name} must be a dense array; got a sparse {type(value).__name__}: call its toarray()")
    if not isinstance(getattr(value, "dtype", None), np.dtype):
        value = _column(value, name)
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a numeric array; got {type(value).__name__} ({error})") from None


def _column(column: Any, name: str) -> Any:
    """A column whose dtype is not NumPy's, where it is one, as NumPy's with NaN for nulls."""
    dtype: Any = getattr(column, "dtype", getattr(column, "type", None))
    if hasattr(dtype, "is_numeric"):  # Polars
        if not dtype.is_numeric() and str(dtype) != "Boolean":
            raise _no_numbers(name, dtype)
        return (column if dtype.is_integer() or dtype.is_float() else column.cast(float)).to_numpy()
    if hasattr(column, "null_count"):  # Arrow
        if not is_arrow_number(dtype):
            raise _no_numbers(name, dtype)
        return column if "int" in str(dtype) or str(dtype) in ("float", "double") else column.cast("float64")
    if not hasattr(column, "to_numpy"):
        return column
    if not hasattr(column, "isna"):
        return column.to_numpy()
    if dtype.kind not in "biuf":  # pandas, whose nullable and Arrow-backed dtypes tell NumPy's kind
        raise _no_numbers(name, dtype)
    plain = np.dtype(getattr(dtype, "numpy_dtype", np.float64))
    if column.isna().any():
        return column.to_numpy(dtype=plain if plain.kind == "f" else np.float64, na_value=np.nan)
    return column.to_numpy(dtype=plain)


def is_arrow_number(kind: Any) -> bool:
    """Whether a data type of Arrow is one of numbers or bools."""
    from pyarrow import types

    tests = types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return any(test(kind) for test in tests)


def _native(array: np.ndarray, name: str) -> np.ndarray:
    """The array in a precision and byte order that JAX computes in."""
    if jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4:
        raise TypeError(f"{name} must be float32 or float64; got {array.dtype}, in which no fit computes: convert it first")
    if array.dtype.kind not in "biuf":
        raise _no_numbers(name, f"dtype {array.dtype}{_odd_entry(array)}")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        return array.astype(np.float64)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _no_numbers(name: str, got: Any) -> TypeError:
    return TypeError(f"{name} must be numeric (float, integer or boolean); got {got}")


def _odd_entry(array: np.ndarray) -> str:
    """Where an array of objects holds no number."""
    for place, entry in np.ndenumerate(array) if array.dtype.kind == "O" else ():
        if not isinstance(entry, numbers.Real):
            where = "".join(f" {axis} {i}," for axis, i in zip(("in row", "column"), place, strict=False))
            return f", {repr(entry) if isinstance(entry, str | bytes | None) else type(entry).__name__}{where[:-1]}"
    return ""


def first_rounded(array: np.ndarray, source: Any) -> str | None:
    """The first column, in words, that holds integers which float32 would round; None where none does.

    Args:
        array: (N, ...) numbers.
        source: what they were made of, for the columns' names.
    """
    columns = columns_of(source)
    if columns is None:
        columns = list(enumerate(array.T)) if array.ndim == 2 else [(getattr(source, "name", None), array)]
    for label, column in columns:
        kind = str(getattr(column, "dtype", getattr(column, "type", None))).lower().removeprefix("u")
        if not kind.startswith("int") or kind.startswith(("int8", "int16")) or not len(column):
            continue
        x = _plain(column, "data")
        if max(-np.nanmin(x), np.nanmax(x)) > EXACT:
            return "" if label is None else f" in column {label!r}"
    return None
