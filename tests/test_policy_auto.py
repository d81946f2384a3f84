"""Proves that `auto` routes the seed cases as practitioners do, on synthetic offers, each by name."""

from __future__ import annotations

from typing import Any

import pytest
from routing import HOUR, MINUTE, decide, estimates, offer, order, why, work

from compute_router.backend import CacheState, Estimates, Power
from compute_router.policy import Outcome
from compute_router.workload import Framework, Role

WARM, EMPTY = CacheState.WARM_SAME_KEY, CacheState.EMPTY
CACHE = {Role.COMPILE_CACHE: "/cache"}


# The seed cases


def test_detached_benchmark_wave_goes_serverless() -> None:
    wave = work(kind="bench", purpose="benchmark")
    offers = [offer("reserved", estimates=estimates(start=1, compile=0)), offer("serverless", price="4.54")]
    decision = decide(wave, offers, detached=True, cases=12)
    assert (decision.outcome, order(decision)) == (Outcome.RUN, ["cloud", "hosts"])
    assert "detached benchmark wave" in decision.sentence
    assert decision.ranked[1].rank > decision.ranked[0].rank


def test_batch_validation_goes_serverless() -> None:
    batch = work(kind="validate", purpose="benchmark")
    decision = decide(batch, [offer("reserved"), offer("serverless")], detached=True, cases=200)
    assert order(decision) == ["cloud", "hosts"]
    assert decision.ranked[0].rule == "validation-batch"


def test_single_gpu_smoke_goes_serverless() -> None:
    decision = decide(work(purpose="smoke"), [offer("reserved"), offer("serverless")])
    assert order(decision) == ["cloud", "hosts"]
    assert "one GPU" in decision.sentence


def test_many_independent_cases_go_serverless() -> None:
    cases = work("H200:2", kind="distil", purpose="cold-start")
    quick = offer("reserved", "H200:2", estimates=estimates(start=0, compile=0))
    slow = offer("serverless", "H200:2", estimates=estimates(compile=900))
    assert order(decide(cases, [quick, slow], cases=40)) == ["cloud", "hosts"]
    assert order(decide(cases, [quick, slow], cases=1)) == ["hosts", "cloud"]


def test_tightly_coupled_8_gpu_training_goes_reserved() -> None:
    train = work("H200:8", coupling="single-node", purpose="benchmark", framework="torch")
    offers = [
        offer("serverless", "H200:8", estimates=estimates(start=0, compile=0)),
        offer("local", "H200:8"),
        offer("reserved", "H200:8"),
        offer("cluster", "H200:8"),
    ]
    decision = decide(train, offers, detached=True, cases=3)
    assert order(decision) == ["hosts", "cluster", "desk", "cloud"]
    assert "lockstep" in decision.sentence


def test_cache_sensitive_bringup_goes_reserved() -> None:
    bringup = work(purpose="bringup", volumes=CACHE)
    offers = [offer("serverless", cache=WARM), offer("reserved", cache=EMPTY)]
    assert order(decide(bringup, offers)) == ["hosts", "cloud"]


def test_day_to_day_repeatability_goes_reserved() -> None:
    decision = decide(work(purpose="repeatable"), [offer("serverless"), offer("reserved")], detached=True)
    assert order(decision) == ["hosts", "cloud"]
    assert "day to day" in decision.sentence


def test_xla_aligned_scale_up_goes_to_the_slice() -> None:
    scale = work("v6e-16", substitutes=["H200:8"], framework="xla", purpose="scale", coupling="single-node")
    xla = (Framework.XLA, Framework.ANY)
    quick = estimates(start=0, staging=0, compile=0)
    offers = [
        offer("slice", "v6e-16", estimates=estimates(compile=1800)),
        offer("cluster", "v6e-16", frameworks=xla, estimates=quick, price="0"),
        offer("reserved", "H200:8", estimates=quick),
        offer("serverless", "H200:8", frameworks=xla, estimates=quick),
    ]
    decision = decide(scale, offers)
    assert order(decision) == ["slices", "cluster"]
    assert (why(decision, "hosts"), why(decision, "cloud")) == ("xla-on-cuda", "xla-on-cuda")
    assert "XLA path" in decision.sentence


def test_reserved_busy_for_hours_and_a_detached_validation_wave_goes_serverless_although_dearer() -> None:
    wave = work(kind="validate", purpose="benchmark")
    busy = offer("reserved", busy=True, estimates=estimates(queue=3 * 3600), price="2.00")
    dear = offer("serverless", price="9.00")
    decision = decide(wave, [busy, dear], detached=True, cases=50)
    assert (decision.outcome, order(decision), why(decision, "hosts")) == (Outcome.RUN, ["cloud"], "busy")
    patient = decide(wave, [busy, dear], detached=True, cases=50, wait_us=None)
    assert (patient.outcome, order(patient)) == (Outcome.RUN, ["cloud", "hosts"])


