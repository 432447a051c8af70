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
from jaxem.pytree import static, struct
from jaxem.types import Status

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


@struct
class Queue:
    """Lanes that have a slot, and lanes that wait for one: all that a run must remember.

    Attributes:
        lanes: all of them, leaves (R, ...).
        order: (n,) int32, the lanes to step, in the order in which they get a slot.
        slots: (width,) int32, the lane in each slot.
        following: int32, place in `order` of the lane that gets the next free slot.
        limit: int32, number of steps at which a lane pauses.
    """

    lanes: Lane
    order: Array
    slots: Array
    following: Array
    limit: Array


def queued(lanes: Lane, width: int, order: Array | None = None, limit: Array | int = NEVER) -> Queue:
    """A queue of the lanes in `order` (None: all) for `width` slots; those that stopped earlier come last."""
    order = jnp.arange(lanes.status.shape[0]) if order is None else order
    order = order[jnp.argsort(~active(take(lanes, order), limit), stable=True)].astype(jnp.int32)
    width = min(width, order.shape[0])
    return Queue(lanes, order, order[:width], jnp.int32(width), jnp.asarray(limit, jnp.int32))


def run(problem: Problem, queue: Queue, budget: Array | int = NEVER) -> Queue:
    """Step every lane in the queue until it stops or pauses; at most as many at a time as there are slots.

    A vmapped loop runs until its slowest lane ends. So lanes wait in a queue, and one that stops gives
    its slot to the next: the work follows the sum of the lanes' steps, not their maximum. A lane's result
    does not depend on its neighbours, and running in segments of any length ends where one run does, to the
    last bit: a lane keeps its slot from one segment to the next.

    Args:
        problem: what the lanes share.
        queue: where they stand.
        budget: rounds of the slots after which to return, finished or not.
    """
    order, limit = queue.order, queue.limit
    n_lanes, width = order.shape[0], queue.slots.shape[0]
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
    if width == queue.lanes.status.shape[0]:  # each lane has a slot of its own
        return dataclasses.replace(queue, lanes=work(queue.lanes, jnp.array(False), none)[0])

    def more(carry):
        queue, spent = carry
        return active(take(queue.lanes, queue.slots), limit).any() & (spent < budget)

    def turn(carry):
        queue, spent = carry
        done, spent = work(take(queue.lanes, queue.slots), queue.following < n_lanes, spent)
        free = ~active(done, limit)
        fresh = queue.following + jnp.cumsum(free) - 1
        slots = jnp.where(free & (fresh < n_lanes), order[jnp.minimum(fresh, n_lanes - 1)], queue.slots)
        following = jnp.minimum(queue.following + free.sum(), n_lanes).astype(jnp.int32)
        lanes = put(queue.lanes, queue.slots, done)
        return dataclasses.replace(queue, lanes=lanes, slots=slots.astype(jnp.int32), following=following), spent

    return jax.lax.while_loop(more, turn, (queue, none))[0]


def unrolled(problem: Problem, lanes: Lane, n_steps: int) -> Lane:
    """`n_steps` EM maps of every lane in a scan, each recomputed when differentiated instead of stored."""
    one = jax.vmap(jax.checkpoint(lambda lane: step(problem, lane, lane.status == Status.RUNNING)))
    return jax.lax.scan(lambda lanes, _: (one(lanes), None), lanes, length=n_steps + 1)[0]


def stages(n_lanes: int, rounds: Rounds | None) -> list[list[int]]:
    """Sizes of the brackets in each stage of a race; without rounds, one stage and all lanes in it."""
    if rounds is None:
        return [[n_lanes]]
    edges = [0]
    while edges[-1] < n_lanes:
        edges.append(min(n_lanes, max(rounds.keep, edges[-1] * rounds.keep)))
    sizes = [[b - a for a, b in itertools.pairwise(edges)]]
    while max(sizes[-1]) > 1:
        sizes.append([-(-size // rounds.keep) for size in sizes[-1]])
    return sizes


def staged(lanes: Lane, width: int, rounds: Rounds | None, stage: int = 0, order: Array | None = None) -> Queue:
    """The queue with which a stage begins: in the last one lanes run until they stop."""
    if rounds is None or stage + 1 == len(stages(lanes.status.shape[0], rounds)):
        return queued(lanes, width, order)
    return queued(lanes, width, order, jnp.asarray(rounds.first) * 2**stage)


def promoted(queue: Queue, width: int, rounds: Rounds | None, stage: int) -> Queue:
    """The queue of stage `stage`: the best of each bracket after the stage before.

    Lanes out of the race keep the state in which they lost it.
    """
    sizes = stages(queue.lanes.status.shape[0], rounds)
    before, now = sizes[stage - 1], sizes[stage]
    # Brackets are runs of lane numbers.
    edges = list(itertools.accumulate(before, initial=0))
    contenders = [jnp.sort(queue.order)[a:b] for a, b in itertools.pairwise(edges)]
    best = [c[best_first(take(queue.lanes, c))[:n]] for c, n in zip(contenders, now, strict=True)]
    return staged(queue.lanes, width, rounds, stage, jnp.concatenate(best))


def race(
    problem: Problem, queue: Queue, width: int, rounds: Rounds | None, run: Callable[[Problem, Queue], Queue] = run
) -> Lane:
    """Step all lanes until they stop or are out of the race.

    Args:
        problem: what the lanes share.
        queue: of the first stage.
        width: slots.
        rounds: the rules of the race; None: every lane is finished.
        run: what steps the lanes of a queue.
    """
    queue = run(problem, queue)
    for stage in range(1, len(stages(queue.lanes.status.shape[0], rounds))):
        queue = run(problem, promoted(queue, width, rounds, stage))
    return queue.lanes


#: For statuses that are not regular ends: higher is worse.
TIERS = {Status.DECREASED: 1, Status.DEGENERATE: 2, Status.NONFINITE: 3}


def tier(status: Array) -> Array:
    """0 for a regular end, higher for worse: what stands first when lanes are compared."""
    return sum((jnp.where(status == s, rank, 0) for s, rank in TIERS.items()), start=jnp.zeros_like(status))


def best_first(lanes: Lane) -> Array:
    """Order of the lanes: regular ones before troubled ones, then by objective."""
    value = jnp.where(jnp.isnan(lanes.objective), -jnp.inf, lanes.objective)
    return jnp.lexsort((-value, tier(lanes.status)))


def settle(problem: Problem, lanes: Lane) -> Lane:
    """Final statuses of all lanes; one that a race left behind has run out of steps."""
    status = jnp.where(lanes.status == Status.RUNNING, jnp.int32(Status.MAX_STEPS), lanes.status)
    return jax.lax.map(lambda lane: finish(problem, lane), dataclasses.replace(lanes, status=status))
