"""Offers on the scales: those that stand and in which rank, those refused and by which rules."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import msgspec

from compute_router.backend import NoOffer, Offer
from compute_router.policies.conditions import Effect, Live, Rule, fill, live, matches
from compute_router.policies.never import NEVER, WARM
from compute_router.policies.question import Question
from compute_router.policies.traits import Traits
from compute_router.policy import Outcome

__all__ = ["Refusal", "Standing", "Weighed", "by_name", "weigh"]


@dataclasses.dataclass(slots=True)
class Standing:
    """An offer that may be used (or warmed), and where a rule has put it.

    `note` is what the order within a rank adds to the sentence.
    """

    offer: Offer
    traits: Traits
    rank: int
    rule: str
    sentence: str
    note: str = ""

    @property
    def name(self) -> tuple[str, str]:
        return self.offer.backend, self.offer.id


@dataclasses.dataclass(slots=True)
class Refusal:
    """An offer that may not be used, and the rules it breaks, in their order; `order` is the place
    of the first among those that refuse (the later, the nearer the offer came)."""

    offer: Offer
    traits: Traits
    broken: tuple[Rule, ...]
    order: int

    @property
    def sentence(self) -> str:
        """The sentence of the first rule broken, and the names of the others."""
        text = fill(self.broken[0].sentence, self.traits)
        also = ", ".join(rule.id for rule in self.broken[1:])
        return f"{text} (and besides: {also})" if also else text

    @property
    def mend(self) -> str:
        return fill(self.broken[0].mend, self.traits)


@dataclasses.dataclass(slots=True)
class Weighed:
    """Every offer in its place. `standings` are by name; they are empty exactly for `refused`."""

    question: Question
    outcome: Outcome
    standings: list[Standing]
    refusals: list[Refusal]
    no_offers: list[NoOffer]
    preferring: Sequence[Live]

    def rank(self, offer: Offer, traits: Traits) -> int:
        """The rank an offer has, or would have if it were not refused."""
        return _standing(offer, traits, self.preferring).rank


def by_name(offers: Sequence[Offer | NoOffer]) -> tuple[list[NoOffer], list[Offer]]:
    """Both kinds sorted by what they are, so that the order they came in cannot matter."""
    places = sorted((o for o in offers if isinstance(o, Offer)), key=lambda o: (o.backend, o.id))
    if any((a.backend, a.id) == (b.backend, b.id) for a, b in itertools.pairwise(places)):
        places.sort(key=lambda o: (o.backend, o.id, msgspec.json.encode(o, order="sorted")))
    none = [o for o in offers if isinstance(o, NoOffer)]
    return sorted(none, key=lambda n: (n.backend, n.code, n.reason, n.mend)), places


def weigh(
    question: Question, offers: Sequence[Offer | NoOffer], rules: Sequence[Rule], otherwise: Rule
) -> Weighed:
    """Refuse by `NEVER` and by those of `rules` that refuse, rank the rest by those that prefer.

    `otherwise` speaks for the offers that no rule prefers and gives their rank. If all are
    refused, those that lack nothing but a warm cache stand after all, to be warmed.
    """
    no_offers, places = by_name(offers)
    work = Traits(question)
    refusing = live([*NEVER, *(r for r in rules if r.effect is Effect.REFUSE)], work)
    preferring = live([*(r for r in rules if r.effect is Effect.PREFER), otherwise], work)
    standings: list[Standing] = []
    refusals: list[Refusal] = []
    for offer in places:
        traits = Traits(question, offer, work)
        broken = _broken(refusing, traits)
        if broken:
            refusals.append(Refusal(offer, traits, tuple(refusing[n].rule for n in broken), broken[0]))
        else:
            standings.append(_standing(offer, traits, preferring))
    outcome = Outcome.RUN
    if not standings:
        warmable = [r for r in refusals if [rule.id for rule in r.broken] == [WARM]]
        refusals = [r for r in refusals if [rule.id for rule in r.broken] != [WARM]]
        standings = [_to_warm(_standing(r.offer, r.traits, preferring)) for r in warmable]
        outcome = Outcome.WARM if standings else Outcome.REFUSED
    return Weighed(question, outcome, standings, refusals, no_offers, preferring)


def _broken(refusing: Sequence[Live], traits: Traits) -> list[int]:
    """Which of the rules an offer breaks."""
    broken = []
    for n, (rule, left, _) in enumerate(refusing):
        if matches(left, traits):
            broken.append(n)
            if rule.enough:
                break
    return broken


def _to_warm(standing: Standing) -> Standing:
    standing.rule, standing.sentence = WARM, f"could be warmed first; {standing.sentence}"
    return standing


def _standing(offer: Offer, traits: Traits, preferring: Sequence[Live]) -> Standing:
    for rule, left, same in preferring:
        if not left or matches(left, traits):
            rank = rule.rank_of(offer.surface)
            sentence = fill(rule.sentence, traits) if same is None else same
            if rule.order and rank > 1:
                sentence = f"a {offer.surface.value} place stands behind: {sentence}"
            return Standing(offer, traits, rank, rule.id, sentence)
    raise AssertionError("the last rule has no tests")
