"""Proves what the chain of a store shows: receipts deleted, changed, moved, exchanged, cut off; and what
only a head kept elsewhere shows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Route
from receipt_samples import made, measurements
from store_samples import begin

from compute_router.chaincheck import Checked, Head, check
from compute_router.receipt import receipt_id
from compute_router.records import encode
from compute_router.store import RunFolder, Store

COUNT = 6


def sealed(store: Store, name: str = "gpt", **more: Any) -> RunFolder:
    run = begin(store, name)
    run.seal(
        lambda chain: made(measurements(run_id=run.id), run_id=run.id, chain=dict(chain), **more), attempt=1
    )
    return run


@pytest.fixture
def store(home: Path) -> Store:
    return Store(home)


@pytest.fixture
def runs(store: Store) -> list[RunFolder]:
    return [sealed(store) for _ in range(COUNT)]


def head_of(store: Store) -> Head:
    head = check(store.home).head
    assert head is not None
    assert head.receipt_id is not None
    return Head(head.seq, head.receipt_id)


def lines(store: Store) -> list[str]:
    return (store.home / "chain.jsonl").read_text().splitlines(keepends=True)


def put(store: Store, kept: list[str]) -> None:
    (store.home / "chain.jsonl").write_text("".join(kept))


def rewrite(run: RunFolder, **change: Any) -> str:
    """Write another receipt in place of a run's, good in itself; returns its id."""
    receipt = {**json.loads(run.file("receipt").read_bytes()), **change}
    receipt["receipt_id"] = receipt_id(receipt)
    run.file("receipt").write_bytes(encode(receipt))
    return str(receipt["receipt_id"])


def test_a_chain_that_is_whole_says_so(store: Store, runs: list[RunFolder]) -> None:
    head = head_of(store)
    checked = check(store.home, [head])
    assert checked.problems == ()
    assert checked.store_id == store.id
    assert [p[:2] for p in checked.proofs] == [(1, COUNT)]
    assert len(checked.receipts) == COUNT
    sealed(store)
    assert [p[:2] for p in check(store.home, [head]).proofs] == [(1, COUNT)], "a head keeps its meaning"


def deleted(store: Store, runs: list[RunFolder]) -> None:
    shutil.rmtree(runs[2].path)


def deleted_with_its_line(store: Store, runs: list[RunFolder]) -> None:
    shutil.rmtree(runs[2].path)
    put(store, [line for line in lines(store) if runs[2].id not in line])


def changed(store: Store, runs: list[RunFolder]) -> None:
    rewrite(runs[2], created_us=7)


def exchanged(store: Store, runs: list[RunFolder]) -> None:
    """Receipt and line are made anew; the receipt after them still names the old one."""
    old = json.loads(runs[2].file("receipt").read_bytes())["receipt_id"]
    new = rewrite(runs[2], created_us=7)
    put(store, [line.replace(old, new) for line in lines(store)])


def reordered(store: Store, runs: list[RunFolder]) -> None:
    kept = lines(store)
    kept[2], kept[3] = kept[3], kept[2]
    put(store, kept)


def moved(store: Store, runs: list[RunFolder]) -> None:
    one, other = runs[1].file("receipt"), runs[2].file("receipt")
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def copied(store: Store, runs: list[RunFolder]) -> None:
    shutil.copy(runs[1].file("receipt"), runs[2].path / "receipt-0.json")


def cut_off_in_the_chain(store: Store, runs: list[RunFolder]) -> None:
    put(store, lines(store)[:-1])


def cut_off_in_the_store(store: Store, runs: list[RunFolder]) -> None:
    shutil.rmtree(runs[-1].path)


def another_identity(store: Store, runs: list[RunFolder]) -> None:
    path = store.home / "store.json"
    path.write_text(path.read_text().replace(store.id, "ab" * 16))


def of_another_store(store: Store, runs: list[RunFolder]) -> None:
    other = sealed(Store(store.home.with_name("other")))
    shutil.copytree(other.path, store.runs / other.id)


def without_its_chain(store: Store, runs: list[RunFolder]) -> None:
    (store.home / "chain.jsonl").unlink()


def unread(store: Store, runs: list[RunFolder]) -> None:
    put(store, [*lines(store)[:3], "}{\n", *lines(store)[3:]])


