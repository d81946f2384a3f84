"""Proves what a driver does where places refuse, caches are cold, secrets are needed, records are odd."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import scripted
from conftest import Route
from studying import study, witnessed
from test_cli_completion import ask

from compute_router import Router
from compute_router.backend import State, Status
from compute_router.collecting import STUDY
from compute_router.entrypoints import EntryPoint, installed
from compute_router.errors import Rejected, StoreError, SubmitUnknown, Unavailable
from compute_router.records import key_run_id
from compute_router.registry import Registry
from compute_router.studies import Standing, receipts
from compute_router.studies.driving import Driver
from compute_router.studies.folder import StudyFolder, Try, TurnRecord
from compute_router.studies.reading import read


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch) -> scripted.World:
    fresh = scripted.World()
    monkeypatch.setattr(scripted, "WORLD", fresh)
    monkeypatch.setattr("compute_router.starting.PAUSES", (0.0, 0.0, 0.0, 0.0))
    return fresh


@pytest.fixture
def router(home: Path, folder: Path) -> Router:
    made = Router(home, start=folder)
    mine = [e for e in installed() if e.name != "local"]
    made.registry = Registry(entries=[*mine, EntryPoint("scripted", "scripted", "a-third-party", "3.1")])
    return made


def begun(router: Router, folder: Path, **given: object) -> StudyFolder:
    study(folder, **given)  # type: ignore[arg-type]
    plan = read(folder / "study.toml", stand=folder, kinds=router.registry.kinds()).plan
    router.store.writable()
    found = StudyFolder(router.store.home, plan.id)
    found.create(plan)
    return found


def driven(router: Router, folder: StudyFolder) -> tuple[str, Standing]:
    ending = Driver(router, folder, pause=lambda seconds: None).drive()
    return ending.code or ending.state, receipts(router.store.home, folder.id)


def test_what_was_never_submitted_is_tried_again_and_both_stand(
    router: Router, folder: Path, world: scripted.World
) -> None:
    world.script = {"first": [Unavailable("no room")], "second": [Rejected("never here")]}
    found = begun(router, folder, n=1)
    code, stands = driven(router, found)
    assert (code, stands.state) == ("over", "over")
    assert [seen.tries for seen in stands.seen] == [2, 1]
    tries = found.turn(1).tries
    assert [(t.executed, t.state, t.reason) for t in tries] == [
        (False, "failed", "not_submitted"),
        (True, "succeeded", ""),
    ]
    assert [t.key for t in tries] == [f"{stands.plan.sha256}/1", f"{stands.plan.sha256}/1/2"]
    assert len(stands.receipts) == 2
    assert [path.parent.name for path in stands.retried] == [tries[0].run_id]
    assert stands.extra == ()
    assert len(world.started) == 2


def test_a_place_that_never_takes_it_stops_the_study_and_the_next_driver_goes_on(
    router: Router, folder: Path, world: scripted.World
) -> None:
    world.script = {"first": [Unavailable("no room")] * 3, "second": [Unavailable("nor here")] * 3}
    found = begun(router, folder, n=1)
    code, stands = driven(router, found)
    assert (code, stands.state) == ("UNAVAILABLE", "stopped")
    assert stands.missing[0].why == "never executed: nor here"
    assert world.started == []
    code, stands = driven(router, found)
    assert (code, stands.state) == ("over", "over")
    assert [t.executed for t in found.turn(1).tries] == [False, False, False, True]


def test_a_lost_answer_is_asked_for_and_nothing_is_started_twice(
    router: Router, folder: Path, world: scripted.World
) -> None:
    world.script["first"] = [("started", SubmitUnknown("the line went dead"))]
    world.find["first"] = [Unavailable("still dead")] * 6
    code, stands = driven(router, begun(router, folder, n=1))
    assert (code, stands.complete) == ("over", True)
    assert len(world.started) == 2
    assert [seen.tries for seen in stands.seen] == [1, 1]


@pytest.mark.parametrize("state", [State.LOST, State.TIMED_OUT, State.PREEMPTED])
def test_however_a_run_ended_that_executed_it_counts(
    router: Router, folder: Path, world: scripted.World, state: State
) -> None:
    world.ends = Status(state=state, reason="waiter_died", started_us=1, ended_us=2)
    code, stands = driven(router, begun(router, folder, n=1))
    assert (code, stands.state, stands.failed) == ("over", "over", (1, 2))
    assert len(world.started) == 2
    assert stands.complete


@pytest.mark.parametrize(("rule", "most"), [("stop_after = 1", 1), ("", 3)])
def test_the_stop_rule_of_the_file_holds(
    router: Router, folder: Path, world: scripted.World, rule: str, most: int
) -> None:
    world.ends = Status(state=State.FAILED, exit_code=1, started_us=1, ended_us=2)
    code, stands = driven(router, begun(router, folder, n=6, more=rule))
    failed = [seen.turn.arm for seen in stands.seen if seen.counted]
    assert code == "STUDY_STOPPED"
    assert max(failed.count(arm) for arm in failed) == most


def test_what_claims_to_belong_and_does_not_is_shown(router: Router, folder: Path, route: Route) -> None:
    found = begun(router, folder, n=1)
    _, stands = driven(router, found)
    turn = stands.plan.turns[0]
    label = {STUDY: stands.plan.label(turn)}
    run = router.submit(router.plan(stands.plan.workload(turn)), labels=label)
    router.resume(run)
    again = receipts(router.store.home, found.id)
    assert [path.name for path in again.extra] == [run.id]
    assert len(again.receipts) == 2
    assert f"extra: {run.id} claims to belong" in route("study", "status").stdout


def test_a_receipt_that_was_removed_is_missing_and_its_run_is_not_repeated(
    router: Router, folder: Path, world: scripted.World
) -> None:
    found = begun(router, folder, n=1)
    _, stands = driven(router, found)
    first = stands.seen[0].run_id
    assert first
    router.store.remove(first)
    code, stands = driven(router, found)
    assert code == "over"
    assert [(m.index, m.why) for m in stands.missing] == [(1, "its receipt was removed")]
    assert len(world.started) == 2


def test_a_damaged_record_is_never_taken_for_a_run_not_started(router: Router, folder: Path) -> None:
    found = begun(router, folder, n=1)
    driven(router, found)
    (found.path / "turns" / "1.json").write_text('{"schema": "route.turn/1"')
    with pytest.raises(StoreError, match="damaged"):
        receipts(router.store.home, found.id)
    assert Driver(router, found).drive().code == "STORE_ERROR"


def test_a_try_that_was_only_written_down_is_held_against_the_files_too(
    router: Router, folder: Path, world: scripted.World
) -> None:
    found = begun(router, folder, n=1)
    key = found.plan.key(1)
    this = Try(key=key, run_id=key_run_id(key), begun_us=1)
    found.write_turn(TurnRecord(index=1, tries=(this,)))
    assert receipts(router.store.home, found.id).missing[0].why == "never collected"
    work = (folder / "work.py").read_text()
    (folder / "work.py").write_text(work + "# changed\n")
    code, _ = driven(router, found)
    assert code == "FILES_CHANGED"
    assert world.started == []
    (folder / "work.py").write_text(work)
    code, stands = driven(router, found)
    assert (code, stands.complete, stands.seen[0].run_id) == ("over", True, this.run_id)


# With the real place

CACHED = '''\
"""Reports a hit if its cache was filled before, else fills it."""
# /// script
# [tool.route]
# kind = "bench"
# purpose = "benchmark"
# python = "current"
# volumes = { compile-cache = "/cache" }
# ///
import json, os, sys
path = os.path.join(os.environ["ROUTE_VOLUME_COMPILE_CACHE"], sys.argv[1])
hit = os.path.exists(path)
with open(path, "a") as file:
    file.write("x")
with open(os.environ["ROUTE_METRICS"], "a") as file:
    verdict = {"event": "cache", "kind": "inductor", "verdict": "hit" if hit else "miss"}
    file.write(json.dumps(verdict) + "\\n")
    file.write(json.dumps({"event": "metric", "name": "x", "value": 1.5, "unit": "s"}) + "\\n")
with open(sys.argv[2], "a") as file:
    file.write(sys.argv[1] + (" hit\\n" if hit else " miss\\n"))
'''
ARMS = '[study]\nname = "c"\nworkload = "work.py"\nn = 1\nvary = ["arguments"]\n'


def test_a_warm_study_seeds_each_arm_first_and_those_never_count(
    route: Route, folder: Path, home: Path
) -> None:
    (folder / "work.py").write_text(CACHED)
    said = folder.parent / "said"
    (folder / "study.toml").write_text(
        ARMS + f'warm = true\n[arms.a]\nargs = ["a", "{said}"]\n[arms.b]\nargs = ["b", "{said}"]\n'
    )
    out = route("study", "run")
    assert out.returncode == 0, out.stderr
    lines = said.read_text().splitlines()
    assert lines[:2] == ["a miss", "b miss"], "the seeding passes come first"
    assert sorted(lines[2:]) == ["a hit", "b hit"]
    assert out.stderr.count("seeding ") == 2
    found = receipts(home, "c")
    assert found.complete
    assert found.extra == ()
    for path in found.receipts:
        context = json.loads(path.read_bytes())["context"]
        assert context["startup"]["seeding"]["v"] is False
    everything = [json.loads(p.read_bytes()) for p in (home / "runs").glob("*/receipt.json")]
    seeding = [r for r in everything if r["context"]["startup"]["seeding"]["v"]]
    assert len(seeding) == 2
    assert all(r["context"]["study"]["id"]["v"] is None for r in seeding)


def test_a_seeding_pass_that_failed_is_made_again_by_the_next_driver(
    route: Route, folder: Path, home: Path
) -> None:
    said = folder.parent / "said"
    (folder / "work.py").write_text(
        CACHED + f"if not os.path.exists({str(said) + '.good'!r}):\n    sys.exit(3)\n"
    )
    (folder / "study.toml").write_text(
        ARMS + f'warm = true\n[arms.a]\nargs = ["a", "{said}"]\n[arms.b]\nargs = ["b", "{said}"]\n'
    )
    out = route("study", "run")
    assert out.returncode == 65
    assert "the seeding pass of arm a did not succeed" in out.stderr
    Path(f"{said}.good").touch()
    assert route("study", "resume").returncode == 0
    assert receipts(home, "c").failed == ()


def test_every_run_of_a_cold_study_finds_an_empty_cache(route: Route, folder: Path, home: Path) -> None:
    (folder / "work.py").write_text(CACHED)
    said = folder.parent / "said"
    cold = 'set = { purpose = "cold-start", warmth = "cold" }\n'
    (folder / "study.toml").write_text(
        ARMS.replace("n = 1", "n = 2")
        + cold
        + f'[arms.a]\nargs = ["a", "{said}"]\n[arms.b]\nargs = ["b", "{said}"]\n'
    )
    out = route("study", "run")
    assert out.returncode == 0, out.stderr
    assert sorted(said.read_text().splitlines()) == ["a miss", "a miss", "b miss", "b miss"]


def test_a_secret_reaches_the_work_and_nothing_else(route: Route, folder: Path, home: Path) -> None:
    value = "s3cr3t-" + os.urandom(12).hex()
    study(folder, n=1, more='set = { secrets = ["STUDY_TOKEN"] }')
    work = folder / "work.py"
    work.write_text(work.read_text() + '\nassert os.environ["STUDY_TOKEN"].startswith("s3cr3t-")\n')
    assert route("study", "run").returncode == 77
    (folder / ".env").write_text(f"STUDY_TOKEN={value}\n")
    out = route("study", "run", "--env-file", ".env")
    assert out.returncode == 0, out.stderr
    assert receipts(home, "s").failed == ()
    assert set(witnessed(folder.parent / "witness").values()) == {1}
    for path in (home / "studies").rglob("*"):
        assert not path.is_file() or value.encode() not in path.read_bytes(), path


def test_the_shell_completes_studies_and_arms(router: Router, folder: Path) -> None:
    assert ask(folder, "route study status ") == ["latest"]
    found = begun(router, folder, n=1)
    assert ask(folder, "route study status ") == ["latest", found.id]
    assert ask(folder, f"route study cancel {found.id[:3]}") == [found.id]
    assert ask(folder, f"route study status {found.id} --arm ") == ["one", "three"]
    assert ask(folder, "route study run att")[0] == "attention"
    assert ask(folder, "route study re") == ["resume"]
