"""Backends that each break one promise in a way that real ones do, for the kit to catch."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import msgspec
from peers import Cut, CutMachine, On

from compute_router.backend import (
    Backend,
    Cost,
    Handle,
    Hardware,
    Health,
    HealthCheck,
    NoOffer,
    Offer,
    Power,
    State,
    Status,
    Submission,
)
from compute_router.backends.local import LocalBackend
from compute_router.records import Record, new_run_id
from compute_router.snapshot import take
from compute_router.workload import Entry, Workload

change = msgspec.structs.replace


class Flawed(LocalBackend):
    """Local, but for one flaw. `caught` is the test that must fail, `says` what it must say."""

    caught: ClassVar[str]
    says: ClassVar[str] = ""
    patience: ClassVar[float] = 20.0
    here: ClassVar[bool] = True


class StartsTwice(Flawed):
    """Retries inside, under another name."""

    caught, says = "test_submitting_twice_starts_once", "== 1"

    def submit(self, submission: Submission) -> Handle:
        run_id = new_run_id()
        super().submit(dataclasses.replace(submission, id=run_id, key=run_id))
        return super().submit(submission)


class StartsTwiceAfar(Flawed):
    """The same, where the kit cannot look at files of the work: the volume tells."""

    caught, says = "test_submitting_twice_starts_once", "== 1"
    here = False

    def submit(self, submission: Submission) -> Handle:
        if submission.key == "twice":
            run_id = new_run_id()
            super().submit(dataclasses.replace(submission, id=run_id, key=run_id))
        return super().submit(submission)


class RemembersKeysInMemory(Flawed):
    """Knows only what this instance submitted."""

    caught, says = "test_submitting_from_threads_starts_once", "handle == handles[0]"

    def submit(self, submission: Submission) -> Handle:
        known = self.__dict__.setdefault("known", {})
        run_id = known.setdefault(submission.key, new_run_id())
        return super().submit(dataclasses.replace(submission, id=run_id))


class TakesAnythingUnderAKey(Flawed):
    """Finds the key taken and does not look by what."""

    caught, says = "test_the_same_key_for_other_work_is_refused", "DID NOT RAISE"

    def submit(self, submission: Submission) -> Handle:
        return self.find(submission.key) or super().submit(submission)


class TriesAgain(Flawed):
    """Takes attempt 2 for a run of its own."""

    caught, says = "test_a_second_attempt_of_what_ran_is_refused", "DID NOT RAISE"

    def submit(self, submission: Submission) -> Handle:
        if submission.attempt > 1:
            submission = dataclasses.replace(submission, id=new_run_id(), attempt=1)
        return super().submit(submission)


class StartsWithoutTheSecret(Flawed):
    """An empty string will do."""

    caught, says = "test_a_missing_secret_starts_nothing", "DID NOT RAISE"

    def submit(self, submission: Submission) -> Handle:
        given = {name: submission.secrets.get(name, "") for name in submission.workload.secrets}
        return super().submit(dataclasses.replace(submission, secrets=given))


class ShipsWhatIsThereNow(Flawed):
    """Looks at the folder again."""

    caught, says = "test_what_changed_since_it_was_looked_at_never_runs", "DID NOT RAISE"

    def submit(self, submission: Submission) -> Handle:
        snapshot = take(Path(submission.workload.entry.root))
        return super().submit(dataclasses.replace(submission, snapshot=snapshot))


class CommitsLate(Flawed):
    """Starts, and only then writes down under which key: a client killed between starts it twice."""

    caught, says = "test_a_killed_client_leaves_one_execution", ""

    def submit(self, submission: Submission) -> Handle:
        note = self.home / "keys" / submission.id
        run_id = note.read_text() if note.exists() else new_run_id()
        handle = super().submit(dataclasses.replace(submission, id=run_id))
        time.sleep(0.3)
        note.parent.mkdir(exist_ok=True)
        note.write_text(run_id)
        return handle

    def find(self, key: str) -> Handle | None:
        note = self.home / "keys" / key
        return super().find(note.read_text()) if note.exists() else None


class FindsNothing(Flawed):
    """Says that nothing started."""

    caught, says = "test_a_handle_finds_the_run_from_another_process", "found"

    def find(self, key: str) -> Handle | None:
        return None


class FindsEverything(Flawed):
    """Says that anything started."""

    caught, says = "test_what_was_never_started_is_not_found", "is None"

    def find(self, key: str) -> Handle | None:
        return Handle(backend=self.name, version=1, run_id=new_run_id(), key=key, attempt=1)


class HandleOfFloats(Flawed):
    """A handle that has no canonical JSON."""

    caught, says = "test_a_handle_finds_the_run_from_another_process", "no canonical JSON"

    def submit(self, submission: Submission) -> Handle:
        handle = super().submit(submission)
        return change(handle, data={**handle.data, "at": time.time()})


class HandleOfThisProcess(Flawed):
    """A handle that only the instance that gave it understands."""

    caught, says = "test_a_handle_finds_the_run_from_another_process", "HandleLost"

    def submit(self, submission: Submission) -> Handle:
        handle = super().submit(submission)
        self.__dict__.setdefault("mine", {})[submission.id] = handle.data
        return change(handle, data={})

    def status(self, handle: Handle) -> Status:
        data = self.__dict__.get("mine", {}).get(handle.run_id, {})
        return super().status(change(handle, data=data))


class ChangesItsMind(Flawed):
    """A final state that another look changes."""

    caught, says = "test_a_final_state_never_changes", "=="

    def status(self, handle: Handle) -> Status:
        status = super().status(handle)
        self.looks = getattr(self, "looks", 0) + status.state.final
        return change(status, state=State.FAILED, exit_code=1) if self.looks > 1 else status


class GoesBack(Flawed):
    """Running, then waiting."""

    caught, says = "test_a_final_state_never_changes", "after running"

    def status(self, handle: Handle) -> Status:
        self.looks = getattr(self, "looks", 0) + 1
        states = {1: State.RUNNING, 2: State.WAITING}
        if self.looks in states:
            return Status(state=states[self.looks])
        return super().status(handle)


class SwallowsTheCode(Flawed):
    """Any end is a good end."""

    caught, says = "test_the_exit_code_is_the_works_own", "succeeded"

    def status(self, handle: Handle) -> Status:
        status = super().status(handle)
        return change(status, state=State.SUCCEEDED, exit_code=0) if status.state is State.FAILED else status


class TakesATimeoutFor124(Flawed):
    """Reads 124 as `timeout` means it."""

    caught, says = "test_the_exit_code_is_the_works_own", "timed_out"

    def status(self, handle: Handle) -> Status:
        status = super().status(handle)
        return change(status, state=State.TIMED_OUT, exit_code=None) if status.exit_code == 124 else status


class SignalAs137(Flawed):
    """As a shell tells it."""

    caught, says = "test_a_signal_is_told_as_one", "137"

    def status(self, handle: Handle) -> Status:
        status = super().status(handle)
        return change(status, exit_code=128 + status.signal, signal=None) if status.signal else status


class TimeoutIsAFailure(Flawed):
    """Does not tell why it was ended."""

    caught, says = "test_a_timeout_is_told_as_one", "failed"

    def status(self, handle: Handle) -> Status:
        status = super().status(handle)
        return change(status, state=State.FAILED) if status.state is State.TIMED_OUT else status


class ForgetsTheWork(Flawed):
    """Says that the time is up, and lets the work go on."""

    caught, says = "test_nothing_lives_after_a_timeout", "not gone"
    patience = 8.0

    def submit(self, submission: Submission) -> Handle:
        work = change(submission.workload, timeout_us=10**12)
        self.until = time.monotonic() + submission.workload.timeout_us / 1e6
        self.handle = super().submit(dataclasses.replace(submission, workload=work))
        return self.handle

    def status(self, handle: Handle) -> Status:
        return Status(state=State.TIMED_OUT if time.monotonic() > self.until else State.RUNNING)


class LogAsText(Flawed):
    """Decodes on the way."""

    caught, says = "test_a_log_is_byte_for_byte", ""

    def logs(self, handle: Handle, offset: int = 0, follow: bool = False) -> Iterator[bytes]:
        for chunk in super().logs(handle, offset, follow):
            yield chunk.decode("utf-8", "replace").encode()


class LogFromTheStart(Flawed):
    """Does not know offsets."""

    caught, says = "test_a_log_is_byte_for_byte", "76800 bytes for 76799"

    def logs(self, handle: Handle, offset: int = 0, follow: bool = False) -> Iterator[bytes]:
        return super().logs(handle, 0, follow)


class FollowsWhenItIsOver(Flawed):
    """Waits for the end and gives the log then."""

    caught, says = "test_a_line_arrives_while_the_work_runs", "only when the work was over"

    def logs(self, handle: Handle, offset: int = 0, follow: bool = False) -> Iterator[bytes]:
        while follow and not self.status(handle).state.final:
            time.sleep(0.05)
        yield from super().logs(handle, offset)


class LeavesBeforeTheEnd(Flawed):
    """`attached` that ends with the log."""

    caught, says = "test_attached_ends_with_a_final_status", ""

    def attached(self, handle: Handle, offset: int = 0) -> Iterator[bytes | Status]:
        yield from self.logs(handle, offset, follow=True)


class ThroughAShell(Flawed):
    """Joins the words of the command for a shell."""

    caught, says = "test_arguments_and_environment_arrive_byte_for_byte", ""

    def submit(self, submission: Submission) -> Handle:
        entry = submission.workload.entry
        line = " ".join([sys.executable, entry.script or "", *entry.args])
        entry = Entry(root=entry.root, argv=("sh", "-c", line))
        work = change(submission.workload, entry=entry)
        return super().submit(dataclasses.replace(submission, workload=work))


class SharesVolumes(Flawed):
    """One volume for every workload."""

    caught, says = "test_a_volume_outlives_a_run", "nothing"

    def submit(self, submission: Submission) -> Handle:
        work = change(submission.workload, name="all")
        return super().submit(dataclasses.replace(submission, workload=work))


class SecretInTheHandle(Flawed):
    """So that it can be passed on later."""

    caught, says = "test_a_secret_reaches_the_work_alone", "the handle"

    def submit(self, submission: Submission) -> Handle:
        handle = super().submit(submission)
        return change(handle, data={**handle.data, "env": dict(submission.secrets)})


class SecretInAFile(Flawed):
    """Notes what it did."""

    caught, says = "test_a_secret_reaches_the_work_alone", "debug.log"

    def submit(self, submission: Submission) -> Handle:
        handle = super().submit(submission)
        (self.home / "debug.log").write_text(f"submitted {submission.secrets}")
        return handle


class SecretInArguments(Flawed):
    """Hands it to a helper for everybody to see."""

    caught, says = "test_a_secret_reaches_the_work_alone", "arguments of a process"

    def submit(self, submission: Submission) -> Handle:
        secret = submission.secrets.get("A_SECRET", "")
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(2)", secret])
        return super().submit(submission)


class WorksWhenMade(Flawed):
    """Makes its folder in the constructor."""

    caught, says = "test_making_one_does_nothing", "os.mkdir"

    def __init__(self, settings: Record, home: Path) -> None:
        super().__init__(settings, home)
        home.mkdir(parents=True, exist_ok=True)


class HealthRaises(Flawed):
    """Its own error for what health is to tell."""

    caught, says = "test_health_never_raises", "NotADirectoryError"

    def health(self) -> Health:
        self.home.mkdir(parents=True, exist_ok=True)
        return super().health()


class HealthWithoutAMend(Flawed):
    """Not well, and leaves it at that."""

    caught, says = "test_health_is_told_and_starts_nothing", "nothing mends it"

    def health(self) -> Health:
        return Health(
            backend=self.name, ok=False, summary="bad", checks=(HealthCheck(name="x", ok=False, seen="bad"),)
        )


class OffersNewNamesEachTime(Flawed):
    """An id per offer instead of one per place."""

    caught, says = "test_offers_are_whole_and_stable", "ids[0]"

    def offers(self, workload: Workload) -> Sequence[Offer | NoOffer]:
        return [change(o, id=new_run_id()) if isinstance(o, Offer) else o for o in super().offers(workload)]


class OffersAnything(Flawed):
    """Says yes to hardware that is not there."""

    caught, says = "test_what_is_not_there_is_no_offer", "offered"

    def offers(self, workload: Workload) -> Sequence[Offer | NoOffer]:
        wanted = workload.needs.accelerator
        hardware = Hardware(family=wanted.family, sku=wanted.sku, count=wanted.count)
        return [Offer(backend=self.name, id="cloud", surface=self.surface, hardware=hardware)]


class OffersSomethingElse(Flawed):
    """The next best thing, unasked."""

    caught, says = "test_what_is_not_there_is_no_offer", "offered"

    def offers(self, workload: Workload) -> Sequence[Offer | NoOffer]:
        return [Offer(backend=self.name, id="machine", surface=self.surface, hardware=Hardware(family="cpu"))]


class ClaimsLessThanItOffers(Flawed):
    """Has no secrets, and takes work that needs one."""

    caught, says = "test_a_power_it_has_not_is_no_offer", "offered"
    powers = LocalBackend.powers - {Power.SECRETS}


class CostsNonsense(Flawed):
    """A price that is no decimal."""

    caught, says = "test_a_cost_is_a_decimal_or_not_known", "could not convert"

    def cost(self, handle: Handle) -> Cost | None:
        return Cost(amount="about 3 dollars", source="a feeling")


class TakesSilenceForFailure(Flawed):
    """What cannot be reached has failed."""

    caught, says = "test_unreachable_is_unknown_and_not_failed", "failed"

    def cut(self) -> Backend:
        class Gone(On):
            def status(self, handle: Handle) -> Status:
                status = super().status(handle)
                return change(status, state=State.FAILED) if status.state is State.UNKNOWN else status

        return Gone(self.home, CutMachine(self.home / "machine", Cut(opens=0)))


class FindsNothingWhenCut(Flawed):
    """What cannot be reached was not started."""

    caught, says = "test_unreachable_is_unknown_and_not_failed", "DID NOT RAISE"

    def cut(self) -> Backend:
        class Gone(On):
            def find(self, key: str) -> Handle | None:
                return None

        return Gone(self.home, CutMachine(self.home / "machine", Cut(opens=0)))
