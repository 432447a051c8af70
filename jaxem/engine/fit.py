"""`fit`: the boundary around the loop. Called plainly it checks, converts and standardizes; inside jit it composes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import init as starts
from jaxem.blocks import Blocks, choose_block_size, cut, float_dtype, n_rows, replace_absent, row_width
from jaxem.engine.algorithm import EM, Algorithm
from jaxem.engine.checks import (
    check_algorithm,
    check_key,
    check_model,
    check_rows_finite,
    checked_init,
    checked_labels,
    raise_if_all_failed,
)
from jaxem.engine.e_step import block_rows, weighted_total
from jaxem.engine.implicit import attached
from jaxem.engine.loop import HISTORY, Lane, chronological, new_lane
from jaxem.engine.m_step import log_prior as model_log_prior
from jaxem.engine.problem import Problem
from jaxem.engine.regularizer import Regularizer, regularizer
from jaxem.engine.restarts import Rounds, best_first, run, run_rounds, settle, take, unrolled
from jaxem.engine.segments import run_in_segments
from jaxem.engine.stop import Stop
from jaxem.numerics import any_lane
from jaxem.types import Model, Params, Restarts, Result, static, struct
from jaxem.validation import check_positive_int, check_tolerance, check_weight, is_traced

PyTree = Any


@struct
class _Options:
    """What is compiled into a fit."""

    n_restarts: int = static()
    block_size: int | None = static()
    rounds: Rounds | None
    regularizer: Regularizer
    unroll: int | None = static(default=None)


def fit(
    model: Model,
    data: PyTree,
    *,
    key: Array | None = None,
    init: Any = None,
    n_restarts: int = 1,
    weight: Any = None,
    labels: Any = None,
    algorithm: Algorithm = EM(),  # noqa: B008
    stop: Stop = Stop(),  # noqa: B008
    max_steps: int | Array = 10_000,
    block_size: int | None = None,
    rounds: Rounds | None = None,
    penalty: Any = None,
    log_prior: Callable[[Params], Array] | None = None,
    frozen: Any = None,
    tied: Any = None,
    standardize: bool = True,
    unroll: int | None = None,
) -> Result:
    """Fit a latent-variable model by Expectation-Maximization.

    Works inside `jax.jit` and `jax.vmap`, over keys, data sets and weights. Called plainly it first checks
    its input. It is compiled once for each model structure and shape of data.

    Inside jit the parameters, log-likelihood and objective can be differentiated with respect to data, weights,
    and the numbers in priors, penalties and the model, by the implicit function theorem (see
    `jaxem.engine.implicit`). That is right only where the parameters converged: set `Stop(param_rtol=...)` and
    read `result.params_converged`.

    Args:
        model: the model.
        data: array-like, or a pytree of arrays whose leaves lead with N.
        key: JAX random key of either style; restart i depends on (key, i) alone.
        init: parameters, an earlier `Result`, a strategy of `jaxem.init`, or None for the model's own.
        n_restarts: R, number of lanes.
        weight: (N,) non-negative; 0 is absent, whatever the row holds, 2 is twice. None for all ones.
        labels: (N,) integers, known latent values, -1 for unknown.
        algorithm: how a lane moves.
        stop: when it stops.
        max_steps: EM maps at most.
        block_size: rows of one block of the E-step; None chooses from shapes and backend.
        rounds: drop hopeless lanes early instead of finishing every one.
        penalty: function of the parameters taken off the objective, or several: `jaxem.L1` on named leaves gives
            exact zeros. A plain function's identity is compiled; numbers in a `jax.tree_util.Partial` or a
            registered dataclass are not.
        log_prior: function of the parameters added to the objective, beside the model's own priors.
        frozen: leaves that keep their starting values: dotted names, or a prefix tree of bools.
        tied: leaves that share one value: groups of dotted names, or a prefix tree of labels.
        standardize: compute in coordinates in which the data have unit scale, where the model offers
            them, and map the parameters back.
        unroll: exactly this many EM maps in a scan that reverse-mode differentiation goes through step by
            step, instead of a loop and the implicit derivative. For closed M-steps.

    Returns:
        A `Result`.

    Raises:
        ValueError: for input that no fit could use; the message names the argument.
        TypeError: for data that are not numeric, or a model that is not a registered dataclass.
        FitError: when every lane failed (called plainly only; inside jit the statuses tell).
    """
    check_model(model)
    check_algorithm(algorithm)
    n_restarts = check_positive_int(n_restarts, "n_restarts")
    if block_size is not None:
        block_size = check_positive_int(block_size, "block_size")
    for name in stop.__dataclass_fields__:
        check_tolerance(getattr(stop, name), f"stop.{name}")
    init = init.params if isinstance(init, Result) else init
    check_key(model, init, key)
    # A prior or penalty that is a function of the user's parameters must see them as they are.
    restrained = regularizer(penalty, log_prior, frozen, tied)
    standardize = standardize and not restrained.in_users_units and model.log_prior is None
    unroll = None if unroll is None else check_positive_int(unroll, "unroll", 0)
    options = _Options(n_restarts, block_size, rounds, restrained, unroll)
    with jax.default_matmul_precision("highest"):
        if is_traced(model, data, key, init, weight, labels, algorithm, stop, max_steps, options):
            return _fit_traced(model, data, key, init, weight, labels, algorithm, stop, max_steps, options, standardize)
        return _fit_plainly(model, data, key, init, weight, labels, algorithm, stop, max_steps, options, standardize)


def _fit_traced(model, data, key, init, weight, labels, algorithm, stop, max_steps, options, standardize) -> Result:
    data = jax.tree.map(jnp.asarray, data)
    dtype = float_dtype(data)
    weight = None if weight is None else jnp.asarray(weight, dtype)
    # Any coordinates lead to the same fit: its derivatives need not go through the choice of them.
    affine = jax.lax.stop_gradient(coordinates(model, data, weight, jnp)) if standardize else None
    original, init = model, _cast(init, dtype)
    if affine is not None:
        volume = _volume(model, data, affine, dtype)
        model, init, data = _changed(model, init, affine, model.change_data(data, affine))
    else:
        volume = jnp.zeros((), dtype)
    result = _solve(model, data, key, init, weight, labels, algorithm, stop, jnp.asarray(max_steps), volume, options)
    if affine is None:
        return dataclasses.replace(result, model=original)
    return _restored(original, result, original.change_params(result.params, affine.inverted()))


def _fit_plainly(model, data, key, init, weight, labels, algorithm, stop, max_steps, options, standardize) -> Result:
    data = given = model.validate(data)
    n = n_rows(data)
    dtype = float_dtype(data)
    if weight is not None:
        weight = np.asarray(check_weight(weight, n), dtype)
    elif model.missing is None:
        check_rows_finite(data)
    max_steps = jnp.int32(check_positive_int(max_steps, "max_steps", 0))
    labels = checked_labels(labels, model.label_shape(data), model.n_labels)
    init = checked_init(model, init, data, options.n_restarts, dtype)
    affine = coordinates(model, data, weight, np) if standardize else None
    original, model = model, model.prepared(data)
    if affine is not None:
        exact = jax.tree.map(lambda x: np.asarray(x, np.float64), affine)
        volume = _volume(model, data, exact, dtype)
        data = jax.tree.map(np.asarray, data)
        model, init, data = _changed(model, init, exact, model.change_data(data, exact))
        model, init = _cast(model, dtype), _cast(init, dtype)
    else:
        volume = jnp.zeros((), dtype)
    data = jax.tree.map(jnp.asarray, data)
    result = _solve_in_segments(model, data, key, init, weight, labels, algorithm, stop, max_steps, volume, options)
    if affine is not None:
        doubled = jax.tree.map(lambda x: np.asarray(x, np.float64), result.params)
        params = original.change_params(doubled, exact.inverted())
        result = _restored_jit(original, result, jax.tree.map(lambda x: jnp.asarray(np.asarray(x, dtype)), params))
    else:
        result = dataclasses.replace(result, model=original)
    raise_if_all_failed(result, given, weight)
    return _trimmed(result)


def _trimmed(result: Result) -> Result:
    """Histories without the steps that were not taken."""
    taken = int(min(result.n_steps + 1, HISTORY))
    longest = int(min(result.restarts.n_steps.max() + 1, HISTORY))
    restarts = dataclasses.replace(result.restarts, history=result.restarts.history[:, :longest])
    return dataclasses.replace(result, history=result.history[:taken], restarts=restarts)


def coordinates(model: Model, data: PyTree, weight: Any, xp: Any) -> Any:
    """`Model.coordinates` of the rows that count; under vmap over weights, of those that count in any lane."""
    if weight is None:
        return model.coordinates(data, xp)
    if xp is np:
        return model.coordinates(jax.tree.map(lambda x: np.asarray(x)[weight > 0], data), np)
    present = any_lane(jax.lax.stop_gradient(weight) > 0)
    return model.coordinates(replace_absent(data, weight), jnp, present)


def _changed(model: Model, init: Any, affine: Any, data: PyTree) -> tuple[Model, Any, PyTree]:
    if isinstance(init, starts.Each):
        init = starts.Each(_each_changed(model, init.params, affine))
    elif init is not None and not isinstance(init, starts.Init):
        init = model.change_params(init, affine)
    return model.changed(affine), init, data


def _each_changed(model: Model, params: Params, affine: Any) -> Params:
    count = len(jax.tree.leaves(params)[0])
    each = [model.change_params(jax.tree.map(lambda x, i=i: x[i], params), affine) for i in range(count)]
    return jax.tree.map(lambda *x: (np if isinstance(x[0], np.ndarray) else jnp).stack(x), *each)


def _volume(model: Model, data: PyTree, affine: Any, dtype: Any) -> Array:
    """() or (N,)."""
    return jnp.asarray(model.log_volume(data, affine), dtype)


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    """Inexact array leaves in `dtype`; Python numbers and integers as they are."""

    def leaf(x):
        inexact = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.asarray(x, dtype) if inexact and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    return jax.tree.map(leaf, tree)


def _restored(original: Model, result: Result, params: Params) -> Result:
    """The result in the data's own units: the log-prior there differs from the one inside by a constant."""
    shift = result.loglik + model_log_prior(original, params) - result.objective
    return dataclasses.replace(
        result, params=params, model=original, objective=result.objective + shift, history=result.history + shift,
        restarts=dataclasses.replace(
            result.restarts, objective=result.restarts.objective + shift, history=result.restarts.history + shift
        ),
    )  # fmt: skip


