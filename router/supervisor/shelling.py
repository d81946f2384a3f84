"""A shell, or one command, beside a run: in its folder, with its variables, on a terminal of its own."""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import select
import signal
import struct
import termios
import time

from . import files, inplace, names, work
from .runs import Attempt, Run
from .wire import Fault, Gone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

    from .wire import Wire

    Json = Dict[str, Any]

BEAT = 5.0
SILENCE = 60.0
"""Seconds without a word of the client, which says something every ten, after which it is gone."""
CHUNK = 1 << 15
MOST_PENDING = 1 << 18
MARKER = "ROUTE_SHELL"
"""The variable by which the sweeps know that a process is a user's beside the run, and none of it."""


def shell(run: Run, stream: Wire, head: Json) -> None:
    """Serve one shell until it ends. Raises `Fault` where there is nothing to stand in."""
    spec = run.spec()
    if inplace.of(spec):
        raise Fault(
            "PREFLIGHT", "run %s was observed in place, nothing of it stands here" % run.id, "look there"
        )
    folder = os.path.join(run.work, *names.parts(spec.get("cwd") or "."))
    if not os.path.isdir(folder):
        folder = run.work
    if not os.path.isdir(folder):
        raise Fault(
            "PREFLIGHT",
            "the folder of run %s was removed here after the run was collected" % run.id,
            "route status tells where its outputs are",
        )
    attempt = run.newest() or Attempt(run, 1)
    asked = head.get("argv") or []
    if not isinstance(asked, list):
        raise Fault("BAD_REQUEST", "`argv` is a list", "see docs/protocol.md")
    argv = [names.text(word, "an argument") for word in asked]
    size = None
    if head.get("rows") is not None:
        size = (
            names.whole(head["rows"], "rows", 1, 9999),
            names.whole(head.get("columns"), "columns", 1, 9999),
        )
    env = variables(attempt, spec, str(head.get("term") or "dumb")[:80])
    Session(stream, argv, env, folder, size).serve()


def variables(attempt: Attempt, spec: Json, term: str) -> Dict[str, str]:
    """What the work sees, without its secrets and without what would make a measurement of the shell."""
    devices = files.hint_json(attempt.at("started.json")).get("devices") or []
    env = work.environment(attempt, spec, {}, devices)
    for name in ("ROUTE_INSIDE", "TORCH_TRACE", *spec.get("secrets", [])):
        env.pop(name, None)
    env.update(ROUTE_METRICS=os.devnull, ROUTE_OBSERVE="0", TERM=term)
    env[MARKER] = attempt.run.id
    try:
        me = pwd.getpwuid(os.getuid())
        env["HOME"], env["SHELL"], env["USER"] = me.pw_dir, me.pw_shell or "/bin/sh", me.pw_name
    except KeyError:
        env.setdefault("SHELL", "/bin/sh")
    if not os.access(env["SHELL"], os.X_OK):
        env["SHELL"] = "/bin/sh"
    return env


def window(head: Json) -> Tuple[int, int]:
    """Rows and columns of a terminal."""
    return names.whole(head.get("rows"), "rows", 1, 9999), names.whole(
        head.get("columns"), "columns", 1, 9999
    )


def resize(fd: int, size: Tuple[int, int]) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", size[0], size[1], 0, 0))