def wrongly_removed(store: Store, runs: list[RunFolder]) -> None:
    shutil.rmtree(runs[2].path)
    put(store, [*lines(store), json.dumps([3, runs[4].id, 1, None]) + "\n"])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (deleted, "receipt 3 (run"),
        (deleted_with_its_line, "receipt 3 is missing"),
        (changed, "receipt 3 of run"),
        (exchanged, "does not follow"),
        (reordered, "stands in the chain after"),
        (moved, "is not the one the chain names"),
        (copied, "stands twice"),
        (cut_off_in_the_chain, f"receipt {COUNT} is not in the chain"),
        (cut_off_in_the_store, f"receipt {COUNT} (run"),
        (another_identity, "store.json names the store"),
        (of_another_store, "is of another store"),
        (without_its_chain, "is missing"),
        (unread, "cannot be read"),
        (wrongly_removed, "noted as removed"),
    ],
)
def test_what_was_done_to_a_store_shows(
    store: Store,
    runs: list[RunFolder],
    spoil: Callable[[Store, list[RunFolder]], None],
    said: str,
    route: Route,
) -> None:
    spoil(store, runs)
    problems = check(store.home).problems
    assert any(said in problem for problem in problems), problems
    out = route("receipt", "verify", "--store")
    assert (out.returncode, "CHAIN: " in out.stdout) == (65, True), out
    assert "head" not in out.stdout, "no head of a chain that is not good"


def test_removed_on_purpose_is_no_fault_and_is_told(
    store: Store, runs: list[RunFolder], route: Route
) -> None:
    head = head_of(store)
    store.remove(runs[2].id)
    checked = check(store.home, [head])
    assert checked.problems == ()
    assert [link.seq for link in checked.removed] == [3]
    [proof] = checked.proofs
    assert (proof.first, proof.last) == (3, COUNT)
    assert "receipt 3 was removed on purpose" in proof.why
    out = route("receipt", "verify", "--store", "--head", f"{head.seq}:{head.receipt_id}")
    assert (out.returncode, out.stderr) == (0, "")
    assert f"receipt 3 (run {runs[2].id}) was removed on purpose" in out.stdout
    assert f"receipts 3 to {COUNT} are those of that head" in out.stdout
    assert "not proven" in out.stdout


def forged(store: Store, runs: list[RunFolder], first: int) -> Checked:
    """Write receipts anew from number `first` on, with their lines: a chain that is good in itself."""
    kept, prev = lines(store)[:first], json.loads(runs[first - 2].file("receipt").read_bytes())["receipt_id"]
    for seq, run in enumerate(runs[first - 1 :], first):
        chain = {"store_id": store.id, "prev": prev, "seq": seq}
        prev = rewrite(run, chain=chain, created_us=1000 + seq)
        kept.append(json.dumps([seq, run.id, 1, prev], separators=(",", ":")) + "\n")
    put(store, kept)
    return check(store.home)


def test_a_chain_written_anew_shows_by_a_head_alone(store: Store, runs: list[RunFolder]) -> None:
    head, early = head_of(store), Head(2, json.loads(runs[1].file("receipt").read_bytes())["receipt_id"])
    assert forged(store, runs, 3).problems == (), "nothing on the disk tells"
    [said] = check(store.home, [head, early]).problems
    assert f"receipt {COUNT} is not that of the head" in said
    assert [p[:2] for p in check(store.home, [head, early]).proofs] == [(1, 2)]


def test_an_end_that_was_cut_off_shows_by_a_head_alone(store: Store, runs: list[RunFolder]) -> None:
    head = head_of(store)
    shutil.rmtree(runs[-1].path)
    put(store, lines(store)[:-1])
    assert check(store.home).problems == (), "nothing on the disk tells"
    [said] = check(store.home, [head]).problems
    assert "were cut off" in said
    sealed(store)
    [said] = check(store.home, [head]).problems
    assert "written anew" in said, "another one took the number"


def test_a_receipt_that_left_is_a_head(
    store: Store, runs: list[RunFolder], route: Route, folder: Path
) -> None:
    shutil.copy(runs[-1].file("receipt"), folder / "sent.json")
    out = route("receipt", "verify", "--store", "--head", "sent.json", "--json")
    told = json.loads(out.stdout)["data"]
    assert told["store"]["proofs"] == [{"first": 1, "last": COUNT, "why": ""}]
    assert (told["store"]["head"] or "").startswith(f"{COUNT}:")
    assert len(told["receipts"]) == COUNT
    forged(store, runs, COUNT)
    out = route("receipt", "verify", "--store", "--head", "sent.json")
    assert (out.returncode, "written anew" in out.stdout) == (65, True)


def test_a_receipt_that_is_damaged_inside_shows(store: Store, runs: list[RunFolder], route: Route) -> None:
    path = runs[1].file("receipt")
    path.write_bytes(path.read_bytes().replace(b"char-gpt", b"char-gpu", 1))
    assert check(store.home).problems == (), "its id is the same"
    out = route("receipt", "verify", "--store")
    assert out.returncode == 65
    assert "5 of 6 receipts whole" in out.stdout
    assert str(path) in out.stdout


def test_what_is_asked_wrongly_is_one_line(route: Route, folder: Path) -> None:
    for args, word in (
        (["--head", "1:" + "ab" * 32], "--store"),
        (["--store", "--head", "1"], "no head of a chain"),
        (["--store", "--head", "."], "no good receipt"),
        (["--store"], "there is no store"),
        ([], "nothing to verify"),
    ):
        out = route("receipt", "verify", *args)
        assert (out.returncode, word in out.stderr, len(out.stderr.splitlines())) == (64, True, 2), out
