"""Proves that a lease has one holder, that waiting is in order and ends, and that devices are looked at."""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boards import element, printed, process, tool, topology
from supervisor_driver import Fault, Place, holders, kill, shell

from compute_router.records import canonical


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


def test_forty_contenders_one_holder(place: Place, tmp_path: Path) -> None:
    """All are asked at once: one runs, thirty-nine are told who holds it, and none overlaps another."""
    link = place.link()
    other = Place(tmp_path)
    other.root = tmp_path / "another-root"
    links = [link, other.link(), place.link(), other.link()]
    mark = tmp_path / "inside"
    script = f"mkdir {mark} || echo overlap >> {tmp_path}/overlap; sleep 2; rmdir {mark}"
    runs = []
    for number in range(40):
        where = place if number % 2 == 0 else other
        runs.append(where.submit(links[number % 2], shell(script, leases=["one", "machine"])))
    for number, run_id in enumerate(runs):
        links[number % 4].send("start", run_id=run_id, attempt=1, wait_us=0)
    replies = [links[number % 4].receive()[0] for number in range(40)]
    winners = [r for r in replies if r["ok"]]
    losers = [r["error"] for r in replies if not r["ok"]]
    try:
        assert {error["code"] for error in losers} == {"BUSY"}
        assert len(winners) + len(losers) == 40
        assert 1 <= len(winners) <= 3, "the four connections take longer than one run lasts"
        assert {error["holder"]["run_id"] for error in losers} <= set(runs)
        assert not (tmp_path / "overlap").exists()
    finally:
        other.close()


def test_a_hundred_rounds_of_taking(tmp_path: Path) -> None:
    """Eight processes take and release the same two leases: never are two inside."""
    import subprocess
    import sys

    program = (
        "import os, sys, time\n"
        "from compute_router.supervisor import leases\n"
        "mark = {'run_id': 'r%d' % os.getpid(), 'attempt': 1, 'pid': os.getpid(), 'start': 0}\n"
        "won = 0\n"
        "while won < 25:\n"
        "    fds, blocked = leases.take(['a', 'b'], mark)\n"
        "    if blocked is None:\n"
        "        os.mkdir(sys.argv[1]); os.rmdir(sys.argv[1]); won += 1\n"
        "        leases.release(fds)\n"
        "    time.sleep(0.001)\n"
    )
    env = {**os.environ, "ROUTE_LEASE_DIR": str(tmp_path / "leases")}
    crowd = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "inside")], env=env) for _ in range(4)
    ]
    assert [process.wait(60) for process in crowd] == [0] * 4, "os.mkdir fails for the second one inside"


def test_all_or_none(place: Place) -> None:
    link = place.link()
    first = place.submit(link, shell("sleep 30", leases=["b"], grace_us=100_000))
    link.start(first)
    second = place.submit(link, shell("sleep 30", leases=["a", "b", "c"]))
    with pytest.raises(Fault, match="BUSY") as busy:
        link.start(second)
    assert busy.value.error["holder"]["lease"] == "b"
    assert [lease["lease"] for lease in link.ask("probe")["leases"]] == ["b"], "none of the three was kept"
    assert link.status(second)["state"] == "committed"
    third = place.submit(link, shell("true", leases=["a", "c"]))
    link.start(third)
    assert link.follow(third)[0]["state"] == "succeeded"


def test_waiting_is_told_and_served_in_order(place: Place, tmp_path: Path) -> None:
    link = place.link()
    order = tmp_path / "order"
    runs = [
        place.submit(
            link, shell(f"echo {i} >> {order}; while [ ! -e go ]; do sleep 0.02; done", leases=["one"])
        )
        for i in range(4)
    ]
    link.start(runs[0])
    for position, run_id in enumerate(runs[1:], 1):
        status = link.start(run_id, wait_us=None)
        assert (status["state"], status["reason"]) == ("waiting", "busy")
        until = time.monotonic() + 5
        while link.status(run_id)["position"] != position and time.monotonic() < until:
            time.sleep(0.01)
        assert link.status(run_id)["position"] == position
    waiting = link.status(runs[1])
    assert waiting["holder"]["run_id"] == runs[0]
    assert runs[0] in waiting["detail"]
    late = place.submit(link, shell("true", leases=["one"]))
    with pytest.raises(Fault, match="BUSY"):
        link.start(late)
    for run_id in runs:
        place.until(link, run_id, {"running"})
        (place.root / "runs" / run_id / "work" / "go").touch()
        assert link.follow(run_id)[0]["state"] == "succeeded"
        link.ask("manifest", run_id=run_id)
    assert order.read_text().split() == ["0", "1", "2", "3"]
    assert link.start(late)["state"] in {"running", "succeeded"}


