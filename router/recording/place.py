"""This machine as the place of commands that others start: nothing is offered, staged or limited here."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from compute_router.backend import Handle, Health, NoOffer, Offer, Power, State, Submission, Surface
from compute_router.errors import HandleLost, StoreError, Unavailable
from compute_router.machines.contract import Machine, MachineBackend
from compute_router.machines.local import LocalMachine
from compute_router.machines.running import Running
from compute_router.machines.session import Sessions
from compute_router.recording import RECORDED
from compute_router.recording.outcome import Outcome
from compute_router.records import Record
from compute_router.workload import Workload

__all__ = ["LEAST_FREE", "Recorded", "Settings", "root_for", "roots"]

ROOT = "ROUTE_RECORD_ROOT"
"""The variable that names another folder for the records of the supervisor."""
LEAST_FREE = 64 << 20
"""Bytes below which the log of a command may fill the disk that it is on, which would cost the work."""


class Settings(Record, frozen=True, kw_only=True):
    """There is nothing to set."""


def roots(home: Path) -> Iterator[Path]:
    """Where the supervisor may keep what it sees, best first. It needs a disk of the machine itself,
    and on clusters a home folder is none."""
    if given := os.environ.get(ROOT):
        yield Path(os.path.abspath(given))
        return
    yield home / "machine"
    for folder in (Path("/var/tmp"), Path(os.environ.get("TMPDIR") or "/tmp"), Path("/tmp")):
        yield folder / f"route-{os.geteuid()}"


def root_for(home: Path) -> tuple[Path, int]:
    """The first root that can be used, made now, and the bytes free there. Raises `StoreError`."""
    from compute_router.supervisor import machine

    why = ""
    for root in roots(home):
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = os.stat(root, follow_symlinks=False)
            space = os.statvfs(root)
        except OSError as e:
            why = why or f"{root}: {e.strerror}"
            continue
        free = space.f_bavail * space.f_frsize
        mount = machine.mount_of(str(root))
        if mount is not None and machine.is_network(mount.fs):
            why = why or f"{root} lies on a network file system ({mount.fs})"
        elif status.st_uid != os.geteuid() or not os.access(root, os.W_OK | os.X_OK):
            why = why or f"{root} is not ours to write"
        elif free < LEAST_FREE:
            why = why or f"{free >> 20} MiB are free below {root}"
        else:
            return root, free
    raise StoreError(
        f"there is no disk of this machine to record on: {why}", mend=f"set {ROOT} to a folder on one"
    )


class Recorded(MachineBackend):
    """The machine that `route record` runs on. It starts what it is given, in place, and offers nothing."""

    name = RECORDED
    surface = Surface.LOCAL
    Settings = Settings
    powers = frozenset({Power.FOLLOW, Power.CANCEL})

    root: Path | None = None
    """Where this start is kept; None in every process that only looks."""
    handle: Handle | None = None
    """What this process has started."""
    stdin = -1
    """The descriptor that the command reads, or -1."""

    @functools.cached_property
    def outcome(self) -> Outcome:
        """What is told of the command whatever becomes of its records."""
        return Outcome()

    def health(self) -> Health:
        return Health(backend=self.name, ok=True, summary="observes what other launchers start")

    def offers(self, workload: Workload) -> Sequence[Offer | NoOffer]:
        why = "it observes what other launchers start, and starts nothing by itself"
        return [NoOffer(backend=self.name, code="recorded", reason=why, mend="route record -- COMMAND")]

    @functools.cached_property
    def _machine(self) -> LocalMachine:
        assert self.root is not None
        name = platform.node() or "this machine"
        return LocalMachine(self.root, name=name, stdin=self.stdin, outcome=self.outcome.fd)

    def machines(self, offer: Offer) -> Sequence[Machine]:
        return (self._machine,)

    def places(self) -> Sequence[Machine]:
        if self.root is not None:
            return (self._machine,)
        found = dict.fromkeys(root for root in roots(self.home) if (root / "runs").is_dir())
        return [LocalMachine(root, name=platform.node() or "this machine", stdin=-1) for root in found]

    def submit(self, submission: Submission) -> Handle:
        assert self.root is not None
        try:
            handle = super().submit(submission)
        # What broke may be the records alone, which the command can remove: then nobody would find it, and
        # it would be started once more.
        except Exception:
            if not self.outcome.begun:
                raise
            handle = cast("_Here", self._running).named(submission, self._machine)
        self.outcome.hold(self.root / "runs" / submission.id / "attempts" / str(submission.attempt) / "log")
        if not self.outcome.begun and self.status(handle).state is State.COMMITTED:
            # Its supervisor died before it started anything. Cancelled first, so that nobody can start it.
            self.cancel(handle)
            if self.status(handle).started_us is None:
                raise Unavailable(
                    "no supervisor stays alive here", mend="look at supervisor.log below its root"
                )
        # Kept here too: whether it was started must be known even if no store can be written.
        self.handle = handle
        return handle

    def in_place(self, submission: Submission) -> Mapping[str, Any] | None:
        block: Mapping[str, Any] = submission.offer.data
        return block

    @functools.cached_property
    def _running(self) -> Running:
        return _Here(cast("Any", self))


class _Here(Running):
    """Finds a recorded run by the root in its handle; a run of another machine cannot be seen from here."""

    def named(self, submission: Submission, machine: Machine) -> Handle:
        """The handle of what was submitted to `machine`, whether or not it can be found there."""
        return self._handle(submission.id, submission.key, submission.attempt, machine)

    def _of(self, handle: Handle) -> Sessions:
        backend = cast("Recorded", self._backend)
        if backend.root is not None:
            return self.sessions(backend._machine)
        names, kept = handle.data.get("machines") or ["?"], handle.data.get("roots") or [""]
        root, here = Path(str(kept[0])), platform.node()
        if not (root / "runs" / handle.run_id).is_dir():
            if names[0] != here:
                raise HandleLost(
                    f"run {handle.run_id} was recorded on {names[0]}, this is {here}",
                    mend=f"ask there: route collect {handle.run_id}",
                )
            raise HandleLost(f"{root} holds no run {handle.run_id} any more", mend="it was removed there")
        return self.sessions(LocalMachine(root, name=str(names[0]), stdin=-1))
