"""The traits that rules are written in: what is known of a workload, of the call, and of one offer."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from compute_router.backend import CacheState, Hardware, Offer, Power, StartClass, Surface
from compute_router.policies import prices, words
from compute_router.policies.timing import Rows, Time, compiles, time_to_result
from compute_router.policy import Limits
from compute_router.workload import Accelerator, Coupling, Framework, Purpose, Role, Warmth, Workload

__all__ = ["TRAITS", "UNKNOWN", "Question", "Trait", "Traits", "Type"]

UNKNOWN = "unknown"
"""How a trait of texts says that nobody knows."""


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


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked of a policy, the same for every offer: the workload, the limits, past runs."""

    workload: Workload
    limits: Limits
    rows: Rows

    @functools.cached_property
    def work(self) -> Traits:
        """The traits of the work and the call alone."""
        return Traits(self, None)

    @functools.cached_property
    def compiling(self) -> bool:
        return compiles(self.workload)

    @functools.cached_property
    def needed(self) -> frozenset[Power]:
        """The powers that the workload and the call need of a backend."""
        work = self.workload
        asked = {
            Power.SECRETS: work.secrets,
            Power.VOLUMES: work.volumes or work.stage,
            Power.BUCKETS: work.buckets,
            Power.IMAGES: work.image is not None,
            Power.DETACH: self.limits.detached,
        }
        return frozenset(power for power, wanted in asked.items() if wanted)

    @functools.cached_property
    def price_limit(self) -> int | None:
        """The lower of the limits in billionths per hour; None if there is none, -1 if one is no price."""
        given = {self.limits.price_limit, self.workload.price_limit} - {None}
        figures = [prices.amount(text) for text in given if text is not None]
        if not figures:
            return None
        return min(-1 if figure is None else figure for figure in figures)

    @functools.cached_property
    def asked(self) -> str:
        return words.asked(self.workload)


class Traits(dict[str, Any]):
    """The traits of one offer (or, without one, of the work), each found when it is first looked at."""

    __slots__ = ("_price", "_time", "offer", "question")

    def __init__(self, question: Question, offer: Offer | None) -> None:
        super().__init__()
        self.question = question
        self.offer = offer
        self._time: Time | None = None
        self._price: prices.Price | None = None

    def __missing__(self, name: str) -> Any:
        of, _, _, _, get = TRAITS[name]
        if self.offer is not None and of == "work":
            return self.question.work[name]
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


def _fits(question: Question, hardware: Hardware) -> str:
    """`exact`, `more` (of the same accelerator), `substitute` or `no`."""
    needs = question.workload.needs
    how = _meets(needs.accelerator, hardware)
    if how != "no":
        return how
    if any(_meets(other, hardware) != "no" for other in needs.substitutes):
        return "substitute"
    return "no"


def _meets(wanted: Accelerator, hardware: Hardware) -> str:
    if wanted.family == "any":
        enough = hardware.count >= wanted.count or (hardware.family == "cpu" and wanted.count <= 1)
        return "exact" if enough else "no"
    if wanted.family != hardware.family:
        return "no"
    if wanted.family == "cpu":
        return "exact"
    if wanted.sku.lower() != hardware.sku.lower():
        return "no"
    if wanted.count == hardware.count:
        return "exact"
    # A slice is taken whole; of a machine with several GPUs some may be used.
    return "more" if wanted.family == "gpu" and hardware.count > wanted.count else "no"


_SOME = frozenset(Framework) - {Framework.NONE}


def _path(question: Question, offer: Offer) -> str:
    """Whether the framework the work is on runs there: XLA work not on CUDA, torch work not on XLA."""
    framework, family = question.workload.needs.framework, offer.hardware.family
    if framework is Framework.NONE:
        return "same"
    if framework is Framework.ANY:
        good = not _SOME.isdisjoint(offer.frameworks)
    else:
        other = "gpu" if framework is Framework.XLA else "tpu"
        good = framework in offer.frameworks and family != other
    return "same" if good else "other"


