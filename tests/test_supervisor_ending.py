"""Proves that an attempt ends once and whole: cancel, deadline, every descendant, memory, nested runs."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from supervisor_driver import Place, ended, shell, spec, supervised

SEED = int(os.environ.get("ROUTE_SEED", "4711"))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


def pids_in(path: Path, count: int, seconds: float = 10.0) -> list[int]:
    """The pids that the work writes into `path`, once there are `count`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if path.exists() and len(found := path.read_text().split()) >= count:
            return [int(pid) for pid in found]
        time.sleep(0.01)
    raise AssertionError(f"{path} does not hold {count} pids")


def test_cancel_races_exit(place: Place) -> None:
    """A hundred times: one final state, whoever was first, and never another one after it."""
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    link = place.link()
    states: dict[str, int] = {}
    for _ in range(100):
        run_id = place.submit(link, shell("exit 5", grace_us=100_000))
        link.send("start", run_id=run_id, attempt=1, wait_us=0)
        link.receive()
        time.sleep(rng.uniform(0, 0.012))
        link.send("cancel", run_id=run_id)
        link.receive()
        status, _, _ = link.follow(run_id)
        states[status["state"]] = states.get(status["state"], 0) + 1
        if status["state"] == "failed":
            assert status["exit_code"] == 5
            assert not (place.attempt(run_id) / "killing.json").exists()
        else:
            assert status["state"] == "cancelled"
        assert link.ask("cancel", run_id=run_id)["status"] == status == link.status(run_id)
    print(states)
    assert sum(states.values()) == 100


def test_cancel_before_and_after(place: Place) -> None:
    link = place.link()
    run_id = place.submit(link, shell("echo never"))
    first = link.ask("cancel", run_id=run_id)["status"]
    assert (first["state"], first["reason"]) == ("cancelled", "cancel")
    assert link.start(run_id) == first == link.ask("cancel", run_id=run_id)["status"]
    assert not (place.attempt(run_id) / "exec.json").exists()
    link.ask("manifest", run_id=run_id)
    assert place.read(run_id, "measured.json")["outcome"]["executed"] is False


def test_the_deadline_ends_it_and_grace_is_given(place: Place) -> None:
    link = place.link()
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('asked')))\n"
        "print('up')\n"
        "time.sleep(60)\n"
    )
    made = spec([sys.executable, "-S", "-c", script], timeout_us=600_000, grace_us=5_000_000)
    run_id = place.submit(link, made)
    began = time.monotonic()
    link.start(run_id)
    status, log, _ = link.follow(run_id)
    assert (status["state"], status["reason"], log) == ("timed_out", "timeout", b"up\nasked\n")
    assert 0.6 <= time.monotonic() - began < 5, "within the deadline, and not after the whole grace"


def test_what_does_not_listen_is_killed_after_the_grace(place: Place) -> None:
    link = place.link()
    run_id = place.submit(link, shell("trap '' TERM; echo up; sleep 60 & wait; sleep 60", grace_us=300_000))
    link.start(run_id)
    pid = place.read(run_id, "exec.json")["pid"]
    time.sleep(0.1)
    link.ask("cancel", run_id=run_id)
    status, _, _ = link.follow(run_id)
    assert (status["state"], status["signal"]) == ("cancelled", signal.SIGKILL)
    assert ended(pid)


def test_a_stopped_process_is_ended_too(place: Place) -> None:
    link = place.link()
    run_id = place.submit(link, shell("kill -STOP $$; sleep 60", grace_us=200_000))
    link.start(run_id)
    time.sleep(0.1)
    link.ask("cancel", run_id=run_id)
    assert link.follow(run_id)[0]["state"] == "cancelled"


HIDERS = r"""
import os, subprocess, sys, time
out = sys.argv[1]
sleep = [sys.executable, "-S", "-c", "import time; time.sleep(120)"]
quiet = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
made = [
    subprocess.Popen(sleep),
    subprocess.Popen(sleep, start_new_session=True),
    subprocess.Popen(sleep, start_new_session=True, env={}, **quiet),
]
# A daemon as daemons are made: two forks, a session of its own, nothing left open, no variable kept.
if os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
    for fd in range(3, 256):
        try:
            os.close(fd)
        except OSError:
            pass
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    with open(out, "a") as f:
        print(os.getpid(), file=f)
    os.execve(sys.executable, sleep, {})
with open(out, "a") as f:
    for child in made:
        print(child.pid, file=f)
if sys.argv[2] == "stay":
    time.sleep(120)
time.sleep(0.2)
"""


