"""What observing costs: processor time of a look and of a sample, and the memory of whoever samples."""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import machine

TESTS = Path(__file__).resolve().parent.parent / "tests"
GOAL_SHARE = 0.001
"""Of one core, for everything that is sampled beside the work."""
GOAL_RSS = 30 << 20
EVERY_US = 10_000_000


def spent() -> float:
    """Microseconds of processor time of this process and of the children it has waited for."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        total += used.ru_utime + used.ru_stime
    return total * 1e6


def cost(call: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Mean processor time and median wall time of a call, in microseconds."""
    call()
    walls = []
    begun = spent()
    for _ in range(rounds):
        at = time.perf_counter()
        call()
        walls.append((time.perf_counter() - at) * 1e6)
    return (spent() - begun) / rounds, statistics.median(walls)


def memory(pid: int) -> tuple[int, int]:
    """Resident bytes of a process, and those that it shares with none."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if rest.strip().endswith("kB"):
            found[name] = int(rest.split()[0]) * 1024
    return found["Rss"], found["Private_Clean"] + found["Private_Dirty"]


def row(name: str, cpu: float, wall: float, share: bool = False) -> None:
    per = f"{cpu / EVERY_US * 100:.4f}%" if share else ""
    met = ("met" if cpu / EVERY_US <= GOAL_SHARE else "**missed**") if share else ""
    print(f"| {name} | {cpu:,.0f} | {wall:,.0f} | {per} | {met} |")


def watched(folder: Path, boards: Any) -> None:
    """The memory of watcher and reader of GPUs in a real run on eight stand-in GPUs."""
    import supervisor_driver as driver

    place = driver.Place(folder)
    try:
        link = place.link()
        asked = {"family": "gpu", "sku": "H200", "substitutes": [], "count": 8, "uuids": None}
        for name, devices in (("without GPUs", None), ("with 8 GPUs", asked)):
            more = {"devices": devices} if devices else {}
            run = place.submit(link, driver.shell("sleep 30", observe={"sample_us": 100_000}, **more))
            link.start(run)
            time.sleep(4)
            for watcher in driver.holders(place.attempt(run), "watch.lock"):
                rss, own = memory(watcher)
                met = "met" if rss < GOAL_RSS else "**missed**"
                print(f"| watcher {name} | {rss / 2**20:.1f} | {own / 2**20:.1f} | {met} |")
                for child in Path(f"/proc/{watcher}/task/{watcher}/children").read_text().split():
                    rss, own = memory(int(child))
                    print(f"| reader of the GPUs beside it | {rss / 2**20:.1f} | {own / 2**20:.1f} | |")
            link.ask("cancel", run_id=run)
            link.follow(run)
    finally:
        place.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    rounds = parser.parse_args().rounds
    sys.path.insert(0, str(TESTS))
    import boards

    from compute_router.supervisor.observing import gauges, gpus, processor, sampling
    from compute_router.supervisor.runs import Attempt, Run

    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        told = boards.told(["H200-SXM"] * 8)
        os.environ.update(boards.serving(folder, told))
        attempt = Attempt(Run(str(folder), "0" * 26), 1)
        os.makedirs(attempt.path)
        sampler = sampling.Sampler(attempt, {"devices": {"family": "cpu"}})
        read = gauges._library([boards.uuid(i) for i in range(8)])
        print("\n| | CPU us | wall us | of one core, every 10 s | goal 0.1% |\n|---|---|---|---|---|")
        row("before a run without GPUs: processors and memory", *cost(processor.look, rounds))
        row("before a run on 8 stand-in GPUs: NVML in a child", *cost(lambda: gpus.look(full=True), 20))
        row("a sample of the machine", *cost(sampler.sample, rounds), share=True)
        row("a reading of 8 stand-in GPUs", *cost(read, max(20, rounds // 10)), share=True)
        print("\n| | RSS MiB | of its own | goal 30 MiB |\n|---|---|---|---|")
        watched(folder, boards)


if __name__ == "__main__":
    main()
