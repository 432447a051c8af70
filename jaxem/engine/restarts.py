"""Many lanes: a queue that keeps a batch of them full, rounds that drop the hopeless, and the choice of the winner."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.engine.loop import Lane, Problem, finish, step
from jaxem.numerics import tree_where
from jaxem.types import Status, static, struct

PyTree = Any


@struct
class Rounds:
    """Short runs of all lanes, then the best few, then the winner: cheap on easy problems, a gamble on hard ones.

    Lanes fall into brackets by prefix (4, the next 12, the next 48, ...), each with rounds of its own, so
    that more restarts of one key can only match or beat fewer.

    Attributes:
        first: steps of the first round; each later round doubles it.
        keep: one lane in `keep` survives a round.
    """

    first: int | Array = 20
    keep: int = static(default=4)


def take(lanes: Lane, index: Array) -> Lane:
    """The lanes at `index`."""
    return jax.tree.map(lambda x: x[index], lanes)


def put(lanes: Lane, index: Array, new: Lane) -> Lane:
    """`lanes` with those at `index` replaced."""
    return jax.tree.map(lambda x, n: x.at[index].set(n), lanes, new)


def run(problem: Problem, lanes: Lane, width: int, limit: Array | None = None) -> Lane:
    """Step every lane until it stops, or has taken `limit` steps; at most `width` lanes at a time.

    A vmapped loop runs until its slowest lane ends. So lanes wait in a queue, and one that stops gives
    its slot to the next: the work follows the sum of the lanes' steps, not their maximum. A lane's result
    does not depend on its neighbours.

    Args:
        problem: what the lanes share.
        lanes: leaves lead with R.
        width: slots.
        limit: number of steps at which to pause a lane, or None.
    """
    n_lanes = lanes.status.shape[0]
    width = min(width, n_lanes)

    def active(lanes: Lane) -> Array:
        running = lanes.status == Status.RUNNING
        return running if limit is None else running & (lanes.n_steps < limit)

    advance = jax.vmap(lambda lane, on: _step_if(problem, lane, on))

    def work(slots: Lane, waiting: Array) -> Lane:
        """Step the slots until one comes free that a waiting lane could have, or all are done."""

        def busy(slots: Lane) -> Array:
            on = active(slots)
            return jnp.where(waiting, on.all(), on.any())

        return jax.lax.while_loop(busy, lambda s: advance(s, active(s)), slots)

    if width == n_lanes:
        return work(lanes, jnp.array(False))

    def more(carry):
        lanes, slots, _ = carry
        return active(take(lanes, slots)).any()

    def turn(carry):
        lanes, slots, following = carry
        done = work(take(lanes, slots), following < n_lanes)
        lanes = put(lanes, slots, done)
        free = ~active(done)
        fresh = following + jnp.cumsum(free) - 1
        slots = jnp.where(free & (fresh < n_lanes), fresh, slots).astype(jnp.int32)
        return lanes, slots, jnp.minimum(following + free.sum(), n_lanes).astype(jnp.int32)

    first = jnp.arange(width, dtype=jnp.int32)
    return jax.lax.while_loop(more, turn, (lanes, first, jnp.int32(width)))[0]


def _step_if(problem: Problem, lane: Lane, on: Array) -> Lane:
    """A step where `on`; a lane that is off does not drift."""
    new = step(problem, lane)
    history = new.history  # written in place: see `step`
    kept = tree_where(on, _without_history(new), _without_history(lane))
    return type(lane)(**kept, history=jnp.where(on, history, lane.history))


def _without_history(lane: Lane) -> dict[str, Any]:
    return {name: getattr(lane, name) for name in lane.__dataclass_fields__ if name != "history"}


def brackets(n_lanes: int, keep: int) -> list[np.ndarray]:
    """Lane numbers by bracket: [0, keep), [keep, keep^2), ..."""
    edges = [0]
    while edges[-1] < n_lanes:
        edges.append(min(n_lanes, max(keep, edges[-1] * keep)))
    return [np.arange(a, b) for a, b in itertools.pairwise(edges)]


def run_rounds(problem: Problem, lanes: Lane, width: int, rounds: Rounds) -> Lane:
    """Race the lanes of each bracket; lanes out of the race keep the state in which they lost it, as MAX_STEPS."""
    limit = jnp.asarray(rounds.first)
    contenders = [jnp.asarray(b) for b in brackets(lanes.status.shape[0], rounds.keep)]
    while any(len(c) > 1 for c in contenders):
        index = jnp.concatenate(contenders)
        lanes = put(lanes, index, run(problem, take(lanes, index), width, limit))
        contenders = [c[best_first(take(lanes, c))[: -(-len(c) // rounds.keep)]] for c in contenders]
        limit = limit * 2
    index = jnp.concatenate(contenders)
    return put(lanes, index, run(problem, take(lanes, index), width))


def tier(status: Array) -> Array:
    """0 for a regular end, higher for worse: what stands first when lanes are compared."""
    worse = {Status.DECREASED: 1, Status.DEGENERATE: 2, Status.NONFINITE: 3}
    return sum((jnp.where(status == s, rank, 0) for s, rank in worse.items()), start=jnp.zeros_like(status))


def best_first(lanes: Lane) -> Array:
    """Order of the lanes: regular ones before troubled ones, then by objective."""
    value = jnp.where(jnp.isnan(lanes.objective), -jnp.inf, lanes.objective)
    return jnp.lexsort((-value, tier(lanes.status)))


def settle(problem: Problem, lanes: Lane) -> Lane:
    """Final statuses of all lanes; one that a race left behind has run out of steps."""
    status = jnp.where(lanes.status == Status.RUNNING, jnp.int32(Status.MAX_STEPS), lanes.status)
    lanes = type(lanes)(**{**_without_history(lanes), "history": lanes.history, "status": status})
    return jax.lax.map(lambda lane: finish(problem, lane), lanes)
