"""What a terminal shows while something takes its time: a spinner, what it is, and for how long."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["Busy"]

PATIENCE = 0.7
"""Seconds before anything is shown: what is quicker needs no spinner, nor the import of one."""


class Busy:
    """Shows `text` on stderr once `PATIENCE` is over, until `stop`. Leaves nothing behind."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._lock = threading.Lock()
        self._over = False
        self._shown: Progress | None = None
        self._timer = threading.Timer(PATIENCE, self._show)
        self._timer.daemon = True
        self._timer.start()

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        made = Progress(
            SpinnerColumn("line"),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True, highlight=False),
            transient=True,
        )
        made.add_task(self._text, total=None)
        with self._lock:
            if not self._over:
                self._shown = made
                made.start()

    def stop(self) -> None:
        """Take it away. May be repeated."""
        self._timer.cancel()
        with self._lock:
            self._over = True
            if self._shown is not None:
                self._shown.stop()
                self._shown = None