_restored_jit = jax.jit(_restored)


@struct
class _Plan:
    """Shapes of a fit's work: structure alone, so that it passes out of jit.

    Attributes:
        width: lanes stepped together.
        block_size: rows of one block.
    """

    width: int = static()
    block_size: int = static()


def _planned(model, data, starting, labels, options) -> _Plan:
    n, dtype, backend = n_rows(data), float_dtype(data), jax.default_backend()
    template = jax.tree.map(lambda x: x[0], starting)
    width = _lanes_at_once(n, options.n_restarts, _row_width(model, template, data, labels, 1), backend)
    across = _row_width(model, template, data, labels, width)
    return _Plan(width, options.block_size or choose_block_size(n, across, dtype.itemsize, backend))


def _posed(model, data, weight, labels, algorithm, stop, max_steps, volume, options, plan) -> Problem:
    """The problem, its data cut into blocks."""
    blocks = cut(data, weight, labels, plan.block_size)
    if volume.ndim == 0:
        offset = volume * blocks.weight.sum()
    else:  # data differ in size
        offset = volume.sum() if weight is None else weighted_total(volume, weight)
    return Problem(model, blocks, algorithm, stop, max_steps, offset, options.regularizer)


def _begin(model, data, key, init, weight, labels, algorithm, stop, max_steps, volume, options) -> tuple[Problem, Lane, _Plan]:
    """The data cut into blocks, and all lanes at their starts."""
    starting = _starting_params(model, data, key, init, weight, options)
    starting = options.regularizer.restored(starting, starting)
    options.regularizer.check(model.constraints, jax.tree.map(lambda x: x[0], starting))
    plan = _planned(model, data, starting, labels, options)
    problem = _posed(model, data, weight, labels, algorithm, stop, max_steps, volume, options, plan)
    if model.local is None:
        lanes = jax.vmap(lambda p: new_lane(problem, p))(starting)
    else:  # a pass over the data
        lanes = jax.lax.map(lambda p: new_lane(problem, p), starting, batch_size=plan.width)
    return problem, lanes, plan


