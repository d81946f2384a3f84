"""Proves that hardware that is wrong, sick or in use stops a start before user code, and is watched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boards import element, lost, printed, process, serving, told, tool, topology, uuid
from supervisor_driver import Fault, Place, holders, shell, spec

from compute_router.errors import Unavailable
from compute_router.machines.session import refusal


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


def asks(count: int, sku: str = "H200", **more: Any) -> dict[str, Any]:
    return {"family": "gpu", "sku": sku, "substitutes": [], "count": count, "uuids": None, **more}


def refused(place: Place, env: dict[str, str], devices: dict[str, Any], code: str, *said: str) -> None:
    """The start is refused with this, nothing was executed, and nothing stays leased."""
    link = place.link(env=env)
    run_id = place.submit(link, shell("touch ran", devices=devices))
    with pytest.raises(Fault, match=code) as found:
        link.start(run_id)
    error = found.value.error
    assert error["mend"]
    for words in said:
        assert words in error["what"], error
    assert isinstance(refusal("here", "start", error), Unavailable), "then the next place is tried"
    assert link.status(run_id)["state"] == "committed"
    attempt = place.attempt(run_id)
    assert not (attempt / "started.json").exists()
    assert not (attempt / "exec.json").exists()
    assert not (attempt.parent.parent / "work" / "ran").exists()
    assert link.ask("probe")["leases"] == []


def test_other_hardware_than_was_asked_for(place: Place, tmp_path: Path) -> None:
    env = tool(tmp_path, printed(*(element("H100-PCIE", i) for i in range(2))), topology(2, "SYS"))
    refused(place, env, asks(2), "HW_MISMATCH", "asked for 2 x H200", "H100-PCIE", "a lesser model")
    refused(place, env, asks(2, "H100"), "HW_MISMATCH", "another form")
    refused(place, env, asks(4, "H100-PCIE"), "HW_MISMATCH", "here are 2")
    refused(place, env, asks(1, uuids=[uuid(0)]), "HW_MISMATCH", "H100-PCIE")


@pytest.mark.parametrize("source", ["tool", "library"])
def test_seven_of_eight(place: Place, tmp_path: Path, source: str) -> None:
    if source == "tool":
        text = printed(*(element("H200-SXM", i) for i in range(7))) + lost(7)
        env = tool(tmp_path, text, topology(7), code=15)
    else:
        env = serving(tmp_path, told(["H200-SXM"] * 8, _7__handle="!15"))
    refused(place, env, asks(8), "SICK_GPU", "asked for 8 x H200, here are 7", "is lost")
    link = place.link(env=env)
    run_id = place.submit(link, shell("true", devices=asks(7)))
    link.start(run_id)
    assert link.follow(run_id)[0]["state"] == "succeeded", "seven that are well are seven"


@pytest.mark.parametrize(
    ("over", "said"),
    [({"_1__ecc_uncorrected": 4}, "4 uncorrectable"), ({"_1__rows": "1 0 1 0"}, "only by a reset")],
)
def test_a_sick_gpu_is_named_and_passed_over(
    place: Place, tmp_path: Path, over: dict[str, Any], said: str
) -> None:
    env = serving(tmp_path, told(["H200-SXM"] * 2, **over))
    refused(place, env, asks(2), "SICK_GPU", "GPU 1", uuid(1), said)
    link = place.link(env=env)
    [well, ill] = link.ask("probe")["devices"]["list"]
    assert (well["sick"], well["sku"]) == (None, "H200")
    assert said in ill["sick"]
    run_id = place.submit(link, shell("echo $CUDA_VISIBLE_DEVICES", devices=asks(1)))
    link.start(run_id)
    assert link.follow(run_id)[1].decode().split() == [uuid(0)]


def test_a_gpu_in_use_is_passed_over_or_stops_it(place: Place, tmp_path: Path) -> None:
    env = serving(tmp_path, told(["H200-SXM"] * 2, _0__pids="4242"))
    refused(place, env, asks(2), "FOREIGN", "GPU 0", uuid(0), "4242")
    taken = serving(tmp_path, told(["H200-SXM"] * 2, _0__used=40 << 30))
    refused(place, taken, asks(2), "FOREIGN", "somebody whom we cannot see", "40960 MiB")
    link = place.link(env=taken)
    run_id = place.submit(link, shell("echo $CUDA_VISIBLE_DEVICES", devices=asks(1)))
    link.start(run_id)
    assert link.follow(run_id)[1].decode().split() == [uuid(1)]


def test_a_gpu_that_is_lost_after_it_was_leased(place: Place, tmp_path: Path) -> None:
    """The look before the exec asks more than the choice of devices did: here a limit that is lost."""
    env = serving(tmp_path, told(["H200-SXM"], _0__power_limit_mw="!15"))
    refused(place, env, asks(1), "SICK_GPU", "GPU 0", uuid(0), "is lost")


def test_a_driver_that_hangs_stops_it(place: Place, tmp_path: Path) -> None:
    env = serving(tmp_path, told(["H200-SXM"]) + "hang nvmlInit_v2\n")
    link = place.link(env={**env, "PATH": "/nowhere"})
    run_id = place.submit(link, shell("touch ran", devices=asks(1)))
    with pytest.raises(Fault, match=r"PREFLIGHT.*no answer") as found:
        link.start(run_id)
    assert "Xid" in found.value.error["mend"]
    assert link.status(run_id)["state"] == "committed"


def measured(place: Place, link: Any, run_id: str) -> dict[str, Any]:
    link.ask("manifest", run_id=run_id)
    found: dict[str, Any] = place.read(run_id, "measured.json")
    return found


def test_what_a_run_on_gpus_leaves(place: Place, tmp_path: Path) -> None:
    env = serving(tmp_path, told(["H200-SXM"] * 8, xid=79))
    link = place.link(env=env)
    made = shell("sleep 0.6", devices=asks(8), observe={"sample_us": 100_000})
    run_id = place.submit(link, made)
    link.start(run_id)
    place.until(link, run_id, {"running"})
    time.sleep(0.3)
    (tmp_path / "told").write_text(told(["H200-SXM"] * 8, _3__ecc_uncorrected=2, _5__handle="!15"))
    link.follow(run_id)
    block = measured(place, link, run_id)
    seen = {name: fact["v"] for name, fact in block["hw"]["observed"].items()}
    assert (seen["sku"], seen["count"], seen["form_factor"]) == ("H200-SXM", 8, "SXM")
    assert seen["uuid"] == [uuid(i) for i in range(8)]
    assert (seen["topology"], seen["power_limit_w"], seen["mig"], seen["ecc"]) == ("8:NV18", 700, "off", "on")
    assert (seen["driver"], seen["cuda_driver"], seen["cc"]) == ("550.54.15", "12.4", "9.0")
    assert (seen["mem_bytes"], seen["temp_c_max"]) == (143771 << 20, 41)
    assert seen["clock_sm_mhz"]["p50"] == seen["clock_sm_mhz"]["min"] == 1755
    assert seen["clock_sm_mhz"]["window"] == "all", "the work reported no steps"
    assert seen["throttle_reasons"] == ["sw_power_cap 100%"]
    text = " ".join(seen["errors"])
    assert "Xid 79" in text
    assert "ecc_uncorrected went from 0 to 2" in text
    assert f"GPU 5 ({uuid(5)}) is lost afterwards" in text
    assert block["hw"]["observed"]["sku"]["src"] == "nvml"
    assert len(block["hw"]["gpus"]) == 8
    assert "retired_pending" in block["hw"]["gpus"][0]["why"]
    assert block["samples"]["gpus"]["power_w_p50"]["v"] == 412


def test_clocks_are_those_of_the_counted_steps(place: Place, tmp_path: Path) -> None:
    """Samples from before the first counted step are left out where the work says when its steps were."""
    told_slow, told_fast = (told(["L4-PCIE"], _0__sm_mhz=mhz) for mhz in (300, 2040))
    env = serving(tmp_path, told_slow)
    (tmp_path / "fast").write_text(told_fast)
    script = f"""
