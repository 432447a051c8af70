"""A fit called plainly runs from the host in segments: between them it can be watched, saved, stopped and interrupted."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxem.distributed import agreed, watchdog
from jaxem.engine.loop import Restart
from jaxem.engine.mesh import run
from jaxem.engine.problem import Problem
from jaxem.engine.restarts import NEVER, Queue, Rounds, active, promoted, stages, take
from jaxem.fitting.monitor import Monitor
from jaxem.pytree import struct
from jaxem.types import Result, Status

#: Steps of the first segment, by how much the next ones may grow, and the seconds that each should take in the end.
FIRST, GROWTH, SECONDS = 2, 16, 0.2


@struct
class Standing:
    """How the restarts stand after a segment: what the host reads while the next one runs on the state itself.

    Attributes:
        objective, n_steps, status: (R,) as in `Restart`.
        going: whether a restart in the queue still runs.
        max_steps: see `Problem`.
    """

    objective: Array
    n_steps: Array
    status: Array
    going: Array
    max_steps: Array


@partial(jax.jit, donate_argnums=1)
def _run(problem: Problem, queue: Queue, budget: Array) -> tuple[Queue, Standing]:
    queue = run(problem, queue, budget)
    restarts, going = queue.restarts, active(take(queue.restarts, queue.order), queue.limit).any()
    return queue, Standing(restarts.objective, restarts.n_steps, restarts.status, going, problem.max_steps)


def race_in_segments(
    problem: Problem,
    queue: Queue,
    width: int,
    rounds: Rounds | None,
    monitor: Monitor,
    result: Callable[[Restart], Result],
    stage: int = 0,
) -> Restart:
    """`race`, returning to the host every fifth of a second; when it is stopped, restarts that still ran are INTERRUPTED.

    Args:
        problem: what the restarts share.
        queue: where they stand; its buffers are given up.
        width: slots.
        rounds: the rules of the race, or None.
        monitor: what looks on, entered.
        result: what a monitor's callback may ask for.
        stage: of the race, to which `queue` belongs.
    """

    def step_restarts(queue: Queue, stage: int) -> Queue:
        return _run_in_segments(problem, queue, monitor, stage, result)

    return race_watched(queue, width, rounds, monitor, step_restarts, stage)


def race_watched(
    queue: Queue, width: int, rounds: Rounds | None, monitor: Monitor, run: Callable[[Queue, int], Queue], stage: int = 0
) -> Restart:
    """`race` by a `run` of (queue, stage) that lets the monitor look on, from the host."""
    last = len(stages(queue.restarts.status.shape[0], rounds)) - 1
    queue = run(queue, stage)
    while stage < last and not monitor.stopped:
        stage += 1
        queue = dataclasses.replace(_order(queue, width, rounds, stage), restarts=queue.restarts)
        queue = run(queue, stage)
    monitor.save(queue, stage=stage)
    return _interrupted(queue) if monitor.stopped else queue.restarts


def resumed(queue: Queue, width: int, rounds: Rounds | None, monitor: Monitor) -> tuple[Queue, int]:
    """The queue of the last checkpoint and the stage to which it belongs; `queue` and 0 where there is none."""

    def template(about: dict[str, Any]) -> Queue:
        like = queue
        for stage in range(1, about["stage"] + 1):
            like = jax.eval_shape(lambda q, stage=stage: promoted(q, width, rounds, stage), like)
        return dataclasses.replace(like, restarts=queue.restarts)  # which know where they lie

    found = monitor.restore(template)
    return (queue, 0) if found is None else (found[1], found[0]["stage"])


@partial(jax.jit, static_argnums=(1, 3))
def _order(queue: Queue, width: int, rounds: Rounds, stage: int) -> Queue:
    return dataclasses.replace(promoted(queue, width, rounds, stage), restarts=())


def _run_in_segments(
    problem: Problem, queue: Queue, monitor: Monitor, stage: int, result: Callable[[Restart], Result]
) -> Queue:
    """`run`, until no restart goes on or the monitor says stop."""
    budget = ahead = FIRST
    usual = None
    queue, standing = _run(problem, queue, jnp.int32(budget))
    begun = time.perf_counter()
    while True:
        # The next segment is under way before the host looks at the last one, unless its state itself is asked for.
        due = monitor.due()
        seen = standing
        if not due:
            queue, standing = _run(problem, queue, jnp.int32(ahead))
        with watchdog(problem.mesh, usual):
            going = bool(seen.going)  # waits
        usual = max(time.perf_counter() - begun, 1e-9)
        at_hand = {"state": queue, "result": partial(result, queue.restarts), "stage": stage} if due else {}
        on = monitor.between(seen, problem.offset, **at_hand)
        if not (going and on):
            return queue
        begun = time.perf_counter()
        # One process's clock is every process's.
        wanted = int(min(max(SECONDS * budget / usual, 1), GROWTH * ahead, NEVER))
        budget, ahead = ahead, agreed(wanted, problem.mesh)
        if due:
            budget = ahead
            queue, standing = _run(problem, queue, jnp.int32(budget))


def _interrupted(queue: Queue) -> Restart:
    """The restarts, those that were not done yet INTERRUPTED."""
    status = queue.restarts.status
    left = jnp.zeros(status.shape, bool).at[queue.order].set(True) & (status == Status.RUNNING)
    return dataclasses.replace(queue.restarts, status=jnp.where(left, jnp.int32(Status.INTERRUPTED), status))
