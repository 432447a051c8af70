"""Results on disk: one npz file with a JSON header that tells how they are put together. No pickle; loading runs no code."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem import constraints
from jaxem.model import Model
from jaxem.pytree import STRUCTS
from jaxem.storage import archive
from jaxem.storage.archive import FileError
from jaxem.storage.names import class_of, name_of
from jaxem.types import Restarts, Result, Status, StopReason


def save(path: str | Path, result: Result) -> None:
    """Write a result to one npz file, which NumPy can read too: arrays such as "params.weights".

    Args:
        path: the file; an old one is replaced when the new one is whole.
        result: of `fit`. A model of jaxem's own classes is written too. Of one that holds a user's functions or
            classes there are only the numbers: `load` then asks for the model. Options of the call that no file can
            hold are written as text.

    Raises:
        TypeError: for what is no result.
        ValueError: where `path` is a folder or a device.
        OSError: for a missing folder or a full disk; an old file is left as it was.
    """
    if not isinstance(result, Result):
        raise TypeError(f"save takes a jaxem.Result; got {type(result).__name__}")
    arrays: dict[str, Any] = {}
    numbers = {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name not in ("model", "provenance")}
    about: dict[str, Any] = {"result": _described(numbers, "", arrays)}
    try:
        about["model"] = _described(result.model, "model", within := {})
        arrays.update(within)
    except TypeError as error:
        about["model"], about["why"] = None, str(error)
    about["provenance"] = _described(_as_far_as_told(result.provenance, "provenance"), "provenance", arrays)
    archive.write(path, "result", about, arrays)


def load(path: str | Path, model: Model | None = None) -> Result:
    """Read a result that `save` wrote.

    Args:
        path: the file.
        model: the fitted model, for a file without it; elsewhere it stands in for the file's own.

    Raises:
        FileError: for a file that is missing, damaged, not `save`'s, or written by a newer jaxem, and for one that
            lacks something or holds what no fit returns; the message says what.
        ValueError: where `model` must be given and is not.
    """
    about, arrays = archive.read(path, "result")
    try:
        if lacking := {"result", "model"} - about.keys():
            raise ValueError(f"it lacks {', '.join(sorted(lacking))}")
        numbers = _rebuilt(about["result"], arrays)
        of_file = model is None and about["model"] is not None
        if of_file:
            model = _rebuilt(about["model"], arrays)
        provenance = _rebuilt(about.get("provenance"), arrays)
        whole = Result(**_fields(Result, {**numbers, "model": model, "provenance": provenance}))
        _check(whole, of_file)
    except Exception as error:  # whole and yet not what `save` writes
        raise FileError(f"{path}: holds no result that this jaxem can put together ({str(error)[:500]})") from error
    if model is None:
        raise ValueError(f"{path}: its model cannot be rebuilt from a file ({about.get('why')}); call load(path, model=...)")
    if "provenance" not in about:
        was = about["versions"].get("jaxem")
        warnings.warn(f"{path}: lacks provenance, which jaxem {was} did not write: it is None", stacklevel=2)
    return whole


# --- what is written -----------------------------------------------------------------------------
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


def _as_far_as_told(x: Any, name: str) -> Any:
    """`x`, what no file can hold in it as text."""
    if type(x) is dict:
        return {key: _as_far_as_told(value, f"{name}.{key}") for key, value in x.items()}
    try:
        _described(x, name, arrays := {})
        if any(np.asarray(a).dtype.kind == "O" for a in arrays.values() if not isinstance(a, jax.Array)):
            raise TypeError(f"{name} holds objects")
    except TypeError:
        return f"<{getattr(x, '__module__', type(x).__module__)}.{getattr(x, '__qualname__', type(x).__qualname__)}>"
    return x


# --- what is read --------------------------------------------------------------------------------
def _rebuilt(x: Any, arrays: dict[str, Any]) -> Any:
    match x:
        case {"array": name, "numpy": is_numpy}:
            if name not in arrays:
                raise ValueError(f"it lacks the array {name}")
            return arrays[name] if is_numpy else _on_device(arrays[name])
        case {"tuple": items}:
            return tuple(_rebuilt(item, arrays) for item in items)
        case {"list": items}:
            return [_rebuilt(item, arrays) for item in items]
        case {"dict": items}:
            return {key: _rebuilt(item, arrays) for key, item in items.items()}
        case {"struct": name, "fields": fields}:
            cls = class_of(name)
            return cls(**_fields(cls, {key: _rebuilt(item, arrays) for key, item in fields.items()}))
        case dict() | list():
            raise ValueError(f"unknown entry {x}")
    return x


def _fields(cls: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The fields of a class; raises ValueError that says which of them lack, and which are of no class known here."""
    known = {f.name: f for f in dataclasses.fields(cls) if f.init}
    needed = {n for n, f in known.items() if f.default is f.default_factory is dataclasses.MISSING}
    if lacking := needed - given.keys():
        raise ValueError(f"{cls.__name__} lacks {', '.join(sorted(lacking))}")
    if unknown := given.keys() - known.keys():
        raise ValueError(f"this jaxem's {cls.__name__} has no {', '.join(sorted(unknown))}")
    return given


