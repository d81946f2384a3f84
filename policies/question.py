"""What is asked of a policy, the same for every offer, with what follows from it worked out once."""

from __future__ import annotations

import dataclasses
import functools

from compute_router.backend import Power
from compute_router.policies import prices, words
from compute_router.policies.timing import Rows, compiles
from compute_router.policy import Limits
from compute_router.workload import Workload

__all__ = ["Question"]


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked of a policy, the same for every offer: the workload, the limits, past runs."""

    workload: Workload
    limits: Limits
    rows: Rows

    @functools.cached_property
    def compiling(self) -> bool:
        return compiles(self.workload)

    @functools.cached_property
    def needed(self) -> frozenset[Power]:
        """The powers that the workload and the call need of a backend."""
        work = self.workload
        asked = {
            Power.SECRETS: work.secrets,
            Power.VOLUMES: work.volumes or work.stage,
            Power.BUCKETS: work.buckets,
            Power.IMAGES: work.image is not None,
            Power.DETACH: self.limits.detached,
        }
        return frozenset(power for power, wanted in asked.items() if wanted)

    @functools.cached_property
    def price_limit(self) -> int | None:
        """The lower of the limits in billionths per hour; None if there is none, -1 if one is no price."""
        given = {self.limits.price_limit, self.workload.price_limit} - {None}
        figures = [prices.amount(text) for text in given if text is not None]
        if not figures:
            return None
        return min(-1 if figure is None else figure for figure in figures)

    @functools.cached_property
    def asked(self) -> str:
        return words.asked(self.workload)
