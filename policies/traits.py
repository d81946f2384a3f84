"""The traits that rules are written in: what is known of a workload, of the call, and of one offer."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

from compute_router.backend import Offer, Power, StartClass, Surface
from compute_router.policies import looking, prices, words
from compute_router.policies.question import Question
from compute_router.policies.timing import Time, time_to_result
from compute_router.workload import Coupling, Framework, Purpose, Role, Warmth

__all__ = ["TRAITS", "Trait", "Traits", "Type"]


class Type(enum.StrEnum):
    """What a trait holds. A number or decimal may be unknown, and then no test on it holds."""

    TEXT = "text"
    WORDS = "words"  # several texts; a test holds if it holds for one of them
    NUMBER = "number"
    DECIMAL = "decimal"  # billionths here, a decimal string where the user writes it
    YES_NO = "yes or no"


class Trait(NamedTuple):
    """One trait: its type, what it says, the texts it may be (empty = any), and how it is found.

    `offer` is None exactly for the traits of the work and the call (`of == "work"`). Those of
    `sentence` are figures and names for the sentences; no rule may test them.
    """

    of: str
    type: Type
    about: str
    values: tuple[str, ...]
    get: Callable[[Question, Any], Any]


class Traits(dict[str, Any]):
    """The traits of one offer (or, without one, of the work), each found when it is first looked at.

    `work` holds those of the work, found once for all offers.
    """

    __slots__ = ("_price", "_time", "offer", "question", "work")

    def __init__(self, question: Question, offer: Offer | None = None, work: Traits | None = None) -> None:
        super().__init__()
        self.question, self.offer, self.work = question, offer, work
        self._time: Time | None = None
        self._price: prices.Price | None = None

    def __missing__(self, name: str) -> Any:
        of, _, _, _, get = TRAITS[name]
        if self.work is not None and of == "work":
            return self.work[name]
        value = self[name] = get(self.question, self.offer)
        return value

    @property
    def time(self) -> Time:
        """Time to the first trustworthy result of this offer."""
        if self._time is None and self.offer is not None:
            warm, question = self["cache"] == "warm", self.question
            self._time = time_to_result(self.offer, question.rows, warm=warm, compiling=question.compiling)
        assert self._time is not None
        return self._time

    @property
    def price(self) -> prices.Price | None:
        """The price of this offer; None where none is known."""
        if self._price is None and self.offer is not None and self.offer.quote is not None:
            _, start, staging, _ = self.time.parts
            before = (start or 0) + (staging or 0)
            self._price = prices.price(self.question.workload, self.offer, before)
        return self._price


def _texts(values: type[enum.StrEnum]) -> tuple[str, ...]:
    return tuple(value.value for value in values)


_FAMILIES = ("cpu", "gpu", "tpu")
_T = Type


def _work(type_: Type, about: str, get: Callable[[Question], Any], values: tuple[str, ...] = ()) -> Trait:
    return Trait("work", type_, about, values, lambda question, _: get(question))


def _offer(
    type_: Type, about: str, get: Callable[[Question, Offer], Any], values: tuple[str, ...] = ()
) -> Trait:
    return Trait("offer", type_, about, values, get)


def _said(get: Callable[[Question, Offer], Any]) -> Trait:
    return Trait("sentence", Type.TEXT, "", (), get)


TRAITS: dict[str, Trait] = {
    # Of the work
    "kind": _work(_T.TEXT, "the lane", lambda q: q.workload.kind),
    "purpose": _work(_T.TEXT, "why this run is made", lambda q: q.workload.purpose.value, _texts(Purpose)),
    "name": _work(_T.TEXT, "the workload's name", lambda q: q.workload.name),
    "tags": _work(_T.WORDS, "the workload's tags", lambda q: q.workload.tags),
    "coupling": _work(
        _T.TEXT, "how the parts move", lambda q: q.workload.needs.coupling.value, _texts(Coupling)
    ),
    "tight": _work(_T.YES_NO, "the coupling is single-node or multi-node", looking.tight),
    "nodes": _work(_T.NUMBER, "nodes asked for", lambda q: q.workload.needs.nodes),
    "across_nodes": _work(
        _T.YES_NO,
        "tightly coupled over several nodes",
        lambda q: (
            q.workload.needs.coupling is Coupling.MULTI_NODE
            or (looking.tight(q) and q.workload.needs.nodes > 1)
        ),
    ),
    "family": _work(
        _T.TEXT,
        "the family of accelerator asked for",
        lambda q: q.workload.needs.accelerator.family,
        (*_FAMILIES, "any"),
    ),
    "sku": _work(_T.TEXT, "its name, as in H200", lambda q: q.workload.needs.accelerator.sku),
    "accelerators": _work(_T.NUMBER, "accelerators asked for on all nodes together", looking.accelerators),
    "multi_gpu": _work(_T.YES_NO, "more than one GPU in all", looking.multi_gpu),
    "framework": _work(
        _T.TEXT,
        "whose compiler path the work is on",
        lambda q: q.workload.needs.framework.value,
        _texts(Framework),
    ),
    "warmth": _work(
        _T.TEXT, "the start state the claim needs", lambda q: q.workload.needs.warmth.value, _texts(Warmth)
    ),
    "cache_sensitive": _work(
        _T.YES_NO, "the claim is warm, or a compile-cache volume is declared", looking.sensitive
    ),
    "keeps_cache": _work(
        _T.YES_NO,
        "a compile-cache volume is declared",
        lambda q: Role.COMPILE_CACHE in q.workload.volumes,
    ),
    # Of the call
    "detached": _work(_T.YES_NO, "nobody sits and watches", lambda q: q.limits.detached),
    "cases": _work(_T.NUMBER, "independent runs wanted at once", lambda q: q.limits.cases),
    "may_wait": _work(_T.YES_NO, "a busy place may be waited for", looking.may_wait),
    "pinned": _work(_T.YES_NO, "`--backend` names a backend", lambda q: q.limits.pin is not None),
    "price_limited": _work(_T.YES_NO, "there is a limit on the price", lambda q: q.price_limit is not None),
    "needs_powers": _work(_T.YES_NO, "the work needs more than to be run", lambda q: bool(q.needed)),
    "keeps_volumes": _work(_T.YES_NO, "the work keeps state in volumes", lambda q: bool(q.workload.volumes)),
    # Of the offer
    "backend": _offer(_T.TEXT, "the backend's name", lambda _, o: o.backend),
    "surface": _offer(_T.TEXT, "its surface", lambda _, o: o.surface.value, _texts(Surface)),
    "place_family": _offer(
        _T.TEXT, "the family of accelerator there", lambda _, o: o.hardware.family, _FAMILIES
    ),
    "place_sku": _offer(_T.TEXT, "its name", lambda _, o: o.hardware.sku),
    "place_count": _offer(_T.NUMBER, "accelerators on each node there", lambda _, o: o.hardware.count),
    "place_nodes": _offer(_T.NUMBER, "nodes there", lambda _, o: o.hardware.nodes),
    "fits": _offer(
        _T.TEXT,
        "the hardware against the one asked for; `more` is more GPUs of the same",
        lambda q, o: looking.fits(q, o.hardware),
        ("exact", "more", "substitute", "no"),
    ),
    "enough_nodes": _offer(
        _T.YES_NO,
        "as many nodes as are asked for",
        lambda q, o: o.hardware.nodes >= q.workload.needs.nodes,
    ),
    "path": _offer(_T.TEXT, "whether the work's framework runs there", looking.path, ("same", "other")),
    "cache": _offer(
        _T.TEXT,
        "the compile cache for this key; `mixed` holds something of another image or world size",
        looking.cache,
        ("warm", "cold", "mixed", looking.UNKNOWN),
    ),
    "start_class": _offer(
        _T.TEXT, "in what state a start finds the place", lambda _, o: o.start_class.value, _texts(StartClass)
    ),
    "clean": _offer(_T.YES_NO, "every run starts in a fresh container", lambda _, o: o.clean),
    "fabric": _offer(_T.YES_NO, "its nodes share a fabric of their own", lambda _, o: o.fabric),
    "capacity": _offer(_T.NUMBER, "runs side by side; unknown if it queues", lambda _, o: o.capacity),
    "busy": _offer(_T.YES_NO, "a queue stands before the start", lambda _, o: o.busy),
    "waiting": _offer(
        _T.TEXT,
        "whether its queue may be waited for",
        looking.waiting,
        ("free", "allowed", "not allowed", "too long"),
    ),
    "queue_minutes": _offer(
        _T.NUMBER, "its queue now, rounded up", lambda _, o: looking.minutes(looking.queue(o))
    ),
    "result_minutes": _offer(
        _T.NUMBER,
        "time to the first trustworthy result, rounded up",
        lambda q, o: looking.minutes(Traits(q, o).time.total_us),
    ),
    "price_per_hour": _offer(_T.DECIMAL, f"its price in {prices.CURRENCY}", looking.per_hour),
    "price_check": _offer(
        _T.TEXT,
        "its price per hour against the limit",
        looking.price_check,
        ("no limit", "within", "over", "unreadable", looking.UNKNOWN),
    ),
    "lacks": _offer(
        _T.WORDS, "powers that the work needs and the backend has not", looking.lacks, _texts(Power)
    ),
    "lacking": _offer(_T.YES_NO, "it lacks one", lambda q, o: bool(looking.lacks(q, o))),
    "unwritable": _offer(
        _T.YES_NO, "a volume of the work cannot be written there", lambda _, o: bool(looking.unwritable(o))
    ),
    "pin": _offer(_T.TEXT, "whether `--backend` names this backend", looking.pin, ("none", "this", "other")),
    # For sentences
    "place": _said(lambda _, o: words.place(o)),
    "asked": _said(lambda q, _: q.asked),
    "has": _said(lambda _, o: words.has(o.hardware)),
    "queue": _said(lambda _, o: words.spoken(looking.queue(o)) if o.estimates.queue else "unknown length"),
    "wait": _said(lambda q, _: words.spoken(q.limits.wait_us)),
    "wait_flag": _said(lambda _, o: words.wait_flag(looking.queue(o))),
    "limit": _said(lambda q, _: looking.limit(q)),
    "hourly": _said(lambda q, o: f"{prices.written(looking.per_hour(q, o) or 0)} {prices.CURRENCY} an hour"),
    "lack": _said(lambda q, o: words.listed(looking.lacks(q, o))),
    "roles": _said(lambda _, o: words.listed(looking.unwritable(o))),
    "target": _said(lambda q, _: words.target(q.workload)),
    "pin_name": _said(lambda q, _: q.limits.pin or ""),
}
"""Every trait by name. Adding one makes it usable in rules and, if it says so, in sentences."""
