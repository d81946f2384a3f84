"""Ctrl-C, SIGTERM and SIGHUP while attached to a run: the run goes on, the terminal is given back."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["AskCancel", "Leave", "Leaving"]

GRACE = 2.0
"""Seconds within which a second Ctrl-C asks about cancelling."""


class Leave(KeyboardInterrupt):
    """The user, or the end of the terminal, leaves; the run goes on."""


class AskCancel(KeyboardInterrupt):
    """The user pressed Ctrl-C twice and is to be asked whether the run should end."""


class Leaving:
    """While entered, signals become `Leave` or `AskCancel`, raised where the main thread stands.

    On a terminal the first Ctrl-C detaches after `GRACE` seconds, a second one within them asks.
    Off a terminal, and for SIGTERM and SIGHUP, it detaches at once.
    """

    def __init__(self, *, asking: bool) -> None:
        self.attached = False
        """Set once the run stands by itself: before that a Ctrl-C stops at once."""
        self._asking = asking
        self._pressed = False
        self._answered = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Leaving:
        # Only the main thread may set handlers; elsewhere Ctrl-C is not ours to take.
        if threading.current_thread() is threading.main_thread():
            for number, handler in (
                (signal.SIGINT, self._interrupted),
                (signal.SIGTERM, self._told),
                (signal.SIGHUP, self._told),
                (signal.SIGALRM, self._told),
            ):
                self._old[number] = signal.signal(number, handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.again()
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old.clear()

    def again(self) -> bool:
        """Forget an earlier Ctrl-C; returns whether one has been answered before."""
        self._pressed = False
        if self._old:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return self._answered

    def _told(self, number: int, frame: FrameType | None) -> None:
        raise Leave

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if not self._asking or not self.attached:
            raise Leave
        if self._pressed:
            self.again()
            raise AskCancel
        self._pressed = True
        # Straight to the descriptor: the handler may have broken into a half-done write of stderr.
        os.write(2, b"\nleaving in 2 s, the run goes on; Ctrl-C again to cancel it\n")
        signal.setitimer(signal.ITIMER_REAL, GRACE)

    def confirm(self, question: str) -> bool:
        """Ask on the terminal; no answer, or another Ctrl-C, is no."""
        self.again()
        self._answered = True
        held = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            sys.stderr.write(f"{question} [y/N] ")
            sys.stderr.flush()
            return sys.stdin.readline().strip().lower() in ("y", "yes")
        except KeyboardInterrupt:
            sys.stderr.write("\n")
            return False
        finally:
            signal.signal(signal.SIGINT, held)
