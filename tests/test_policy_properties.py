"""Proves over 10,000 drawn questions that policies are pure, lose no offer, and never do what none may do."""

from __future__ import annotations

import random
import socket
import time
from collections import Counter
from collections.abc import Sequence

import msgspec
import pytest
from routing import POLICIES, Drawn

from compute_router.backend import CacheState, NoOffer, Offer
from compute_router.policies import conditions
from compute_router.policy import Decision, History, Limits, Outcome, Policy
from compute_router.records import canonical
from compute_router.workload import Accelerator, Coupling, Framework, Role, Warmth, Workload

QUESTIONS, PARTS = 10_000, 4


def answer(policy: Policy, workload: Workload, offers: Sequence[Offer | NoOffer], *rest: object) -> Decision:
    history, limits = rest
    assert isinstance(history, History)
    assert isinstance(limits, Limits)
    return policy.decide(workload, offers, history, asked_at=7, limits=limits)


def named(offers: Sequence[Offer | NoOffer]) -> Counter[tuple[str, str | None]]:
    return Counter((o.backend, o.id if isinstance(o, Offer) else None) for o in offers)


def found(decision: Decision) -> Counter[tuple[str, str | None]]:
    places = Counter[tuple[str, str | None]]()
    places.update((r.backend, r.offer_id) for r in decision.ranked)
    places.update((r.backend, r.offer_id) for r in decision.rejections)
    return places


def serves(wanted: Accelerator, offer: Offer) -> bool:
    has = offer.hardware
    if wanted.family == "any":
        return has.count >= wanted.count or wanted.count <= 1
    if (wanted.family, wanted.sku) != (has.family, has.sku):
        return False
    return has.count == wanted.count or (wanted.family == "gpu" and has.count > wanted.count)


def cache_of(offer: Offer) -> CacheState | None:
    return next((r.state for r in offer.roles if r.role is Role.COMPILE_CACHE), None)


def check_used(workload: Workload, offer: Offer, decision: Decision, limits: Limits) -> None:
    """What may never happen, written a second time and in another way than the rules are."""
    needs, warm = workload.needs, cache_of(offer) is CacheState.WARM_SAME_KEY
    assert any(serves(wanted, offer) for wanted in (needs.accelerator, *needs.substitutes))
    assert offer.hardware.nodes >= needs.nodes
    if needs.framework is Framework.XLA:
        assert offer.hardware.family != "gpu"
        assert Framework.XLA in offer.frameworks
    if needs.framework is Framework.TORCH:
        assert offer.hardware.family != "tpu"
        assert Framework.TORCH in offer.frameworks
    if needs.coupling is Coupling.MULTI_NODE:
        assert offer.fabric
    if needs.warmth is Warmth.WARM:
        assert warm is (decision.outcome is not Outcome.WARM)
    if needs.warmth is Warmth.COLD:
        assert offer.clean or cache_of(offer) in (CacheState.EMPTY, CacheState.DISABLED)
    if offer.busy:
        assert limits.wait_us is None or limits.wait_us > 0
        queue = offer.estimates.queue
        assert limits.wait_us is None or queue is None or queue.us <= limits.wait_us
    if limits.pin is not None:
        assert offer.backend == limits.pin
    for limit in filter(None, (limits.price_limit, workload.price_limit)):
        quote = offer.quote
        assert limit in ("0", "4.54", "36.32", "50")
        if quote is not None and (quote.unit, quote.currency) == ("hour", "USD"):
            assert quote.amount not in ("0", "4.54", "36.32", "50") or float(quote.amount) <= float(limit)
    asked: dict[str, object] = {
        "secrets": workload.secrets,
        "volumes": workload.volumes,
        "buckets": workload.buckets,
    }
    asked |= {"images": workload.image, "detach": limits.detached}
    assert {name for name, value in asked.items() if value} <= {power.value for power in offer.powers}


def check(policy: Policy, workload: Workload, offers: list[Offer | NoOffer], *rest: object) -> Decision:
    decision = answer(policy, workload, offers, *rest)
    limits = rest[1]
    assert isinstance(limits, Limits)
    assert found(decision) == named(offers)
    assert (decision.outcome is Outcome.REFUSED) == (not decision.ranked)
    assert [r.rank for r in decision.ranked] == sorted(r.rank for r in decision.ranked)
    assert decision.sentence
    assert decision.policy == policy.name
    assert all(r.sentence and r.rule for r in decision.ranked)
    assert all(r.sentence and r.rule for r in decision.rejections)
    places = {(o.backend, o.id): o for o in offers if isinstance(o, Offer)}
    for ranked in decision.ranked:
        check_used(workload, places[ranked.backend, ranked.offer_id], decision, limits)
    if decision.ranked and decision.outcome is not Outcome.WARM:
        first = places[decision.ranked[0].backend, decision.ranked[0].offer_id]
        assert first.busy is (decision.outcome is Outcome.WAIT)
    return decision


