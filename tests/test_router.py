"""Proves the path of a run above any backend: fallback, lost answers, nothing twice, every end a receipt."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import scripted

from compute_router import Router, State, Status, load
from compute_router.entrypoints import EntryPoint, installed
from compute_router.errors import (
    Conflict,
    CredentialsError,
    InputError,
    PluginError,
    Rejected,
    SubmitUnknown,
    Unavailable,
)
from compute_router.receipt import verify
from compute_router.registry import Registry
from compute_router.starting import Intent, guarded


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch) -> scripted.World:
    fresh = scripted.World()
    monkeypatch.setattr(scripted, "WORLD", fresh)
    monkeypatch.setattr("compute_router.starting.PAUSES", (0.0, 0.0, 0.0, 0.0))
    return fresh


@pytest.fixture
def router(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Router:
    monkeypatch.chdir(folder)
    (folder / "work.py").write_text("print('hello')\n")
    made = Router(tmp_path / "home", start=folder)
    mine = [e for e in installed() if e.name != "local"]
    made.registry = Registry(entries=[*mine, EntryPoint("scripted", "scripted", "a-third-party", "3.1")])
    return made


def outcome(receipt: dict[str, Any]) -> str:
    return str(receipt["context"]["outcome"]["state"]["v"])


def test_the_first_choice_runs_and_its_plugin_stands_in_the_receipt(router: Router) -> None:
    run = router.submit(router.plan(load("work.py", router=router)))
    receipt = router.resume(run)
    assert scripted.WORLD.started == [("first", 1)]
    assert outcome(receipt) == "succeeded"
    assert "a-third-party" in str(receipt["context"]["plugins"])
    assert verify(run.file("receipt")) == []
    assert scripted.WORLD.asked[-1] == "first.cleanup"


@pytest.mark.parametrize("refusal", [Unavailable("no room"), Rejected("never here")])
def test_a_refusal_leads_to_the_next_place_and_both_stand_in_the_receipt(
    router: Router, world: scripted.World, refusal: Exception
) -> None:
    world.script["first"] = [refusal]
    run = router.submit(router.plan(load("work.py", router=router)))
    receipt = router.resume(run)
    assert world.started == [("second", 1)]
    intent = run.read("intent", Intent)
    assert intent is not None
    assert [(t.backend, t.what) for t in intent.tries] == [("first", str(refusal))]
    assert str(refusal) in str(receipt["context"])


def test_when_every_place_refuses_the_run_is_failed_and_has_a_receipt(
    router: Router, world: scripted.World
) -> None:
    world.script = {"first": [Unavailable("no room")], "second": [Rejected("never here")]}
    with pytest.raises(Rejected, match="never here"):
        router.submit(router.plan(load("work.py", router=router)))
    run = router.store.open("latest")
    assert world.started == []
    status = router.status(run)
    assert (status.state, status.reason) == (State.FAILED, "not_submitted")
    assert verify(run.file("receipt")) == []


def test_a_lost_answer_is_looked_for_before_anything_is_tried_again(
    router: Router, world: scripted.World
) -> None:
    world.script["first"] = [("started", SubmitUnknown("the line went dead"))]
    run = router.submit(router.plan(load("work.py", router=router)))
    assert world.started == [("first", 1)]
    assert world.asked == ["first.submit", "first.find"]
    assert outcome(router.resume(run)) == "succeeded"


def test_a_lost_question_is_asked_again_at_the_same_place(router: Router, world: scripted.World) -> None:
    world.script["first"] = [SubmitUnknown("the line went dead")]
    router.submit(router.plan(load("work.py", router=router)))
    assert world.asked == ["first.submit", "first.find", "first.submit"]
    assert world.started == [("first", 1)]


def test_what_cannot_be_known_stays_unknown_and_no_other_place_is_tried(
    router: Router, world: scripted.World
) -> None:
    world.script["first"] = [("started", SubmitUnknown("the line went dead"))]
    world.find["first"] = [Unavailable("still dead")] * 5
    with pytest.raises(SubmitUnknown):
        router.submit(router.plan(load("work.py", router=router)))
    run = router.store.open("latest")
    first = router.status(run)
    assert (first.state, first.last) == (State.UNKNOWN, State.STAGING)
    assert router.status(run).state is State.SUCCEEDED, "the line is back, and so is the truth"
    assert world.started == [("first", 1)]
    assert "second.submit" not in world.asked


def test_a_plugin_that_raises_anything_else_is_named(router: Router, world: scripted.World) -> None:
    world.script["first"] = [ZeroDivisionError("oops")]
    with pytest.raises(PluginError, match="'first' raised ZeroDivisionError: oops"):
        router.submit(router.plan(load("work.py", router=router)))
    assert world.started == []


def test_the_same_key_is_one_run_and_another_workload_a_conflict(
    router: Router, world: scripted.World, folder: Path
) -> None:
    plan = router.plan(load("work.py", router=router))
    one, two = router.submit(plan, key="k"), router.submit(plan, key="k")
    assert one.id == two.id
    assert world.started == [("first", 1)]
    with pytest.raises(Conflict):
        router.submit(router.plan(load("work.py", args=["other"], router=router)), key="k")


def test_a_client_that_died_after_its_intent_goes_on_with_what_was_started(
    router: Router, world: scripted.World
) -> None:
    plan = router.plan(load("work.py", router=router))
    run = router.submit(plan, key="k")
    run.file("handle").unlink()
    assert outcome(router.resume(router.submit(plan, key="k"))) == "succeeded"
    assert world.started == [("first", 1)]


def test_changed_files_do_not_start_an_old_run(router: Router, world: scripted.World, folder: Path) -> None:
    (folder / "data.txt").write_text("one")
    plan = router.plan(load("work.py", router=router))
    run = router.submit(plan, key="k")
    run.file("handle").unlink()
    world.runs.clear()
    (folder / "data.txt").write_text("two")
    with pytest.raises(Conflict, match="have changed"):
        router.submit(plan, key="k")
    assert world.started == [("first", 1)]


def test_a_missing_secret_keeps_nothing(router: Router, world: scripted.World) -> None:
    workload = load("work.py", sets=['secrets=["NOT_THERE_AT_ALL"]'], router=router)
    with pytest.raises(CredentialsError, match="NOT_THERE_AT_ALL"):
        router.submit(router.plan(workload))
    assert router.store.list() == []
    assert world.asked == []


def test_what_never_executed_is_started_again_at_the_same_place(
    router: Router, world: scripted.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = router.submit(router.plan(load("work.py", router=router)))

    def status(self: scripted.Scripted, handle: Any) -> Status:
        if handle.attempt == 1:
            return Status(state=State.LOST, reason="never_executed", attempt=1)
        return Status(state=State.SUCCEEDED, exit_code=0, attempt=2)

    monkeypatch.setattr(scripted.Scripted, "status", status)
    receipt = router.resume(run)
    assert world.started == [("first", 1), ("first", 2)]
    assert (receipt["attempt"], outcome(receipt)) == (2, "succeeded")


@pytest.mark.parametrize("reason", ["waiter_died", "rebooted"])
def test_what_may_have_executed_is_never_started_again(
    router: Router, world: scripted.World, reason: str
) -> None:
    world.ends = Status(state=State.LOST, reason=reason)
    receipt = router.resume(router.submit(router.plan(load("work.py", router=router))))
    assert world.started == [("first", 1)]
    assert outcome(receipt) == "lost"


def test_events_are_written_before_they_are_told(router: Router) -> None:
    seen: list[str] = []
    run = router.submit(
        router.plan(load("work.py", router=router)), on_event=lambda e: seen.append(str(e["event"]))
    )
    router.resume(run, on_event=lambda e: seen.append(str(e["event"])))
    assert seen == ["decided", "staging", "submitted", "state", "receipt", "cleaned"]
    lines = (run.path / "events.jsonl").read_text().splitlines()
    assert len(lines) == len(seen)


def test_ctrl_c_comes_through_the_error_of_a_lock_it_broke_into() -> None:
    def interrupted() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("release unlocked lock")

    with pytest.raises(KeyboardInterrupt):
        guarded("first", interrupted)


def test_two_clients_with_one_key_start_one_run(
    router: Router, world: scripted.World, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first client is refused at the first place while the second already waits: they must not
    end at two places."""
    inside, go_on = threading.Event(), threading.Event()

    def slow(self: scripted.Scripted, submission: Any) -> Any:
        if self.name == "first" and not inside.is_set():
            inside.set()
            go_on.wait(10)
            raise Unavailable("no room")
        return submit(self, submission)

    submit = scripted.Scripted.submit
    monkeypatch.setattr(scripted.Scripted, "submit", slow)
    other = Router(tmp_path / "home", start=folder)
    other.registry = router.registry
    plans = [r.plan(load("work.py", router=r)) for r in (router, other)]
    clients = [
        threading.Thread(target=r.submit, args=(p,), kwargs={"key": "k"})
        for r, p in zip((router, other), plans, strict=True)
    ]
    clients[0].start()
    assert inside.wait(10)
    clients[1].start()
    time.sleep(0.2)
    go_on.set()
    for client in clients:
        client.join(10)
    assert world.started == [("second", 1)]


