"""Proves that what is damaged is found, put aside or made again, and that all the rest stays readable."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from store_samples import begin, intent, receipt, workload

from compute_router.backend import Handle, State, Status
from compute_router.errors import NewerStore, StoreError
from compute_router.index import list_runs
from compute_router.records import encode, key_run_id, new_run_id
from compute_router.store import Store
from compute_router.workload import Workload


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.mark.parametrize("damage", ["garbage", "torn", "flipped"])
def test_a_damaged_chain_is_made_good(store: Store, damage: str) -> None:
    runs = [begin(store) for _ in range(3)]
    ids = [receipt(run)["receipt_id"] for run in runs]
    path = store.home / "chain.jsonl"
    data = path.read_bytes()
    path.write_bytes(
        {
            "garbage": os.urandom(300) + b"\n",
            "torn": data + b'[4,"abc',
            "flipped": data[:-10] + b"\xff" + data[-9:],
        }[damage]
    )
    assert receipt(begin(store))["chain"] == {"store_id": store.id, "prev": ids[-1], "seq": 4}
    assert store.check_chain() == []


def test_a_damaged_record_is_put_aside_and_named(store: Store) -> None:
    run, other = begin(store), begin(store)
    for name in ("status", "handle", "offers"):
        run.file(name).write_bytes(b'{"state": "runni')
        assert run.read_json(name) is None
        assert run.read(name, Status) is None
        assert (run.path / f"{name}.json.damaged-1").exists()
        assert not run.has(name)
    assert len(run.problems()) == len(store.problems) == 3
    assert run.write("status", Status(state=State.RUNNING)), "the run goes on"
    run.file("status").write_bytes(b"\xff\xfe")
    assert run.read("status", Status) is None
    assert (run.path / "status.json.damaged-2").exists()
    assert other.read("workload", Workload) == workload()
    assert {r.id for r in store.list()} == {run.id, other.id}


def test_a_damaged_intent_never_looks_like_none(store: Store) -> None:
    """Otherwise a run that may have been started would be started again."""
    run = begin(store)
    run.write("intent", intent(run))
    run.file("intent").write_bytes(b"{")
    for _ in range(2):
        with pytest.raises(StoreError, match=r"intent of run .* is damaged") as caught:
            run.read_json("intent")
        assert caught.value.mend
        assert run.has("intent")


def test_records_of_a_newer_version_are_left_alone(store: Store) -> None:
    run = begin(store)
    run.file("handle").write_bytes(b'{"schema": "route.handle/2", "new": 1}')
    with pytest.raises(NewerStore, match=r"route\.handle/2"):
        run.read("handle", Handle)
    run.file("status").write_bytes(b'{"state": "dancing"}')
    with pytest.raises(StoreError, match="cannot be read"):
        run.read("status", Status)
    assert run.problems() == []


def test_a_newer_store_is_only_read(store: Store) -> None:
    run = begin(store)
    (store.home / "store.json").write_text(json.dumps({"schema": "route.store/2", "id": store.id}))
    newer = Store(store.home)
    assert newer.open(run.id).read("workload", Workload) == workload()
    assert [r.id for r in newer.list()] == [run.id]
    for write in (
        lambda: newer.create(new_run_id(), workload(), key="k"),
        lambda: newer.open(run.id).write("decision", {"policy": "x"}),
    ):
        with pytest.raises(NewerStore) as caught:
            write()
        assert "upgrade" in caught.value.mend


def test_a_damaged_store_file_is_made_again_with_its_id(store: Store) -> None:
    receipt(begin(store))
    (store.home / "store.json").write_bytes(b"\0\0")
    again = Store(store.home)
    assert again.id == store.id
    assert len(again.problems) == 1


@pytest.mark.parametrize(
    "damage", ["gone", "garbage", "empty", "truncated", "middle", "folder gone", "other"]
)
def test_a_damaged_index_is_built_again(store: Store, damage: str) -> None:
    runs = []
    for i in range(200):
        run_id = key_run_id(f"{i}")
        (store.runs / run_id).mkdir(parents=True)
        (store.runs / run_id / "run.json").write_bytes(encode({"name": f"n{i}", "created_us": i}))
        runs.append(run_id)
    assert store.rebuild() == 200
    store.index.close()
    path = store.home / "index.sqlite"
    real = Path(os.path.realpath(path))
    data = real.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "folder gone":
        for old in real.parent.iterdir():
            old.unlink()
        real.parent.rmdir()
    elif damage == "other":
        path.unlink()
        path.write_bytes(b"SQLite format 3\0" + os.urandom(5000))
    else:
        real.write_bytes(
            {
                "garbage": os.urandom(9000),
                "empty": b"",
                "truncated": data[: len(data) // 2],
                "middle": data[:4096] + os.urandom(len(data) - 4096),
            }[damage]
        )
    said: list[str] = []
    rows = list_runs(store.home, limit=None, notice=said.append)
    assert [r.id for r in rows] == runs[::-1]
    if damage not in ("gone", "folder gone"):
        assert len(said) == 1
        assert "built again from 200 runs" in said[0]
    assert [r.id for r in Store(store.home).list(limit=3)] == runs[:-4:-1]
    assert store.create(new_run_id(), workload(), key="k").has("workload")
    assert len(store.list(limit=None)) == 201


def test_an_open_index_that_was_deleted_or_rebuilt_is_left(store: Store) -> None:
    begin(store)
    other = Store(store.home)
    assert len(other.list()) == 1
    assert store.rebuild() == 1
    begin(store)
    run = begin(other)
    assert len(store.list()) == len(other.list()) == 3
    (store.home / "index.sqlite").unlink()
    run.write("status", Status(state=State.RUNNING))
    assert [r.id for r in other.list(live=True, state="running")] == [run.id]
    assert len(list_runs(store.home)) == 3


def test_a_lagging_row_is_shown_as_the_folder_has_it(store: Store) -> None:
    """A client killed after it wrote a record and before it told the index leaves no wrong row."""
    run, gone = begin(store), begin(store)
    run.write("status", Status(state=State.RUNNING))
    run.file("status").write_bytes(encode(Status(state=State.FAILED, exit_code=9)))
    assert next(r for r in store.list() if r.id == run.id)[8:11] == ("failed", 1, 9)
    assert run.id not in {r.id for r in store.list(state="running")}
    os.rename(gone.path, store.home / "elsewhere")
    assert [r.id for r in store.list()] == [run.id]