import json, os, pathlib, time
time.sleep(0.6)
os.replace({str(tmp_path / "fast")!r}, {str(tmp_path / "told")!r})
time.sleep(0.4)
with open(os.environ["ROUTE_METRICS"], "a") as f:
    for step in range(8):
        line = {{"step": step, "tokens": 1, "mono_us": time.monotonic_ns() // 1000}}
        f.write(json.dumps(line) + chr(10)); f.flush()
        time.sleep(0.15)
"""
    link = place.link(env=env)
    files = {"work.py": script.encode()}
    made = spec(["{python}", "work.py"], files=files, devices=asks(1, "L4"), observe={"sample_us": 100_000})
    run_id = place.submit(link, made, files=files)
    link.start(run_id)
    assert link.follow(run_id)[0]["state"] == "succeeded"
    clocks = measured(place, link, run_id)["hw"]["observed"]["clock_sm_mhz"]["v"]
    assert (clocks["p50"], clocks["min"], clocks["window"]) == (2040, 2040, "steady")


def test_gpus_that_differ_are_not_one_value(place: Place, tmp_path: Path) -> None:
    env = serving(tmp_path, told(["L4-PCIE"] * 2, _1__power_limit_mw=60_000))
    link = place.link(env=env)
    run_id = place.submit(link, shell("true", devices=asks(2, "L4")))
    link.start(run_id)
    link.follow(run_id)
    seen = measured(place, link, run_id)["hw"]["observed"]
    assert seen["power_limit_w"] == {"v": None, "why": "the GPUs differ: 1 x 60, 1 x 72"}
    assert (seen["topology"]["v"], seen["mig"]["v"]) == ("2:SYS", "unsupported")


def test_a_driver_that_hangs_meanwhile_holds_nothing_up(place: Place, tmp_path: Path) -> None:
    """The work is cancelled while whoever reads the GPUs hangs; the watcher neither waits nor dies."""
    env = serving(tmp_path, told(["L4-PCIE"]))
    link = place.link(env=env)
    made = shell("sleep 60", devices=asks(1, "L4"), observe={"sample_us": 100_000}, grace_us=100_000)
    run_id = place.submit(link, made)
    link.start(run_id)
    samples = place.attempt(run_id) / "samples.jsonl"
    until = time.monotonic() + 20
    while time.monotonic() < until and '"gpus"' not in (samples.read_text() if samples.exists() else ""):
        time.sleep(0.02)
    assert '"gpus"' in samples.read_text()
    with (tmp_path / "told").open("a") as f:
        f.write("hang nvmlDeviceGetTotalEccErrors\n")
    while time.monotonic() < until and "has not answered" not in samples.read_text():
        time.sleep(0.02)
    assert "has not answered" in samples.read_text()
    (tmp_path / "told").write_text(told(["L4-PCIE"]))
    link.ask("cancel", run_id=run_id)
    assert link.follow(run_id)[0]["state"] == "cancelled"
    block = measured(place, link, run_id)
    assert block["processes"]["stuck"]["v"] == 0
    assert block["hw"]["observed"]["errors"]["v"] == []


def test_another_process_on_our_gpu_is_counted(place: Place, tmp_path: Path) -> None:
    """A process of the work is its own; one of this test is a co-tenant."""
    env = serving(tmp_path, told(["L4-PCIE"]))
    link = place.link(env=env)
    made = shell("sleep 1.5 & echo $!; wait", devices=asks(1, "L4"), observe={"sample_us": 100_000})
    run_id = place.submit(link, made)
    link.start(run_id)
    place.until(link, run_id, {"running"})
    log = place.attempt(run_id) / "log"
    until = time.monotonic() + 10
    while not log.read_text().strip() and time.monotonic() < until:
        time.sleep(0.01)
    own = log.read_text().strip()
    (tmp_path / "told").write_text(told(["L4-PCIE"], _0__pids=f"{own} {os.getpid()}"))
    link.follow(run_id)
    assert measured(place, link, run_id)["hw"]["observed"]["cotenants"]["v"] == 1


def test_whoever_reads_the_gpus_ends_with_the_watcher(place: Place, tmp_path: Path) -> None:
    env = serving(tmp_path, told(["L4-PCIE"]))
    link = place.link(env=env)
    made = shell("sleep 60", devices=asks(1, "L4"), observe={"sample_us": 100_000}, grace_us=100_000)
    run_id = place.submit(link, made)
    link.start(run_id)
    until = time.monotonic() + 20
    children: list[str] = []
    while not children and time.monotonic() < until:
        for watcher in holders(place.attempt(run_id), "watch.lock"):
            children = Path(f"/proc/{watcher}/task/{watcher}/children").read_text().split()
        time.sleep(0.01)
    assert children, "a process beside the watcher"
    assert holders(place.attempt(run_id), "watch.lock") != [int(child) for child in children]
    for watcher in holders(place.attempt(run_id), "watch.lock"):
        os.kill(watcher, signal.SIGKILL)
    while Path(f"/proc/{children[0]}").exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert not Path(f"/proc/{children[0]}").exists()
    assert link.status(run_id)["state"] == "running"
    link.ask("cancel", run_id=run_id)
    assert link.follow(run_id)[0]["state"] == "cancelled"


def test_a_run_without_accelerator_asks_no_driver(place: Place, tmp_path: Path) -> None:
    """Its own hardware is seen; what an accelerator would have does not apply."""
    (tmp_path / "tools").mkdir()
    trap = tmp_path / "tools" / "nvidia-smi"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\n")
    trap.chmod(0o755)
    link = place.link(env={"PATH": f"{trap.parent}:{os.environ['PATH']}"})
    run_id = place.submit(link, shell("true"))
    link.start(run_id)
    link.follow(run_id)
    block = measured(place, link, run_id)
    assert not (tmp_path / "asked").exists()
    seen = block["hw"]["observed"]
    assert {seen[n]["v"] for n in ("topology", "mig", "errors", "cotenants", "cc")} == {"not_applicable"}
    assert seen["cpus"]["v"] * 1000 >= seen["cpu_milli"]["v"] > 0
    before = json.loads((place.attempt(run_id) / "before.json").read_text())["hardware"]
    assert "gpus" not in before
    assert block["hw"]["processor"] == before["processor"]
    assert before["processor"]["memory_bytes"] > before["processor"]["memory_free_bytes"] > 0


def test_the_tools_processes_stop_it_too(place: Place, tmp_path: Path) -> None:
    env = tool(tmp_path, printed(element("H200-SXM", 0, processes=process(4242))), topology(1))
    refused(place, env, asks(1), "FOREIGN", "4242")


def test_errors_that_nobody_could_count_afterwards_are_not_none(place: Place, tmp_path: Path) -> None:
    env = serving(tmp_path, told(["L4-PCIE"]))
    link = place.link(env=env)
    run_id = place.submit(link, shell("sleep 0.5", devices=asks(1, "L4")))
    link.start(run_id)
    (tmp_path / "told").write_text(told(["L4-PCIE"], _0__ecc_uncorrected="!3"))
    link.follow(run_id)
    found = measured(place, link, run_id)["hw"]["observed"]["errors"]
    assert found["v"] is None
    assert "told ecc_uncorrected before the work, and not after it" in found["why"]


def test_an_answer_of_gpus_that_were_not_due_is_no_sample(place: Place, tmp_path: Path) -> None:
    """The tool costs so much that it is asked seldom."""
    link = place.link(env=tool(tmp_path, printed(element("L4-PCIE", 0)), topology(1)))
    made = shell("sleep 0.8", devices=asks(1, "L4"), observe={"sample_us": 100_000})
    run_id = place.submit(link, made)
    link.start(run_id)
    link.follow(run_id)
    block = measured(place, link, run_id)
    rows = [json.loads(row) for row in (place.attempt(run_id) / "samples.jsonl").read_text().splitlines()]
    assert any(not {"pid", "gpus", "why"} & set(row) for row in rows), "asked when nothing was due"
    assert block["samples"]["count"] == sum("pid" in row for row in rows)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_process_that_proc_does_not_show_is_not_ours() -> None:
    """As under `hidepid`: it is there, of another user."""
    program = (
        "import os; from compute_router.supervisor.observing import gauges; os.setuid(65534);"
        f"print(gauges._hidden({os.getpid()}), gauges._hidden(2**22 - 1))"
    )
    got = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert got.stdout.split() == ["True", "False"], got.stderr
