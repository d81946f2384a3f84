"""A generator of studies: whole receipts of two arms on 8 GPUs, clean or with a confounder in them."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import random
from collections.abc import Callable, Mapping
from typing import Any

from compute_router.backend import Hardware, Offer, Quote, StartClass, State, Status, Surface
from compute_router.compare.comparing import compare
from compute_router.compare.gathering import Gathered, gather
from compute_router.compare.loaded import Loaded
from compute_router.compare.loading import load
from compute_router.compare.outcome import Comparison
from compute_router.receipt import build
from compute_router.receipt.facts import put
from compute_router.records import encode, key_run_id
from compute_router.workload import (
    Accelerator,
    Coupling,
    Entry,
    Framework,
    Kind,
    MetricRule,
    Needs,
    Purpose,
    Workload,
)
from compute_router.workloads.bench import Bench
from compute_router.workloads.train import Train

AT = 1_800_000_000_000_000
HOUR = 3_600_000_000
KINDS: Mapping[str, Kind] = {"train": Train(), "bench": Bench()}


def hexes(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


FIELDS: Mapping[str, Any] = {
    "family": "gpt",
    "preset": "small",
    "data": "corpus-1",
    "tokens_per_step": 524288,
    "seq_len": 1024,
    "global_batch": 512,
    "dtype": "bf16",
    "fp8_recipe": "none",
    "deterministic": False,
    "mode": "ddp",
    "dp": 8,
    "tp": 1,
    "pp": 1,
    "cp": 1,
    "ep": 1,
    "kernel": "fa3",
}
MEASURED: Mapping[str, Any] = {
    "timing.queue_us": 200_000,
    "timing.stage_in_us": 300_000,
    "timing.run_us": 600_000_000,
    "timing.bootstrap_us": 2_000_000,
    "timing.import_us": 8_000_000,
    "timing.compile_us": 20_000_000,
    "timing.first_step_us": 30_000_000,
    "timing.warmup_us": 40_000_000,
    "timing.steady_us": 500_000_000,
    "timing.eval_us": 0,
    "timing.checkpoint_us": 1_000_000,
    "timing.idle_us": 49_000_000,
    "timing.collect_us": 1_000_000,
    "hw.observed.sku": "H200-SXM-141GB",
    "hw.observed.count": 8,
    "hw.observed.uuid": [f"GPU-{n}" for n in range(8)],
    "hw.observed.mem_bytes": 141 << 30,
    "hw.observed.cc": "9.0",
    "hw.observed.form_factor": "SXM",
    "hw.observed.driver": "570.86",
    "hw.observed.cuda_driver": "12.8",
    "hw.observed.topology": "nvlink-18",
    "hw.observed.power_limit_w": 700,
    "hw.observed.clock_sm_mhz": {"p50": 1980, "min": 1900},
    "hw.observed.throttle_reasons": [],
    "hw.observed.mig": "off",
    "hw.observed.ecc": "on",
    "hw.observed.temp_c_max": 60,
    "hw.observed.cotenants": 0,
    "hw.observed.errors": [],
    "hw.observed.cpu_model": "Xeon",
    "hw.observed.cpus": 96,
    "compile.posture": "regional",
    "compile.warmup": True,
    "compile.programs": 12,
    "compile.recompiles": 0,
    "compile.cache_hits": 12,
    "kernel.requested": "fa3",
    "kernel.observed": "fa3",
    "startup.class": "warm_machine_fresh_process",
    "env.stack": {"python": "3.12.3", "torch": "2.9.0", "cuda": "12.8", "nccl": "2.27"},
    "env.allow": {"NCCL_DEBUG": "WARN"},
    "env.fp": {"HOME": "abc"},
    "env.dists_sha256": hexes("dists"),
    "env.differs": [],
    "data.manifest_sha256": hexes("manifest"),
    "workload.imported_sha256": hexes("imported"),
    "steady.warmup_steps_discarded": 2,
    "steady.first_step": 2,
    "steady.last_step": 101,
    "steady.n_steps": 100,
    "steady.inside": {},
    "metrics.loss_first": "10.5",
    "metrics.loss_last": "4.25",
    "mem.host_rss_peak": 40 << 30,
    "mem.peak_alloc_bytes": [90 << 30] * 8,
    "checks.finite": True,
    "checks.no_oom": True,
    "checks.exit_zero": True,
    "checks.steps_present": True,
    "checks.end_marker": True,
    "checks.eval_off": True,
    "distributed.first_step_us": [40_000_000] * 8,
    "clock.boot_id": "b-1",
    "clock.stepped_us": 0,
}
MADE: dict[str, bytes] = {}
BY_THE_WORK = ("steady.", "metrics.", "checks.finite", "checks.end_marker", "distributed.", "data.")


@dataclasses.dataclass
class Spec:
    """What one receipt is made from; every planted thing is an edit of it."""

    number: int
    arm: str = "base"
    rate: float = 1_000_000.0
    at_us: int = AT
    kind: str = "train"
    purpose: str = "benchmark"
    name: str = "gpt-small"
    entry: str = "entry"
    args: tuple[str, ...] = ("--steps", "102")
    fields: dict[str, Any] = dataclasses.field(default_factory=lambda: {**FIELDS})
    measured: dict[str, Any] = dataclasses.field(default_factory=lambda: copy.deepcopy(dict(MEASURED)))
    cache: list[dict[str, Any]] = dataclasses.field(
        default_factory=lambda: [
            {"kind": "inductor", "state": "warm_same_key", "verdict": "hit", "hits": 12, "misses": 0}
        ]
    )
    storage: dict[str, str | None] = dataclasses.field(
        default_factory=lambda: {"data": "local_nvme", "compile-cache": "local_nvme"}
    )
    committed: bool = True
    accelerator: str = "H200:8"
    ranks: int = 8
    surface: str = "reserved"
    backend: str = "machines"
    state: State = State.SUCCEEDED
    reason: str = ""
    attempt: int = 1
    seeding: bool = False
    seed: int | None = None
    git: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {"commit": "ef" * 20, "branch": "main", "dirty": False, "diff_sha256": None}
    )
    study: dict[str, Any] | None = None
    price: str | None = "36.32"
    unmeasured: bool = False

    def receipt(self) -> dict[str, Any]:
        run_id = key_run_id(f"planted {self.number}")
        work = self.workload()
        status = Status(
            state=self.state,
            exit_code=0 if self.state is State.SUCCEEDED else 1,
            reason=self.reason,
            started_us=self.at_us,
            ended_us=self.at_us + self.measured["timing.run_us"],
            attempt=self.attempt,
        )
        offer = Offer(
            backend=self.backend,
            id="place",
            surface=Surface(self.surface),
            hardware=Hardware(family=work.needs.accelerator.family, sku="H200", count=8),
            start_class=StartClass.UNOBSERVED,
            quote=Quote(amount=self.price, source="list", date="2027-01-01") if self.price else None,
        )
        submitted = self.at_us - 500_000
        return build(
            run_id=run_id,
            key=f"planted {self.number}",
            workload=work,
            status=status,
            created_us=status.ended_us or 0,
            chain={"store_id": "cd" * 16, "prev": None, "seq": 1},
            snapshot_facts={"tree_sha256": hexes(f"tree {self.entry}"), "git": self.git},
            offers=(offer,),
            intent={"backend": self.backend, "offer_id": "place", "attempt": self.attempt, "tries": []},
            kind=KINDS[self.kind],
            measured=None if self.unmeasured else self.block(run_id),
            clock={"offset_us": 0, "rtt_us": 100},
            events=[
                {"event": "staging", "attempt": self.attempt, "at_us": submitted - 1_500_000},
                {"event": "submitted", "attempt": self.attempt, "at_us": submitted, "image_us": 100_000},
            ],
            study=self.study,
        )

    def workload(self) -> Workload:
        fields = {k: v for k, v in {**self.fields, "seed": self.seed}.items() if v is not None}
        return Workload(
            name=self.name,
            kind=self.kind,
            purpose=Purpose(self.purpose),
            entry=Entry(root="/src", script="train.py", args=self.args, sha256=hexes(self.entry)),
            needs=Needs(
                accelerator=Accelerator.parse(self.accelerator),
                coupling=Coupling.SINGLE_NODE,
                framework=Framework.TORCH,
            ),
            metrics=MetricRule(primary="tok_s_global", discard_steps=2),
            shapes="gpt-small/bs512/seq1024",
            fields=fields,
            tags=("seeding",) if self.seeding else (),
        )

    def block(self, run_id: str) -> dict[str, Any]:
        """The measured block, as a supervisor writes it."""

        def seen(v: Any, src: str = "supervisor") -> dict[str, Any]:
            told = {"v": v, "src": src, "at": self.at_us + 1}
            return told if v is not None else {"v": None, "why": "not seen"}

        found: dict[str, Any] = {
            "schema": "route.measured/1",
            "run_id": run_id,
            "attempt": self.attempt,
            "kind": self.kind,
            "outcome": {
                "state": self.state.value,
                "stage": "collect",
                "exit_code": 0 if self.state is State.SUCCEEDED else 1,
                "log_tail_sha256": hexes("log"),
            },
            "launch": {"launcher": "torchrun", "ranks": self.ranks},
            "cache": seen([*self.cache], "workload"),
            "storage": [
                {"role": role, "class": seen(name), "fs": seen("xfs")} for role, name in self.storage.items()
            ],
            "volumes": [
                {
                    "name": "cache",
                    "role": "compile-cache",
                    "event": [seen("reused")],
                    "committed": seen(self.committed),
                }
            ],
            "lifecycle": [],
            "artifacts": [],
        }
        for path, v in {**self.measured, "metrics.tok_s_global": f"{self.rate:.6f}"}.items():
            src = "workload" if path.startswith(BY_THE_WORK) else "supervisor"
            if path == "env.stack":
                put(found, path, {name: seen(version) for name, version in v.items()})
            else:
                put(found, path, seen(v, src))
        found["metrics"]["primary"] = "tok_s_global"
        return found

    def data(self) -> bytes:
        """The bytes of the receipt; those of an equal one are made once."""
        if repr(self) not in MADE:
            MADE[repr(self)] = encode(self.receipt())
        return MADE[repr(self)]

    def loaded(self) -> Loaded:
        one = load(self.data(), ref=f"{self.arm}-{self.number}")
        assert isinstance(one, Loaded), one
        return one


Study = list[Spec]


def study(
    *,
    blocks: int = 6,
    effect: float = 1.05,
    noise: float = 0.01,
    seed: int = 0,
    vary: tuple[str, ...] = ("code",),
) -> Study:
    """A finished study of two arms that differ in the script: blocks of AB and BA in turn."""
    chance = random.Random(seed)
    sha = hexes(f"study {seed}")
    specs: Study = []
    for block in range(1, blocks + 1):
        for arm in ("base", "candidate") if block % 2 else ("candidate", "base"):
            number = len(specs) + 1
            rate = 1_000_000 * (effect if arm == "candidate" else 1) * chance.gauss(1, noise)
            specs.append(
                Spec(
                    number=seed * 1000 + number,
                    arm=arm,
                    rate=rate,
                    at_us=AT + number * HOUR,
                    entry="entry" if arm == "base" else "other entry",
                    seed=seed * 1000 + number,
                    study={
                        "id": "planted",
                        "sha256": sha,
                        "index": number,
                        "n_planned": 2 * blocks,
                        "arm": arm,
                        "arms": ["base", "candidate"],
                        "block": block,
                        "order_seed": 1,
                        "vary": [*vary],
                        "margin": "0.02",
                    },
                )
            )
    return specs


def gathered(specs: Study) -> Gathered:
    """By their study where they belong to one, else by arm."""
    loaded = [spec.loaded() for spec in specs]
    if any(spec.study for spec in specs):
        return gather(loaded)
    sides = [
        [one for one, spec in zip(loaded, specs, strict=True) if spec.arm == arm]
        for arm in ("base", "candidate")
    ]
    return gather(*sides)


def compared(specs: Study, **more: Any) -> Comparison:
    return compare(gathered(specs), **more)


def candidates(specs: Study) -> Study:
    return [spec for spec in specs if spec.arm == "candidate"]


def on_candidate(change: Callable[[Spec], None]) -> Callable[[Study], Study]:
    """A confounder that is in every run of the candidate."""

    def planted(specs: Study) -> Study:
        for spec in candidates(specs):
            change(spec)
        return specs

    return planted