@pytest.mark.parametrize("part", range(PARTS))
def test_the_same_question_gives_the_same_bytes_and_no_offer_is_lost(part: int, seed: random.Random) -> None:
    drawn, outcomes = Drawn(seed), Counter[tuple[str, Outcome]]()
    for number in range(part, QUESTIONS, PARTS):
        policy = POLICIES[max(0, seed.randrange(-4, len(POLICIES)))]
        workload, limits = drawn.workload(), drawn.limits()
        offers = drawn.offers(workload)
        if policy.name == "pinned" and number % 10:
            limits = msgspec.structs.replace(
                limits, pin=seed.choice(sorted({o.backend for o in offers} | {"x"}))
            )
        history = drawn.history(offers)
        decision = check(policy, workload, offers, history, limits)
        shuffled, rows = list(offers), list(history.rows)
        seed.shuffle(shuffled)
        seed.shuffle(rows)
        again = answer(type(policy)(), workload, shuffled, History(key=history.key, rows=tuple(rows)), limits)
        assert canonical(again) == canonical(decision), f"question {number}"
        outcomes[policy.name, decision.outcome] += 1
    # The draw reaches every outcome of auto, and a use of each other policy.
    assert {outcome for name, outcome in outcomes if name == "auto"} == set(Outcome)
    assert {name for name, outcome in outcomes if outcome is Outcome.RUN} == {p.name for p in POLICIES}


def test_a_policy_looks_at_no_clock_no_network_and_no_chance(
    seed: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = Drawn(seed)
    works = [drawn.workload() for _ in range(200)]
    asked = [(one, drawn.offers(one), drawn.limits()) for one in works]

    def never(*_: object, **__: object) -> object:
        raise AssertionError("a policy reached for the world")

    with monkeypatch.context() as world:
        for module, names in (
            (time, ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "sleep")),
            (socket, ("socket", "create_connection", "getaddrinfo")),
            (random, ("random", "choice", "shuffle", "Random", "randint")),
        ):
            for name in names:
                world.setattr(module, name, never)
        world.setattr("os.urandom", never)
        world.setattr("builtins.open", never)
        for policy in POLICIES:
            for workload, offers, limits in asked:
                policy.decide(workload, offers, History(), asked_at=1, limits=limits)
    assert len(asked) == 200


def test_deciding_changes_nothing_that_was_given(seed: random.Random) -> None:
    drawn = Drawn(seed)
    for _ in range(200):
        workload, limits = drawn.workload(), drawn.limits()
        offers = drawn.offers(workload)
        before = repr((workload, offers, limits))
        for policy in POLICIES:
            policy.decide(workload, offers, History(), asked_at=1, limits=limits)
        assert repr((workload, offers, limits)) == before


def test_two_offers_of_one_name_are_both_told_whatever_their_order(seed: random.Random) -> None:
    drawn = Drawn(seed)
    workload = drawn.workload()
    twins = [msgspec.structs.replace(drawn.offer("twin", workload), backend="b") for _ in range(8)]
    first = POLICIES[0].decide(workload, twins, History(), asked_at=1, limits=Limits())
    assert len(first.ranked) + len(first.rejections) == 8
    both = [
        canonical(POLICIES[0].decide(workload, order, History(), asked_at=1, limits=Limits(wait_us=None)))
        for order in (twins, twins[::-1])
    ]
    assert both[0] == both[1]


@pytest.mark.parametrize(
    ("test", "value", "expected"),
    [
        ("a", "a", True),
        ("a", "b", False),
        (["a", "b"], "b", True),
        ({"not": "a"}, "b", True),
        ({"not": ["a", "b"]}, "b", False),
        ({"min": 2}, 2, True),
        ({"min": 2}, 1, False),
        ({"max": 2}, 3, False),
        ({"min": 1, "max": 3, "not": 2}, 2, False),
        ({"min": 1}, None, False),
        ({"not": 1}, None, False),
        (True, True, True),
        (False, True, False),
        ("a", ("a", "b"), True),
        ("a", (), False),
        ({"not": "a"}, ("a", "b"), False),
        ({"not": "a"}, (), True),
    ],
)
def test_a_test_holds_for_what_it_says(test: object, value: object, expected: bool) -> None:
    assert conditions.holds(test, value) is expected
