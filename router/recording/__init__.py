"""Recording: a command that another launcher started is observed where it stands, and leaves a receipt.

Nobody decides anything here: there are no offers and no policy, nothing is copied and nothing is
ever started a second time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compute_router.store import RunFolder

__all__ = ["RECORDED", "is_recorded"]

RECORDED = "recorded"
"""What stands in place of a backend's name; no plugin is asked for it."""


def is_recorded(run: RunFolder) -> bool:
    """Whether this run was recorded, and not routed."""
    return RECORDED in run.labels
