"""Bytes on their way: bars on a terminal, a line each ten seconds elsewhere, events with --json."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from compute_router.cli.words import duration, size

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from compute_router.cli.output import Output
    from compute_router.progress import Step

__all__ = ["Transfers"]

PATIENCE = 0.7
"""Seconds of a transfer before a bar appears: what is quicker needs none."""
LINES = 10.0
EVENTS = 1.0
"""Seconds between two lines, and between two events; none comes earlier either."""
SUMMED_UP = 2.0
"""A transfer that took so many seconds is worth a line when it is over."""
DOING = {"send": ("sending", "to"), "fetch": ("fetching", "from"), "environment": ("building", "on")}
DONE = {"send": ("sent", "to"), "fetch": ("fetched", "from"), "environment": ("built", "on")}

NEXT = {"send": "starting it", "fetch": "writing its receipt"}
"""What is waited for after a transfer."""


class _One:
    """One transfer under way."""

    def __init__(self, done: int) -> None:
        self.began = self.told = time.monotonic()
        self.first = done
        self.bar: TaskID | None = None
        self.shown = False


class Transfers:
    """The observer of transfers (`compute_router.progress.watched`) that belongs to one output."""

    def __init__(self, out: Output) -> None:
        self._out = out
        self._under_way: dict[tuple[str, str], _One] = {}
        self._bars: Progress | None = None
        self._lock = threading.Lock()

    def __call__(self, step: Step) -> None:
        with self._lock:
            one = self._under_way.setdefault((step.what, step.place), _One(step.done))
            if self._out.as_json:
                self._event(step, one)
            elif self._out.terminal_err:
                self._draw(step, one)
            else:
                self._line(step, one)
            if step.over:
                del self._under_way[step.what, step.place]
                self._sum_up(step, one)
                if not self._under_way and step.what in NEXT:
                    self._out.busy(NEXT[step.what])

    def stop(self) -> None:
        """Take the bars away; the next step brings them back. May be repeated."""
        bars, self._bars = self._bars, None
        if bars is not None:
            bars.stop()
        for one in list(self._under_way.values()):
            one.bar = None

    def _due(self, one: _One, every: float) -> bool:
        now = time.monotonic()
        if now - one.told < every:
            return False
        one.told, one.shown = now, True
        return True

    def _event(self, step: Step, one: _One) -> None:
        if self._due(one, EVENTS) or (step.over and one.shown):
            self._out.event({"event": "progress", **step._asdict()})

    def _line(self, step: Step, one: _One) -> None:
        if not step.over and self._due(one, LINES):
            doing, where = DOING.get(step.what, (step.what, "at"))
            share = step.done * 100 // step.total
            self._out.stage(
                doing, f"{where} {step.place}: {size(step.done)} of {size(step.total)} ({share} %)"
            )

    def _draw(self, step: Step, one: _One) -> None:
        if time.monotonic() - one.began < PATIENCE:
            return
        if step.over:
            if self._bars is not None and one.bar is not None:
                self._bars.remove_task(one.bar)
            if len(self._under_way) == 1:
                self._out.calm()
            return
        bars = self._bars
        if bars is None:
            self._out.calm()
            bars = self._bars = _made()
            bars.start()
            self._out.showing(self)
        if one.bar is None:
            doing, where = DOING.get(step.what, (step.what, "at"))
            one.bar = bars.add_task(f"{doing} {where} {step.place}", total=step.total)
        bars.update(one.bar, completed=step.done)

    def _sum_up(self, step: Step, one: _One) -> None:
        spent = time.monotonic() - one.began
        if self._out.as_json or spent < SUMMED_UP:
            return
        done, where = DONE.get(step.what, (step.what, "at"))
        moved = step.done - one.first
        rate = f"{duration(int(spent * 1e6))}, {size(int(moved / spent))}/s"
        if step.done < step.total:
            self._out.stage(
                done, f"{size(step.done)} of {size(step.total)} {where} {step.place}; it broke off"
            )
            return
        before = f", {size(one.first)} was there before" if one.first else ""
        self._out.stage(done, f"{size(moved)} {where} {step.place} in {rate}{before}")


def _made() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True, highlight=False),
        transient=True,
        expand=True,
    )
