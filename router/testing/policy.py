"""The conformance of a policy: pure, complete, reasoned, and never doing what none may do."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from typing import ClassVar

import msgspec
import pytest

from compute_router.backend import CacheState, NoOffer, Offer
from compute_router.policy import Decision, History, Limits, Outcome, Policy
from compute_router.records import canonical
from compute_router.testing.fakes import Drawn, offer, work
from compute_router.testing.kit import Kit
from compute_router.workload import Accelerator, Coupling, Framework, Role, Warmth, Workload

__all__ = ["PolicyConformance", "check", "never"]

ASKED_AT = 1_700_000_000_000_000


class PolicyConformance(Kit):
    """Every promise of `compute_router.Policy` as a test. Subclass it as `Test...` and give `policy`."""

    questions: ClassVar[int] = 300
    """How many drawn questions each test asks."""

    @pytest.fixture
    def policy(self) -> Policy:
        """The policy to be proved. Its class is made without arguments, as another process does."""
        raise NotImplementedError(f"{type(self).__name__} gives no `policy`: override this fixture")

    def drawn(self, chance: random.Random) -> list[Question]:
        """Questions at random: half of them plain, half full of demands."""
        one = Drawn(chance)
        found = []
        for _ in range(self.questions):
            workload, limits = one.workload(), one.limits()
            offers = one.offers(workload)
            found.append(Question(workload, offers, one.history(offers), limits))
        return found

    def test_the_policy_says_what_it_is(self, policy: Policy) -> None:
        """`name`, `version` and `about` are text in one line; the first two stand in every decision."""
        for text in (policy.name, policy.version, policy.about):
            assert isinstance(text, str)
            assert text
            assert "\n" not in text
        decision = Question(work(), [offer("local")]).ask(policy)
        assert (decision.policy, decision.policy_version) == (policy.name, policy.version)
        assert decision.asked_at_us == ASKED_AT
        assert decision.workload_digest == work().digest

    def test_every_offer_is_ranked_or_refused_with_a_sentence(
        self, policy: Policy, chance: random.Random
    ) -> None:
        """Nothing that was given is lost, nothing that was not given is ranked, and each has its reason."""
        for question in self.drawn(chance):
            check(policy, question.ask(policy), question.workload, question.offers, question.limits)

    def test_what_no_policy_does_is_not_done(self, policy: Policy, chance: random.Random) -> None:
        """Other hardware, cold for a warm claim and the reverse, XLA on CUDA, nodes without a fabric."""
        for question in self.drawn(chance):
            decision = question.ask(policy)
            for place in question.used(decision):
                never(question.workload, place, decision, question.limits)

    def test_the_never_rules_one_by_one(self, policy: Policy) -> None:
        """Each of them with one offer that breaks it and nothing else: that offer is not used."""
        cases = {
            "hardware": (work("H200:8"), offer("reserved", "H100:8")),
            "cold for warm": (
                work(warmth="warm", volumes={Role.COMPILE_CACHE: "/c"}),
                offer("reserved", cache=CacheState.EMPTY),
            ),
            "warm for cold": (
                work(warmth="cold", volumes={Role.COMPILE_CACHE: "/c"}),
                offer("reserved", cache=CacheState.WARM_SAME_KEY),
            ),
            "xla on cuda": (work("any", framework="xla"), offer("reserved", "H200:1")),
            "cuda on xla": (work("any", framework="torch"), offer("slice", "v6e-1")),
            "no fabric": (
                work("H200:8", nodes=2, coupling="multi-node"),
                offer("reserved", "H200:8", nodes=2, fabric=False),
            ),
        }
        for name, (workload, place) in cases.items():
            decision = Question(workload, [place]).ask(policy)
            assert decision.outcome in (Outcome.REFUSED, Outcome.WARM), f"{name}: {decision.sentence}"
            assert decision.outcome is Outcome.REFUSED or name == "cold for warm", name
            assert decision.sentence

    def test_the_same_question_gives_the_same_bytes(self, policy: Policy, chance: random.Random) -> None:
        """Asked again, of another instance, and with offers and history in another order."""
        for question in self.drawn(chance):
            first = canonical(question.ask(policy))
            assert canonical(question.ask(policy)) == first
            offers, rows = list(question.offers), list(question.history.rows)
            chance.shuffle(offers)
            chance.shuffle(rows)
            history = History(key=question.history.key, rows=tuple(rows))
            other = Question(question.workload, offers, history, question.limits)
            assert canonical(other.ask(policy)) == first, "the order of what it is given matters"

    def test_it_reaches_for_nothing(self, policy: Policy, chance: random.Random) -> None:
        """No clock, no network, no chance, no file, no process while it decides."""
        questions = self.drawn(chance)
        questions[0].ask(policy)  # what is imported late is imported by now
        with pytest.MonkeyPatch.context() as world:
            _forbid(world)
            for question in questions:
                question.ask(policy)

    def test_another_process_decides_the_same(self, policy: Policy, chance: random.Random) -> None:
        """A process of its own, with another order of hashes, gives the same bytes: no hidden state."""
        questions = self.drawn(chance)[:40]
        cls = type(policy)
        assert "<locals>" not in cls.__qualname__, "another process must be able to import the policy's class"
        order = {"path": sys.path, "module": cls.__module__, "name": cls.__qualname__}
        lines = [json.dumps(order), *(msgspec.json.encode(question.parts).decode() for question in questions)]
        import os
        import subprocess

        done = subprocess.run(
            [sys.executable, "-c", _OTHER],
            input="\n".join(lines),
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": str(chance.randrange(1, 1000))},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [canonical(q.ask(policy)).decode() for q in questions]

    def test_deciding_changes_nothing_that_was_given(self, policy: Policy, chance: random.Random) -> None:
        """Workload, offers, history and limits are the same afterwards."""
        for question in self.drawn(chance):
            before = repr(question.parts)
            question.ask(policy)
            assert repr(question.parts) == before

    def test_no_offer_is_refused_with_a_reason(self, policy: Policy) -> None:
        """With no offer at all, and with nothing but NoOffers, the answer is no and says why."""
        none = NoOffer(backend="cloud", code="full", reason="no room", mend="wait")
        for offers in ([], [none], [none, none]):
            decision = Question(work(), list(offers)).ask(policy)
            assert decision.outcome is Outcome.REFUSED
            assert decision.sentence
            assert not decision.ranked
            assert len(decision.rejections) == len(offers)

    def test_a_decision_survives_its_json(self, policy: Policy, chance: random.Random) -> None:
        """It stands in the receipt: canonical JSON, and the same again when it is read."""
        for question in self.drawn(chance)[:50]:
            decision = question.ask(policy)
            self.keeps(decision)
            assert "\n" not in decision.sentence + decision.mend

    def test_a_refusal_of_a_limit_is_heard(self, policy: Policy) -> None:
        """What the caller forbids is not done: a busy place without `--wait`, one over the price limit."""
        busy = offer(
            "reserved", busy=True, estimates=msgspec.structs.replace(offer("local").estimates, queue=None)
        )
        assert Question(work(), [busy], limits=Limits(wait_us=0)).ask(policy).outcome is Outcome.REFUSED
        dear = offer("serverless", price="9.00")
        limits = Limits(price_limit="1.00")
        assert Question(work(), [dear], limits=limits).ask(policy).outcome is Outcome.REFUSED


class Question:
    """One question to a policy."""

    def __init__(
        self,
        workload: Workload,
        offers: list[Offer | NoOffer],
        history: History = History(),  # noqa: B008 - frozen
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> None:
        self.workload, self.offers, self.history, self.limits = workload, offers, history, limits

    @property
    def parts(self) -> tuple[object, ...]:
        places = [one for one in self.offers if isinstance(one, Offer)]
        none = [one for one in self.offers if isinstance(one, NoOffer)]
        return self.workload, places, none, self.history, self.limits

    def ask(self, policy: Policy) -> Decision:
        """The answer. A policy never raises on valid records."""
        answer = policy.decide(
            self.workload, self.offers, self.history, asked_at=ASKED_AT, limits=self.limits
        )
        assert isinstance(answer, Decision)
        return answer

    def used(self, decision: Decision) -> list[Offer]:
        """The offers that the decision ranks."""
        places = {(one.backend, one.id): one for one in self.offers if isinstance(one, Offer)}
        return [places[ranked.backend, ranked.offer_id] for ranked in decision.ranked]


_OTHER = """
import importlib, json, sys
order = json.loads(sys.stdin.readline())
sys.path += [entry for entry in order["path"] if entry not in sys.path]
import msgspec
from compute_router.backend import NoOffer, Offer
from compute_router.policy import History, Limits
from compute_router.records import canonical
from compute_router.workload import Workload
cls = importlib.import_module(order["module"])
for part in order["name"].split("."):
    cls = getattr(cls, part)
