"""Measures the store beside its floors: fsync, durable receipts, lists of a million runs, rebuild, records.

    python benchmarks/store.py [--runs 1000000] [--receipts 300] [--folders 5000] [--where FOLDER]

Each figure stands beside the floor it is measured against, in the same process and on the same
disk; the ratio is what travels between machines.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from compute_router.backend import State, Status
from compute_router.index import list_runs
from compute_router.receipt import build, verify
from compute_router.records import canonical, encode, new_run_id
from compute_router.rows import COLUMNS, Row
from compute_router.store import Store
from compute_router.workload import Entry, Workload


def median_ms(work: Callable[[int], Any], times: int) -> float:
    """The median duration of `work(i)` in milliseconds."""
    spent = []
    for i in range(times):
        begun = time.perf_counter()
        work(i)
        spent.append(time.perf_counter() - begun)
    return statistics.median(spent) * 1e3


def say(what: str, ms: float, floor: float | None = None, goal: str = "") -> None:
    """One line: what, how long, how often a second, and the ratio to its floor."""
    ratio = f"{ms / floor:7.2f} x floor" if floor else " " * 15
    print(f"{what:<58}{ms:10.3f} ms{1e3 / ms:12,.0f} /s {ratio}  {goal}", flush=True)


def workload() -> Workload:
    return Workload(
        name="bench", entry=Entry(root="/src", script="a.py"), outputs=("results/",), env={"A": "b" * 200}
    )


def receipt(run_id: str, chain: Any) -> dict[str, Any]:
    status = Status(state=State.SUCCEEDED, exit_code=0, started_us=1, ended_us=2)
    return build(run_id=run_id, key=run_id, workload=workload(), status=status, created_us=3, chain=chain)


def writing(folder: Path, count: int) -> None:
    """Durable records and receipts against a bare file brought to the disk."""
    sample = receipt(new_run_id(), None)
    data = encode(sample)
    print(f"a receipt is {len(data):,} bytes")

    def bare(i: int) -> None:
        fd = os.open(folder / f"bare{i}", os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(fd, data)
        os.fsync(fd)
        os.close(fd)

    floor = median_ms(bare, count)
    say("floor: write and fsync that file", floor)
    store = Store(folder / "home")
    made = [store.create((i := new_run_id()), workload(), key=i) for _ in range(count + 1)]
    say(
        "create a run (folder, 2 files, row; all durable)",
        median_ms(lambda i: store.create((n := new_run_id()), workload(), key=n), count),
        floor,
    )
    say(
        "write a status (durable, indexed)",
        median_ms(lambda i: made[i].write("status", Status(state=State.RUNNING, detail=str(i))), count),
        floor,
    )
    small = {"receipt_id": "ab" * 32, "attempt": 1, "text": "x" * 3700}
    say(
        "seal a receipt of 4 KB (chain, file, index)",
        median_ms(
            lambda i: made[i].seal(
                lambda chain: {**small, "receipt_id": os.urandom(32).hex(), "chain": dict(chain)}, attempt=1
            ),
            count,
        ),
        floor,
        "goal >= 1,000 /s",
    )
    whole = [{**sample, "run_id": made[i].id} for i in range(count)]
    say(
        "seal a whole receipt of attempt 2",
        median_ms(
            lambda i: made[i].seal(lambda chain: {**whole[i], "attempt": 2, "chain": dict(chain)}, attempt=2),
            count,
        ),
        floor,
    )
    print()


def listing(folder: Path, runs: int) -> None:
    """The newest 50 of many, by every filter; and how fast rows go in."""
    store = Store(folder / "many")
    store.writable()
    states = ["succeeded"] * 90 + ["failed"] * 8 + ["running", "lost"]

    def row(i: int) -> Row:
        state, final = states[i * 7919 % 100], states[i * 7919 % 100] != "running"
        return Row(
            id=f"01{i:024d}",
            created_us=i,
            updated_us=i,
            name=f"name{i % 1000}",
            kind=("train", "bench", "validate")[i % 3],
            purpose="smoke",
            backend=("local", "far", "cloud", "slice")[i % 4],
            surface="local",
            state=state,
            attempt=1,
            exit_code=0,
            policy="auto",
            accelerator="H200:8",
            key="k" * 26,
            receipt_id="ab" * 32 if final else None,
            collected=final,
            ended_us=i,
        )

    begun = time.perf_counter()
    store.index._rows = lambda: (row(i) for i in range(runs))  # type: ignore[method-assign]
    store.index.rebuild()
    spent = time.perf_counter() - begun
    say(f"build the index of {runs:,} runs, per row", spent / runs * 1e3, None, "goal >= 20,000 /s")
    filters: list[dict[str, Any]] = [
        {}, {"state": "failed"}, {"state": "timed_out"}, {"kind": "bench"}, {"backend": "cloud"},
        {"name": "name7"},
        {"state": "lost", "kind": "train", "backend": "far"}, {"name": "name7", "state": "lost"},
    ]  # fmt: skip
    for wanted in filters:
        ms = median_ms(lambda i, w=wanted: store.list(limit=50, **w), 100)  # type: ignore[misc]
        say(f"newest 50 of {runs:,}: {wanted or 'all'}", ms, None, "goal <= 5 ms")
    say("the same, opened afresh", median_ms(lambda i: list_runs(store.home, limit=50), 50))
    code = "from pathlib import Path; from compute_router.index import list_runs;"
    code += f"list_runs(Path({str(store.home)!r}))"
    bare = median_ms(lambda i: subprocess.run([sys.executable, "-c", "import sqlite3"], check=True), 11)
    say("floor: python -c 'import sqlite3'", bare)
    say(
        "whole process: the newest 50",
        median_ms(lambda i: subprocess.run([sys.executable, "-c", code], check=True), 11),
        bare,
    )
    print()


def rebuilding(folder: Path, count: int) -> None:
    """From folders with receipts to an index, against reading the same files."""
    store = Store(folder / "folders")
    store.writable()
    for i in range(count):
        run_id = new_run_id()
        path = store.runs / run_id
        path.mkdir()
        begun = {
            "schema": "route.run/1",
            "id": run_id,
            "key": run_id,
            "created_us": i,
            "name": "n",
            "kind": "train",
        }
        (path / "run.json").write_bytes(encode(begun))
        (path / "receipt.json").write_bytes(
            encode(receipt(run_id, {"store_id": "ab", "prev": None, "seq": 1}))
        )

    def read(i: int) -> None:
        for path in store.runs.iterdir():
            (path / "run.json").read_bytes()
            (path / "receipt.json").read_bytes()

    floor = median_ms(read, 3) / count
    say("floor: read run.json and receipt.json of a run", floor)
    say(f"rebuild from {count:,} folders, per run", median_ms(lambda i: store.rebuild(), 3) / count, floor)
    print()


def records() -> None:
    """Encoding and decoding against the standard library's json."""
    sample = receipt(new_run_id(), None)
    data, work = canonical(sample), encode(workload())
    dumps = median_ms(
        lambda i: json.dumps(sample, sort_keys=True, separators=(",", ":"), ensure_ascii=False), 200
    )
    say("floor: json.dumps of a receipt, sorted", dumps)
    say("canonical bytes of a receipt", median_ms(lambda i: canonical(sample), 200), dumps)
    say("verify a receipt", median_ms(lambda i: verify(data), 50), None, "goal < 100 ms")
    say("build a receipt", median_ms(lambda i: receipt("0" * 26, None), 50))
    loads = median_ms(lambda i: json.loads(work), 500)
    say(f"floor: json.loads of a workload of {len(work):,} bytes", loads)
    bare = median_ms(lambda i: msgspec.json.decode(work), 500)
    say("floor: msgspec without a type", bare, loads)
    say(
        "decode a workload with validation",
        median_ms(lambda i: msgspec.json.decode(work, type=Workload), 500),
        loads,
    )
    assert len(COLUMNS) == len(Row._fields)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1_000_000, help="rows to list from")
    parser.add_argument("--receipts", type=int, default=300, help="receipts to write")
    parser.add_argument("--folders", type=int, default=5_000, help="folders to rebuild from")
    parser.add_argument("--where", help="a folder on the disk to measure (default: a temporary one)")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="route-bench-", dir=given.where))
    try:
        records()
        print()
        writing(folder, given.receipts)
        rebuilding(folder, given.folders)
        listing(folder, given.runs)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
