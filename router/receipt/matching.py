"""Whether the hardware that was seen is the hardware that was asked for, as a fact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compute_router.receipt.facts import Fact, at_path, missing, not_applicable, seen, unobserved
from compute_router.supervisor.observing.skus import judge

__all__ = ["match"]


def match(
    requested: Mapping[str, Any], substitutes: Sequence[Mapping[str, Any]], observed: Any, at: int
) -> Fact:
    """The fact `hw.match`, from the accelerator asked for, those listed beside it, and `hw.observed`.

    An accelerator is plain data: `family`, `sku`, `count`. Work that asks for none is matched by
    any machine. The rule itself is the machine's, which stops a start by it before user code.
    """
    if requested.get("family") == "any" and not requested.get("count"):
        return unobserved("nothing was asked for")
    sku_fact, count_fact = at_path(observed, "sku"), at_path(observed, "count")
    sku, count = at_path(sku_fact, "v"), at_path(count_fact, "v")
    others = at_path(observed, "cotenants.v")
    word = judge(
        requested,
        substitutes,
        sku if isinstance(sku, str) else None,
        count if type(count) is int else None,
        others if type(others) is int else None,
    )
    if word != "unobserved":
        return seen(word, "derived", at)
    gone = [word for word in (missing(sku_fact), missing(count_fact)) if word]
    if gone and all(word == "not_applicable" for word in gone):
        return not_applicable("there is no hardware to compare")
    return unobserved("the hardware was not observed")
