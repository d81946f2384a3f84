"""Everything a MachineBackend does above `Machine.open`, made once: submit, find, status, logs, fetch."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from compute_router.backend import Handle, Offer, State, Status, Submission
from compute_router.errors import (
    Broken,
    Conflict,
    CredentialsError,
    HandleLost,
    RouteError,
    SubmitUnknown,
    Unavailable,
)
from compute_router.gather import side_by_side
from compute_router.machines.contract import Interpreter, Machine, MachineBackend
from compute_router.machines.others import client, keep, unsure
from compute_router.machines.session import Resend, Session, Sessions
from compute_router.machines.shipping import Tries, finish, ship
from compute_router.machines.specification import specification
from compute_router.machines.telling import status_of, told_of
from compute_router.records import key_run_id

__all__ = ["VERSION", "Running"]

VERSION = 1
"""The form of `Handle.data`: `machines`, their names in rank order, and `roots`, the root on each."""
SILENCE = 8.0
"""Seconds a follow may be silent before another connection is tried: the other side beats every 5."""
QUICK = 6.0
"""Seconds for that first try: with `SILENCE` a dead link is told of in less than 20."""
PAUSES = 1.0, 10.0
"""Seconds at most between two tries: of one that cannot be reached, so that what is true is told soon after
its network has healed; and of one that answers each time and breaks again."""
LASTING = 10.0
"""Seconds after which a follow that breaks was a good connection until then."""
SETTLING = 0.5
"""Seconds for which `find` waits for a start under way to become one or none."""
FINDING = 21.0
"""Seconds that all machines together may take to say whether they know a run."""
PIECE = 1 << 18
_RUN_ID = re.compile(r"[0-9a-hjkmnp-tv-z]{26}")


class Running:
    """The running of one backend's work on its machines. May be called from several threads."""

    def __init__(self, backend: MachineBackend) -> None:
        self._backend = backend
        self._sessions: dict[tuple[str, str], Sessions] = {}
        self._seen: dict[str, tuple[State, int]] = {}
        self._image_us: dict[str, int] = {}
        self._lock = threading.Lock()

    def sessions(self, machine: Machine) -> Sessions:
        """The sessions this process has with `machine`."""
        with self._lock:
            at = (machine.name, machine.root)
            if at not in self._sessions:
                self._sessions[at] = Sessions(machine)
            return self._sessions[at]

    # Start

    def expect(self, offer: Offer) -> None:
        """Open the connections that a submission to `offer` will need, in the background."""
        for machine in self._backend.machines(offer):
            self.sessions(machine).dial()

    def submit(self, submission: Submission) -> Handle:
        """Prepare, commit, start. What a return and each raise mean: `Backend.submit`."""
        [machine] = self._backend.machines(submission.offer)
        began = time.monotonic_ns()
        interpreter = self._backend.interpreter_on(machine, submission)
        self._image_us[submission.id] = (time.monotonic_ns() - began) // 1000
        spec = specification(
            submission,
            interpreter,
            self._backend.leases(submission.offer),
            in_place=self._backend.in_place(submission),
        )
        if missing := [name for name in submission.workload.secrets if name not in submission.secrets]:
            raise CredentialsError(f"missing secret: {missing[0]}", mend=f"export {missing[0]}=...")
        secrets = {name: submission.secrets[name] for name in submission.workload.secrets}
        sessions = self.sessions(machine)
        cause: Exception | None = None
        started = False  # whether a start was sent whose answer never came
        tries = Tries()
        for fresh in tries:
            sending = False
            try:
                with sessions.use(fresh=fresh) as session:
                    pending = ship(session, submission, spec, tries=tries)
                    sending = True
                    status = self._start(session, submission, spec, secrets, pending, interpreter)
            except Broken as e:
                # Sending the same again is safe: a machine starts an attempt of a run once.
                cause, started = e, started or sending
                continue
            except Resend as e:
                cause = e
                time.sleep(0.05)
                continue
            except RouteError as e:
                if tries.underway and not started and isinstance(e, Unavailable):
                    cause = e
                    continue
                if not started or isinstance(e, (Conflict, SubmitUnknown)):
                    raise
                cause = e
                break
            self._saw(submission.id, status)
            return self._handle(submission.id, submission.key, submission.attempt, machine)
        if started:
            raise SubmitUnknown(
                f"the start was sent to {machine.name}, but its answer never came: {cause}",
                mend=f"route status {submission.id} asks again",
            ) from cause
        raise Unavailable(
            f"the files did not arrive whole on {machine.name}: {cause}",
            mend="try again: what arrived there is kept",
        ) from cause

    def _start(
        self,
        session: Session,
        submission: Submission,
        spec: bytes,
        secrets: dict[str, str],
        pending: Sequence[str],
        interpreter: Interpreter,
    ) -> Status:
        handle = self._handle(submission.id, submission.key, submission.attempt, session.machine)
        keep(session, submission, handle)
        session.send(
            "start",
            json.dumps(secrets).encode(),
            run_id=submission.id,
            attempt=submission.attempt,
            wait_us=submission.wait_us,
            spec_sha256=hashlib.sha256(spec).hexdigest(),
            # Not in the specification: the same submission again finds built what the first one built.
            environment={"built": interpreter.built, "build_us": interpreter.build_us},
        )
        return status_of(finish(session, [*pending, "start"]).head.get("status"))

    def _handle(self, run_id: str, key: str, attempt: int, machine: Machine) -> Handle:
        return Handle(
            backend=self._backend.name,
            version=VERSION,
            run_id=run_id,
            key=key,
            attempt=attempt,
            data={"machines": [machine.name], "roots": [machine.root]},
        )

    # Look

    def find(self, key: str) -> Handle | None:
        """The run of `key`, which is the run's id where the user gave none. A run that was committed
        and never started counts as not started: nobody but its submitter would start it."""
        ids = [key_run_id(key), *([key] if _RUN_ID.fullmatch(key) else [])]
        places = {machine.name: machine for machine in self._backend.places()}
        asks = {name: functools.partial(self._find, self.sessions(m), ids) for name, m in places.items()}
        got = side_by_side(asks, FINDING, enough=lambda answer: isinstance(answer, tuple))
        for name, answer in got.items():
            if isinstance(answer, tuple):
                run_id, status = answer
                self._saw(run_id, status)
                return self._handle(run_id, key, status.attempt, places[name])
        late = Unavailable(f"no answer within {FINDING:.0f} s", mend="try again")
        for name in places:
            unseen = got.get(name, late)
            if isinstance(unseen, (RouteError, Broken)):
                raise unsure(name, key, unseen) from unseen
            if isinstance(unseen, BaseException):
                raise unseen
        return None

    def _find(self, sessions: Sessions, ids: Sequence[str]) -> tuple[str, Status] | None:
        """The first of `ids` that was started on this machine. One that is about to start, or about to
        be told that there is no room, is looked at again until that is settled."""
        until = time.monotonic() + SETTLING
        while True:
            statuses = sessions.ask("status", run_ids=list(ids)).head.get("statuses")
            told = [(run_id, told_of(statuses, run_id)) for run_id in ids]
            begun = [(i, s) for i, s in told if s is not None and s.state is not State.COMMITTED]
            if not begun:
                return None
            run_id, status = begun[0]
            unsettled = status.started_us is None and not status.state.final
            if not unsettled or time.monotonic() >= until:
                return run_id, status
            time.sleep(0.02)

    def status(self, handle: Handle) -> Status:
        """One look. Raises `HandleLost` only when the machine itself says that it knows no such run."""
        sessions = self._of(handle)
        try:
            told = sessions.ask("status", run_ids=[handle.run_id]).head.get("statuses")
            status = told_of(told, handle.run_id)
        except HandleLost:
            raise
        except (RouteError, Broken) as e:
            return self._unknown(handle, str(e))
        if status is None:
            raise self._lost(handle)
        self._saw(handle.run_id, status)
        return status

    def _of(self, handle: Handle) -> Sessions:
        """The sessions with the machine of `handle`. Raises `HandleLost` if it is none of ours now."""
        names = handle.data.get("machines")
        if handle.version > VERSION or not isinstance(names, list) or not names:
            raise HandleLost(
                f"the handle of run {handle.run_id} has a form this version cannot read", mend="update it"
            )
        for machine in self._backend.places():
            if machine.name == names[0]:
                return self.sessions(machine)
        raise HandleLost(
            f"run {handle.run_id} is on {names[0]!r}, which backend {handle.backend!r} no longer has",
            mend="add that machine again",
        )

    def machine_of(self, handle: Handle) -> Machine:
        """The machine that `handle` names first. Raises `HandleLost`."""
        return self._of(handle).machine

    def _lost(self, handle: Handle) -> HandleLost:
        then = (handle.data.get("roots") or ["?"])[0]
        now = self._of(handle).machine.root
        moved = f": it was started below {then}, now {now} is looked at" if then != now else ""
        return HandleLost(
            f"{self._of(handle).machine.name} knows no run {handle.run_id}{moved}",
            mend="give the backend its former root back" if moved else "it was removed there",
        )

    def _saw(self, run_id: str, status: Status) -> None:
        self._seen[run_id] = (status.state, time.time_ns() // 1000)

    def _unknown(self, handle: Handle, why: str) -> Status:
        last, since = self._seen.get(handle.run_id, (None, None))
        return Status(
            state=State.UNKNOWN, attempt=handle.attempt, last=last, since_us=since, detail=why[:500]
        )

    def noticed(self, handle: Handle) -> dict[str, int]:
        """What was measured on this side: see `Backend.noticed`."""
        found = {}
        if (spent := self._image_us.get(handle.run_id)) is not None:
            found["image_us"] = spent
        with contextlib.suppress(RouteError):
            if (clock := self._of(handle).clock) is not None:
                found |= {"rtt_us": clock[0], "offset_us": clock[1]}
        return found

    # Follow

    def logs(self, handle: Handle, offset: int = 0, follow: bool = False) -> Iterator[bytes]:
        """The log from `offset` on. With `follow` a lost connection is ridden out, by offset."""
        if follow:
            for item in self.attached(handle, offset):
                if isinstance(item, bytes):
                    yield item
            return
        sessions = self._of(handle)
        while True:
            frame = sessions.ask("log", run_id=handle.run_id, offset=offset, limit=PIECE)
            offset += len(frame.body)
            if frame.body:
                yield frame.body
            end = frame.head.get("end")
            if not frame.body or not isinstance(end, int) or offset >= end:
                return

    def attached(self, handle: Handle, offset: int = 0) -> Iterator[bytes | Status]:
        """Log bytes and statuses from one stream; the last item is a final status.

        Raises `HandleLost` when the machine knows no such run. Whoever stops reading ends it.
        """
        for item in self.beating(handle, offset):
            if item is not None:
                yield item

    def beating(self, handle: Handle, offset: int = 0) -> Iterator[bytes | Status | None]:
        """As `attached`, with None each few seconds in which there is nothing to tell."""
        sessions = self._of(handle)
        told: Status | None = None
        failures = 0
        while True:
            began, heard = time.monotonic(), False
            try:
                with sessions.use(fresh=failures > 0, opening=QUICK if failures == 1 else None) as session:
                    for item, reached in self._follow(session, handle, offset):
                        offset, heard = reached, True
                        if isinstance(item, bytes):
                            failures = 0
                            yield item
                        elif item is None:
                            yield None
                        elif item != told:
                            self._saw(handle.run_id, item)
                            told = item
                            yield item
                    if told is not None and told.state.final:
                        return
                    raise Broken("the machine stopped telling before the run was final")
            except HandleLost:
                raise
            except (Broken, RouteError) as e:
                # A connection that tells a state and breaks again is no better than none.
                failures = 1 if time.monotonic() - began > LASTING else failures + 1
                # A first break is often an idle connection that had died: look again before saying so.
                if failures > 1 and (told is None or told.state is not State.UNKNOWN):
                    told = self._unknown(handle, str(e))
                    yield told
                if failures > 1:
                    # Not all at once: many may follow runs on a machine that comes back.
                    jitter = 0.5 + int.from_bytes(os.urandom(1), "big") / 512
                    time.sleep(jitter * min(PAUSES[heard], 0.1 * 2 ** min(failures, 8)))

    def _follow(
        self, session: Session, handle: Handle, offset: int
    ) -> Iterator[tuple[bytes | Status | None, int]]:
        """The items of one follow, each with the offset reached; ends with the other side's end."""
        session.send("follow", run_id=handle.run_id, offset=offset)
        while True:
            frame = session.follow(deadline=SILENCE)
            head = frame.head
            if handle.run_id in self._seen:
                # A beat tells nothing new, but it is when the run was seen.
                self._seen[handle.run_id] = (self._seen[handle.run_id][0], time.time_ns() // 1000)
            if head.get("log"):
                at = head.get("offset")
                if type(at) is not int or at < 0:
                    raise Broken(f"{session.machine.name} sent log bytes without their place")
                fresh = frame.body[max(0, offset - at) :]
                offset = max(offset, at + len(frame.body))
                if fresh:
                    yield fresh, offset
            elif "status" in head:
                status, end = status_of(head["status"]), bool(head.get("end"))
                if end:
                    session.answered()
                # A final one is held back until the log is whole: it is the last thing told.
                if end or not status.state.final:
                    yield status, offset
                if end:
                    return
            elif head.get("beat"):
                yield None, offset

    # Afterwards

    def fetch(self, handle: Handle, into: Path) -> Sequence[Path]:
        """Bring back what the run left; see `fetching.fetch`."""
        from compute_router.machines.fetching import fetch

        return fetch(self._of(handle), handle.run_id, into)

    def cancel(self, handle: Handle) -> None:
        """Ask the run to end. Raises `Unavailable` if the machine cannot be asked."""
        self._of(handle).ask("cancel", run_id=handle.run_id)

    def cleanup(self, handle: Handle) -> None:
        """Remove the run's files on the machine; its records stay. Silent if they are gone."""
        with contextlib.suppress(HandleLost):
            sessions = self._of(handle)
            sessions.ask("collected", run_id=handle.run_id, receipt_id=None, by=client(self._backend.home))
            sessions.ask("cleanup", run_id=handle.run_id, keep_us=self._backend.keeps())
