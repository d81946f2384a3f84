"""What becomes of a recorded command, told in a file without a name: a command may remove its own records."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compute_router.backend import State, Status

__all__ = ["Outcome"]

LOOK = 0.1
"""Seconds between two looks; only where the records are gone."""
PIECE = 1 << 18


class Outcome:
    """One command's. `fd` is given to its supervisor; -1 where no file can be made."""

    def __init__(self) -> None:
        from compute_router.machines.local import nameless

        self.fd, self._log = -1, -1
        try:
            made = nameless()
            # Above what the supervisor uses for itself.
            self.fd = fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, 64)
            os.close(made)
        except OSError:
            pass

    def _told(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        try:
            lines = os.pread(self.fd, 1 << 16, 0).splitlines() if self.fd >= 0 else []
        except OSError:
            return found
        for line in lines:
            try:
                found |= json.loads(line)
            except (ValueError, TypeError):
                continue  # it is being written
        return found

    @property
    def begun(self) -> bool:
        """Whether a supervisor has come to the start of the command: nobody may start it again."""
        return "waiter" in self._told()

    @property
    def work(self) -> dict[str, Any] | None:
        """The command's first process, as `exec.json` names it."""
        return self._told().get("work")

    def hold(self, log: Path) -> None:
        """Keep the command's output open, whatever becomes of its name."""
        try:
            self._log = os.open(log, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            self._log = -1

    def wait(self, seen: int, on_log: Callable[[bytes], None]) -> Status | None:
        """Wait for the command's end and hand on its output from `seen` on. None where nobody knows how
        it ended: its supervisor never came to its start, or is gone."""
        from compute_router.supervisor import machine

        while True:
            told = self._told()
            waiter = told.get("waiter") or {}
            lives = machine.alive(waiter.get("pid"), waiter.get("start"))
            if "code" not in told and not lives:
                told = self._told()  # it may have spoken between the two looks
            while data := self._read(seen):
                seen += len(data)
                on_log(data)
            if "code" in told:
                return _status(int(told["code"]))
            if not lives:
                return None
            time.sleep(LOOK)

    def _read(self, seen: int) -> bytes:
        try:
            return os.pread(self._log, PIECE, seen) if self._log >= 0 else b""
        except OSError:
            return b""


def _status(code: int) -> Status:
    return Status(
        state=State.FAILED if code else State.SUCCEEDED,
        reason="signal" if code < 0 else "exit" if code else "",
        detail="its records were removed while it ran",
        exit_code=code if code >= 0 else None,
        signal=-code if code < 0 else None,
        ended_us=time.time_ns() // 1000,
    )
