"""The boundary of a model's methods after the fit: outside jit data are checked and converted, inside their shapes alone.

Those that answer each datum by itself do so block by block (see `jaxem.data.by_rows`).

Methods are wrapped as their class is made, so that no model can forget it.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem.data import by_rows
from jaxem.data.by_rows import Plan, Returned
from jaxem.data.sequences import Sequences, one_sequence
from jaxem.data.validation import check_leaves_finite, is_traced
from jaxem.numerics.blocks import n_rows
from jaxem.numerics.switches import own_switches
from jaxem.numerics.trees import on_device
from jaxem.pytree import PyTree
from jaxem.types import Params

#: Methods of (params, data) that the engine or other methods call with data that were checked.
HOOKS = {"scores", "e_step", "density_scores", "rows", "chain", "impossible", "check_columns", "mean"}
#: Methods that have no answer for data of probability zero: inside jit NaN or -1, outside an error.
NO_ANSWER = {"posterior", "predict", "viterbi", "pairwise", "sample_posterior", "class_posterior", "site_rates", "sites"}
NO_ANSWER |= {"spans", "impute", "forecast", "lag_one"}

#: Whether a public method runs: those that it calls get what it was given, checked.
_inside = contextvars.ContextVar("jaxem_inside", default=False)


def bind(cls: type) -> None:
    """Wrap all public methods of a model's class that take data: those of (params, data), and `n_free_params`."""
    for name in dir(cls):
        method = inspect.getattr_static(cls, name)
        if name.startswith("_") or name in HOOKS or not isinstance(method, types.FunctionType) or is_bounded(method):
            continue
        wanted = {"data"} if name == "n_free_params" else {"params", "data"}
        if wanted <= inspect.signature(method).parameters.keys():
            setattr(cls, name, bounded(method))


def is_bounded(method: Any) -> bool:
    """Whether `bounded` made it."""
    return getattr(method, "bounded", False)


def bounded(method: Callable[..., Any]) -> Callable[..., Any]:
    """A model's `method`, its `data` checked against the model and `params` where it is called plainly."""
    names = tuple(inspect.signature(method).parameters)
    needs = ("data", "params") if "params" in names else ("data",)
    extra = {field.name for field in dataclasses.fields(Returned)}
    extra = extra if method.__name__ in by_rows.METHODS and extra.isdisjoint(names) else set()

    @functools.wraps(method)
    def called(*args: Any, **options: Any) -> Any:
        wanted = Returned(**{name: options.pop(name) for name in extra & options.keys()})
        if _inside.get():
            return method(*args, **options)
        given = dict(zip(names, args)) | options
        if not given.keys() >= set(needs) or len(given) != len(args) + len(options):
            return method(*args, **options)  # which says what is wrong
        return _run(answered, {"given": given, "wanted": wanted})

    def answered(given: dict[str, Any], wanted: Returned) -> Any:
        model, params, data = given[names[0]], given.get("params"), given["data"]
        if params is None:
            given["data"] = model.validate(data) if _readable(model, data) else data
            return method(**given)
        given["data"] = data = accepted(model, params, data)
        given["params"] = params = on_device(params)
        if not extra or not _readable(model, params, data):
            if not wanted.plainly:
                raise ValueError(f"{method.__name__} must come whole inside jit, without max_bytes, out or blocks")
            return _answer(method, given)
        return _by_rows(method, given, wanted)

    if extra:
        called.__doc__ = (method.__doc__ or "") + by_rows.OPTIONS
    called.bounded = True  # type: ignore[attr-defined]
    return called


