"""The boundary of a plain call of `fit`: what is wrong with the arguments, said before anything is compiled."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxem import constraints as sets
from jaxem import init as starts
from jaxem.data.sequences import label_shape
from jaxem.data.validation import (
    ColumnError,
    check_leaves_finite,
    check_positive_int,
    check_rows,
    check_same_shapes,
    check_weight,
    floating,
    is_traced,
    numeric,
)
from jaxem.engine.problem import Algorithm
from jaxem.fitting.task import Task
from jaxem.model import Model, Natural
from jaxem.numerics.blocks import float_dtype, n_rows
from jaxem.numerics.trees import cast
from jaxem.pytree import PyTree, check_struct
from jaxem.types import FitError, Params, Result, Status


def check_model(model: Any) -> None:
    """Raise TypeError for what is no model, or no registered dataclass."""
    if not isinstance(model, Model):
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"model must be a jaxem.Model; got {got}")
    check_struct(model, "model")
    check_defined(model, "natural", "log_marginal")


def check_defined(model: Model, *hooks: str, instead: str = "") -> None:
    """Raise TypeError for required hooks that the class of a model leaves out."""
    if lacking := [f"`{hook}`" for hook in hooks if getattr(type(model), hook) is getattr(Model, hook)]:
        raise TypeError(f"model class {type(model).__name__} must define {' and '.join(lacking)}{instead}")


def check_algorithm(algorithm: Any) -> None:
    """Raise TypeError for what is no algorithm, such as its class or an optimizer."""
    if not isinstance(algorithm, Algorithm):
        got = f"the class {algorithm.__name__}" if isinstance(algorithm, type) else type(algorithm).__name__
        raise TypeError(f"algorithm must be a jaxem.Algorithm, e.g. jaxem.EM(); got {got}")
    check_struct(algorithm, "algorithm")


def check_init(model: Model, init: Any) -> None:
    """Raise TypeError for a strategy that the model cannot start from, and for one by its class or in a word."""
    if isinstance(init, starts.Init):
        check_struct(init, "init")
        init.check_model(model)
    elif isinstance(init, type | str):
        got = f"the class {init.__name__}" if isinstance(init, type) else repr(init)
        raise TypeError(f"init must be parameters, a Result or a strategy, e.g. jaxem.init.KMeans(); got {got}")
    elif init is None:
        check_defined(model, "initialize", instead=", or start from init=parameters")


def is_random(model: Model, init: Any) -> bool:
    """Whether restarts start apart by chance."""
    return init.needs_key if isinstance(init, starts.Init) else init is None and model.needs_key


def check_key(model: Model, init: Any, key: Any) -> None:
    """Raise unless `key` is a JAX random key of either style, or needless."""
    if is_random(model, init) and key is None:
        raise ValueError("key must be a JAX random key because the initialisation is random, e.g. jax.random.key(0); got None")
    if key is None:
        return
    typed = hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and not (hasattr(key, "dtype") and key.dtype == jnp.uint32 and jnp.ndim(key) == 1):
        raise TypeError(f"key must be a JAX random key, e.g. jax.random.key(0); got {type(key).__name__}")
    if typed and jnp.ndim(key):
        raise ValueError(f"key must be a single key; got shape {jnp.shape(key)}")


def check_rows_finite(model: Model, data: PyTree, weight: Any = None) -> None:
    """Raise ValueError naming rows that count and hold NaN or inf, in any leaf, where the model sums nothing out."""
    if model.missing is None:
        check_leaves_finite(data, weight, _missing_hint(model))


def _missing_hint(part: Any) -> str:
    """Which part of a model would take NaN for missing, were it told to."""
    if isinstance(part, tuple):
        return next(filter(None, map(_missing_hint, part)), "")
    if not isinstance(part, Natural):
        return ""
    fields = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}  # type: ignore[arg-type]
    if "missing" in fields:
        return f"; {type(part).__name__}(missing='marginal') takes NaN for a missing entry"
    return _missing_hint(tuple(fields.values()))


def checked_labels(labels: Any, shape: tuple[int, ...], k: int | None) -> PyTree:
    """Labels as int32; raises ValueError for another shape, where k is known, or what lies beyond `k`."""
    if labels is None:
        return None
    array = numeric(labels, "labels")
    fits = array.shape == shape if k is not None else array.shape[:1] == shape[:1]
    if array.dtype.kind not in "iu" or not fits:
        got = f"{array.dtype} of shape {array.shape}"
        raise ValueError(f"labels must be integers of shape {shape}, N={shape[0]}, -1 for unknown; got {got}")
    if k is not None:
        check_rows(array, (array >= -1) & (array < k), f"in 0..{k - 1} or -1", "labels")
    return jnp.asarray(array, jnp.int32)


def checked_init(model: Model, init: Any, data: PyTree, n_restarts: int, dtype: Any) -> Any:
    """Starting parameters as float64 arrays, or the strategy; raises for wrong structure, shapes or values."""
    if init is None or (isinstance(init, starts.Init) and not isinstance(init, starts.Each)):
        if isinstance(init, starts.Labels):
            init.check(label_shape(data), model.n_labels or 0)
        return init
    params = init.params if isinstance(init, starts.Each) else init
    given = jax.tree.map(lambda x: floating(numeric(x, "init"), "init"), params)
    params = jax.tree.map(lambda x: x.astype(np.float64), given)
    template = model.template(data)
    if isinstance(init, starts.Each):
        leading = {np.shape(x)[:1] for x in jax.tree.leaves(params)}
        if leading != {(n_restarts,)}:
            raise ValueError(f"init: every leaf of Each must lead with n_restarts={n_restarts}; got {sorted(leading)}")
    single = jax.tree.map(lambda x: x[0], params) if isinstance(init, starts.Each) else params
    if template is not None:
        check_same_shapes(single, template, "init")
    # Parameters of a float32 fit satisfy their constraints to float32's rounding only, also when the data are float64.
    sets.check(model.constraints, jax.tree.map(lambda x: x.astype(np.float32 if x.dtype.itemsize < 8 else dtype), given))
    return starts.Each(params) if isinstance(init, starts.Each) else params


def raise_if_all_failed(result: Result, data: PyTree, weight: Any) -> None:
    """Raise FitError, naming the first rows at fault, where no restart holds a sound state."""
    statuses = np.asarray(result.restarts.status)
    if not (statuses == Status.NONFINITE).all():  # any other restart still holds its last sound state
        return
    counts = {s.name: int((statuses == s).sum()) for s in Status if (statuses == s).any()}
    started = np.isfinite(np.asarray(result.restarts.objective)).any()
    culprit = "an M-step makes" if started else "the starting values make"
    message = f"every restart failed: {counts}; {culprit} the objective infinite or NaN"
    first = jax.tree.map(lambda x: jnp.asarray(x[:10_000]), data)
    params = jax.tree.map(np.asarray, result.params)  # of this process, as the data are
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if broken := [jax.tree_util.keystr(path, simple=True, separator=".") for path, x in leaves if not np.isfinite(x).all()]:
        raise FitError(f"{message}: NaN or inf in {', '.join(broken)}")  # no row is to blame
    # Inside jit, where data may hold anything.
    log_prob = np.asarray(jax.jit(lambda model, params, data: model.log_prob(params, data))(result.model, params, first))
    bad = np.flatnonzero(~np.isfinite(log_prob) & (True if weight is None else weight[:10_000] > 0))
    if bad.size:
        listed = ", ".join(map(str, bad[:5])) + (", ..." if bad.size > 5 else "")
        message += f", first where the log-density is {log_prob[bad[0]]}: row(s) {listed}"
    if place := result.model.impossible(params, first):
        message += f"; {place}"
    raise FitError(message)


def raise_if_sizes_are_traced(model: Model, error: TypeError) -> None:
    """Raise TypeError naming fields of a model that say they are an int, a bool or a word, and are not static."""
    if sizes := _traced_sizes(model):
        wanted = "declare what shapes, loops and conditions depend on as `name: int = jaxem.static()`"
        raise TypeError(f"fields that are not static are numbers, traced in a fit: {', '.join(sizes)}; {wanted}") from error


def _traced_sizes(part: Any) -> list[str]:
    if isinstance(part, tuple | list):
        return [name for each in part for name in _traced_sizes(each)]
    if not dataclasses.is_dataclass(part):
        return []
    own = [field for field in dataclasses.fields(part) if not field.metadata.get("static")]
    sizes = [field.name for field in own if field.type in ("int", "bool", "str", int, bool, str)]
    here = [f"{type(part).__name__}.{name} = {getattr(part, name)!r}" for name in sizes]
    return here + _traced_sizes(tuple(getattr(part, field.name) for field in own))


def warn_if_alike(starting: Params) -> None:
    """Restarts from one start are one restart; `starting`: of all of them, leaves (R, ...)."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(starting)]
    if all((x == x[:1]).all() for x in leaves):
        warnings.warn(
            f"all n_restarts={len(leaves[0])} restarts start alike, and so they end: give a key and a random start, or"
            " jaxem.init.Each(...) with a start for each",
            stacklevel=5,
        )


