"""Receipts: what was asked for, what was really given, and what it may be used for.

`build` makes one, `verify` checks one offline, `summary.lines` tells one in a few words; the
schema is data in `schema`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["Problem", "build", "receipt_id", "verify"]

_HOME = {"build": "building", "receipt_id": "building", "Problem": "verifying", "verify": "verifying"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'compute_router.receipt' has no attribute {name!r}")
    return getattr(importlib.import_module(f"compute_router.receipt.{_HOME[name]}"), name)


if TYPE_CHECKING:
    from compute_router.receipt.building import build as build
    from compute_router.receipt.building import receipt_id as receipt_id
    from compute_router.receipt.verifying import Problem as Problem
    from compute_router.receipt.verifying import verify as verify