def test_warm_claim_whose_only_warm_place_is_busy_waits_where_waiting_is_allowed() -> None:
    claim = work("H200:8", warmth="warm", volumes=CACHE, coupling="single-node")
    busy = offer("reserved", "H200:8", cache=WARM, busy=True, estimates=estimates(queue=3600))
    cold = offer("serverless", "H200:8", cache=EMPTY)
    decision = decide(claim, [busy, cold], wait_us=2 * HOUR)
    assert (decision.outcome, order(decision), why(decision, "cloud")) == (
        Outcome.WAIT,
        ["hosts"],
        "warm-claim",
    )
    assert decision.sentence.startswith("Wait for hosts/one (queue: 1 h)")


def test_warm_claim_whose_only_warm_place_is_busy_warms_another_where_it_may_not_wait() -> None:
    claim = work("H200:8", warmth="warm", volumes=CACHE, coupling="single-node")
    busy = offer("reserved", "H200:8", cache=WARM, busy=True, estimates=estimates(queue=3600))
    cold = offer("serverless", "H200:8", cache=EMPTY)
    for wait in (0, 10 * MINUTE):
        decision = decide(claim, [busy, cold], wait_us=wait)
        assert (decision.outcome, order(decision)) == (Outcome.WARM, ["cloud"])
        assert "route warm study.py --backend cloud seeds it" in decision.mend
        assert "--wait 60m" in decision.mend
        assert "hosts/one is, but busy" in decision.sentence


def test_warm_claim_whose_only_place_is_warm_and_busy_is_refused_never_cold() -> None:
    claim = work(warmth="warm", volumes=CACHE)
    busy = offer("reserved", cache=WARM, busy=True, estimates=estimates(queue=None))
    decision = decide(claim, [busy])
    assert (decision.outcome, decision.ranked) == (Outcome.REFUSED, ())
    assert decision.mend == "--wait forever allows it"
    lacking = offer("serverless", cache=EMPTY, powers=())
    assert decide(claim, [busy, lacking]).outcome is Outcome.REFUSED


def test_multi_node_tight_never_goes_to_a_surface_without_fabric() -> None:
    train = work("H200:8", nodes=2, coupling="multi-node")
    bare = offer("serverless", "H200:8", nodes=2)
    hosts = offer("reserved", "H200:8", nodes=2, fabric=True)
    decision = decide(train, [bare, hosts])
    assert (order(decision), why(decision, "cloud")) == (["hosts"], "fabric")
    alone = decide(train, [bare], detached=True, cases=9, wait_us=None)
    assert alone.outcome is Outcome.REFUSED
    assert "fabric" in alone.sentence


def test_no_accelerator_asked_stays_local() -> None:
    plain = work("cpu", framework="any")
    offers = [
        offer("serverless", "cpu", estimates=Estimates()),
        offer("local", "cpu", estimates=estimates(start=0, staging=0, compile=None)),
        offer("reserved", "cpu"),
        offer("cluster", "H200:1"),
    ]
    decision = decide(plain, offers)
    assert order(decision)[0] == "desk"
    assert why(decision, "cluster") == "hardware"
    assert decide(plain, offers, detached=True, cases=30).ranked[0].backend == "desk"


# Hardware


@pytest.mark.parametrize(
    ("asked", "given", "fits"),
    [
        ("H200:8", "H200:8", True),
        ("H200:4", "H200:8", True),  # more GPUs of the same
        ("H200:8", "H200:4", False),
        ("H200:8", "H100:8", False),
        ("H200:1", "cpu", False),
        ("cpu", "H200:1", False),
        ("v6e-8", "v6e-8", True),
        ("v6e-8", "v6e-16", False),  # a slice is taken whole
        ("v6e-8", "v5litepod-8", False),
        ("any", "H100:1", True),
        ("any", "cpu", True),
        ("any:2", "H200:4", True),
        ("any:2", "H200:1", False),
        ("any:2", "cpu", False),
    ],
)
def test_hardware_is_what_was_asked_for_or_refused(asked: str, given: str, fits: bool) -> None:
    surface = "slice" if given.startswith("v") else "reserved"
    decision = decide(work(asked, framework="any"), [offer(surface, given)])
    assert bool(decision.ranked) is fits
    if not fits:
        assert decision.rejections[0].rule == "hardware"
        assert f'substitutes = ["{given}"]' in decision.mend


def test_a_listed_substitute_may_be_used() -> None:
    asked = work("H200:8", substitutes=["H100:8"])
    assert order(decide(asked, [offer("reserved", "H100:8")])) == ["hosts"]
    assert decide(asked, [offer("reserved", "A100:8")]).outcome is Outcome.REFUSED


def test_too_few_nodes_are_refused() -> None:
    decision = decide(work("H200:8", nodes=4), [offer("cluster", "H200:8", nodes=2)])
    assert "2 of the 4 nodes" in decision.sentence


