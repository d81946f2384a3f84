"""Start one run on several machines: held on all of them first, then let go by all, or on none."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from compute_router.backend import Handle, State, Status, Submission
from compute_router.errors import Broken, CredentialsError, RouteError, SubmitUnknown, Unavailable
from compute_router.gather import side_by_side
from compute_router.machines.contract import Machine
from compute_router.machines.others import keep
from compute_router.machines.refusing import Resend
from compute_router.machines.session import Session, Sessions
from compute_router.machines.shipping import Tries, finish, ship
from compute_router.machines.specification import specification

if TYPE_CHECKING:
    from compute_router.machines.grouped import Grouped

__all__ = ["FACTS", "HOLD_US", "Starting", "ask_twice"]

HOLD_US = 90_000_000
"""How long a machine holds a start for the others; see docs/protocol.md."""
FRESH = 60.0
"""Seconds after which a hold is not relied upon any more, and taken anew."""
SETTLING = 0.1
"""Seconds between two looks at a start that is about to be held."""
PAUSES = (0.5, 1.5)
"""Seconds between two tries for machines of which one is busy: at least, and at most."""
FACTS = ("link_port", "master_port", "token")
T = TypeVar("T")


@dataclasses.dataclass
class Part:
    """One machine's part of a start."""

    machine: Machine
    sessions: Sessions
    spec: bytes
    environment: Mapping[str, Any]
    status: Status | None = None
    held_at: float = 0.0

    @property
    def held(self) -> bool:
        return self.status is not None and self.status.reason == "held"

    @property
    def begun(self) -> bool:
        status = self.status
        return status is not None and (status.state.final or status.state in (State.RUNNING, State.ORPHANED))


