"""From a task to a result: restarts at their starts, the race, the winner; in one traced piece or watched from the host."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem import init as starts
from jaxem.engine.e_step import weighted_total
from jaxem.engine.implicit import attached
from jaxem.engine.loop import HISTORY, Restart, chronological, new_restart
from jaxem.engine.mesh import cut_on, map_restarts, run, spurious_restarts, uncut
from jaxem.engine.problem import Problem
from jaxem.engine.restarts import Queue, best_first, race, settle, staged, take, unrolled
from jaxem.fitting.checks import is_random, raise_if_sizes_are_traced, warn_if_alike
from jaxem.fitting.coordinates import Units
from jaxem.fitting.layout import Layout, lay_out
from jaxem.fitting.monitor import Monitor
from jaxem.fitting.segments import race_in_segments
from jaxem.fitting.task import Race, Task
from jaxem.numerics.blocks import replace_absent
from jaxem.numerics.trees import cast, on_device
from jaxem.types import Params, Restarts, Result, Status


def trimmed(result: Result, n: int | None = None) -> Result:
    """Histories without the steps that were not taken; per-datum parameters of the first `n` data."""
    result = dataclasses.replace(result, local=jax.tree.map(lambda x: x[:n], result.local))
    # On the host: on a device each number of steps would be a program of its own.
    steps = np.asarray(result.restarts.n_steps)
    taken, longest = (min(int(n) + 1, HISTORY) for n in (result.n_steps, steps.max()))
    restarts = dataclasses.replace(result.restarts, history=jax.device_put(np.asarray(result.restarts.history)[:, :longest]))
    return dataclasses.replace(result, history=jax.device_put(np.asarray(result.history)[:taken]), restarts=restarts)


def posed(task: Task, layout: Layout) -> Problem:
    """The problem, its data cut into blocks."""
    options = task.options
    blocks = cut_on(options.mesh, task.data, task.weight, task.labels, layout.block_size)
    blocks = dataclasses.replace(blocks, hard=task.algorithm.hard)
    total = blocks.total_weight()
    lost = jnp.asarray(task.log_abs_det, blocks.weight.dtype)
    if lost.ndim == 0:
        offset = lost * total
    else:  # data differ in size
        offset = lost.sum() if task.weight is None else weighted_total(lost, task.weight)
    return Problem(
        model=task.model,
        blocks=blocks,
        algorithm=task.algorithm,
        stop=task.stop,
        max_steps=task.max_steps,
        offset=offset,
        total_weight=total,
        regularizer=options.regularizer,
        mesh=options.mesh,
        datum_weight=blocks.datum_weight(),
        datum_size=jnp.asarray(sum(math.prod(x.shape[1:]) for x in jax.tree.leaves(task.data)), blocks.weight.dtype),
    )


def begin(task: Task) -> tuple[Problem, Queue, Layout]:
    """The data cut into blocks, and all restarts at their starts, queued."""
    model, options = task.model, task.options
    starting = starting_params(task)
    starting = options.regularizer.restored(starting, starting)
    first = jax.tree.map(lambda x: x[0], starting)
    options.regularizer.check(model.constraints, first)
    layout = options.layout or lay_out(model, first, task.data, task.labels, options, task.algorithm.hard)
    problem = posed(task, layout)

    def begun(problem: Problem, starting: Params) -> Restart:
        if model.local is None:
            return jax.vmap(lambda p: new_restart(problem, p))(starting)
        # A pass over the data.
        return jax.lax.map(lambda p: new_restart(problem, p), starting, batch_size=layout.width)

    return problem, staged(map_restarts(problem, begun, starting), layout.width, options.rounds), layout


def starting_params(task: Task) -> Params:
    """Starting parameters of all restarts, leaves (R, ...); restart i depends on (key, i) alone."""
    model, data, weight, init, n_restarts = task.model, task.data, task.weight, task.init, task.options.n_restarts
    if isinstance(init, starts.Each):
        return jax.tree.map(jnp.asarray, init.params)
    if init is not None and not isinstance(init, starts.Init):
        return jax.tree.map(lambda x: jnp.broadcast_to(jnp.asarray(x), (n_restarts, *jnp.shape(x))), init)
    if weight is None:
        # Behind a barrier: XLA would fold what is made of a long constant, for seconds.
        weight = jax.lax.optimization_barrier(jnp.ones((task.n,), task.dtype))
    else:
        data = replace_absent(data, weight)

    def one(i: Array) -> Params:
        restart_key = None if task.key is None else jax.random.fold_in(task.key, i)
        if init is None:
            return model.initialize(restart_key, data, weight)
        return init.initialize(model, restart_key, data, weight)

    batch = max(1, min(n_restarts, (1 << 24) // max(1, task.n)))
    return cast(jax.lax.map(one, jnp.arange(n_restarts), batch_size=batch), task.dtype)


def unrolled_restarts(problem: Problem, restarts: Restart, n_steps: int) -> Restart:
    """`n_steps` EM maps of every restart."""
    return map_restarts(problem, lambda problem, restarts: unrolled(problem, restarts, n_steps), restarts)


def end(
    problem: Problem, restarts: Restart, n: int, guard: bool = False, unusable: Array | None = None
) -> tuple[Result, Array]:
    """The winner with a line about each of the others, and the order of all, best first.

    Args:
        problem: what the restarts share.
        restarts: at their last step.
        n: number of data.
        guard: as `fit` takes it.
        unusable: (R,) whose parameters do not hold in the data's own units; None: nobody looked.
    """
    restarts, offset = settle(problem, restarts, unusable), problem.offset
    chance = spurious_restarts(problem, restarts.params) if guard else None
    order = best_first(restarts, chance, unusable)
    winner = take(restarts, order[0])
    histories = jax.vmap(chronological)(restarts.history, restarts.n_steps) + offset
    result = Result(
        params=winner.params,
        local=uncut(problem.mesh, winner.local, n),
        loglik=winner.loglik + offset,
        objective=winner.objective + offset,
        status=winner.status,
        stop=winner.stop,
        n_steps=winner.n_steps,
        history=chronological(winner.history, winner.n_steps) + offset,
        restarts=Restarts(
            restarts.loglik + offset, restarts.objective + offset, restarts.status, restarts.n_steps, histories, chance
        ),
        model=problem.model,
        to_gain=problem.stop.to_gain_of(winner.seen),
        restrained=problem.regularizer.restrained(winner.params),
    )
    return result, order


begin_jit, end_jit = jax.jit(begin), jax.jit(end, static_argnums=(2, 3))
unrolled_jit = jax.jit(unrolled_restarts, static_argnums=2)


def solve(task: Task, units: Units) -> Result:
    """Everything between the boundaries, in one traced piece."""
    options = task.options

    def ended(problem: Problem, restarts: Restart) -> Result:
        return end(problem, restarts, task.n, task.guard, units.unusable(jax.lax.stop_gradient(restarts.params)))[0]

    if options.unroll is not None:
        problem, queue, _ = begin(task)
        return ended(problem, unrolled_restarts(problem, queue.restarts, options.unroll))
    problem, queue, layout = begin(jax.lax.stop_gradient(task))
    result = ended(problem, race(problem, queue, layout.width, options.rounds, run))
    return attached(posed(task, layout), result)


def started(task: Task) -> Race:
    """The same from the host, in steps: first, restarts at their starts."""
    try:
        plain = dataclasses.replace(task, guard=False)  # which is for the end, and compiles no start again
        race = Race(*begin_jit(on_device(plain)), options=task.options, n=task.n, guard=task.guard)
    except TypeError as error:
        raise_if_sizes_are_traced(task.model, error)
        raise
    if task.options.n_restarts > 1 and task.options.mesh is None and not is_random(task.model, task.init):
        warn_if_alike(race.queue.restarts.params)
    return race


def usable(race: Race, restarts: Restart, units: Units) -> Result:
    """The result, in the data's own units: of the first restart in order whose parameters hold there."""
    result, order = end_jit(race.problem, restarts, race.n, race.guard)
    back = units.back(result)
    if units.affine is None or int(result.status) == Status.NONFINITE or units.hold(back.params):
        return back
    unusable = np.zeros(order.shape, bool)
    params = jax.tree.map(np.asarray, restarts.params)
    for i in np.asarray(order):
        if units.hold(units.params(jax.tree.map(lambda x, i=i: x[i], params))):
            break
        unusable[i] = True
    return units.back(end_jit(race.problem, restarts, race.n, race.guard, unusable)[0])


def solve_watched(race: Race, monitor: Monitor, units: Units, n: int | None) -> Result:
    """Then the race, watched by `monitor`; `units` are the data's own, of which there are `n` (see `trimmed`)."""

    def ended(restarts: Restart) -> Result:
        return trimmed(usable(race, restarts, units), n)

    if race.options.unroll is not None:
        return ended(unrolled_jit(race.problem, race.queue.restarts, race.options.unroll))
    return ended(race_in_segments(race, monitor, ended))
