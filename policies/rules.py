"""The policy `rules`: the user's own rules from `[[rules]]`, on top of what no policy does."""

from __future__ import annotations

from collections.abc import Sequence

from compute_router.backend import NoOffer, Offer
from compute_router.hookspecs import hookimpl
from compute_router.policies.conditions import Effect, Rule
from compute_router.policies.deciding import by_time, choose, refuse_all, version
from compute_router.policies.reading import WrongRule, read_rules
from compute_router.policy import Decision, History, Limits, Policy
from compute_router.workload import Workload

__all__ = ["Rules", "route_policies"]

_UNNAMED = "none of your rules prefers it"


class Rules(Policy):
    """Refuses and ranks by `limits.rules`; the order within a rank is that of `auto`.

    Rules that cannot be read are a refusal that names the rule: running as if they were not
    there could start what they forbid.
    """

    name = "rules"
    version = version()
    about = "your own [[rules]] of route.toml, on top of what no policy does"

    def decide(
        self,
        workload: Workload,
        offers: Sequence[Offer | NoOffer],
        history: History,
        *,
        asked_at: int,
        limits: Limits,
    ) -> Decision:
        try:
            if not limits.rules:
                raise WrongRule(
                    "the policy rules needs rules, and there are none", "write [[rules]] in route.toml"
                )
            rules = read_rules(limits.rules)
        except WrongRule as e:
            return refuse_all(
                self,
                workload,
                offers,
                asked_at=asked_at,
                limits=limits,
                rule="rules",
                sentence=e.what,
                mend=e.mend,
            )
        last = max((rule.rank for rule in rules if rule.effect is Effect.PREFER), default=0)
        return choose(
            self,
            workload,
            offers,
            history,
            asked_at=asked_at,
            limits=limits,
            rules=rules,
            otherwise=Rule(id="unnamed", effect=Effect.PREFER, sentence=_UNNAMED, rank=last + 1),
            order=by_time,
        )


@hookimpl
def route_policies() -> Sequence[Policy]:
    """The policy this module brings."""
    return [Rules()]
