"""Synthetic workloads and offers, made plain or drawn at random, for whoever tests a policy."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

from compute_router.backend import (
    CacheState,
    Estimate,
    Estimates,
    Hardware,
    NoOffer,
    Offer,
    Power,
    Quote,
    RoleState,
    Source,
    StartClass,
    Surface,
)
from compute_router.policy import History, Limits, Past
from compute_router.workload import (
    Accelerator,
    Coupling,
    Entry,
    Framework,
    Needs,
    Purpose,
    Role,
    Warmth,
    Workload,
)

__all__ = ["HOUR", "MINUTE", "Drawn", "estimates", "hardware", "offer", "work"]

T = TypeVar("T")
MINUTE = 60_000_000
HOUR = 60 * MINUTE
NAMES = {
    Surface.LOCAL: "desk",
    Surface.RESERVED: "hosts",
    Surface.SERVERLESS: "cloud",
    Surface.SLICE: "slices",
    Surface.CLUSTER: "cluster",
}


def work(accelerator: str = "H200:1", *, substitutes: Sequence[str] = (), **given: Any) -> Workload:
    """A workload; `coupling`, `nodes`, `warmth` and `framework` go to its needs, the rest to itself."""
    kinds = {"coupling": Coupling, "warmth": Warmth, "framework": Framework, "nodes": int}
    needs = {name: kind(given.pop(name)) for name, kind in kinds.items() if name in given}
    if "purpose" in given:
        given["purpose"] = Purpose(given["purpose"])
    return Workload(
        name=given.pop("name", "study"),
        entry=given.pop("entry", Entry(root="/src", script="study.py")),
        needs=Needs(
            accelerator=Accelerator.parse(accelerator),
            substitutes=tuple(map(Accelerator.parse, substitutes)),
            **needs,
        ),
        **given,
    )


def hardware(accelerator: str, nodes: int = 1) -> Hardware:
    wanted = Accelerator.parse(accelerator)
    return Hardware(family=wanted.family, sku=wanted.sku, count=wanted.count, nodes=nodes)


def estimates(
    *, queue: int | None = 0, start: int | None = 30, staging: int | None = 10, compile: int | None = 60
) -> Estimates:
    """In seconds."""
    parts = {"queue": queue, "start": start, "staging": staging, "compile": compile}
    return Estimates(**{n: None if s is None else Estimate(us=s * 1_000_000) for n, s in parts.items()})


def offer(
    surface: str | Surface,
    accelerator: str = "H200:1",
    *,
    cache: CacheState | None = None,
    price: str | None = None,
    nodes: int = 1,
    **given: Any,
) -> Offer:
    """An offer that can do everything, of a backend named after its surface."""
    surface = Surface(surface)
    serverless = surface is Surface.SERVERLESS
    defaults: dict[str, Any] = {
        "backend": NAMES[surface],
        "id": "one",
        "estimates": estimates(),
        "powers": tuple(Power),
        "clean": serverless,
        "fabric": surface in (Surface.SLICE, Surface.CLUSTER),
        "start_class": StartClass.COLD_CONTAINER_CACHED_IMAGE
        if serverless
        else StartClass.WARM_MACHINE_FRESH_PROCESS,
        "quote": None if price is None else Quote(amount=price, source="list", date="2026-01-01"),
        "roles": () if cache is None else (RoleState(role=Role.COMPILE_CACHE, state=cache),),
    }
    if surface is Surface.SLICE:
        defaults["frameworks"] = (Framework.XLA, Framework.ANY, Framework.NONE)
    return Offer(surface=surface, hardware=hardware(accelerator, nodes), **(defaults | given))


class Drawn:
    """Random but possible questions, from one generator: half of them plain, half full of demands."""

    ACCELERATORS = (
        "cpu",
        "any",
        "any:2",
        "H200:1",
        "H200:8",
        "H200:4",
        "H100:8",
        "H100:1",
        "v6e-8",
        "v6e-16",
    )

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.odd = 0.1

    def rare(self, value: T, otherwise: T) -> T:
        """`value` seldom in a plain question, often in one that is full of demands."""
        return value if self.chance.random() < self.odd else otherwise

    def some(self, things: Sequence[Any], most: int) -> tuple[Any, ...]:
        return tuple(self.chance.sample(list(things), self.chance.randint(0, min(most, len(things)))))

    def us(self) -> int | None:
        return self.chance.choice((None, 0, 1, 30_000_000, 119_000_000, MINUTE * self.chance.randint(1, 400)))

    def price(self) -> str | None:
        return self.chance.choice(
            (None, None, None, None, None, "0", "4.54", "36.32", "50", "1e3", "dear", "NaN", "-1")
        )

    def workload(self) -> Workload:
        pick = self.chance.choice
        self.odd = pick((0.1, 0.5))
        roles = pick(((), (Role.COMPILE_CACHE,), self.some(list(Role), 3)))
        return work(
            pick(self.ACCELERATORS),
            substitutes=self.some(self.ACCELERATORS, 2),
            kind=pick(("train", "bench", "validate", "distil")),
            purpose=pick(list(Purpose)),
            coupling=pick(list(Coupling)),
            nodes=self.rare(pick((2, 4)), 1),
            warmth=pick((Warmth.ANY, Warmth.ANY, Warmth.WARM, Warmth.COLD)),
            framework=self.rare(pick(list(Framework)), Framework.ANY),
            shapes=pick((None, "small")),
            secrets=self.rare(("HF_TOKEN",), ()),
            buckets=self.rare({"/d": "s3://d"}, {}),
            volumes={role: f"/{role.value}" for role in roles},
            image=self.rare("ghcr.io/a/b", None),
            price_limit=self.rare(self.price(), None),
            timeout_us=self.chance.randint(1, 24 * HOUR),
            entry=pick(
                (
                    Entry(root="/src", script="a.py"),
                    Entry(root="/src", argv=("true",)),
                    Entry(root="/src", argv=()),
                    Entry(root="/src", script="m.py", ready="bench:matmul"),
                )
            ),
            tags=self.some(("a", "b"), 2),
        )

    def offer(self, name: str, workload: Workload) -> Offer:
        """Half of them have what the workload asks for, so that other rules are reached too."""
        pick = self.chance.choice
        given = pick((*self.ACCELERATORS[3:], "cpu"))
        wanted = workload.needs.accelerator
        if self.chance.random() < 0.7 and wanted.family != "any":
            given = str(wanted)
        frameworks = self.some(list(Framework), 4)
        if self.chance.random() < 0.8:
            frameworks = (workload.needs.framework,)
        parts = {n: self.us() for n in ("queue", "start", "staging", "compile")}
        price, unit = self.price(), pick(("hour", "hour", "run", "month"))
        return Offer(
            backend=f"backend-{self.chance.randint(0, 3)}",
            id=name,
            surface=pick(list(Surface)),
            hardware=hardware(given, pick((1, 1, 2, 4))),
            frameworks=frameworks,
            start_class=pick(list(StartClass)),
            roles=tuple(
                RoleState(role=role, state=pick(list(CacheState))) for role in self.some(list(Role), 4)
            ),
            estimates=Estimates(
                **{
                    n: None if us is None else Estimate(us=us, source=pick(list(Source)))
                    for n, us in parts.items()
                }
            ),
            busy=self.rare(True, False),
            fabric=self.chance.random() < 0.5,
            clean=self.chance.random() < 0.3,
            capacity=pick((None, 0, 1, 100)),
            quote=None
            if price is None
            else Quote(amount=price, unit=unit, currency=pick(("USD", "USD", "EUR")), source="s", date="d"),
            powers=self.rare(self.some(list(Power), 9), tuple(Power)),
            data={"x": 1.5},
        )

    def no_offer(self) -> NoOffer:
        pick = self.chance.choice
        return NoOffer(
            backend=f"backend-{pick('0123')}", code=pick(("full", "none")), reason="no {room}", mend=""
        )

    def offers(self, workload: Workload, most: int = 6) -> list[Offer | NoOffer]:
        many: list[Offer | NoOffer] = [
            self.offer(f"o{n}", workload) for n in range(self.chance.randint(0, most))
        ]
        return many + [self.no_offer() for _ in range(self.chance.randint(0, 2))]

    def history(self, offers: Sequence[Offer | NoOffer]) -> History:
        rows = []
        for one in offers:
            while isinstance(one, Offer) and self.chance.random() < 0.5:
                queue, start, staging, compiling = (self.us() for _ in range(4))
                rows.append(
                    Past(
                        backend=one.backend,
                        offer_id=one.id,
                        key=self.chance.choice("kl"),
                        start_class=one.start_class,
                        warm=self.chance.random() < 0.5,
                        n=self.chance.randint(0, 9),
                        queue_us=queue,
                        start_us=start,
                        staging_us=staging,
                        compile_us=compiling,
                    )
                )
        return History(key=self.chance.choice(("", "k")), rows=tuple(rows))

    def rules(self) -> tuple[dict[str, object], ...]:
        pick = self.chance.choice
        pool: list[dict[str, object]] = [
            {
                "id": "a",
                "effect": "prefer",
                "surface": ["serverless", "slice"],
                "sentence": "{place} is {cache}",
            },
            {"id": "b", "effect": "refuse", "when": {"result_minutes": {"min": 30}}},
            {"id": "c", "effect": "prefer", "backend": "backend-1", "rank": pick((1, 3))},
            {
                "id": "d",
                "effect": "refuse",
                "when": {"price_per_hour": {"max": "4.60"}, "kind": {"not": "train"}},
            },
            {"id": "e", "effect": "prefer", "when": {"tags": "a", "lacks": {"not": "buckets"}}, "rank": 2},
            {"id": "f", "efect": "refuse"},
            {"id": "g", "effect": "refuse", "when": {"capacity": {"min": 0.5}}},
        ]
        return self.rare(self.some(pool, 7), tuple(self.chance.sample(pool[:5], 3)))

    def limits(self) -> Limits:
        pick = self.chance.choice
        return Limits(
            wait_us=pick((None, 0, 0, 30 * MINUTE, 3 * HOUR)),
            detached=self.chance.random() < 0.5,
            cases=pick((1, 1, 2, 40)),
            price_limit=self.rare(self.price(), None),
            pin=self.rare(pick(("backend-1", "bakend-9")), None),
            rules=self.rules(),
        )
