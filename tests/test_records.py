"""Proves canonical bytes, digests, run ids and what is refused, over generated data."""

from __future__ import annotations

import json
import string
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compute_router.errors import InputError
from compute_router.records import canonical, decode, digest, encode, key_run_id, new_run_id
from compute_router.workload import Accelerator, Entry, Needs, Purpose, Role, Stage, Workload

KEYS = st.text(string.ascii_letters + string.digits + "_.", max_size=12)
LEAVES = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=20)
DATA = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4)
)


@given(DATA)
def test_canonical_bytes_come_back_and_are_stable(value: object) -> None:
    data = canonical(value)
    assert json.loads(data) == value
    assert canonical(json.loads(data)) == data
    assert digest(value) == digest(json.loads(data))


@given(DATA)
def test_canonical_bytes_follow_rfc_8785_where_text_is_concerned(value: object) -> None:
    """No white space outside strings, keys in ascending order: what JCS asks beyond plain JSON."""

    def ordered(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = [k for k, _ in pairs]
        assert keys == sorted(keys)
        return dict(pairs)

    json.loads(canonical(value), object_pairs_hook=ordered)
    assert canonical(value) == json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    ).encode("utf-8", "backslashreplace")


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (1.5, r"\$: float"),
        ({"a": [0, 2**53]}, r"\$\.a\[1\]: 9007199254740992 does not fit"),
        ({"a": -(2**53)}, r"\$\.a"),
        ({"ä": 1}, "not ASCII"),
        ({"a": float("nan")}, r"\$\.a: float"),
    ],
)
def test_what_has_no_canonical_form_is_refused_with_its_path(value: object, where: str) -> None:
    with pytest.raises(ValueError, match=where):
        canonical(value)


def test_records_are_frozen_and_keyword_only() -> None:
    entry = Entry(root="/x", argv=("true",))
    with pytest.raises(AttributeError):
        entry.root = "/y"  # type: ignore[misc]
    with pytest.raises(TypeError):
        Entry("/x")  # type: ignore[call-arg]


def test_a_record_comes_back_from_its_file() -> None:
    workload = Workload(
        name="w",
        entry=Entry(root="/x", script="a.py"),
        needs=Needs(accelerator=Accelerator.parse("h200:8"), substitutes=(Accelerator.parse("H100:8"),)),
        volumes={Role.COMPILE_CACHE: "/cache"},
        stage=(Stage(source="/d/*", to=Role.DATA),),
        purpose=Purpose.BENCHMARK,
    )
    assert decode(Workload, encode(workload)) == workload


def test_where_the_files_lay_is_not_part_of_what_they_are() -> None:
    one, two = (Workload(name="w", entry=Entry(root=root, script="a.py")) for root in ("/x", "/y"))
    assert one.digest == two.digest
    assert one.digest != msgspec.structs.replace(one, name="v").digest


def test_reading_names_the_path_of_what_is_wrong() -> None:
    data = encode(Workload(name="w", entry=Entry(root="/x"))).replace(b'"nodes":1', b'"nodes":"one"')
    with pytest.raises(InputError, match=r"needs\.nodes"):
        decode(Workload, data)
    with pytest.raises(InputError, match="unknown field"):
        decode(Entry, b'{"root":"/x","colour":"red"}')
    for junk in (b"", b"\xff\xfe", b"[" * 100_000, b"{}"):
        with pytest.raises(InputError):
            decode(Entry, junk)


def test_run_ids_are_lower_case_ulids_in_order_of_time() -> None:
    ids = [new_run_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(len(i) == 26 and i == i.lower() and i.isalnum() and not set("ilou") & set(i) for i in ids)
    assert [i[:9] for i in ids] == sorted(i[:9] for i in ids)


def test_a_key_always_gives_the_same_id_in_every_process() -> None:
    code = "from compute_router.records import key_run_id; print(key_run_id('nightly-7'))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == key_run_id("nightly-7") != key_run_id("nightly-8")
    assert len(key_run_id("")) == 26


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cpu", "cpu"),
        ("any", "any"),
        ("any:4", "any:4"),
        ("h200", "H200:1"),
        ("H200:8", "H200:8"),
        ("v6e-8", "v6e-8"),
        ("V5LITEPOD-16", "v5litepod-16"),
        ("A100-80GB:2", "A100-80GB:2"),
    ],
)
def test_accelerators_are_read_as_written(text: str, shown: str) -> None:
    assert str(Accelerator.parse(text)) == shown
    assert Accelerator.parse(shown) == Accelerator.parse(text)


@pytest.mark.parametrize("text", ["", "H200:0", "H200:", ":8", "cpu:4", "8", "H200:8:8", "H200 x8", "v6e-0"])
def test_what_is_no_accelerator_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Accelerator.parse(text)
