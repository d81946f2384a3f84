"""What is seen of an offer in the light of a workload: does it fit, is it warm, may it be waited for."""

from __future__ import annotations

from compute_router.backend import CacheState, Hardware, Offer
from compute_router.policies import prices
from compute_router.policies.question import Question
from compute_router.workload import Accelerator, Coupling, Framework, Role, Warmth

__all__ = [
    "UNKNOWN",
    "accelerators",
    "cache",
    "fits",
    "lacks",
    "limit",
    "may_wait",
    "meets",
    "minutes",
    "multi_gpu",
    "path",
    "per_hour",
    "pin",
    "price_check",
    "queue",
    "sensitive",
    "tight",
    "unwritable",
    "waiting",
]

UNKNOWN = "unknown"
"""How a trait of texts says that nobody knows."""


def fits(question: Question, hardware: Hardware) -> str:
    """`exact`, `more` (of the same accelerator), `substitute` or `no`."""
    needs = question.workload.needs
    how = meets(needs.accelerator, hardware)
    if how != "no":
        return how
    if any(meets(other, hardware) != "no" for other in needs.substitutes):
        return "substitute"
    return "no"


def meets(wanted: Accelerator, hardware: Hardware) -> str:
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


def path(question: Question, offer: Offer) -> str:
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


def cache(question: Question, offer: Offer) -> str:
    """What the compile cache there is for this key. Warm is the same key alone: files of another
    image, another world size or a tarball nobody has used may help and may not (`mixed`)."""
    for role in offer.roles:
        if role.role is Role.COMPILE_CACHE:
            return _CACHES.get(role.state, "mixed")
    # A fresh container that keeps no cache has an empty one.
    kept = Role.COMPILE_CACHE in question.workload.volumes
    return "cold" if offer.clean and not kept else UNKNOWN


def may_wait(question: Question) -> bool:
    return question.limits.wait_us is None or question.limits.wait_us > 0


def waiting(question: Question, offer: Offer) -> str:
    if not offer.busy:
        return "free"
    allowed, queue = question.limits.wait_us, offer.estimates.queue
    if allowed is None:
        return "allowed"
    if allowed <= 0:
        return "not allowed"
    return "too long" if queue is not None and queue.us > allowed else "allowed"


def price_check(question: Question, offer: Offer) -> str:
    limit = question.price_limit
    if limit is None:
        return "no limit"
    if limit < 0:
        return "unreadable"
    quoted = prices.price(question.workload, offer)
    if quoted is None or quoted.per_hour is None or quoted.currency != prices.CURRENCY:
        return UNKNOWN
    return "over" if quoted.per_hour > limit else "within"


def lacks(question: Question, offer: Offer) -> tuple[str, ...]:
    return tuple(sorted(power.value for power in question.needed if power not in offer.powers))


def unwritable(offer: Offer) -> tuple[str, ...]:
    return tuple(sorted({r.role.value for r in offer.roles if r.state is CacheState.UNWRITABLE}))


def per_hour(question: Question, offer: Offer) -> int | None:
    quoted = prices.price(question.workload, offer)
    return None if quoted is None or quoted.currency != prices.CURRENCY else quoted.per_hour


def pin(question: Question, offer: Offer) -> str:
    pin = question.limits.pin
    return "none" if pin is None else "this" if pin == offer.backend else "other"


def minutes(us: int | None) -> int | None:
    return None if us is None else -(-us // 60_000_000)


def accelerators(question: Question) -> int:
    needs = question.workload.needs
    return needs.accelerator.count * needs.nodes


def multi_gpu(question: Question) -> bool:
    family = question.workload.needs.accelerator.family
    return family in ("gpu", "any") and accelerators(question) > 1


def tight(question: Question) -> bool:
    return question.workload.needs.coupling is not Coupling.INDEPENDENT


def sensitive(question: Question) -> bool:
    return question.workload.needs.warmth is Warmth.WARM or Role.COMPILE_CACHE in question.workload.volumes


def limit(question: Question) -> str:
    given = (question.limits.price_limit, question.workload.price_limit)
    bad = sorted(text for text in given if text is not None and prices.amount(text) is None)
    if bad:
        return repr(bad[0][:40])
    figure = question.price_limit
    return "no limit" if figure is None else f"{prices.written(figure)} {prices.CURRENCY} an hour"


def queue(offer: Offer) -> int | None:
    return None if offer.estimates.queue is None else max(0, offer.estimates.queue.us)