def _race(problem, lanes, options, plan, run) -> Lane:
    """All lanes stepped by `run` until they stop."""
    if options.rounds is None:
        return run(problem, lanes, plan.width)
    return run_rounds(problem, lanes, plan.width, options.rounds, run)


def _end(problem, lanes, n) -> Result:
    """The winner, and a line about each of the others; `n` data."""
    lanes, offset = settle(problem, lanes), problem.offset
    winner = take(lanes, best_first(lanes)[0])
    local = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], winner.local)
    histories = jax.vmap(chronological)(lanes.history, lanes.n_steps) + offset
    return Result(
        params=winner.params,
        local=local,
        loglik=winner.loglik + offset,
        objective=winner.objective + offset,
        status=winner.status,
        stop=winner.stop,
        n_steps=winner.n_steps,
        history=chronological(winner.history, winner.n_steps) + offset,
        restarts=Restarts(lanes.loglik + offset, lanes.objective + offset, lanes.status, lanes.n_steps, histories),
        model=problem.model,
    )


def _solve(model, data, key, init, weight, labels, algorithm, stop, max_steps, volume, options) -> Result:
    """Everything between the boundaries, in one traced piece."""
    with algorithm.scope():
        given = (model, data, key, init, weight, labels, algorithm, stop, max_steps, volume, options)
        if options.unroll is not None:
            problem, lanes, _ = _begin(*given)
            return _end(problem, unrolled(problem, lanes, options.unroll), n_rows(data))
        problem, lanes, plan = _begin(*jax.lax.stop_gradient(given))
        result = _end(problem, _race(problem, lanes, options, plan, run), n_rows(data))
        live = _posed(model, data, weight, labels, algorithm, stop, max_steps, volume, options, plan)
        return attached(live, result)