@pytest.mark.parametrize("how", ["stay", "leave"])
def test_every_descendant_is_swept(place: Place, tmp_path: Path, how: str) -> None:
    """Cancelled or left behind: children, sessions of their own, empty environments, daemons."""
    files = {"hide.py": HIDERS.encode()}
    link = place.link()
    made = spec(
        ["{python}", "hide.py", str(tmp_path / "pids"), how], files=files, grace_us=200_000, leases=["one"]
    )
    run_id = place.submit(link, made, files=files)
    link.start(run_id)
    pids = pids_in(tmp_path / "pids", 4)
    if how == "stay":
        assert not any(ended(pid, 0.05) for pid in pids)
        link.ask("cancel", run_id=run_id)
    status, _, _ = link.follow(run_id)
    assert status["state"] == ("cancelled" if how == "stay" else "succeeded")
    link.ask("manifest", run_id=run_id)
    assert [pid for pid in pids if not ended(pid, 5)] == []
    if how == "leave":
        assert place.read(run_id, "measured.json")["processes"]["strays"]["v"] == 4
    assert link.ask("probe")["leases"] == []


def test_the_sweep_spares_strangers(place: Place, tmp_path: Path) -> None:
    """Processes that look alike but are none of the run's: same program, a reader of the log or lease."""
    import subprocess

    link = place.link()
    run_id = place.submit(link, shell("echo x; sleep 60", grace_us=100_000, leases=["one"]))
    link.start(run_id)
    log, lease = place.attempt(run_id) / "log", tmp_path / "leases" / "one.lock"
    look = f"import time; f = open({str(lease)!r}, 'r+'); time.sleep(60)"
    strangers = [
        subprocess.Popen([sys.executable, "-c", look]),
        subprocess.Popen(["sleep", "60"]),
        subprocess.Popen(["tail", "-f", str(log)], stdout=subprocess.DEVNULL),
        subprocess.Popen(["sleep", "60"], env={**os.environ, "ROUTE_RUN_ID": run_id + "x"}),
    ]
    time.sleep(0.2)
    link.ask("cancel", run_id=run_id)
    link.follow(run_id)
    link.ask("manifest", run_id=run_id)
    try:
        assert [p.poll() for p in strangers] == [None] * 4
    finally:
        for process in strangers:
            process.kill()
            process.wait()


def test_a_run_started_by_the_work_outlives_it(place: Place, tmp_path: Path) -> None:
    """A wave manager that ends does not take with it the runs that it started."""
    inner = shell("sleep 1.5; echo inner done")
    (tmp_path / "inner.py").write_text(
        f"import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
        "from pathlib import Path\n"
        "from supervisor_driver import Link\n"
        f"made = {inner!r}\n"
        f"link = Link(Path({str(place.root)!r}))\n"
        "link.commit(made)\n"
        "print(link.start(made['run_id'])['state'], flush=True)\n"
    )
    link = place.link()
    outer = place.submit(link, spec([sys.executable, str(tmp_path / "inner.py")]))
    link.start(outer)
    status, log, _ = link.follow(outer)
    assert (status["state"], log) == ("succeeded", b"running\n")
    link.ask("manifest", run_id=outer)
    status, log, _ = link.follow(inner["run_id"])
    assert (status["state"], log) == ("succeeded", b"inner done\n")


def test_ended_by_a_signal_of_its_own(place: Place) -> None:
    link = place.link()
    run_id = place.submit(link, shell("kill -SEGV $$"))
    link.start(run_id)
    status, _, _ = link.follow(run_id)
    assert (status["state"], status["reason"]) == ("failed", "signal")
    assert (status["exit_code"], status["signal"]) == (None, signal.SIGSEGV)


def test_device_memory_is_told_from_the_log_only_of_what_failed(place: Place) -> None:
    link = place.link()
    text = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"
    for code, state, reason in ((1, "failed", "oom_gpu"), (0, "succeeded", "")):
        run_id = place.submit(link, shell(f"echo '{text}' >&2; exit {code}"))
        link.start(run_id)
        status, _, _ = link.follow(run_id)
        assert (status["state"], status["reason"], status["exit_code"]) == (state, reason, code)


