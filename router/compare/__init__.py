"""Compare receipts: which of two things is faster, or why that cannot be said. Pure functions of files.

`load` reads receipts, whatever they are; `gather` sorts them into arms; `compare` answers. Nothing
here starts anything, asks a network or needs a store.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["Comparison", "compare", "gather", "load"]

_HOME = {"Comparison": "outcome", "compare": "comparing", "gather": "gathering", "load": "loading"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'compute_router.compare' has no attribute {name!r}")
    return getattr(importlib.import_module(f"compute_router.compare.{_HOME[name]}"), name)


if TYPE_CHECKING:
    from compute_router.compare.comparing import compare as compare
    from compute_router.compare.gathering import gather as gather
    from compute_router.compare.loading import load as load
    from compute_router.compare.outcome import Comparison as Comparison
