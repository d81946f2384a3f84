"""This very computer as a Machine: a command's two ends are one socket pair."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from compute_router import scrubbing
from compute_router.errors import Broken, Unavailable
from compute_router.machines.contract import Machine

__all__ = ["LocalMachine", "nameless", "open_command"]

_LEFT: list[subprocess.Popen[bytes]] = []
"""Commands whose streams were let go of; they end by themselves and are reaped when the next one opens."""
_LOCK = threading.Lock()


class LocalMachine(Machine):
    """This computer. `python3` stands for the interpreter that runs the client."""

    def __init__(
        self, root: Path, *, name: str = "this machine", stdin: int | None = None, outcome: int = -1
    ) -> None:
        """With `stdin`, -1 for none, what is opened sees the client's own environment, and that
        descriptor is passed on to it, as is `outcome`, a file in which it says what becomes of the work:
        for work that is not staged but observed in place."""
        self.name = name
        self.root = str(root)
        self._stdin, self._outcome = stdin, outcome

    def _given(self) -> tuple[dict[str, str], tuple[int, ...]]:
        """The environment and the descriptors of what is opened."""
        if self._stdin is None:
            return _environ(), ()
        from compute_router.supervisor.inplace import OUTCOME, STDIN

        given = {STDIN: self._stdin, OUTCOME: self._outcome}
        passed = {name: fd for name, fd in given.items() if fd >= 0}
        environ = {name: value for name, value in os.environ.items() if name not in given}
        return environ | {name: str(fd) for name, fd in passed.items()}, tuple(passed.values())

    def open(self, argv: Sequence[str], *, deadline: float) -> LocalStream:
        environ, kept = self._given()
        program = [sys.executable if argv[0] == "python3" else argv[0], *argv[1:]]
        return open_command(program, environ=environ, kept=kept)

    def close(self) -> None:
        """Nothing to let go of: each stream stands for itself."""


def open_command(
    command: Sequence[str],
    *,
    environ: Mapping[str, str] | None = None,
    kept: Sequence[int] = (),
    lost: int | None = None,
) -> LocalStream:
    """Start a command of this computer and return its two ends: `ssh box ...`, `docker exec -i box ...`.

    It runs in a session of its own, so that a Ctrl-C in the terminal does not reach it, and goes on
    when its stream is closed. What it complains about on standard error becomes the reason of
    `Broken` if it ends without a word. It gets `environ` (default: this process's own, without
    ROUTE_HOME) and the descriptors `kept`. `lost` is the status by which it says that it lost its
    connection. Raises `Unavailable` when it did not run.
    """
    if environ is None:
        environ = _environ()
    with _LOCK:
        _LEFT[:] = [process for process in _LEFT if process.poll() is None]
    try:
        ours, theirs = socket.socketpair()
        complaints = nameless()
    except OSError as e:
        raise Unavailable(f"no connection can be made: {e.strerror}", mend="close some files") from e
    try:
        process = subprocess.Popen(
            list(command),
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=complaints,
            cwd="/",
            env=environ,
            start_new_session=True,
            pass_fds=tuple(kept),
        )
    except OSError as e:
        ours.close()
        os.close(complaints)
        raise Unavailable(
            f"{command[0]} cannot be started: {e.strerror}", mend="route doctor tells what is missing"
        ) from e
    finally:
        theirs.close()
    return LocalStream(process, ours, complaints, lost)


def _environ() -> dict[str, str]:
    # A secret goes to the work that declares it, by another way than through everything between.
    return {n: value for n, value in scrubbing.hidden(os.environ).items() if n != "ROUTE_HOME"}


def nameless() -> int:
    """A descriptor of a file that has no name, for what is said aside. Raises `OSError`."""
    if sys.platform == "linux":
        return os.memfd_create("aside", os.MFD_CLOEXEC)
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class LocalStream:
    """The two ends of one command here; see `Stream`. A socket, because a shutdown from another thread
    ends a read that waits, which closing a pipe does not."""

    def __init__(
        self, process: subprocess.Popen[bytes], ours: socket.socket, complaints: int, lost: int | None = None
    ) -> None:
        self._process = process
        self._lost = lost
        self._socket = ours
        self._complaints = complaints
        self._closed = False
        self._silent = True

    def read(self, limit: int) -> bytes:
        try:
            data = self._socket.recv(limit)
        except OSError as e:
            raise Broken(f"reading: {e.strerror}") from e
        if self._closed:
            raise Broken("the stream was closed")
        if not data and (why := self._why()):
            raise Broken(why)
        self._silent = False
        return data

    def _why(self) -> str:
        """Why the command ended, if it was without a word or with complaints: the last line of those."""
        status = self.exit_status(1.0)
        text = b""
        with contextlib.suppress(OSError):
            text = os.pread(self._complaints, 4096, max(0, os.fstat(self._complaints).st_size - 4096))
        lines = text.decode("utf-8", "replace").strip().splitlines()
        if not lines and not self._silent and (status is None or status != self._lost):
            return ""
        return f"it ended with status {status}" + (f": {lines[-1][:300]}" if lines else "")

    def write(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as e:
            raise Broken(f"writing: {e.strerror}") from e

    def close_write(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def exit_status(self, timeout: float) -> int | None:
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        # Only shut down: the number of a descriptor that another thread still reads must not be
        # given away. It is closed with the object.
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with _LOCK:
            if self._process not in _LEFT and self._process.poll() is None:
                _LEFT.append(self._process)

    def __del__(self) -> None:
        self._socket.close()
        os.close(self._complaints)
