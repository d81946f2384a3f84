"""Record one command: write down what is known of it, start it in place, pass signals on to it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from compute_router import errors
from compute_router.backend import Hardware, Offer, State, Status, Surface
from compute_router.durable import held
from compute_router.journal import Journal, OnEvent
from compute_router.planning import Plan
from compute_router.policy import Decision, Outcome, Ranked
from compute_router.recording import RECORDED
from compute_router.recording.place import Recorded, Settings, root_for
from compute_router.records import new_run_id
from compute_router.starting import start

if TYPE_CHECKING:
    from compute_router.recording.launchers import Found
    from compute_router.router import Router
    from compute_router.snapshot import Snapshot
    from compute_router.store import RunFolder
    from compute_router.workload import Workload

__all__ = ["Cancelled", "Command", "NotRecorded", "Recording", "Signals"]

PATIENCE = 10.0
"""Seconds that git may take before the command is started without its facts."""
OFFER = "here"
OnLog = Callable[[bytes], None]


class NotRecorded(Exception):
    """Nothing was started, and why: the command may be run without being recorded."""

    def __init__(self, error: errors.RouteError) -> None:
        super().__init__(str(error))
        self.error = error


class Cancelled(Exception):
    """A signal came before the command was started, so it never was."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What is to be recorded. `surface` is that which the user named, None = what the launcher tells;
    `stdin` a descriptor above 2 that the command reads, or -1; `hardware` what it may use here."""

    workload: Workload
    launcher: Found
    hardware: Hardware
    surface: Surface | None = None
    ranks: tuple[str | None, int | None] = (None, None)
    code_why: str = ""
    keep: bool = False
    stdin: int = -1

    @property
    def facts(self) -> dict[str, Any]:
        """What the receipt says of who started it."""
        told = self.surface or self.launcher.surface
        return {
            "launcher": self.launcher.name,
            "ids": dict(self.launcher.ids),
            "surface": told.value if told else None,
            "surface_src": "requested" if self.surface else "derived",
            "surface_why": self.launcher.why,
            "code_why": self.code_why,
        }


class Recording:
    """One command from its first record to its receipt. Signals that come are kept until it runs."""

    def __init__(self, router: Router, command: Command, on_event: OnEvent | None = None) -> None:
        self._router, self._command, self._on_event = router, command, on_event
        self._root: Path | None = None
        self.run: RunFolder | None = None
        self.backend: Recorded | None = None
        self.pending: list[int] = []
        self.signalled: list[int] = []
        self.gone = False
        """Whether the run's records were removed while the command ran: then there is no receipt."""

    # Signals

    def heed(self, number: int) -> None:
        """Pass a signal on to the work at once, or keep it until there is some. For a signal handler."""
        self.signalled.append(number)
        if not self._pass_on(number):
            self.pending.append(number)

    def _pass_on(self, number: int) -> bool:
        if self.run is None or self._root is None:
            return False
        from compute_router.supervisor import inplace, runs

        known = self.backend.outcome.work if self.backend is not None else None
        return inplace.pass_on(runs.Attempt(runs.Run(str(self._root), self.run.id), 1), number, known)

    @property
    def asked_to_end(self) -> int:
        """The first signal that came and asks a command to end; 0 if none did."""
        from compute_router.supervisor.inplace import ENDING

        return next((number for number in self.signalled if number in ENDING), 0)

    # Start

    def begin(self) -> RunFolder:
        """Start the command. On return it runs, or has ended already.

        Raises `NotRecorded` where it was surely not started, `Cancelled` where a signal came first,
        `SubmitUnknown` where nobody can tell. Whatever else goes wrong, it was started.
        """
        try:
            run = self._begin()
        except Cancelled:
            raise
        # A recorder must not cost the work, whatever is wrong with the recorder, its store or a plugin.
        except Exception as e:
            if self.run is not None and self._started:
                run = self.run
            elif isinstance(e, errors.SubmitUnknown):
                raise
            else:
                self._not_recorded(e)
        for number in self.pending:
            self._pass_on(number)
        return run

    @property
    def _started(self) -> bool:
        backend = self.backend
        return backend is not None and (backend.handle is not None or backend.outcome.begun)

    def _not_recorded(self, e: Exception) -> NoReturn:
        error = e if isinstance(e, errors.RouteError) else errors.StoreError(f"{type(e).__name__}: {e}")
        if self.run is not None:
            detail = f"the command was run without being recorded: {error.what}"
            with contextlib.suppress(errors.RouteError):
                self._journal(self.run).became(_over(State.LOST, "not_recorded", detail))
        raise NotRecorded(error) from e

    def _begin(self) -> RunFolder:
        workload, store = self._command.workload, self._router.store
        gathered: list[Snapshot] = []
        looking = threading.Thread(
            target=lambda: gathered.append(_code(Path(workload.entry.root))), name="git", daemon=True
        )
        looking.start()
        store.writable()
        self._root, free = root_for(store.home)
        self.backend = backend = Recorded(Settings(), store.home)
        backend.root, backend.stdin = self._root, self._command.stdin
        offer = self._offer(free)
        backend.expect(offer)
        run_id = new_run_id()
        labels = {RECORDED: self._command.launcher.name}
        self.run = run = store.create(run_id, workload, key=run_id, labels=labels)
        journal = self._journal(run)
        with held(run.file("run")):
            plan = Plan(workload=workload, offers=(), decision=self._decision())
            plan.save(run)
            journal.tell("decided", policy=plan.decision.policy, sentence=plan.decision.sentence)
            until = time.monotonic() + PATIENCE + 1
            while not gathered and looking.is_alive() and time.monotonic() < until and not self.asked_to_end:
                looking.join(0.02)
            if self.asked_to_end:
                detail = "asked to end before it was started"
                journal.became(_over(State.CANCELLED, "signal_passed_on", detail))
                raise Cancelled
            late = _nothing(Path(workload.entry.root), f"git did not answer within {PATIENCE:.0f} s")
            start(
                run,
                workload,
                plan.decision,
                offer_of=lambda name, offer_id: offer,
                backend_of=lambda name: backend,
                snapshot=gathered[0] if gathered else late,
                secrets={},
                key=run.key,
                attempt=1,
                journal=journal,
                recorded=self._command.facts,
            )
        return run

    def _journal(self, run: RunFolder) -> Journal:
        return Journal(run, self._router.registry, self._on_event)

    # Follow

    def follow(self, on_log: OnLog, warn: Callable[[str], None]) -> Status:
        """Hand on the command's output as it comes; its final status. Where the store cannot be written
        any more the supervisor is asked without it; where the supervisor's own records are removed, the
        command is waited for all the same, and `gone` says so. Raises `HandleLost` if nobody knows how
        it ended."""
        assert self.backend is not None
        seen = 0

        def tell(data: bytes) -> None:
            nonlocal seen
            seen += len(data)
            on_log(data)

        lost, status = errors.HandleLost("the run's records are gone"), None
        try:
            status = self._followed(tell, lambda: seen, warn)
        except errors.HandleLost as e:
            lost = e
        # Of records that are being removed what is left can look as if the supervisor had died.
        if status is None or status.state is State.LOST:
            known = self.backend.outcome.wait(seen, on_log)
            self.gone = known is not None
            status = known or status
        if status is None:
            raise lost
        return status

    def _followed(self, tell: OnLog, seen: Callable[[], int], warn: Callable[[str], None]) -> Status | None:
        """What the supervisor says of the end; None if it was never heard of."""
        assert self.run is not None
        assert self.backend is not None
        handle = self.backend.handle
        if self.run.has("handle"):
            try:
                return self._router.attach(self.run, on_log=tell, on_event=self._on_event)
            except errors.BackendError:
                raise
            # The store, or a plugin that is told of events: neither may cost the output or the outcome.
            except Exception as e:
                warn(f"{e}; the command goes on")
        if handle is None:
            return None
        last = Status(state=State.UNKNOWN)
        for item in self.backend.attached(handle, seen()):
            if isinstance(item, Status):
                last = item
            else:
                tell(item)
        return last

    def _offer(self, free: int) -> Offer:
        from compute_router.machines.specification import LOG_CAP_BYTES

        launcher, ranks = self._command.ranks
        block = {
            "cwd": self._command.workload.entry.root,
            "stdin": self._command.stdin >= 0,
            "keep": self._command.keep,
            "launcher": launcher,
            "ranks": ranks,
            "log_cap_bytes": min(LOG_CAP_BYTES, free // 4),
        }
        return Offer(
            backend=RECORDED,
            id=OFFER,
            surface=self._command.surface or self._command.launcher.surface or Surface.LOCAL,
            hardware=self._command.hardware,
            data=block,
        )

    def _decision(self) -> Decision:
        name = self._command.launcher.name
        who = "nothing is known of what" if name == "unknown" else name
        sentence = f"nobody decided: {who} started this command here, route only recorded it"
        return Decision(
            policy="none",
            policy_version="0",
            workload_digest=self._command.workload.digest,
            asked_at_us=time.time_ns() // 1000,
            outcome=Outcome.RUN,
            sentence=sentence,
            ranked=(Ranked(backend=RECORDED, offer_id=OFFER, rank=1, rule="recorded", sentence=sentence),),
        )


def _over(state: State, reason: str, detail: str) -> Status:
    return Status(state=state, reason=reason, detail=detail[:500], ended_us=time.time_ns() // 1000)


def _nothing(root: Path, note: str) -> Snapshot:
    from compute_router.snapshot import Snapshot

    return Snapshot(root=root, entries=(), tree_sha256="", note=note)


def _code(folder: Path) -> Snapshot:
    """What git says about the folder; nothing is copied. Never raises: what it cannot say is a note."""
    try:
        from compute_router.recording.code import git_facts

        git, note = git_facts(folder, deadline=PATIENCE)
    # Whatever ails git or the disk, it must not cost the work.
    except Exception as e:
        return _nothing(folder, f"git could not be asked: {str(e)[:200]}")
    return dataclasses.replace(_nothing(folder, note), git=git)


class Signals:
    """While entered, signals that would end, stop or tell this process go to `heed`.

    One that was ignored from the beginning (nohup, a background command) stays so. A stop from the
    terminal stops the work too, and its continuation wakes it.
    """

    PASSED = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")

    def __init__(self, heed: Callable[[int], None]) -> None:
        self._heed = heed
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for name in (*self.PASSED, "SIGTSTP"):
            number = getattr(signal, name)
            if signal.getsignal(number) is not signal.SIG_IGN:
                handler = self._stopped if name == "SIGTSTP" else self._came
                self._old[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old.clear()

    def _came(self, number: int, frame: Any) -> None:
        self._heed(number)

    def _stopped(self, number: int, frame: Any) -> None:
        self._heed(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._heed(signal.SIGCONT)
