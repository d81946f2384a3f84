"""What it costs a Python process of a run to be seen from inside: processor time of a start."""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from measuring import machine

GOAL_MS = 1.0


def start(env: dict[str, str]) -> float:
    """Milliseconds of processor time of one start of Python that does nothing."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "pass"], env=env, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    from compute_router.supervisor.report import route_report

    report = str(Path(route_report.__file__).resolve().parent)
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("ROUTE_", "PYTHON"))}
    with tempfile.TemporaryDirectory() as folder:
        ways = {
            "plain": plain,
            "on the path, no run": {**plain, "PYTHONPATH": report},
            "in a run": {**plain, "PYTHONPATH": report, "ROUTE_INSIDE": f"{folder}/inside.jsonl"},
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for env in ways.values():
            start(env)
        for _ in range(rounds):
            for name, env in ways.items():
                found[name].append(start(env))
    print(machine())
    print(f"\n| a start of Python | CPU ms | more than plain | goal {GOAL_MS:g} ms |\n|---|---|---|---|")
    floor = statistics.median(found["plain"])
    for name, each in found.items():
        more = statistics.median(each) - floor
        met = "" if name == "plain" else "met" if more <= GOAL_MS else "**missed**"
        print(f"| {name} | {floor + more:.2f} | {more:+.2f} | {met} |")


if __name__ == "__main__":
    main()
