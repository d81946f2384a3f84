"""How long `decide` of `auto` takes over 1,000 offers with history: goal 10 ms, nothing is asserted."""

from __future__ import annotations

import argparse
import random
import statistics
import time

from measuring import machine

from compute_router.backend import (
    CacheState,
    Estimate,
    Estimates,
    Hardware,
    Offer,
    Power,
    Quote,
    RoleState,
    StartClass,
    Surface,
)
from compute_router.policies.auto import Auto
from compute_router.policy import History, Limits, Past
from compute_router.workload import Accelerator, Coupling, Entry, Needs, Role, Workload

GOAL_MS = 10.0


def offers(count: int, chance: random.Random) -> list[Offer]:
    """Places of all surfaces: a third has what is asked for, a third a substitute, some are busy."""

    def us(most: int) -> Estimate:
        return Estimate(us=chance.randrange(most * 1_000_000))

    return [
        Offer(
            backend=f"backend-{number % 40}",
            id=f"place-{number}",
            surface=chance.choice(list(Surface)),
            hardware=Hardware(family="gpu", sku=chance.choice(("H200", "H100", "A100")), count=8),
            estimates=Estimates(queue=us(3600), start=us(120), staging=us(60), compile=us(1800)),
            busy=chance.random() < 0.2,
            quote=Quote(amount=f"{chance.randrange(60)}.54", source="list", date="2026-01-01"),
            powers=tuple(Power),
            start_class=StartClass.WARM_MACHINE_FRESH_PROCESS,
            roles=(RoleState(role=Role.COMPILE_CACHE, state=chance.choice(list(CacheState)[:3])),),
        )
        for number in range(count)
    ]


def past(places: list[Offer], chance: random.Random) -> History:
    """What receipts come to once they are aggregated: no more than a row for each place."""
    rows = [
        Past(
            backend=place.backend,
            offer_id=place.id,
            key="key",
            start_class=place.start_class,
            warm=place.roles[0].state is CacheState.WARM_SAME_KEY,
            n=100,
            queue_us=chance.randrange(10**9),
            start_us=chance.randrange(10**8),
            staging_us=chance.randrange(10**8),
            compile_us=chance.randrange(10**9),
        )
        for place in places
    ]
    return History(key="key", rows=tuple(rows))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--offers", type=int, default=1000)
    options.add_argument("--runs", type=int, default=50)
    options.add_argument("--seed", type=int, default=7)
    given = options.parse_args()
    chance = random.Random(given.seed)
    places = offers(given.offers, chance)
    history = past(places, chance)
    needs = Needs(
        accelerator=Accelerator.parse("H200:8"),
        substitutes=(Accelerator.parse("H100:8"),),
        coupling=Coupling.SINGLE_NODE,
    )
    work = Workload(
        name="train",
        entry=Entry(root="/src", script="train.py"),
        needs=needs,
        volumes={Role.COMPILE_CACHE: "/cache"},
    )
    print(machine())
    for wait, title in ((0, "busy places refused"), (None, "busy places waited for")):
        wall, own, floor = [], [], []
        for _ in range(given.runs):
            begin, used = time.perf_counter(), time.process_time()
            decision = Auto().decide(work, places, history, asked_at=1, limits=Limits(wait_us=wait))
            wall.append(time.perf_counter() - begin)
            own.append(time.process_time() - used)
            begin = time.perf_counter()
            sum(range(1_000_000))
            floor.append(time.perf_counter() - begin)
        ms, cpu, unit = (statistics.median(times) * 1e3 for times in (wall, own, floor))
        print(
            f"{given.offers} offers, {title}: median {ms:.1f} ms wall, {cpu:.1f} ms processor"
            f" (goal {GOAL_MS:g}); {len(decision.ranked)} ranked, {len(decision.rejections)} refused;"
            f" sum(range(1e6)) beside it {unit:.1f} ms"
        )


if __name__ == "__main__":
    main()
