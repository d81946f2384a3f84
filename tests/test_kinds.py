"""Proves what each kind takes for healthy, for success and for a promotion, and that nothing odd raises."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute_router import checks, examples
from compute_router.registry import Registry
from compute_router.workload import Check, Entry, Kind, MetricRule, Purpose, Workload
from compute_router.workloads.bench import Bench
from compute_router.workloads.train import Train
from compute_router.workloads.validate import Validate

ALL: list[Kind] = [Train(), Bench(), Validate()]


def seen(value: Any) -> dict[str, Any]:
    return {"v": value, "src": "workload", "at": 1} if value is not None else {"v": None, "why": "not told"}


def block(**changes: Any) -> dict[str, Any]:
    """The measured block of a good CPU run; `changes` replace values at dotted paths (`__` is the dot)."""
    made: dict[str, Any] = {
        "outcome": {"state": "succeeded", "exit_code": 0, "signal": None, "reason": ""},
        "hw": {"requested": {"family": "cpu"}, "observed": {"sku": seen("cpu"), "count": seen(0)}},
        "kernel": seen(None),
        "steady": {"n_steps": seen(9)},
        "metrics": {"primary": None, "tok_s_global": seen("123.5"), "last": seen({}), "notes": seen([])},
        "promotion": seen(None),
        "mem": {"host_rss_peak": seen(1000)},
        "checks": {
            "exit_zero": seen(True), "no_oom": seen(True), "finite": seen(True), "end_marker": seen(True)
        },
    }  # fmt: skip
    for path, value in changes.items():
        *outer, last = path.split("__")
        into = made
        for key in outer:
            into = into[key]
        into[last] = value
    return made


def by_name(kind: Kind, measured: Any) -> dict[str, Check]:
    found = kind.checks(measured)
    assert len({c.name for c in found}) == len(found)
    return {check.name: check for check in found}


def test_the_kinds_come_by_the_door_of_plugins() -> None:
    kinds = Registry(enabled=False).kinds()
    assert set(kinds) >= {"train", "bench", "validate"}
    for name, kind in kinds.items():
        assert kind.default_purpose in kind.purposes, name
        assert kind.about
        assert len({f.name for f in kind.fields}) == len(kind.fields)
        assert all(f.about and f.type in ("string", "integer", "boolean", "decimal") for f in kind.fields)


def test_ready_made_ones_lie_among_the_examples() -> None:
    ready = {f"{k.name}:{name}": Path(path) for k in ALL for name, path in k.ready.items()}
    assert set(ready) == {"train:char-gpt", "bench:matmul", "validate:attention"}
    for path in ready.values():
        assert path.is_absolute()
        assert path.parent == Path(examples.__file__).parent


def test_a_good_training() -> None:
    measured = block(metrics__notes=seen([{"event": "eval", "off": True}]))
    found = by_name(Train(), measured)
    assert {name: c.ok for name, c in found.items()} == dict.fromkeys(found, True)
    assert found["observed_hw"].why == "not_applicable"
    assert Train().success(measured).ok is True
    assert Train().promotion(measured) is None


@pytest.mark.parametrize(
    ("changes", "check", "ok", "success"),
    [
        ({"outcome__exit_code": 3}, "exit_zero", False, False),
        ({"outcome__exit_code": None, "outcome__signal": 9}, "exit_zero", False, False),
        ({"outcome__exit_code": None, "outcome__state": "lost", "checks": {}}, "exit_zero", False, False),
        ({"outcome": {}, "checks": {}}, "exit_zero", None, None),
        ({"outcome__reason": "oom_gpu"}, "no_oom", False, False),
        ({"checks__finite": seen(False)}, "finite", False, False),
        ({"checks": {}, "metrics": [{"name": "loss", "value": "NaN"}]}, "finite", False, False),
        ({"steady__n_steps": seen(None)}, "steps_present", None, None),
        ({"steady__n_steps": seen(0)}, "steps_present", False, None),
        ({"steady__n_steps": seen(2)}, "steps_present", False, True),
        ({"checks__end_marker": seen(False)}, "end_marker", False, True),
        ({"metrics__notes": seen([{"event": "eval", "us": 5}])}, "eval_off", False, True),
        ({"mem__host_rss_peak": seen(None)}, "peak_memory", None, True),
        ({"kernel": seen({"requested": "fa4", "observed": "sdpa"})}, "kernel_truth", False, True),
        ({"kernel": seen({"requested": "fa4", "observed": "fa4"})}, "kernel_truth", True, True),
    ],
)
def test_what_is_wrong_with_a_training(
    changes: Any, check: str, ok: bool | None, success: bool | None
) -> None:
    measured = block(**changes)
    found = by_name(Train(), measured)[check]
    assert found.ok is ok
    assert found.why or ok
    assert Train().success(measured).ok is success


def test_unobserved_is_never_good_and_not_applicable_is() -> None:
    gpu = {"requested": {"family": "gpu", "sku": "H200", "count": 8, "substitutes": ["H100:8"]}}
    unseen = {"sku": seen(None), "count": seen(8)}
    assert checks.observed_hw({"hw": {**gpu, "observed": unseen}}).ok is None
    for sku, count, ok in [("H200", 8, True), ("H100", 8, True), ("H200", 4, False), ("A100", 8, False)]:
        assert (
            checks.observed_hw({"hw": {**gpu, "observed": {"sku": seen(sku), "count": seen(count)}}}).ok is ok
        )
    assert checks.observed_hw({"hw": {**gpu, "match": seen("cpu_fallback")}}).ok is False
    assert checks.kernel_truth({"hw": gpu, "kernel": seen(None)}).ok is None
    assert checks.kernel_truth({"hw": gpu, "kernel": {"requested": "not_applicable"}}).ok is True
    assert checks.peak_memory({"hw": gpu, "mem": {"host_rss_peak": seen(5)}}).ok is None, (
        "the host's is another"
    )
    assert checks.finite({"checks": {"finite": seen("not_applicable")}}).ok is True
    assert checks.finite({"checks": {"finite": "unobserved"}}).ok is None


def test_a_bench_needs_a_figure_and_its_kernel() -> None:
    assert Bench().success(block()).ok is True
    nothing = block(metrics={"primary": None, "read": seen({"lines": 0})}, steady={})
    assert Bench().success(nothing).ok is None
    figures = {"primary": "tflops", "last": seen({"tflops": "1.5"})}
    assert Bench().success(block(steady={}, metrics=figures)).ok is True
    other = Bench().success(block(metrics={**figures, "primary": "gb_s"}))
    assert (other.ok, "gb_s" in other.why) == (None, True)
    assert Bench().success(block(kernel=seen({"requested": "a", "observed": "b"}))).ok is False
    assert "eval_off" not in by_name(Bench(), block())


ACCEPT = {"status": "accept", "criteria": [{"name": "err", "ok": True}], "ready": True}


@pytest.mark.parametrize(
    ("verdict", "code", "success", "status", "ready"),
    [
        (ACCEPT, 0, True, "accept", True),
        ({"status": "accepted"}, 0, True, "accept", True),
        ({**ACCEPT, "ready": False}, 0, True, "accept", False),
        (ACCEPT, 1, False, "accept", False),
        ({"status": "reject", "criteria": [["err", False]]}, 0, True, "reject", False),
        ({"status": "rejected", "ready": True}, 1, True, "reject", False),
        ({"status": "reject"}, 2, False, "reject", False),
        ({"status": "accept", "criteria": {"err": False}}, 0, False, "accept", False),
        ({"status": "accept", "criteria": ["err"]}, 0, True, "accept", False),
        ({"status": "accept", "criteria": ["err"], "ready": True}, 0, True, "accept", True),
        ({"status": "maybe"}, 0, False, "maybe", False),
        (None, 0, False, "none", False),
        ("reject", 1, True, "reject", False),
        ([{"status": "accept"}, {"status": "reject"}], 0, True, "reject", False),
    ],
)
def test_a_validation_is_its_verdict(
    verdict: Any, code: int, success: bool, status: str, ready: bool
) -> None:
    changed = {"exit_zero": seen(code == 0), "no_oom": seen(True)}
    measured = block(promotion=seen(verdict), outcome__exit_code=code, checks=changed)
    assert Validate().success(measured).ok is success
    found = Validate().promotion(measured)
    assert (found["status"], found["ready"]) == (status, ready)
    assert set(found) == {"status", "criteria", "ready"}
    assert json.loads(json.dumps(found)) == found


def test_a_verdict_before_a_kill_is_no_success() -> None:
    measured = block(promotion=seen({"status": "reject"}), outcome__exit_code=None, outcome__signal=9)
    assert Validate().success(measured).ok is False


def test_a_green_run_of_one_kind_proves_nothing_about_another() -> None:
    measured = block()
    assert Train().success(measured).ok is True
    assert Validate().success(measured).ok is False, "exit code 0 without a verdict"


def test_problems() -> None:
    def workload(kind: str, **fields: Any) -> Workload:
        return Workload(
            name="x",
            entry=Entry(root="/", script="x.py"),
            kind=kind,
            fields=fields,
            metrics=MetricRule(primary="tok_s_global"),
        )

    assert Train().problems(workload("train", global_batch=2, seq_len=3, tokens_per_step=6)) == []
    assert Train().problems(workload("train", global_batch=2, seq_len=3, tokens_per_step=7)) != []
    assert Train().problems(workload("train", seq_len=0)) != []
    assert len(Bench().problems(workload("bench", repeats=0))) == 2
    assert len(Validate().problems(workload("validate", cases=0, tolerance="-1"))) == 3
    assert Train().default_purpose is Purpose.SMOKE


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("unobserved"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["v", "why", "status", "criteria", "ready", "name", "ok", "value", "event", "sku"]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


def places(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(tree, dict):
        return [path]
    return [path, *(p for key, item in tree.items() for p in places(item, (*path, key)))]


@settings(max_examples=600, deadline=None, print_blob=True)
@given(st.data())
def test_any_block_at_all_is_judged(data: st.DataObject) -> None:
    """Any value at any place of a good block, or in place of it: every check answers, none raises."""
    measured: Any = copy.deepcopy(block(promotion=seen(copy.deepcopy(ACCEPT))))
    path = data.draw(st.sampled_from(places(measured)))
    odd = data.draw(JSON)
    if path:
        into = measured
        for key in path[:-1]:
            into = into[key]
        into[path[-1]] = odd
    else:
        measured = odd
    for kind in ALL:
        for check in [*kind.checks(measured), kind.success(measured)]:
            assert check.ok in (True, False, None)
            assert isinstance(check.why, str)
        promotion = kind.promotion(measured)
        assert promotion is None or isinstance(promotion["ready"], bool)
