"""Whether the hardware that was seen is the hardware that was asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from compute_router.receipt.facts import Fact, at_path, missing, not_applicable, seen, unobserved

__all__ = ["match"]

# From less to more, for saying whether a replacement is better or worse. Data, not a ranking of speed.
ORDER = ("T4", "L4", "A10", "A10G", "L40S", "A100", "H100", "H200", "B200", "B300")


def _words(sku: str) -> list[str]:
    return [w for w in re.split(r"[^A-Z0-9]+", sku.upper()) if w not in ("", "NVIDIA", "TESLA", "GPU")]


def _same(asked: str, got: str) -> str:
    """`exact`, `variant` (same class, other form) or nothing: `H200` asked, `NVIDIA H200` seen is exact."""
    a, g = _words(asked), _words(got)
    if not a or not g or a[0] != g[0]:
        return ""
    return "exact" if a == g or (set(a) <= set(g) and len(a) > 1) or len(g) == 1 else _form(a, g)


def _form(asked: list[str], got: list[str]) -> str:
    # Memory size and the usual form are part of the full name; asking by the class alone allows them.
    return "exact" if len(asked) == 1 and not {"PCIE", "NVL", "MIG"} & set(got) else "variant"


def match(
    requested: Mapping[str, Any], substitutes: Sequence[Mapping[str, Any]], observed: Any, at: int
) -> Fact:
    """The fact `hw.match`, from the accelerator asked for, those listed beside it, and `hw.observed`.

    An accelerator is plain data: `family`, `sku`, `count`. Work that asks for none is matched by
    any machine.
    """
    family = requested.get("family")
    if family == "cpu":
        return seen("exact", "derived", at)
    if family == "any" and not requested.get("count"):
        return unobserved("nothing was asked for")
    sku_fact, count_fact = at_path(observed, "sku"), at_path(observed, "count")
    sku, count = at_path(sku_fact, "v"), at_path(count_fact, "v")
    if not isinstance(sku, str) or type(count) is not int:
        gone = [word for word in (missing(sku_fact), missing(count_fact)) if word]
        if gone and all(word == "not_applicable" for word in gone):
            return not_applicable("there is no hardware to compare")
        return unobserved("the hardware was not observed")
    others = at_path(observed, "cotenants.v")
    if type(others) is int and others > 0:
        return seen("shared", "derived", at)
    if sku.lower() == "cpu" or count == 0:
        return seen("cpu_fallback", "derived", at)
    if family == "any":
        return seen("exact" if count == (requested.get("count") or 1) else "count_mismatch", "derived", at)
    same = _same(str(requested.get("sku", "")), sku)
    if same == "exact":
        # A slice's name counts chips or cores in its maker's way; only GPUs are counted by us.
        counted = family == "gpu" and count != requested.get("count")
        if not counted:
            return seen("exact", "derived", at)
    for other in substitutes:
        if _same(str(other.get("sku", "")), sku) == "exact" and count == other.get("count"):
            return seen("declared", "derived", at)
    if same:
        return seen("count_mismatch" if same == "exact" else "variant", "derived", at)
    a, g = _words(str(requested.get("sku", "")))[:1], _words(sku)
    got = next((word for word in g if word in ORDER), "")
    if a and a[0] in ORDER and got:
        return seen("upgraded" if ORDER.index(got) > ORDER.index(a[0]) else "downgraded", "derived", at)
    return seen("variant", "derived", at)
