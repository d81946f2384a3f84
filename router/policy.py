"""The contract of a policy: a pure choice among offers, and the reasons it leaves behind."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from compute_router.backend import NoOffer, Offer, Source, StartClass
from compute_router.records import Record
from compute_router.workload import Workload

__all__ = ["Decision", "History", "Limits", "Outcome", "Past", "Policy", "Ranked", "Rejection"]


class Outcome(enum.StrEnum):
    """What was decided. `wait` and `warm` name the place and say what to do before it may be used."""

    RUN = "run"
    WAIT = "wait"
    WARM = "warm"
    REFUSED = "refused"


class Past(Record, frozen=True, kw_only=True):
    """What earlier receipts of one cache key saw on one backend in one start class.

    Medians in microseconds over `n` successful runs; None where no receipt tells.
    """

    backend: str
    offer_id: str
    key: str
    start_class: StartClass
    warm: bool
    n: int
    queue_us: int | None = None
    start_us: int | None = None
    staging_us: int | None = None
    compile_us: int | None = None


class History(Record, frozen=True, kw_only=True):
    """Past runs that bear on this workload, aggregated; never longer than the places there are."""

    key: str = ""
    rows: tuple[Past, ...] = ()


class Limits(Record, frozen=True, kw_only=True):
    """What the caller allows and how the run is made.

    `wait_us`: how long a busy place may be waited for (0 = not at all, None = for ever).
    `detached`: nobody sits and watches. `cases`: how many independent runs of this workload are
    wanted at once. `price_limit`: decimal string per hour. `pin`: the backend given by
    `--backend`. `rules`: the user's own rules, as read from TOML, for the policy `rules`.
    """

    wait_us: int | None = 0
    detached: bool = False
    cases: int = 1
    price_limit: str | None = None
    pin: str | None = None
    rules: tuple[dict[str, object], ...] = ()


class Rejection(Record, frozen=True, kw_only=True):
    """Why one place is not used: the rule's id, its sentence, and what would mend it."""

    backend: str
    offer_id: str | None
    rule: str
    sentence: str
    mend: str = ""


class Ranked(Record, frozen=True, kw_only=True):
    """One place that may be used, best first.

    `total_us` is the time to the first trustworthy result, None if unknown; `source` says
    whether it comes from receipts (`observed`) or from the backend (`estimated`).
    """

    backend: str
    offer_id: str
    rank: int
    rule: str
    sentence: str
    total_us: int | None = None
    source: Source = Source.ESTIMATED


class Decision(Record, frozen=True, kw_only=True):
    """What a policy chose and why. `sentence` is the deciding one; it is printed first.

    `ranked` is in order of preference and is what core falls back along; it is empty exactly
    when the outcome is `refused`. For `wait` and `warm` the first of `ranked` is the place meant.
    """

    schema: str = "route.decision/1"
    policy: str
    policy_version: str
    workload_digest: str
    asked_at_us: int
    outcome: Outcome
    sentence: str
    mend: str = ""
    ranked: tuple[Ranked, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    limits: Limits = Limits()


class Policy(ABC):
    """Chooses among offers. Pure: no clock, no network, no randomness, no state."""

    name: ClassVar[str]
    version: ClassVar[str]
    about: ClassVar[str]

    @abstractmethod
    def decide(
        self,
        workload: Workload,
        offers: Sequence[Offer | NoOffer],
        history: History,
        *,
        asked_at: int,
        limits: Limits,
    ) -> Decision:
        """Rank what may be used and give a reason for the rest. `asked_at` in epoch microseconds.

        The same inputs give the same bytes; the order of `offers` does not matter. Every offer
        and NoOffer is found again in `ranked` or in `rejections`. Never raises on valid records.
        """