class Session:
    """One command with its ends, and the loop between them and the client."""

    def __init__(
        self,
        stream: Wire,
        argv: List[str],
        env: Dict[str, str],
        folder: str,
        size: Optional[Tuple[int, int]],
    ) -> None:
        self.wire, self.folder, self.terminal = stream, folder, size is not None
        self.pending = bytearray()
        self.closing = False
        self.status: Optional[int] = None
        if size is not None:
            self.pid, master = os.forkpty()
            if self.pid == 0:
                self._become(argv, env, size)
            self.sink, self.sources = master, {master: 1}
        else:
            given, out, err = os.pipe(), os.pipe(), os.pipe()
            self.pid = os.fork()
            if self.pid == 0:
                for fd, number in ((given[0], 0), (out[1], 1), (err[1], 2)):
                    os.dup2(fd, number)
                os.setsid()
                self._become(argv, env, None)
            for fd in (given[0], out[1], err[1]):
                os.close(fd)
            self.sink, self.sources = given[1], {out[0]: 1, err[0]: 2}
        os.set_blocking(self.sink, False)

    def _become(self, argv: List[str], env: Dict[str, str], size: Optional[Tuple[int, int]]) -> None:
        """In the forked child: turn into the command, or the user's shell. Never returns."""
        code, program = 126, argv[0] if argv else env["SHELL"]
        try:
            if size is not None:
                resize(0, size)
            os.closerange(3, 4096)
            for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            os.umask(0o022)
            os.chdir(self.folder)
            if argv:
                program = work.found(program, env.get("PATH") or os.defpath)
            os.execve(program, argv or ["-" + os.path.basename(program)], env)
        except OSError as e:
            code = 127 if e.errno == errno.ENOENT else 126
            os.write(2, ("%s: %s\n" % (program, e.strerror)).encode("utf-8", "replace"))
        finally:
            os._exit(code)

    def serve(self) -> None:
        """Carry bytes both ways until the command has ended; it is hung up on if the client goes."""
        try:
            self.wire.send({"re": "shell", "ok": True, "folder": self.folder})
            beat, heard = time.monotonic() + BEAT, time.monotonic()
            while self.status is None:
                now = time.monotonic()
                if now >= beat:
                    self.wire.send({"re": "shell", "beat": True})
                    beat = now + BEAT
                if self._carry(min(0.05, beat - now)):
                    heard = now
                if now - heard > SILENCE:
                    raise Gone("the client is silent")
                ended, status = os.waitpid(self.pid, os.WNOHANG)
                self.status = status if ended else None
            # What it wrote last; whoever still holds its output open is not waited for.
            while self.sources and any(self._read(fd) for fd in self._readable(0)):
                pass
            number = os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else None
            code = os.WEXITSTATUS(self.status) if number is None else None
            self.wire.send({"re": "shell", "end": True, "exit_code": code, "signal": number})
        finally:
            self._hang_up()

    def _readable(self, timeout: float) -> List[int]:
        return select.select(list(self.sources), [], [], timeout)[0]

    def _carry(self, timeout: float) -> bool:
        """Wait for whichever end is ready and serve it. Whether the client said something."""
        ends = list(self.sources)
        if len(self.pending) < MOST_PENDING:
            ends.append(self.wire.source)
        if self.wire.buffered:
            timeout = 0
        ready, writable, _ = select.select(ends, [self.sink] if self.pending else [], [], timeout)
        for fd in ready:
            if fd != self.wire.source:
                self._read(fd)
        if writable:
            self._feed()
        if self.wire.source not in ready and not self.wire.buffered:
            return False
        if len(self.pending) < MOST_PENDING:
            self._hear()
        return True

    def _read(self, fd: int) -> int:
        try:
            data = os.read(fd, CHUNK)
        except OSError:  # a terminal that nobody has open any more
            data = b""
        if not data:
            number = self.sources.pop(fd)
            if not self.terminal or number != 1:
                os.close(fd)
            return 0
        self.wire.send({"re": "shell", "out": self.sources[fd]}, data)
        return len(data)

    def _hear(self) -> None:
        request = self.wire.request()
        if request is None:
            return
        head, body = request
        if head["op"] == "input":
            self.pending += body
            self.closing = self.closing or head.get("end") is True
            self._feed()
        elif head["op"] == "window" and self.terminal:
            resize(self.sink, window(head))

    def _feed(self) -> None:
        while self.pending and self.sink >= 0:
            try:
                done = os.write(self.sink, self.pending[:CHUNK])
            except BlockingIOError:
                return
            except OSError as e:
                # It does not read its input any more: what else comes for it is nobody's.
                if e.errno not in (errno.EPIPE, errno.EIO):
                    raise
                done = len(self.pending)
            del self.pending[:done]
        if self.closing and not self.terminal and self.sink >= 0:
            os.close(self.sink)
            self.sink = -1

    def _hang_up(self) -> None:
        """Let go of the command; one that still runs is told so by SIGHUP, as by a terminal that closes."""
        if self.status is None:
            for number in (signal.SIGHUP, signal.SIGCONT):
                try:
                    os.killpg(self.pid, number)
                except OSError:
                    pass
        for fd in {self.sink, *self.sources} - {-1}:
            os.close(fd)
        if self.status is None:
            until = time.monotonic() + 2.0
            while time.monotonic() < until and os.waitpid(self.pid, os.WNOHANG)[0] == 0:
                time.sleep(0.02)
