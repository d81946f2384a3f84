"""The policy `cheapest`: the lowest price of the whole run, as far as prices are known."""

from __future__ import annotations

from collections.abc import Sequence

from compute_router.backend import NoOffer, Offer
from compute_router.hookspecs import hookimpl
from compute_router.policies.conditions import Effect, Rule
from compute_router.policies.deciding import choose, price_key, version
from compute_router.policies.weighing import Standing
from compute_router.policy import Decision, History, Limits, Policy
from compute_router.workload import Workload

__all__ = ["PRICE", "Cheapest", "route_policies"]

PRICE = Rule(id="cheapest", effect=Effect.PREFER, sentence="the lowest price of the whole run decides")


def _by_price(standings: Sequence[Standing]) -> list[Standing]:
    price = price_key(standings)

    def key(standing: Standing) -> tuple[bool, int, bool, int, tuple[str, str]]:
        total = standing.traits.time.total_us
        return *price(standing), total is None, total or 0, standing.name

    for standing in standings:
        known = standing.traits.price
        if known is None:
            standing.note = "; its price is not known, so it stands behind those with one"
        elif price(standing)[0]:
            standing.note = f"; {known.text}, which cannot be compared with the other prices"
        else:
            standing.note = f"; {known.text}, quoted by {known.quote.source} on {known.quote.date}"
    return sorted(standings, key=key)


class Cheapest(Policy):
    """Price of a run up to its timeout, start and staging included where known; then time, then name.

    A machine of one's own has the price its owner gave it; without one it sorts as unknown.
    """

    name = "cheapest"
    version = version((PRICE,))
    about = "the lowest price of the whole run, up to its timeout; unknown prices last"

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
            otherwise=PRICE,
            order=_by_price,
        )


@hookimpl
def route_policies() -> Sequence[Policy]:
    """The policy this module brings."""
    return [Cheapest()]