def converted(task: Task) -> Task:
    """A task inside jit, as arrays: nothing can be checked there but what does not depend on its arguments."""
    data, weight = task.data, task.weight
    if is_traced(data, task.model):
        data = jax.tree.map(jnp.asarray, data)
    else:
        with jax.ensure_compile_time_eval():
            data = task.model.validate(data)
        # Behind a barrier: XLA would fold what is made of long constants, for seconds.
        data = jax.lax.optimization_barrier(jax.tree.map(jnp.asarray, data))
    dtype = float_dtype(data)
    if dtype.itemsize < 4:
        raise TypeError(f"data must be float32 or float64; got {dtype}, in which no fit computes: convert it first")
    if weight is not None:
        weight = jnp.asarray(weight if is_traced(weight) else check_weight(weight, n_rows(data)), dtype)
    init, max_steps = cast(task.init, dtype), jnp.asarray(task.max_steps)
    return dataclasses.replace(task, data=data, weight=weight, init=init, max_steps=max_steps)


def validated(model: Model, data: PyTree, weight: Any) -> PyTree:
    """Data as the model validates them; rows of weight zero may hold anything."""
    try:
        return model.validate(data)
    except ValueError:
        present = np.ones(1) if weight is None else numeric(weight, "weight") > 0
        leaves, structure = jax.tree.flatten(data, is_leaf=lambda x: isinstance(x, list))
        arrays = [numeric(x, "data") for x in leaves]
        if present.all() or not present.any() or any(x.shape[:1] != present.shape for x in arrays):
            raise
        filled = np.where(present, np.arange(len(present)), present.argmax())
        return model.validate(jax.tree.unflatten(structure, [x[filled] for x in arrays]))


