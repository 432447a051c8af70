"""What the host does between the segments of a fit, or between the passes of a stream: show, save, ask, go on or stop."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxem._version import __version__
from jaxem.distributed import agreed, gathered, spans_processes
from jaxem.fitting.interrupts import Interrupts
from jaxem.fitting.layout import Layout
from jaxem.fitting.progress import ProgressLine, clock
from jaxem.fitting.task import Task
from jaxem.pytree import PyTree
from jaxem.storage.atomic import remove_parts
from jaxem.storage.checkpoint import Checkpoint, as_checkpoint
from jaxem.storage.fingerprint import fingerprint
from jaxem.types import TIERS, Result, Status

#: Fields of a task whose fingerprints are not taken as they are: they hold what may differ in another process.
OTHERWISE = ("options", "standardize", "log_abs_det", "guard")


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """How a fit stands, on the host.

    Attributes:
        seconds: since this call began.
        objective: (R,) objective of each restart, in the data's own units; NaN or -inf before the first E-step.
        n_steps: (R,) EM maps evaluated.
        status: (R,) int32 `Status`.
        result: the fit as it stands, when called; a restart that still runs is RUNNING there. None where the state is
            not at hand.
    """

    seconds: float
    objective: np.ndarray
    n_steps: np.ndarray
    status: np.ndarray
    result: Callable[[], Result] | None = None

    @property
    def best(self) -> int:
        """Number of the best restart."""
        worse = np.sum([rank * (self.status == s) for s, rank in TIERS.items()], axis=0)
        return int(np.lexsort((np.where(np.isnan(self.objective), np.inf, -self.objective), worse))[0])

    def line(self, left: float | None = None) -> str:
        """In one line; `left`: seconds that it may take yet."""
        counts = {s: int((self.status == s).sum()) for s in Status}
        parts = [
            f"step {max(0, int(self.n_steps.max()))}",
            f"objective {self.objective[self.best]:.6f} (restart {self.best})",
            ", ".join(f"{n} {s.name.lower()}" for s, n in counts.items() if n),
            clock(self.seconds) + ("" if left is None else f", at most {clock(left)} left"),
        ]
        return "   ".join(parts)


class Monitor:
    """Shows progress, keeps the time, writes checkpoints, asks the callback, and notes SIGINT; a context manager.

    `between` is called between segments of work, with how the restarts stand. Only where `due` says so
    must the state itself be handed over, so that otherwise the next segment may be under way already. Of several
    processes all come to the same verdict.

    Attributes:
        about: what every checkpoint says of itself.
        stopped: whether the verdict was to stop.
    """

    def __init__(
        self,
        progress: bool = False,
        checkpoint: Checkpoint | str | Path | None = None,
        max_seconds: float | None = None,
        callback: Callable[[Snapshot], Any] | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        """Check what `fit` was given.

        Raises:
            ValueError: for a time that is not positive.
            TypeError: for a callback that cannot be called, or a checkpoint that is neither Checkpoint nor path.
            OSError: for a checkpoint's directory that cannot be made, or not be written to.
            ImportError: where an extra lacks.
        """
        if max_seconds is not None and not float(max_seconds) > 0:
            raise ValueError(f"max_seconds must be None or a positive number; got {max_seconds!r}")
        if callback is not None and not callable(callback):
            raise TypeError(f"callback must be a function of a Snapshot; got {type(callback).__name__}")
        checkpoint = as_checkpoint(checkpoint)
        if checkpoint is not None:
            checkpoint.prepare()
        self._line = ProgressLine() if progress else None
        self._checkpoint, self._max_seconds, self._callback = checkpoint, max_seconds, callback
        self._mesh = mesh
        self.about: dict[str, Any] = {}
        self._interrupts, self.stopped = Interrupts(), False
        self._exit = ExitStack()

    @property
    def idle(self) -> bool:
        """Whether it only waits for SIGINT."""
        return self._line is self._checkpoint is self._max_seconds is self._callback is None

    def __enter__(self) -> Monitor:
        self._begun = self._saved = time.perf_counter()
        self._first: tuple[float, int] | None = None
        self._exit.enter_context(self._interrupts)
        if self._line is not None:
            self._exit.enter_context(self._line)
        return self

    def __exit__(self, *error: Any) -> None:
        self._exit.close()

    # --- checkpoints -------------------------------------------------------------------------
    def recalled(self, task: Task) -> Task:
        """`task`, its work cut up as the last checkpoint says; as it is where there is none.

        Memory may be scarcer now, but the bits must be the same.

        Raises:
            ValueError: where the checkpoint is of another fit.
            TypeError: where what a user's function reads cannot be followed.
            FileError: where no checkpoint is sound.
        """
        if self._checkpoint is None:
            return task
        given = {f.name: getattr(task, f.name) for f in dataclasses.fields(task) if f.name not in OTHERWISE}
        options = dataclasses.replace(task.options, mesh=None)
        given |= {
            "stop": task.stop.as_asked(),
            "options": (options, task.standardize),
            "mesh": self._mesh and dict(self._mesh.shape),
        }
        self.about["fit"] = {name: _everywhere(_of(name, value), self._mesh) for name, value in given.items()}
        about = self._checkpoint.about()
        if jax.process_index() == 0:
            remove_parts(Path(self._checkpoint.directory))
        if about is None:
            return task
        others = [name for name, value in self.about["fit"].items() if about.get("fit", {}).get(name) != value]
        here, there = (__version__, jax.__version__), (about["versions"]["jaxem"], about["versions"]["jax"])
        versions = "written by jaxem {} with jax {}, this is jaxem {} with jax {}".format(*there, *here)
        if others:
            raise ValueError(
                f"checkpoint: {self._checkpoint.directory} holds those of another fit: not the same {', '.join(others)};"
                + (f" or they are of this fit, but not of this version: {versions};" if here != there else "")
                + " name another directory, or remove this one to start afresh"
            )
        if here != there:
            warnings.warn(f"the checkpoint is of another version: {versions}; bits may differ", stacklevel=2)
        return dataclasses.replace(task, options=dataclasses.replace(task.options, layout=Layout(**about["layout"])))

    def restore(self, template: Any) -> tuple[dict[str, Any], PyTree] | None:
        """What the last sound checkpoint says of itself, and its state; see `Checkpoint.restore`."""
        return None if self._checkpoint is None else self._checkpoint.restore(template)

    def save(self, state: PyTree, **about: Any) -> None:
        """Write a checkpoint now, if any are to be written; where the disk is full, say so and go on."""
        if self._checkpoint is None:
            return
        try:
            self._checkpoint.save(state, {**self.about, **about})
        except OSError as error:
            if spans_processes(self._mesh):  # the others wait for this one
                raise
            warnings.warn(f"no checkpoint was written, and the fit goes on: {error}", stacklevel=2)
        self._saved = time.perf_counter()

    # --- between segments --------------------------------------------------------------------
    def due(self) -> bool:
        """Whether the next call of `between` needs the state."""
        # Processes must not run ahead of what they have yet to agree on.
        return self._save_due() or self._callback is not None or spans_processes(self._mesh)

    def between(self, restarts: Any, offset: Any = 0.0, state: PyTree = None, result: Any = None, **about: Any) -> bool:
        """Whether to go on.

        Args:
            restarts: what has `status`, `n_steps` and `objective` of all restarts, (R,) each, and `max_steps`.
            offset: to add to the objectives for the data's own units.
            state: what a checkpoint holds, where it is at hand.
            result: () -> Result, for the callback.
            **about: what `resume` should say of the state.
        """
        objective = np.asarray(restarts.objective) + np.asarray(offset)
        snapshot = Snapshot(self._seconds(), objective, np.asarray(restarts.n_steps), np.asarray(restarts.status), result)
        if self._line is not None:
            self._line.show(snapshot.line(self._left(restarts)))
        stop = self.over()
        if self._callback is not None and result is not None:
            stop |= bool(self._callback(snapshot))
        self.stopped = bool(agreed(int(stop), self._mesh))
        if state is not None and agreed(int(self._save_due()), self._mesh):
            self.save(state, **about)
        return not self.stopped

    def _save_due(self) -> bool:
        return self._checkpoint is not None and time.perf_counter() - self._saved >= self._checkpoint.every_seconds

    def _seconds(self) -> float:
        return time.perf_counter() - self._begun

    def over(self) -> bool:
        """Whether an interrupt came or the time is up: for work that can be left in the middle."""
        return self._interrupts.seen or (self._max_seconds is not None and self._seconds() >= self._max_seconds)

    def _left(self, restarts: Any) -> float | None:
        """Seconds until every restart has taken its last step at the pace so far, or until the time limit."""
        steps, running = np.asarray(restarts.n_steps, np.int64), np.asarray(restarts.status) == Status.RUNNING
        limits = [] if self._max_seconds is None else [max(0.0, self._max_seconds - self._seconds())]
        now = self._seconds(), int(steps.sum())
        self._first = self._first or now
        seconds, taken = now[0] - self._first[0], now[1] - self._first[1]
        if taken > 0:
            limits.append(seconds / taken * int((np.asarray(restarts.max_steps) - steps)[running].sum()))
        return min(limits, default=None)


def _of(name: str, value: Any) -> str:
    try:
        return fingerprint(value)
    except TypeError as error:
        raise TypeError(f"checkpoint: nothing would tell whether {name} is the same when the fit goes on: {error}") from error


def _everywhere(digest: str, mesh: Mesh | None) -> str:
    """One digest for what every process holds its part of."""
    return fingerprint(gathered(np.frombuffer(bytes.fromhex(digest), np.uint8))) if spans_processes(mesh) else digest
