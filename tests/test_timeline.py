"""Proves on real runs that the time line is whole, its parts within the whole, and its clocks told apart."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from supervisor_driver import Place, spec

from compute_router import Router, run
from compute_router.receipt.facts import at_path, value
from compute_router.receipt.schema import TABLE
from compute_router.supervisor.observing import container, reports, timeline
from compute_router.supervisor.observing.facts import Look, Observed
from compute_router.supervisor.runs import Attempt, Run
from compute_router.workload import Entry, Workload
from compute_router.workloads.bench import Bench
from compute_router.workloads.train import Train
from compute_router.workloads.validate import Validate

WORK = """
import time, numpy_stand_in
import route_report
route_report.resumed(RESUMED)
route_report.fields(seed=7, dtype="float32", tokens_per_step=10, manifest_sha256="ab" * 32)
for step in range(6):
    with route_report.span("data_wait"):
        time.sleep(0.002)
    if step == EVAL:
        with route_report.span("eval"):
            time.sleep(0.01)
    time.sleep(0.01)
    route_report.step(step, tokens=10, loss=1.0)
with route_report.span("checkpoint"):
    time.sleep(0.01)
"""
PARTS = ("bootstrap", "import", "warmup", "steady", "idle")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


def measure(place: Place, code: str, **more: Any) -> dict[str, Any]:
    """The measured block of `code` run as the work."""
    files = {"w.py": code.encode()}
    link = place.link()
    run_id = place.submit(link, spec(["{python}", "w.py"], files=files, **more), files=files)
    link.start(run_id)
    status, log, _ = link.follow(run_id)
    assert status["state"] == "succeeded", log
    link.ask("manifest", run_id=run_id)
    found: dict[str, Any] = place.read(run_id, "measured.json")
    return found


def test_the_parts_of_a_run_are_within_the_run_and_an_evaluation_is_placed(place: Place) -> None:
    code = WORK.replace("numpy_stand_in", "json").replace("RESUMED", "0")
    for at, inside in (("-1", {}), ("3", {"eval": 1})):
        found = measure(place, code.replace("EVAL", at))
        spent = {name[:-3]: fact["v"] for name, fact in found["timing"].items()}
        assert spent["idle"] >= 0
        total = sum(spent[name] for name in PARTS) + spent["checkpoint"]
        assert total == spent["run"], "each moment of the run is in one part"
        assert spent["first_step"] == spent["warmup"] > 0
        assert 0 < spent["data_wait"] < spent["steady"] + spent["warmup"]
        assert found["steady"]["inside"]["v"] == inside
        assert found["checks"]["eval_off"]["v"] is (False if inside else None)
        assert container.inside() or found["startup"]["class"]["v"] == "warm_machine_fresh_process"
        assert found["data"]["manifest_sha256"]["v"] == "ab" * 32
        assert found["clock"]["stepped_us"]["v"] == 0
        assert len(found["distributed"]["first_step_us"]["v"]) == 1


def test_what_cannot_be_is_not_believed(place: Place) -> None:
    """Steps that took longer than the run, two writers, and a clock of another machine."""
    impossible = "import route_report as r\nfor i in range(5): r.step(i, tokens=10, step_us=10**9)\n"
    twice = "import route_report as r\nfor i in (0, 0, 1, 1, 2, 2): r.step(i, tokens=10)\n"
    foreign = (
        "import os, json\nf = open(os.environ['ROUTE_METRICS'], 'a')\n"
        "for i in range(5): f.write(json.dumps({'step': i, 'tokens': 1, 'mono_us': 5 + i}) + '\\n')\n"
    )
    for code, why in (
        (impossible, "more than the run took"),
        (twice, "several processes report"),
        (foreign, "is not that of the machine"),
    ):
        found = measure(place, code)
        for fact in (
            found["metrics"]["tok_s_global"],
            found["steady"]["n_steps"],
            found["steady"]["step_us"],
            found["timing"]["steady_us"],
        ):
            assert fact["v"] is None
            assert why in fact["why"]
        assert found["timing"]["run_us"]["v"] > 0


@pytest.mark.skipif(container.inside(), reason="a container has classes of its own")
def test_the_class_of_a_start(place: Place) -> None:
    work = "import route_report as r\nr.resumed(%s)\nfor i in (5, 6): r.step(i)\n"
    assert measure(place, work % "5")["startup"]["class"]["v"] == "resumed_checkpoint"
    # As a boot before this one would have left it: there is no way to boot the machine of a test.
    boots = place.root / "boots"
    for mark in boots.iterdir():
        mark.rename(boots / "0-an-earlier-boot")
    assert measure(place, "pass")["startup"]["class"]["v"] == "warm_machine_after_reboot"
    assert measure(place, "pass")["startup"]["class"]["v"] == "warm_machine_fresh_process"


@pytest.mark.skipif(container.inside(), reason="a container has classes of its own")
def test_checkpoints_that_lay_there_leave_the_class_open_until_the_work_speaks(place: Place) -> None:
    volume = {"checkpoints": "mine"}
    save = "import os\nopen(os.environ['ROUTE_CHECKPOINTS'] + '/c', 'w').close()\n"
    report = "import route_report as r\n"
    assert measure(place, save, volumes=volume)["startup"]["class"]["v"] == "warm_machine_fresh_process"
    silent = measure(place, report + "r.step(5)\nr.step(6)\n", volumes=volume)["startup"]["class"]
    assert silent["v"] is None
    assert "route_report.resumed" in silent["why"]
    anew = measure(place, report + "r.step(0)\nr.step(1)\n", volumes=volume)["startup"]["class"]
    assert anew["v"] == "warm_machine_fresh_process"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_every_rank_tells_of_its_first_step(place: Place) -> None:
    """Two real ranks under torchrun over gloo: rank 0 reports, each has its first step."""
    code = (
        "import torch, torch.distributed as d, route_report as r\n"
        "d.init_process_group('gloo')\n"
        "for i in range(4):\n"
        "    x = torch.ones(1); d.all_reduce(x); r.step(i, tokens=10, sum=float(x))\n"
        "r.memory(peak_alloc_bytes=100 + d.get_rank())\n"
        "d.destroy_process_group()\n"
    )
    found = measure(place, code, launcher={"name": "torchrun", "ranks": 2})
    first = found["distributed"]["first_step_us"]["v"]
    assert len(first) == 2
    assert all(0 < us < found["timing"]["run_us"]["v"] for us in first)
    assert found["steady"]["n_steps"]["v"] == 3, "not twice as many"
    assert found["metrics"]["last"]["v"]["sum"] == "2"
    assert found["mem"]["peak_alloc_bytes"]["v"] == [100, 101]


def looked(folder: Path, **records: dict[str, Any]) -> Look:
    """A look at an attempt with these records, as a machine would have left them."""
    attempt = Attempt(Run(str(folder), "01" + "0" * 24), 1)
    Path(attempt.path).mkdir(parents=True, exist_ok=True)
    rest: dict[str, Any] = {
        "waiter": {},
        "leases": [],
        "devices": [],
        "oom": {},
        "pid": 1,
        "start": 1,
        "attempt": 1,
    }
    rest |= {"argv": [], "reason": "", "detail": "", "state": "succeeded", "at_us": 1}
    for name, said in records.items():
        record = {**rest, **said}
        (Path(attempt.path) / f"{name}.json").write_text(json.dumps(record))
    return Look(attempt, {"launcher": {"name": "python", "ranks": 1}})


@pytest.mark.parametrize("by", [-3_600_000_000, -1, 0, 99_000, 200_000, 86_400_000_000])
def test_a_clock_that_is_set_while_the_work_runs(tmp_path: Path, by: int) -> None:
    """Recorded: the clock of the machine of a test is not ours to set. No duration is touched by it."""
    at, ran = 1_800_000_000_000_000, 5_000_000
    look = looked(
        tmp_path,
        started={"boot_id": "b", "at_us": at, "mono_us": 100},
        exec={"boot_id": "b", "at_us": at + 10, "mono_us": 110},
        exit={"boot_id": "b", "ended_us": at + ran + by, "mono_us": 100 + ran, "exit_code": 0},
    )
    small = abs(by) <= timeline.STEPPED_US
    o = Observed()
    assert timeline.clock(o, look)["stepped_us"]["v"] == (0 if small else by)
    assert timeline.timing(o, look)["run_us"]["v"] == ran - 10
    events = [row["event"] for row in timeline.lifecycle(look)]
    assert ("clock_stepped" in events) is not small


def test_two_boots_have_no_common_clock(tmp_path: Path) -> None:
    look = looked(
        tmp_path,
        started={"boot_id": "b", "at_us": 1, "mono_us": 100},
        exec={"boot_id": "b", "at_us": 1, "mono_us": 110},
        exit={"boot_id": "c", "ended_us": 9, "mono_us": 900, "exit_code": 0, "state": "succeeded"},
    )
    o = Observed()
    assert timeline.timing(o, look)["run_us"]["v"] is None
    assert timeline.timing(o, look)["idle_us"]["v"] is None
    assert timeline.clock(o, look)["stepped_us"]["v"] is None


@given(
    st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 4000), st.booleans()), max_size=8),
    st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 3000)), max_size=4),
    st.integers(0, 3),
)
def test_parts_never_exceed_the_whole(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[int, int, bool]],
    imports: list[tuple[int, int]],
    discard: int,
) -> None:
    """Whatever steps, spans and imports were written: what is told of them fits into the run."""
    look = looked(
        tmp_path_factory.mktemp("parts"),
        started={"boot_id": "b", "at_us": 1, "mono_us": 0},
        exec={"boot_id": "b", "at_us": 1, "mono_us": 0},
        exit={"boot_id": "b", "ended_us": 9, "mono_us": 9000, "exit_code": 0, "state": "succeeded"},
    )
    look.spec["metrics"] = {"discard_steps": discard}
    at, lines = 0, []
    for number, (gap, spent, says) in enumerate(steps):
        at += gap
        lines.append({"event": "eval", "us": spent, "mono_us": at})
        lines.append({"step": number, "mono_us": at, **({"step_us": spent} if says else {})})
    Path(look.attempt.at("metrics.jsonl")).write_text("\n".join(map(json.dumps, lines)))
    inside = [{"e": "start", "id": "1-1", "pid": 1, "parent": 0, "mono_us": 10}]
    inside += [
        {"e": "import", "id": "1-1", "pid": 1, "name": "torch", "begin_us": b, "end_us": b + us, "ok": True}
        for b, us in imports
    ]
    Path(look.attempt.at("inside.jsonl")).write_text("\n".join(map(json.dumps, inside)))
    o = Observed()
    spent_us = {name: fact["v"] for name, fact in timeline.timing(o, look).items()}
    if spent_us["idle_us"] is not None:
        assert spent_us["idle_us"] >= 0
        assert sum(spent_us[f"{name}_us"] for name in PARTS) <= spent_us["run_us"]
    for name in ("warmup_us", "steady_us"):
        assert spent_us[name] is None or 0 <= spent_us[name] <= spent_us["run_us"]
    assert set(reports.checks(o, look)) >= {"eval_off", "finite"}
    assert "n_steps" in reports.steady(o, look)


def test_the_client_measures_the_clock_and_the_environment(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "w.py").write_text(
        WORK.replace("numpy_stand_in", "json").replace("RESUMED", "3").replace("EVAL", "4")
    )
    entry = Entry(root=str(tmp_path / "src"), script="w.py")
    work = Workload(name="clock", entry=entry, kind="train", python=sys.executable, fields={"seed": 8})
    receipt = run(work, router=Router(tmp_path / "home", plugins=False))
    context = receipt["context"]
    assert value(context, "clock.rtt_us") > 0
    # One computer has one clock: what is seen between its processes is within the round trip.
    assert abs(value(context, "clock.offset_us")) <= value(context, "clock.rtt_us")
    assert value(context, "timing.image_us") >= 0
    assert value(context, "timing.submit_us") >= value(context, "timing.image_us")
    assert value(context, "data.tokens_per_step_global") == 10
    assert at_path(context, "numerics.dtype.src") == "workload"
    assert value(context, "numerics.seed") == 8, "what is declared wins"
    assert value(context, "checks.eval_off") is False
    promised = (
        "the backend promised a start of class warm_machine_fresh_process, and it was resumed_checkpoint"
    )
    told = value(context, "caveats")
    assert container.inside() or told.pop(0) == promised
    assert told == [
        "declared seed = 8, the work says another",
        "1 of the steps that count had eval inside",
    ]
    for field in TABLE:
        fact = at_path(context, field.path)
        if field.path.startswith("timing.") and fact["v"] is None:
            assert len(fact["why"]) > 12, (field.path, fact)


def test_another_kernel_than_declared_is_no_claim(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "w.py").write_text(
        "import route_report as r\nr.kernel('flash', 'flash')\nfor i in range(6): r.step(i, tokens=1)\n"
    )
    entry = Entry(root=str(tmp_path / "src"), script="w.py")
    work = Workload(name="kernel", entry=entry, kind="train", python=sys.executable, fields={"kernel": "fa4"})
    receipt = run(work, router=Router(tmp_path / "home", plugins=False))
    context = receipt["context"]
    assert [value(context, f"kernel.{name}") for name in ("requested", "observed")] == ["fa4", "flash"]
    assert value(context, "checks.kernel_truth") is False, (
        "the work's own word for what was asked is not ours"
    )
    assert receipt["evidence_class"] == "anecdote"
    assert "CHECK_FAILED" in [reason["code"] for reason in receipt["evidence_reasons"]]


def scaled(node: Any, by: int) -> Any:
    """The same block of work that took `by` times as long."""
    if isinstance(node, dict):
        return {
            name: item * by if name.endswith("_us") and type(item) is int else scaled(item, by)
            for name, item in node.items()
        }
    return [scaled(item, by) for item in node] if isinstance(node, list) else node


def test_no_check_knows_how_fast_it_went(place: Place) -> None:
    code = WORK.replace("numpy_stand_in", "json").replace("RESUMED", "0").replace("EVAL", "-1")
    found = measure(place, code)
    for name in ("steady_us", "warmup_us", "run_us", "idle_us", "data_wait_us"):
        found["timing"][name] = found["timing"][name]["v"]
    found["steady"]["step_us"] = found["steady"]["step_us"]["v"]
    slow = scaled(found, 10**6)
    slow["steady"]["step_us"] = {name: us * 10**6 for name, us in slow["steady"]["step_us"].items()}
    slow["metrics"]["tok_s_global"]["v"] = "0.000001"
    for kind in (Train(), Bench(), Validate()):
        assert kind.checks(found) == kind.checks(slow)
        assert kind.success(found) == kind.success(slow)