_begin_jit = jax.jit(_begin)
_end_jit = jax.jit(_end, static_argnums=2)
_unrolled_jit = jax.jit(unrolled, static_argnums=2)


def _solve_in_segments(model, data, key, init, weight, labels, algorithm, stop, max_steps, volume, options) -> Result:
    """The same from the host, so that it can be interrupted."""
    with algorithm.scope():
        problem, lanes, plan = _begin_jit(model, data, key, init, weight, labels, algorithm, stop, max_steps, volume, options)
        if options.unroll is not None:
            return _end_jit(problem, _unrolled_jit(problem, lanes, options.unroll), n_rows(data))
        return _end_jit(problem, _race(problem, lanes, options, plan, run_in_segments), n_rows(data))


def _starting_params(model, data, key, init, weight, options) -> Params:
    """Starting parameters of all lanes, leaves (R, ...); lane i depends on (key, i) alone."""
    n, n_restarts = n_rows(data), options.n_restarts
    dtype = float_dtype(data)
    if isinstance(init, starts.Each):
        return jax.tree.map(jnp.asarray, init.params)
    if init is not None and not isinstance(init, starts.Init):
        return jax.tree.map(lambda x: jnp.broadcast_to(jnp.asarray(x), (n_restarts, *jnp.shape(x))), init)
    valid = data
    if weight is None:
        weight = jnp.ones((n,), dtype)
    else:
        valid = replace_absent(data, weight)

    def one(i: Array) -> Params:
        lane_key = None if key is None else jax.random.fold_in(key, i)
        if init is None:
            return model.initialize(lane_key, valid, weight)
        return model.initialize_by(init, lane_key, valid, weight)

    batch = max(1, min(n_restarts, (1 << 24) // max(1, n)))
    params = jax.lax.map(one, jnp.arange(n_restarts), batch_size=batch)
    return _cast(params, dtype)


def _row_width(model: Model, params: Params, data: PyTree, labels: PyTree, lanes: int) -> int:
    """Numbers that one row costs in the widest array of an E-step of all lanes together."""
    row = jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:]), x.dtype), data)
    label = jax.tree.map(lambda x: jnp.zeros((1, *x.shape[1:]), x.dtype), labels)
    one = Blocks(row, jnp.ones((1,), float_dtype(data)), label)
    about = model.at(params)
    packed = jax.eval_shape(lambda p: about.pack(about.natural(p)), params)
    local = jax.eval_shape(lambda q: about.local(q, row, None), packed) if about.local else None

    def term(params, packed, local):
        return weighted_total(about.log_marginal(packed, row, block_rows(model, params, one, local)), one.weight)

    lane = (params, packed, local)
    return row_width(jax.vmap(term), *jax.tree.map(lambda s: jnp.zeros((lanes, *s.shape), s.dtype), lane))


def _lanes_at_once(n: int, n_restarts: int, width: int, backend: str) -> int:
    """Lanes stepped together: all on an accelerator; on a CPU enough to fill the cores, few enough for the cache."""
    if backend != "cpu":
        return n_restarts
    return min(n_restarts, max(16, 500_000 // (n * width)))
