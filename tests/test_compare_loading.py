"""Proves that receipts are read safely: a flipped bit is found, and whatever a file is ends in one line."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import planted
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compute_router.compare import loading
from compute_router.compare.comparing import compare
from compute_router.compare.decoding import codec
from compute_router.compare.gathering import gather
from compute_router.compare.loaded import Loaded
from compute_router.compare.loading import Unread, load
from compute_router.receipt import verifying
from compute_router.receipt.building import receipt_id
from compute_router.receipt.evidence import comparability, evidence
from compute_router.receipt.schema import RULES, TABLE
from compute_router.records import canonical, encode

SEED = int(os.environ.get("ROUTE_SEED", "20261"))


@pytest.fixture(scope="module")
def receipt() -> dict[str, Any]:
    return planted.study()[0].receipt()


@pytest.fixture(scope="module")
def data(receipt: dict[str, Any]) -> bytes:
    return encode(receipt)


def sealed(receipt: dict[str, Any]) -> bytes:
    """The bytes of an edited receipt whose id fits again: what someone writes who means to."""
    return encode({**receipt, "receipt_id": receipt_id(receipt)})


def refused(found: Loaded | Unread, code: str | None = None) -> Unread:
    assert isinstance(found, Unread), "it was read"
    assert "\n" not in found.what
    assert len(found.what) <= 300
    assert found.mend
    assert code is None or found.code == code, found
    return found


def test_both_ways_read_the_same(receipt: dict[str, Any], data: bytes) -> None:
    heads = [loading._quickly(data), loading._slowly(data, "a")]
    quick, slow = (Loaded("a", head, functools.partial(copy.copy, head)) for head in heads)
    for field in TABLE:
        if field.block != "receipt":
            assert quick.fact(field.path) == slow.fact(field.path)
            node: Any = receipt["context"]
            for name in field.path.split("."):
                node = node[name]
            assert json.loads(msgspec.json.encode(quick.value(field.path))) == node["v"]
    for name in ("key", "fields", "evidence", "receipt_id", "run_id", "attempt", "kind", "purpose"):
        assert getattr(quick, name) == getattr(slow, name)
    assert quick.fields == comparability(receipt)["fields"]
    assert quick.measured


def test_any_flipped_bit_is_found(data: bytes) -> None:
    """Sampled over the whole file; a bit of every byte where digests stand, every bit at the end."""
    chance = random.Random(SEED)
    print(f"ROUTE_SEED={SEED}")
    tail = data.index(b'"measured_sha256"')
    assert data.endswith(b'"signatures":[]}\n')
    places = {(chance.randrange(len(data)), chance.randrange(8)) for _ in range(500)}
    places |= {(at, chance.randrange(8)) for at in (*range(60), *range(tail, len(data)))}
    places |= {(at, bit) for at in range(len(data) - 40, len(data)) for bit in range(8)}
    for at, bit in sorted(places):
        flipped = bytearray(data)
        flipped[at] ^= 1 << bit
        found = load(bytes(flipped), ref="flipped")
        assert isinstance(found, Unread), f"bit {bit} of byte {at} of {data[max(0, at - 20) : at + 20]!r}"


def test_a_signature_stands_outside_of_the_id_and_is_for_verify_to_judge(receipt: dict[str, Any]) -> None:
    signed = encode({**receipt, "signatures": [{"sig": "abcd"}]})
    assert isinstance(load(signed), Loaded)
    other = load(signed.replace(b"abcd", b"abce"))
    assert isinstance(other, Loaded)
    assert b"abce" in other.signatures
    refused(load(signed.replace(b'"sig":"abcd"', b'"sig": "abcd"')), "NOT_CANONICAL")


def test_a_cut_or_longer_file_is_found(data: bytes) -> None:
    chance = random.Random(SEED)
    for at in sorted({chance.randrange(len(data) - 2) for _ in range(200)}):
        refused(load(data[:at]))
    refused(load(data + b" "))
    refused(load(data + data))
    assert isinstance(load(data[:-1]), Loaded), "without its line end it is the same receipt"


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "NOT_JSON"),
    "no JSON": (b"<html>", "NOT_JSON"),
    "not UTF-8": (b'{"schema":"route.receipt/1","x":"\xff\xfe"}', "NOT_JSON"),
    "UTF-16": ('{"schema":"route.receipt/1"}'.encode("utf-16"), "NOT_JSON"),
    "a list": (b"[]", "NO_RECEIPT"),
    "a number": (b"12", "NO_RECEIPT"),
    "null": (b"null", "NO_RECEIPT"),
    "foreign": (b'{"schema":"in-toto/1"}', "NO_RECEIPT"),
    "foreign, with a schema of numbers": (b'{"schema":1}', "NO_RECEIPT"),
    "newer": (b'{"schema":"route.receipt/2"}', "NEWER_SCHEMA"),
    "much newer": (b'{"schema":"route.receipt/99999999"}', "NEWER_SCHEMA"),
    "odd schema": (b'{"schema":"route.receipt/one"}', "NO_RECEIPT"),
    "deep lists": (b'{"schema":"route.receipt/1","x":' + b"[" * 200_000, "NOT_JSON"),
    "deep objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "NOT_JSON"),
    "NaN": (b'{"schema":"route.receipt/1","x":NaN}', "NOT_JSON"),
    "Infinity": (b'{"schema":"route.receipt/1","x":-Infinity}', "NOT_JSON"),
    "a float": (b'{"schema":"route.receipt/1","x":1.5}', "NOT_CANONICAL"),
    "a large integer": (b'{"schema":"route.receipt/1","x":9007199254740992}', "NOT_CANONICAL"),
    "a huge integer": (b'{"schema":"route.receipt/1","x":' + b"9" * 10_000 + b"}", "NOT_JSON"),
    "a key twice": (b'{"schema":"route.receipt/1","schema":"route.receipt/1"}', "NOT_JSON"),
    "nothing but a schema": (b'{"schema":"route.receipt/1"}', "HASH_MISMATCH"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_ends_in_one_line(name: str) -> None:
    data, code = HOSTILE[name]
    refused(load(data, ref=name), code)


def test_what_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "huge.json"
    with open(path, "wb") as f:
        f.truncate(verifying.MOST_BYTES + 1)  # sparse: takes no room
    refused(load(path), "TOO_LARGE")
    monkeypatch.setattr("compute_router.compare.loading.MOST_BYTES", 10)
    refused(load(b"12345678901"), "TOO_LARGE")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path, data: bytes) -> None:
    os.mkfifo(tmp_path / "fifo")
    refused(load(tmp_path / "fifo"), "UNREADABLE")
    refused(load(Path("/dev/zero")), "UNREADABLE")
    refused(load(Path("/dev/tty")), "UNREADABLE")
    refused(load(tmp_path / "missing.json"), "UNREADABLE")
    refused(load(tmp_path), "UNREADABLE")
    refused(load(Path("a\0b")), "UNREADABLE")
    refused(load(Path("x" * 5000)), "UNREADABLE")
    (tmp_path / "loop").symlink_to("loop")
    refused(load(tmp_path / "loop"), "UNREADABLE")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(os.fspath(tmp_path / "s"))
        refused(load(tmp_path / "s"), "UNREADABLE")
    (tmp_path / "receipt.json").write_bytes(data)
    assert isinstance(load(tmp_path), Loaded), "a folder stands for the receipt in it"
    if os.geteuid() == 0:
        pytest.skip("root reads what nobody may read")
    (tmp_path / "receipt.json").chmod(0)
    refused(load(tmp_path / "receipt.json"), "UNREADABLE")


def test_a_field_that_no_rule_asks_for_is_read_again(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "receipt.json"
    path.write_bytes(data)
    one, bytes_of, gone, changed = load(path), load(data), load(path), load(path)
    assert isinstance(one, Loaded)
    assert isinstance(bytes_of, Loaded)
    assert isinstance(gone, Loaded)
    assert isinstance(changed, Loaded)
    for name, value in (("code.branch", "main"), ("outcome.exit_code", 0), ("client.adopted", False)):
        assert one.value(name) == bytes_of.value(name) == value
    path.write_bytes(planted.study()[1].data())
    assert changed.value("code.branch") is None, "another receipt lies there now"
    path.unlink()
    assert gone.value("code.branch") is None
    assert one.value("code.branch") == "main"


def test_a_skipped_field_that_two_readers_read_apart_is_nobodys(receipt: dict[str, Any]) -> None:
    raw = encode(receipt).rstrip(b"\n").replace(b'"branch":{"at"', b'"branch":{"at":1,"at"')
    cut = raw.index(b'"receipt_id":"')
    rest = (raw[:cut] + raw[cut + len(b'"receipt_id":"",') + 64 :]).replace(b',"signatures":[]', b"")
    told = hashlib.sha256(rest).hexdigest().encode()
    found = load(raw[: cut + 14] + told + raw[cut + 78 :])
    if isinstance(found, Loaded):
        assert found.value("code.branch") is None


def test_comparing_reads_no_file_again(tmp_path: Path) -> None:
    loaded = []
    for spec in planted.study():
        path = tmp_path / f"{spec.number}.json"
        path.write_bytes(spec.data())
        loaded.append(load(path))
        path.unlink()
    found = compare(gather(loaded))
    assert found.contrasts[0].verdict
    assert not found.contrasts[0].refusals
    assert [one._head for one in loaded if isinstance(one, Loaded)] == [None] * len(loaded)


def test_a_key_twice_is_found_though_its_digest_fits(receipt: dict[str, Any], data: bytes) -> None:
    """Two readers of such a file may read two different things."""
    twice = {
        "in the environment": (b'"NCCL_DEBUG":"WARN"', b'"NCCL_DEBUG":"INFO","NCCL_DEBUG":"WARN"'),
        "of a fact": (b'"n_steps":{"at":', b'"n_steps":{"at":1,"at":'),
        "at the top": (b'{"attempt":1,', b'{"attempt":2,"attempt":1,'),
        "of a section": (b'"steady":{"first_step"', b'"steady":{"first_step":null,"first_step"'),
    }
    for name, (old, new) in twice.items():
        changed = data.replace(old, new)
        assert changed != data, name
        raw = changed.rstrip(b"\n")
        cut = raw.index(b'"receipt_id":"')
        rest = raw[:cut] + raw[cut + len(b'"receipt_id":"",') + 64 :]
        id_ = hashlib.sha256(rest.replace(b',"signatures":[]', b"")).hexdigest()
        refused(load(raw[: cut + 14] + id_.encode() + raw[cut + 78 :] + b"\n"))


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "context is a list": lambda r: r.__setitem__("context", []),
    "a section is a text": lambda r: r["context"].__setitem__("steady", "none"),
    "a fact is a number": lambda r: r["context"]["steady"].__setitem__("n_steps", 5),
    "steps are a text": lambda r: r["context"]["steady"]["n_steps"].__setitem__("v", "100"),
    "steps are negative": lambda r: r["context"]["steady"]["n_steps"].__setitem__("v", -1),
    "a surface of no enumeration": lambda r: r["context"]["surface"].__setitem__("v", "moon"),
    "storage is an object": lambda r: r["context"]["storage"].__setitem__("v", {}),
    "a cache is a text": lambda r: r["context"]["cache"].__setitem__("v", ["warm"]),
    "a figure is no decimal": lambda r: r["context"]["metrics"]["values"]["v"][0].__setitem__(
        "value", "fast"
    ),
    "a figure is NaN as text": lambda r: r["context"]["metrics"]["values"]["v"][0].__setitem__(
        "value", "NaN"
    ),
    "a source is a number": lambda r: r["context"]["steady"]["n_steps"].__setitem__("src", 1),
    "the attempt is 0": lambda r: r.__setitem__("attempt", 0),
    "the kind is null": lambda r: r.__setitem__("kind", None),
    "the purpose is unknown": lambda r: r.__setitem__("purpose", "fun"),
    "an unknown class of evidence": lambda r: r.__setitem__("evidence_class", "proof"),
    "reasons are texts": lambda r: r.__setitem__("evidence_reasons", ["because"]),
    "rules are a text": lambda r: r.__setitem__("rules", "3"),
    "comparability is null": lambda r: r.__setitem__("comparability", None),
    "variables are numbers": lambda r: r["context"]["env"]["allow"].__setitem__("v", {"A": 1}),
    "first steps are texts": lambda r: r["context"]["distributed"]["first_step_us"].__setitem__("v", ["1"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_type_is_one_line_though_its_digest_fits(name: str, receipt: dict[str, Any]) -> None:
    changed = copy.deepcopy(receipt)
    WRONG[name](changed)
    refused(load(sealed(changed), ref=name), "BAD_VALUE")


def test_a_digest_of_parts_that_does_not_fit_is_found(receipt: dict[str, Any]) -> None:
    changed = copy.deepcopy(receipt)
    changed["measured"]["steady"]["n_steps"]["v"] = 1000
    refused(load(sealed(changed)), "HASH_MISMATCH")
    refused(load(sealed({**receipt, "measured_sha256": None})), "HASH_MISMATCH")
    changed = copy.deepcopy(receipt)
    changed["comparability"]["fields"]["surface"] = "local"
    refused(load(sealed(changed)), "HASH_MISMATCH")


def test_what_other_rules_made_is_made_again(receipt: dict[str, Any]) -> None:
    """An older or newer version may have judged otherwise; what it stored is not believed."""
    for rules in (1, RULES + 1):
        changed = copy.deepcopy(receipt)
        changed |= {
            "rules": rules,
            "evidence_class": "anecdote",
            "comparability": {"fields": {}, "key": "0" * 64},
        }
        found = load(sealed(changed))
        assert isinstance(found, Loaded)
        assert found.fields == comparability(receipt)["fields"]
        assert found.key == comparability(receipt)["key"]
        assert found.evidence == evidence(receipt)[0]


@pytest.mark.parametrize("rules", [1, RULES - 1, RULES + 1])
def test_a_receipt_of_other_rules_is_read_quickly_too(receipt: dict[str, Any], rules: int) -> None:
    """With the same answer as the slow way, which takes some fifty times as long."""
    data = sealed({**receipt, "rules": rules, "evidence_class": "anecdote"})
    quick, slow = loading._head(data, "a"), loading._slowly(data, "a")
    assert loading._quickly(data) is not None
    both = [Loaded("a", head, lambda: None, whole) for head, whole in (quick, slow)]
    for name in ("key", "fields", "evidence", "reasons", "seen", "warned", "weak", "inapplicable"):
        assert getattr(both[0], name) == getattr(both[1], name)
    assert both[0].evidence == evidence(receipt)[0]


def test_a_receipt_from_before_a_field_was_made_is_read(receipt: dict[str, Any]) -> None:
    changed = copy.deepcopy(receipt)
    changed["rules"] = 1
    for name in ("vary", "margin", "arms"):
        del changed["context"]["study"][name]
    found = load(sealed(changed))
    assert isinstance(found, Loaded)
    assert found.value("study.vary") is None
    assert found.value("study.arm") == "base"
    changed["context"]["hw"]["observed"].pop("governor")
    del changed["context"]["frontier"], changed["context"]["lock_sha256"]
    found = load(sealed(changed))
    assert compare(gather([found, *(spec.loaded() for spec in planted.study()[1:])])).contrasts[0].verdict


def test_a_field_of_a_later_step_is_passed_over(receipt: dict[str, Any]) -> None:
    changed = copy.deepcopy(receipt)
    changed["rules"] = RULES + 1
    changed["context"]["steady"]["later"] = {"v": None, "why": "unobserved"}
    assert isinstance(load(sealed(changed)), Loaded)


def test_texts_that_encoders_write_in_several_ways_are_read(receipt: dict[str, Any]) -> None:
    for text in ('\n\t\r\b\f\x01\x1f\x7f"\\/', "größer ≤ 5 \u2028 😀", '","rules":3', "\ud800"):
        changed = copy.deepcopy(receipt)
        changed["context"]["code"]["message"] = {"v": text, "src": "observed", "at": 1}
        changed["run_id"] = changed["measured"]["run_id"] = receipt["run_id"]
        found = load(sealed(changed))
        assert isinstance(found, Loaded), (text, found)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([f.path for f in TABLE if f.block != "receipt"]), json_values, st.booleans())
def test_whatever_stands_in_a_field_nothing_raises(path: str, value: Any, whole: bool) -> None:
    changed = json.loads(planted.study()[0].data())
    *parents, last = path.split(".")
    node = changed["context"]
    for name in parents:
        node = node[name]
    node[last] = value if whole else {"v": value, "src": "observed", "at": 1}
    try:
        data = sealed(changed)
    except ValueError:
        data = json.dumps(changed).encode()
    found = load(data)
    assert isinstance(found, (Loaded, Unread))
    if isinstance(found, Loaded):
        compare(gather([found, planted.study()[1].loaded()]))


@given(st.binary(max_size=200))
def test_random_bytes_are_one_line(data: bytes) -> None:
    refused(load(data))


def test_canonical_bytes_are_what_the_quick_way_encodes(receipt: dict[str, Any]) -> None:
    _, decode, encode_quickly = codec()
    assert encode_quickly(decode(canonical(receipt))) == canonical(receipt)
