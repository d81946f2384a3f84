"""Two backends as a third party would write them, whose answers a test scripts beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from compute_router import (
    Backend,
    Estimate,
    Estimates,
    Handle,
    Hardware,
    Health,
    NoOffer,
    Offer,
    Power,
    Record,
    State,
    Status,
    Submission,
    Surface,
    Workload,
    hookimpl,
)

Answer = Callable[[], Any]


class NoSettings(Record, frozen=True, kw_only=True):
    """None."""


class World:
    """What is true out there, and what was asked of it. One for both backends of a test."""

    def __init__(self) -> None:
        self.script: dict[str, list[Any]] = {"first": [], "second": []}
        self.find: dict[str, list[Any]] = {"first": [], "second": []}
        self.runs: dict[str, Handle] = {}
        self.started: list[tuple[str, int]] = []
        self.asked: list[str] = []
        self.ends = Status(state=State.SUCCEEDED, exit_code=0, started_us=1, ended_us=2)


WORLD = World()


class Scripted(Backend):
    """`script` holds what submit does: `ok`, an exception to raise, or a pair (`started`, exception)."""

    surface = Surface.LOCAL
    Settings = NoSettings
    powers = frozenset({Power.DETACH, Power.FOLLOW, Power.CANCEL, Power.SECRETS})
    order: ClassVar[int]

    def health(self) -> Health:
        return Health(backend=self.name, ok=True, summary="well")

    def offers(self, workload: Workload) -> Sequence[Offer | NoOffer]:
        return [
            Offer(
                backend=self.name,
                id="place",
                surface=self.surface,
                hardware=Hardware(family="cpu", cpus=1),
                estimates=Estimates(
                    **{p: Estimate(us=self.order * 10**9) for p in ("queue", "start", "staging")}
                ),
                powers=tuple(sorted(self.powers)),
            )
        ]

    def submit(self, submission: Submission) -> Handle:
        WORLD.asked.append(f"{self.name}.submit")
        if submission.key in WORLD.runs and WORLD.runs[submission.key].attempt == submission.attempt:
            return WORLD.runs[submission.key]
        step = WORLD.script[self.name].pop(0) if WORLD.script[self.name] else "ok"
        begins = step == "ok" or isinstance(step, tuple)
        if begins:
            WORLD.started.append((self.name, submission.attempt))
            WORLD.runs[submission.key] = Handle(
                backend=self.name,
                version=1,
                run_id=submission.id,
                key=submission.key,
                attempt=submission.attempt,
            )
        trouble = step[1] if isinstance(step, tuple) else step
        if isinstance(trouble, Exception):
            raise trouble
        return WORLD.runs[submission.key]

    def find(self, key: str) -> Handle | None:
        WORLD.asked.append(f"{self.name}.find")
        step = WORLD.find[self.name].pop(0) if WORLD.find[self.name] else None
        if step is not None:
            raise step
        found = WORLD.runs.get(key)
        return found if found is not None and found.backend == self.name else None

    def status(self, handle: Handle) -> Status:
        return WORLD.ends

    def logs(self, handle: Handle, offset: int = 0, follow: bool = False) -> Iterator[bytes]:
        yield b"a line\n"[offset:]

    def fetch(self, handle: Handle, into: Path) -> Sequence[Path]:
        (into / "log").write_bytes(b"a line\n")
        return [into / "log"]

    def cancel(self, handle: Handle) -> None:
        WORLD.asked.append(f"{self.name}.cancel")

    def cleanup(self, handle: Handle) -> None:
        WORLD.asked.append(f"{self.name}.cleanup")


class First(Scripted):
    name = "first"
    order = 1


class Second(Scripted):
    name = "second"
    order = 2


@hookimpl
def route_backends() -> list[type[Backend]]:
    return [First, Second]
