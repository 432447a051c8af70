"""Many lanes: a queue that keeps a batch of them full, rounds that drop the hopeless, and the choice of the winner."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.engine.loop import Lane, finish, step
from jaxem.engine.problem import Problem
from jaxem.types import Status, static, struct

#: More steps than any fit takes.
NEVER = np.iinfo(np.int32).max


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


def active(lanes: Lane, limit: Array | int) -> Array:
    """(R,) lanes that still run and have taken fewer than `limit` steps."""
    return (lanes.status == Status.RUNNING) & (lanes.n_steps < limit)


def run(problem: Problem, lanes: Lane, width: int, limit: Array | int = NEVER, budget: Array | int = NEVER) -> Lane:
    """Step every lane until it stops, or has taken `limit` steps; at most `width` lanes at a time.

    A vmapped loop runs until its slowest lane ends. So lanes wait in a queue, and one that stops gives
    its slot to the next: the work follows the sum of the lanes' steps, not their maximum. A lane's result
    does not depend on its neighbours, and running in segments of any length ends where one run does.

    Args:
        problem: what the lanes share.
        lanes: leaves lead with R.
        width: slots.
        limit: number of steps at which to pause a lane.
        budget: rounds of the slots after which to return, finished or not.
    """
    n_lanes = lanes.status.shape[0]
    width = min(width, n_lanes)
    advance = jax.vmap(lambda lane, on: step(problem, lane, on))

    def work(slots: Lane, waiting: Array, spent: Array) -> tuple[Lane, Array]:
        """Step the slots until one comes free that a waiting lane could have, or all are done."""

        def busy(carry):
            slots, spent = carry
            on = active(slots, limit)
            return jnp.where(waiting, on.all(), on.any()) & (spent < budget)

        def once(carry):
            slots, spent = carry
            return advance(slots, active(slots, limit)), spent + 1

        return jax.lax.while_loop(busy, once, (slots, spent))

    none = jnp.int32(0)
    if width == n_lanes:
        return work(lanes, jnp.array(False), none)[0]

    # Lanes that stopped in an earlier segment need no slot.
    queue = jnp.argsort(~active(lanes, limit), stable=True).astype(jnp.int32)

    def more(carry):
        lanes, slots, _, spent = carry
        return active(take(lanes, slots), limit).any() & (spent < budget)

    def turn(carry):
        lanes, slots, following, spent = carry
        done, spent = work(take(lanes, slots), following < n_lanes, spent)
        lanes = put(lanes, slots, done)
        free = ~active(done, limit)
        fresh = following + jnp.cumsum(free) - 1
        slots = jnp.where(free & (fresh < n_lanes), queue[jnp.minimum(fresh, n_lanes - 1)], slots)
        return lanes, slots, jnp.minimum(following + free.sum(), n_lanes).astype(jnp.int32), spent

    return jax.lax.while_loop(more, turn, (lanes, queue[:width], jnp.int32(width), none))[0]


def unrolled(problem: Problem, lanes: Lane, n_steps: int) -> Lane:
    """`n_steps` EM maps of every lane in a scan, each recomputed when differentiated instead of stored."""
    one = jax.vmap(jax.checkpoint(lambda lane: step(problem, lane, lane.status == Status.RUNNING)))
    return jax.lax.scan(lambda lanes, _: (one(lanes), None), lanes, length=n_steps + 1)[0]


def brackets(n_lanes: int, keep: int) -> list[np.ndarray]:
    """Lane numbers by bracket: [0, keep), [keep, keep^2), ..."""
    edges = [0]
    while edges[-1] < n_lanes:
        edges.append(min(n_lanes, max(keep, edges[-1] * keep)))
    return [np.arange(a, b) for a, b in itertools.pairwise(edges)]


def run_rounds(problem: Problem, lanes: Lane, width: int, rounds: Rounds, run: Callable[..., Lane] = run) -> Lane:
    """Race the lanes of each bracket; lanes out of the race keep the state in which they lost it, as MAX_STEPS.

    Args:
        problem: what the lanes share.
        lanes: leaves lead with R.
        width: slots.
        rounds: the rules of the race.
        run: what steps lanes up to a limit.
    """
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
    return jax.lax.map(lambda lane: finish(problem, lane), dataclasses.replace(lanes, status=status))