def _run(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    """What a function finds where the methods that it calls check no more."""
    with contextlib.ExitStack() as stack:
        stack.callback(_inside.reset, _inside.set(True))
        stack.enter_context(own_switches())
        return function(**given)


def _answer(method: Callable[..., Any], given: dict[str, Any]) -> Any:
    """What a method finds in data that were checked, and nothing where they are impossible."""
    found = method(**given)
    if method.__name__ in NO_ANSWER and _readable(found) and _unanswered(found):
        _refuse_impossible(given)
    return found


def _by_rows(method: Callable[..., Any], given: dict[str, Any], wanted: Returned) -> Any:
    """An answer of which only a block of rows is computed at a time, returned as `wanted`."""
    params, data, name = given["params"], given["data"], method.__name__
    led = all(np.ndim(x) for x in jax.tree.leaves(data))
    if not led or (wanted.plainly and by_rows.is_small(params, data)):
        return _answer(method, given)
    plan = _plan(method, given)
    if plan is None:  # a user's, which looks at values: its size is known when it is there
        found = _answer(method, given)
        n = n_rows(data)
        plan = Plan(jax.eval_shape(lambda: found), tuple(np.shape(x)[:1] == (n,) for x in jax.tree.leaves(found)), n)
        by_rows.check_size(name, plan, wanted)
        blocks: Iterator[tuple[int, PyTree]] = iter([(0, found)])
    else:
        by_rows.check_size(name, plan, wanted)
        blocks = by_rows.pieces(lambda block: _block(method, given, block), data, plan.rows)
    if wanted.blocks:
        return (by_rows.fresh(first, i * plan.rows, block, plan) for i, (first, block) in enumerate(blocks))
    if plan.rows >= n_rows(data) and wanted.out is None:
        return next(blocks)[1]
    return by_rows.collected(blocks, plan, wanted.out)


def _block(method: Callable[..., Any], given: dict[str, Any], block: PyTree) -> Any:
    found = _run(method, {**given, "data": block})
    if method.__name__ in NO_ANSWER and _unanswered(found):
        _refuse_impossible(given)  # all of them, for the numbers of rows
    return found


_plans: dict[Any, Plan | None] = {}


def _plan(method: Callable[..., Any], given: dict[str, Any]) -> Plan | None:
    """`by_rows.planned` of a method, once for each model and shapes."""
    others = {name: value for name, value in given.items() if name not in ("params", "data")}
    answer = lambda params, data: _run(method, {**others, "params": params, "data": data})  # noqa: E731
    leaves, structure = jax.tree.flatten(given)
    key = method, structure, *((x.shape, x.dtype) if hasattr(x, "dtype") else x for x in leaves)
    if key not in _plans:
        if len(_plans) > 1_000:
            _plans.clear()
        _plans[key] = by_rows.planned(answer, given["params"], given["data"])
    return _plans[key]


def accepted(model: Any, params: Params, data: PyTree) -> PyTree:
    """What a method reads of `data`: checked and converted, or inside jit as they are but for the shapes, which are checked."""
    data = values(model, data) if _readable(model, data) else data
    model.check_columns(params, data)
    return data


def _readable(*trees: PyTree) -> bool:
    """Whether values can be looked at: no tracers, nothing that other processes hold."""
    if is_traced(*trees):
        return False
    return all(x.is_fully_addressable for x in jax.tree.leaves(trees) if isinstance(x, jax.Array))


# --- data --------------------------------------------------------------------------------------
def values(model: Any, data: PyTree) -> PyTree:
    """Data as arrays, types and support checked; raises as `Model.validate` does, and for what is not finite."""
    found = _where_they_lie(model, data)
    if found is not None:
        return found
    found = _validated(model, data)
    if isinstance(found, np.ndarray):
        return on_device(_kept(data, found))
    leaves, structure = jax.tree.flatten(found)
    if structure == jax.tree.structure(data):
        leaves = [_kept(old, new) for old, new in zip(jax.tree.leaves(data), leaves, strict=True)]
    found = on_device(jax.tree.unflatten(structure, leaves))
    both = isinstance(data, dict) and isinstance(found, dict)
    if both and all(x.ndim == np.ndim(data[name]) + 1 for name, x in found.items()):
        return {name: x[0] for name, x in found.items()}  # one sequence of counts
    if isinstance(found, Sequences) and one_sequence(data):
        return Sequences(found.x, found.length, found.observed, single=True)
    return found


def _validated(model: Any, data: PyTree) -> PyTree:
    found = model.validate(data)
    if model.missing is None:
        check_leaves_finite(found)
    return found


def _kept(old: Any, new: Any) -> Any:
    """`new`, or the array that it was read from, where nothing was changed in it."""
    if not isinstance(old, jax.Array) or old.dtype != new.dtype or old.shape != new.shape:
        return new
    return old if new is old or np.may_share_memory(np.asarray(old), new) else new


def _where_they_lie(model: Any, data: PyTree) -> jax.Array | None:
    """An array of rows on an accelerator, checked without moving it; None where that cannot be, or finds a fault.

    Support, whole numbers and finiteness are matters of single entries: the model is shown each column's extremes.
    """
    if not isinstance(data, jax.Array) or model.missing is not None or not data.size or data.ndim > 2 or on_host(data):
        return None
    shown = jax.device_get(_extremes(data))
    try:
        found = _validated(model, shown)
    except ValueError:
        return None  # the whole array tells which row
    plain = isinstance(found, np.ndarray) and np.array_equal(found, shown.astype(found.dtype))
    return data.astype(found.dtype) if plain else None


def on_host(x: jax.Array) -> bool:
    """Whether the memory of an array is the host's, so that NumPy reads it as it is."""
    return next(iter(x.sharding.device_set)).platform == "cpu"


@jax.jit
def _extremes(x: jax.Array) -> jax.Array:
    """(3, ...) the least entry of each column, the greatest, and the farthest from a whole number; a NaN is all three."""
    least, greatest = x.min(0), x.max(0)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.stack([least, greatest, least])
    broken = jnp.abs(x - jnp.round(x)).argmax(0)
    return jnp.stack([least, greatest, jnp.take_along_axis(x, broken[None], 0)[0]])


# --- shapes ------------------------------------------------------------------------------------
_fitting: set[Any] = set()


def check_columns(model: Any, params: Params, data: PyTree) -> None:
    """Raise ValueError where parameters of the shapes that `data` call for are not those of `params`; by shapes alone."""
    leaves, structure = jax.tree.flatten((model, params, data))
    key = structure, *map(np.shape, leaves)
    if key in _fitting:
        return
    try:
        wanted = jax.eval_shape(model.template, data)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):  # of a user's, which looks at values
        return
    if wanted is not None:
        _compare(wanted, params)
    if len(_fitting) > 10_000:
        _fitting.clear()
    _fitting.add(key)


