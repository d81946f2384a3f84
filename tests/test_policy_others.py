"""Proves what `cheapest`, `fastest` and `pinned` choose, and that none of them does what no policy does."""

from __future__ import annotations

import pytest
from routing import HOUR, MINUTE, decide, estimates, offer, order, why, work

from compute_router.backend import CacheState, NoOffer, Quote
from compute_router.policies.cheapest import Cheapest
from compute_router.policies.fastest import Fastest
from compute_router.policies.pinned import Pinned
from compute_router.policies.prices import amount, price, written
from compute_router.policies.words import spoken, wait_flag
from compute_router.policy import Limits, Outcome, Policy
from compute_router.records import canonical
from compute_router.workload import Role

CHEAPEST, FASTEST, PINNED = Cheapest(), Fastest(), Pinned()


# cheapest


def test_cheapest_takes_the_lowest_price_of_the_whole_run() -> None:
    offers = [
        offer("serverless", price="4.54"),
        offer("cluster", price="3.95"),
        offer("reserved", price="36.32"),
    ]
    decision = decide(work(timeout_us=2 * HOUR), offers, policy=CHEAPEST)
    assert order(decision) == ["cluster", "cloud", "hosts"]
    assert "at most 7.9439 USD a run (3.95 USD an hour)" in decision.sentence
    assert "quoted by list on 2026-01-01" in decision.sentence


def test_cheapest_counts_start_and_staging_and_prices_of_a_run() -> None:
    slow = offer("cluster", price="4.00", estimates=estimates(start=3600, staging=3600))
    whole = offer("reserved", quote=Quote(amount="5", unit="run", source="owner", date="2026-01-01"))
    decision = decide(
        work(timeout_us=HOUR), [slow, whole, offer("serverless", price="4.50")], policy=CHEAPEST
    )
    assert order(decision) == ["cloud", "hosts", "cluster"]
    assert "5.00 USD a run" in decision.ranked[1].sentence


def test_cheapest_puts_unknown_prices_last_and_says_so() -> None:
    broken = offer("cluster", price="about 3")
    decision = decide(work(), [offer("reserved"), broken, offer("serverless", price="99")], policy=CHEAPEST)
    assert order(decision) == ["cloud", "cluster", "hosts"]
    assert "its price is not known" in decision.ranked[2].sentence


def test_cheapest_does_not_compare_currencies() -> None:
    euro = offer("cluster", quote=Quote(amount="1", currency="EUR", source="list", date="d"))
    decision = decide(work(), [euro, offer("serverless", price="99")], policy=CHEAPEST)
    assert order(decision) == ["cloud", "cluster"]
    assert "cannot be compared" in decision.ranked[1].sentence
    assert "cannot be compared" not in decide(work(), [euro], policy=CHEAPEST).sentence


def test_cheapest_breaks_equal_prices_by_time_then_name() -> None:
    same = [
        offer("reserved", backend=name, price="1.00", estimates=estimates(compile=seconds))
        for name, seconds in (("c", 5), ("b", 9), ("a", 9))
    ]
    assert order(decide(work(), same, policy=CHEAPEST)) == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("text", "billionths"),
    [("4.54", 4_540_000_000), ("0", 0), ("1.000000000000", 10**9), ("0.000000001", 1)],
)
def test_amounts_are_read_exactly(text: str, billionths: int) -> None:
    assert amount(text) == billionths


@pytest.mark.parametrize("text", ["", ".5", "5.", "-1", "+1", "1e3", "NaN", "1,5", " 1", "1 ", "1" * 13, "٣"])
def test_what_is_no_plain_decimal_is_no_amount(text: str) -> None:
    assert amount(text) is None


def test_amounts_are_written_with_two_places_at_least() -> None:
    assert [written(n) for n in (4_540_000_000, 0, 123_450_000, 99_999, 999_999_999)] == [
        "4.54",
        "0.00",
        "0.1235",
        "0.0001",
        "1.00",
    ]


def test_a_price_of_another_unit_is_not_known() -> None:
    monthly = offer("cluster", quote=Quote(amount="9", unit="month", source="s", date="d"))
    assert price(work(), monthly) is None


# fastest


def test_fastest_looks_at_time_alone() -> None:
    offers = [
        offer("reserved", estimates=estimates(compile=60), price="1.00"),
        offer("serverless", estimates=estimates(compile=59), price="99.00"),
        offer("cluster", estimates=estimates(compile=None)),
    ]
    decision = decide(work("H200:1", purpose="repeatable"), offers, policy=FASTEST)
    assert order(decision) == ["cloud", "hosts", "cluster"]


