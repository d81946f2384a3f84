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

from compute_router.backend import NoOffer, Offer
from compute_router.policies import conditions
from compute_router.policy import Decision, History, Limits, Outcome, Policy
from compute_router.records import canonical
from compute_router.testing import policy as kit
from compute_router.workload import Workload

QUESTIONS, PARTS = 10_000, 4


def answer(policy: Policy, workload: Workload, offers: Sequence[Offer | NoOffer], *rest: object) -> Decision:
    history, limits = rest
    assert isinstance(history, History)
    assert isinstance(limits, Limits)
    return policy.decide(workload, offers, history, asked_at=7, limits=limits)


def check(policy: Policy, workload: Workload, offers: list[Offer | NoOffer], *rest: object) -> Decision:
    decision = answer(policy, workload, offers, *rest)
    limits = rest[1]
    assert isinstance(limits, Limits)
    kit.check(policy, decision, workload, offers, limits)
    places = {(o.backend, o.id): o for o in offers if isinstance(o, Offer)}
    for ranked in decision.ranked:
        kit.never(workload, places[ranked.backend, ranked.offer_id], decision, limits)
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