_CACHES = {
    CacheState.WARM_SAME_KEY: "warm",
    CacheState.EMPTY: "cold",
    CacheState.DISABLED: "cold",
    CacheState.UNOBSERVED: UNKNOWN,
    CacheState.UNWRITABLE: UNKNOWN,
}


def _cache(question: Question, offer: Offer) -> str:
    """What the compile cache there is for this key. Warm is the same key alone: files of another
    image, another world size or a tarball nobody has used may help and may not (`mixed`)."""
    for role in offer.roles:
        if role.role is Role.COMPILE_CACHE:
            return _CACHES.get(role.state, "mixed")
    # A fresh container that keeps no cache has an empty one.
    kept = Role.COMPILE_CACHE in question.workload.volumes
    return "cold" if offer.clean and not kept else UNKNOWN


def _may_wait(question: Question) -> bool:
    return question.limits.wait_us is None or question.limits.wait_us > 0


def _waiting(question: Question, offer: Offer) -> str:
    if not offer.busy:
        return "free"
    allowed, queue = question.limits.wait_us, offer.estimates.queue
    if allowed is None:
        return "allowed"
    if allowed <= 0:
        return "not allowed"
    return "too long" if queue is not None and queue.us > allowed else "allowed"


def _price_check(question: Question, offer: Offer) -> str:
    limit = question.price_limit
    if limit is None:
        return "no limit"
    if limit < 0:
        return "unreadable"
    quoted = prices.price(question.workload, offer)
    if quoted is None or quoted.per_hour is None or quoted.currency != prices.CURRENCY:
        return UNKNOWN
    return "over" if quoted.per_hour > limit else "within"


def _lacks(question: Question, offer: Offer) -> tuple[str, ...]:
    return tuple(sorted(power.value for power in question.needed if power not in offer.powers))


def _unwritable(offer: Offer) -> tuple[str, ...]:
    return tuple(sorted({r.role.value for r in offer.roles if r.state is CacheState.UNWRITABLE}))


def _per_hour(question: Question, offer: Offer) -> int | None:
    quoted = prices.price(question.workload, offer)
    return None if quoted is None or quoted.currency != prices.CURRENCY else quoted.per_hour


def _pin(question: Question, offer: Offer) -> str:
    pin = question.limits.pin
    return "none" if pin is None else "this" if pin == offer.backend else "other"


