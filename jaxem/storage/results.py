"""Results on disk: one npz file with a JSON header that tells how they are put together. No pickle; loading runs no code."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.model import Model
from jaxem.pytree import STRUCTS
from jaxem.storage import archive
from jaxem.storage.archive import FileError
from jaxem.storage.names import class_of, name_of
from jaxem.types import Result


def save(path: str | Path, result: Result) -> None:
    """Write a result to one npz file, which NumPy can read too: arrays such as "params.weights".

    Args:
        path: the file; an old one is replaced when the new one is whole.
        result: of `fit`. A model of jaxem's own classes is written too. Of one that holds a user's functions or
            classes there are only the numbers: `load` then asks for the model.

    Raises:
        TypeError: for what is no result.
    """
    if not isinstance(result, Result):
        raise TypeError(f"save takes a jaxem.Result; got {type(result).__name__}")
    arrays: dict[str, Any] = {}
    numbers = {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name != "model"}
    about: dict[str, Any] = {"result": _described(numbers, "", arrays)}
    try:
        about["model"] = _described(result.model, "model", within := {})
        arrays.update(within)
    except TypeError as error:
        about["model"], about["why"] = None, str(error)
    archive.write(path, "result", about, arrays)


def load(path: str | Path, model: Model | None = None) -> Result:
    """Read a result that `save` wrote.

    Args:
        path: the file.
        model: the fitted model, for a file without it; elsewhere it stands in for the file's own.

    Raises:
        FileError: for a file that is missing, damaged, not `save`'s, or written by a newer jaxem.
        ValueError: where `model` must be given and is not.
    """
    about, arrays = archive.read(path, "result")
    try:
        numbers = _rebuilt(about["result"], arrays)
        if model is None and about["model"] is not None:
            model = _rebuilt(about["model"], arrays)
        whole = Result(**numbers, model=model)
    except Exception as error:  # whole and yet not what `save` writes
        raise FileError(f"{path}: holds no result that this jaxem can put together ({error})") from error
    if model is None:
        raise ValueError(f"{path}: its model cannot be rebuilt from a file ({about['why']}); call load(path, model=...)")
    return whole


def _described(x: Any, name: str, arrays: dict[str, Any]) -> Any:
    """A tree as JSON, its arrays put into `arrays` under dotted names; raises TypeError for what no file can hold."""

    def inner(value: Any, key: Any) -> Any:
        return _described(value, f"{name}.{key}" if name else str(key), arrays)

    if type(x) in (bool, int, float, str, type(None)):
        return x
    if isinstance(x, jax.Array | np.ndarray | np.generic):
        if name in arrays:
            raise TypeError(f"two arrays are called {name}")
        arrays[name] = x
        return {"array": name, "numpy": not isinstance(x, jax.Array)}
    if type(x) in (tuple, list):
        return {type(x).__name__: [inner(value, i) for i, value in enumerate(x)]}
    if type(x) is dict and all(isinstance(key, str) for key in x):
        return {"dict": {key: inner(value, key) for key, value in x.items()}}
    cls: Any = type(x)
    if cls in STRUCTS.values():
        fields = [f.name for f in dataclasses.fields(cls) if f.init]
        return {"struct": name_of(cls), "fields": {field: inner(getattr(x, field), field) for field in fields}}
    raise TypeError(f"{name} is a {type(x).__qualname__}")


def _rebuilt(x: Any, arrays: dict[str, Any]) -> Any:
    match x:
        case {"array": name, "numpy": is_numpy}:
            return arrays[name] if is_numpy else _on_device(arrays[name])
        case {"tuple": items}:
            return tuple(_rebuilt(item, arrays) for item in items)
        case {"list": items}:
            return [_rebuilt(item, arrays) for item in items]
        case {"dict": items}:
            return {key: _rebuilt(item, arrays) for key, item in items.items()}
        case {"struct": name, "fields": fields}:
            return class_of(name)(**{key: _rebuilt(item, arrays) for key, item in fields.items()})
        case dict() | list():
            raise ValueError(f"unknown entry {x}")
    return x


def _on_device(x: Any) -> Any:
    """On the device, unless JAX would lose digits there."""
    array = x if isinstance(x, jax.Array) else jnp.asarray(x)
    return array if array.dtype == x.dtype else x
