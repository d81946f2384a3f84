"""Proves that a receipt has every field for every final state, is found changed by any flipped byte, and
that neither hostile measurements nor hostile receipts make anything but a plain answer."""

from __future__ import annotations

import hashlib
import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute_router.backend import Hardware, NoOffer, Offer, Quote, State, Status, Surface
from compute_router.policy import Decision, Outcome, Ranked, Rejection
from compute_router.receipt import build, receipt_id, verify
from compute_router.receipt.evidence import RULES, comparability
from compute_router.receipt.facts import at_path, leaves, missing, value
from compute_router.receipt.matching import match
from compute_router.receipt.schema import ENUMS, ITEMS, SOURCES, TABLE, table
from compute_router.receipt.summary import lines
from compute_router.records import canonical, encode, key_run_id
from compute_router.store import Store
from compute_router.workload import (
    Accelerator,
    Check,
    Entry,
    Framework,
    Kind,
    MetricRule,
    Needs,
    Purpose,
    Workload,
)

RUN = key_run_id("a run")
AT = 1_800_000_000_000_000
HEX = "ab" * 32


def seen(v: Any, src: str = "supervisor") -> dict[str, Any]:
    return {"v": v, "src": src, "at": AT - 5} if v is not None else {"v": None, "why": "not observed yet"}


def measurements(**more: Any) -> dict[str, Any]:
    """A measured block of a training on a CPU, as the supervisor writes it."""
    none = seen("not_applicable")
    return {
        "schema": "route.measured/1",
        "run_id": RUN,
        "attempt": 1,
        "kind": "train",
        "outcome": {"state": "succeeded", "stage": "collect", "exit_code": 0, "log_tail_sha256": HEX},
        "timing": {"run_us": seen(9_000_000), "queue_us": seen(20_000), "compile_us": seen(None)},
        "hw": {
            "requested": {"family": "cpu"},
            "observed": {
                "sku": seen("cpu"),
                "count": seen(0),
                "cpu_model": seen("Intel(R) Xeon(R)"),
                "cpus": seen(2),
                "mem_bytes": seen(8 << 30),
                "topology": none,
            },
        },
        "launch": {"argv": seen(["python3", "train.py"]), "launcher": "python", "ranks": 1},
        "storage": [
            {"role": "root", "class": seen(None), "fs": seen("ext4"), "mount": seen("/")},
            {"role": "data", "class": seen("local_nvme"), "fs": seen("xfs")},
        ],
        "volumes": [
            {"name": "c", "role": "compile-cache", "event": [seen("created")], "committed": seen(True)}
        ],
        "cache": [seen({"kind": "inductor", "hits": 3, "misses": 0, "verdict": "hit"}, "workload")],
        "kernel": seen(None),
        "env": {"stack": {"python": seen("3.11.7"), "torch": seen("2.13.0")}},
        "steady": {
            "warmup_steps_discarded": seen(1, "workload"),
            "n_steps": seen(9, "workload"),
            "step_us": seen({"p50": 100, "max": 200}, "workload"),
        },
        "metrics": {
            "primary": "tok_s_global",
            "tok_s_global": seen("5242.88", "workload"),
            "loss_last": seen("2.1", "workload"),
            "last": seen({"loss": "2.1", "grad_norm": "0.5"}, "workload"),
        },
        "mem": {"host_rss_peak": seen(700 << 20)},
        "checks": {"finite": seen(True, "workload"), "no_oom": seen(True), "end_marker": seen(True)},
        "lifecycle": [{"seq": 1, "event": "committed", "t_us": AT, "mono_us": 5, "actor": "supervisor"}],
        "clock": {"boot_id": seen("b-1")},
        "artifacts": [{"path": "outputs/a.txt", "bytes": 2, "sha256": HEX, "role": "output"}],
        **more,
    }


class Training(Kind):
    """A kind with checks of its own."""

    name = "train"
    about = "training"
    purposes = tuple(Purpose)
    default_purpose = Purpose.SMOKE
    primary = "tok_s_global"

    def checks(self, measured: Any) -> list[Check]:
        return [
            Check(name="exit_zero", ok=measured["outcome"]["exit_code"]["v"] == 0),
            Check(name="finite", ok=measured["checks"]["finite"]["v"]),
            Check(name="observed_hw", ok=measured["hw"]["match"]["v"] == "exact"),
            Check(name="kernel_truth", ok=True, why="not_applicable"),
            Check(name="end_marker", ok=None, why="was not reported"),
        ]

    def success(self, measured: Any) -> Check:
        return Check(name="success", ok=True)


def workload(accelerator: str = "cpu", **more: Any) -> Workload:
    return Workload(
        name="char-gpt",
        entry=Entry(
            root="/src", script="train.py", args=("--steps", "3", "--api-token", "hunter2"), sha256=HEX
        ),
        **{
            "needs": Needs(accelerator=Accelerator.parse(accelerator)),
            "metrics": MetricRule(primary="tok_s_global"),
            **more,
        },
    )


def made(
    measured: Any = None, *, state: State = State.SUCCEEDED, work: Workload | None = None, **more: Any
) -> dict[str, Any]:
    work = work or workload()
    offer = Offer(
        backend="local",
        id="here",
        surface=Surface.LOCAL,
        hardware=Hardware(family=work.needs.accelerator.family, sku="", count=0),
    )
    decision = Decision(
        policy="auto",
        policy_version="1",
        workload_digest=work.digest,
        asked_at_us=AT,
        outcome=Outcome.RUN,
        sentence="local for work that asks for no accelerator",
        ranked=(Ranked(backend="local", offer_id="here", rank=1, rule="r", sentence="s"),),
        rejections=(Rejection(backend="far", offer_id=None, rule="no_offer", sentence="not logged in"),),
    )
    given: dict[str, Any] = {
        "run_id": RUN,
        "key": "a run",
        "workload": work,
        "status": Status(
            state=state,
            exit_code=0 if state is State.SUCCEEDED else 1 if state is State.FAILED else None,
            started_us=AT,
            ended_us=AT + 9_000_000,
        ),
        "created_us": AT + 10_000_000,
        "chain": {"store_id": "cd" * 16, "prev": None, "seq": 1},
        "snapshot_facts": {
            "tree_sha256": HEX,
            "git": {
                "commit": "ef" * 20,
                "branch": "main",
                "dirty": False,
                "diff_sha256": None,
                "message": "m",
            },
        },
        "offers": (offer, NoOffer(backend="far", code="login", reason="not logged in")),
        "decision": decision,
        "intent": {"backend": "local", "offer_id": "here", "attempt": 1, "tries": []},
        "kind": Training(),
        "measured": measured,
        **more,
    }
    return build(**given)


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


def test_unobserved_equals_nothing_and_not_applicable_itself() -> None:
    other = key_run_id("another run")
    first = made(measurements())
    second = made(measurements(run_id=other), run_id=other)
    a, b = first["comparability"]["fields"], second["comparability"]["fields"]
    differ = {path for path in a if a[path] != b[path]}
    assert "data.id" in differ
    assert "startup.class" in differ
    assert differ == {path for path, v in a.items() if isinstance(v, dict) and "unobserved" in v}
    assert a["hw.observed.topology"] == b["hw.observed.topology"] == {"not_applicable": True}
    assert first["comparability"]["key"] != second["comparability"]["key"]
    assert comparability(first) == first["comparability"]


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
