"""Proves that many processes may use one store at once, that a killed one leaves nothing partial, and that a
full, forbidden or read-only disk is one clear line."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from compute_router.records import key_run_id
from compute_router.store import Store

HEAD = """
import json, os, random, sys, time
from pathlib import Path
from compute_router.backend import State, Status
from compute_router.errors import Conflict, RouteError
from compute_router.records import key_run_id, new_run_id
from compute_router.store import Store
from compute_router.workload import Entry, Workload
home, me = Path(sys.argv[1]), int(sys.argv[2])
store = Store(home)
def workload(name="w"): return Workload(name=name, entry=Entry(root="/src", script="a.py"))
def seal(run, attempt=1, more=""):
    def build(chain):
        return {"receipt_id": os.urandom(32).hex(), "attempt": attempt, "chain": dict(chain), "more": more}
    return run.seal(build, attempt=attempt)
"""


def start(code: str, home: Path, number: int = 0) -> subprocess.Popen[str]:
    text = HEAD + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", text, str(home), str(number)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def crowd(code: str, home: Path, size: int) -> list[str]:
    running = [start(code, home, n) for n in range(size)]
    outs = [process.communicate(timeout=120) for process in running]
    assert [p.returncode for p in running] == [0] * size, "\n".join(err for _, err in outs)
    return [out for out, _ in outs]


def test_one_key_makes_one_run_and_one_receipt(tmp_path: Path) -> None:
    code = """
    for i in range(6):
        run = store.create(key_run_id(f"key {i}"), workload(), key=f"key {i}")
        run.write("status", Status(state=State.SUCCEEDED, exit_code=0, reason=f"seen by {me}"))
        print(seal(run)["receipt_id"], run.read("status", Status).reason)
    """
    outs = crowd(code, tmp_path / "home", 8)
    assert len(set(outs)) == 1, "all have seen the same receipts and the same final states"
    store = Store(tmp_path / "home")
    assert len(store.list()) == 6
    assert all(row.collected and row.state == "succeeded" for row in store.list())
    assert store.check_chain() == []


def test_no_write_of_many_is_lost(tmp_path: Path) -> None:
    code = """
    keys = [f"shared {i}" for i in range(4)]
    shared = [store.create(key_run_id(key), workload("shared"), key=key) for key in keys]
    for i in range(12):
        run = store.create(new_run_id(), workload(f"own-{me}"), key=f"{me} {i}")
        run.write("decision", {"policy": "auto"})
        run.write("status", Status(state=State.RUNNING))
        run.write("status", Status(state=State.FAILED, exit_code=me))
        assert not run.write("status", Status(state=State.RUNNING))
        seal(run)
        for other in shared:
            other.write("status", Status(state=State.RUNNING, detail=f"{me} {i}"))
            other.append_event({"event": "state", "who": me, "i": i})
            assert other.read("status", Status).state is State.RUNNING
        if i == me:
            store.rebuild()
        assert store.list(limit=5)
    assert store.problems == [], store.problems
    """
    crowd(code, tmp_path / "home", 8)
    store = Store(tmp_path / "home")
    rows = store.list(limit=None)
    assert Counter(row.name for row in rows) == {"shared": 4, **{f"own-{n}": 12 for n in range(8)}}
    for row in rows:
        if row.name != "shared":
            assert (row.state, row.exit_code, row.collected) == ("failed", int(row.name[4:]), True)
    assert store.check_chain() == []
    chain = [json.loads(line) for line in (store.home / "chain.jsonl").read_text().splitlines()[1:]]
    assert [line[0] for line in chain] == list(range(1, 97))
    for shared in (store.open(key_run_id(f"shared {i}")) for i in range(4)):
        lines = (shared.path / "events.jsonl").read_text().splitlines()
        assert len({(e["who"], e["i"]) for e in map(json.loads, lines)}) == len(lines) == 96
    assert [row._replace(updated_us=0) for row in rows] == [
        row._replace(updated_us=0) for row in store.list(limit=None) if store.rebuild()
    ]


def test_a_fork_uses_the_store_of_its_parent(tmp_path: Path) -> None:
    code = """
    run = store.create(new_run_id(), workload(), key="k")
    children = []
    for n in range(4):
        pid = os.fork()
        if pid == 0:
            store.create(new_run_id(), workload(f"child {n}"), key=f"c {n}")
            os._exit(len(store.list()) < 2)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    run.write("status", Status(state=State.RUNNING))
    assert len(store.list()) == 5, store.list()
    """
    crowd(code, tmp_path / "home", 1)
    assert len(Store(tmp_path / "home").list()) == 5


def test_killed_at_any_point_nothing_is_partial(tmp_path: Path) -> None:
    """SIGKILL at seeded moments; every record is whole, every run is listed, the chain goes on."""
    home, seed = tmp_path / "home", 4711
    points = int(os.environ.get("ROUTE_KILLS", "60")) // 5
    print(f"seed {seed}, {points} points")
    moments = random.Random(seed)
    code = """
    print("ready", flush=True)
    for i in range(10**6):
        run = store.create(new_run_id(), workload(f"n{i % 7}"), key=f"{i}")
        run.write("offers", {"offers": []})
        run.write("intent", {"backend": "b", "attempt": 1, "offer_id": "o"})
        run.write("status", Status(state=State.SUCCEEDED, exit_code=0))
        seal(run)
    """
    for _ in range(points):
        process = start(code, home)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moments.uniform(0.0, 0.08))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    store = Store(home)
    folders = {p.name for p in store.runs.iterdir() if not p.name.startswith(".")}
    rows = store.list(limit=None)
    assert {row.id for row in rows} == folders
    assert folders
    for row in rows:
        run = store.open(row.id)
        for name in ("workload", "run", "offers", "intent", "status", "receipt"):
            run.read_json(name)
        assert row.collected == run.has("receipt")
        assert (row.state == "succeeded") == run.has("status")
    assert store.problems == []
    # A line of the chain may stand without its receipt where the kill came between the two.
    assert all("missing" in said for said in store.check_chain())
    for row in rows:
        if not row.collected:
            store.open(row.id).seal(
                lambda chain: {"receipt_id": os.urandom(32).hex(), "attempt": 1, "chain": dict(chain)},
                attempt=1,
            )
    assert store.check_chain() == [], "collected again, all is well"


def test_no_room_for_a_file_is_one_line(tmp_path: Path) -> None:
    """A limit on file sizes stands for a disk that is full: writes fail at any byte."""
    home = tmp_path / "home"
    code = """
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    run = store.create(new_run_id(), workload(), key="k")
    run.write("offers", {"x": "small"})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 1, 100, 4000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        for attempt in (lambda: run.write("offers", {"x": "y" * 5000}),
                        lambda: seal(run, more="y" * 5000)):
            try:
                attempt()
            except RouteError as e:
                assert "\\n" not in e.what and e.mend, e
                print(type(e).__name__, flush=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert run.read_json("offers") == {"x": "small"}
        assert not run.has("receipt")
    assert not [p for p in run.path.iterdir() if p.name.startswith(".")]
    assert seal(run)["chain"]["seq"] == 1, "room again"
    assert store.check_chain() == []
    """
    [out] = crowd(code, home, 1)
    assert out.split() == ["StoreError"] * 8
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 0


FULL = """
import errno
runs, failed = [], 0
try:
    for i in range(10**6):
        runs.append(store.create(new_run_id(), workload("x" * 200), key=f"{i}"))
        runs[-1].write("offers", {"x": "y" * 3000})
        seal(runs[-1])
except RouteError as e:
    print(type(e).__name__, "|", e.what, "|", e.mend)
listed = Store(home).list(limit=None)
assert listed, "what is there can still be listed"
for run in runs[:-1]:
    assert run.read("workload", Workload) and run.read_json("receipt")
os.unlink(home / "ballast")
run = Store(home).create(new_run_id(), workload(), key="after")
assert seal(run)["attempt"] == 1
assert Store(home).check_chain() == [], Store(home).check_chain()
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is not there to make a small disk")
def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    script = (
        f"mount -t tmpfs -o size=1m none {disk} && mkdir {disk}/home && "
        f"head -c 300000 /dev/zero > {disk}/home/ballast && "
        f"exec {sys.executable} {tmp_path}/fill.py {disk}/home 0"
    )
    (tmp_path / "fill.py").write_text(HEAD + FULL)
    probe = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs -o size=1m none {disk}"],
        capture_output=True,
        text=True,
    )
    if probe.returncode:
        pytest.skip(f"no disk can be mounted here: {probe.stderr.strip()}")
    out = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stdout + out.stderr
    assert out.stdout.startswith("StoreError | ")
    assert "free space" in out.stdout or "look at" in out.stdout


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter (those of pytest are not)."""
    folder = Path(tempfile.mkdtemp(prefix="route-test-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_without_permission_it_is_read_or_one_line(open_folder: Path) -> None:
    home = open_folder / "home"
    crowd("""store.create(key_run_id("a"), workload(), key="a")""", home, 1)
    Store(home).index.close()
    for folder, _, names in os.walk(home):
        os.chmod(folder, 0o555)
        for name in names:
            os.chmod(Path(folder) / name, 0o444)
    code = """
    if os.getuid() == 0:
        os.setgid(65534); os.setuid(65534)
    assert [row.id for row in store.list()] == [key_run_id("a")], store.list()
    run = store.open("latest")
    for attempt in (lambda: run.write("decision", {"policy": "x"}), lambda: seal(run), store.rebuild,
                    lambda: run.append_event({}), lambda: store.remove("latest"),
                    lambda: store.create(new_run_id(), workload(), key="b")):
        try:
            attempt()
        except RouteError as e:
            print(type(e).__name__, "ROUTE_HOME" in e.mend, e.what)
    """
    try:
        [out] = crowd(code, home, 1)
    finally:
        for folder, _, _ in os.walk(home):
            os.chmod(folder, 0o755)
    lines = out.splitlines()
    assert len(lines) == 6, out
    assert all(line.startswith("StoreError True") for line in lines), out
    assert [row.id for row in Store(home).list()] == [key_run_id("a")]
