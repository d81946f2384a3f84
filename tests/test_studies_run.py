"""Proves whole studies through the command line: order, receipts, failures, refusals, one driver."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from conftest import ROUTE, Route
from studying import document, driver_of, study, until, witnessed
from terminals import Terminal

from compute_router.receipt import verify
from compute_router.studies import receipts


def test_a_study_from_its_file_to_its_last_receipt(route: Route, folder: Path, home: Path) -> None:
    witness = study(folder, n=2)
    out = route("study", "run")
    assert out.returncode == 0, out.stderr
    assert out.stdout == ""
    found = receipts(home, "s")
    assert found.state == "over"
    assert found.complete
    assert (found.failed, found.missing, found.extra, found.retried) == ((), (), (), ())
    # In the planned order, each once.
    planned = [f"{turn.arm} {turn.index}" for turn in found.plan.turns]
    assert witness.read_text().splitlines() == planned
    assert f"run 4/4    block 2, arm {found.plan.turns[3].arm}" in out.stderr
    assert "tok_s_global" in out.stderr
    assert f"route compare {found.plan.id}" in out.stderr
    began = []
    for turn, path in zip(found.plan.turns, found.receipts, strict=True):
        assert verify(path) == []
        context = json.loads(path.read_bytes())["context"]
        said = {name: fact["v"] for name, fact in context["study"].items()}
        assert said == {
            "id": found.plan.id,
            "sha256": found.plan.sha256,
            "index": turn.index,
            "n_planned": 4,
            "arm": turn.arm,
            "arms": ["one", "three"],
            "block": turn.block,
            "order_seed": 0,
            "vary": ["workload.preset"],
            "margin": "0.02",
        }
        began.append(json.loads((path.parent / "status.json").read_bytes())["started_us"])
    assert began == sorted(began)
    # Again: the same study, and nothing is started.
    again = route("study", "run", "--json")
    assert again.returncode == 0
    assert document(again.stdout)["data"]["study_id"] == found.plan.id
    assert sum(witnessed(witness).values()) == 4
    shown = route("study", "status").stdout
    assert [line.split()[2] for line in shown.splitlines()[-4:]] == [t.arm for t in found.plan.turns]
    listed = json.loads(route("study", "list", "--json").stdout)["data"]
    assert [(s["study_id"], s["state"], s["counted"]) for s in listed] == [(found.plan.id, "over", 4)]


def test_planning_starts_nothing(route: Route, folder: Path, home: Path) -> None:
    witness = study(folder, n=6)
    out = route("study", "plan", "--json")
    assert out.returncode == 0, out.stderr
    data = json.loads(out.stdout)["data"]
    assert [place["backend"] for place in data["places"]] == ["local", "local"]
    assert len(data["plan"]["turns"]) == 12
    text = route("study", "plan")
    assert data["plan"]["id"] in text.stdout
    assert not witness.exists()
    assert not (home / "runs").exists()
    assert not (home / "studies").exists()


def test_an_error_of_the_file_is_one_line_with_its_place(route: Route, folder: Path) -> None:
    study(folder, more="marigin = 0.1")
    out = route("study", "run")
    assert out.returncode == 64
    assert out.stderr.splitlines()[0].startswith("route: study.toml:7: [study] has no key 'marigin'")
    assert "did you mean 'margin'?" in out.stderr
    assert route("study", "run", "nosuch.toml").returncode == 64
    assert "attention" in route("study", "run", "atention").stderr
    assert route("study", "status").returncode == 64


def test_failures_count_and_some_in_a_row_stop_it(route: Route, folder: Path, home: Path) -> None:
    witness = study(folder, n=3, more="stop_after = 2")
    (witness.parent / "witness.fail.three").touch()
    out = route("study", "run", "--json")
    assert out.returncode == 65
    said = document(out.stdout)
    assert said["error"]["code"] == "STUDY_STOPPED"
    assert "arm three has failed 2 times in a row" in said["error"]["what"]
    stopped = receipts(home, "s")
    assert stopped.state == "stopped"
    assert len(stopped.failed) == 2
    assert {m.why for m in stopped.missing} == {"never started"}
    # The failed ones stand; what was not run is, once it is asked for.
    out = route("study", "resume", "--keep-going")
    assert out.returncode == 0, out.stderr
    assert "arm three  0 of 3 succeeded" in out.stderr
    found = receipts(home, "s")
    assert found.state == "over"
    assert found.complete
    assert len(found.failed) == 3
    assert set(witnessed(witness).values()) == {1}
    assert len(witnessed(witness)) == 6


def test_a_place_there_is_none_of_counts_for_nothing(route: Route, folder: Path, home: Path) -> None:
    witness = study(folder, n=1, more='set = { accelerator = "H200:8" }')
    out = route("study", "run", "--json")
    assert out.returncode == 69
    assert document(out.stdout)["error"]["code"] == "UNAVAILABLE"
    assert "run 1 (arm" in document(out.stdout)["error"]["what"]
    found = receipts(home, "s")
    assert [seen.tries for seen in found.seen] == [3, 0]
    assert found.missing[0].why.startswith("never executed: ")
    assert not witness.exists()
    assert route("study", "plan").returncode == 65


def test_changed_code_is_refused_while_a_study_is_not_over(route: Route, folder: Path, home: Path) -> None:
    witness = study(folder, n=1, more="stop_after = 1")
    (witness.parent / "witness.fail.three").touch()
    assert route("study", "run").returncode == 65
    before = sum(witnessed(witness).values())
    good = (folder / "work.py").read_text()
    (folder / "work.py").write_text(good + "# changed\n")
    for words in (("run",), ("resume", "s")):
        out = route("study", *words)
        assert out.returncode == 65, words
        assert "the files of all arms have changed since study s-" in out.stderr
        assert "mend: put" in out.stderr
    assert sum(witnessed(witness).values()) == before
    out = route("study", "run", "--new", "--detach", "--keep-going")
    assert out.returncode == 0
    route("study", "cancel", out.stdout.strip())
    (folder / "work.py").write_text(good)
    (witness.parent / "witness.fail.three").unlink()
    old = next(
        f for f in json.loads(route("study", "list", "--json").stdout)["data"] if f["state"] == "stopped"
    )
    assert route("study", "resume", old["study_id"]).returncode == 0
    found = receipts(home, old["study_id"])
    assert found.complete
    assert len(found.failed) == 1


def test_several_at_once_have_one_driver(folder: Path, home: Path, route: Route) -> None:
    witness = study(folder, n=2, sleep=0.2)
    clients = [
        subprocess.Popen([*ROUTE, "study", "run"], cwd=folder, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    said = [client.communicate(timeout=120)[1] for client in clients]
    assert [client.returncode for client in clients] == [0, 0, 0], said
    assert set(witnessed(witness).values()) == {1}
    assert len(witnessed(witness)) == 4
    events = [json.loads(e)["event"] for e in next((home / "studies").glob("*/events.jsonl")).open()]
    assert events.count("driving") == 1


def test_ctrl_c_leaves_it_running_and_says_how_to_come_back(folder: Path, home: Path, route: Route) -> None:
    witness = study(folder, n=2, sleep=1.0)
    terminal = Terminal(folder, "study", "run")
    terminal.until("run 1/4")
    terminal.type("\x03")
    terminal.until("leaving in 2 s")
    assert terminal.exit() == 130
    found = receipts(home, "s")
    assert f"route study resume {found.plan.id}" in terminal.seen
    assert f"route study cancel {found.plan.id}" in terminal.seen
    assert found.state == "running"
    out = route("study", "resume")
    assert out.returncode == 0, out.stderr
    assert "it is running already" in out.stderr
    assert set(witnessed(witness).values()) == {1}
    assert receipts(home, "s").complete


def test_cancel_ends_the_driver_and_the_run_in_flight(folder: Path, home: Path, route: Route) -> None:
    witness = study(folder, n=1, sleep=100)
    out = route("study", "run", "--detach")
    assert out.returncode == 0
    until(lambda: witnessed(witness))
    driver = driver_of(home)
    out = route("study", "cancel", out.stdout.strip())
    assert out.returncode == 0, out.stderr
    assert "cancelled; 1 of 2 runs counted" in out.stdout
    found = receipts(home, "s")
    assert (found.state, found.seen[0].state, found.seen[1].state) == ("cancelled", "cancelled", "planned")
    assert verify(found.receipts[0]) == []
    assert not found.driven
    with pytest.raises(ProcessLookupError):
        until(lambda: os.kill(driver, 0))
    assert route("study", "cancel", "s").returncode == 0


def test_cancel_ends_what_a_dead_driver_left(folder: Path, home: Path, route: Route) -> None:
    witness = study(folder, n=1, sleep=100)
    route("study", "run", "--detach")
    until(lambda: witnessed(witness))
    os.kill(driver_of(home), signal.SIGKILL)
    until(lambda: not receipts(home, "s").driven)
    assert receipts(home, "s").state == "interrupted"
    assert receipts(home, "s").missing[0].why == "never collected"
    out = route("study", "cancel", "s")
    assert "cancelled; 1 of 2" in out.stdout, out.stderr
    assert sum(witnessed(witness).values()) == 1