def valid_for_fit(model: Model, data: PyTree, weight: Any = None) -> PyTree:
    """Data as `Model.validate` leaves them, of which there are enough for a fit; raises as it and `check_fit` do."""
    valid, names = validated(model, data, weight), getattr(data, "columns", None)
    if not n_rows(valid):
        raise ValueError(f"data must not be empty; got shape {np.shape(jax.tree.leaves(valid)[0])}")
    try:
        model.check_fit(valid)
    except ColumnError as error:
        raise ValueError(str(error) if names is None else f"{error} ({list(names)[error.column]})") from None
    return valid


def checked(task: Task) -> Task:
    """A task whose arguments a fit can use, as arrays on the host."""
    data = valid_for_fit(task.model, task.data, task.weight)
    n, dtype, weight = n_rows(data), float_dtype(data), task.weight
    if weight is not None:
        weight = np.asarray(check_weight(weight, n), dtype)
    check_rows_finite(task.model, data, weight)
    return dataclasses.replace(
        task,
        data=data,
        weight=weight,
        max_steps=np.int32(check_positive_int(task.max_steps, "max_steps", 0)),
        labels=checked_labels(task.labels, label_shape(data), task.model.n_labels),
        init=checked_init(task.model, task.init, data, task.options.n_restarts, dtype),
    )