def test_a_plugin_that_broke_after_starting_is_found_out(router: Router, world: scripted.World) -> None:
    world.script["first"] = [("started", ZeroDivisionError("oops"))]
    run = router.submit(router.plan(load("work.py", router=router)))
    assert world.asked == ["first.submit", "first.find"]
    assert outcome(router.resume(run)) == "succeeded"


def test_a_plugin_that_broke_and_cannot_tell_leaves_the_run_unknown(
    router: Router, world: scripted.World
) -> None:
    world.script["first"] = [("started", ZeroDivisionError("oops"))]
    world.find["first"] = [ZeroDivisionError("oops again")] * 4
    with pytest.raises(SubmitUnknown, match="oops"):
        router.submit(router.plan(load("work.py", router=router)))
    assert router.status(router.store.open("latest")).state is State.SUCCEEDED
    assert "second.submit" not in world.asked


def test_what_never_executed_and_has_other_files_now_ends_in_a_receipt(
    router: Router, world: scripted.World, folder: Path
) -> None:
    world.ends = Status(state=State.LOST, reason="never_executed")
    run = router.submit(router.plan(load("work.py", router=router)))
    (folder / "work.py").write_text("print('changed')\n")
    assert outcome(router.resume(run)) == "lost"
    assert world.started == [("first", 1)]


def test_a_file_that_changed_while_it_was_sent_ends_in_a_receipt(
    router: Router, world: scripted.World
) -> None:
    world.script["first"] = [InputError("work.py changed while it was sent")]
    with pytest.raises(InputError, match="changed while"):
        router.submit(router.plan(load("work.py", router=router)))
    run = router.store.open("latest")
    assert router.status(run).reason == "not_submitted"
    assert verify(run.file("receipt")) == []
    assert world.started == []
