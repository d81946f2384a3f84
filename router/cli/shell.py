"""`route shell`: a shell, or one command, where a run is; the terminal it is lent comes back as it was."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from compute_router.cli.app import verb
from compute_router.cli.call import Cli
from compute_router.cli.nodes import node_option, part_of
from compute_router.cli.options import RUN
from compute_router.cli.output import problem
from compute_router.errors import Broken, InputError, Refused, RouteError, Unavailable

if TYPE_CHECKING:
    from compute_router.beyond import Shell

__all__ = ["shell"]

PIECE = 1 << 15
Sink = Callable[[int, bytes], None]


@verb()
@click.argument("id", type=RUN, metavar="ID")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
@node_option
@click.pass_obj
def shell(cli: Cli, id: str, command: tuple[str, ...], node: int | None) -> int:
    """Open a shell where a run is, or run a command there.

    It stands on the run's machine, in its folder, with its ROUTE_* variables. With `-- COMMAND` that
    runs instead; where stdin is no terminal it gets none either. The run's
    secrets are not there, and nothing done there is measured. Of a run on several machines it is node 0
    unless --node says another. Ends with the shell's exit code; `~.` at the beginning of a line lets go
    of one that hangs.
    """
    from compute_router.backend import Handle
    from compute_router.starting import guarded
    from compute_router.workload import Workload

    run = cli.folder(id)
    handle = run.read("handle", Handle)
    if handle is None:
        raise Refused(f"run {run.id} was never started, so it is nowhere", mend=f"route status {run.id}")
    # None where it was closed, which its type does not say.
    keys = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else -1
    asking = keys >= 0 and not cli.out.as_json
    if not command and not asking:
        raise InputError("a shell needs a terminal", mend=f"route shell {id} -- COMMAND needs none")
    backend = cli.router.backend(handle.backend, run.read("workload", Workload))
    found = part_of(backend, handle, node)
    size = _size(keys) if asking else None
    cli.out.busy("opening a shell")
    opened = guarded(
        handle.backend,
        lambda: backend.shell(found, command, size=size),
    )
    cli.out.calm()
    if asking and not command:
        cli.out.stage("shell", f"beside run {run.id}; leaving it does nothing to the run")
    code = lend(opened, _events(cli) if cli.out.as_json else _plain, terminal=asking)
    error = problem("COMMAND_FAILED", f"the command ended with {code}") if code else None
    cli.out.done({"run_id": run.id, "exit_code": code}, error=error)
    return code


def _size(fd: int) -> tuple[int, int]:
    """Rows and columns; of a terminal that was never told its own, those that programs then go by."""
    now = os.get_terminal_size(fd)
    return now.lines or 24, now.columns or 80


def _plain(number: int, data: bytes) -> None:
    # Straight to the descriptor: it is the terminal's, or somebody's file, byte for byte.
    while data:
        data = data[os.write(number, data) :]


def _events(cli: Cli) -> Sink:
    def tell(number: int, data: bytes) -> None:
        cli.out.event({"event": "output", "stream": number, "text": data.decode("utf-8", "replace")})

    return tell


def lend(opened: Shell, sink: Sink, *, terminal: bool) -> int:
    """Carry bytes between this process and `opened` until it ends; returns its exit code.

    Raises `Unavailable` when the connection is lost. Whatever happens, the terminal is as it was.
    """
    stop, stopped = os.pipe()
    told, size = os.pipe()
    os.set_blocking(size, False)
    with _raw(size) if terminal else contextlib.nullcontext():
        feeding = threading.Thread(target=_feed, args=(opened, stop, told, terminal), daemon=True)
        feeding.start()
        try:
            while (item := opened.read()) is not None:
                sink(*item)
        except Broken as e:
            raise Unavailable(
                f"the shell is gone: {e}", mend="the run itself goes on; route shell opens another"
            ) from e
        finally:
            opened.close()
            os.close(stopped)
            feeding.join(1.0)
    return opened.exit_code()


@contextlib.contextmanager
def _raw(size: int) -> Iterator[None]:
    """This terminal passes every byte on as it is, and a change of its size is told to `size`."""
    import termios
    import tty

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def changed(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(size, b"w")

    def ended(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    held: dict[int, Any] = {signal.SIGWINCH: signal.signal(signal.SIGWINCH, changed)}
    for each in (signal.SIGTERM, signal.SIGHUP):
        held[each] = signal.signal(each, ended)
    try:
        tty.setraw(fd, termios.TCSADRAIN)  # what was typed ahead is for the shell
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSANOW, before)
        for number, handler in held.items():
            signal.signal(number, handler)


def _feed(opened: Shell, stop: int, told: int, terminal: bool) -> None:
    """Pass on what is typed, or read from stdin, until `stop` says that it is over."""
    fd, tilde = sys.stdin.fileno(), Tilde()
    with contextlib.suppress(Broken, RouteError, OSError):
        while True:
            ready, _, _ = select.select([fd, stop, told], [], [])
            if stop in ready:
                return
            if told in ready:
                os.read(told, 64)
                opened.resize(*_size(fd))
            if fd not in ready:
                continue
            data = os.read(fd, PIECE)
            if terminal:
                data, leave = tilde.passes(data), tilde.leaves
                if leave:
                    opened.close()
                    return
                if data:
                    opened.write(data)
            elif data:
                opened.write(data)
            else:
                opened.close_write()
                select.select([stop], [], [])
                return


class Tilde:
    """Finds `~.` at the beginning of a line; `~~` there is one `~`."""

    def __init__(self) -> None:
        self.leaves = False
        self._fresh, self._held = True, False

    def passes(self, data: bytes) -> bytes:
        """What of `data` is to be passed on."""
        kept = bytearray()
        for byte in data:
            char = bytes([byte])
            if self._held:
                self._held = False
                if char == b".":
                    self.leaves = True
                    return bytes(kept)
                kept += b"~" if char == b"~" else b"~" + char
                self._fresh = False
            elif self._fresh and char == b"~":
                self._held = True
            else:
                kept += char
                self._fresh = char in (b"\r", b"\n")
        return bytes(kept)
