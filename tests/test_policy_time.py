"""Proves the order of places of one rank (past runs, estimates, ties, prices) and what a refusal says."""

from __future__ import annotations

from routing import HOUR, MINUTE, decide, estimates, offer, order, work

from compute_router.backend import CacheState, NoOffer, Offer, Source, StartClass
from compute_router.policy import History, Outcome, Past
from compute_router.workload import Role

EMPTY = CacheState.EMPTY
CACHE = {Role.COMPILE_CACHE: "/cache"}


# Time, ties, price, name


def past(one: str, *, warm: bool = False, n: int = 4, key: str = "k", **us: int | None) -> Past:
    start = StartClass.WARM_MACHINE_FRESH_PROCESS
    return Past(backend=one, offer_id="one", key=key, start_class=start, warm=warm, n=n, **us)


def test_receipts_of_the_same_key_and_start_state_count_before_estimates() -> None:
    two = [offer("reserved", cache=EMPTY), offer("cluster", cache=EMPTY)]
    study = work(purpose="scale", volumes=CACHE)
    slow = History(key="k", rows=(past("cluster", start_us=1, staging_us=1, compile_us=27 * MINUTE),))
    decision = decide(study, two, history=slow)
    assert order(decision) == ["hosts", "cluster"]
    last = decision.ranked[1]
    assert (last.total_us, last.source) == (27 * MINUTE + 2, Source.OBSERVED)
    assert "4 earlier runs" in last.sentence
    assert decision.ranked[0].source is Source.ESTIMATED
    for other in (past("cluster", key="z", compile_us=1), past("cluster", warm=True, compile_us=1)):
        untouched = decide(study, two, history=History(key="k", rows=(other,)))
        assert all(r.source is Source.ESTIMATED for r in untouched.ranked)


def test_a_part_from_receipts_and_the_rest_estimated_is_called_an_estimate() -> None:
    rows = History(key="k", rows=(past("hosts", compile_us=2 * MINUTE),))
    ranked = decide(work(purpose="scale"), [offer("reserved")], history=rows).ranked[0]
    assert (ranked.total_us, ranked.source) == (160_000_000, Source.ESTIMATED)
    assert "compile from 4 earlier runs, the rest estimated" in ranked.sentence


def test_a_start_nobody_observed_is_not_the_same_as_another() -> None:
    unseen = offer("reserved", start_class=StartClass.UNOBSERVED)
    row = Past(
        backend="hosts",
        offer_id="one",
        key="k",
        start_class=StartClass.UNOBSERVED,
        warm=False,
        n=9,
        compile_us=1,
    )
    assert decide(work(), [unseen], history=History(key="k", rows=(row,))).ranked[0].total_us == 100_000_000


def test_the_queue_of_a_busy_place_is_the_one_it_has_now() -> None:
    busy = offer("reserved", busy=True, estimates=estimates(queue=3600, start=0, staging=0, compile=0))
    rows = History(key="k", rows=(past("hosts", queue_us=1, start_us=0, staging_us=0, compile_us=0),))
    assert decide(work(), [busy], history=rows, wait_us=None).ranked[0].total_us == HOUR


def test_an_unknown_time_stands_behind_known_ones_and_says_so() -> None:
    offers = [
        offer("reserved", estimates=estimates(compile=None)),
        offer("cluster", estimates=estimates(compile=9 * 3600)),
    ]
    decision = decide(work(purpose="scale"), offers)
    assert order(decision) == ["cluster", "hosts"]
    assert decision.ranked[1].total_us is None
    assert "not known (compile), at least 40 s" in decision.ranked[1].sentence


def test_work_that_compiles_nothing_has_no_compile_time_to_know() -> None:
    place = offer("local", "cpu", estimates=estimates(start=0, staging=1, compile=None))
    assert decide(work("cpu"), [place]).ranked[0].total_us == 1_000_000
    assert decide(work("cpu", framework="torch"), [place]).ranked[0].total_us is None