def memory_group() -> Path:
    """A control group of ours with 64 MiB; skips the test where none can be made."""
    for base, name in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = base / f"route-test-{os.getpid()}"
        try:
            group.mkdir()
            (group / name).write_text(str(64 << 20))
        except OSError:
            if group.is_dir():
                group.rmdir()
            continue
        return group
    pytest.skip("no memory control group can be made here (needs root and the controller)")


def test_host_memory_is_told_by_the_kernels_counter(place: Place) -> None:
    group = memory_group()
    link = place.link()
    try:
        (group / "cgroup.procs").write_text(str(link.process.pid))
        run_id = place.submit(link, spec([sys.executable, "-c", "x = bytearray(1 << 30)"]))
        link.start(run_id)
        status, _, _ = link.follow(run_id)
        assert (status["state"], status["reason"]) == ("failed", "oom_host"), status
        link.ask("manifest", run_id=run_id)
        assert place.read(run_id, "measured.json")["checks"]["no_oom"]["v"] is False
    finally:
        link.close()
        until = time.monotonic() + 5
        while time.monotonic() < until:
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.05)


RANKS = """
import os, sys
import route_report
route_report.step(0, tokens=1)
print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], flush=True)
from torch.distributed.elastic.multiprocessing.errors import record
@record
def main():
    if os.environ["RANK"] == sys.argv[1]:
        raise ValueError("this rank breaks")
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("breaks", ["none", "1"])
def test_torchrun_is_put_in_front(place: Place, breaks: str) -> None:
    pytest.importorskip("torch")
    files = {"ranks.py": RANKS.encode()}
    made = spec(["{python}", "ranks.py", breaks], files=files, launcher={"name": "torchrun", "ranks": 2})
    link = place.link()
    run_id = place.submit(link, made, files=files)
    link.start(run_id)
    status, log, _ = link.follow(run_id)
    listed = link.ask("manifest", run_id=run_id)
    if breaks == "none":
        assert status["state"] == "succeeded", log
        assert {b"rank 0 of 2", b"rank 1 of 2"} <= set(log.splitlines())
        read = place.read(run_id, "measured.json")["metrics"]["read"]["v"]
        assert read["steps"] == 1, "rank 0 alone reports"
    else:
        assert (status["state"], status["exit_code"]) == ("failed", 1)
        errors = [f["path"] for f in listed["files"] if f["role"] == "error"]
        assert any(path.endswith("error.json") for path in errors), "and which rank it was is kept"


def test_what_the_work_leaves_to_its_waiter_is_waited_for(place: Place) -> None:
    """Short-lived orphans do not pile up as zombies while a long run goes on."""
    link = place.link()
    script = "for i in $(seq 30); do (sleep 0.01 &) ; done; while [ ! -e go ]; do sleep 0.02; done"
    run_id = place.submit(link, shell(script))
    link.start(run_id)
    waiter = place.read(run_id, "started.json")["waiter"]["pid"]
    time.sleep(0.8)
    dead = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if int(parent) == waiter and state == "Z":
                dead.append(entry.name)
    assert dead == []
    (place.root / "runs" / run_id / "work" / "go").touch()
    assert link.follow(run_id)[0]["state"] == "succeeded"


def test_nothing_stays_behind(place: Place) -> None:
    link = place.link()
    for _ in range(5):
        run_id = place.submit(link, shell("sleep 0.05"))
        link.start(run_id)
        link.follow(run_id)
        link.ask("manifest", run_id=run_id)
    link.close()
    until = time.monotonic() + 5
    while supervised(place.root) and time.monotonic() < until:
        time.sleep(0.02)
    assert supervised(place.root) == []
    locks = (".bring.lock",)  # of the root, and empty
    assert not [p for p in place.root.rglob(".*") if p.name not in (".route", *locks)]


def test_the_supervisor_ignores_what_ends_a_session(place: Place) -> None:
    """SIGTERM and SIGHUP reach everything at a logout or shutdown; the outcome is still written."""
    link = place.link()
    run_id = place.submit(link, shell("sleep 0.5; exit 9"))
    link.start(run_id)
    waiter = place.read(run_id, "started.json")["waiter"]["pid"]
    time.sleep(0.1)
    watcher = place.read(run_id, "watch.lock")["pid"]
    for pid in (waiter, watcher):
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            os.kill(pid, number)
    assert link.follow(run_id)[0]["exit_code"] == 9
