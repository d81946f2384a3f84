"""Proves what the log promises: raw bytes, stable offsets, a cap that keeps head and tail, bounded memory."""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from supervisor_driver import Link, Place, shell, spec

SEED = int(os.environ.get("ROUTE_SEED", "99"))
MIB = 1 << 20
LOG_MIB = int(os.environ.get("ROUTE_LOG_MIB", "48"))
"""How long the capped log is; 2048 is for an idle machine."""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


def rss(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def drain(link: Link, run_id: str, offset: int = 0) -> tuple[int, int, int, list[tuple[int, int]]]:
    """Follow to the end without keeping it: bytes, end, most memory of the server, gaps in the offsets."""
    link.send("follow", run_id=run_id, offset=offset)
    total, most, gaps = 0, 0, []
    while True:
        head, data = link.receive()
        if head.get("log"):
            if head["offset"] != offset:
                gaps.append((offset, head["offset"]))
            offset = head["offset"] + len(data)
            total += len(data)
        elif head.get("end"):
            assert head["offset"] == offset
            return total, offset, most, gaps
        most = max(most, rss(link.process.pid))


WRITER = """
import sys
line = b"%015d\\n"
out = sys.stdout.buffer
for start in range(0, int(sys.argv[1]), 65536):
    out.write(b"".join(line % (start // 16 + i) for i in range(4096)))
"""


def can_punch(folder: Path) -> bool:
    """Whether the file system of the test can take a hole (tmpfs, ext4, xfs, btrfs can)."""
    from compute_router.supervisor import logcap

    path = folder / "try"
    path.write_bytes(b"x" * 65536)
    return logcap.punch(str(path), 4096, 8192) == 0


def test_the_cap_keeps_head_and_tail_at_their_offsets(place: Place, tmp_path: Path) -> None:
    if not can_punch(tmp_path):
        pytest.skip("the file system here cannot free the middle of a file")
    size, cap = LOG_MIB * MIB, max(4, LOG_MIB // 32) * MIB
    files = {"w.py": WRITER.encode()}
    link = place.link()
    made = spec(["{python}", "w.py", str(size)], files=files, log_cap_bytes=cap, timeout_us=900_000_000)
    run_id = place.submit(link, made, files=files)
    link.start(run_id)
    total, end, most, gaps = drain(link, run_id)
    link.ask("manifest", run_id=run_id)
    log = place.attempt(run_id) / "log"
    status = log.stat()
    assert status.st_size == end == size
    assert status.st_blocks * 512 <= cap * 1.1, "the middle is free again"
    capped = place.read(run_id, "capped.json")
    assert capped["from"] < capped["to"]
    assert total <= size
    assert all(a < b for a, b in gaps)
    assert most < 100 * MIB
    head = link.ask("log", run_id=run_id, offset=0, limit=64)
    assert head[""] == b"".join(b"%015d\n" % i for i in range(4))
    inside = link.ask("log", run_id=run_id, offset=(capped["from"] + capped["to"]) // 2, limit=16)
    assert inside["offset"] == capped["to"], "what was not kept is skipped, never sent as output"
    assert inside[""] == b"%015d\n" % (capped["to"] // 16)
    tail = link.ask("log", run_id=run_id, offset=size - 16, limit=16)
    assert tail[""] == b"%015d\n" % (size // 16 - 1)
    measured = place.read(run_id, "measured.json")["log"]
    assert measured["capped"]["v"] is True
    assert measured["dropped_bytes"]["v"] == capped["to"] - capped["from"]
    (entry,) = [f for f in link.ask("manifest", run_id=run_id)["files"] if f["path"] == "log"]
    kept = link.fetch(run_id, ["log"])["log"]
    assert isinstance(kept, bytes)
    assert (len(kept), hashlib.sha256(kept).hexdigest()) == (entry["bytes"], entry["sha256"])
    assert b"bytes from offset" in kept
    assert b"\0" not in kept


def test_a_log_below_its_cap_is_whole(place: Place) -> None:
    files = {"w.py": WRITER.encode()}
    link = place.link()
    run_id = place.submit(
        link, spec(["{python}", "w.py", str(MIB)], files=files, log_cap_bytes=4 * MIB), files=files
    )
    link.start(run_id)
    _, log, _ = link.follow(run_id)
    assert log == b"".join(b"%015d\n" % i for i in range(MIB // 16))
    assert not (place.attempt(run_id) / "capped.json").exists()


def test_binary_garbage_passes_unchanged(place: Place) -> None:
    data = random.Random(SEED).randbytes(300_000) + b"\x1b]0;title\x07\x00\xff\xfe\n\r" * 100
    print(f"seed {SEED}")
    files = {"data": data}
    link = place.link()
    run_id = place.submit(link, shell("cat data", tree=spec(["x"], files=files)["tree"]), files=files)
    link.start(run_id)
    _, log, _ = link.follow(run_id)
    assert log == data


def test_one_endless_line(place: Place) -> None:
    """Forty MiB without a line end: nobody waits for one, nobody keeps it."""
    link = place.link()
    script = "import sys\nfor _ in range(640): sys.stdout.write('x' * 65536)"
    run_id = place.submit(link, spec([sys.executable, "-c", script], log_cap_bytes=None))
    link.start(run_id)
    total, end, most, gaps = drain(link, run_id)
    assert (total, end, gaps) == (40 * MIB, 40 * MIB, [])
    assert most < 64 * MIB
    link.ask("manifest", run_id=run_id)


def test_a_follower_that_stops_reading_does_not_stop_the_work(place: Place) -> None:
    link = place.link()
    script = "import sys\nfor _ in range(160): sys.stdout.write('y' * 65536)"
    run_id = place.submit(link, spec([sys.executable, "-c", script]))
    link.start(run_id)
    link.send("follow", run_id=run_id, offset=0)
    with place.link() as other:
        assert other.follow(run_id)[0]["state"] == "succeeded"
    total = 0
    while True:
        head, data = link.receive()
        total += len(data)
        if head.get("end"):
            break
    assert total == 160 * 65536, "and it gets all once it reads again"


def test_lines_arrive_while_the_work_runs(place: Place) -> None:
    link = place.link()
    script = "for i in 1 2 3; do echo line $i; while [ ! -e go$i ]; do sleep 0.01; done; done"
    run_id = place.submit(link, shell(script))
    link.start(run_id)
    link.send("follow", run_id=run_id, offset=0)
    log, running = b"", True
    while running:
        head, data = link.receive()
        log += data
        if data:
            assert log == b"".join(b"line %d\n" % i for i in range(1, log.count(b"\n") + 1))
            (place.root / "runs" / run_id / "work" / f"go{log.count(bytes([10]))}").touch()
        running = not head.get("end")
    assert log.count(b"\n") == 3


def test_a_silent_run_is_told_to_be_alive(place: Place) -> None:
    link = place.link()
    run_id = place.submit(link, shell("sleep 30", grace_us=100_000))
    link.start(run_id)
    link.send("follow", run_id=run_id, offset=0)
    began = time.monotonic()
    while True:
        head, _ = link.receive()
        if head.get("beat"):
            break
    assert 4 < time.monotonic() - began < 20
    link.send("cancel", run_id=run_id)
    heads = [link.receive()[0] for _ in range(2)]
    assert heads[0]["end"] is True
    assert heads[1]["re"] == "cancel"


def test_the_watcher_costs_next_to_nothing(place: Place) -> None:
    """Quiet work and work with a line a tenth of a second: the watcher sleeps."""
    link = place.link()
    quiet = place.submit(link, shell("sleep 3"))
    chatty = place.submit(link, shell("for i in $(seq 25); do echo $i; sleep 0.1; done"))
    for run_id in (quiet, chatty):
        link.start(run_id)
    time.sleep(0.6)
    pids = {run_id: place.read(run_id, "watch.lock")["pid"] for run_id in (quiet, chatty)}

    def switches(pid: int) -> int:
        text = Path(f"/proc/{pid}/status").read_text()
        return sum(int(line.split()[1]) for line in text.splitlines() if "ctxt_switches" in line)

    before = {run_id: switches(pid) for run_id, pid in pids.items()}
    time.sleep(1.5)
    after = {run_id: switches(pid) for run_id, pid in pids.items()}
    assert after[quiet] - before[quiet] <= 5, "a quiet run wakes it for its samples alone"
    assert after[chatty] - before[chatty] <= 150
    assert all(rss(pid) < 30 * MIB for pid in pids.values())
    for run_id in (quiet, chatty):
        link.ask("cancel", run_id=run_id)
        link.follow(run_id)