def test_fastest_waits_where_waiting_is_quicker() -> None:
    busy = offer("reserved", busy=True, estimates=estimates(queue=60, compile=0))
    free = offer("cluster", estimates=estimates(compile=1200))
    assert order(decide(work(), [busy, free], policy=FASTEST)) == ["cluster"]
    patient = decide(work(), [busy, free], policy=FASTEST, wait_us=5 * MINUTE)
    assert (patient.outcome, order(patient)) == (Outcome.WAIT, ["hosts", "cluster"])


# pinned


def test_pinned_uses_the_backend_named_and_gives_a_reason_for_the_others() -> None:
    decision = decide(work(), [offer("reserved"), offer("serverless")], policy=PINNED, pin="hosts")
    assert (order(decision), why(decision, "cloud")) == (["hosts"], "pin")
    assert "the run is pinned to hosts" in decision.sentence


def test_pinned_still_does_what_no_policy_does() -> None:
    claim = work("H200:8", warmth="warm", volumes={Role.COMPILE_CACHE: "/c"})
    offers = [offer("reserved", "H200:8", cache=CacheState.WARM_SAME_KEY), offer("serverless", "H100:8")]
    decision = decide(claim, offers, policy=PINNED, pin="cloud")
    assert decision.outcome is Outcome.REFUSED
    assert (why(decision, "hosts"), why(decision, "cloud")) == ("pin", "hardware")
    assert decision.sentence.startswith("Refused: cloud/one may not be used: it has H100:8")


def test_pinned_to_a_backend_with_no_offer_tells_its_reason() -> None:
    no = NoOffer(backend="cloud", code="login", reason="no token is set", mend="cloud login")
    decision = decide(work(), [offer("reserved"), no], policy=PINNED, pin="cloud")
    assert "no token is set" in decision.sentence
    assert decision.mend == "cloud login"


def test_pinned_to_an_unknown_backend_names_the_nearest() -> None:
    decision = decide(work(), [offer("reserved"), offer("serverless")], policy=PINNED, pin="hostz")
    assert decision.sentence == "Refused: there is no backend 'hostz'"
    assert decision.mend == "did you mean 'hosts'? there are: cloud, hosts"


def test_pinned_to_nothing_is_refused_with_the_mend() -> None:
    decision = decide(work(), [offer("reserved")], policy=PINNED)
    assert decision.outcome is Outcome.REFUSED
    assert "--backend NAME" in decision.mend


@pytest.mark.parametrize("policy", [CHEAPEST, FASTEST], ids=lambda p: p.name)
def test_every_policy_obeys_the_pin(policy: Policy) -> None:
    offers = [offer("reserved", price="9"), offer("serverless", price="1", estimates=estimates(start=0))]
    assert order(decide(work(), offers, policy=policy, pin="hosts")) == ["hosts"]


# Rules of the user and words


def test_rules_are_kept_in_the_decision_only_where_they_had_a_say() -> None:
    odd: dict[str, object] = {"id": "a", "effect": "refuse", "when": {"cases": {"min": 1.5}}}
    decision = decide(work(), [offer("reserved")], policy=FASTEST, rules=(odd,), detached=True)
    assert decision.limits == Limits(detached=True)
    assert canonical(decision)


def test_versions_tell_tables_of_rules_apart() -> None:
    assert len({CHEAPEST.version, FASTEST.version, PINNED.version}) == 3
    assert Cheapest().version == CHEAPEST.version


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (None, "an unknown time"),
        (0, "0.0 s"),
        (9_940_000, "9.9 s"),
        (40_000_000, "40 s"),
        (59_600_000, "1 min"),
        (250_000_000, "4 min 10 s"),
        (3 * HOUR, "3 h"),
        (25 * HOUR, "1 d 1 h"),
    ],
)
def test_times_are_spoken(us: int | None, text: str) -> None:
    assert spoken(us) == text


def test_the_wait_that_is_advised_is_long_enough() -> None:
    assert [wait_flag(us) for us in (None, 0, MINUTE + 1, 2 * HOUR, 2 * HOUR + 1)] == [
        "--wait forever",
        "--wait 1m",
        "--wait 2m",
        "--wait 2h",
        "--wait 3h",
    ]
