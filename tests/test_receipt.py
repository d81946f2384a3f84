"""Proves that a receipt has every field for every final state, each with what was seen and by whom."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
from receipt_samples import AT, RUN, made, measurements, seen, workload

from compute_router.backend import Hardware, Offer, Quote, State, Status, Surface
from compute_router.receipt import build, verify
from compute_router.receipt.evidence import RULES, comparability
from compute_router.receipt.facts import at_path, leaves, missing, value
from compute_router.receipt.matching import match
from compute_router.receipt.schema import ENUMS, ITEMS, SOURCES, TABLE, table
from compute_router.receipt.summary import lines
from compute_router.records import canonical, encode, key_run_id
from compute_router.store import Store
from compute_router.workload import (
    Framework,
    Needs,
)


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return made(measurements())


def test_the_schema_is_sound() -> None:
    paths = [field.path for field in TABLE]
    assert len(paths) == len(set(paths))
    assert not [(p, q) for p in paths for q in paths if q.startswith(p + ".")], "a fact inside a fact"
    for f in TABLE:
        assert (f.cls in "KWVI", f.origin in ("decl", "obs", "der")) == (True, True), f
        assert f.block in ("receipt", "context", "measured")
        assert set(f.sources) <= set(SOURCES)
        assert (f.block == "receipt") == (not f.sources), f
        name, _, rest = f.type.partition(":")
        assert {"enum": rest in ENUMS, "open": rest in ENUMS, "list": rest in ITEMS}.get(name, True), f


def test_the_reference_is_the_schema() -> None:
    text = (Path(__file__).parent.parent / "docs" / "receipts.md").read_text()
    begin, end = "<!-- schema: begin -->\n", "<!-- schema: end -->"
    assert text.partition(begin)[2].partition(end)[0] == table(), (
        "write it again: python -m compute_router.receipt.schema"
    )
    for rule in RULES:
        assert f"`{rule.code}`" in text


@pytest.mark.parametrize("state", [s for s in State if s.final])
@pytest.mark.parametrize("with_measurements", [True, False])
def test_every_final_state_has_a_whole_receipt(state: State, with_measurements: bool) -> None:
    block = measurements(outcome={"state": state.value, "stage": "steady"}) if with_measurements else None
    receipt = made(block, state=state)
    assert verify(encode(receipt)) == []
    there = dict(leaves(receipt["context"]))
    assert set(there) == {f.path for f in TABLE if f.block != "receipt"}
    assert value(receipt["context"], "outcome.state") == state.value
    if state is not State.SUCCEEDED or not with_measurements:
        assert receipt["evidence_class"] == "invalid"
    assert dict(lines(receipt))["state"].startswith(state.value)


def test_a_run_that_was_refused_at_submit_has_a_receipt() -> None:
    status = Status(state=State.FAILED, reason="not_submitted", detail="no room", ended_us=AT)
    receipt = made(None, status=status)
    assert verify(encode(receipt)) == []
    assert value(receipt["context"], "outcome.stage") == "schedule"
    bare = build(run_id=RUN, key="k", workload=workload(), status=status, created_us=AT, chain=None)
    assert verify(encode(bare)) == []
    with pytest.raises(ValueError, match="no receipt yet"):
        made(None, status=Status(state=State.RUNNING))


def test_what_was_measured_is_kept_and_read(whole: dict[str, Any]) -> None:
    block, context = measurements(), whole["context"]
    assert whole["measured"] == block
    assert whole["measured_sha256"] == hashlib.sha256(canonical(block)).hexdigest()
    assert made(encode(block)) == whole
    assert made(canonical(block), measured_sha256=whole["measured_sha256"]) == whole
    fact = at_path(context, "hw.observed.sku")
    assert fact == {"v": "Intel(R) Xeon(R)", "src": "observed", "at": AT - 5}
    assert value(context, "hw.observed.count") == 2
    assert value(context, "hw.match") == "exact"
    assert at_path(context, "metrics.tok_s_global.src") == "workload"
    assert missing(at_path(context, "hw.observed.driver")) == "not_applicable"
    assert missing(at_path(context, "timing.compile_us")) == "unobserved"
    assert value(context, "storage")[1]["class"] == "local_nvme"
    assert value(context, "storage")[0]["class"] is None
    assert value(context, "cache") == [
        {
            **dict.fromkeys(ITEMS["cache"]),
            "kind": "inductor",
            "state": "unobserved",
            "verdict": "hit",
            "hits": 3,
            "misses": 0,
            "seed_source": "unobserved",
        }
    ]
    assert value(context, "volumes")[0]["event"] == ["created"]
    assert [row["name"] for row in value(context, "metrics.values")] == ["tok_s_global", "loss_last"]
    assert value(context, "env.stack") == {"python": "3.11.7", "torch": "2.13.0"}
    assert value(context, "code.commit") == "ef" * 20
    assert value(context, "distributed.mode") == "single"
    assert value(context, "checks.own")[4] == {"name": "end_marker", "ok": None, "why": "was not reported"}


def test_unobserved_equals_nothing_and_not_applicable_itself() -> None:
    other = key_run_id("another run")
    first = made(measurements())
    second = made(measurements(run_id=other), run_id=other)
    a, b = first["comparability"]["fields"], second["comparability"]["fields"]
    differ = {path for path in a if a[path] != b[path]}
    assert "data.id" in differ
    assert "startup.class" in differ
    gone = {path for path, v in a.items() if isinstance(v, dict) and "unobserved" in v}
    assert differ == gone | {"cache"}, "the state of a cache that nobody saw is that of this run alone"
    assert [row[0] for row in a["cache"]] == [row[0] for row in b["cache"]]
    assert a["hw.observed.topology"] == b["hw.observed.topology"] == {"not_applicable": True}
    assert first["comparability"]["key"] != second["comparability"]["key"]
    assert comparability(first) == first["comparability"]


@pytest.mark.parametrize("role", ["data", "compile-cache"])
def test_a_compared_storage_that_hides_equals_nothing(role: str) -> None:
    """What lies behind a virtual disk may be another thing each time: equal words would be a guess."""
    storage = [{"role": "root", "class": {"v": None}}, {"role": role, "class": {"v": None, "why": "virtio"}}]
    other = key_run_id("another run")
    runs = [
        made(measurements(storage=storage)),
        made(measurements(storage=storage, run_id=other), run_id=other),
    ]
    first, second = (run["comparability"]["fields"]["storage"] for run in runs)
    assert first != second
    reasons = {r["code"]: r["sentence"] for r in runs[0]["evidence_reasons"]}
    assert "storage" in reasons["KEY_UNOBSERVED"].replace(",", "").split()
    seen_class = [{"role": "root", "class": {"v": None}}, {"role": role, "class": {"v": "local_nvme"}}]
    assert made(measurements(storage=seen_class))["comparability"]["fields"]["storage"] == [
        [role, "local_nvme"]
    ]


def test_one_disk_of_one_boot_is_the_same_storage_though_its_class_hides() -> None:
    other = key_run_id("another run")

    def compared(device: str, boot: str, **which: Any) -> tuple[Any, set[str]]:
        place = {"class": {"v": None, "why": "virtio"}, "fs": "ext4", "backing": "vda (virtio)"}
        storage = [{"role": "compile-cache", **place, "device": device}]
        clock = {"boot_id": seen(boot), "offset_us": {"v": None, "why": "the client measures this"}}
        run = made(measurements(storage=storage, clock=clock, **which), **which)
        unseen = {r["sentence"] for r in run["evidence_reasons"] if r["code"] == "KEY_UNOBSERVED"}
        return run["comparability"]["fields"]["storage"], unseen

    first, unseen = compared("254:0", "boot-a")
    assert not any("storage" in sentence for sentence in unseen)
    assert first == compared("254:0", "boot-a", run_id=other)[0]
    assert first != compared("254:16", "boot-a")[0]
    assert first != compared("254:0", "boot-b")[0], "after a boot the name may be that of another disk"


def test_the_evidence_class_gives_its_reasons(whole: dict[str, Any]) -> None:
    codes = {r["code"] for r in whole["evidence_reasons"]}
    assert whole["evidence_class"] == "exploratory"
    assert {"PURPOSE", "CHECK_UNOBSERVED", "KEY_UNOBSERVED"} <= codes
    few = made(measurements(steady={"n_steps": seen(2, "workload")}))
    assert few["evidence_class"] == "anecdote"
    differs = made(measurements(outcome={"state": "failed", "exit_code": 1}))
    assert "STATES_DIFFER" in {r["code"] for r in differs["evidence_reasons"]}
    again = made(measurements(attempt=2), status=Status(state=State.SUCCEEDED, exit_code=0, attempt=2))
    assert "MIXED_ATTEMPTS" in {r["code"] for r in again["evidence_reasons"]}


GPU = {"family": "gpu", "sku": "H100", "count": 8}


@pytest.mark.parametrize(
    ("sku", "count", "want"),
    [
        ("NVIDIA H100 80GB HBM3", 8, "exact"),
        ("NVIDIA H100 80GB HBM3", 4, "count_mismatch"),
        ("NVIDIA H100 PCIe", 8, "variant"),
        ("NVIDIA H200", 8, "upgraded"),
        ("NVIDIA A100-SXM4-80GB", 8, "downgraded"),
        ("NVIDIA B200", 4, "declared"),
        ("cpu", 2, "cpu_fallback"),
        ("Something else", 8, "variant"),
        (None, 8, None),
    ],
)
def test_hardware_is_matched(sku: str | None, count: int, want: str | None) -> None:
    others = [{"family": "gpu", "sku": "B200", "count": 4}]
    found = match(GPU, others, {"sku": seen(sku), "count": seen(count)}, AT)
    assert found["v"] == want
    shared = {"sku": seen("NVIDIA H100"), "count": seen(8), "cotenants": seen(1)}
    assert match(GPU, others, shared, AT)["v"] == "shared"


def test_no_secret_gets_in() -> None:
    work = workload(
        env={
            "API_KEY": "canary-env",
            "NCCL_DEBUG": "INFO",
            "TORCH_LOGS": "x://u:canary-url@h/?sig=canary-sig",
        }
    )
    status = Status(state=State.FAILED, exit_code=1, detail="GET https://me:canary-detail@host failed")
    receipt = made(measurements(), work=work, status=status)
    text = encode(receipt).decode()
    assert not re.findall("canary-[a-z]+|hunter2", text)
    assert value(receipt["context"], "env.allow")["NCCL_DEBUG"] == "INFO"
    assert {r["rule"] for r in value(receipt["context"], "redactions")} >= {"secret_option", "url_userinfo"}


def test_artifacts_beside_a_receipt_are_checked(tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "a.txt").write_text("hi")
    good = {
        "path": "outputs/a.txt",
        "bytes": 2,
        "sha256": hashlib.sha256(b"hi").hexdigest(),
        "role": "output",
    }
    path = tmp_path / "receipt.json"
    path.write_bytes(encode(made(measurements(artifacts=[good, {**good, "path": "outputs/not-fetched"}]))))
    assert verify(path) == verify(tmp_path) == []
    (tmp_path / "outputs" / "a.txt").write_text("ho")
    assert [p.code for p in verify(path)] == ["ARTIFACT"]
    (tmp_path / "outputs" / "a.txt").unlink()
    (tmp_path / "outputs" / "a.txt").symlink_to("/etc/passwd")
    assert [p.code for p in verify(path)] == ["ARTIFACT"]
    path.write_bytes(encode(made(measurements(artifacts=[{**good, "path": "../../etc/passwd"}]))))
    assert [p.code for p in verify(path)] == ["ARTIFACT"]
    assert [p.code for p in verify(tmp_path / "nothing")] == ["UNREADABLE"]


def test_a_receipt_goes_through_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "home")
    run = store.create(RUN, workload(), key="a run")
    receipt = run.seal(lambda chain: made(measurements(), chain=chain), attempt=1)
    assert verify(run.file("receipt")) == []
    assert run.read_json("receipt") == receipt
    [row] = store.list()
    assert (row.state, row.exit_code, row.backend, row.surface, row.policy) == (
        "succeeded",
        0,
        "local",
        "local",
        "auto",
    )
    assert row.receipt_id == receipt["receipt_id"]
    data = bytearray(run.file("receipt").read_bytes())
    data[data.index(b"ext4")] ^= 1
    run.file("receipt").write_bytes(data)
    assert run.read_json("receipt") is None, "a changed receipt is put aside"
    assert run.seal(lambda chain: made(measurements(), chain=chain), attempt=1)["chain"]["seq"] == 2
    assert verify(run.path) == []
    assert store.check_chain() == []


def test_accelerators_do_not_hide_behind_not_applicable() -> None:
    work = workload("H200:8")
    observed = {"sku": seen("NVIDIA H200"), "count": seen(8), "power_limit_w": seen(700)}
    receipt = made(measurements(hw={"observed": observed}), work=work)
    context = receipt["context"]
    assert verify(encode(receipt)) == []
    assert value(context, "hw.match") == "exact"
    assert value(context, "hw.observed.power_limit_w") == 700
    assert missing(at_path(context, "hw.observed.topology")) == "unobserved"
    assert missing(at_path(context, "kernel.observed")) == "unobserved"
    none = workload("cpu", needs=Needs(framework=Framework.NONE))
    assert missing(at_path(made(None, work=none)["context"], "kernel.observed")) == "not_applicable"


def test_a_price_is_frozen() -> None:
    offer = Offer(
        backend="cloud",
        id="g",
        surface=Surface.SERVERLESS,
        hardware=Hardware(family="gpu", sku="H200", count=8),
        quote=Quote(amount="36.32", source="price list", date="2026-01-01"),
    )
    receipt = made(
        None, work=workload("H200:8"), offers=(offer,), intent={"backend": "cloud", "offer_id": "g"}
    )
    assert value(receipt["context"], "cost.estimate") == "0.090800"
    assert value(receipt["context"], "offer.quote")["amount"] == "36.32"
    assert verify(encode(receipt)) == []
