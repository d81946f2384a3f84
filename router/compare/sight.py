"""What the rules of a comparison look at: two arms of runs, and what is asked about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from compute_router.compare.figures import Figure, figures
from compute_router.compare.loaded import Loaded
from compute_router.compare.outcome import Difference, Metric, Success

_UNEXECUTED = ("never_executed", "not_submitted")
__all__ = ["Arm", "Run", "Sight"]


class Run:
    """A receipt in its arm. `counted` is whether it enters statistics, `why` why not."""

    __slots__ = ("_figures", "arm", "counted", "loaded", "seeding", "succeeded", "tried", "unexecuted", "why")

    def __init__(self, loaded: Loaded, arm: str) -> None:
        self.loaded, self.arm, self.counted, self.why = loaded, arm, True, ""
        self._figures: Mapping[str, Figure] | None = None
        seen = loaded.seen
        self.succeeded: bool = seen["outcome.state"] == "succeeded" or (
            seen["promotion.status"] == "reject" and seen["checks.success"] is True
        )
        """Whether it did what it was for. A validation that rejects has done its duty."""
        self.seeding: bool = seen["startup.seeding"] is True
        self.unexecuted: bool = not self.succeeded and seen["outcome.reason_code"] in _UNEXECUTED
        """Whether it is proven never to have executed: then it says nothing of what it was to run."""
        self.tried = not self.seeding and not self.unexecuted
        """Whether it counts for success: it was executed, and for its own sake."""

    @property
    def figures(self) -> Mapping[str, Figure]:
        if self._figures is None:
            self._figures = figures(self.loaded)
        return self._figures


@dataclasses.dataclass(eq=False)
class Arm:
    name: str
    runs: tuple[Run, ...]

    @cached_property
    def counted(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.counted)


@dataclasses.dataclass(eq=False)
class Sight:
    """A candidate beside the base, before anything is judged."""

    base: Arm
    candidate: Arm
    metric: Metric | None
    vary: tuple[str, ...] = ()
    varied: frozenset[str] = frozenset()
    """The paths that `vary` stands for."""
    differences: tuple[Difference, ...] = ()
    unobserved: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """Path of class K -> what the runs are called in which nobody saw it."""
    mixed: Mapping[str, Mapping[str, Sequence[str]]] = dataclasses.field(default_factory=dict)
    """Path of class K -> arm -> the values it has within the arm, where they are several."""
    success: Success | None = None
    interleaved: bool = False
    blocks: int = 0
    surface_claim: bool = False
    extra: Sequence[Loaded] = ()
    repeated: Sequence[str] = ()
    signed: Callable[[Loaded], str] | None = None
    """Why the signature of a receipt is not good; nothing if it is. None where none is asked for."""
    others: Sequence[Run] = ()
    """The runs of further arms of the study."""

    @property
    def arms(self) -> tuple[Arm, Arm]:
        return self.base, self.candidate

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """Those that count, of both arms."""
        return self.base.counted + self.candidate.counted

    @cached_property
    def given(self) -> tuple[Run, ...]:
        return self.base.runs + self.candidate.runs

    @property
    def purpose(self) -> str:
        return self.base.runs[0].loaded.purpose if self.base.runs else ""

    def difference(self, path: str) -> Difference | None:
        return next((d for d in self.differences if d.field == path), None)