def test_within_two_minutes_the_price_decides_and_then_the_name() -> None:
    def place(name: str, seconds: int, price: str | None) -> Offer:
        return offer("reserved", backend=name, estimates=estimates(start=seconds), price=price)

    study = work(purpose="scale")
    quick, cheap = place("quick", 0, "5.00"), place("cheap", 119, "4.00")
    assert order(decide(study, [quick, cheap])) == ["cheap", "quick"]
    assert "this is cheaper" in decide(study, [quick, cheap]).sentence
    assert order(decide(study, [quick, place("late", 121, "4.00")])) == ["quick", "late"]
    assert order(decide(study, [place("b", 0, None), place("a", 100, None)])) == ["a", "b"]
    assert order(decide(study, [place("unpriced", 0, None), place("priced", 100, "90")]))[0] == "priced"


def test_ties_are_measured_from_the_best_and_not_from_neighbour_to_neighbour() -> None:
    def place(name: str, seconds: int, price: str) -> Offer:
        return offer("reserved", backend=name, estimates=estimates(start=seconds), price=price)

    chain = [place("a", 0, "9"), place("b", 100, "8"), place("c", 200, "7"), place("d", 300, "6")]
    expected = ["b", "a", "d", "c"]
    assert order(decide(work(purpose="scale"), chain)) == expected
    assert order(decide(work(purpose="scale"), chain[::-1])) == expected


def test_ten_per_cent_ties_where_that_is_more_than_two_minutes() -> None:
    base = {"start": 0, "staging": 0}
    slow = offer("reserved", backend="a", estimates=estimates(compile=10_000, **base), price="9")
    near = offer("reserved", backend="b", estimates=estimates(compile=10_999, **base), price="1")
    far = offer("reserved", backend="c", estimates=estimates(compile=11_001, **base), price="1")
    assert order(decide(work(purpose="scale"), [slow, near, far])) == ["b", "a", "c"]


# Refusals


def test_a_refusal_keeps_every_reason_and_tells_the_nearest_first() -> None:
    offers: list[Offer | NoOffer] = [
        NoOffer(backend="desk", code="accelerator", reason="this machine has none", mend="buy one"),
        offer("serverless", "A100:1"),
        offer("reserved", busy=True, estimates=estimates(queue=90 * 60)),
    ]
    decision = decide(work(), offers)
    assert decision.outcome is Outcome.REFUSED
    assert "hosts/one: it is busy (queue: 1 h 30 min)" in decision.sentence
    assert decision.mend == "--wait 90m allows it"
    assert [(r.backend, r.rule) for r in decision.rejections] == [
        ("cloud", "hardware"),
        ("hosts", "busy"),
        ("desk", "no-offer:accelerator"),
    ]


def test_nothing_offered_at_all_is_a_refusal_too() -> None:
    assert decide(work(), []).outcome is Outcome.REFUSED
    no = NoOffer(backend="desk", code="none", reason="it is {odd}", mend="mend it")
    decision = decide(work(), [no])
    assert decision.sentence == "Refused: nothing is offered; desk: it is {odd}"
    assert decision.mend == "mend it"


def test_a_place_that_breaks_several_rules_names_them_all() -> None:
    dear = offer("serverless", price="9", busy=True)
    decision = decide(work(price_limit="1"), [dear])
    assert "(and besides: busy)" in decision.rejections[0].sentence
    other = decide(work(price_limit="1"), [offer("serverless", "A100:1", price="9", busy=True)])
    assert "besides" not in other.rejections[0].sentence  # of other hardware nothing else matters


def test_fallback_along_other_surfaces_says_why() -> None:
    decision = decide(work(), [offer("reserved")])
    assert decision.outcome is Outcome.RUN
    assert "a reserved place stands behind" in decision.sentence
    assert "nothing of a better rank is offered" in decision.sentence
