"""Many restarts: a queue that keeps a batch of them full, rounds that drop the hopeless, and the choice of the winner."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.engine.e_step import e_step
from jaxem.engine.loop import Restart, finish, step
from jaxem.engine.problem import Problem
from jaxem.pytree import static, struct
from jaxem.types import TIERS, Params, Status

#: More steps than any fit takes.
NEVER = np.iinfo(np.int32).max


@struct
class Rounds:
    """Short runs of all restarts, then the best few, then the winner: cheap on easy problems, a gamble on hard ones.

    Restarts fall into brackets by prefix (4, the next 12, the next 48, ...), each with rounds of its own, so
    that more restarts of one key can only match or beat fewer.

    Attributes:
        first: steps of the first round; each later round doubles it.
        keep: one restart in `keep` survives a round.
    """

    first: int | Array = 20
    keep: int = static(default=4)


def take(restarts: Restart, index: Array) -> Restart:
    """The restarts at `index`."""
    return jax.tree.map(lambda x: x[index], restarts)


def put(restarts: Restart, index: Array, new: Restart) -> Restart:
    """`restarts` with those at `index` replaced."""
    return jax.tree.map(lambda x, n: x.at[index].set(n), restarts, new)


def active(restarts: Restart, limit: Array | int) -> Array:
    """(R,) restarts that still run and have taken fewer than `limit` steps."""
    return (restarts.status == Status.RUNNING) & (restarts.n_steps < limit)


@struct
class Queue:
    """Restarts that have a slot, and restarts that wait for one: all that a run must remember.

    Attributes:
        restarts: all of them, leaves (R, ...).
        order: (n,) int32, the restarts to step, in the order in which they get a slot.
        slots: (width,) int32, the restart in each slot.
        following: int32, place in `order` of the restart that gets the next free slot.
        limit: int32, number of steps at which a restart pauses.
    """

    restarts: Restart
    order: Array
    slots: Array
    following: Array
    limit: Array


def queued(restarts: Restart, width: int, order: Array | None = None, limit: Array | int = NEVER) -> Queue:
    """A queue of the restarts in `order` (None: all) for `width` slots; those that stopped earlier come last."""
    order = jnp.arange(restarts.status.shape[0]) if order is None else order
    order = order[jnp.argsort(~active(take(restarts, order), limit), stable=True)].astype(jnp.int32)
    width = min(width, order.shape[0])
    return Queue(restarts, order, order[:width], jnp.int32(width), jnp.asarray(limit, jnp.int32))


def run(problem: Problem, queue: Queue, budget: Array | int = NEVER) -> Queue:
    """Step every restart in the queue until it stops or pauses; at most as many at a time as there are slots.

    A vmapped loop runs until its slowest restart ends. So restarts wait in a queue, and one that stops gives
    its slot to the next: the work follows the sum of the restarts' steps, not their maximum. A restart's result
    does not depend on its neighbours, and running in segments of any length ends where one run does, to the
    last bit: a restart keeps its slot from one segment to the next.

    Args:
        problem: what the restarts share.
        queue: where they stand.
        budget: rounds of the slots after which to return, finished or not.
    """
    order, limit = queue.order, queue.limit
    n_restarts, width = order.shape[0], queue.slots.shape[0]
    advance = jax.vmap(lambda restart, on: step(problem, restart, on))

    def work(slots: Restart, waiting: Array, spent: Array) -> tuple[Restart, Array]:
        """Step the slots until one comes free that a waiting restart could have, or all are done."""

        def busy(carry):
            slots, spent = carry
            on = active(slots, limit)
            return jnp.where(waiting, on.all(), on.any()) & (spent < budget)

        def once(carry):
            slots, spent = carry
            return advance(slots, active(slots, limit)), spent + 1

        return jax.lax.while_loop(busy, once, (slots, spent))

    none = jnp.int32(0)
    if width == queue.restarts.status.shape[0]:  # each restart has a slot of its own
        return dataclasses.replace(queue, restarts=work(queue.restarts, jnp.array(False), none)[0])

    def more(carry):
        queue, spent = carry
        return active(take(queue.restarts, queue.slots), limit).any() & (spent < budget)

    def turn(carry):
        queue, spent = carry
        done, spent = work(take(queue.restarts, queue.slots), queue.following < n_restarts, spent)
        free = ~active(done, limit)
        fresh = queue.following + jnp.cumsum(free) - 1
        slots = jnp.where(free & (fresh < n_restarts), order[jnp.minimum(fresh, n_restarts - 1)], queue.slots)
        following = jnp.minimum(queue.following + free.sum(), n_restarts).astype(jnp.int32)
        restarts = put(queue.restarts, queue.slots, done)
        return dataclasses.replace(queue, restarts=restarts, slots=slots.astype(jnp.int32), following=following), spent

    return jax.lax.while_loop(more, turn, (queue, none))[0]


def unrolled(problem: Problem, restarts: Restart, n_steps: int) -> Restart:
    """`n_steps` EM maps of every restart in a scan, each recomputed when differentiated instead of stored."""
    one = jax.vmap(jax.checkpoint(lambda restart: step(problem, restart, restart.status == Status.RUNNING)))
    return jax.lax.scan(lambda restarts, _: (one(restarts), None), restarts, length=n_steps + 1)[0]


def stages(n_restarts: int, rounds: Rounds | None) -> list[list[int]]:
    """Sizes of the brackets in each stage of a race; without rounds, one stage and all restarts in it."""
    if rounds is None:
        return [[n_restarts]]
    edges = [0]
    while edges[-1] < n_restarts:
        edges.append(min(n_restarts, max(rounds.keep, edges[-1] * rounds.keep)))
    sizes = [[b - a for a, b in itertools.pairwise(edges)]]
    while max(sizes[-1]) > 1:
        sizes.append([-(-size // rounds.keep) for size in sizes[-1]])
    return sizes


def staged(restarts: Restart, width: int, rounds: Rounds | None, stage: int = 0, order: Array | None = None) -> Queue:
    """The queue with which a stage begins: in the last one restarts run until they stop."""
    if rounds is None or stage + 1 == len(stages(restarts.status.shape[0], rounds)):
        return queued(restarts, width, order)
    return queued(restarts, width, order, jnp.asarray(rounds.first) * 2**stage)


def promoted(queue: Queue, width: int, rounds: Rounds | None, stage: int) -> Queue:
    """The queue of stage `stage`: the best of each bracket after the stage before.

    Restarts out of the race keep the state in which they lost it.
    """
    sizes = stages(queue.restarts.status.shape[0], rounds)
    before, now = sizes[stage - 1], sizes[stage]
    # Brackets are runs of restart numbers.
    edges = list(itertools.accumulate(before, initial=0))
    contenders = [jnp.sort(queue.order)[a:b] for a, b in itertools.pairwise(edges)]
    best = [c[best_first(take(queue.restarts, c))[:n]] for c, n in zip(contenders, now, strict=True)]
    return staged(queue.restarts, width, rounds, stage, jnp.concatenate(best))


def race(
    problem: Problem, queue: Queue, width: int, rounds: Rounds | None, run: Callable[[Problem, Queue], Queue] = run
) -> Restart:
    """Step all restarts until they stop or are out of the race.

    Args:
        problem: what the restarts share.
        queue: of the first stage.
        width: slots.
        rounds: the rules of the race; None: every restart is finished.
        run: what steps the restarts of a queue.
    """
    queue = run(problem, queue)
    for stage in range(1, len(stages(queue.restarts.status.shape[0], rounds))):
        queue = run(problem, promoted(queue, width, rounds, stage))
    return queue.restarts


def tier(status: Array) -> Array:
    """0 for a regular end, higher for worse: what stands first when restarts are compared."""
    return sum((jnp.where(status == s, rank, 0) for s, rank in TIERS.items()), start=jnp.zeros_like(status))


def best_first(restarts: Restart, spurious: Array | None = None, unusable: Array | None = None) -> Array:
    """Order of the restarts: regular ones first, then those not `unusable` (R,), not `spurious` (R,), then by objective."""
    value = jnp.where(jnp.isnan(restarts.objective), -jnp.inf, restarts.objective)
    return jnp.lexsort([key for key in (-value, spurious, unusable, tier(restarts.status)) if key is not None])


def spurious(problem: Problem, params: Params) -> Array:
    """(R,) which restarts, by their parameters, owe their likelihood to chance: by the statistics of an E-step of each."""
    model = problem.model
    if model.spurious is None:
        return jnp.zeros(jax.tree.leaves(params)[0].shape[:1], bool)
    return jax.lax.map(lambda p: model.spurious(e_step(model, p, problem.blocks).stats, p), params)


def settle(problem: Problem, restarts: Restart, unusable: Array | None = None) -> Restart:
    """Final statuses of all restarts; one that a race left behind has run out of steps, and `unusable` (R,) is DEGENERATE."""
    status = jnp.where(restarts.status == Status.RUNNING, jnp.int32(Status.MAX_STEPS), restarts.status)
    if unusable is not None:
        status = jnp.where(unusable & (status != Status.NONFINITE), jnp.int32(Status.DEGENERATE), status)
    return jax.lax.map(lambda restart: finish(problem, restart), dataclasses.replace(restarts, status=status))
