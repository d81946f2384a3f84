"""Drives a study: one run after another in the planned order; what counted is never repeated.

Every step is written down before it is taken and has a key of its own, so that a driver that is killed
at any moment leaves nothing another could do twice: a run in flight is found by its key and followed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from compute_router import errors
from compute_router.backend import State, Status
from compute_router.collecting import STUDY
from compute_router.policy import Limits, Outcome
from compute_router.records import key_run_id
from compute_router.router import Router
from compute_router.starting import NOTHING_STARTED
from compute_router.store import RunFolder
from compute_router.studies.folder import Ending, StudyFolder, Try, TurnRecord
from compute_router.studies.plan import Arm, Turn
from compute_router.studies.reading import code_of
from compute_router.workload import Workload

__all__ = ["Driver", "Leave", "changed", "never_executed"]

TRIES = 3
"""Tries of one run by one driver, while each is proven never to have executed."""
PAUSES = (1.0, 5.0, 30.0)
"""Seconds before another try, and before another look at a place that cannot be reached."""
PATIENCE = 3600.0
"""Seconds a place may stay out of reach before the driver gives up; the run itself goes on."""


class Leave(KeyboardInterrupt):
    """The driver was asked to end."""


class _Stop(Exception):
    """The study cannot go on."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.what)
        self.ending = ending


def never_executed(status: Mapping[str, Any]) -> bool:
    """Whether a run with this final status is proven never to have executed, so that it did not count."""
    return status.get("reason") in ("not_submitted", "never_executed")


def changed(folder: StudyFolder, router: Router) -> str:
    """Which arms' files are no longer those the study was begun with, in words; nothing if none."""
    from pathlib import Path

    plan = folder.plan
    names, seen = [], dict[str, str]()
    for arm in plan.arms:
        root = arm.workload.entry.root
        at = f"{root}\0{arm.workload.entry.script}"
        try:
            if at not in seen:
                seen[at] = code_of(arm.workload, Path(plan.file), router.store.home)
        except errors.InputError:
            seen[at] = ""
        if seen[at] != arm.code_sha256:
            names.append(arm.name)
    if not names:
        return ""
    arms = "all arms" if len(names) == len(plan.arms) else "arm " + ", ".join(names)
    return f"the files of {arms} have changed since study {folder.id} was begun"


