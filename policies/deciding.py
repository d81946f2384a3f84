"""The frame every bundled policy decides in: refuse by rule, rank by rule, order within a rank, say why.

Pure: a function of its arguments. No clock, no network, no randomness, no state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from compute_router.backend import NoOffer, Offer
from compute_router.policies import words
from compute_router.policies.conditions import Rule
from compute_router.policies.never import NEVER
from compute_router.policies.question import Question
from compute_router.policies.telling import told
from compute_router.policies.timing import indexed, tied
from compute_router.policies.weighing import Standing, by_name, weigh
from compute_router.policy import Decision, History, Limits, Outcome, Policy, Ranked, Rejection
from compute_router.records import canonical, digest, plain
from compute_router.workload import Workload

__all__ = ["Order", "by_time", "choose", "price_key", "refuse_all", "version"]

Order = Callable[[Sequence[Standing]], list[Standing]]
"""Puts the offers of one rank in order. Sees them sorted by name; may fill in their notes."""


def version(rules: Iterable[Rule] = ()) -> str:
    """The version of a policy: it changes whenever one of its rules does."""
    return f"1+{digest([plain(rule) for rule in (*NEVER, *rules)])[:8]}"


def price_key(standings: Iterable[Standing]) -> Callable[[Standing], tuple[bool, int]]:
    """A sort key for the price of a run: known before unknown.

    One currency is compared: USD, or else the first by name of those quoted; others are unknown.
    """
    currencies = {s.traits.price.currency for s in standings if s.traits.price is not None}
    chosen = "USD" if "USD" in currencies else min(currencies, default="")

    def key(standing: Standing) -> tuple[bool, int]:
        price = standing.traits.price
        if price is None or price.currency != chosen:
            return True, 0
        return False, price.at_most

    return key


def by_time(standings: Sequence[Standing]) -> list[Standing]:
    """Least time to the first trustworthy result; within max(10 %, 2 min) price; then name."""
    ordered: list[Standing] = []
    for group in tied(standings, lambda s: s.traits.time.total_us):
        key = price_key(group)
        best = sorted(group, key=lambda s: (*key(s), s.name)) if len(group) > 1 else list(group)
        if len(best) > 1 and best[0].traits.time.total_us is not None:
            first, second = best[:2]
            if key(first) == key(second):
                why = "the name decides"
            else:
                why = "the other has no known price" if key(second)[0] else "this is cheaper"
            first.note = f"; {words.place(second.offer)} is as quick (within 10 % or 2 min), {why}"
        ordered += best
    return ordered


def choose(
    policy: Policy,
    workload: Workload,
    offers: Sequence[Offer | NoOffer],
    history: History,
    *,
    asked_at: int,
    limits: Limits,
    rules: Sequence[Rule],
    otherwise: Rule,
    order: Order,
) -> Decision:
    """Decide by the rules that refuse and prefer (see `weigh`), and by `order` within a rank."""
    weighed = weigh(Question(workload, limits, indexed(history)), offers, rules, otherwise)
    ranks: dict[int, list[Standing]] = {}
    for standing in weighed.standings:
        ranks.setdefault(standing.rank, []).append(standing)
    standings = [standing for rank in sorted(ranks) for standing in order(ranks[rank])]
    first = standings[0] if standings else None
    outcome = weighed.outcome
    if outcome is Outcome.RUN and first is not None and first.offer.busy:
        outcome = Outcome.WAIT
    ranked = tuple(_ranked(standing) for standing in standings)
    sentence, mend = told(weighed, outcome, first, ranked[0].sentence if ranked else "")
    rejections = [
        Rejection(
            backend=refusal.offer.backend,
            offer_id=refusal.offer.id,
            rule=refusal.broken[0].id,
            sentence=refusal.sentence,
            mend=refusal.mend,
        )
        for refusal in weighed.refusals
    ]
    return Decision(
        policy=policy.name,
        policy_version=policy.version,
        workload_digest=workload.digest,
        asked_at_us=asked_at,
        outcome=outcome,
        sentence=sentence,
        mend=mend,
        ranked=ranked,
        rejections=(*rejections, *map(_none, weighed.no_offers)),
        limits=_echo(limits, policy),
    )


def refuse_all(
    policy: Policy,
    workload: Workload,
    offers: Sequence[Offer | NoOffer],
    *,
    asked_at: int,
    limits: Limits,
    rule: str,
    sentence: str,
    mend: str,
) -> Decision:
    """The decision that refuses every offer for one reason, which lies in the question itself."""
    no_offers, places = by_name(offers)
    rejections = [
        Rejection(backend=o.backend, offer_id=o.id, rule=rule, sentence=sentence, mend=mend) for o in places
    ]
    return Decision(
        policy=policy.name,
        policy_version=policy.version,
        workload_digest=workload.digest,
        asked_at_us=asked_at,
        outcome=Outcome.REFUSED,
        sentence=f"Refused: {sentence}",
        mend=mend,
        rejections=(*rejections, *map(_none, no_offers)),
        limits=_echo(limits, policy),
    )


def _ranked(standing: Standing) -> Ranked:
    time = standing.traits.time
    return Ranked(
        backend=standing.offer.backend,
        offer_id=standing.offer.id,
        rank=standing.rank,
        rule=standing.rule,
        sentence=f"{standing.sentence}; {time.text}{standing.note}",
        total_us=time.total_us,
        source=time.source,
    )


def _none(no: NoOffer) -> Rejection:
    return Rejection(
        backend=no.backend, offer_id=None, rule=f"no-offer:{no.code}", sentence=no.reason, mend=no.mend
    )


def _echo(limits: Limits, policy: Policy) -> Limits:
    """The limits as the decision keeps them: the user's rules only where they had a say, and only
    if they have a canonical form (a decimal written without quotes has none)."""
    if not limits.rules:
        return limits
    if policy.name == "rules":
        try:
            canonical(limits.rules)
            return limits
        except (ValueError, TypeError, RecursionError):
            pass
    return msgspec.structs.replace(limits, rules=())
