"""A fit called plainly runs from the host in segments, so that an interrupt loses nothing."""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxem.distributed import agreed, watchdog
from jaxem.engine.loop import Lane
from jaxem.engine.mesh import run
from jaxem.engine.problem import Problem
from jaxem.engine.restarts import NEVER, active
from jaxem.types import Status

#: Steps of the first segment, and the seconds that a later one should take.
FIRST, SECONDS = 16, 0.2

_run = jax.jit(run, static_argnums=2)


def run_in_segments(problem: Problem, lanes: Lane, width: int, limit: Array | int = NEVER) -> Lane:
    """`run`, returning to the host every fifth of a second; after an interrupt lanes that still ran are INTERRUPTED."""
    limit, budget, usual = jnp.int32(limit), FIRST, None
    with _interrupts() as interrupted:
        while True:
            begun = time.perf_counter()
            lanes = _run(problem, lanes, width, limit, jnp.int32(budget))
            with watchdog(problem.mesh, usual):
                running = np.asarray(active(lanes, limit)).any()
                # One process's clock and signals are every process's.
                usual = agreed(time.perf_counter() - begun, problem.mesh)
                stopped = agreed(int(interrupted()), problem.mesh)
            if not running:
                return lanes
            if stopped:
                ended = lanes.status == Status.RUNNING
                return dataclasses.replace(lanes, status=jnp.where(ended, jnp.int32(Status.INTERRUPTED), lanes.status))
            # The first segment's time is mostly compilation; growth by four at most forgets it soon.
            wanted = budget * SECONDS / max(usual, 1e-9)
            budget = int(min(max(wanted, FIRST / 2, 1), 4 * budget, NEVER))


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT came. It acts once: a second one raises KeyboardInterrupt as ever."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came = []
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: object) -> None:
        del number, frame
        came.append(True)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGINT, before)
