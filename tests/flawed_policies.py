"""Policies that each break one promise, and the kit on them: run by test_conformance_catches.py, to fail."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec
import pytest

from compute_router.backend import NoOffer, Offer
from compute_router.policies.auto import Auto
from compute_router.policy import Decision, History, Limits, Outcome, Policy, Ranked
from compute_router.testing import PolicyConformance
from compute_router.workload import Framework, Warmth, Workload

change = msgspec.structs.replace


class FlawedPolicy(Auto):
    """Auto, but for one flaw in `answer` or in what it is asked. `caught` and `says` as in `Flawed`."""

    caught: ClassVar[str]
    says: ClassVar[str] = ""

    def decide(
        self,
        workload: Workload,
        offers: Sequence[Offer | NoOffer],
        history: History,
        *,
        asked_at: int,
        limits: Limits,
    ) -> Decision:
        workload, offers, limits = self.asked(workload, offers, limits)
        return self.answer(
            super().decide(workload, offers, history, asked_at=asked_at, limits=limits), offers
        )

    def asked(
        self, workload: Workload, offers: Sequence[Offer | NoOffer], limits: Limits
    ) -> tuple[Workload, Sequence[Offer | NoOffer], Limits]:
        return workload, offers, limits

    def answer(self, decision: Decision, offers: Sequence[Offer | NoOffer]) -> Decision:
        return decision


class LosesTheRejected(FlawedPolicy):
    caught, says = "test_every_offer_is_ranked_or_refused_with_a_sentence", "lost"

    def answer(self, decision: Decision, offers: Sequence[Offer | NoOffer]) -> Decision:
        return change(decision, rejections=decision.rejections[:1])


class SaysNothing(FlawedPolicy):
    caught = "test_every_offer_is_ranked_or_refused_with_a_sentence"

    def answer(self, decision: Decision, offers: Sequence[Offer | NoOffer]) -> Decision:
        return change(decision, ranked=tuple(change(r, sentence="") for r in decision.ranked))


class MakesUpAPlace(FlawedPolicy):
    caught, says = "test_every_offer_is_ranked_or_refused_with_a_sentence", "made up"

    def answer(self, decision: Decision, offers: Sequence[Offer | NoOffer]) -> Decision:
        more = Ranked(backend="cloud9", offer_id="x", rank=99, rule="x", sentence="it would be nice")
        return change(decision, ranked=(*decision.ranked, more), outcome=Outcome.RUN)


class TakesAnyHardware(FlawedPolicy):
    caught, says = "test_what_no_policy_does_is_not_done", "_serves"

    def asked(
        self, workload: Workload, offers: Sequence[Offer | NoOffer], limits: Limits
    ) -> tuple[Workload, Sequence[Offer | NoOffer], Limits]:
        from compute_router.workload import Accelerator

        hardware = [one.hardware for one in offers if isinstance(one, Offer)]
        more = tuple(Accelerator(family=h.family, sku=h.sku, count=h.count) for h in hardware)
        return change(workload, needs=change(workload.needs, substitutes=more)), offers, limits


class ForgetsWarmth(FlawedPolicy):
    caught, says = "test_the_never_rules_one_by_one", "warm"

    def asked(
        self, workload: Workload, offers: Sequence[Offer | NoOffer], limits: Limits
    ) -> tuple[Workload, Sequence[Offer | NoOffer], Limits]:
        return change(workload, needs=change(workload.needs, warmth=Warmth.ANY)), offers, limits


class ForgetsTheFramework(FlawedPolicy):
    caught, says = "test_the_never_rules_one_by_one", "cuda"

    def asked(
        self, workload: Workload, offers: Sequence[Offer | NoOffer], limits: Limits
    ) -> tuple[Workload, Sequence[Offer | NoOffer], Limits]:
        return change(workload, needs=change(workload.needs, framework=Framework.NONE)), offers, limits


class BelievesInFabrics(FlawedPolicy):
    caught, says = "test_the_never_rules_one_by_one", "no fabric"

    def asked(
        self, workload: Workload, offers: Sequence[Offer | NoOffer], limits: Limits
    ) -> tuple[Workload, Sequence[Offer | NoOffer], Limits]:
        return workload, [change(o, fabric=True) if isinstance(o, Offer) else o for o in offers], limits


class DoesNotHearLimits(FlawedPolicy):
    caught, says = "test_a_refusal_of_a_limit_is_heard", "refused"

    def asked(
        self, workload: Workload, offers: Sequence[Offer | NoOffer], limits: Limits
    ) -> tuple[Workload, Sequence[Offer | NoOffer], Limits]:
        return workload, offers, Limits(wait_us=None)


class FollowsTheOrderGiven(FlawedPolicy):
    caught, says = "test_the_same_question_gives_the_same_bytes", "order"

    def answer(self, decision: Decision, offers: Sequence[Offer | NoOffer]) -> Decision:
        place = {o.backend + o.id: n for n, o in enumerate(offers) if isinstance(o, Offer)}
        ranked = sorted(decision.ranked, key=lambda r: (r.rank, place[r.backend + r.offer_id]))
        return change(decision, ranked=tuple(ranked))


class RemembersTheLastTime(FlawedPolicy):
    caught = "test_the_same_question_gives_the_same_bytes"
    asked_before = 0

    def answer(self, decision: Decision, offers: Sequence[Offer | NoOffer]) -> Decision:
        type(self).asked_before += 1
        return change(decision, sentence=f"{decision.sentence} ({self.asked_before} asked)")


class LooksAtTheClock(FlawedPolicy):
    caught, says = "test_it_reaches_for_nothing", "reached for the world"

    def answer(self, decision: Decision, offers: Sequence[Offer | NoOffer]) -> Decision:
        return change(decision, mend="" if time.time() > 0 else "wait")


class ReadsAFile(FlawedPolicy):
    caught, says = "test_it_reaches_for_nothing", "reached for the world"

    def answer(self, decision: Decision, offers: Sequence[Offer | NoOffer]) -> Decision:
        with open(os.devnull) as file:
            return change(decision, mend=decision.mend + file.read())


class TossesACoin(FlawedPolicy):
    caught, says = "test_it_reaches_for_nothing", "reached for the world"

    def answer(self, decision: Decision, offers: Sequence[Offer | NoOffer]) -> Decision:
        return change(decision, mend=random.choice([decision.mend]))


class FollowsTheHashes(FlawedPolicy):
    caught, says = "test_another_process_decides_the_same", ""

    def answer(self, decision: Decision, offers: Sequence[Offer | NoOffer]) -> Decision:
        words = {"tidy", "quick", "cheap", "near", "known", "clean"}
        return change(decision, sentence=f"{decision.sentence}: {', '.join(words)}")


class TwoLines(FlawedPolicy):
    caught = "test_a_decision_survives_its_json"

    def answer(self, decision: Decision, offers: Sequence[Offer | NoOffer]) -> Decision:
        return change(decision, sentence=f"{decision.sentence}\nreally")


class RaisesOnNothing(FlawedPolicy):
    caught, says = "test_no_offer_is_refused_with_a_reason", "IndexError"

    def answer(self, decision: Decision, offers: Sequence[Offer | NoOffer]) -> Decision:
        return change(decision, mend=offers[0].backend)


class SignsForAnother(FlawedPolicy):
    caught = "test_the_policy_says_what_it_is"

    def answer(self, decision: Decision, offers: Sequence[Offer | NoOffer]) -> Decision:
        return change(decision, policy="cheapest")


class EmptiesTheList(FlawedPolicy):
    caught = "test_deciding_changes_nothing_that_was_given"

    def answer(self, decision: Decision, offers: Sequence[Offer | NoOffer]) -> Decision:
        if isinstance(offers, list):
            offers.clear()
        return decision


class OfFlawedPolicy(PolicyConformance):
    """What is run on each."""

    flawed: type[Policy]
    questions = 100

    @pytest.fixture
    def policy(self) -> Policy:
        return self.flawed()


FLAWED: list[Any] = sorted(FlawedPolicy.__subclasses__(), key=lambda cls: cls.__name__)
for each in FLAWED:
    globals()[f"Test{each.__name__}"] = type(f"Test{each.__name__}", (OfFlawedPolicy,), {"flawed": each})
