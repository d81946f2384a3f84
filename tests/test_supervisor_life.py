"""Proves a run's life on a machine: opening, committing, starting once, following, collecting, freeing."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from supervisor_driver import BUNDLE, DIGEST, Fault, Link, Place, shell, spec

from compute_router.records import canonical
from compute_router.supervisor.boot import BOOT, bundle


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


TRAIN = b"""
import os, sys
import route_report
print("argv", sys.argv[1:], "cwd", os.path.basename(os.getcwd()))
for i in range(4):
    route_report.step(i, tokens=100, loss=1 / (i + 1))
open(os.path.join(os.environ["ROUTE_OUTPUTS"], "model.bin"), "wb").write(b"weights")
os.makedirs("results", exist_ok=True)
open("results/table.txt", "w").write("1 2 3")
"""


def old_python() -> str:
    """An interpreter of the oldest version that machines may have; skips the test without one."""
    found = [*Path.home().glob(".pyenv/versions/3.8.*/bin/python3"), Path("/usr/bin/python3.8")]
    for path in found:
        if path.exists():
            return str(path)
    pytest.skip("no Python 3.8 on this machine")


@pytest.mark.parametrize("which", ["current", "3.8"])
def test_a_whole_life(place: Place, which: str) -> None:
    python = sys.executable if which == "current" else old_python()
    files = {"train.py": TRAIN, "data/empty": b""}
    link = place.link(python=python)
    assert link.wanted, "the first opening brings the bundle"
    made = spec(["{python}", "train.py", "--steps", "3"], files=files, outputs=["results/", "absent/"])
    run_id = place.submit(link, made, files=files)
    assert link.status(run_id)["state"] == "committed"
    assert link.start(run_id)["state"] in {"running", "succeeded"}
    status, log, seen = link.follow(run_id)
    assert (status["state"], status["exit_code"], status["signal"]) == ("succeeded", 0, None)
    assert log == b"argv ['--steps', '3'] cwd work\n"
    assert seen[-1] == status
    assert status["started_us"] <= status["ended_us"]

    listed = link.ask("manifest", run_id=run_id)
    by_path = {f["path"]: f for f in listed["files"]}
    assert by_path["outputs/model.bin"]["role"] == by_path["work/results/table.txt"]["role"] == "output"
    assert listed["skipped"] == [{"path": "work/absent", "why": "was not made"}]
    fetched = link.fetch(run_id, list(by_path))
    for path, data in fetched.items():
        assert isinstance(data, bytes)
        assert hashlib.sha256(data).hexdigest() == by_path[path]["sha256"], path
    measured = json.loads(fetched["measured.json"])
    assert canonical(measured) == fetched["measured.json"], "the block is canonical"
    assert measured["outcome"]["state"] == "succeeded"
    assert measured["steady"]["n_steps"]["v"] == 3
    assert float(measured["metrics"]["tok_s_global"]["v"]) > 0
    assert measured["metrics"]["loss_last"]["v"] == "0.25"
    assert measured["checks"]["end_marker"]["v"] is True
    assert measured["mem"]["host_rss_peak"]["v"] > 1 << 20
    assert [e["seq"] for e in measured["lifecycle"]] == list(range(1, len(measured["lifecycle"]) + 1))
    assert measured["timing"]["run_us"]["v"] > 0

    with place.link(python=python) as second:
        assert not second.wanted, "the second opening finds it"
        assert second.start(run_id) == status, "starting again starts nothing"
        assert second.ask("cancel", run_id=run_id)["status"] == status
        for _ in range(2):
            second.ask("collected", run_id=run_id, receipt_id="a" * 64)
            second.ask("cleanup", run_id=run_id)
        assert second.status(run_id) == status
        assert not (place.root / "runs" / run_id / "work").exists()
        (entry,) = second.ask("list")["runs"]
        assert (entry["state"], entry["collected"]) == ("succeeded", "a" * 64)
        tried = second.ask("gc", before_us=2**52)
        assert (tried["removed"], tried["dry_run"]) == ([run_id], True)
        assert second.ask("gc", before_us=2**52, dry_run=False)["removed"] == [run_id]
        assert second.ask("status", run_ids=[run_id])["statuses"][run_id] is None


def test_bytecode_is_cached_and_the_bundle_is_its_digest(place: Place) -> None:
    with place.link() as link:
        assert link.wanted
    assert hashlib.sha256(BUNDLE).hexdigest() == DIGEST == bundle()[0]
    home = place.root / "bin" / DIGEST
    assert list((home / "route_supervisor" / "__pycache__").glob("server.*.pyc"))
    reported = {
        "route_report.py",
        "route_inside.py",
        "route_inside_counts.py",
        "route_inside_failure.py",
        "sitecustomize.py",
    }
    assert {p.name for p in (home / "report").iterdir()} == reported
    assert not list((place.root / "bin").glob(".*")), "nothing half written stays"


def test_two_first_openings_at_once(place: Place) -> None:
    links: list[Link] = []
    threads = [threading.Thread(target=lambda: links.append(place.link())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [link.hello["ok"] for link in links] == [True] * 6
    assert [p.name for p in (place.root / "bin").iterdir()] == [DIGEST]


def test_twenty_starts_at_once_execute_once(place: Place, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    made = shell(
        f"echo $ROUTE_RUN_ID $ROUTE_ATTEMPT >> {ledger}; while [ ! -e go ]; do sleep 0.05; done; exit 7"
    )
    links = [place.link() for _ in range(20)]
    run_id = place.submit(links[0], made)
    for link in links:
        link.send("start", run_id=run_id, attempt=1, wait_us=0)
    states = [link.receive()[0]["status"]["state"] for link in links]
    assert set(states) <= {"running", "starting"}, states
    (place.root / "runs" / run_id / "work" / "go").touch()
    for link in links[:4]:
        status, _, _ = link.follow(run_id)
        assert (status["state"], status["exit_code"], status["reason"]) == ("failed", 7, "exit")
    assert ledger.read_text() == f"{run_id} 1\n"


def test_another_specification_under_the_same_id_is_a_conflict(place: Place) -> None:
    link = place.link()
    made = shell("true")
    run_id = place.submit(link, made)
    assert link.commit(made)["already"] is True
    with pytest.raises(Fault, match="CONFLICT"):
        link.commit({**made, "argv": ["/bin/false"]})
    with pytest.raises(Fault, match="CONFLICT"):
        link.ask("start", run_id=run_id, attempt=1, wait_us=0, spec_sha256="f" * 64)
    assert link.status(run_id)["state"] == "committed", "and nothing was started"


def test_commit_start_and_follow_in_one_flight(place: Place) -> None:
    link = place.link()
    made = shell("echo flown")
    data = canonical(made)
    run_id, digest = made["run_id"], hashlib.sha256(data).hexdigest()
    link.send("prepare", run_id=run_id, spec_sha256=digest, blobs=[])
    link.send("commit", data, run_id=run_id)
    link.send("start", run_id=run_id, attempt=1, wait_us=0, spec_sha256=digest)
    assert [link.receive()[0]["re"] for _ in range(3)] == ["prepare", "commit", "start"]
    assert link.follow(run_id)[1] == b"flown\n"


def test_what_the_work_sees(place: Place) -> None:
    made = shell(
        "env -0 > $ROUTE_OUTPUTS/env; ls -l /proc/self/fd > $ROUTE_OUTPUTS/fds; umask > $ROUTE_OUTPUTS/umask;"
        "echo compiled > $CUDA_CACHE_PATH/x;"
        'echo \'{"event": "cache", "kind": "autotune", "verdict": "miss"}\' >> $ROUTE_METRICS',
        env={"MINE": "a b'\"$x", "TRITON_CACHE_DIR": "/elsewhere"},
        secrets=["TOKEN"],
        volumes={"compile-cache": "main", "data": "set-1"},
        cache_key="ab" * 32,
    )
    link = place.link(env={"ROUTE_HOME": "/secret/home", "KEPT": "1"})
    run_id = place.submit(link, made)
    with pytest.raises(Fault, match="PREFLIGHT: missing secret TOKEN"):
        link.start(run_id)
    assert link.status(run_id)["state"] == "committed"
    link.start(run_id, secrets={"TOKEN": "s3cret-value", "OTHER": "not asked for"})
    assert link.follow(run_id)[0]["state"] == "succeeded"
    out = place.attempt(run_id) / "outputs"
    env = dict(e.split("=", 1) for e in (out / "env").read_text().split("\0") if e)
    assert env["TOKEN"] == "s3cret-value"
    assert "OTHER" not in env
    assert env["MINE"] == "a b'\"$x"
    assert env["KEPT"] == env["ROUTE_ATTEMPT"] == env["PYTHONUNBUFFERED"] == "1"
    assert "ROUTE_HOME" not in env
    assert env["ROUTE_RUN_ID"] == run_id
    volumes = place.root / "volumes"
    assert env["ROUTE_VOLUME_COMPILE_CACHE"] == str(volumes / "compile-cache" / "main")
    assert env["ROUTE_VOLUME_DATA"] == str(volumes / "data" / "set-1")
    assert env["TORCHINDUCTOR_CACHE_DIR"] == str(volumes / "compile-cache" / "main" / "inductor")
    assert env["TRITON_CACHE_DIR"] == "/elsewhere", "what the workload says wins"
    assert (out / "umask").read_text().strip() in {"0022", "022"}
    fds = (out / "fds").read_text()
    assert "lock" not in fds, "the work holds no lock of the supervisor"
    assert "pipe:" not in fds
    link.ask("manifest", run_id=run_id)  # waits for the waiter's last records
    stamp = json.loads((volumes / "compile-cache" / "main" / ".route" / f"{'ab' * 32}.json").read_text())
    assert stamp["run_id"] == run_id
    caches = link.ask("probe", keys=["ab" * 32, "cd" * 32])["caches"]
    assert [c["state"] for c in caches.values()] == ["warm_same_key", "empty"]
    for path in (place.root / "runs").rglob("*"):
        if path.is_file() and path != out / "env":
            assert b"s3cret-value" not in path.read_bytes(), f"{path} holds a secret"


@pytest.mark.parametrize(
    ("argv", "code", "what"),
    [
        (["no-such-program-here"], 127, "not found"),
        (["./plain"], 126, "permission denied"),
        (["./garbage"], 126, "exec format error"),
        (["./orphan"], 127, "no such file"),
    ],
)
def test_what_cannot_be_executed_fails_with_its_reason(
    place: Place, argv: list[str], code: int, what: str
) -> None:
    files = {"plain": b"#!/bin/sh\n", "garbage": b"\x7fnonsense", "orphan": b"#!/no/such/interpreter\n"}
    made = spec(argv, files=files)
    for entry in made["tree"]:
        entry["mode"] = 0o644 if entry["path"] == "plain" else 0o755
    link = place.link()
    run_id = place.submit(link, made, files=files)
    status = link.start(run_id)
    status, _, _ = link.follow(run_id)
    assert (status["state"], status["reason"], status["exit_code"]) == ("failed", "cannot_start", code)
    assert what in status["detail"].lower()
    link.ask("manifest", run_id=run_id)
    assert place.read(run_id, "measured.json")["outcome"]["stage"] == "launch"
    with pytest.raises(Fault, match="ATTEMPT"):
        link.start(run_id, attempt=2)


def test_where_the_work_starts(place: Place) -> None:
    """A folder of which nothing shipped is made; what is no folder is named."""
    files = {"deep/file": b"x"}
    link = place.link()
    for cwd, state, reason in (("sub/folder", "succeeded", ""), ("deep/file", "failed", "cannot_start")):
        run_id = place.submit(link, shell("pwd", cwd=cwd, tree=spec(["x"], files=files)["tree"]), files=files)
        link.start(run_id)
        status, log, _ = link.follow(run_id)
        assert (status["state"], status["reason"]) == (state, reason)
        assert cwd in (log.decode() or status["detail"])


def test_starting_what_is_not_here(place: Place) -> None:
    link = place.link()
    with pytest.raises(Fault, match="NOT_COMMITTED"):
        link.start("0" * 26)
    run_id = place.submit(link, shell("true"))
    with pytest.raises(Fault, match="ATTEMPT"):
        link.start(run_id, attempt=2)
    with pytest.raises(Fault, match="NOT_FINAL"):
        link.ask("manifest", run_id=run_id)


def test_the_client_may_go_at_any_time(place: Place) -> None:
    link = place.link()
    run_id = place.submit(link, shell("sleep 0.6; echo late; exit 3"))
    link.start(run_id)
    link.send("follow", run_id=run_id, offset=0)
    link.receive()
    link.process.kill()
    link.process.wait()
    with place.link() as again:
        status, log, _ = again.follow(run_id)
        assert (status["exit_code"], log) == (3, b"late\n")


def test_a_gone_client_leaves_no_server(place: Place) -> None:
    link = place.link()
    run_id = place.submit(link, shell("sleep 5"))
    link.start(run_id)
    link.send("follow", run_id=run_id, offset=0)
    link.receive()
    assert link.process.stdin is not None
    link.process.stdin.close()
    assert link.process.wait(3) == 0, "the end of the input ends a follow at once"
    with place.link() as again:
        again.ask("cancel", run_id=run_id)


def test_follow_ends_early_on_a_line_and_goes_on_from_its_offset(place: Place) -> None:
    link = place.link()
    run_id = place.submit(link, shell("echo one; while [ ! -e go ]; do sleep 0.02; done; echo two"))
    link.start(run_id)
    link.send("follow", run_id=run_id, offset=0)
    log = b""
    while b"one" not in log:
        head, data = link.receive()
        log += data
    link.send("stop")
    while not head.get("end"):
        head, data = link.receive()
    assert (head["offset"], head["status"]["state"]) == (4, "running")
    (place.root / "runs" / run_id / "work" / "go").touch()
    status, rest, _ = link.follow(run_id, offset=4)
    assert (status["state"], rest) == ("succeeded", b"two\n")
    reply = link.ask("log", run_id=run_id, offset=1, limit=4)
    assert (reply[""], reply["offset"], reply["end"]) == (b"ne\nt", 1, 8)


def test_follow_tells_the_end_by_event(place: Place) -> None:
    """No poll of a second or more stands between the end of the work and its being told."""
    link = place.link()
    run_id = place.submit(link, shell("sleep 0.2"))
    link.start(run_id)
    began = time.monotonic()
    status, _, _ = link.follow(run_id)
    assert status["state"] == "succeeded"
    # Far above what it takes, far below the 5 s of a beat: without events it could not be met.
    assert time.monotonic() - began < 3


def test_an_opening_that_is_too_old_or_wrong_is_told(place: Place, tmp_path: Path) -> None:
    for python in Path.home().glob(".pyenv/versions/3.[67].*/bin/python3"):
        with pytest.raises(Fault, match="OLD_PYTHON"):
            place.link(python=str(python))
    (tmp_path / "file").write_text("no folder")
    blocked = Place(tmp_path / "file")
    with pytest.raises(Fault, match="BAD_ROOT"):
        blocked.link()
    for hello in (
        b"",
        b"no json\n",
        b"{}\n",
        b'{"route": 2}\n',
        b"x" * 70_000,
        b'{"route":1,"nonce":"../"}\n',
    ):
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", BOOT], input=hello, capture_output=True, timeout=20
        )
        assert done.returncode in (0, 64)
        assert done.stderr == b"", done.stderr


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", BOOT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    hello = {"route": 1, "nonce": "a" * 32, "root": str(tmp_path / "root"), "digest": DIGEST}
    damaged = BUNDLE[:-9] + b"!" + BUNDLE[-8:]
    head = json.dumps({"size": len(damaged)}).encode()
    out, _ = process.communicate(json.dumps(hello).encode() + b"\n" + head + b"\n" + damaged, timeout=20)
    assert out.startswith(b"\n" + b"a" * 32 + b" want\n\n" + b"a" * 32 + b' {"ok": false')
    assert b"BAD_BUNDLE" in out
    assert not os.path.exists(tmp_path / "root" / "bin" / DIGEST)
