"""The policy `fastest`: the least time to the first trustworthy result, whatever it costs."""

from __future__ import annotations

from collections.abc import Sequence

from compute_router.backend import NoOffer, Offer
from compute_router.hookspecs import hookimpl
from compute_router.policies.conditions import Effect, Rule
from compute_router.policies.deciding import choose, version
from compute_router.policies.weighing import Standing
from compute_router.policy import Decision, History, Limits, Policy
from compute_router.workload import Workload

__all__ = ["TIME", "Fastest", "route_policies"]

TIME = Rule(id="fastest", effect=Effect.PREFER, sentence="the least time decides, whatever it costs")


def _by_time_alone(standings: Sequence[Standing]) -> list[Standing]:
    def key(standing: Standing) -> tuple[bool, int, tuple[str, str]]:
        total = standing.traits.time.total_us
        return total is None, total or 0, standing.name

    return sorted(standings, key=key)


class Fastest(Policy):
    """Time only; places whose time nobody knows come last, then the name decides."""

    name = "fastest"
    version = version((TIME,))
    about = "the least time to the first trustworthy result, whatever it costs"

    def decide(
        self,
        workload: Workload,
        offers: Sequence[Offer | NoOffer],
        history: History,
        *,
        asked_at: int,
        limits: Limits,
    ) -> Decision:
        return choose(
            self,
            workload,
            offers,
            history,
            asked_at=asked_at,
            limits=limits,
            rules=(),
            otherwise=TIME,
            order=_by_time_alone,
        )


@hookimpl
def route_policies() -> Sequence[Policy]:
    """The policy this module brings."""
    return [Fastest()]