def _minutes(us: int | None) -> int | None:
    return None if us is None else -(-us // 60_000_000)


def _accelerators(question: Question) -> int:
    needs = question.workload.needs
    return needs.accelerator.count * needs.nodes


def _multi_gpu(question: Question) -> bool:
    family = question.workload.needs.accelerator.family
    return family in ("gpu", "any") and _accelerators(question) > 1


def _tight(question: Question) -> bool:
    return question.workload.needs.coupling is not Coupling.INDEPENDENT


def _sensitive(question: Question) -> bool:
    return question.workload.needs.warmth is Warmth.WARM or Role.COMPILE_CACHE in question.workload.volumes


def _limit(question: Question) -> str:
    given = (question.limits.price_limit, question.workload.price_limit)
    bad = sorted(text for text in given if text is not None and prices.amount(text) is None)
    if bad:
        return repr(bad[0][:40])
    figure = question.price_limit
    return "no limit" if figure is None else f"{prices.written(figure)} {prices.CURRENCY} an hour"


def _queue(offer: Offer) -> int | None:
    return None if offer.estimates.queue is None else max(0, offer.estimates.queue.us)


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
    "tight": _work(_T.YES_NO, "the coupling is single-node or multi-node", _tight),
    "nodes": _work(_T.NUMBER, "nodes asked for", lambda q: q.workload.needs.nodes),
    "across_nodes": _work(
        _T.YES_NO,
        "tightly coupled over several nodes",
        lambda q: (
            q.workload.needs.coupling is Coupling.MULTI_NODE or (_tight(q) and q.workload.needs.nodes > 1)
        ),
    ),
    "family": _work(
        _T.TEXT,
        "the family of accelerator asked for",
        lambda q: q.workload.needs.accelerator.family,
        (*_FAMILIES, "any"),
    ),
    "sku": _work(_T.TEXT, "its name, as in H200", lambda q: q.workload.needs.accelerator.sku),
    "accelerators": _work(_T.NUMBER, "accelerators asked for on all nodes together", _accelerators),
    "multi_gpu": _work(_T.YES_NO, "more than one GPU in all", _multi_gpu),
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
        _T.YES_NO, "the claim is warm, or a compile-cache volume is declared", _sensitive
    ),
    "keeps_cache": _work(
        _T.YES_NO,
        "a compile-cache volume is declared",
        lambda q: Role.COMPILE_CACHE in q.workload.volumes,
    ),
    # Of the call
    "detached": _work(_T.YES_NO, "nobody sits and watches", lambda q: q.limits.detached),
    "cases": _work(_T.NUMBER, "independent runs wanted at once", lambda q: q.limits.cases),
    "may_wait": _work(_T.YES_NO, "a busy place may be waited for", _may_wait),
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
        lambda q, o: _fits(q, o.hardware),
        ("exact", "more", "substitute", "no"),
    ),
    "enough_nodes": _offer(
        _T.YES_NO,
        "as many nodes as are asked for",
        lambda q, o: o.hardware.nodes >= q.workload.needs.nodes,
    ),
    "path": _offer(_T.TEXT, "whether the work's framework runs there", _path, ("same", "other")),
    "cache": _offer(
        _T.TEXT,
        "the compile cache for this key; `mixed` holds something of another image or world size",
        _cache,
        ("warm", "cold", "mixed", UNKNOWN),
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
        _waiting,
        ("free", "allowed", "not allowed", "too long"),
    ),
    "queue_minutes": _offer(_T.NUMBER, "its queue now, rounded up", lambda _, o: _minutes(_queue(o))),
    "result_minutes": _offer(
        _T.NUMBER,
        "time to the first trustworthy result, rounded up",
        lambda q, o: _minutes(Traits(q, o).time.total_us),
    ),
    "price_per_hour": _offer(_T.DECIMAL, f"its price in {prices.CURRENCY}", _per_hour),
    "price_check": _offer(
        _T.TEXT,
        "its price per hour against the limit",
        _price_check,
        ("no limit", "within", "over", "unreadable", UNKNOWN),
    ),
    "lacks": _offer(_T.WORDS, "powers that the work needs and the backend has not", _lacks, _texts(Power)),
    "lacking": _offer(_T.YES_NO, "it lacks one", lambda q, o: bool(_lacks(q, o))),
    "unwritable": _offer(
        _T.YES_NO, "a volume of the work cannot be written there", lambda _, o: bool(_unwritable(o))
    ),
    "pin": _offer(_T.TEXT, "whether `--backend` names this backend", _pin, ("none", "this", "other")),
    # For sentences
    "place": _said(lambda _, o: words.place(o)),
    "asked": _said(lambda q, _: q.asked),
    "has": _said(lambda _, o: words.has(o.hardware)),
    "queue": _said(lambda _, o: words.spoken(_queue(o)) if o.estimates.queue else "unknown length"),
    "wait": _said(lambda q, _: words.spoken(q.limits.wait_us)),
    "wait_flag": _said(lambda _, o: words.wait_flag(_queue(o))),
    "limit": _said(lambda q, _: _limit(q)),
    "hourly": _said(lambda q, o: f"{prices.written(_per_hour(q, o) or 0)} {prices.CURRENCY} an hour"),
    "lack": _said(lambda q, o: words.listed(_lacks(q, o))),
    "roles": _said(lambda _, o: words.listed(_unwritable(o))),
    "target": _said(lambda q, _: words.target(q.workload)),
    "pin_name": _said(lambda q, _: q.limits.pin or ""),
}
"""Every trait by name. Adding one makes it usable in rules and, if it says so, in sentences."""
