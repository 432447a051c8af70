"""A fit called plainly runs from the host in segments: between them it can be watched, saved, stopped and interrupted."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.distributed import agreed, watchdog
from jaxem.engine.loop import Restart
from jaxem.engine.mesh import run
from jaxem.engine.problem import Problem
from jaxem.engine.restarts import NEVER, Queue, Rounds, active, promoted, stages, take
from jaxem.fitting.monitor import Monitor
from jaxem.fitting.task import Race
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
def run_segment(problem: Problem, queue: Queue, budget: Array) -> tuple[Queue, Standing]:
    """The restarts after at most `budget` rounds of the slots, and how they stand."""
    queue = run(problem, queue, budget)
    restarts, going = queue.restarts, active(take(queue.restarts, queue.order), queue.limit).any()
    return queue, Standing(restarts.objective, restarts.n_steps, restarts.status, going, problem.max_steps)


def race_in_segments(race: Race, monitor: Monitor, result: Callable[[Restart], Result]) -> Restart:
    """The race to its end, returning to the host every fifth of a second.

    Args:
        race: the restarts at their starts; the buffers of its queue are given up.
        monitor: what looks on, entered. Where it says stop, restarts that still run are INTERRUPTED.
        result: what a monitor's callback may ask for.
    """

    def run(queue: Queue, stage: int) -> Queue:
        return _run_in_segments(race.problem, queue, monitor, stage, result)

    return race_watched(race, monitor, run)


def race_watched(race: Race, monitor: Monitor, run: Callable[[Queue, int], Queue]) -> Restart:
    """A race, from where its last checkpoint stands, by a `run` of (queue, stage) that lets the monitor look on."""
    width, rounds = race.layout.width, race.options.rounds
    monitor.about["layout"] = dataclasses.asdict(race.layout)
    queue, stage = _resumed(race, monitor)
    last = len(stages(queue.restarts.status.shape[0], rounds)) - 1
    queue = run(queue, stage)
    while stage < last and not monitor.stopped:
        stage += 1
        queue = dataclasses.replace(_order(queue, width, rounds, stage), restarts=queue.restarts)
        queue = run(queue, stage)
    monitor.save(queue, stage=stage)
    return _interrupted(queue) if monitor.stopped else queue.restarts


def _resumed(race: Race, monitor: Monitor) -> tuple[Queue, int]:
    """The queue of the last checkpoint and the stage to which it belongs; the first ones where there is none."""

    def template(about: dict[str, Any]) -> Queue:
        like = race.queue
        for stage in range(1, about["stage"] + 1):
            like = jax.eval_shape(lambda q, stage=stage: promoted(q, race.layout.width, race.options.rounds, stage), like)
        return dataclasses.replace(like, restarts=race.queue.restarts)  # which know where they lie

    found = monitor.restore(template)
    return (race.queue, 0) if found is None else (found[1], found[0]["stage"])


@partial(jax.jit, static_argnums=(1, 3))
def _order(queue: Queue, width: int, rounds: Rounds | None, stage: int) -> Queue:
    return dataclasses.replace(promoted(queue, width, rounds, stage), restarts=())


def _run_in_segments(
    problem: Problem, queue: Queue, monitor: Monitor, stage: int, result: Callable[[Restart], Result]
) -> Queue:
    """`run`, until no restart goes on or the monitor says stop."""
    budget = ahead = FIRST
    usual = None
    queue, standing = run_segment(problem, queue, jax.device_put(np.int32(budget)))
    begun = time.perf_counter()
    while True:
        # The next segment is under way before the host looks at the last one, unless its state itself is asked for.
        due = monitor.due()
        seen = standing
        if not due:
            queue, standing = run_segment(problem, queue, jax.device_put(np.int32(ahead)))
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
            queue, standing = run_segment(problem, queue, jax.device_put(np.int32(budget)))


def _interrupted(queue: Queue) -> Restart:
    """The restarts, those that were not done yet INTERRUPTED."""
    status = queue.restarts.status
    left = jnp.zeros(status.shape, bool).at[queue.order].set(True) & (status == Status.RUNNING)
    return dataclasses.replace(queue.restarts, status=jnp.where(left, jnp.int32(Status.INTERRUPTED), status))
