"""The backend `ssh`: runs work on machines that somebody owns or reserves and that answer by SSH."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compute_router.backend import (
    Backend,
    Handle,
    Health,
    HealthCheck,
    NoOffer,
    Offer,
    Power,
    State,
    Submission,
    Surface,
)
from compute_router.errors import Broken, Conflict, Rejected, RouteError, Unavailable
from compute_router.gather import side_by_side
from compute_router.hookspecs import hookimpl
from compute_router.machines.contract import Interpreter, Machine, MachineBackend
from compute_router.machines.entry import MachineEntry
from compute_router.records import Record, key_run_id
from compute_router.workload import Workload

if TYPE_CHECKING:
    from compute_router.machines.memory import Memory

__all__ = ["SSHBackend", "SSHSettings", "route_backends"]

PATIENCE, AGAIN, GLANCE = 8.5, 3.0, 1.8
"""Seconds that one machine may take to be asked for offers, one that was silent the last time, and to be
looked at for health."""
ADD = "route machine add NAME USER@ADDRESS"
NONE = "no machine is configured"


class SSHSettings(Record, frozen=True, kw_only=True):
    """`machines`: those of `[machines.NAME]`, by name. `only`: the names of those that work may be
    offered (default: all); runs on the others are still found."""

    machines: dict[str, MachineEntry] = {}
    only: list[str] = []


class SSHBackend(MachineBackend):
    """Machines reached by SSH: nothing is installed there but Python 3."""

    name = "ssh"
    surface = Surface.RESERVED
    Settings = SSHSettings
    powers = frozenset(
        {
            *(Power.DETACH, Power.FOLLOW, Power.CANCEL, Power.SECRETS, Power.VOLUMES, Power.RESUME),
            Power.MULTI_NODE,
        }
    )
    settings: SSHSettings

    def __init__(self, settings: Record, home: Path) -> None:
        super().__init__(settings, home)
        self._machines: dict[str, Machine] = {}
        self._lock = threading.Lock()

    @functools.cached_property
    def entries(self) -> dict[str, MachineEntry]:
        """The machines of this backend: those that are not TPUs, which are reached in another way."""
        return {
            name: entry
            for name, entry in sorted(self.settings.machines.items())
            if entry.has is None or entry.has.family != "tpu"
        }

    @functools.cached_property
    def _memory(self) -> Memory:
        from compute_router.machines.memory import Memory

        return Memory(self.home)

    def reach(self, name: str, entry: MachineEntry) -> Machine:
        """The machine of an entry of the configuration. No I/O."""
        from compute_router.machines.reaching import reach

        return reach(name, entry)

    def machine(self, name: str) -> Machine:
        """The machine of that name, one and the same each time. Raises `Rejected` if there is none now."""
        with self._lock:
            if name not in self._machines:
                if name not in self.entries:
                    raise Rejected(f"machine {name!r} is not configured any more", mend=ADD)
                self._machines[name] = self.reach(name, self.entries[name])
            return self._machines[name]

    def places(self) -> Sequence[Machine]:
        return [self.machine(name) for name in self.entries]

    def machines(self, offer: Offer) -> Sequence[Machine]:
        return [self.machine(name) for name in offer.data.get("machines", ())]

    def leases(self, offer: Offer) -> Sequence[str]:
        from compute_router.machines.offering import EXCLUSIVE

        entries = (self.entries.get(name) for name in offer.data.get("machines", ()))
        return (EXCLUSIVE,) if any(entry and entry.exclusive for entry in entries) else ()

    # Python

    def interpreter_on(self, machine: Machine, submission: Submission) -> Interpreter:
        data, workload = submission.offer.data, submission.workload
        if workload.dependencies and workload.python is None:
            from compute_router.machines.environments import built_on

            found = built_on(self._running.sessions(machine), workload, self.home)
            self._memory.built(machine.name, workload, found)
            return found
        given = workload.python not in (None, "current")
        return Interpreter(
            python=(data.get("python") or {}).get(machine.name) or "python3",
            stack=dict(data.get("stack") or {}),
            source="path" if given else "machine",
        )

    def environment(self, workload: Workload) -> Mapping[str, Any] | None:
        if workload.python is not None or not workload.dependencies:
            return super().environment(workload)
        many = len(workload.dependencies)
        sentence = f"built by uv on the machine from {many} {'dependency' if many == 1 else 'dependencies'}"
        sentence += ", unless one of the same lock is there"
        return {"source": "uv", "python": None, "lock_sha256": None, "sentence": sentence}

    # Health

    def health(self) -> Health:
        if not self.entries:
            return Health(backend=self.name, ok=False, set_up=False, summary=f"{NONE}: {ADD}")
        from compute_router.machines.checking import check_all

        looked = check_all({n: (self.machine(n), e) for n, e in self.entries.items()}, GLANCE, quick=True)
        checks = [_check(name, found) for name, found in looked.items()]
        bad = [check for check in checks if not check.ok]
        many = len(checks)
        summary = f"{many - len(bad)} of {many} machines answer" if many > 1 else checks[0].seen
        if bad and many > 1:
            summary += f"; {bad[0].name}: {bad[0].seen}"
        return Health(backend=self.name, ok=len(bad) < many, summary=summary, checks=tuple(checks))

    # Offers

    def offers(self, workload: Workload) -> Sequence[Offer | NoOffer]:
        if not self.entries:
            return [self._no("no_machines", NONE, ADD, set_up=False)]
        unknown = sorted(set(self.settings.only) - set(self.entries))
        if unknown:
            known = ", ".join(self.entries)
            return [
                self._no("only", f"only = names {unknown[0]!r}, which is not configured", f"one of: {known}")
            ]
        if workload.dependencies and workload.python is None:
            from compute_router.environment import find_uv

            try:
                find_uv()
            except RouteError as e:
                return [self._no("dependencies", e.what, e.mend)]
        names = self.settings.only or list(self.entries)
        calls = {name: functools.partial(self._in_time, name, workload) for name in names}
        got = side_by_side(calls, PATIENCE)
        found = {name: self._heard(name, got.get(name)) for name in names}
        if workload.needs.nodes == 1:
            return [answer for answers in found.values() for answer in answers]
        return self._together(workload, found)

    def _together(
        self, workload: Workload, found: Mapping[str, Sequence[Offer | NoOffer]]
    ) -> Sequence[Offer | NoOffer]:
        """The offers of several machines for one run over all of them."""
        from compute_router.machines.grouping import group_offers

        return group_offers(self.name, workload, self.entries, found)

    def meeting(self, machine: Machine) -> tuple[str, str | None]:
        from compute_router.machines.grouping import meeting

        entry = self.entries.get(machine.name)
        return super().meeting(machine) if entry is None else meeting(entry)

    def _no(self, code: str, reason: str, mend: str, *, set_up: bool = True) -> NoOffer:
        return NoOffer(backend=self.name, code=code, reason=reason, mend=mend, set_up=set_up)

    def _in_time(self, name: str, workload: Workload) -> Sequence[Offer | NoOffer]:
        """What a machine offers. One that was silent the last time holds nobody up for long again."""
        if not self._memory.is_hurried(name):
            return self._ask(name, workload)
        answer = side_by_side({name: functools.partial(self._ask, name, workload)}, AGAIN).get(name)
        if isinstance(answer, BaseException):
            raise answer
        if answer is None:
            raise _late(name, AGAIN)
        return answer

    def _ask(self, name: str, workload: Workload) -> Sequence[Offer | NoOffer]:
        from compute_router.machines.placing import ask, machine_offers

        sessions = self._running.sessions(self.machine(name))
        built = bool(workload.dependencies) and workload.python is None
        python = "python3" if workload.python in (None, "current") else workload.python
        return machine_offers(
            self,
            name,
            self.entries[name],
            ask(sessions),
            workload,
            python=None if built else python,
            stack=self._memory.environment(name, workload) if built else None,
            rtt_us=sessions.clock[0] if sessions.clock else None,
        )

    def _heard(
        self, name: str, answer: Sequence[Offer | NoOffer] | BaseException | None
    ) -> Sequence[Offer | NoOffer]:
        """The answer of one machine, or why it has none; and that it was seen, or was not."""
        from compute_router.machines.offering import No
        from compute_router.machines.placing import refused, sentence

        if answer is None:
            answer = _late(name, PATIENCE)
        if isinstance(answer, (RouteError, Broken)):
            no = sentence(answer)
            if no.code == "unreachable":
                why = no.reason.removeprefix(f"{name}: ")
                no = No(no.code, f"{name} is {self._memory.silent(name)}: {why}", no.mend)
            return [refused(self, name, no)]
        if isinstance(answer, BaseException):
            raise answer
        self._memory.answered(name)
        return answer

    # One start for one key, on whichever machine

    def submit(self, submission: Submission) -> Handle:
        if submission.id == key_run_id(submission.key) and len(self.entries) > 1:
            self._nowhere_else(submission)
        return super().submit(submission)

    def _nowhere_else(self, submission: Submission) -> None:
        """See that no other machine has this key, which another client may have given to a run there.
        Raises `Conflict` if one has, `Unavailable` if one cannot be asked."""
        from compute_router.machines.others import unsure

        here = submission.offer.data.get("machines", ())
        others = [name for name in self.entries if name not in here]
        calls = {name: functools.partial(self._knows, name, submission) for name in others}
        got = side_by_side(calls, PATIENCE)
        for name in others:
            known = got.get(name) if name in got else _late(name, PATIENCE)
            if known is True:
                raise Conflict(
                    f"the run of key {submission.key!r} was started on {name} already",
                    mend=f"use another --key, or look at it: route status {submission.id}",
                )
            if isinstance(known, BaseException):
                raise unsure(name, submission.key, known)

    def _knows(self, name: str, submission: Submission) -> bool:
        sessions = self._running.sessions(self.machine(name))
        told = sessions.ask("status", run_ids=[submission.id]).head.get("statuses") or {}
        found = told.get(submission.id)
        # Committed only: its submitter was refused there, and went on to the next place.
        return found is not None and found.get("state") != State.COMMITTED


def _late(name: str, seconds: float) -> Unavailable:
    return Unavailable(f"no answer within {seconds:g} s", mend=f"route machine check {name}")


def _check(name: str, found: Sequence[HealthCheck]) -> HealthCheck:
    """The findings of one machine as one."""
    bad = [check for check in found if not check.ok]
    seen = bad[0].seen if bad else "; ".join(check.seen for check in found)
    mend = (bad[0].mend or f"route machine check {name}") if bad else ""
    return HealthCheck(name=name, ok=not bad, seen=seen, mend=mend)


@hookimpl
def route_backends() -> Sequence[type[Backend]]:
    """The backend this module brings."""
    return [SSHBackend]
