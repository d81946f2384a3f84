"""Start one run on several machines: held on all of them first, then let go by all, or on none."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from compute_router.backend import Handle, Node, State, Status, Submission
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
EXTEND = 20.0
"""Seconds after which a hold is made to last anew while another machine is still getting ready."""
OVER = 3
"""Times that a hold may have ended, though nobody gave it up, before that is told."""
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
    identity: str = ""
    """What tells this computer from all others, whatever a client calls it."""
    asked: bool = False
    status: Status | None = None
    refusal: RouteError | None = None

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
        in_turn, over = False, 0
        while True:
            try:
                self._hold(handle, in_turn=in_turn)
                self._go()
                return
            except SubmitUnknown:
                # What is held still serves whoever asks again, or ends by itself.
                raise
            except RouteError as e:
                # Waiting with one machine in hand for another would keep it from everybody, and two who
                # do so wait for each other for ever.
                self._release(e)
                over += e.told == "NOT_HELD"
                if e.told == "NOT_HELD" and over < OVER:
                    continue
                if e.told not in ("BUSY", "FOREIGN"):
                    raise
                refusal = e
            if until is not None and time.monotonic() >= until:
                raise refusal
            self._tell()
            in_turn = True
            pause = random.uniform(*PAUSES)
            time.sleep(pause if until is None else max(0.0, min(pause, until - time.monotonic())))

    def _tell(self) -> None:
        """Say which machines are waited for, and the place that a start would have in line there."""
        nodes = []
        for rank, part in enumerate(self.parts):
            no = part.refusal
            state = State.COMMITTED if no is None else State.WAITING
            what = "" if no is None else no.what.removeprefix(f"{part.machine.name}: ")
            place = None if no is None else no.position
            nodes.append(
                Node(rank=rank, name=part.machine.name, state=state.value, detail=what, position=place)
            )
        said = [f"{node.name}: {node.detail}" for node in nodes if node.detail]
        self.submission.waits(
            Status(
                state=State.WAITING,
                attempt=self.submission.attempt,
                reason="busy",
                detail="; ".join(said)[:500],
                position=max((node.position or 0 for node in nodes), default=0) or None,
                nodes=tuple(nodes),
            )
        )

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
                    part.identity = str(session.hello.get("machine_id") or "")
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

    def _hold(self, handle: Handle, *, in_turn: bool) -> None:
        """See every start held, or begun by another client already. Raises the first refusal.

        `in_turn` leases the machines one by one, in an order that is the same for every client, and stops
        at the first that is busy: several groups that want the same machines then cannot keep each other
        from them for ever, and a machine that is free is not taken each time for one that is not.
        """
        for part in self.parts:
            part.asked, part.status, part.refusal = False, None, None
        if in_turn:
            for part in sorted(self.parts, key=lambda part: (part.identity, part.machine.name)):
                self._lease(part, handle)
        getting, ready = len(self.parts), threading.Event()
        lock = threading.Lock()

        def hold(part: Part) -> None:
            nonlocal getting
            try:
                self._hold_one(part, handle)
                with lock:
                    getting -= 1
                    if not getting:
                        ready.set()
                # Another one may take as long as it likes: its import probes, an environment on a slow disk.
                while not ready.wait(EXTEND):
                    if part.held:
                        self._extend(part)
            except BaseException:
                ready.set()
                raise

        self.each({p.machine.name: functools.partial(hold, p) for p in self.parts})

    def _lease(self, part: Part, handle: Handle) -> None:
        part.asked = True
        try:
            part.status = self._ask_start(part, handle)
        except RouteError as e:
            part.refusal = e
            raise

    def _hold_one(self, part: Part, handle: Handle) -> None:
        if part.status is None:
            self._lease(part, handle)
        asked = 1
        while (status := part.status) is not None and not part.held and not part.begun:
            if status.state is State.COMMITTED:
                # Its hold came to an end at this very moment, or its waiter died before anything started.
                if asked == 3:
                    raise Unavailable(f"{part.machine.name}: {status.detail or 'it cannot be held'}")
                asked += 1
                self._lease(part, handle)
            time.sleep(SETTLING)
            part.status = self._look(part)

    def _extend(self, part: Part, facts: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Have a hold last its whole time from now on; what node 0 tells the others. Raises `Unavailable`
        told NOT_HELD if it is over."""
        body = json.dumps(dict(facts)).encode() if facts else b""

        def ask(session: Session) -> dict[str, Any]:
            run = self.submission
            head = session.ask("extend", body, run_id=run.id, attempt=run.attempt).head
            return {key: head[key] for key in FACTS if key in head}

        return ask_twice(part.sessions, part.machine.name, ask)

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
        why = cause.what[:300]

        def release(part: Part) -> None:
            with contextlib.suppress(RouteError, Broken):
                run = self.submission
                part.sessions.ask("release", run_id=run.id, attempt=run.attempt, why=why)

        # One whose answer never came may hold it all the same.
        self.each({p.machine.name: functools.partial(release, p) for p in self.parts if p.asked})

    # Let go

    def _go(self) -> None:
        """Let all go. Until node 0 is, nothing has started; from then on every member starts that can be
        reached, by this client or by node 0 itself: see docs/protocol.md.

        Raises `Unavailable` told NOT_HELD, with nothing started, if a hold is over by now.
        """
        first, *others = self.parts
        over = [p.status for p in self.parts if p.status is not None and p.status.state.final]
        if any(status.state is not State.SUCCEEDED for status in over):
            # It was let go before, and has failed in part: what was held now would run alone.
            self._release(Unavailable("the attempt is over on another machine"))
            return
        held = [part for part in others if part.held]
        facts = self._extend(first)
        self.each({p.machine.name: functools.partial(self._extend, p, facts) for p in held})
        facts = self.running.go(
            first.sessions, first.machine.name, self.submission.id, self.submission.attempt
        )
        self.each({p.machine.name: functools.partial(self._go_one, p, facts) for p in held})

    def _go_one(self, part: Part, facts: Mapping[str, Any]) -> None:
        # It hears of it from node 0 as well; what became of it is told by its status.
        with contextlib.suppress(RouteError):
            self.running.go(
                part.sessions, part.machine.name, self.submission.id, self.submission.attempt, facts
            )


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
