"""`fit`: the boundary around the loop. Called plainly it checks, converts and standardizes; inside jit it composes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxem import init as starts
from jaxem.blocks import float_dtype, n_rows, replace_absent
from jaxem.distributed import no_survivors, spans_processes, to_local_rows, together
from jaxem.engine.algorithm import EM, Algorithm
from jaxem.engine.checkpoint import Checkpoint
from jaxem.engine.checks import (
    check_algorithm,
    check_key,
    check_model,
    check_rows_finite,
    checked_init,
    checked_labels,
    raise_if_all_failed,
)
from jaxem.engine.coordinates import (
    cast,
    changed,
    coordinates,
    exact_coordinates,
    restored,
    restored_jit,
    standardized,
    volume_lost,
)
from jaxem.engine.e_step import weighted_total
from jaxem.engine.implicit import attached
from jaxem.engine.layout import Layout, lay_out, memory_limit
from jaxem.engine.loop import HISTORY, Lane, chronological, new_lane
from jaxem.engine.mesh import cut_on, map_lanes, mesh_of, run, shared_out, uncut
from jaxem.engine.monitor import Monitor, Snapshot
from jaxem.engine.problem import Problem
from jaxem.engine.regularizer import Regularizer, regularizer
from jaxem.engine.restarts import Queue, Rounds, best_first, race, settle, staged, take, unrolled
from jaxem.engine.segments import race_in_segments, resumed
from jaxem.engine.stop import Stop
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
    memory_limit: int | None = static(default=None)
    layout: Layout | None = None
    mesh: Mesh | None = static(default=None)


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
    mesh: Mesh | None = None,
    progress: bool = False,
    checkpoint: Checkpoint | str | Path | None = None,
    max_seconds: float | None = None,
    callback: Callable[[Snapshot], Any] | None = None,
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
        mesh: devices over which the rows of data are shared out, and restarts along an axis named "restarts" where it
            has one. None: those over which the data already lie; inside jit it must be given. In several processes
            `data`, `weight` and `labels` are each process's own rows, and the result is the same in all.
        progress: show a line that tells how the fit stands (needs pip install "jaxem[cli]"). This and the next three
            in plain calls only.
        checkpoint: directory, or a `jaxem.Checkpoint`, to save the fit in every half a minute, and to go on from:
            the same call made again resumes, on the CPU to the same bits. A directory of another fit is refused.
        max_seconds: time after which lanes that still run are INTERRUPTED, as by Ctrl-C: the result is the best so far.
            It is looked at about every .2 s, or after every step that takes longer.
        callback: called with a `jaxem.Snapshot` about every .2 s; returning True stops the fit likewise.

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
    mesh = mesh_of(mesh, data)
    monitor = Monitor(progress, checkpoint, max_seconds, callback, mesh)
    with jax.default_matmul_precision("highest"), no_survivors(mesh):
        traced = is_traced(model, data, key, init, weight, labels, algorithm, stop, max_steps, restrained, rounds)
        limit = memory_limit(None if traced else mesh)
        options = _Options(n_restarts, block_size, rounds, restrained, unroll, limit, mesh=mesh)
        if traced:
            if not monitor.idle:
                raise ValueError("progress, checkpoint, max_seconds and callback need a plain call of fit; got one inside jit")
            return _fit_traced(model, data, key, init, weight, labels, algorithm, stop, max_steps, options, standardize)
        given = (model, data, key, init, weight, labels, algorithm, stop, max_steps, options, standardize)
        with monitor:
            return _fit_plainly(*given, monitor)


def _fit_traced(model, data, key, init, weight, labels, algorithm, stop, max_steps, options, standardize) -> Result:
    data = jax.tree.map(jnp.asarray, data)
    dtype = float_dtype(data)
    weight = None if weight is None else jnp.asarray(weight, dtype)
    n, mesh = n_rows(data), options.mesh
    data, weight, labels = shared_out(mesh, data, weight, labels)
    init = _shared_start(mesh, init)
    # Any coordinates lead to the same fit: its derivatives need not go through the choice of them.
    affine = jax.lax.stop_gradient(coordinates(model, data, weight, jnp)) if standardize else None
    original, init = model, cast(init, dtype)
    if affine is not None:
        volume = volume_lost(model, data, affine, dtype)
        data = model.change_data(data, affine)
        model, init = changed(model, init, affine)
    else:
        volume = jnp.zeros((), dtype)
    result = _solve(model, data, key, init, weight, labels, algorithm, stop, jnp.asarray(max_steps), volume, options)
    result = dataclasses.replace(result, local=jax.tree.map(lambda x: x[:n], result.local))
    if affine is None:
        return dataclasses.replace(result, model=original)
    return restored(original, result, original.change_params(result.params, affine.inverted()))


def _fit_plainly(
    model, data, key, init, weight, labels, algorithm, stop, max_steps, options, standardize, monitor, solve=None
) -> Result:
    """`solve` takes what `_solve_in_segments`, the default, takes, and the change of coordinates after it, or None."""
    mesh = options.mesh
    with together(mesh):
        data, weight, labels = to_local_rows((data, weight, labels))
        data = given = model.validate(data)
        n = n_rows(data)
        dtype = float_dtype(data)
        if weight is not None:
            weight = np.asarray(check_weight(weight, n), dtype)
        elif model.missing is None:
            check_rows_finite(data)
        max_steps = np.int32(check_positive_int(max_steps, "max_steps", 0))
        labels = checked_labels(labels, model.label_shape(data), model.n_labels)
        init = checked_init(model, init, data, options.n_restarts, dtype)
        about = monitor.recall(
            model=model, data=data, key=key, init=init, weight=weight, labels=labels, algorithm=algorithm, stop=stop,
            max_steps=max_steps, options=(dataclasses.replace(options, memory_limit=None, mesh=None), standardize),
            mesh=mesh and dict(mesh.shape),
        )  # fmt: skip
    given_weight = weight
    data, weight, labels = shared_out(mesh, data, weight, labels)
    init = _shared_start(mesh, init)
    exact = exact_coordinates(model, data, weight, mesh) if standardize else None
    original = model
    if solve is None and not spans_processes(mesh):  # this process has all the data
        model = model.prepared(given)
    if exact is not None:
        volume, data = standardized(model, data, exact, dtype, mesh)
        model, init = changed(model, init, exact)
        model, init = cast(model, dtype), cast(init, dtype)
    else:
        volume = jnp.zeros((), dtype)
    data = jax.tree.map(jnp.asarray, data)

    def finished(result: Result) -> Result:
        if exact is not None:
            doubled = jax.tree.map(lambda x: np.asarray(x, np.float64), result.params)
            params = original.change_params(doubled, exact.inverted())
            result = restored_jit(original, result, jax.tree.map(lambda x: np.asarray(x, dtype), params))
        # Of several processes none holds all rows.
        return _trimmed(dataclasses.replace(result, model=original), None if spans_processes(mesh) else n)

    if about is not None:  # memory may be scarcer now, but the bits must be the same
        options = dataclasses.replace(options, layout=Layout(**about["layout"]))
    with algorithm.scope():
        problem, queue, layout = _begin_jit(
            model, data, key, init, weight, labels, algorithm, stop, max_steps, volume, options
        )  # fmt: skip
        arguments = (problem, queue, layout, n_rows(data), options, monitor, finished)
        del data  # it lies in the blocks now, and memory may be scarce
        result = _solve_in_segments(*arguments) if solve is None else solve(*arguments, exact)
    raise_if_all_failed(result, given, given_weight)
    return result


def _shared_start(mesh: Mesh | None, init: Any) -> Any:
    """Starting labels shared out as their rows are."""
    if mesh is None or not isinstance(init, starts.Labels):
        return init
    return starts.Labels(shared_out(mesh, jnp.asarray(init.labels), None, None)[0])


def _trimmed(result: Result, n: int | None = None) -> Result:
    """Histories without the steps that were not taken; per-datum parameters of the first `n` data."""
    result = dataclasses.replace(result, local=jax.tree.map(lambda x: x[:n], result.local))
    taken = int(min(result.n_steps + 1, HISTORY))
    longest = int(min(result.restarts.n_steps.max() + 1, HISTORY))
    restarts = dataclasses.replace(result.restarts, history=result.restarts.history[:, :longest])
    return dataclasses.replace(result, history=result.history[:taken], restarts=restarts)


def _posed(model, data, weight, labels, algorithm, stop, max_steps, volume, options, layout) -> Problem:
    """The problem, its data cut into blocks."""
    blocks = cut_on(options.mesh, data, weight, labels, layout.block_size)
    total = blocks.total_weight()
    if volume.ndim == 0:
        offset = volume * total
    else:  # data differ in size
        offset = volume.sum() if weight is None else weighted_total(volume, weight)
    return Problem(model, blocks, algorithm, stop, max_steps, offset, total, options.regularizer, options.mesh)


def _begin(
    model, data, key, init, weight, labels, algorithm, stop, max_steps, volume, options
) -> tuple[Problem, Queue, Layout]:
    """The data cut into blocks, and all lanes at their starts, queued."""
    starting = _starting_params(model, data, key, init, weight, options)
    starting = options.regularizer.restored(starting, starting)
    options.regularizer.check(model.constraints, jax.tree.map(lambda x: x[0], starting))
    layout = options.layout or lay_out(model, jax.tree.map(lambda x: x[0], starting), data, labels, options)
    problem = _posed(model, data, weight, labels, algorithm, stop, max_steps, volume, options, layout)

    def begun(problem: Problem, starting: Params) -> Lane:
        if model.local is None:
            return jax.vmap(lambda p: new_lane(problem, p))(starting)
        # A pass over the data.
        return jax.lax.map(lambda p: new_lane(problem, p), starting, batch_size=layout.width)

    lanes = map_lanes(problem, begun, starting)
    return problem, staged(lanes, layout.width, options.rounds), layout


def _unrolled(problem, lanes, n_steps) -> Lane:
    return map_lanes(problem, lambda problem, lanes: unrolled(problem, lanes, n_steps), lanes)


def _end(problem, lanes, n) -> Result:
    """The winner, and a line about each of the others; `n` data."""
    lanes, offset = settle(problem, lanes), problem.offset
    winner = take(lanes, best_first(lanes)[0])
    local = uncut(problem.mesh, winner.local, n)
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
            problem, queue, _ = _begin(*given)
            return _end(problem, _unrolled(problem, queue.lanes, options.unroll), n_rows(data))
        problem, queue, layout = _begin(*jax.lax.stop_gradient(given))
        result = _end(problem, race(problem, queue, layout.width, options.rounds, run), n_rows(data))
        live = _posed(model, data, weight, labels, algorithm, stop, max_steps, volume, options, layout)
        return attached(live, result)


_begin_jit = jax.jit(_begin)
_end_jit = jax.jit(_end, static_argnums=2)
_unrolled_jit = jax.jit(_unrolled, static_argnums=2)


def _solve_in_segments(problem, queue, layout, n, options, monitor, finished) -> Result:
    """The same from the host, watched by `monitor`; `finished` puts a result into the data's own units."""

    def ended(lanes: Lane) -> Result:
        return finished(_end_jit(problem, lanes, n))

    if options.unroll is not None:
        return ended(_unrolled_jit(problem, queue.lanes, options.unroll))
    monitor.about["layout"] = dataclasses.asdict(layout)
    queue, stage = resumed(queue, layout.width, options.rounds, monitor)
    return ended(race_in_segments(problem, queue, layout.width, options.rounds, monitor, ended, stage))


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
        # Behind a barrier: XLA would fold what is made of a long constant, for seconds.
        weight = jax.lax.optimization_barrier(jnp.ones((n,), dtype))
    else:
        valid = replace_absent(data, weight)

    def one(i: Array) -> Params:
        lane_key = None if key is None else jax.random.fold_in(key, i)
        if init is None:
            return model.initialize(lane_key, valid, weight)
        return model.initialize_by(init, lane_key, valid, weight)

    batch = max(1, min(n_restarts, (1 << 24) // max(1, n)))
    params = jax.lax.map(one, jnp.arange(n_restarts), batch_size=batch)
    return cast(params, dtype)
