"""Studies: a designed comparison, run in an order fixed beforehand, that survives its client.

`read` turns a study.toml into a `StudyPlan`, `drive` runs it, `receipts` tells what it has come to:
the one thing that `compute_router.compare` needs to know about it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["Missing", "Standing", "StudyPlan", "Turn", "read", "receipts"]

_HOME = {
    "Missing": "standing",
    "Standing": "standing",
    "StudyPlan": "plan",
    "Turn": "plan",
    "read": "reading",
    "receipts": "standing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'compute_router.studies' has no attribute {name!r}")
    return getattr(importlib.import_module(f"compute_router.studies.{_HOME[name]}"), name)


if TYPE_CHECKING:
    from compute_router.studies.plan import StudyPlan as StudyPlan
    from compute_router.studies.plan import Turn as Turn
    from compute_router.studies.reading import read as read
    from compute_router.studies.standing import Missing as Missing
    from compute_router.studies.standing import Standing as Standing
    from compute_router.studies.standing import receipts as receipts
