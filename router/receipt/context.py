"""The block `context` of a receipt: what was declared, what the client saw, what follows from the rest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from compute_router.backend import Cost, NoOffer, Offer, Status
from compute_router.policy import Decision
from compute_router.receipt.applying import absent
from compute_router.receipt.facts import (
    MOST_TEXT,
    at_path,
    leaves,
    misfit,
    missing,
    not_applicable,
    put,
    seen,
    unobserved,
    value,
)
from compute_router.receipt.judging import judged
from compute_router.receipt.matching import match
from compute_router.receipt.redacting import Redactor
from compute_router.receipt.schema import BY_PATH, TABLE
from compute_router.records import digest, plain
from compute_router.workload import SEEDING, Framework, Kind, Workload

__all__ = ["Context"]

SKEWED_US = 1_000_000
"""Beyond it the clocks of client and machine are too far apart to compare their times of day."""
# The names under which kinds declare what the receipt has under another.
DECLARED = {
    "data": "data.id",
    "tokens_per_step": "data.tokens_per_step_global",
    "seq_len": "data.seq_len",
    "global_batch": "data.global_batch",
    "micro_batch": "data.micro_batch",
    "grad_accum": "data.grad_accum",
    "dtype": "numerics.dtype",
    "fp8_recipe": "numerics.fp8_recipe",
    "seed": "numerics.seed",
    "deterministic": "numerics.deterministic",
    "mode": "distributed.mode",
    "dp": "distributed.dp",
    "tp": "distributed.tp",
    "pp": "distributed.pp",
    "cp": "distributed.cp",
    "ep": "distributed.ep",
    "kernel": "kernel.requested",
    "family": "workload.family",
    "preset": "workload.preset",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """Everything the context is made from; see `building.build`."""

    workload: Workload
    status: Status
    at: int
    snapshot: Mapping[str, Any]
    offers: Sequence[Offer | NoOffer]
    decision: Decision | None
    intent: Mapping[str, Any]
    handle: Mapping[str, Any]
    measured: Mapping[str, Any] | None
    observed: Mapping[str, Any]
    family: str
    kind: Kind | None
    origins: Mapping[tuple[str, str], Any]
    cost: Cost | None
    events: Sequence[Mapping[str, Any]]
    clock: Mapping[str, int]
    study: Mapping[str, Any]
    caveats: Sequence[str]
    client: Mapping[str, str | bool]
    nodes: Sequence[Mapping[str, Any]] = ()

    def build(self) -> dict[str, Any]:
        """Every field of the blocks `context` and `measured`, as facts at their paths."""
        redactor = Redactor()
        given = self._given(redactor)
        gone = absent(self._traits())
        found: dict[str, Any] = {}
        for field in TABLE:
            if field.block == "receipt":
                continue
            sentence, declared_wins = gone.get(field.path, ("", True))
            fact = at_path(self.observed, field.path) if field.block == "measured" else None
            if field.path in given:
                fact = given[field.path]
            has = fact is not None and not missing(fact)
            if sentence and not (declared_wins and has):
                fact = not_applicable(sentence)
            put(found, field.path, fact or unobserved("not declared" if field.origin == "decl" else ""))
        self._follow(found)
        for path, fact in judged(self.kind, self.measured, found, self.at).items():
            put(found, path, fact)
        for path, fact in list(leaves(found)):
            if path == "nodes":
                continue  # what the machines wrote, digest and all, as `measured` is
            put(found, path, redactor.data(fact, path))
        put(found, "redactions", seen(redactor.told(), "derived", self.at))
        return found

    # What is known

    @property
    def _offer(self) -> Offer | None:
        name = (self.intent.get("backend"), self.intent.get("offer_id"))
        return next((o for o in self.offers if isinstance(o, Offer) and (o.backend, o.id) == name), None)

    def _traits(self) -> dict[str, str]:
        """The traits that the rules of `applying` speak of."""
        status, offer = self.status, self._offer
        ended = "exit" if status.exit_code is not None else "signal" if status.signal is not None else "other"
        promotes = self.kind is not None and self.workload.kind == "validate"
        return {
            "family": self.family,
            "kind": self.workload.kind,
            "framework": self.workload.needs.framework.value,
            "surface": offer.surface.value if offer else str(self._recorded.get("surface") or ""),
            "mode": "recorded" if self._recorded else "routed",
            "promotes": "yes" if promotes or _promotes(self.kind) else "no",
            "dependencies": "yes" if self.workload.dependencies else "no",
            "entry": self._entry(),
            "ended_by": ended,
            "spread": "yes" if self.workload.needs.nodes > 1 else "no",
            "dirty": "no" if at_path(self.snapshot, "git.dirty") is False else "",
        }

    @property
    def _recorded(self) -> Mapping[str, Any]:
        """What is known of the launcher that started it; empty for a run that route started."""
        found = self.intent.get("recorded")
        return found if isinstance(found, Mapping) else {}

    def _entry(self) -> str:
        """Whether the code is a script, or a program, or (of a routed command) not looked for."""
        entry = self.workload.entry
        if not self._recorded:
            return "script" if entry.script else "command"
        scripted = any(word.endswith(".py") for word in entry.argv)
        return "script" if scripted or entry.sha256 is None else "program"

    def _given(self, redactor: Redactor) -> dict[str, Any]:
        """The facts the client has itself; what it has not is left out."""
        given: dict[str, Any] = {}

        def say(path: str, v: Any, src: str, at: int | None = None) -> None:
            type_ = BY_PATH[path].type
            if isinstance(v, str) and type_ == "text":
                v = redactor.text(v, path)[:MOST_TEXT]
            if v is not None:
                wrong = misfit(type_, v)
                given[path] = unobserved(f"what was given {wrong}") if wrong else seen(v, src, at or self.at)

        if self.snapshot and not isinstance(self.snapshot.get("git"), Mapping):
            note = redactor.text(str(self.snapshot.get("note") or ""), "code")
            for name in ("commit", "branch", "dirty", "diff_sha256", "message"):
                given[f"code.{name}"] = unobserved(note or "what shipped is no git work tree")
        if self._recorded and self.workload.entry.sha256 is None:
            why = str(self._recorded.get("code_why") or "")
            given["workload.entry_sha256"] = unobserved(redactor.text(why, "workload.entry_sha256"))
        if self._recorded and self._recorded.get("surface") is None:
            given["surface"] = unobserved(str(self._recorded.get("surface_why") or ""))
        self._declared(say, redactor)
        self._started(say, redactor)
        self._decided(say, redactor)
        self._ended(say)
        if self.nodes:
            say("nodes", [dict(node) for node in self.nodes], "observed")
        return given

    def _declared(self, say: Any, redactor: Redactor) -> None:
        w, needs = self.workload, self.workload.needs
        args = redactor.args([*w.entry.argv, *w.entry.args], "workload.args_redacted")
        say("workload.name", w.name, "requested")
        say("workload.digest", w.digest, "derived")
        say("workload.args_redacted", [arg[:MOST_TEXT] for arg in args][:1000], "requested")
        say("workload.entry_sha256", w.entry.sha256, "observed")
        say(
            "workload.tree_sha256",
            self.snapshot.get("tree_sha256") or self.intent.get("tree_sha256") or None,
            "observed",
        )
        say("workload.family", w.name, "derived")
        # Other arguments are another question, unless a name says that they are not.
        shapes = w.shapes or f"args:{digest([list(w.entry.argv), list(w.entry.args)])[:16]}"
        say("workload.preset", shapes, "requested" if w.shapes else "derived")
        for name, item in w.fields.items():
            if name in DECLARED:
                say(DECLARED[name], item, "requested")
        self._told(say, redactor)
        for name in ("commit", "branch", "dirty", "diff_sha256", "message"):
            say(f"code.{name}", at_path(self.snapshot, f"git.{name}"), "observed")
        asked = needs.accelerator
        if asked.family != "any" or asked.count:
            say("hw.requested.class", asked.sku or asked.family, "requested")
            say("hw.requested.count", asked.count, "requested")
        say("coupling", needs.coupling.value, "requested")
        say("distributed.nodes", needs.nodes, "requested")
        say("startup.requested", needs.warmth.value, "requested")
        say("startup.seeding", SEEDING in w.tags, "requested")
        primary = w.metrics.primary or getattr(self.kind, "primary", None)
        say("metrics.primary", primary, "requested")
        say("caveats", [redactor.text(c, "caveats") for c in self.caveats], "derived")
        ranks = at_path(self.measured, "launch.ranks")
        if needs.framework is Framework.NONE or 1 in (ranks, at_path(ranks, "v")):
            # One rank leaves nothing to divide.
            say("distributed.mode", w.fields.get("mode", "single"), "derived")
            for name in ("dp", "tp", "pp", "cp", "ep"):
                say(f"distributed.{name}", 1, "derived")

    def _told(self, say: Any, redactor: Redactor) -> None:
        """What the work says of itself under the names of the kind's fields, where nothing was declared."""
        for name, path in DECLARED.items():
            fact = at_path(self.measured, f"fields.{name}")
            if name not in self.workload.fields and "workload" in BY_PATH[path].sources:
                told, when = at_path(fact, "v"), at_path(fact, "at")
                say(path, told, "workload", when if type(when) is int and 0 <= when < 2**53 else None)

    def _started(self, say: Any, redactor: Redactor) -> None:
        told = self._recorded
        say("started_by.mode", "recorded" if told else "routed", "observed")
        say("started_by.launcher", told.get("launcher") if told else "route", "observed")
        if told:
            ids = told.get("ids")
            ids = {str(n): redactor.text(str(v), "started_by.ids") for n, v in dict(ids or {}).items()}
            say("started_by.ids", ids, "observed")
            source = "requested" if told.get("surface_src") == "requested" else "derived"
            say("surface", told.get("surface"), source)

    def _decided(self, say: Any, redactor: Redactor) -> None:
        offer, decision = self._offer, self.decision
        backend = self.handle.get("backend") or self.intent.get("backend")
        say("backend", backend, "observed")
        if offer is not None:
            say("surface", offer.surface.value, "observed")
            say("offer.id", offer.id, "observed")
            say("offer.start_class", offer.start_class.value, "estimated")
            say("offer.quote", plain(offer.quote), "quoted")
            if offer.quote is not None:
                self._cost_estimate(say, offer)
        if decision is not None:
            say("decision.policy", decision.policy, "observed", decision.asked_at_us)
            say("decision.version", decision.policy_version, "observed", decision.asked_at_us)
            say("decision.sentence", decision.sentence, "observed", decision.asked_at_us)
            say("decision.sha256", digest(decision), "derived")
            say("decision.rejections", [plain(r) for r in decision.rejections][:1000], "observed")
        tries = self.intent.get("tries")
        if isinstance(tries, (list, tuple)):
            say(
                "decision.tries",
                [{**t, "what": redactor.text(str(t.get("what")), "decision.tries")} for t in tries],
                "observed",
            )
        plugins = []
        for (thing, name), origin in sorted(self.origins.items()):
            facts = plain(origin)
            plugins.append(
                {
                    "thing": thing,
                    "name": name,
                    **{n: facts.get(n) for n in ("plugin", "distribution", "version", "digest")},
                }
            )
        say("plugins", plugins, "observed")
        for name, told in self.client.items():
            say(f"client.{name}", told, "observed")
        for name, number in self.clock.items():
            say(f"clock.{name}", number, "observed")
        for name, v in self.study.items():
            say(f"study.{name}", v, "requested")
        if self.cost is not None:
            say("cost.currency", self.cost.currency, "estimated" if self.cost.estimate else "observed")
            say("cost.rate_source", self.cost.source, "observed")
            path = "cost.estimate" if self.cost.estimate else "cost.actual"
            say(path, self.cost.amount, "estimated" if self.cost.estimate else "observed")

    def _cost_estimate(self, say: Any, offer: Offer) -> None:
        """Rate times duration, in decimal, to six places."""
        from decimal import Decimal, InvalidOperation

        quote, status = offer.quote, self.status
        assert quote is not None
        say("cost.currency", quote.currency, "quoted")
        say("cost.rate_source", f"{quote.source}, {quote.date}", "quoted")
        if status.started_us is None or status.ended_us is None:
            return
        try:
            amount = Decimal(quote.amount)
            if quote.unit == "hour":
                amount = amount * (status.ended_us - status.started_us) / Decimal(3600 * 1_000_000)
            say("cost.estimate", format(amount.quantize(Decimal("0.000001")), "f"), "estimated")
        except InvalidOperation:
            return

    def _ended(self, say: Any) -> None:
        status = self.status
        at = status.ended_us or self.at
        say("outcome.state", status.state.value, "observed", at)
        stage = at_path(self.measured, "outcome.stage")
        if stage is None or misfit("enum:stage", stage):
            stage = self._stage()
        say("outcome.stage", stage, "derived", at)
        say("outcome.reason_code", status.reason, "observed", at)
        say("outcome.detail", status.detail, "observed", at)
        for name in ("exit_code", "signal", "started_us", "ended_us"):
            say(f"outcome.{name}", getattr(status, name), "observed", at)
        when = {e.get("event"): e.get("at_us") for e in self.events if e.get("attempt") == status.attempt}
        spent = [
            e.get("image_us")
            for e in self.events
            if e.get("event") == "submitted" and e.get("attempt") == status.attempt
        ]
        if spent and type(spent[-1]) is int and spent[-1] >= 0:
            say("timing.image_us", spent[-1], "observed")
        begun, over = when.get("staging"), when.get("submitted")
        if type(begun) is int and type(over) is int and over >= begun:
            say("timing.submit_us", over - begun, "observed", over)

    def _caution(self, found: dict[str, Any]) -> None:
        """Add to the caveats what two facts side by side give away."""
        told: list[str] = list(value(found, "caveats") or [])
        promised, got = value(found, "offer.start_class"), value(found, "startup.class")
        if promised not in (None, "unobserved", got) and got is not None:
            told.append(f"the backend promised a start of class {promised}, and it was {got}")
        offset, step = value(found, "clock.offset_us"), value(found, "clock.stepped_us")
        if type(offset) is int and abs(offset) > SKEWED_US:
            told.append(f"the machine's clock is {offset / 1e6:.1f} s from the client's")
        if step:
            told.append(f"the machine's clock was set by {step / 1e6:.1f} s, or it slept, while the work ran")
        for name, declared in sorted(self.workload.fields.items()):
            said = at_path(self.measured, f"fields.{name}.v")
            if said is not None and plain(declared) != said:
                told.append(f"declared {name} = {declared}, the work says another")
        for name, count in sorted(dict(value(found, "steady.inside") or {}).items()):
            told.append(f"{count} of the steps that count had {name} inside")
        put(found, "caveats", seen(told, "derived", self.at))

    def _stage(self) -> str:
        """How far a run came of which the machine says nothing."""
        if not self.intent:
            return "plan"
        if self.status.reason == "not_submitted":
            return "schedule"
        return "steady" if self.status.started_us is not None else "lease"

    def _follow(self, found: dict[str, Any]) -> None:
        """Fields that follow from others."""
        self._caution(found)
        needs = self.workload.needs
        asked = plain(needs.accelerator)
        others = [plain(item) for item in needs.substitutes]
        put(found, "hw.match", match(asked, others, at_path(found, "hw.observed"), self.at))
        if missing(at_path(found, "kernel.requested")) and value(found, "kernel.observed") is not None:
            asked_for = at_path(self.measured, "kernel.requested.v")
            if isinstance(asked_for, str) and not misfit("text", asked_for):
                put(found, "kernel.requested", seen(asked_for, "workload", self.at))


def _promotes(kind: Kind | None) -> bool:
    return kind is not None and type(kind).promotion is not Kind.promotion
