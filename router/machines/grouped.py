"""Running on one machine or on several: what several are asked, side by side, and what that means."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from compute_router.backend import Handle, State, Status, Submission
from compute_router.errors import Broken, HandleLost, InputError, RouteError, Unavailable
from compute_router.gather import side_by_side
from compute_router.machines.contract import Machine, MachineBackend
from compute_router.machines.holding import FACTS, Starting, ask_twice
from compute_router.machines.running import VERSION, Running
from compute_router.machines.session import Session, Sessions
from compute_router.machines.telling import status_of
from compute_router.machines.together import Member, together

__all__ = ["Grouped"]

GLANCE = 8.0
"""Seconds that the other machines may take to answer while node 0's log is followed."""
LONGEST = 7 * 86_400.0
"""Seconds that bringing back may take; what makes no progress is broken off much earlier."""
BEGUN = (State.RUNNING, State.ORPHANED)
SETTLING = 2.0
"""Seconds for which members that are about to be held, or to begin, are looked at again."""
AGAIN = 1.0
"""Seconds between two looks at the others, once node 0 has ended."""


class Grouped(Running):
    """As `Running`, for handles that name several machines too. Those are asked each for itself, by a
    `Running` that knows one machine; node 0's log is the run's."""

    def __init__(self, backend: MachineBackend) -> None:
        super().__init__(backend)
        self.backend = backend
        self._members: dict[str, Running] = {}
        self._devices: dict[tuple[str, int], tuple[str, ...]] = {}

    # Start

    def submit(self, submission: Submission) -> Handle:
        machines = self.backend.machines(submission.offer)
        if len(machines) == 1:
            return super().submit(submission)
        handle = self._named(submission.id, submission.key, submission.attempt, machines)
        start = Starting(cast("Any", self), submission, machines)  # one module, two names of it
        start.run(handle)
        self._image_us[submission.id] = start.image_us
        return handle

    def _named(self, run_id: str, key: str, attempt: int, machines: Sequence[Machine]) -> Handle:
        return Handle(
            backend=self.backend.name,
            version=VERSION,
            run_id=run_id,
            key=key,
            attempt=attempt,
            data={"machines": [m.name for m in machines], "roots": [m.root for m in machines]},
        )

    def told(self, status: Any) -> Status:
        """A machine's status as ours. Raises `Broken` if it is none."""
        return status_of(status)

    def go(
        self,
        sessions: Sessions,
        name: str,
        run_id: str,
        attempt: int,
        facts: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Let a held start go; what node 0 tells the others. Raises `Unavailable` told NOT_HELD if
        nothing is held there, `SubmitUnknown` if its answer never came."""
        import json

        from compute_router.errors import SubmitUnknown

        body = json.dumps(dict(facts)).encode() if facts else b""

        def ask(session: Session) -> dict[str, Any]:
            head = session.ask("go", body, run_id=run_id, attempt=attempt).head
            return {key: head[key] for key in FACTS if key in head}

        return ask_twice(sessions, name, ask, SubmitUnknown)

    # Find

    def find(self, key: str) -> Handle | None:
        """The run of `key`. One on several machines that its client had let go only in part is let go on
        the others too, as far as it is still held there: it is one run, and somebody wants it."""
        found = super().find(key)
        if found is None:
            return None
        [machine] = self._machines(found)
        told = self.sessions(machine).ask("status", run_ids=[found.run_id]).head.get("statuses") or {}
        group = (told.get(found.run_id) or {}).get("group")
        if not isinstance(group, dict):
            return found
        return self._found(found, group)

    def _found(self, found: Handle, group: Mapping[str, Any]) -> Handle | None:
        """The handle of all members; None if nothing was started: node 0 is let go before any other."""
        until = time.monotonic() + SETTLING
        while True:
            machines, statuses = self._members_of(found.run_id, group)
            held = [status.reason == "held" for status in statuses]
            idle = [h or s.state is State.COMMITTED for h, s in zip(held, statuses, strict=True)]
            begun = any(s.state.final or s.state in BEGUN for s in statuses)
            if begun or all(idle) or time.monotonic() >= until:
                break
            time.sleep(0.05)  # one is about to be held, or about to begin
        if not begun and idle[0]:
            return None
        failed = [s for s in statuses if s.state.final and s.state is not State.SUCCEEDED]
        if begun and any(held) and not failed:
            facts = self.go(self.sessions(machines[0]), machines[0].name, found.run_id, found.attempt)
            for rank in (rank for rank, waits in enumerate(held) if waits and rank):
                with contextlib.suppress(RouteError):
                    sessions = self.sessions(machines[rank])
                    self.go(sessions, machines[rank].name, found.run_id, found.attempt, facts)
        return self._named(found.run_id, found.key, found.attempt, machines)

    def _members_of(self, run_id: str, group: Mapping[str, Any]) -> tuple[list[Machine], list[Status]]:
        """The machines of a run and how it stands on each, in rank order. Raises `Unavailable` if one of
        them cannot be told."""
        ranks, unseen = self._ranks(run_id)
        nodes = group.get("nodes")
        if type(nodes) is not int or sorted(ranks) != list(range(nodes)):
            raise Unavailable(
                f"run {run_id} is on {nodes} machines, and {len(ranks)} of them know it"
                + (f"; {' and '.join(unseen)} cannot be seen" if unseen else ""),
                mend="add the others (route machine add), or try again",
            )
        return [ranks[rank][0] for rank in range(nodes)], [ranks[rank][1] for rank in range(nodes)]

    def _ranks(self, run_id: str) -> tuple[dict[int, tuple[Machine, Status]], list[str]]:
        """Which machine is which node of the run, and how it stands there; and who could not be asked."""

        def ask(machine: Machine) -> tuple[Machine, dict[str, Any]]:
            told = self.sessions(machine).ask("status", run_ids=[run_id]).head.get("statuses") or {}
            return machine, told.get(run_id) or {}

        calls = {m.name: functools.partial(ask, m) for m in self.backend.places()}
        got = side_by_side(calls, GLANCE)
        ranks: dict[int, tuple[Machine, Status]] = {}
        for answer in got.values():
            if isinstance(answer, tuple) and isinstance(group := answer[1].get("group"), dict):
                rank = group.get("node_rank")
                if type(rank) is int:
                    ranks.setdefault(rank, (answer[0], status_of(answer[1])))
        return ranks, [name for name in calls if not isinstance(got.get(name), tuple)]

    # Look

    def _machines(self, handle: Handle) -> list[Machine]:
        """The machines of `handle`, in rank order. Raises `HandleLost` if one is none of ours now."""
        self._of(handle)  # its form
        places = {machine.name: machine for machine in self.backend.places()}
        for name in handle.data["machines"]:
            if name not in places:
                raise HandleLost(
                    f"run {handle.run_id} is on {name!r}, which backend {handle.backend!r} no longer has",
                    mend="add that machine again",
                )
        return [places[name] for name in handle.data["machines"]]

    def _several(self, handle: Handle) -> bool:
        names = handle.data.get("machines")
        return isinstance(names, list) and len(names) > 1

    def _parts(self, handle: Handle) -> list[tuple[Running, Handle, Machine]]:
        """For each machine of the run: who runs there, and the handle of its part."""
        found = []
        for machine in self._machines(handle):
            with self._lock:
                if machine.name not in self._members:
                    member = Running(self.backend)
                    member._sessions = self._sessions
                    self._members[machine.name] = member
                member = self._members[machine.name]
            found.append((member, self._named(handle.run_id, handle.key, handle.attempt, [machine]), machine))
        return found

    def node(self, handle: Handle, rank: int) -> Handle:
        """See `Beyond.node`."""
        parts = self._parts(handle)
        if not 0 <= rank < len(parts):
            on = ", ".join(f"{number} ({m.name})" for number, (_, _, m) in enumerate(parts))
            raise InputError(f"run {handle.run_id} has no node {rank}", mend=f"it has {on}")
        return parts[rank][1] if len(parts) > 1 else handle

    def status(self, handle: Handle) -> Status:
        if not self._several(handle):
            return super().status(handle)
        return self._together(handle, {})

    def _together(self, handle: Handle, known: Mapping[int, Status], deadline: float = 45.0) -> Status:
        """One look at all members; of those in `known` nothing is asked unless they have ended badly."""
        parts = self._parts(handle)
        calls = {
            str(rank): functools.partial(self._look, *part)
            for rank, part in enumerate(parts)
            if rank not in known or known[rank].state.final
        }
        got = side_by_side(calls, deadline)
        members = []
        for rank, (running, own, machine) in enumerate(parts):
            answer = got.get(str(rank))
            if isinstance(answer, HandleLost):
                raise answer
            raw: Mapping[str, Any] = {}
            if isinstance(answer, tuple):
                status, raw = answer
            elif str(rank) not in calls:
                status = known[rank]
            else:
                why = str(answer) if answer is not None else f"{machine.name} did not answer in time"
                status = running._unknown(own, why)
            clock = self.sessions(machine).clock
            members.append(
                Member(
                    name=machine.name,
                    status=status,
                    first=raw.get("first"),
                    devices=self._leased(handle.run_id, rank, raw),
                    offset_us=clock[1] if clock else 0,
                )
            )
        status = together(members)
        if status.state is not State.UNKNOWN:
            self._saw(handle.run_id, status)
        return status

    def _look(self, running: Running, own: Handle, machine: Machine) -> tuple[Status, Mapping[str, Any]]:
        """The status of one part, and all that was told with it. Raises `HandleLost` alone."""
        try:
            told = self.sessions(machine).ask("status", run_ids=[own.run_id]).head.get("statuses")
            raw = (told or {}).get(own.run_id)
            if raw is None:
                raise running._lost(own)
            status = status_of(raw)
        except HandleLost:
            raise
        except (RouteError, Broken) as e:
            return running._unknown(own, str(e)), {}
        running._saw(own.run_id, status)
        return status, raw

    def _leased(self, run_id: str, rank: int, told: Mapping[str, Any]) -> tuple[str, ...]:
        """Which devices a node has leased, by what it tells; by what it told last where it was not asked."""
        group = told.get("group")
        listed = group.get("devices") if isinstance(group, dict) else None
        if isinstance(listed, list):
            self._devices[run_id, rank] = tuple(map(str, listed))
        return self._devices.get((run_id, rank), ())

    # Follow

    def logs(self, handle: Handle, offset: int = 0, follow: bool = False) -> Iterator[bytes]:
        """Of several machines the log of node 0; those of the others are fetched with their outputs."""
        if follow or not self._several(handle):
            yield from super().logs(handle, offset, follow)
            return
        running, own, _ = self._parts(handle)[0]
        yield from running.logs(own, offset)

    def attached(self, handle: Handle, offset: int = 0) -> Iterator[bytes | Status]:
        if not self._several(handle):
            yield from super().attached(handle, offset)
            return
        running, own, _ = self._parts(handle)[0]
        told: Status | None = None
        for item in running.beating(own, offset):
            if isinstance(item, bytes):
                yield item
                continue
            known = {} if item is None else {0: item}
            status = self._together(handle, known, GLANCE)
            if status != told:
                told = status
                yield status
        while told is None or not told.state.final:
            time.sleep(AGAIN)
            status = self._together(handle, {}, GLANCE)
            if status != told:
                told = status
                yield status

    # Afterwards

    def fetch(self, handle: Handle, into: Path) -> Sequence[Path]:
        """What node 0 left goes where that of one machine would, that of the others below `nodes/`, each
        in a folder `RANK-MACHINE` of the same form."""
        if not self._several(handle):
            return super().fetch(handle, into)

        def one(rank: int, running: Running, own: Handle, machine: Machine) -> Sequence[Path]:
            if rank and self._look(running, own, machine)[0].state is State.COMMITTED:
                return []  # it never started there, so nothing is left
            folder = into if rank == 0 else into / "nodes" / f"{rank}-{machine.name}"
            return running.fetch(own, folder)

        parts = self._parts(handle)
        calls = {str(rank): functools.partial(one, rank, *part) for rank, part in enumerate(parts)}
        got = side_by_side(calls, LONGEST)
        found: list[Path] = []
        for rank in range(len(parts)):
            answer = got[str(rank)]
            if isinstance(answer, BaseException):
                raise answer
            found += answer
        return sorted(found)

    def cancel(self, handle: Handle) -> None:
        """Ask all to end; every one that can be asked is, before it is said of another that it cannot."""
        self._all(handle, "cancel")

    def cleanup(self, handle: Handle) -> None:
        self._all(handle, "cleanup")

    def _all(self, handle: Handle, what: str) -> None:
        if not self._several(handle):
            getattr(super(), what)(handle)
            return
        parts = self._parts(handle)
        calls = {m.name: functools.partial(getattr(running, what), own) for running, own, m in parts}
        for answer in side_by_side(calls, 60.0).values():
            if isinstance(answer, BaseException):
                raise answer
