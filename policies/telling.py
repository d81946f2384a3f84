"""The deciding sentence of a decision, and what would mend it."""

from __future__ import annotations

from collections.abc import Sequence

from compute_router.policies import words
from compute_router.policies.weighing import Refusal, Standing, Weighed
from compute_router.policy import Outcome

__all__ = ["told"]


def told(weighed: Weighed, outcome: Outcome, first: Standing | None, sentence: str) -> tuple[str, str]:
    """The sentence that is printed first, and its mend. `first` is the place meant and `sentence`
    what speaks for it; without one the decision is a refusal."""
    if first is None:
        return _refusal(weighed)
    name = words.place(first.offer)
    if outcome is Outcome.WARM:
        return _warming(weighed, first, name)
    if first.rank > 1:
        sentence = f"{sentence}; {_passed_over(weighed, first)}"
    if outcome is Outcome.WAIT:
        return f"Wait for {name} (queue: {first.traits['queue']}): {sentence}", ""
    return f"Run on {name}: {sentence}", ""


def _warming(weighed: Weighed, first: Standing, name: str) -> tuple[str, str]:
    sentence = f"Warm {name} first: the claim is a warm start and no place that may be used is warm"
    seed = f"route warm {first.traits['target']} --backend {first.offer.backend}"
    mend = f"{seed} seeds it; then run it again"
    held = [r for r in weighed.refusals if all(rule.id in ("busy", "queue") for rule in r.broken)]
    if held:
        busy = held[0].traits
        sentence += f"; {busy['place']} is, but busy (queue: {busy['queue']})"
        mend += f", or wait for {busy['place']} with {busy['wait_flag']}"
    return sentence, mend


def _passed_over(weighed: Weighed, first: Standing) -> str:
    """Why nothing of a better rank is used."""
    better = [r for r in weighed.refusals if weighed.rank(r.offer, r.traits) < first.rank]
    best = _nearest(better)
    if best is None:
        return "nothing of a better rank is offered"
    return f"{best.traits['place']} is not used: {best.sentence}"


def _nearest(refusals: Sequence[Refusal]) -> Refusal | None:
    """The refusal that was nearest to a yes: the latest first rule broken, then the fewest, then by name."""
    return min(refusals, key=lambda r: (-r.order, len(r.broken)), default=None)


def _refusal(weighed: Weighed) -> tuple[str, str]:
    pin, refusals = weighed.question.limits.pin, weighed.refusals
    answers = weighed.no_offers
    if pin is not None:
        names = sorted({r.offer.backend for r in refusals} | {no.backend for no in answers})
        if pin not in names:
            import difflib

            near = difflib.get_close_matches(pin, names, 1)
            mend = f"did you mean {near[0]!r}? " if near else ""
            return f"Refused: there is no backend {pin!r}", f"{mend}there are: {', '.join(names) or 'none'}"
        refusals = [r for r in refusals if r.offer.backend == pin]
        answers = [no for no in answers if no.backend == pin]
    best = _nearest(refusals)
    if best is not None:
        place = best.traits["place"]
        if len(refusals) == 1:
            return f"Refused: {place} may not be used: {best.sentence}", best.mend
        return f"Refused: none of {len(refusals)} places may be used; {place}: {best.sentence}", best.mend
    if not answers:
        return "Refused: no backend was asked", "route backends lists those that are installed"
    # What nobody has set up is the last to be told, and counts with nothing.
    answers = [no for no in answers if no.set_up] or answers
    first, more = answers[0], len(answers) - 1
    others = f" (and {more} more without an offer)" if more else ""
    return f"Refused: nothing is offered; {first.backend}: {first.reason}{others}", first.mend