def _on_device(x: Any) -> Any:
    """On the device, unless JAX would lose digits there."""
    array = x if isinstance(x, jax.Array) else jnp.asarray(x)
    return array if array.dtype == x.dtype else x


def _check(result: Result, of_file: bool) -> None:
    """Raise ValueError for what no fit returns; `of_file`: the model is the file's own, and parameters must be its."""
    one, of_restarts = ("loglik", "objective", "status", "stop", "n_steps"), ("loglik", "objective", "status", "n_steps")
    if not isinstance(result.restarts, Restarts) or not isinstance(result.model, Model | None):
        raise ValueError("restarts or model is something else")
    fits = np.shape(result.loglik)  # () or those of a vmapped call
    restarts = np.shape(result.restarts.loglik)
    wanted = {
        "result": (result, one, fits, np.ndim(result.loglik)),
        "restarts": (result.restarts, of_restarts, restarts, len(restarts)),
    }
    for place, (x, names, shape, ndim) in wanted.items():
        for name in (*names, "history"):
            array = np.asarray(getattr(x, name))
            kinds = "iu" if name in ("status", "stop", "n_steps") else "f"
            if not (array.dtype.kind in kinds or (kinds == "f" and jnp.issubdtype(array.dtype, jnp.floating))):
                raise ValueError(f"{place}: {name} must be numbers; got {array.dtype}")
            if array.shape[:ndim] != shape or array.ndim != ndim + (name == "history"):
                raise ValueError(f"{place}: {name} has shape {array.shape} beside a loglik of shape {shape}")
        if not np.isin(x.status, list(Status)).all():
            raise ValueError(f"{place}: status must be of {', '.join(f'{s} {s.name}' for s in Status)}; got {x.status}")
    if restarts[:-1] != fits or len(restarts) != len(fits) + 1:
        raise ValueError(f"restarts of shape {restarts} for fits of shape {fits}")
    if not np.isin(result.stop, list(StopReason)).all():
        raise ValueError(f"stop must be of {', '.join(f'{s} {s.name}' for s in StopReason)}; got {result.stop}")
    done = np.asarray(result.status) == Status.CONVERGED
    if not np.isfinite(np.where(done, result.loglik, 0)).all():
        raise ValueError("it CONVERGED, with a log-likelihood that is no number")
    if of_file and not (np.asarray(result.status) == Status.NONFINITE).any():
        _check_params(result.model, result.params, len(fits))


def _check_params(model: Any, params: Any, batched: int) -> None:
    """Raise ValueError unless these are parameters of the model: their names, shapes and values."""
    natural = model.natural
    for _ in range(batched):
        natural = jax.vmap(natural)
    try:
        jax.eval_shape(natural, params)
    except Exception as error:
        raise ValueError(f"params are not those of its {type(model).__name__}: {error}") from error
    constraints.check(model.constraints, params, "params")
