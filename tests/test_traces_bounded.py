"""Proves that torch's traces are bounded on the disk while the work runs and when they are read, and that
what was not read is never taken for what did not happen."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from test_caches import COLD, WARM, metrics, traced

from compute_router.supervisor import runs, watcher
from compute_router.supervisor.observing import caches, compiling, torchtrace
from compute_router.supervisor.observing.facts import Look

MIB = 1 << 20


@pytest.fixture
def attempt(tmp_path: Path) -> runs.Attempt:
    made = runs.Attempt(runs.Run(str(tmp_path), "r" * 26), 1)
    Path(made.path).mkdir(parents=True)
    (Path(made.path) / "before.json").write_text(json.dumps({"caches": {"traced": 1, "kinds": {}}}))
    return made


def folder(attempt: runs.Attempt) -> Path:
    return Path(torchtrace.folder(attempt))


def used(attempt: runs.Attempt) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder(attempt).iterdir())


def test_a_watcher_keeps_traces_below_their_bound(
    attempt: runs.Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer keeps its file open and its place in it, as torch does."""
    monkeypatch.setattr(torchtrace, "MOST_DISK", 3 * MIB)
    watching = watcher.Watcher(attempt, {"observe": {"torch_trace": True}}, -1, {})
    watching.sample()
    traced(folder(attempt), COLD)
    watching.sample()
    assert torchtrace.read(str(folder(attempt))).total("miss") == 2, "a small one stays"
    with open(folder(attempt) / "dedicated_log_torch_trace_big.log", "w") as writer:
        for _ in range(8):
            writer.write(("\t" + "x" * 1023 + "\n") * 2048)
            writer.flush()
            watching.sample()
            assert used(attempt) <= 3 * MIB + MIB
        writer.write("\n".join(COLD) + "\n")
    found = torchtrace.read(str(folder(attempt)))
    assert (found.each, found.cut) == ([], True)
    assert "thrown away" in found.why
    seen = compiling.seen(Look(attempt, {}))
    assert seen["posture"] is None, "nothing is said of what nobody read"


def test_no_file_but_a_trace_is_emptied(attempt: runs.Attempt, tmp_path: Path) -> None:
    folder(attempt).mkdir()
    (tmp_path / "mine").write_bytes(b"x" * MIB)
    (folder(attempt) / "notes.txt").write_bytes(b"x" * MIB)
    (folder(attempt) / "dedicated_log_torch_trace_link.log").symlink_to(tmp_path / "mine")
    (folder(attempt) / "dedicated_log_torch_trace_a.log").write_bytes(b"x" * MIB)
    torchtrace.bound(attempt, 1)
    assert (tmp_path / "mine").stat().st_size == (folder(attempt) / "notes.txt").stat().st_size == MIB
    assert (folder(attempt) / "dedicated_log_torch_trace_a.log").stat().st_size == 0
    torchtrace.bound(runs.Attempt(runs.Run(str(tmp_path), "s" * 26), 1), 1)


def test_payload_alone_is_bounded_too(attempt: runs.Attempt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchtrace, "MOST_BYTES", 2 * MIB)
    traced(folder(attempt), [*COLD, "\t" + "x" * (4 * MIB)])
    assert torchtrace.read(str(folder(attempt))).cut
    fd = (folder(attempt) / "dedicated_log_torch_trace_fx5vnoui.log").open("rb")
    with fd, pytest.raises(torchtrace.TooMuch):
        list(torchtrace.heads(fd.fileno(), time.monotonic() - 1))


def test_more_compiles_than_are_kept_are_not_the_whole(
    attempt: runs.Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchtrace, "MOST_COMPILES", 2)
    whole = [metrics(f"0/{n}", 1795538246.0 + n, 1.0, 1) for n in range(2)]
    assert not traced(folder(attempt), whole).cut
    assert traced(folder(attempt), [*whole, metrics("0/3", 1795538250.0, 1.0, 1)]).cut


def test_counters_speak_where_torch_traced_elsewhere(attempt: runs.Attempt) -> None:
    """A process that was told to trace to another folder, or whose torch cannot, left no trace here."""
    rows: list[dict[str, Any]] = [
        {"e": "start", "id": "7", "pid": 7, "parent": 1, "mono_us": 1},
        {"e": "import", "id": "7", "name": "torch", "begin_us": 2, "end_us": 3, "ok": True},
        {"e": "end", "id": "7", "mono_us": 9, "dynamo": {"graphs": 3}},
    ]
    Path(attempt.at("inside.jsonl")).write_text("".join(json.dumps(row) + "\n" for row in rows))
    look = Look(attempt, {})
    counted = look.inside.counted("dynamo")
    assert counted is not None
    assert counted["graphs"] == 3
    assert compiling.seen(look)["posture"] is None
    assert compiling.seen(look)["programs"] == 3
    found = caches.inductor(look)
    assert found is not None, "Inductor may have been used"


def test_ranks_that_compile_the_same_are_one_program_by_either_way(attempt: runs.Attempt) -> None:
    """Programs, hits and breaks are those of one rank, not of all together."""
    for rank in (0, 1):
        traced(folder(attempt), WARM, f"rank_{rank}_x")
    rows: list[dict[str, Any]] = []
    for key in ("0", "1"):
        rows += [
            {"e": "start", "id": key, "pid": 7, "parent": 1, "mono_us": 1},
            {"e": "import", "id": key, "name": "torch", "begin_us": 2, "end_us": 3, "ok": True},
            {"e": "end", "id": key, "mono_us": 9, "dynamo": {"graphs": 1, "fxgraph_cache_hit": 2}},
        ]
    Path(attempt.at("inside.jsonl")).write_text("".join(json.dumps(row) + "\n" for row in rows))
    by_trace = compiling.seen(Look(attempt, {}))
    (folder(attempt) / torchtrace.CUT).touch()
    by_counters = compiling.seen(Look(attempt, {}))
    for found in (by_trace, by_counters):
        assert (found["programs"], found["cache_hits"], found["graph_breaks"]) == (1, 2, 0)
