"""`route`, or another program, on a pseudo-terminal of its own: what it shows, what is typed, how it ends."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conftest import ROUTE

__all__ = ["Terminal"]


class Terminal:
    """`route ARGS` on a terminal of its own, 80 columns wide; `seen` is all it has shown."""

    def __init__(
        self,
        folder: Path,
        *args: str,
        env: dict[str, str] | None = None,
        program: Sequence[str] = ROUTE,
        columns: int = 80,
    ) -> None:
        self.seen = ""
        self.last_modes: list[Any] = []
        self.pid, self._end = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            merged = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), **(env or {})}
            self.resize(40, columns, end=0)
            os.execve(sys.executable, [*program, *args], merged)
        self.resize(40, columns)

    def resize(self, rows: int, columns: int, *, end: int | None = None) -> None:
        """Give it another size; whoever is in front of it is told by SIGWINCH."""
        fcntl.ioctl(
            self._end if end is None else end, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0)
        )

    @property
    def modes(self) -> list[Any]:
        """How the terminal treats what is typed."""
        return termios.tcgetattr(self._end)

    def until(self, text: str, seconds: float = 30.0) -> str:
        """Read until `text` has been shown; fails with what was shown instead."""
        end = time.monotonic() + seconds
        while text not in self.seen and time.monotonic() < end and self._read(0.1):
            pass
        assert text in self.seen, f"{text!r} was not shown:\n{self.seen}"
        return self.seen

    def _read(self, seconds: float) -> bool:
        if not select.select([self._end], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self._end, 65536)
        except OSError:
            return False
        self.seen += data.decode("utf-8", "replace").replace("\r\n", "\n")
        return bool(data)

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def drain(self) -> None:
        """Read what has been shown by now."""
        while select.select([self._end], [], [], 0)[0] and self._read(0):
            pass

    def exit(self, seconds: float = 30.0) -> int:
        """Read to the end and return the exit code; `last_modes` are the terminal's after that."""
        end = time.monotonic() + seconds
        while self._read(0.1) and time.monotonic() < end:
            pass
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.last_modes = self.modes
                os.close(self._end)
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError(f"it did not end:\n{self.seen}")
