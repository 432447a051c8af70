"""The one loop: a lane goes M then E until it stops, so that everything it holds is of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxem.blocks import Blocks
from jaxem.engine.e_step import e_step, update_local
from jaxem.engine.m_step import log_prior, m_step
from jaxem.engine.stop import Stop, reason, trouble
from jaxem.numerics import tree_where
from jaxem.types import Model, Params, Status, StopReason, static, struct

PyTree = Any

#: Objective values that a lane remembers.
HISTORY = 1_000


@struct
class EM:
    """Expectation-Maximization; generalized EM where a model has no closed M-step.

    Attributes:
        optimizer: Optax transformation for parameters without a closed M-step; None is L-BFGS. Build it
            once: its identity is part of what is compiled.
        inner_steps: its updates in one M-step, at most.
    """

    optimizer: optax.GradientTransformation | None = static(default=None)
    inner_steps: int | Array = 100


@struct
class Problem:
    """All that the lanes of one fit share.

    Attributes:
        model: the model.
        blocks: the data.
        algorithm: how a lane moves.
        stop: when it stops.
        max_steps: EM maps at most, a number.
        offset: what to add to the objective for the data's own units.
        penalty: params -> scalar taken off the objective, or None.
    """

    model: Model
    blocks: Blocks
    algorithm: EM
    stop: Stop
    max_steps: Array
    offset: Array
    penalty: Callable[[Params], Array] | None = static(default=None)


@struct
class Lane:
    """The state of one restart; `loglik`, `stats` and `local` are those *of* `params`.

    Attributes:
        params: current parameters.
        stats: expected sufficient statistics at `params`.
        local: per-datum parameters at `params`.
        loglik: log-likelihood at `params`.
        objective: what rises.
        n_steps: EM maps evaluated; -1 before the first E-step.
        status: int32 `Status`.
        stop: int32 `StopReason`.
        history: (HISTORY,) ring of objectives, that of step s at s % HISTORY.
    """

    params: Params
    stats: PyTree
    local: PyTree
    loglik: Array
    objective: Array
    n_steps: Array
    status: Array
    stop: Array
    history: Array


def new_lane(problem: Problem, params: Params) -> Lane:
    """A lane at `params` that has not seen the data."""
    dtype = problem.blocks.weight.dtype
    shapes = jax.eval_shape(lambda p: problem.model.at(p).natural(p), params)
    stats = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    lowest = jnp.full((), -jnp.inf, dtype)
    return Lane(
        params=params,
        stats=stats,
        local=update_local(problem.model.at(params), params, problem.blocks, None),
        loglik=lowest,
        objective=lowest,
        n_steps=jnp.int32(-1),
        status=jnp.int32(Status.RUNNING),
        stop=jnp.int32(StopReason.NONE),
        history=jnp.full((HISTORY,), jnp.nan, dtype),
    )


def objective(problem: Problem, params: Params, loglik: Array) -> Array:
    """Log-likelihood + log-prior - penalty."""
    value = loglik + log_prior(problem.model, params)
    return value - problem.penalty(params) if problem.penalty else value


def step(problem: Problem, lane: Lane) -> Lane:
    """One EM map of a running lane (the first call only evaluates its start)."""
    algorithm = problem.algorithm
    first = lane.n_steps < 0
    proposal = m_step(
        problem.model, lane.stats, lane.params, problem.blocks, lane.local,
        algorithm.optimizer, algorithm.inner_steps, problem.penalty,
    )  # fmt: skip
    params = tree_where(first, lane.params, proposal)
    expectation = e_step(problem.model, params, problem.blocks, lane.local)
    value = objective(problem, params, expectation.loglik).astype(lane.objective.dtype)

    magnitude = value + problem.offset
    status = trouble(lane.objective, value, magnitude, params, problem.blocks.weight.sum())
    fired = jnp.where(first, 0, reason(problem.stop, lane.objective, value, magnitude, lane.params, params))
    n_steps = lane.n_steps + 1
    sound = status == Status.RUNNING
    status = jnp.where(sound & (n_steps >= problem.max_steps), jnp.int32(Status.MAX_STEPS), status)
    status = jnp.where(sound & (fired != StopReason.NONE), jnp.int32(Status.CONVERGED), status)

    # A step that went wrong is not taken: the lane keeps its last sound state.
    held = (params, expectation.stats, expectation.local, expectation.loglik, value)
    params, stats, local, loglik, value = tree_where(
        sound, held, (lane.params, lane.stats, lane.local, lane.loglik, lane.objective)
    )
    # Written with `drop` rather than selected, so that the ring is updated in place. A step not taken
    # repeats the value kept: it counts as a step, and the last entry is always the objective.
    slot = jnp.where(lane.status == Status.RUNNING, n_steps % HISTORY, HISTORY)
    return Lane(
        params=params,
        stats=stats,
        local=local,
        loglik=loglik.astype(lane.loglik.dtype),
        objective=value,
        n_steps=n_steps,
        status=status,
        stop=jnp.where(sound, fired, 0).astype(jnp.int32),
        history=lane.history.at[slot].set(value, mode="drop"),
    )


def finish(problem: Problem, lane: Lane) -> Lane:
    """The lane after its last step: one that ended with a component at its floor is DEGENERATE."""
    ended = (lane.status == Status.CONVERGED) | (lane.status == Status.MAX_STEPS)
    floor = ended & problem.model.degenerate(lane.params)
    return _replace(lane, status=jnp.where(floor, jnp.int32(Status.DEGENERATE), lane.status))


def _replace(lane: Lane, **changes: Any) -> Lane:
    return type(lane)(**{**{name: getattr(lane, name) for name in lane.__dataclass_fields__}, **changes})


def chronological(history: Array, n_steps: Array) -> Array:
    """A lane's ring of objectives, oldest first."""
    kept = jnp.minimum(n_steps + 1, HISTORY)
    return jnp.roll(history, kept - 1 - n_steps % HISTORY)