def test_torch_work_is_refused_on_xla_and_the_reverse() -> None:
    torch = work("v6e-8", framework="torch")
    assert why(decide(torch, [offer("slice", "v6e-8")]), "slices") == "cuda-on-xla"
    nothing = offer("reserved", frameworks=(Framework.NONE,))
    assert why(decide(work(framework="any"), [nothing]), "hosts") == "framework"
    assert decide(work(framework="none"), [nothing]).outcome is Outcome.RUN
    both = work("v6e-8", substitutes=["H200:1"], framework="any")
    assert len(decide(both, [offer("slice", "v6e-8"), offer("reserved")]).ranked) == 2


# Claims


@pytest.mark.parametrize(
    ("state", "clean", "rule"),
    [
        (EMPTY, False, ""),
        (CacheState.DISABLED, False, ""),
        (WARM, False, "cold-claim"),
        (CacheState.WARM_OTHER_WORLD, False, "cold-claim"),
        (CacheState.UNOBSERVED, False, "cold-unknown"),
        (None, False, "cold-unknown"),
        (WARM, True, ""),
        (None, True, ""),
    ],
)
def test_a_cold_claim_starts_cold(state: CacheState | None, clean: bool, rule: str) -> None:
    claim = work(warmth="cold", volumes=CACHE)
    decision = decide(claim, [offer("reserved", cache=state, clean=clean)])
    assert [r.rule for r in decision.rejections] == ([rule] if rule else [])


@pytest.mark.parametrize("state", [s for s in CacheState if s is not WARM])
def test_a_warm_claim_never_starts_in_any_other_state(state: CacheState) -> None:
    decision = decide(work(warmth="warm", volumes=CACHE), [offer("reserved", cache=state)], wait_us=None)
    assert decision.outcome in (Outcome.WARM, Outcome.REFUSED)


def test_a_warm_claim_without_a_cache_to_keep_is_refused_with_the_mend() -> None:
    decision = decide(work(warmth="warm"), [offer("reserved")])
    assert decision.outcome is Outcome.REFUSED
    assert "compile-cache" in decision.mend
    assert "{{" not in decision.mend


def test_a_volume_that_cannot_be_written_is_refused() -> None:
    decision = decide(work(volumes=CACHE), [offer("reserved", cache=CacheState.UNWRITABLE)])
    assert why(decision, "hosts") == "unwritable"
    assert "compile-cache" in decision.sentence


# Waiting, prices, powers


def test_a_busy_place_is_passed_over_for_a_free_one() -> None:
    offers = [offer("reserved", busy=True), offer("cluster")]
    decision = decide(work(purpose="repeatable"), offers)
    assert order(decision) == ["cluster"]
    assert "hosts/one is not used: it is busy" in decision.sentence


def test_a_queue_longer_than_may_be_waited_is_refused_and_an_unknown_one_waited_for() -> None:
    long = offer("reserved", busy=True, estimates=estimates(queue=7200))
    assert why(decide(work(), [long], wait_us=HOUR), "hosts") == "queue"
    unknown = offer("reserved", busy=True, estimates=estimates(queue=None))
    decision = decide(work(), [unknown], wait_us=HOUR)
    assert decision.outcome is Outcome.WAIT
    assert "unknown length" in decision.sentence


def test_the_lower_price_limit_holds() -> None:
    dear, owned = offer("serverless", price="4.55"), offer("reserved")
    decision = decide(work(price_limit="4.54"), [dear, owned], price_limit="9")
    assert (order(decision), why(decision, "cloud")) == (["hosts"], "price")
    assert decide(work(price_limit="4.55"), [dear]).outcome is Outcome.RUN
    assert why(decide(work(price_limit="4.55"), [offer("serverless")]), "cloud") == "price-unknown"


@pytest.mark.parametrize("limit", ["cheap", "", "-1", "1e3", "NaN", "4,50", "٤"])
def test_a_price_limit_that_is_no_price_is_never_ignored(limit: str) -> None:
    decision = decide(work(price_limit=limit), [offer("serverless", price="0.01"), offer("reserved")])
    assert decision.outcome is Outcome.REFUSED
    assert {r.rule for r in decision.rejections} == {"price-limit"}


@pytest.mark.parametrize(
    ("needs", "limits", "power"),
    [
        ({"secrets": ("HF_TOKEN",)}, {}, Power.SECRETS),
        ({"volumes": {Role.DATA: "/data"}}, {}, Power.VOLUMES),
        ({"buckets": {"/d": "s3://d"}}, {}, Power.BUCKETS),
        ({"image": "ghcr.io/a/b"}, {}, Power.IMAGES),
        ({}, {"detached": True}, Power.DETACH),
    ],
)
def test_a_power_that_is_needed_and_missing_is_refused(
    needs: dict[str, Any], limits: dict[str, Any], power: Power
) -> None:
    without = offer("reserved", powers=tuple(p for p in Power if p is not power))
    decision = decide(work(**needs), [without], **limits)
    assert why(decision, "hosts") == "powers"
    assert power.value in decision.sentence
    assert decide(work(**needs), [offer("reserved", powers=(power,))], **limits).outcome is Outcome.RUN
