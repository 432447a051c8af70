"""One line on the terminal that tells how a fit stands. Needs pip install "jaxem[cli]"."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any


class ProgressLine:
    """A line redrawn in place, with `rich`; where standard error is no terminal, only its last state is printed."""

    def __init__(self) -> None:
        try:
            importlib.import_module("rich")
        except ImportError:
            raise ImportError('progress needs rich: pip install "jaxem[cli]"') from None
        from rich.console import Console
        from rich.live import Live

        self._text = ""
        self._console = Console(stderr=True, soft_wrap=True, highlight=False)
        # Redrawn when there is something new: no thread beside the fit.
        self._live: Any = Live("", console=self._console, auto_refresh=False)

    def __enter__(self) -> ProgressLine:
        from rich.errors import LiveError

        if self._console.is_terminal:
            with contextlib.suppress(LiveError):  # another fit has the line
                self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._console.is_terminal:
            self._live.stop()
        elif self._text:
            self._console.print(self._text)

    def show(self, text: str) -> None:
        """Redraw the line."""
        self._text = text
        if self._console.is_terminal:
            self._live.update(text, refresh=True)


def clock(seconds: float) -> str:
    """Minutes and seconds, or hours too: 1:05, 2:00:09."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
