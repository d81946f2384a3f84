"""Proves that SIGKILL of client, waiter, watcher or work, at any moment, doubles nothing and loses nothing.

`ROUTE_KILLS` sets the number of seeded points (60 otherwise). `lost` is allowed only where the waiter
was killed after the work's exec marker; everything else ends in the work's own exit code, or is proven
never to have executed and then started again.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from supervisor_driver import DIGEST, FINAL, PYTHON, Fault, Link, Place, ended, holders, kill, shell, spec

from compute_router.supervisor.boot import BOOT

POINTS = int(os.environ.get("ROUTE_KILLS", "60"))
SHARES = 6
SEED = int(os.environ.get("ROUTE_SEED", "20240611"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


def strike(place: Place, link: Link, run_id: str, victim: str, delay: float) -> bool:
    """Kill the victim in `delay` seconds, or as soon after as there is one. False if there never was."""
    attempt = place.attempt(run_id)
    time.sleep(delay)
    until = time.monotonic() + 0.5
    while time.monotonic() < until and not (attempt / "exit.json").exists():
        if victim == "server":
            link.process.kill()
            return True
        if victim == "work":
            try:
                pids = [int(place.read(run_id, "exec.json")["pid"])]
            except (OSError, ValueError):
                pids = []
        else:
            pids = holders(attempt, "sup.lock") if "waiter" in victim else []
            pids += holders(attempt, "watch.lock") if "watcher" in victim else []
        if kill(pids):
            return True
        time.sleep(0.001)
    return False


def bring_to_an_end(place: Place, run_id: str) -> tuple[dict[str, Any], int]:
    """What a client does that finds the run again: start what is proven unexecuted, then follow."""
    attempt = 1
    with place.link() as link:
        while True:
            link.start(run_id, attempt)
            status, _, _ = link.follow(run_id)
            if status["state"] == "lost" and status["reason"] == "never_executed" and attempt < 4:
                attempt += 1
                continue
            for _ in range(3):
                assert link.status(run_id) == status, "a final state never changes"
            link.ask("manifest", run_id=run_id)
            return status, attempt


def judge(place: Place, run_id: str, victim: str, ledger: Path, status: dict[str, Any], attempt: int) -> None:
    """Hold what is said of the run against what was really executed."""
    lines = ledger.read_text().split() if ledger.exists() else []
    assert len(lines) == len(set(lines)), f"an attempt was executed twice: {lines}"
    for number in range(1, attempt):
        assert str(number) not in lines, f"attempt {number} was called never executed, but was: {lines}"
    ran = str(attempt) in lines
    said = (status["state"], status["reason"])
    if said == ("failed", "exit"):
        assert status["exit_code"] == 7
        assert ran
    elif said == ("failed", "signal"):
        assert "work" in victim
        assert status["signal"] == signal.SIGKILL
    elif said == ("failed", "cannot_start"):
        assert victim == "nobody", "an error of the disk keeps it from starting, a kill does not"
        assert not ran
        assert not (place.attempt(run_id, attempt) / "exec.json").exists()
    else:
        assert said == ("lost", "waiter_died"), status
        assert "waiter" in victim, f"{victim} was killed, and the run was called lost"
        assert place.read(run_id, "exec.json", attempt)["pid"]
    measured = place.read(run_id, "measured.json", attempt)
    assert measured["outcome"]["state"] == status["state"]


@pytest.mark.parametrize("share", range(SHARES))
def test_random_kills(place: Place, tmp_path: Path, share: int) -> None:
    rng = random.Random(SEED + share)
    print(f"seed {SEED} + {share}, {POINTS // SHARES} points")
    victims = ["server", "waiter", "watcher", "work", "waiter+watcher"]
    hits = 0
    for point in range(POINTS // SHARES):
        victim, delay = victims[point % len(victims)], rng.uniform(0, 0.12)
        ledger = tmp_path / f"ledger-{point}"
        link = place.link()
        run_id = place.submit(link, shell(f"echo $ROUTE_ATTEMPT >> {ledger}; sleep 0.08; exit 7"))
        link.send("start", run_id=run_id, attempt=1, wait_us=0)
        hits += strike(place, link, run_id, victim, delay)
        status, attempt = bring_to_an_end(place, run_id)
        judge(place, run_id, victim, ledger, status, attempt)
        link.process.kill()
        assert (place.root / "runs" / run_id).is_dir()
    assert hits > 0


def traced(place: Place, syscall: str, what: str, tmp_path: Path, run_id: str) -> tuple[bytes, bytes]:
    """A `start` by a server to which, and to all that comes of it, `what` happens at calls of `syscall`."""
    inject = ["-e", f"trace={syscall}", "-e", f"inject={syscall}:{what}"]
    boot = [PYTHON, "-I", "-S", "-c", BOOT]
    process = subprocess.Popen(
        ["strace", "-f", "-q", "-o", str(tmp_path / "trace"), *inject, *boot],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "ROUTE_LEASE_DIR": str(place.root.parent / "leases")},
    )
    hello = {"route": 1, "nonce": "b" * 32, "root": str(place.root), "digest": DIGEST}
    start = {"op": "start", "run_id": run_id, "attempt": 1, "wait_us": 0}
    try:
        return process.communicate(f"{json.dumps(hello)}\n{json.dumps(start)}\n".encode(), 20)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()


def can_trace() -> bool:
    if shutil.which("strace") is None:
        return False
    tried = subprocess.run(
        ["strace", "-qq", "-e", "trace=fsync", "-e", "inject=fsync:signal=KILL:when=1", "true"],
        capture_output=True,
    )
    return tried.returncode == 0


@pytest.mark.parametrize(
    "syscall",
    ["fsync", "link,linkat", "unlink,unlinkat", "fork,vfork,clone,clone3", "waitid,wait4", "execve"],
)
def test_kills_at_every_call(place: Place, tmp_path: Path, syscall: str) -> None:
    """Every process of the supervisor dies at its k-th such call, for each k until nothing dies any more."""
    if not can_trace():
        pytest.skip("strace is not installed or not allowed here")
    states = []
    for when in range(1, 25):
        ledger = tmp_path / f"ledger-{when}"
        with place.link() as link:
            run_id = place.submit(link, shell(f"echo $ROUTE_ATTEMPT >> {ledger}; exit 7", leases=["one"]))
        traced(place, syscall, f"signal=KILL:when={when}", tmp_path, run_id)
        time.sleep(0.02)
        status, attempt = bring_to_an_end(place, run_id)
        judge(place, run_id, "waiter or work", ledger, status, attempt)
        states.append((attempt, status["state"], status["reason"]))
        if "killed by SIGKILL" not in (tmp_path / "trace").read_text():
            break
    print(syscall, states)
    assert len(states) > 1, "something was killed"
    assert states[-1] == (1, "failed", "exit"), "beyond the last call nothing is"


@pytest.mark.parametrize(
    ("syscall", "error"),
    [
        ("fsync", "EIO"),
        ("link,linkat", "ENOSPC"),
        ("rename,renameat,renameat2", "EIO"),
        ("fork,vfork,clone,clone3", "EAGAIN"),
        ("flock", "ENOLCK"),
        ("ftruncate,pwrite64", "ENOSPC"),
        ("mkdir,mkdirat", "ENOSPC"),
    ],
)
def test_errors_at_every_call(place: Place, tmp_path: Path, syscall: str, error: str) -> None:
    """Each such call fails once, for each k: a named error or none, never a traceback, never a lost run."""
    if not can_trace():
        pytest.skip("strace is not installed or not allowed here")
    seen = []
    for when in range(1, 25):
        ledger = tmp_path / f"ledger-{when}"
        with place.link() as link:
            run_id = place.submit(link, shell(f"echo $ROUTE_ATTEMPT >> {ledger}; exit 7", leases=["one"]))
        out, err = traced(place, syscall, f"error={error}:when={when}", tmp_path, run_id)
        assert b"Traceback" not in err, err.decode()[-2000:]
        reply = json.loads(out.splitlines()[-1].removeprefix(b"b" * 32))
        if not reply["ok"]:
            assert reply["error"]["code"] not in ("INTERNAL", "BAD_REQUEST"), reply
            assert reply["error"]["mend"]
        status, attempt = bring_to_an_end(place, run_id)
        judge(place, run_id, "nobody", ledger, status, attempt)
        seen.append((attempt, status["state"], reply.get("error", {}).get("code", "")))
        if "INJECTED" not in (tmp_path / "trace").read_text():
            break
    print(syscall, error, seen)
    assert len(seen) > 1


def test_a_killed_watcher_comes_back_and_does_its_work(place: Place) -> None:
    link = place.link()
    run_id = place.submit(link, shell("sleep 30", timeout_us=1_500_000))
    link.start(run_id)
    seen = set()
    for _ in range(3):
        until = time.monotonic() + 5
        while time.monotonic() < until:
            pids = [p for p in holders(place.attempt(run_id), "watch.lock") if p not in seen]
            if pids:
                break
            time.sleep(0.01)
        seen.update(pids)
        kill(pids)
    assert len(seen) >= 2, "it was brought back"
    status, _, _ = link.follow(run_id)
    assert (status["state"], status["reason"]) == ("timed_out", "timeout")


def test_an_orphan_is_adopted_and_its_end_told(place: Place, tmp_path: Path) -> None:
    link = place.link()
    made = shell("sleep 60 & echo started; wait", leases=["one"], timeout_us=60_000_000)
    run_id = place.submit(link, made)
    link.start(run_id)
    executed = place.read(run_id, "exec.json")
    attempt = place.attempt(run_id)
    until = time.monotonic() + 5
    while not holders(attempt, "watch.lock") and time.monotonic() < until:
        time.sleep(0.01)
    kill(holders(attempt, "sup.lock") + holders(attempt, "watch.lock"))
    found = place.until(link, run_id, {"orphaned"})
    assert found["reason"] == "waiter_died"
    assert not ended(executed["pid"], 0.1), "the work goes on"
    assert link.start(run_id)["state"] == "orphaned"
    other = place.submit(link, shell("true", leases=["one"]))
    with pytest.raises(Fault, match="BUSY") as busy:
        link.start(other)
    assert busy.value.error["holder"]["run_id"] == run_id, "the lease stays with the living work"
    until = time.monotonic() + 5
    while not holders(attempt, "watch.lock") and time.monotonic() < until:
        time.sleep(0.01)
    assert holders(attempt, "watch.lock"), "it has a watcher again"
    link.ask("cancel", run_id=run_id)
    status, _, _ = link.follow(run_id)
    assert (status["state"], status["reason"]) == ("cancelled", "cancel")
    assert ended(executed["pid"])
    assert link.start(other)["state"] in FINAL | {"running"}


def test_a_deadline_holds_for_an_orphan(place: Place) -> None:
    link = place.link()
    run_id = place.submit(link, spec(["/bin/sleep", "60"], timeout_us=1_500_000, grace_us=100_000))
    link.start(run_id)
    kill(holders(place.attempt(run_id), "sup.lock"))
    status, _, seen = link.follow(run_id)
    assert "orphaned" in {s["state"] for s in seen}
    assert (status["state"], status["reason"]) == ("timed_out", "timeout")


def test_a_waiter_killed_before_the_exec_is_never_executed(place: Place, tmp_path: Path) -> None:
    """The marker is what decides: without it the next attempt is allowed, with it never."""
    link = place.link()
    ledger = tmp_path / "ledger"
    run_id = place.submit(link, shell(f"echo $ROUTE_ATTEMPT >> {ledger}; exit 7"))
    attempt = place.attempt(run_id)
    link.start(run_id)
    link.follow(run_id)
    link.ask("manifest", run_id=run_id)
    # What a waiter leaves that died between its start record and its child's marker.
    other = place.submit(link, shell(f"echo $ROUTE_ATTEMPT >> {ledger}; exit 7"))
    stopped = place.attempt(other)
    stopped.mkdir(parents=True)
    started = place.read(run_id, "started.json")
    (stopped / "started.json").write_text(json.dumps({**started, "leases": []}))
    (stopped / "sup.lock").touch()
    found = link.status(other)
    assert (found["state"], found["reason"]) == ("lost", "never_executed")
    assert link.start(other, 1) == found
    link.start(other, 2)
    status, _, _ = link.follow(other)
    assert (status["attempt"], status["exit_code"]) == (2, 7)
    assert ledger.read_text() == "1\n2\n"
    with pytest.raises(Fault, match="ATTEMPT"):
        link.start(other, 3)
    with pytest.raises(Fault, match="ATTEMPT"):
        link.start(other, 1)
    assert attempt.is_dir()
