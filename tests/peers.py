"""What the tests of machines share: workloads, a machine whose stream breaks, a server that lies."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compute_router.backend import Handle, Offer, Status, Submission
from compute_router.backends.local import LocalBackend, LocalSettings
from compute_router.errors import Broken, Unavailable
from compute_router.machines.contract import Machine, Stream
from compute_router.machines.local import LocalMachine
from compute_router.records import new_run_id
from compute_router.snapshot import take
from compute_router.workload import Entry, Workload

__all__ = ["Cut", "CutMachine", "LyingMachine", "On", "ended", "submission", "workload"]


def workload(root: Path, source: str = "print('hello')\n", **fields: Any) -> Workload:
    """A workload of one script with this source."""
    root.mkdir(exist_ok=True, parents=True)
    (root / "work.py").write_text(source)
    entry = fields.pop("entry", None) or Entry(root=str(root), script="work.py")
    return Workload(name=fields.pop("name", "test"), entry=entry, **fields)


def submission(
    backend: LocalBackend, work: Workload, *, key: str | None = None, run_id: str | None = None, **more: Any
) -> Submission:
    """A first attempt of `work` at the first offer of `backend`."""
    [offer] = backend.offers(work)
    assert isinstance(offer, Offer), offer
    run_id = run_id or new_run_id()
    return Submission(
        id=run_id,
        key=key or run_id,
        attempt=more.pop("attempt", 1),
        workload=work,
        offer=offer,
        snapshot=take(Path(work.entry.root)),
        **more,
    )


def ended(backend: LocalBackend, handle: Handle, *, within: float = 30.0) -> Status:
    """The final status of a run."""
    end = time.monotonic() + within
    while True:
        status = backend.status(handle)
        if status.state.final:
            return status
        assert time.monotonic() < end, status
        time.sleep(0.02)


class On(LocalBackend):
    """The local backend on machines of the test's choosing."""

    def __init__(self, home: Path, *machines: Machine) -> None:
        super().__init__(LocalSettings(), home)
        self.given = machines

    def places(self) -> Sequence[Machine]:
        return self.given

    def machines(self, offer: Offer) -> Sequence[Machine]:
        return self.given[:1]


class Cut:
    """Where streams break: after `up` bytes to the machine or `down` bytes from it (None = never).

    It holds for the first `streams` of them; `opens` is how many may be opened in all. `sent` and
    `received` count the bytes of all streams.
    """

    def __init__(
        self,
        *,
        up: int | None = None,
        down: int | None = None,
        streams: int | None = None,
        opens: int | None = None,
    ) -> None:
        self.up, self.down, self.streams, self.opens = up, down, streams, opens
        self.sent = self.received = self.opened = 0
        self.lock = threading.Lock()


class CutMachine(LocalMachine):
    """This machine behind a connection that breaks where `cut` says. What runs is the real supervisor."""

    def __init__(self, root: Path, cut: Cut) -> None:
        super().__init__(root)
        self.cut = cut

    def open(self, argv: Sequence[str], *, deadline: float) -> Stream:  # type: ignore[override]
        cut = self.cut
        with cut.lock:
            cut.opened += 1
            number = cut.opened
        if cut.opens is not None and number > cut.opens:
            raise Unavailable("the machine cannot be reached (cut)")
        return CutStream(
            super().open(argv, deadline=deadline), cut, cut.streams is None or number <= cut.streams
        )


class CutStream:
    """A stream that hands on what comes before the cut and is `Broken` from there on."""

    def __init__(self, inner: Stream, cut: Cut, breaks: bool) -> None:
        self.inner, self.cut = inner, cut
        self.up = cut.up if breaks else None
        self.down = cut.down if breaks else None

    def read(self, limit: int) -> bytes:
        data = self.inner.read(limit)
        left = len(data) if self.down is None else min(len(data), self.down)
        with self.cut.lock:
            self.cut.received += left
        if self.down is not None:
            self.down -= left
        if left < len(data):
            self.inner.close()
        if data and not left:
            raise Broken("cut on the way down")
        return data[:left]

    def write(self, data: bytes) -> None:
        left = len(data) if self.up is None else min(len(data), self.up)
        with self.cut.lock:
            self.cut.sent += left
        if self.up is not None:
            self.up -= left
        if left:
            self.inner.write(data[:left])
        if left < len(data):
            self.inner.close()
            raise Broken("cut on the way up")

    def close_write(self) -> None:
        self.inner.close_write()

    def exit_status(self, timeout: float) -> int | None:
        return self.inner.exit_status(timeout)

    def close(self) -> None:
        self.inner.close()


class LyingMachine(LocalMachine):
    """A machine on which a program of the test's answers instead of the supervisor.

    The program gets the hello as the dict `hello` and has `say(head, body=b"")`, `hear() -> (head,
    body)` and `raw(bytes)`; it has greeted already unless `greets` is False.
    """

    def __init__(self, root: Path, program: str, *, greets: bool = True) -> None:
        super().__init__(root, name="liar")
        self.program = _PEER + ("greet()\n" if greets else "") + program

    def open(self, argv: Sequence[str], *, deadline: float) -> Stream:  # type: ignore[override]
        return super().open((sys.executable, "-c", self.program), deadline=deadline)


_PEER = """
import json, sys, os, time
hello = json.loads(sys.stdin.buffer.readline())
def raw(data):
    sys.stdout.buffer.write(data); sys.stdout.buffer.flush()
def say(head, body=b""):
    if body: head = dict(head, size=len(body))
    raw(json.dumps(head).encode() + b"\\n" + body)
def hear():
    line = sys.stdin.buffer.readline()
    if not line: sys.exit(0)
    head = json.loads(line)
    return head, sys.stdin.buffer.read(head.get("size", 0))
def greet(**more):
    raw(("\\n%s %s\\n" % (hello["nonce"], json.dumps(dict({"ok": True}, **more)))).encode())
"""
