"""The bundled policies, asked in one line; workloads and offers are those of the shipped kit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compute_router.backend import NoOffer, Offer
from compute_router.policies.auto import Auto
from compute_router.policies.cheapest import Cheapest
from compute_router.policies.fastest import Fastest
from compute_router.policies.pinned import Pinned
from compute_router.policies.rules import Rules
from compute_router.policy import Decision, History, Limits, Policy
from compute_router.testing.fakes import HOUR, MINUTE, Drawn, estimates, hardware, offer, work
from compute_router.workload import Workload

__all__ = [
    "HOUR",
    "MINUTE",
    "POLICIES",
    "Drawn",
    "decide",
    "estimates",
    "hardware",
    "offer",
    "order",
    "why",
    "work",
]

POLICIES: tuple[Policy, ...] = (Auto(), Cheapest(), Fastest(), Pinned(), Rules())


def decide(
    workload: Workload,
    offers: Sequence[Offer | NoOffer],
    *,
    policy: Policy = POLICIES[0],
    history: History | None = None,
    **limits: Any,
) -> Decision:
    return policy.decide(
        workload, offers, history or History(), asked_at=1_700_000_000_000_000, limits=Limits(**limits)
    )


def order(decision: Decision) -> list[str]:
    """The backends that may be used, best first."""
    return [ranked.backend for ranked in decision.ranked]


def why(decision: Decision, backend: str) -> str:
    """The rule by which the one place of `backend` was refused."""
    (found,) = [r.rule for r in decision.rejections if r.backend == backend]
    return found