for line in sys.stdin:
    workload, places, none, history, limits = msgspec.json.decode(
        line, type=tuple[Workload, list[Offer], list[NoOffer], History, Limits])
    decision = cls().decide(workload, [*none, *places], history, asked_at=ASKED_AT, limits=limits)
    sys.stdout.buffer.write(canonical(decision) + b"\\n")
""".replace("ASKED_AT", str(ASKED_AT))


def _forbid(world: pytest.MonkeyPatch) -> None:
    """Let everything raise by which a policy could learn more than it is told."""
    import os
    import socket
    import subprocess
    import time

    def reached(*_: object, **__: object) -> object:
        raise AssertionError("the policy reached for the world: clock, network, chance, file or process")

    clock = ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "sleep")
    for module, names in (
        (time, clock),
        (socket, ("socket", "create_connection", "getaddrinfo")),
        (random, ("random", "choice", "shuffle", "Random", "randint", "uniform")),
        (subprocess, ("Popen", "run")),
        (os, ("urandom", "open", "system", "getenv")),
    ):
        for name in names:
            world.setattr(module, name, reached)
    world.setattr("builtins.open", reached)


def check(
    policy: Policy,
    decision: Decision,
    workload: Workload,
    offers: Sequence[Offer | NoOffer],
    limits: Limits,
) -> None:
    """Whether a decision is whole: every offer in it once, each with a reason, in the order of the ranks."""
    given = Counter((o.backend, o.id if isinstance(o, Offer) else None) for o in offers)
    told: Counter[tuple[str, str | None]] = Counter((r.backend, r.offer_id) for r in decision.ranked)
    told.update((r.backend, r.offer_id) for r in decision.rejections)
    assert told == given, "offers are lost, made up, or told twice"
    assert decision.policy == policy.name
    assert decision.sentence
    assert (decision.outcome is Outcome.REFUSED) == (not decision.ranked)
    assert [r.rank for r in decision.ranked] == sorted(r.rank for r in decision.ranked)
    assert all(r.sentence and r.rule for r in decision.ranked)
    assert all(r.sentence and r.rule for r in decision.rejections)
    places = {(o.backend, o.id): o for o in offers if isinstance(o, Offer)}
    if decision.ranked and decision.outcome is not Outcome.WARM:
        first = places[decision.ranked[0].backend, decision.ranked[0].offer_id]
        assert first.busy is (decision.outcome is Outcome.WAIT)


def never(workload: Workload, offer: Offer, decision: Decision, limits: Limits) -> None:
    """What may never happen to an offer that is used, written in another way than any policy's rules are."""
    needs, warm = workload.needs, _cache(offer) is CacheState.WARM_SAME_KEY
    assert any(_serves(wanted, offer) for wanted in (needs.accelerator, *needs.substitutes))
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
        assert offer.clean or _cache(offer) in (CacheState.EMPTY, CacheState.DISABLED)
    if offer.busy:
        assert limits.wait_us is None or limits.wait_us > 0
        queue = offer.estimates.queue
        assert limits.wait_us is None or queue is None or queue.us <= limits.wait_us
    if limits.pin is not None:
        assert offer.backend == limits.pin
    for limit in filter(None, (limits.price_limit, workload.price_limit)):
        quote = offer.quote
        assert limit in PRICES, "a limit that is no decimal allows nothing"
        if quote is not None and (quote.unit, quote.currency) == ("hour", "USD"):
            assert quote.amount not in PRICES or float(quote.amount) <= float(limit)
    asked: dict[str, object] = {
        "secrets": workload.secrets,
        "volumes": workload.volumes,
        "buckets": workload.buckets,
        "images": workload.image,
        "detach": limits.detached,
    }
    assert {name for name, value in asked.items() if value} <= {power.value for power in offer.powers}


PRICES = ("0", "4.54", "36.32", "50")
"""The plain decimals among the prices that are drawn."""


def _serves(wanted: Accelerator, offer: Offer) -> bool:
    has = offer.hardware
    if wanted.family == "any":
        return has.count >= wanted.count or wanted.count <= 1
    if (wanted.family, wanted.sku) != (has.family, has.sku):
        return False
    return has.count == wanted.count or (wanted.family == "gpu" and has.count > wanted.count)


def _cache(offer: Offer) -> CacheState | None:
    return next((r.state for r in offer.roles if r.role is Role.COMPILE_CACHE), None)