def test_waiting_ends_by_its_time(place: Place) -> None:
    link = place.link()
    first = place.submit(link, shell("sleep 30", leases=["one"], grace_us=100_000))
    link.start(first)
    second = place.submit(link, shell("echo never", leases=["one"]))
    assert link.start(second, wait_us=300_000)["state"] == "waiting"
    status, log, _ = link.follow(second)
    assert (status["state"], status["reason"], log) == ("failed", "wait_expired", b"")
    assert first in status["detail"]
    link.ask("manifest", run_id=second)
    assert place.read(second, "measured.json")["outcome"]["executed"] is False
    link.ask("cancel", run_id=first)
    link.follow(first)
    link.ask("manifest", run_id=first)
    link.start(second, attempt=2)
    assert link.follow(second)[1] == b"never\n", "it was never executed, so it may be started again"


def test_waiting_can_be_cancelled_and_killed(place: Place) -> None:
    link = place.link()
    first = place.submit(link, shell("sleep 30", leases=["one"], grace_us=100_000))
    link.start(first)
    second = place.submit(link, shell("true", leases=["one"]))
    third = place.submit(link, shell("true", leases=["one"]))
    link.start(second, wait_us=None)
    link.start(third, wait_us=None)
    link.ask("cancel", run_id=second)
    status, _, _ = link.follow(second)
    assert (status["state"], status["reason"]) == ("cancelled", "cancel")
    kill(holders(place.attempt(third), "sup.lock"))
    assert place.until(link, third, {"committed"})["reason"] == "", "nothing was started, nothing is lost"
    link.ask("cancel", run_id=first)
    link.follow(first)
    link.ask("manifest", run_id=first)
    link.start(third)
    assert link.follow(third)[0]["state"] == "succeeded", "what the dead waiter left in the queue is no one"


def test_a_lease_is_held_as_long_as_anything_of_the_work_lives(place: Place) -> None:
    link = place.link()
    run_id = place.submit(link, shell("sleep 60 & exec sleep 60", leases=["one"]))
    link.start(run_id)
    executed, started = place.read(run_id, "exec.json"), place.read(run_id, "started.json")
    time.sleep(0.2)
    os.kill(started["waiter"]["pid"], signal.SIGKILL)
    kill(holders(place.attempt(run_id), "watch.lock"))
    os.kill(executed["pid"], signal.SIGKILL)
    time.sleep(0.1)
    assert link.status(run_id)["state"] == "orphaned", "the grandchild has the lease"
    assert [lease["run_id"] for lease in link.ask("probe")["leases"]] == [run_id]
    link.ask("cancel", run_id=run_id)
    assert link.follow(run_id)[0]["state"] == "cancelled"
    assert link.ask("probe")["leases"] == []


def test_the_lease_folder_serves_every_user(place: Place, tmp_path: Path) -> None:
    link = place.link()
    run_id = place.submit(link, shell("true", leases=["one"]))
    link.start(run_id)
    link.follow(run_id)
    folder = tmp_path / "leases"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    assert stat.S_IMODE((folder / "one.lock").stat().st_mode) == 0o666
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with place.link(env={"ROUTE_LEASE_DIR": str(tmp_path / "link")}) as tricked:
        other = place.submit(tricked, shell("true", leases=["one"]))
        with pytest.raises(Fault, match="PREFLIGHT"):
            tricked.start(other)
        assert tricked.status(other)["state"] == "committed"


A, B = "GPU-aaaa", "GPU-bbbb"


def fake(
    tmp_path: Path, *pairs: tuple[str, str], text: str | None = None, pids: str = "", **more: Any
) -> dict[str, str]:
    """A driver's tool that tells of these GPUs (two H200 unless others are named)."""
    listed = pairs or ((A, "H200-SXM"), (B, "H200-SXM"))
    rows = [element(sku, i, uuid=one, processes=pids if not i else "") for i, (one, sku) in enumerate(listed)]
    return tool(tmp_path, printed(*rows) if text is None else text, topology(len(rows)), **more)


def gpus(count: int, sku: str = "H200", substitutes: tuple[str, ...] = ()) -> dict[str, object]:
    return {"family": "gpu", "sku": sku, "substitutes": list(substitutes), "count": count, "uuids": None}


