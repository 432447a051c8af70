"""SIGINT as a flag: the first one asks every fit that runs, in whatever thread, to stop; a second one raises as ever."""

from __future__ import annotations

import signal
import threading
from typing import Any, ClassVar


class Interrupts:
    """A context manager that notes SIGINT instead of letting it raise.

    Python hands signals to the main thread alone. What is noted there holds for all that is entered in other threads,
    before it or after.

    Attributes:
        seen: whether SIGINT came.
    """

    _live: ClassVar[list[Interrupts]] = []
    _holder: ClassVar[Interrupts | None] = None  # of the signal

    def __init__(self) -> None:
        self.seen = False

    def __enter__(self) -> Interrupts:
        self._before: Any = signal.getsignal(signal.SIGINT)
        self._live.append(self)
        if Interrupts._holder is not None:
            self.seen = Interrupts._holder.seen
        elif threading.current_thread() is threading.main_thread() and self._before is not None:
            Interrupts._holder = self
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._live.remove(self)
        if Interrupts._holder is self:
            signal.signal(signal.SIGINT, self._before)
            Interrupts._holder = None

    def _note(self, number: int, frame: object) -> None:
        del number, frame
        for one in self._live:
            one.seen = True
        signal.signal(signal.SIGINT, self._before)