def _compare(wanted: PyTree, params: Params) -> None:
    if jax.tree.structure(wanted) != jax.tree.structure(params):
        raise ValueError(f"params must have the structure {jax.tree.structure(wanted)}; got {jax.tree.structure(params)}")
    pairs = zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(wanted), strict=True)
    for (path, x), like in pairs:
        have, need = np.shape(x), like.shape
        if have == need:
            continue
        name = jax.tree_util.keystr(path, simple=True, separator=".") or "params"
        numbers = [pair for pair in zip(have, need) if pair[0] != pair[1]] if len(have) == len(need) else []
        told = f", {numbers[0][0]} columns; got {numbers[0][1]}" if numbers else ""
        raise ValueError(f"data must have the columns that params have: {name} has shape {have}, data call for {need}{told}")


# --- what has probability zero -----------------------------------------------------------------
def _unanswered(found: PyTree) -> bool:
    """Whether NaN stands anywhere, or -1 among labels."""

    def leaf(x: Any) -> bool:
        x, xp = (np.asarray(x), np) if on_host(x) else (x, jnp)
        if np.issubdtype(x.dtype, np.floating):
            with np.errstate(all="ignore"):  # one sum is cheaper than one by one
                return bool(xp.isnan(x.sum())) and bool(xp.isnan(x).any())
        return np.issubdtype(x.dtype, np.integer) and bool(x.min() < 0)

    return any(leaf(x) for x in jax.tree.leaves(found) if isinstance(x, jax.Array) and x.size)


def _refuse_impossible(given: dict[str, Any]) -> None:
    """Raise ValueError naming data of probability zero; there need be none: an answer may hold NaN for other reasons."""
    model, params, data = next(iter(given.values())), given["params"], given["data"]
    method = inspect.unwrap(type(model).log_prob, stop=lambda f: not is_bounded(f))
    log_prob = _by_rows(method, {"self": model, "params": params, "data": data}, Returned(max_bytes=sys.maxsize))
    log_prob = np.asarray(log_prob).reshape(-1)
    bad = np.flatnonzero(~np.isfinite(log_prob))
    if bad.size:
        listed = ", ".join(map(str, bad[:5])) + (", ..." if bad.size > 5 else "")
        place = _run(model.impossible, {"params": params, "data": data})
        message = f"data must be possible under params; got a log-density of {log_prob[bad[0]]} in row(s) {listed}"
        raise ValueError(message + (f"; {place}" if place else ""))
