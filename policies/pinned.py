"""The policy `pinned`: the backend named by `--backend`, or a refusal that says why not."""

from __future__ import annotations

from collections.abc import Sequence

from compute_router.backend import NoOffer, Offer
from compute_router.hookspecs import hookimpl
from compute_router.policies.conditions import Effect, Rule
from compute_router.policies.deciding import by_time, choose, refuse_all, version
from compute_router.policy import Decision, History, Limits, Policy
from compute_router.workload import Workload

__all__ = ["PINNED", "Pinned", "route_policies"]

PINNED = Rule(id="pinned", effect=Effect.PREFER, sentence="the run is pinned to {backend}")


class Pinned(Policy):
    """Only the places of one backend; what no policy does, this one does not either."""

    name = "pinned"
    version = version((PINNED,))
    about = "the backend named by --backend, or a refusal that says why not"

    def decide(
        self,
        workload: Workload,
        offers: Sequence[Offer | NoOffer],
        history: History,
        *,
        asked_at: int,
        limits: Limits,
    ) -> Decision:
        if limits.pin is None:
            return refuse_all(
                self,
                workload,
                offers,
                asked_at=asked_at,
                limits=limits,
                rule="pin",
                sentence="the policy pinned needs to be told a backend",
                mend="--backend NAME (route backends lists them), or --policy auto",
            )
        return choose(
            self,
            workload,
            offers,
            history,
            asked_at=asked_at,
            limits=limits,
            rules=(),
            otherwise=PINNED,
            order=by_time,
        )


@hookimpl
def route_policies() -> Sequence[Policy]:
    """The policy this module brings."""
    return [Pinned()]