def test_devices_are_leased_by_uuid(place: Place, tmp_path: Path) -> None:
    link = place.link(env=fake(tmp_path))
    runs = []
    for _ in range(2):
        made = shell("echo $CUDA_VISIBLE_DEVICES; while [ ! -e go ]; do sleep 0.02; done", devices=gpus(1))
        runs.append(place.submit(link, made))
        link.start(runs[-1])
    third = place.submit(link, shell("true", devices=gpus(1)))
    with pytest.raises(Fault, match="BUSY") as busy:
        link.start(third)
    assert busy.value.error["holder"]["run_id"] in runs
    seen = []
    for run_id in runs:
        (place.root / "runs" / run_id / "work" / "go").touch()
        status, log, _ = link.follow(run_id)
        assert status["state"] == "succeeded"
        seen.append(log.decode().strip())
    assert sorted(seen) == ["GPU-aaaa", "GPU-bbbb"]
    link.ask("manifest", run_id=runs[0])
    observed = place.read(runs[0], "measured.json")["hw"]["observed"]
    assert (observed["count"]["v"], observed["uuid"]["v"]) == (1, [seen[0]])
    assert link.ask("probe")["devices"]["list"][0]["name"] == "NVIDIA H200"


def test_a_foreign_process_on_a_device_is_told(place: Place, tmp_path: Path) -> None:
    link = place.link(env=fake(tmp_path, pids=process(4242)))
    run_id = place.submit(link, shell("true", devices=gpus(2)))
    with pytest.raises(Fault, match=r"FOREIGN.*4242"):
        link.start(run_id)
    assert link.ask("probe")["leases"] == []
    fake(tmp_path)
    link.start(run_id)
    assert link.follow(run_id)[0]["state"] == "succeeded"


@pytest.mark.parametrize(
    ("what", "match"),
    [
        ({"text": "rubbish\n"}, "cannot read"),
        ({"text": "failed", "code": 9}, "fails"),
        ({"hang": True}, "hangs"),
        ({}, ""),
    ],
)
def test_a_tool_that_lies_or_hangs_is_a_preflight_error(
    place: Place, tmp_path: Path, what: dict[str, object], match: str
) -> None:
    env = fake(tmp_path, **what)  # type: ignore[arg-type]
    if not what:
        env, match = {"PATH": str(tmp_path), "ROUTE_NVML": "none"}, "no nvidia-smi"
    link = place.link(env=env)
    run_id = place.submit(link, shell("true", devices=gpus(2)))
    with pytest.raises(Fault, match=f"PREFLIGHT.*{match}") as told:
        link.start(run_id)
    assert told.value.error["mend"]
    assert link.status(run_id)["state"] == "committed"


def test_a_substitute_will_do(place: Place, tmp_path: Path) -> None:
    link = place.link(env=fake(tmp_path, ("GPU-cccc", "H100-SXM-80GB")))
    run_id = place.submit(link, shell("echo $CUDA_VISIBLE_DEVICES", devices=gpus(1, substitutes=("H100",))))
    link.start(run_id)
    assert link.follow(run_id)[1] == b"GPU-cccc\n"


def test_the_next_offer_on_the_same_machine_takes_the_place_of_one_that_was_refused(
    place: Place, tmp_path: Path
) -> None:
    link, ledger = place.link(), tmp_path / "ledger"
    holder = place.submit(link, shell("sleep 30", leases=["gpu"], grace_us=100_000))
    link.ask("start", run_id=holder, attempt=1, wait_us=0)
    refused = shell(f"echo x >> {ledger}", leases=["gpu"])
    run_id = place.submit(link, refused)
    with pytest.raises(Fault, match="BUSY"):
        link.ask("start", run_id=run_id, attempt=1, wait_us=0)
    instead = {**refused, "leases": [], "devices": {"family": "cpu"}}
    assert link.commit(instead)["already"] is True
    old = hashlib.sha256(canonical(refused)).hexdigest()
    with pytest.raises(Fault, match="CONFLICT"):
        link.ask("start", run_id=run_id, attempt=1, wait_us=0, spec_sha256=old)
    assert not ledger.exists()
    link.ask("start", run_id=run_id, attempt=1, wait_us=0)
    assert link.follow(run_id)[0]["state"] == "succeeded"
    for late in (refused, {**refused, "argv": ["/bin/false"]}):
        with pytest.raises(Fault, match="CONFLICT"):
            link.commit(late)
    assert ledger.read_text() == "x\n"


def test_a_waiter_holds_on_to_its_specification(place: Place) -> None:
    link = place.link()
    holder = place.submit(link, shell("sleep 30", leases=["one"], grace_us=100_000))
    link.ask("start", run_id=holder, attempt=1, wait_us=0)
    waits = shell("true", leases=["one"])
    run_id = place.submit(link, waits)
    assert link.ask("start", run_id=run_id, attempt=1, wait_us=None)["status"]["state"] == "waiting"
    with pytest.raises(Fault, match="CONFLICT"):
        link.commit({**waits, "leases": []})
    link.ask("cancel", run_id=run_id)
