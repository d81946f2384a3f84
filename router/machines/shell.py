"""A shell beside a run on a machine: bytes both ways over a session of its own."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from typing import Any

from compute_router.errors import Broken, Unavailable
from compute_router.machines.contract import Machine
from compute_router.machines.framing import encode
from compute_router.machines.session import Session

__all__ = ["MachineShell", "open_shell"]

SILENCE = 16.0
"""Seconds the other side may be silent: it beats every 5."""
BEAT = 10.0
PIECE = 1 << 15


def open_shell(
    machine: Machine, run_id: str, argv: Sequence[str], *, size: tuple[int, int] | None
) -> MachineShell:
    """Start it; see `Backend.shell`."""
    session = Session(machine)
    asked: dict[str, Any] = {"run_id": run_id, "argv": list(argv)}
    if size is not None:
        asked |= {"rows": size[0], "columns": size[1], "term": os.environ.get("TERM", "dumb")}
    try:
        frame = session.ask("shell", **asked)
    except Broken as e:
        raise Unavailable(f"the connection to {machine.name} broke: {e}", mend="try again") from e
    except BaseException:
        session.close()
        raise
    return MachineShell(session, str(frame.head.get("folder") or ""))


class MachineShell:
    """See `compute_router.beyond.Shell`. `folder` is the one it stands in, over there."""

    def __init__(self, session: Session, folder: str) -> None:
        self.folder = folder
        self._session = session
        self._writing = threading.Lock()
        self._code: int | None = None
        self._over = threading.Event()
        threading.Thread(target=self._beat, name="shell beat", daemon=True).start()

    def read(self) -> tuple[int, bytes] | None:
        while True:
            head, body = self._session.frame(deadline=SILENCE)
            if head.get("re") != "shell":
                self.close()
                raise Broken(f"{self._session.machine.name} answered {head.get('re')!r} to 'shell'")
            if head.get("end"):
                number, code = head.get("signal"), head.get("exit_code")
                self._code = 128 + number if type(number) is int else code if type(code) is int else 1
                self.close()
                return None
            if body:
                return (2 if head.get("out") == 2 else 1), body

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE):
            self._say("input", data[start : start + PIECE])

    def close_write(self) -> None:
        self._say("input", end=True)

    def resize(self, rows: int, columns: int) -> None:
        self._say("window", rows=rows, columns=columns)

    def exit_code(self) -> int:
        return 1 if self._code is None else self._code

    def close(self) -> None:
        self._over.set()
        self._session.close()

    def _say(self, op: str, body: bytes = b"", **fields: Any) -> None:
        with self._writing:
            self._session.write(encode({"op": op, **fields}, body))

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            with contextlib.suppress(Broken):
                self._say("stop")
