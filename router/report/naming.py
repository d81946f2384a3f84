"""What receipts are called in a report: runs by their ids, so that nobody's home folder is told."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from compute_router.compare.outcome import Comparison

__all__ = ["renamed", "renamer"]


def renamer(comparison: Comparison) -> Callable[[str], str]:
    """What puts `ID` in place of `.../runs/ID/receipt.json` of every store that `comparison` has runs of."""
    homes = {
        p.ref[: -len(end)]
        for p in comparison.points
        if p.ref.endswith(end := f"/runs/{p.run_id}/receipt.json")
    }
    if not homes:
        return str
    stored = "|".join(re.escape(home) for home in sorted(homes, key=len, reverse=True))
    found = re.compile(rf"(?:{stored})/runs/([0-9a-z]{{26}})(?:/receipt\.json)?")
    return lambda text: found.sub(r"\1", text)


def renamed(comparison: Comparison) -> Comparison:
    """`comparison` with runs of a store called by their ids, wherever it speaks of them."""
    rename = renamer(comparison)
    if rename is str:
        return comparison

    def walk(data: Any) -> Any:
        if isinstance(data, str):
            return rename(data)
        if isinstance(data, dict):
            return {walk(key): walk(value) for key, value in data.items()}
        return [walk(one) for one in data] if isinstance(data, (list, tuple)) else data

    return msgspec.convert(walk(msgspec.to_builtins(comparison)), Comparison)