class Starting:
    """One submission to several machines, in rank order."""

    def __init__(self, running: Grouped, submission: Submission, machines: Sequence[Machine]) -> None:
        self.running, self.submission, self.machines = running, submission, machines
        workload = submission.workload
        if missing := [name for name in workload.secrets if name not in submission.secrets]:
            raise CredentialsError(f"missing secret: {missing[0]}", mend=f"export {missing[0]}=...")
        self.secrets = json.dumps({name: submission.secrets[name] for name in workload.secrets}).encode()
        self.parts: list[Part] = []
        self.image_us = 0

    def run(self, handle: Handle) -> None:
        """Start it. What a return and each raise mean: `Backend.submit`."""
        began = time.monotonic_ns()
        prepared = self.each({m.name: functools.partial(self._prepare, n, m) for n, m in self._ranked()})
        self.image_us = max((us for _, us in prepared), default=(time.monotonic_ns() - began) // 1000)
        self.parts = [part for part, _ in prepared]
        self.each({p.machine.name: functools.partial(self._deliver, p) for p in self.parts})
        wait = self.submission.wait_us
        until = None if wait is None else time.monotonic() + wait / 1e6
        while True:
            try:
                self._hold(handle)
                if self._go():
                    return
                refusal: RouteError = Unavailable("the machines were not ready at one time", mend="try again")
            except SubmitUnknown:
                # What is held still serves whoever asks again, or ends by itself.
                raise
            except RouteError as e:
                # Waiting with one machine in hand for another would keep it from everybody, and two who
                # do so wait for each other for ever.
                self._release(e)
                if e.told not in ("BUSY", "FOREIGN"):
                    raise
                refusal = e
            if until is not None and time.monotonic() >= until:
                raise refusal
            pause = random.uniform(*PAUSES)
            time.sleep(pause if until is None else max(0.0, min(pause, until - time.monotonic())))

    def _ranked(self) -> list[tuple[int, Machine]]:
        return list(enumerate(self.machines))

    def each(self, calls: Mapping[str, Callable[[], T]]) -> list[T]:
        """Call all side by side and wait for all; their results in order, or the first refusal in order.
        What may have started something is told before anything else."""
        got = side_by_side(calls, None)
        failed = [got[name] for name in calls if isinstance(got[name], BaseException)]
        for e in sorted(failed, key=lambda e: not isinstance(e, SubmitUnknown)):
            raise e  # type: ignore[misc]
        return [got[name] for name in calls]  # type: ignore[misc]

    # Everything up to the commit: nothing can start by it

    def _prepare(self, rank: int, machine: Machine) -> tuple[Part, int]:
        backend, submission = self.running.backend, self.submission
        began = time.monotonic_ns()
        interpreter = backend.interpreter_on(machine, submission)
        spent = (time.monotonic_ns() - began) // 1000
        address, _ = backend.meeting(self.machines[0])
        _, interface = backend.meeting(machine)
        group = {
            "nodes": len(self.machines),
            "node_rank": rank,
            "members": [each.name for each in self.machines],
            "address": address,
            "interface": interface,
            "hold_us": HOLD_US,
        }
        spec = specification(submission, interpreter, backend.leases(submission.offer), group=group)
        environment = {"built": interpreter.built, "build_us": interpreter.build_us}
        return Part(machine, self.running.sessions(machine), spec, environment), spent

    def _deliver(self, part: Part) -> None:
        cause: Exception | None = None
        tries = Tries()
        for fresh in tries:
            try:
                with part.sessions.use(fresh=fresh) as session:
                    finish(session, ship(session, self.submission, part.spec, tries=tries))
                return
            except Broken as e:
                cause = e
            except Resend as e:
                cause = e
                time.sleep(0.05)
            except Unavailable as e:
                if not tries.underway:
                    raise
                cause = e
        raise Unavailable(
            f"the files did not arrive whole on {part.machine.name}: {cause}",
            mend="try again: what arrived there is kept",
        ) from cause

    # Hold

    def _hold(self, handle: Handle) -> None:
        """See every start held, or begun by another client already. Raises the first refusal."""
        self.each({p.machine.name: functools.partial(self._hold_one, p, handle) for p in self.parts})

    def _hold_one(self, part: Part, handle: Handle) -> None:
        part.status = self._ask_start(part, handle)
        asked, part.held_at = 1, time.monotonic()
        while not part.held and not part.begun:
            if part.status.state is State.COMMITTED:
                # Its hold came to an end at this very moment, or its waiter died before anything started.
                if asked == 3:
                    raise Unavailable(f"{part.machine.name}: {part.status.detail or 'it cannot be held'}")
                asked, part.held_at = asked + 1, time.monotonic()
                part.status = self._ask_start(part, handle)
            time.sleep(SETTLING)
            part.status = self._look(part)

    def _ask_start(self, part: Part, handle: Handle) -> Status:
        submission = self.submission

        def start(session: Session) -> Status:
            keep(session, submission, handle)
            frame = session.ask(
                "start",
                self.secrets,
                run_id=submission.id,
                attempt=submission.attempt,
                wait_us=0,
                spec_sha256=hashlib.sha256(part.spec).hexdigest(),
                environment=dict(part.environment),
            )
            return self.running.told(frame.head.get("status"))

        # Held, it has started nothing: an answer that never came is no unknown outcome.
        return ask_twice(part.sessions, part.machine.name, start, SubmitUnknown)

    def _look(self, part: Part) -> Status:
        told = part.sessions.ask("status", run_ids=[self.submission.id]).head.get("statuses")
        return self.running.told((told or {}).get(self.submission.id))

    def _release(self, cause: RouteError) -> None:
        """Give up what is held. Whoever cannot be reached now does so by itself when its time is up."""
        held = [part for part in self.parts if part.held]
        why = cause.what[:300]

        def release(part: Part) -> None:
            part.sessions.ask("release", run_id=self.submission.id, attempt=self.submission.attempt, why=why)

        for part in held:
            part.status = None
            try:
                release(part)
            except (RouteError, Broken):
                continue

    # Let go

    def _go(self) -> bool:
        """Let all go, node 0 first, whose answer tells the others where to meet. False, with nothing
        started, if a hold has become too old to rely on meanwhile."""
        first, *others = self.parts
        over = [p.status for p in self.parts if p.status is not None and p.status.state.final]
        if any(status.state is not State.SUCCEEDED for status in over):
            # It was let go before, and has failed in part: what was held now would run alone.
            self._release(Unavailable("the attempt is over on another machine"))
            return True
        held = [part.held_at for part in self.parts if part.held]
        if held and time.monotonic() - min(held) > FRESH:
            self._release(Unavailable("another machine took too long to get ready"))
            return False
        if not first.held and not first.begun:
            return False
        facts = self.running.go(
            first.sessions, first.machine.name, self.submission.id, self.submission.attempt
        )
        calls = {p.machine.name: functools.partial(self._go_one, p, facts) for p in others if p.held}
        self.each(calls)
        return True

    def _go_one(self, part: Part, facts: Mapping[str, Any]) -> None:
        submission = self.submission
        try:
            self.running.go(part.sessions, part.machine.name, submission.id, submission.attempt, facts)
        except RouteError as e:
            if e.told != "NOT_HELD":
                raise SubmitUnknown(
                    f"the run was let go on {self.machines[0].name}, and whether on {part.machine.name} is "
                    f"not known: {e.what}",
                    mend=f"route status {submission.id} asks again",
                ) from e
            # Node 0 has been let go, so its link ends the run; what became of it is told by its status.


def ask_twice(
    sessions: Sessions, name: str, ask: Callable[[Session], T], unknown: type[RouteError] = Unavailable
) -> T:
    """Ask what may be asked again and again, over fresh sessions where one breaks."""
    cause: Exception | None = None
    for fresh in (False, True, True):
        try:
            with sessions.use(fresh=fresh) as session:
                return ask(session)
        except Broken as e:
            cause = e
    raise unknown(f"the connection to {name} broke: {cause}", mend="route status asks again") from cause
