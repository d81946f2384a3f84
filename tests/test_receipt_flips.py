"""Proves that no bit of a receipt changes unseen, and that receipts of other versions are told apart."""

from __future__ import annotations

import json
import random
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from receipt_samples import made, measurements

from compute_router import Router, run
from compute_router.backend import State
from compute_router.receipt import receipt_id, verify
from compute_router.receipt.schema import RULES
from compute_router.receipt.verifying import judge
from compute_router.records import canonical, encode
from compute_router.workload import Entry, Workload

DATA = Path(__file__).parent / "data"


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_every_byte_of_a_whole_receipt_counts(part: int) -> None:
    """One flipped bit in every byte of a receipt, the bit by its place."""
    data = encode(made(None, state=State.FAILED))
    assert verify(data) == []
    for spot in range(part, len(data), 4):
        flipped = bytearray(data)
        flipped[spot] ^= 1 << (spot // 4 % 8)
        assert verify(bytes(flipped)), f"byte {spot}: {bytes(data[spot - 20 : spot + 5])!r}"


def test_bits_of_a_real_receipt_count(tmp_path: Path, seed: random.Random) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "work.py").write_text("print(1)\n")
    entry = Entry(root=str(tmp_path / "src"), script="work.py")
    router = Router(tmp_path / "home", plugins=False)
    run(Workload(name="flipped", entry=entry, kind="train", python=sys.executable), router=router)
    path = router.store.open("latest").file("receipt")
    data = path.read_bytes()
    assert verify(path) == []
    for bit in seed.sample(range(len(data) * 8), 1500):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        assert verify(bytes(flipped)), f"bit {bit}"


def test_nothing_may_hide_where_no_digest_looks() -> None:
    receipt = made(measurements())
    receipt["signatures"] = [{"by": "nobody"}]
    assert [p.path for p in verify(encode(receipt))] == ["signatures"]


def test_a_name_that_stands_twice_is_told() -> None:
    data = encode(made(measurements()))
    twice = data.replace(b'{"attempt":1,', b'{"attempt":7,"attempt":1,', 1)
    assert twice != data
    assert json.loads(twice) == json.loads(data), "the reader of the last value sees nothing"
    assert [(p.code, p.path) for p in verify(twice)] == [("DUPLICATE_KEY", "attempt"), ("NOT_CANONICAL", "")]


@pytest.mark.parametrize("rules", [1, 2, 3])
def test_receipts_of_older_rules_verify_as_they_were_made(rules: int) -> None:
    judged = judge(DATA / f"receipt_rules_{rules}.json")
    assert judged.problems == []
    [note] = judged.notes
    assert f"made by rules {rules}" in note


def resealed(change: dict[str, Any]) -> bytes:
    receipt = {**json.loads(canonical(made(measurements()))), **change}
    receipt["receipt_id"] = receipt_id(receipt)
    return encode(receipt)


def test_newer_rules_are_one_line_and_their_bytes_are_checked() -> None:
    data = resealed({"rules": 99, "of_tomorrow": {"v": 1}})
    judged = judge(data)
    assert judged.problems == []
    [note] = judged.notes
    assert "rules 99" in note
    assert "cannot be judged" in note
    assert verify(data.replace(b'"of_tomorrow":{"v":1}', b'"of_tomorrow":{"v":2}'))
    assert verify(resealed({"of_tomorrow": 1})), "of our own rules there is no such field"


@pytest.mark.parametrize("rules", [True, -1, "3", None, 2.5])
def test_rules_that_are_none_are_told(rules: Any) -> None:
    try:
        data = resealed({"rules": rules})
    except ValueError:
        data = encode(made(measurements())).replace(b'"rules":%d' % RULES, b'"rules":2.5')
    assert verify(data)


def test_many_small_values_do_not_fill_the_memory() -> None:
    data = b'{"schema":"route.receipt/1","measured":[' + b"{}," * 5_000_000 + b"{}]}"
    tracemalloc.start()
    try:
        [problem] = verify(data)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert problem.code == "TOO_LARGE"


def test_each_hostile_receipt_is_one_line_on_the_terminal(route: Any, folder: Path, tmp_path: Path) -> None:
    """With no store, no home and no configuration that could be read."""
    bad = {
        "deep.json": b"[" * 1_000_000,
        "nan.json": b'{"schema":"route.receipt/1","measured":NaN}',
        "major.json": b'{"schema":"route.receipt/2"}',
        "text.json": b"hello",
        "binary.json": bytes(range(256)),
        "list.json": b"[1]",
        "zip.json": b"PK\x03\x04 and no more",
    }
    for name, data in bad.items():
        (folder / name).write_bytes(data)
        out = route("receipt", "verify", name, "--no-plugins", env={"ROUTE_HOME": "/proc/none", "HOME": None})
        assert out.returncode == 65, out
        assert "Traceback" not in out.stdout + out.stderr
        assert len(out.stdout.splitlines()) == 2, out.stdout
    (folder / "good").mkdir()
    (folder / "good" / "receipt.json").write_bytes(encode(made(measurements())))
    out = route("receipt", "verify", "good", "good/receipt.json", env={"ROUTE_HOME": None, "HOME": None})
    assert (out.returncode, out.stderr) == (0, "")
