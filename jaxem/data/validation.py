"""The boundary of `fit`: array-likes become arrays, and bad input becomes a clear error before anything is compiled."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.core
import numpy as np

from jaxem.data.arrays import first_rounded, numeric

DOUBLE = "call jax.config.update('jax_enable_x64', True) for double precision"
_warned: set[str] = set()


def is_traced(*trees: Any) -> bool:
    """Whether any leaf is a tracer: inside jit, vmap or grad there is nothing to check."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def inside_jit() -> bool:
    """Whether what is computed here is traced, be it from numbers that are not."""
    return isinstance(jax.device_put(np.int32(0)), jax.core.Tracer)


def floating(array: np.ndarray, name: str, source: Any = None) -> np.ndarray:
    """`array` in the floating dtype that JAX will compute in; what loses digits in float32 warns once.

    Args:
        array: numbers.
        name: theirs.
        source: what they were made of: a frame has names for its columns.
    """
    if jax.config.read("jax_enable_x64"):
        return array.astype(np.float64) if array.dtype.kind in "biu" else array
    if not warn_if_rounded(array, name, source) and array.dtype == np.float64:
        _warn_once(f"{name} is float64 but JAX computes in float32; {DOUBLE}, or pass float32 data to silence this")
    return array.astype(np.float32, copy=False)


def warn_if_rounded(array: np.ndarray, name: str, source: Any = None, cure: str = DOUBLE) -> bool:
    """Whether float32 would round integers among numbers, or the columns of the frame `source`: that warns once."""
    place = first_rounded(array, source)
    if place is not None:
        _warn_once(f"{name}{place} holds integers above 2**24, which float32 rounds; {cure}, or take a constant off them")
    return place is not None


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=5)


def rows_hint(array: np.ndarray) -> str:
    """A hint for the commonest wrong rank."""
    return "; for one feature pass x[:, None], for one row x[None]" if array.ndim == 1 else ""


def check_finite(array: np.ndarray, name: str, weight: Any = None, hint: str = "") -> None:
    """Raise ValueError naming the rows that hold NaN or inf, and count; `hint`: what takes NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(array.sum()):  # far cheaper than one by one, and a sum that overflows is looked into
            return
    finite = np.isfinite(array).reshape(array.shape[0], -1).all(1)
    bad = np.flatnonzero(~finite if weight is None else ~finite & (np.asarray(weight) > 0))
    if bad.size:
        listed = ", ".join(map(str, bad[:5])) + (", ..." if bad.size > 5 else "")
        hint = hint if np.isnan(array[bad]).any() else ""
        raise ValueError(f"{name} must be finite; NaN or inf in {bad.size} row(s): {listed}{hint}")


def check_leaves_finite(data: Any, weight: Any = None, hint: str = "") -> None:
    """Raise ValueError naming rows that count and hold NaN or inf, in any leaf; `hint`: what takes NaN."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(data):
        if np.issubdtype(np.asarray(leaf).dtype, np.floating):
            check_finite(np.asarray(leaf), "data" + jax.tree_util.keystr(path), weight, hint)


def matrix(data: Any, name: str = "data") -> np.ndarray:
    """(N, D) floats."""
    array = numeric(data, name)
    if array.ndim != 2 or not array.shape[1]:
        raise ValueError(f"{name} must have shape (N, D); got shape {array.shape}{rows_hint(array)}")
    return floating(array, name, data)


def matrix_with_missing(data: Any, name: str = "data") -> np.ndarray:
    """(N, D) floats, in which NaN stands for a missing entry."""
    array = matrix(data, name)
    check_rows(array, ~np.isinf(array), "finite, or NaN where an entry is missing", name)
    return array


class ColumnError(ValueError):
    """What is wrong with one column, which whoever knows the names of columns may name."""

    def __init__(self, message: str, column: int) -> None:
        super().__init__(message)
        self.column = column


def check_columns_seen(array: np.ndarray, name: str = "data") -> None:
    """Raise ColumnError for a column of (N, D) that is missing whole: nothing could be fitted to it."""
    gone = np.isnan(array).all(0)
    if gone.any():
        column = int(gone.argmax())
        raise ColumnError(f"{name} must hold something in every column; got only NaN in column {column}", column)


def matrix_with_gaps(data: Any, name: str = "data") -> np.ndarray:
    """(N, D) floats, in which NaN stands for what is missing; no row is missing whole, nothing is infinite."""
    array = matrix(data, name)
    check_rows(array, ~np.isinf(array), "finite, or NaN where an entry is missing", name)
    gone = np.isnan(array).all(1)
    if gone.any():
        raise ValueError(f"{name} must hold something in every row; got only NaN in row {int(gone.argmax())}")
    return array


def vector_or_matrix(data: Any, name: str = "data") -> np.ndarray:
    """(N,) or (N, D) numbers."""
    array = numeric(data, name)
    if array.ndim not in (1, 2) or 0 in array.shape[1:]:
        raise ValueError(f"{name} must have shape (N,) or (N, D); got shape {array.shape}")
    return array


def check_size(array: np.ndarray, name: str) -> None:
    """Raise ValueError for an array without rows or columns."""
    if array.size == 0:
        raise ValueError(f"{name} must not be empty; got shape {array.shape}")


def check_rows(array: np.ndarray, valid: np.ndarray, wanted: str, name: str = "data") -> None:
    """Raise ValueError naming the first place where `valid` (shaped like `array`) does not hold."""
    if not valid.all():
        place = tuple(int(i) for i in np.argwhere(~valid)[0])
        where = f"row {place[0]}" + (f", column {place[1]}" if len(place) > 1 else "")
        raise ValueError(f"{name} must be {wanted}; got {array[place]} in {where}")


def check_weight(weight: Any, n: int) -> np.ndarray:
    """(n,) finite non-negative weights, not all zero."""
    array = numeric(weight, "weight")
    if array.shape != (n,):
        raise ValueError(f"weight must have shape ({n},), one for each row of data; got shape {array.shape}")
    if not np.isfinite(array).all() or (array < 0).any():
        raise ValueError(f"weight must be finite and non-negative; got minimum {array.min()}")
    if not (array > 0).any():
        raise ValueError("weight must not be all zero; got no positive weight")
    return array


def check_positive_int(value: Any, name: str, least: int = 1) -> int:
    """An integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}")
    return int(value)


def check_tolerance(value: Any, name: str) -> None:
    """None or a number that is not negative."""
    if value is not None and not is_traced(value) and not float(value) >= 0:
        raise ValueError(f"{name} must be None or a non-negative number; got {value}")


def check_same_shapes(given: Any, wanted: Any, name: str) -> None:
    """Raise ValueError where two trees differ in structure or leaf shapes."""
    if jax.tree.structure(given) != jax.tree.structure(wanted):
        raise ValueError(
            f"{name} must be parameters with the structure {jax.tree.structure(wanted)}; got {jax.tree.structure(given)}"
        )
    pairs = zip(jax.tree_util.tree_leaves_with_path(given), jax.tree.leaves(wanted), strict=True)
    for (path, leaf), expected in pairs:
        if np.shape(leaf) != np.shape(expected):
            label = jax.tree_util.keystr(path, simple=True, separator=".")
            raise ValueError(f"{name}: {label} must have shape {np.shape(expected)}; got {np.shape(leaf)}")
