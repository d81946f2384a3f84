"""What a comparison comes to: the records that the terminal, Markdown, JSON and HTML are all made from.

Figures here are floats: this is an answer computed afresh from receipts, not evidence that is kept.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import msgspec

__all__ = [
    "Arm",
    "Comparison",
    "Contrast",
    "Difference",
    "Estimate",
    "Metric",
    "Point",
    "Refusal",
    "Result",
    "Role",
    "Standing",
    "Success",
    "Verdict",
    "Waiver",
]

SCHEMA = "route.comparison/1"


class Result(enum.StrEnum):
    """Whether two arms may be compared at all."""

    EQUAL = "equal"
    """Every field of class K is equal."""
    CONTROLLED = "controlled"
    """They differ in declared variables alone."""
    REFUSED = "refused"


class Verdict(enum.StrEnum):
    """What is said of the candidate against the base, by one metric."""

    FASTER = "faster"
    SLOWER = "slower"
    EQUIVALENT = "equivalent"
    INCONCLUSIVE = "inconclusive"


class Standing(enum.StrEnum):
    """What a verdict may be used for, best first. It never exceeds that of the weakest receipt."""

    CLAIM = "claim"
    EXPLORATORY = "exploratory"
    ANECDOTE = "anecdote"


class Role(enum.StrEnum):
    """What a difference between two arms does to the comparison."""

    VARIED = "varied"
    """Declared to be the variable, or a field of class V."""
    FOLLOWS = "follows"
    """Differs because a varied field does: a confounder that the claim must name."""
    WARNS = "warns"
    REFUSES = "refuses"


class _Base(msgspec.Struct, frozen=True, kw_only=True):
    pass


class Metric(_Base, frozen=True, kw_only=True):
    """A figure that a run has one of."""

    name: str
    unit: str = ""
    higher_is_better: bool = True
    definition: str = ""
    rate: bool = True
    """Whether better means faster: a rate or a time. Of a loss the words are better and worse."""


class Point(_Base, frozen=True, kw_only=True):
    """One run as a comparison sees it: the unit of every statistic."""

    ref: str
    """What the user called it: a path, or a run id."""
    receipt_id: str
    run_id: str
    attempt: int
    arm: str
    state: str
    evidence: str
    counted: bool
    """Whether it enters statistics."""
    why: str = ""
    """Why it does not."""
    kind: str = ""
    purpose: str = ""
    name: str = ""
    started_us: int | None = None
    ended_us: int | None = None
    index: int | None = None
    """Its place in the study's order, from 1."""
    block: int | None = None
    startup: str = "unobserved"
    surface: str = ""
    backend: str = ""
    hardware: str = ""
    """`8 x H200-SXM`."""
    storage: str = ""
    """`data on local_nvme`."""
    cache: str = ""
    """`inductor empty -> miss`."""
    caveats: tuple[str, ...] = ()
    figures: Mapping[str, float] = {}
    """Metric name -> value of this run."""
    timing: Mapping[str, int] = {}
    """Part of the time line (`queue`, `compile`, `steady`, ...) -> microseconds; parts do not overlap and
    add up to the time from submission to the end."""


class Arm(_Base, frozen=True, kw_only=True):
    """The runs of one thing that is compared."""

    name: str
    given: int
    """Receipts given."""
    succeeded: int
    counted: int
    keys: tuple[str, ...] = ()
    """Distinct comparability keys among the counted."""


class Refusal(_Base, frozen=True, kw_only=True):
    """A rule that stands in the way of a verdict."""

    code: str
    """`COLD_VS_WARM`."""
    number: str
    """`R03`."""
    what: str
    why: str
    mend: str
    waivable: bool = True
    waived: bool = False
    because: str = ""
    """The user's reason for waiving it."""


class Waiver(_Base, frozen=True, kw_only=True):
    """A rule that the user sets aside, with the reason; used or not."""

    rule: str
    because: str
    used: bool = False


class Difference(_Base, frozen=True, kw_only=True):
    """One field in which two arms differ."""

    field: str
    cls: str
    """`K`, `W` or `V` of the schema."""
    base: str
    candidate: str
    role: Role


class Success(_Base, frozen=True, kw_only=True):
    """How many runs of each arm did what they were for, and how likely that is by chance (Fisher, exact)."""

    base: int
    base_of: int
    candidate: int
    candidate_of: int
    p: float | None = None


class Estimate(_Base, frozen=True, kw_only=True):
    """One metric of two arms. Ratios are candidate over base, of the values as they are: above 1 means
    more, which is better only if `metric.higher_is_better`."""

    metric: Metric
    n_base: int
    n_candidate: int
    paired: bool
    """Whether runs were compared block by block."""
    base: float | None
    """Geometric mean."""
    candidate: float | None
    base_range: tuple[float, float] | None = None
    candidate_range: tuple[float, float] | None = None
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    """95 %: Welch on logs; paired: t on the differences of logs."""
    interval90: tuple[float, float] | None = None
    """90 %, for the test of equivalence."""
    shift: float | None = None
    """Hodges-Lehmann, as a ratio."""
    shift_interval: tuple[float, float] | None = None
    """95 % at least, exact."""
    shift_interval90: tuple[float, float] | None = None
    """90 % at least."""
    p: float | None = None
    test: str = ""
    """`sign-flip, exact, 64 of 64`, `Mann-Whitney, exact`, ..."""
    p_adjusted: float | None = None
    """By Holm over all that is tested in one comparison."""
    margin: float = 0.02
    verdict: Verdict = Verdict.INCONCLUSIVE
    beyond: bool = False
    """Whether the interval excludes 1 by more than the margin."""
    within: bool = False
    """Whether it is shown that the difference is smaller than the margin: always if equivalent; with faster
    or slower it means a small but certain difference."""
    needed: int | None = None
    """Runs of each arm (blocks, if paired) at which a difference of the margin would be found."""
    notes: tuple[str, ...] = ()


class Contrast(_Base, frozen=True, kw_only=True):
    """A candidate against the base."""

    base: str
    candidate: str
    result: Result
    verdict: Verdict | None = None
    """Of the primary metric; None if it is withheld."""
    standing: Standing | None = None
    sentence: str = ""
    """The answer in one sentence."""
    label: str = ""
    """What kind of claim it is, where that must be said: `joint effect only`, `surface claim, end to end`."""
    refusals: tuple[Refusal, ...] = ()
    """Those waived too."""
    differences: tuple[Difference, ...] = ()
    primary: Estimate | None = None
    others: tuple[Estimate, ...] = ()
    success: Success | None = None
    order: str = ""
    """`interleaved, 6 blocks`, `base first`, ..."""
    cannot: tuple[str, ...] = ()
    """What cannot be concluded."""


class Comparison(_Base, frozen=True, kw_only=True):
    """The whole answer. `arms[0]` is the base; one contrast for each other arm, in order."""

    schema: str = SCHEMA
    version: str = ""
    """Of the router."""
    rules: int = 0
    """Of the receipt's derived fields."""
    arms: tuple[Arm, ...] = ()
    points: tuple[Point, ...] = ()
    contrasts: tuple[Contrast, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    """What stands in the way of all of it: no two arms, files that are no receipts, an incomplete study."""
    waivers: tuple[Waiver, ...] = ()
    vary: tuple[str, ...] = ()
    margin: float = 0.02
    metric: str = ""
    study: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()

    @property
    def refused(self) -> bool:
        """Whether there is no contrast with an answer."""
        return not self.contrasts or all(c.result is Result.REFUSED for c in self.contrasts)