class Driver:
    """Takes a study from wherever it stands to its end. Whoever calls `drive` holds the folder's lock."""

    def __init__(
        self,
        router: Router,
        folder: StudyFolder,
        *,
        secrets: Mapping[str, str] | None = None,
        wait_us: int | None = 0,
        keep_going: bool = False,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.router, self.folder, self.plan = router, folder, folder.plan
        self.secrets = dict(secrets or {})
        self.wait_us, self.keep_going, self.pause = wait_us, keep_going, pause
        self.streaks: dict[str, int] = {}

    def drive(self) -> Ending:
        """Run what has not been run. Returns how it ended, which also stands in the folder."""
        self.folder.end(None)
        self.folder.tell("driving")
        try:
            ending = self._all()
        except Leave:
            ending = self._left()
        except _Stop as stop:
            ending = stop.ending
        except errors.RouteError as e:
            ending = _stopped(e.code, str(e), e.mend, int(e.exit_code))
        self.folder.end(ending)
        self.folder.tell("ended", **msgspec.to_builtins(ending))
        return ending

    def _all(self) -> Ending:
        seeded = False
        for turn in self.plan.turns:
            if self.folder.turn(turn.index).over:
                continue
            if self.plan.warm and not seeded:
                for arm in self.plan.arms:
                    self._seed(arm, self._next_seeding(arm))
                seeded = True
            self._turn(turn)
            if turn is not self.plan.turns[-1]:
                self._rule(turn)
        return Ending(state="over", at_us=_now())

    def _rule(self, turn: Turn) -> None:
        """The stop rule, that was fixed beforehand."""
        state = self.folder.turn(turn.index).tries[-1].state
        streak = 0 if state == State.SUCCEEDED.value else self.streaks.get(turn.arm, 0) + 1
        self.streaks[turn.arm] = streak
        if streak >= self.plan.stop_after and not self.keep_going:
            what = f"arm {turn.arm} has failed {streak} time{'s' * (streak > 1)} in a row"
            mend = f"`route logs {self.folder.turn(turn.index).tries[-1].run_id}` says why; "
            mend += f"`route study resume {self.folder.id} --keep-going` goes on all the same"
            raise _Stop(_stopped("STUDY_STOPPED", what, mend, int(errors.ExitCode.REFUSED)))

    # One run

    def _turn(self, turn: Turn) -> None:
        record = self.folder.turn(turn.index)
        for number in range(TRIES):
            if record.open is None:
                self._same_files()
                if number:
                    self._rest(number - 1)
                key = self.plan.key(turn.index, len(record.tries) + 1)
                begun = Try(key=key, run_id=key_run_id(key), begun_us=_now())
                record = TurnRecord(index=turn.index, tries=(*record.tries, begun))
                self.folder.write_turn(record)
            record = self._try(turn, record)
            if record.over:
                return
        last = record.tries[-1]
        mend = f"route study resume {self.folder.id} tries it again"
        what = f"run {turn.index} (arm {turn.arm}) could not be started: {last.what}"
        raise _Stop(_stopped("UNAVAILABLE", what, mend, int(errors.ExitCode.UNAVAILABLE)))

    def _try(self, turn: Turn, record: TurnRecord) -> TurnRecord:
        this = record.tries[-1]
        self.folder.tell(
            "turn", index=turn.index, block=turn.block, arm=turn.arm, run_id=this.run_id, n=len(record.tries)
        )
        try:
            run = self._begun(turn, this)
            receipt = self._followed(run, turn)
            status = msgspec.to_builtins(self.router.status(run))
            executed = not never_executed(status)
            closed = msgspec.structs.replace(
                this,
                over_us=status.get("ended_us") or _now(),
                state=status["state"],
                reason=status.get("reason"),
                what=str(status.get("detail") or ""),
                executed=executed,
                receipt_id=receipt.get("receipt_id"),
            )
        # No run was kept, or one that never started anything and says so.
        except errors.NoPlace as e:
            closed = msgspec.structs.replace(
                this, over_us=_now(), reason="no_place", what=str(e), executed=False
            )
        record = TurnRecord(index=turn.index, tries=(*record.tries[:-1], closed))
        self.folder.write_turn(record)
        figures = {"state": closed.state, "reason": closed.reason, "executed": closed.executed}
        self.folder.tell(
            "over", index=turn.index, arm=turn.arm, run_id=this.run_id, what=closed.what, **figures
        )
        return record

    def _begun(self, turn: Turn, this: Try) -> RunFolder:
        """The run of a try: the one that is there, else made, planned and submitted."""
        arm, workload = self.plan.arm(turn.arm), self.plan.workload(turn)
        if (there := self._there(this.run_id, workload)) is not None:
            return there
        # Also for a try that another driver wrote down and did not come to start.
        self._same_files()
        made = self._place(arm, workload)
        if made.decision.outcome is Outcome.WARM:
            self._seed(arm, self._next_seeding(arm, again=True))
            made = self._place(arm, workload)
            if made.decision.outcome is Outcome.WARM:
                what = f"arm {arm.name} is not warm after seeding it: {made.decision.sentence}"
                raise _Stop(_stopped("NOT_WARM", what, "route receipt show", int(errors.ExitCode.REFUSED)))
        return self._submit(made, this.key, workload, {STUDY: self.plan.label(turn)}, turn.arm)

    def _there(self, run_id: str, workload: Workload) -> RunFolder | None:
        """The run of that id, if it came so far that whatever stands in its folder is to be gone on with."""
        if not (self.router.store.runs / run_id).is_dir():
            return None
        run = RunFolder(self.router.store, run_id)
        if not (run.has("intent") or run.has("handle") or run.has("receipt")):
            return None
        self.router.given[run.id] = self._values(workload)
        return run

    def _next_seeding(self, arm: Arm, *, again: bool = False) -> int:
        """The seeding pass of an arm that is good (unless it has to be done `again`), in flight, or next."""
        number = 1
        while True:
            path = self.router.store.runs / key_run_id(self.plan.seeding_key(arm.name, number))
            if not (path / "receipt.json").is_file():
                return number
            status = RunFolder(self.router.store, path.name).read("status", Status)
            if not again and status is not None and status.state is State.SUCCEEDED:
                return number
            number += 1

    def _place(self, arm: Arm, workload: Workload, pin: str | None = None) -> Any:
        allowed = Limits(
            wait_us=self.wait_us,
            detached=True,
            price_limit=workload.price_limit,
            pin=pin or arm.backend,
            rules=self.router.config.rules,
        )
        return self.router.plan(workload, policy=arm.policy, limits=allowed)

    def _submit(self, made: Any, key: str, workload: Workload, labels: dict[str, str], arm: str) -> RunFolder:
        try:
            return self.router.submit(
                made,
                key=key,
                secrets=self._values(workload) if workload.secrets else None,
                labels=labels,
                on_event=lambda event: self._pass_on(event, arm),
            )
        except errors.NoPlace:
            raise
        except (errors.SubmitUnknown, *NOTHING_STARTED):
            # Whatever became of it stands in the run's own folder; without one it was our mistake.
            run = RunFolder(self.router.store, key_run_id(key))
            if not run.path.is_dir() or not (run.has("intent") or run.has("receipt")):
                raise
            return run

    def _followed(self, run: RunFolder, turn: Turn | None) -> dict[str, Any]:
        """The receipt of a run, however long its place cannot be reached (within reason)."""
        arm = turn.arm if turn else ""
        given_up, looks = time.monotonic() + PATIENCE, 0
        while True:
            try:
                return self.router.resume(run, on_event=lambda event: self._pass_on(event, arm))
            except errors.Conflict as e:
                what = f"{e.what}; it never started"
                raise _Stop(_stopped("FILES_CHANGED", what, self._mend_files(), 65)) from e
            except NOTHING_STARTED:
                # What never started may have been given its receipt on the way here.
                if run.has("receipt"):
                    return run.read_json("receipt") or {}
                if time.monotonic() > given_up:
                    raise
            except (errors.SubmitUnknown, errors.HandleLost) as e:
                if time.monotonic() > given_up:
                    mend = f"the run may be going on; route study resume {self.folder.id} looks again"
                    raise _Stop(_stopped(e.code, e.what, mend, int(e.exit_code))) from e
            self._rest(looks)
            looks += 1

    def _rest(self, looks: int) -> None:
        self.pause(PAUSES[min(looks, len(PAUSES) - 1)])

    def _values(self, workload: Workload) -> dict[str, str]:
        return {name: self.secrets[name] for name in workload.secrets if name in self.secrets}

    def _pass_on(self, event: Mapping[str, Any], arm: str) -> None:
        """What a follower should know of the run in flight."""
        name, state = event.get("event"), event.get("state")
        if name in ("submitted", "refused", "again") or state in ("waiting", "unknown"):
            kept = ("run_id", "backend", "offer", "state", "detail", "what", "attempt")
            self.folder.tell("run", of=name, arm=arm, **{n: event[n] for n in kept if n in event})

    # Before it

    def _same_files(self) -> None:
        if what := changed(self.folder, self.router):
            raise _Stop(_stopped("FILES_CHANGED", what, self._mend_files(), int(errors.ExitCode.REFUSED)))

    def _mend_files(self) -> str:
        return (
            f"put them back and `route study resume {self.folder.id}`, or begin another study: "
            "`route study run --new`"
        )

    def _seed(self, arm: Arm, number: int) -> None:
        """Fill the compile cache of an arm by a run of its work, once for each number. Never counts."""
        key, workload = self.plan.seeding_key(arm.name, number), self.plan.seeding(arm.name)
        run = self._there(key_run_id(key), workload)
        if run is not None and run.has("receipt"):
            status = run.read("status", Status)
        else:
            if run is None:
                self._same_files()
                claim = self.plan.workload(next(t for t in self.plan.turns if t.arm == arm.name))
                made = self._place(arm, claim)
                if not made.decision.ranked:
                    raise errors.NoPlace(made.decision.sentence, mend=made.decision.mend)
                self.folder.tell("seeding", arm=arm.name, run_id=key_run_id(key))
                made = self._place(arm, workload, pin=made.decision.ranked[0].backend)
                run = self._submit(made, key, workload, {"seeds": self.folder.id}, arm.name)
            self._followed(run, None)
            status = self.router.status(run)
        if status is None or status.state is not State.SUCCEEDED:
            what = f"the seeding pass of arm {arm.name} did not succeed (run {run.id})"
            mend = f"route logs {run.id}"
            raise _Stop(_stopped("NOT_WARM", what, mend, int(errors.ExitCode.REFUSED)))

    # The end that was asked for

    def _left(self) -> Ending:
        if not self.folder.cancelling:
            what, mend = "the driver was asked to end", f"route study resume {self.folder.id}"
            return Ending(state="left", at_us=_now(), code="LEFT", what=what, mend=mend, exit_code=130)
        return self.cancel()

    def cancel(self) -> Ending:
        """End the run in flight, if there is one, and write down how; the study then is `cancelled`."""
        for turn in self.plan.turns:
            record = self.folder.turn(turn.index)
            this = record.open
            if this is None or not (self.router.store.runs / this.run_id).is_dir():
                continue
            run = RunFolder(self.router.store, this.run_id)
            try:
                self.router.cancel(run)
            except errors.NotFound:
                continue
            self._try(turn, record)
        self._cancel_seeding()
        mend = f"`route study resume {self.folder.id}` goes on with what is left"
        return Ending(
            state="cancelled",
            at_us=_now(),
            code="CANCELLED",
            what="it was cancelled",
            mend=mend,
            exit_code=143,
        )

    def _cancel_seeding(self) -> None:
        for arm in self.plan.arms if self.plan.warm else ():
            for number in (1, 2):
                path = self.router.store.runs / key_run_id(self.plan.seeding_key(arm.name, number))
                if path.is_dir() and not (path / "receipt.json").exists():
                    run = RunFolder(self.router.store, path.name)
                    try:
                        self.router.cancel(run)
                        self._followed(run, None)
                    except errors.NotFound:
                        continue


def _stopped(code: str, what: str, mend: str, exit_code: int) -> Ending:
    return Ending(state="stopped", at_us=_now(), code=code, what=what, mend=mend, exit_code=exit_code)


def _now() -> int:
    return time.time_ns() // 1000
