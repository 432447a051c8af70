"""The one loop: a restart goes E then M until it stops, and everything it holds is of its parameters."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import Array

from jaxem.engine.e_step import Expectation, e_step, update_local
from jaxem.engine.problem import Point, Problem, objective
from jaxem.engine.stop import Step, first_memory, reason, trouble
from jaxem.numerics.trees import tree_where
from jaxem.pytree import PyTree, struct
from jaxem.types import Params, Status, StopReason

#: Objective values that a restart remembers.
HISTORY = 1_000


@struct
class Restart:
    """The state of one restart; `loglik` and `local` are those *of* `params`.

    Attributes:
        params: current parameters.
        local: per-datum parameters at `params`.
        loglik: log-likelihood at `params`.
        objective: what rises.
        proposal: the parameters to evaluate next.
        began: the per-datum parameters from which that evaluation goes on.
        trial: whether they may lower the objective (see `Move`).
        memory: what the algorithm remembers.
        seen: what the stopping rule remembers.
        n_steps: EM maps evaluated; -1 before the first E-step.
        status: int32 `Status`.
        stop: int32 `StopReason`.
        history: (HISTORY,) ring of objectives, that of step s at s % HISTORY.
    """

    params: Params
    local: PyTree
    loglik: Array
    objective: Array
    proposal: Params
    began: PyTree
    trial: Array
    memory: PyTree
    seen: PyTree
    n_steps: Array
    status: Array
    stop: Array
    history: Array


def new_restart(problem: Problem, params: Params) -> Restart:
    """A restart at `params` that has not seen the data."""
    dtype = problem.blocks.weight.dtype
    lowest = jnp.full((), -jnp.inf, dtype)
    local = update_local(problem.model.centered(params), params, problem.blocks, None)
    return Restart(
        params=params,
        local=local,
        loglik=lowest,
        objective=lowest,
        proposal=params,
        began=local,
        trial=jnp.array(False),
        memory=problem.algorithm.begin(problem, params),
        seen=first_memory(problem.stop, params, lowest, problem.constraints(params)),
        n_steps=jnp.int32(-1),
        status=jnp.int32(Status.RUNNING),
        stop=jnp.int32(StopReason.NONE),
        history=jnp.full((HISTORY,), -jnp.inf, dtype),
    )


def step(problem: Problem, restart: Restart, on: Array | bool = True) -> Restart:
    """One evaluation of the EM map, at the restart's proposal; a restart that is not `on` does not drift.

    E then M. The first call only evaluates the start.
    """
    return advance(problem, restart, e_step(problem.model, restart.proposal, problem.blocks, restart.began), on)


def advance(problem: Problem, restart: Restart, expectation: Expectation, on: Array | bool = True) -> Restart:
    """The restart after the E-step at its proposal, wherever that was taken.

    The E-step says whether the restart goes to the proposal, and gives the algorithm what it needs for the next one.
    """
    value = objective(problem, restart.proposal, expectation.loglik).astype(restart.objective.dtype)
    magnitude = value + problem.offset if problem.model.offset_counts else value
    # Each number in the data adds a term of order one, and terms may cancel.
    size = jnp.abs(magnitude) + problem.datum_size * problem.total_weight
    slack = problem.algorithm.rounding * jnp.finfo(value.dtype).eps * size
    status = trouble(restart.objective, value, slack, restart.proposal)
    sound, finite = status == Status.RUNNING, status != Status.NONFINITE
    accepted = sound & (~restart.trial | (value >= restart.objective))
    # A trial that fails is no trouble: the restart stays where it is, and the algorithm turns back.
    status = jnp.where(restart.trial, jnp.int32(Status.RUNNING), status)

    step = Step(
        old_params=restart.params,
        params=restart.proposal,
        old_objective=restart.objective,
        objective=value,
        magnitude=magnitude,
        datum_weight=problem.datum_weight,
        constraints=problem.constraints(restart.params),
        trial=restart.trial,
        memory=restart.seen,
    )
    stays = (restart.n_steps < 0) | ~accepted
    remembered = problem.stop.remember(step)
    fired = jnp.where(stays, 0, reason(problem.stop, dataclasses.replace(step, remembered=remembered)))
    point = Point(
        params=restart.proposal,
        stats=expectation.stats,
        local=expectation.local,
        began=restart.began,
        value=value,
        accepted=accepted,
        sound=finite,
        small=fired != StopReason.NONE,
    )
    move = problem.algorithm.next(problem, point, restart.memory)

    fired = jnp.where(restart.trial if move.goes_on is None else restart.trial | move.goes_on, 0, fired)
    n_steps = restart.n_steps + 1
    running = status == Status.RUNNING
    status = jnp.where(running & (n_steps >= problem.max_steps), jnp.int32(Status.MAX_STEPS), status)
    status = jnp.where(running & (fired != StopReason.NONE), jnp.int32(Status.CONVERGED), status)

    held = (restart.proposal, expectation.local, expectation.loglik.astype(restart.loglik.dtype), value)
    params, local, loglik, value = tree_where(
        accepted, held, (restart.params, restart.local, restart.loglik, restart.objective)
    )
    new = dataclasses.replace(
        restart,
        params=params,
        local=local,
        loglik=loglik,
        objective=value,
        proposal=move.params,
        began=local if move.local is None else move.local,
        trial=move.trial,
        memory=move.memory,
        seen=tree_where(stays, restart.seen, remembered),
        n_steps=n_steps,
        status=status,
        stop=fired.astype(jnp.int32),
        history=(),
    )
    new = tree_where(jnp.asarray(on), new, dataclasses.replace(restart, history=()))
    # Written with `drop` rather than selected, so that the ring is updated in place. A step not taken
    # repeats the value kept: it counts as a step, and the last entry is always the objective.
    slot = jnp.where(on, n_steps % HISTORY, HISTORY)
    return dataclasses.replace(new, history=restart.history.at[slot].set(value, mode="drop"))


def finish(problem: Problem, restart: Restart) -> Restart:
    """The restart after its last step: one whose objective is finite, with a component at its floor, is DEGENERATE.

    However it ended: near a floor a fall may be all rounding, and an objective without bound is not to be waited for.
    """
    floor = (restart.status != Status.NONFINITE) & problem.model.degenerate(restart.params)
    return dataclasses.replace(restart, status=jnp.where(floor, jnp.int32(Status.DEGENERATE), restart.status))


def chronological(history: Array, n_steps: Array) -> Array:
    """A restart's ring of objectives, oldest first."""
    kept = jnp.minimum(n_steps + 1, HISTORY)
    return jnp.roll(history, kept - 1 - n_steps % HISTORY)
