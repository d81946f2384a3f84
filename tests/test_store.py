"""Proves that the store keeps a run's folder whole and true: create, write, read, list, look up."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from store_samples import begin, intent, offers, receipt, workload

from compute_router.backend import Handle, State, Status
from compute_router.errors import Conflict, InputError, NotFound, StoreError
from compute_router.index import Index, list_runs
from compute_router.records import encode, key_run_id
from compute_router.store import Store, default_home
from compute_router.workload import Accelerator, Entry, Needs, Workload


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def test_a_run_is_made_once_and_found_again(store: Store) -> None:
    run_id = key_run_id("my key")
    run = store.create(run_id, workload(), key="my key", labels={"who": "me"})
    again = Store(store.home).create(run_id, workload(), key="my key")
    assert (again.path, again.key, again.labels) == (run.path, "my key", {"who": "me"})
    assert run.read("workload", Workload) == workload()
    moved = Workload(name="gpt", entry=Entry(root="/elsewhere", script="train.py"))
    assert store.create(run_id, moved, key="my key").path == run.path, "where files lay is not what they are"
    with pytest.raises(Conflict, match="another workload"):
        store.create(run_id, workload("other"), key="my key")
    with pytest.raises(InputError, match="no run id"):
        store.create("../../etc", workload(), key="x")
    assert len(list(store.runs.iterdir())) == 1


def test_folders_are_private(store: Store) -> None:
    run = begin(store)
    assert store.home.stat().st_mode & 0o777 == 0o700
    assert run.path.stat().st_mode & 0o077 == 0
    for path in [*store.home.iterdir(), *run.path.iterdir()]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_home_that_was_there_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o755)
    (tmp_path / "mine").chmod(0o755)
    store = Store(tmp_path / "mine")
    begin(store)
    assert store.home.stat().st_mode & 0o777 == 0o755
    assert store.runs.stat().st_mode & 0o777 == 0o700


def test_records_come_back_as_they_went(store: Store) -> None:
    run = begin(store)
    handle = Handle(backend="local", version=1, run_id=run.id, key="k", attempt=1, data={"pid": 3})
    assert (run.has("handle"), run.read("handle", Handle), run.read_json("handle")) == (False, None, None)
    assert run.write("handle", handle)
    assert run.read("handle", Handle) == handle
    assert run.file("handle").read_bytes() == encode(handle)
    with pytest.raises(InputError, match="no record of a run"):
        run.write("../x", {})
    for bad in ({"x": 0.5}, {"x": 2**53}, [1], "text"):
        with pytest.raises(InputError, match="cannot be written"):
            run.write("offers", bad)
    assert not run.has("offers")
    assert [p.name for p in run.path.iterdir() if p.name.startswith(".")] == []


def test_the_list_follows_what_is_written(store: Store) -> None:
    assert store.list() == []
    run = begin(store, "train-me", needs=Needs(accelerator=Accelerator.parse("H200:8")))
    [row] = store.list()
    assert (row.id, row.name, row.state, row.accelerator, row.collected) == (
        run.id,
        "train-me",
        "planned",
        "H200:8",
        False,
    )
    run.write("offers", offers("cloud", "serverless"))
    run.write("decision", {"policy": "auto"})
    run.write("intent", intent(run, "cloud"))
    assert store.list()[0][6:12] == ("cloud", "serverless", "staging", 1, None, "auto")
    run.write("status", Status(state=State.RUNNING))
    assert [r.id for r in store.list(live=True)] == [run.id]
    run.write("status", Status(state=State.FAILED, exit_code=3, ended_us=17))
    receipt(run)
    [row] = store.list(state="failed")
    assert (row.exit_code, row.ended_us, row.collected) == (3, 17, True)
    assert store.list(live=True) == []
    rows = store.list()
    assert store.rebuild() == 1
    assert [r._replace(updated_us=0) for r in store.list()] == [r._replace(updated_us=0) for r in rows]


def test_filters_give_what_a_scan_gives(store: Store) -> None:
    made = []
    for i in range(60):
        run = begin(store, f"n{i % 3}", kind=("train", "bench", "validate")[i % 3 and i % 2])
        run.write("intent", intent(run, f"b{i % 4}"))
        if i % 5:
            run.write("status", Status(state=State.SUCCEEDED if i % 2 else State.RUNNING))
        made.append(run.id)
    every = store.list(limit=None)
    assert [r.id for r in every] == sorted(made, key=lambda i: store.row(i).created_us, reverse=True)  # type: ignore[union-attr]
    for state in (None, "running", "succeeded", "staging", ("succeeded", "staging")):
        for kind in (None, "train", "bench"):
            for backend in (None, "b1"):
                for name in (None, "n2", "nothing"):
                    for live in (False, True):
                        states = (state,) if isinstance(state, str) else state
                        want = [
                            r
                            for r in every
                            if (states is None or r.state in states)
                            and kind in (None, r.kind)
                            and backend in (None, r.backend)
                            and name in (None, r.name)
                            and (not live or r.state in ("running", "staging"))
                        ]
                        found = store.list(
                            limit=7, state=state, kind=kind, backend=backend, name=name, live=live
                        )
                        assert found == want[:7]


def test_references(store: Store) -> None:
    with pytest.raises(NotFound, match="no run yet"):
        store.open("latest")
    first, second = begin(store, "alpha"), begin(store, "beta")
    third = begin(store, "alpha")
    assert store.open(first.id.upper()).id == first.id
    assert store.open("latest").id == store.open("latest~0").id == third.id
    assert [store.open(f"latest~{n}").id for n in (1, 2)] == [second.id, first.id]
    with pytest.raises(NotFound, match="only 3 runs"):
        store.open("latest~3")
    assert store.open("alpha").id == third.id
    assert store.open("beta").id == second.id
    unique = next(n for n in range(4, 27) if sum(r.id.startswith(first.id[:n]) for r in store.list()) == 1)
    assert store.open(first.id[:unique]).id == first.id
    with pytest.raises(NotFound, match="several"):
        store.open(first.id[:4])
    with pytest.raises(NotFound) as caught:
        store.open("betta")
    assert "beta" in caught.value.mend
    for hostile in ("", "..", "../" * 9 + "etc", "%", "'; DROP TABLE runs", "a" * 5000, "\0", "\ud800"):
        with pytest.raises(NotFound):
            store.open(hostile)
    assert len(store.list()) == 3


def test_a_final_status_stands(store: Store) -> None:
    run = begin(store)
    done = Status(state=State.SUCCEEDED, exit_code=0, ended_us=5)
    assert run.write("status", Status(state=State.RUNNING))
    assert run.write("status", done)
    assert not run.write("status", Status(state=State.RUNNING))
    assert not run.write("status", Status(state=State.UNKNOWN, last=State.RUNNING))
    assert not run.write("status", Status(state=State.LOST, reason="waiter_died"))
    assert run.read("status", Status) == done
    assert store.list()[0].state == "succeeded"
    assert run.write("status", Status(state=State.STARTING, attempt=2)), "a later attempt is something new"
    assert not run.write("status", Status(state=State.FAILED, attempt=1, exit_code=1))
    assert run.read("status", Status) == Status(state=State.STARTING, attempt=2)


def test_a_receipt_is_written_once(store: Store) -> None:
    run, other = begin(store), begin(store)
    first = receipt(run)
    assert first["chain"] == {"store_id": store.id, "prev": None, "seq": 1}
    assert run.seal(lambda chain: pytest.fail("built twice"), attempt=1) == first
    assert not run.write("receipt", first)
    with pytest.raises(Conflict, match="another receipt"):
        run.write("receipt", {**first, "receipt_id": "forged"})
    assert receipt(other)["chain"] == {"store_id": store.id, "prev": first["receipt_id"], "seq": 2}
    third = receipt(run, attempt=2)
    assert third["chain"]["seq"] == 3
    with pytest.raises(Conflict, match="of attempt 2, after 1"):
        receipt(run, attempt=1)
    assert json.loads((run.path / "receipt-1.json").read_bytes()) == first
    assert run.read_json("receipt") == third
    assert store.check_chain() == []


def test_a_receipt_that_cannot_be_built_leaves_nothing(store: Store) -> None:
    run = begin(store)
    with pytest.raises(ZeroDivisionError):
        run.seal(lambda chain: {"x": 1 // 0}, attempt=1)
    with pytest.raises(InputError):
        run.seal(lambda chain: {"receipt_id": "a", "attempt": 1, "x": 0.5}, attempt=1)
    assert not run.has("receipt")
    assert receipt(run)["chain"]["seq"] == 1
    assert store.check_chain() == []


def test_deleting_a_receipt_shows(store: Store) -> None:
    runs = [begin(store) for _ in range(4)]
    for run in runs:
        receipt(run)
    assert store.check_chain() == []
    runs[1].file("receipt").unlink()
    [said] = store.check_chain()
    assert runs[1].id in said
    assert "missing" in said
    receipt(runs[1])
    assert store.check_chain() == [], "collected again: the newer one stands for it"
    store.remove(runs[2].id)
    assert store.check_chain() == [], "removed on purpose, and noted"
    assert runs[2].id not in {r.id for r in store.list()}
    (store.home / "chain.jsonl").unlink()
    runs[0].file("receipt").unlink()
    assert receipt(begin(store))["chain"]["seq"] == 6, "the chain goes on from the receipts"
    assert any("receipt 1 is missing" in line for line in store.check_chain())


def test_unfinished_files_are_passed_over_and_swept(store: Store) -> None:
    run = begin(store)
    (run.path / ".status.json.1.abcd.part").write_bytes(b"{")
    (store.runs / f".{run.id}.1.abcd.part").mkdir()
    assert run.read_json("status") is None
    assert store.rebuild() == 1
    assert store.sweep(before=time.time() - 3600) == 0
    assert store.sweep(before=time.time() + 60) == 2
    assert run.has("workload")


def test_the_list_needs_the_standard_library_alone(store: Store) -> None:
    begin(store)
    code = (
        "import sys; from pathlib import Path; from compute_router.index import list_runs;"
        f"rows = list_runs(Path({str(store.home)!r}));"
        "bad = [m for m in ('msgspec', 'click', 'pluggy', 'platformdirs', 'compute_router.records')"
        " if m in sys.modules]; print(len(rows), bad)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "1 []"


def test_the_default_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ROUTE_HOME", str(tmp_path / "here"))
    assert default_home() == tmp_path / "here"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROUTE_HOME", "below")
    assert default_home() == tmp_path / "below"
    monkeypatch.delenv("ROUTE_HOME")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_home().is_relative_to(tmp_path)
    assert default_home().name == "route"
    monkeypatch.delenv("HOME")
    with pytest.raises(StoreError) as caught:
        default_home()
    assert "ROUTE_HOME" in caught.value.mend


def test_an_index_of_nothing(tmp_path: Path) -> None:
    assert list_runs(tmp_path / "nothing") == []
    assert not (tmp_path / "nothing").exists()
    assert Store(tmp_path / "nothing").rebuild() == 0
    (tmp_path / "a file").write_text("")
    with pytest.raises(StoreError):
        begin(Store(tmp_path / "a file"))
    with pytest.raises(StoreError):
        Index(tmp_path / "nothing").forget("x")
