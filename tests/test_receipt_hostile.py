"""Proves that any flipped byte of a receipt is found, and that neither hostile measurements nor hostile
receipts make anything but a plain answer."""

from __future__ import annotations

import hashlib
import json
import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from receipt_samples import RUN, Training, made, measurements

from compute_router.receipt import receipt_id, verify
from compute_router.receipt.facts import value
from compute_router.receipt.summary import lines
from compute_router.records import canonical, encode


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return made(measurements())


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b'{"schema": "route.measured/1"}', "canonical"),
        (b"{" * 100_000, "left out"),
        (b"[" * 100_000, "left out"),
        (b'{"a":NaN}', "left out"),
        (b"\xff\xfe", "left out"),
        (b"null", "schema"),
        (canonical({"schema": "route.measured/1", "run_id": RUN, "attempt": 2}), "another run"),
        ({"schema": "route.measured/1", "run_id": RUN, "attempt": 1, "x": 0.5}, "canonical"),
        ({"schema": "route.measured/1", "run_id": RUN, "attempt": 1, "x": 2**70}, "53 bits"),
    ],
)
def test_a_block_that_cannot_be_kept_is_left_out(bad: Any, why: str) -> None:
    receipt = made(bad)
    assert (receipt["measured"], receipt["measured_sha256"]) == (None, None)
    [caveat] = value(receipt["context"], "caveats")
    assert why in caveat
    assert verify(encode(receipt)) == []
    assert receipt["evidence_class"] == "invalid"
    told = made(measurements(), measured_sha256="00" * 32)
    assert told["measured"] is None


_ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.sampled_from(
        ["", "unobserved", "not_applicable", "exact", "succeeded", "-1.5", "NaN", "x" * 5000, "\ud800"]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["v", "why", "src", "at", "kind", "state", "last", "name"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(measurements())), _ODD, max_size=5), st.data())
def test_hostile_measurements_make_a_good_receipt(odd: dict[str, Any], data: st.DataObject) -> None:
    block = measurements(**odd)
    for section in ("hw", "outcome", "steady", "metrics", "checks", "timing", "mem", "env"):
        inner = block.get(section)
        if isinstance(inner, dict) and inner:
            block[section] = {**inner, data.draw(st.sampled_from(sorted(inner))): data.draw(_ODD)}
    block.update(schema="route.measured/1", run_id=RUN, attempt=1)
    for kind in (Training(), None):
        receipt = made(block, kind=kind)
        assert verify(encode(receipt)) == []
        assert lines(receipt)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(made(measurements()))), _ODD, min_size=1, max_size=3))
def test_hostile_receipts_are_told_not_raised(odd: dict[str, Any]) -> None:
    receipt = {**made(measurements()), **odd}
    problems = verify(encode(receipt))
    assert problems or receipt == made(measurements()) or set(odd) == {"signatures"}
    assert all(str(p) for p in problems)
    assert lines(receipt)


def test_any_flipped_byte_is_found(whole: dict[str, Any]) -> None:
    data = encode(whole)
    assert verify(data) == []
    seed = 20240607
    print(f"seed {seed}")
    bits = random.Random(seed)
    # Every byte of the beginning, the end and the ids; of the rest every thirteenth.
    spots = [i for i in range(len(data)) if i < 300 or i >= len(data) - 300 or i % 13 == 0]
    for spot in spots:
        flipped = bytearray(data)
        flipped[spot] ^= 1 << bits.randrange(8)
        assert verify(bytes(flipped)), f"byte {spot} ({bytes(data[spot - 20 : spot + 5])!r}) flipped unseen"
    for length in range(0, len(data) - 1, 97):
        assert verify(data[:length])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"null",
        b"[]",
        b"[" * 1_000_000,
        b'{"a":' * 200_000,
        b'{"schema":"route.receipt/1"}',
        b'{"schema":"route.receipt/1","measured":NaN}',
        b'{"schema":"route.receipt/1","attempt":' + b"9" * 5000 + b"}",
        b'{"schema":"route.receipt/999999999999"}',
        b'{"schema":"route.receipt/x"}',
        b'{"schema":1}',
        b"\xff" * 100,
        b'"' + b"a" * 1_000_000,
    ],
)
def test_hostile_bytes_are_told_in_bounded_time(data: bytes) -> None:
    begun = time.monotonic()
    problems = verify(data)
    assert problems
    assert len(problems) <= 101
    assert time.monotonic() - begun < 30


def test_a_newer_schema_is_one_clear_line() -> None:
    [problem] = verify(encode({"schema": "route.receipt/2", "anything": [1]}))
    assert problem.code == "NEWER_SCHEMA"
    assert "upgrade" in str(problem)


def resealed(receipt: dict[str, Any], change: Any) -> list[str]:
    """The codes of what is wrong after a change by somebody who made all digests good again."""
    forged = json.loads(canonical(receipt))
    change(forged)
    forged["measured_sha256"] = hashlib.sha256(canonical(forged["measured"])).hexdigest()
    forged["receipt_id"] = receipt_id(forged)
    return [f"{p.code} {p.path}" for p in verify(encode(forged))]


def test_a_forged_receipt_contradicts_itself(whole: dict[str, Any]) -> None:
    def put(path: str, item: Any) -> Any:
        def change(receipt: dict[str, Any]) -> None:
            *above, last = path.split(".")
            for name in above:
                receipt = receipt[name]
            receipt[last] = item

        return change

    for path, item, want in (
        ("context.hw.observed.sku.v", "H200", "INCONSISTENT context.hw.observed.sku"),
        ("measured.hw.observed.cpus.v", 64, "INCONSISTENT context.hw.observed.count"),
        ("context.outcome.exit_code.v", 3, "INCONSISTENT context.outcome"),
        ("context.surface.v", "reserved", "INCONSISTENT comparability.fields.surface"),
        ("context.surface.v", "moon", "TYPE context.surface"),
        ("evidence_class", "claim", "INCONSISTENT evidence_class"),
        ("context.hw.observed.sku.src", "workload", "TYPE context.hw.observed.sku"),
        ("context.timing.run_us.v", -1, "TYPE context.timing.run_us"),
        ("context.extra", {"v": 1, "src": "observed", "at": 1}, "UNKNOWN_FIELD context.extra"),
        ("context.coupling", {"v": None}, "TYPE context.coupling"),
        ("chain.seq", 2, "INCONSISTENT chain.prev"),
        ("comparability.key", "00", "HASH_MISMATCH comparability.key"),
    ):
        assert want in resealed(whole, put(path, item)), path
    assert "MISSING_FIELD context.coupling" in resealed(whole, lambda r: r["context"].pop("coupling"))
    assert resealed(whole, lambda r: None) == []
