"""What the benchmarks share: interleaved runs of commands, medians, and a table with ratios to a floor."""

from __future__ import annotations

import dataclasses
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

__all__ = ["ROUTE", "Measured", "interleaved", "machine", "process", "table"]

ROUTE = [
    str(path) if (path := Path(sys.executable).with_name("route")).exists() else "route",
]
"""The command of the environment this script runs in."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """Durations of one thing in milliseconds, in the order they were taken."""

    name: str
    ms: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.ms)

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the most."""
        return min(self.ms), max(self.ms)


def process(
    argv: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None = None
) -> Callable[[], float | None]:
    """A whole process, from its start to its end. Raises `RuntimeError` with its output if it fails."""
    merged = {**os.environ, **(env or {})}

    def once() -> None:
        done = subprocess.run(argv, cwd=cwd, env=merged, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)} ended with {done.returncode}: {done.stderr[-2000:]}")

    return once


def interleaved(
    things: Mapping[str, Callable[[], float | None]], *, runs: int, warm_up: int = 1
) -> dict[str, Measured]:
    """Run every thing `runs` times, one of each in turn, so that a change of the machine's mood hits
    all of them alike. The first `warm_up` rounds are not counted (byte code, page cache). A thing
    that returns milliseconds is taken by its word: it has more to do than is to be measured."""
    taken: dict[str, list[float]] = {name: [] for name in things}
    for number in range(warm_up + runs):
        for name, once in things.items():
            begin = time.perf_counter()
            told = once()
            spent = (time.perf_counter() - begin) * 1e3 if told is None else told
            if number >= warm_up:
                taken[name].append(spent)
    return {name: Measured(name, tuple(ms)) for name, ms in taken.items()}


def table(
    title: str,
    measured: Mapping[str, Measured],
    *,
    floor: str,
    goals: Mapping[str, tuple[str, float]] | None = None,
) -> None:
    """Print medians, spread and the ratio to `floor`. A goal is another row's name and the ratio to it."""
    print(f"\n{title}")
    width = max(len(name) for name in measured)
    print(f"  {'':{width}}  median ms     min     max   x floor")
    base = measured[floor].median
    for name, one in measured.items():
        least, most = one.spread
        line = f"  {name:{width}}  {one.median:9.1f} {least:7.1f} {most:7.1f} {one.median / base:9.2f}"
        if goals and name in goals:
            other, ratio = goals[name]
            got = one.median / measured[other].median
            met = "met" if got <= ratio else "MISSED"
            line += f"   goal <= {ratio:g} x {other}: {got:.2f}, {met}"
        print(line)


def machine() -> str:
    """One line that says what was measured on."""
    try:
        load = f", load {os.getloadavg()[0]:.2f}"
    except OSError:
        load = ""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors{load}, " + (
        f"Python {platform.python_version()}"
    )
