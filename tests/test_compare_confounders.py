"""Proves that each of 40 confounders planted in a study leaves no verdict, and no clean pair is refused."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import planted
import pytest
from planted import Spec, Study, candidates, compared, hexes, on_candidate, study

from compute_router.backend import State
from compute_router.compare.outcome import Result, Verdict

Plant = Callable[[Study], Study]


def measured(path: str, v: Any) -> Plant:
    """The candidate measured something else."""
    return on_candidate(lambda spec: spec.measured.__setitem__(path, v))


def declared(name: str, v: Any) -> Plant:
    return on_candidate(lambda spec: spec.fields.__setitem__(name, v))


def field(name: str, v: Any) -> Plant:
    return on_candidate(lambda spec: setattr(spec, name, v))


def several(*plants: Plant) -> Plant:
    def planted_all(specs: Study) -> Study:
        for plant in plants:
            specs = plant(specs)
        return specs

    return planted_all


def one_of_them(change: Callable[[Spec], None], index: int = 2) -> Plant:
    """In a single run of the candidate."""

    def planted_one(specs: Study) -> Study:
        change(candidates(specs)[index])
        return specs

    return planted_one


def cherry_picked(specs: Study) -> Study:
    worst = min(candidates(specs), key=lambda spec: spec.rate)
    return [spec for spec in specs if spec is not worst]


def no_study(specs: Study) -> Study:
    for spec in specs:
        spec.study = None
    return specs


def one_after_the_other(specs: Study) -> Study:
    """The plan says blocks; the clock says that all of the base ran first."""
    for spec in specs:
        spec.at_us += 1000 * planted.HOUR * (spec.arm == "candidate")
    return specs


def in_turn(specs: Study) -> Study:
    """All of the base, then all of the candidate, of no study."""
    for number, spec in enumerate(sorted(specs, key=lambda spec: spec.arm)):
        spec.at_us = planted.AT + number * planted.HOUR
    return no_study(specs)


def two_studies(specs: Study) -> Study:
    for spec in candidates(specs):
        assert spec.study
        spec.study["sha256"] = hexes("another plan")
    return specs


def half_failed(specs: Study) -> Study:
    for spec in candidates(specs)[:3]:
        spec.state = State.FAILED
    return specs


def one_extra(specs: Study) -> Study:
    extra = Spec(number=990, arm="candidate", rate=2_000_000.0, entry="other entry", seed=990)
    assert specs[0].study
    extra.study = {**specs[0].study, "arm": "candidate", "index": 13, "block": 7}
    return [*specs, extra]


def empty(specs: Study) -> Study:
    for spec in candidates(specs):
        spec.cache = [{"kind": "inductor", "state": "empty", "verdict": "miss", "hits": 0, "misses": 12}]
        spec.measured["compile.cache_hits"] = 0
    return specs


def other_image_cache(specs: Study) -> Study:
    for spec in candidates(specs):
        spec.cache = [{"kind": "inductor", "state": "warm_other_image", "verdict": "hit"}]
    return specs


def unseen_cache(specs: Study) -> Study:
    for spec in candidates(specs):
        spec.cache = [{"kind": "inductor", "verdict": "hit"}]
    return specs


def first_run_cold(specs: Study) -> Study:
    candidates(specs)[0].cache = [{"kind": "inductor", "state": "empty", "verdict": "miss"}]
    return specs


CONFOUNDERS: dict[str, tuple[Plant, str]] = {
    "other kind": (several(field("kind", "bench")), "KIND_MISMATCH"),
    "other purpose": (field("purpose", "repeatable"), "KIND_MISMATCH"),
    "hardware upgraded": (measured("hw.observed.sku", "B200-SXM-180GB"), "HW_NOT_AS_REQUESTED"),
    "hardware variant": (measured("hw.observed.sku", "H200-NVL-141GB"), "CONFOUNDED"),
    "fewer GPUs": (measured("hw.observed.count", 4), "HW_NOT_AS_REQUESTED"),
    "cold cache": (empty, "COLD_VS_WARM"),
    "cache of another image": (other_image_cache, "COLD_VS_WARM"),
    "cache not seen": (unseen_cache, "UNOBSERVED_KEY"),
    "first run cold": (first_run_cold, "COLD_VS_WARM"),
    "start after a reboot": (measured("startup.class", "warm_machine_after_reboot"), "COLD_VS_WARM"),
    "resumed from a checkpoint": (measured("startup.class", "resumed_checkpoint"), "MIXED_ATTEMPTS"),
    "other torch": (
        measured("env.stack", {**planted.MEASURED["env.stack"], "torch": "2.10.0"}),
        "CONFOUNDED",
    ),
    "other nccl": (measured("env.stack", {**planted.MEASURED["env.stack"], "nccl": "2.28"}), "CONFOUNDED"),
    "variable of the environment": (measured("env.allow", {"NCCL_DEBUG": "INFO"}), "CONFOUNDED"),
    "other dtype": (declared("dtype", "fp8"), "CONFOUNDED"),
    "deterministic": (declared("deterministic", True), "CONFOUNDED"),
    "other batch": (
        several(declared("global_batch", 256), declared("tokens_per_step", 262144)),
        "CONFOUNDED",
    ),
    "other sequence length": (declared("seq_len", 2048), "CONFOUNDED"),
    "other data": (measured("data.manifest_sha256", hexes("other shards")), "CONFOUNDED"),
    "other preset": (declared("preset", "large"), "CONFOUNDED"),
    "other world size": (field("ranks", 4), "CONFOUNDED"),
    "other parallelism": (declared("tp", 2), "CONFOUNDED"),
    "other compile posture": (measured("compile.posture", "whole_graph"), "CONFOUNDED"),
    "kernel not proven": (measured("kernel.observed", None), "KERNEL_NOT_PROVEN"),
    "other kernel than asked for": (measured("kernel.observed", "math"), "KERNEL_NOT_PROVEN"),
    "recompiles": (measured("compile.recompiles", 3), "UNSTABLE_WINDOW"),
    "throttled by heat": (
        measured("hw.observed.throttle_reasons", ["hw_thermal_slowdown 41%"]),
        "UNSTABLE_WINDOW",
    ),
    "throttled by power": (measured("hw.observed.throttle_reasons", ["sw_power_cap 41%"]), "UNSTABLE_WINDOW"),
    "another process on the GPUs": (measured("hw.observed.cotenants", 1), "UNSTABLE_WINDOW"),
    "hardware errors": (
        measured("hw.observed.errors", ["GPU 3: the driver reported Xid 94"]),
        "UNSTABLE_WINDOW",
    ),
    "other power limit": (measured("hw.observed.power_limit_w", 500), "CONFOUNDED"),
    "partitioned": (measured("hw.observed.mig", "1g.18gb"), "CONFOUNDED"),
    "other wiring": (measured("hw.observed.topology", "pcie"), "CONFOUNDED"),
    "dirty tree": (
        field("git", {"commit": "ef" * 20, "branch": "main", "dirty": True, "diff_sha256": None}),
        "DIRTY_TREE",
    ),
    "evaluation in the window": (
        several(measured("checks.eval_off", False), measured("steady.inside", {"eval": 3})),
        "EVAL_IN_WINDOW",
    ),
    "no peak memory": (
        several(measured("mem.peak_alloc_bytes", None), measured("mem.host_rss_peak", None)),
        "MISSING_PEAK_MEMORY",
    ),
    "no end marker": (measured("checks.end_marker", False), "PARTIAL_RECEIPT"),
    "no measurements": (field("unmeasured", True), "PARTIAL_RECEIPT"),
    "ran on the CPU": (measured("hw.observed.sku", "cpu"), "CPU_FALLBACK"),
    "volume not committed": (field("committed", False), "VOLUME_NOT_COMMITTED"),
    "data on other storage": (
        field("storage", {"data": "network_fs", "compile-cache": "local_nvme"}),
        "CONFOUNDED",
    ),
    "storage not seen": (field("storage", {"data": None, "compile-cache": "local_nvme"}), "UNOBSERVED_KEY"),
    "other surface": (several(field("surface", "serverless"), field("backend", "functions")), "CONFOUNDED"),
    "preempted and started again": (one_of_them(lambda spec: setattr(spec, "attempt", 2)), "MIXED_ATTEMPTS"),
    "cherry-picked": (cherry_picked, "STUDY_INCOMPLETE"),
    "one run more than planned": (one_extra, "STUDY_INCOMPLETE"),
    "two studies": (two_studies, "STUDY_INCOMPLETE"),
    "not interleaved": (in_turn, "NOT_INTERLEAVED"),
    "blocks on paper, one arm after the other on the clock": (one_after_the_other, "NOT_INTERLEAVED"),
    "half of it failed": (half_failed, "SUCCESS_DIFFERS"),
    "a longer window": (
        several(measured("steady.n_steps", 150), measured("steady.last_step", 151)),
        "STEPS_DIFFER",
    ),
    "other warm-up": (measured("steady.warmup_steps_discarded", 5), "CONFOUNDED"),
    "one run of another script": (one_of_them(lambda spec: setattr(spec, "entry", "third")), "MIXED_ARM"),
}


def test_there_are_forty_of_them() -> None:
    assert len(CONFOUNDERS) >= 40


@pytest.mark.parametrize("name", CONFOUNDERS)
def test_a_confounder_is_refused_or_withholds_the_verdict(name: str) -> None:
    plant, code = CONFOUNDERS[name]
    more: dict[str, Any] = {"vary": ("code",)} if name == "not interleaved" else {}
    found = compared(plant(study(effect=1.10, noise=0.005)), **more)
    if found.contrasts:
        (contrast,) = found.contrasts
        codes = {r.code for r in contrast.refusals}
        assert contrast.verdict is None, contrast.sentence
        assert code in codes
        told = next(r for r in contrast.refusals if r.code == code)
        assert told.what
        assert told.why
        assert told.mend
        assert "\n" not in told.what + told.why + told.mend


# Pairs that nothing is wrong with


def as_they_are(specs: Study) -> Study:
    return specs


def other_kernel(specs: Study) -> Study:
    for spec in specs:
        spec.entry = "entry"
    return several(
        declared("kernel", "math"), measured("kernel.requested", "math"), measured("kernel.observed", "math")
    )(specs)


def other_stack(specs: Study) -> Study:
    for spec in specs:
        spec.entry = "entry"
    return measured("env.stack", {**planted.MEASURED["env.stack"], "torch": "2.10.0"})(specs)


def other_machine(specs: Study) -> Study:
    """Other cards of the same model, another temperature, another price."""
    return several(
        measured("hw.observed.uuid", [f"GPU-{n}" for n in range(8, 16)]),
        measured("hw.observed.temp_c_max", 64),
        measured("hw.observed.driver", "570.90"),
        field("price", "31.60"),
        measured("clock.boot_id", "b-2"),
    )(specs)


def other_tree(specs: Study) -> Study:
    """An edited README: the tree and its commit differ, the script does not."""
    return field("git", {"commit": "ab" * 20, "branch": "dev", "dirty": True, "diff_sha256": hexes("diff")})(
        specs
    )


def a_slow_outlier(specs: Study) -> Study:
    candidates(specs)[1].rate *= 0.7
    return specs


def one_failure(specs: Study) -> Study:
    candidates(specs)[6].state = State.FAILED
    return specs


def power_capped_alike(specs: Study) -> Study:
    for number, spec in enumerate(specs):
        spec.measured["hw.observed.throttle_reasons"] = [f"sw_power_cap {90 + number % 3}%"]
    return specs


def all_on_the_cpu(specs: Study) -> Study:
    return no_study(specs)


CLEAN: Sequence[tuple[str, Plant, tuple[str, ...]]] = (
    ("as they are", as_they_are, ("code",)),
    ("another kernel, declared", other_kernel, ("kernel",)),
    ("another stack, declared", other_stack, ("stack",)),
    ("another machine of the model", other_machine, ("code",)),
    ("another commit", other_tree, ("code",)),
    ("an outlier", a_slow_outlier, ("code",)),
    ("one failure", one_failure, ("code",)),
    ("capped by power alike", power_capped_alike, ("code",)),
    ("of no study", no_study, ("code",)),
    ("without an effect", as_they_are, ("code",)),
)


@pytest.mark.parametrize(
    ("seed", "clean"),
    list(itertools.product(range(1, 5), CLEAN)),
    ids=lambda v: v if isinstance(v, int) else v[0],
)
def test_a_clean_pair_is_not_refused(seed: int, clean: tuple[str, Plant, tuple[str, ...]]) -> None:
    name, plant, vary = clean
    effect = 1.0 if name == "without an effect" else 1.10
    specs = plant(study(blocks=8, seed=seed, effect=effect, noise=0.01, vary=vary))
    found = compared(specs, vary=vary if specs[0].study is None else ())
    (contrast,) = found.contrasts
    assert contrast.refusals == (), contrast.sentence
    assert contrast.result in (Result.EQUAL, Result.CONTROLLED)
    assert contrast.verdict is not None
    if name not in ("without an effect", "an outlier"):
        assert contrast.verdict is Verdict.FASTER, contrast.sentence


def test_the_order_of_receipts_changes_nothing() -> None:
    specs = study(seed=9)
    first = compared(specs)
    for seed in range(3):
        shuffled = list(specs)
        random.Random(seed).shuffle(shuffled)
        assert compared(shuffled) == first


def test_a_cold_and_a_warm_start_compare_where_that_is_the_question() -> None:
    specs = study(vary=("cache",))
    for spec in specs:
        spec.purpose, spec.entry = "cold-start", "entry"
    for number, spec in enumerate(candidates(specs)):
        spec.cache = [{"kind": "inductor", "state": "empty", "verdict": "miss"}]
        spec.measured["distributed.first_step_us"] = [100_000_000 + number * 1000] * 8
    (contrast,) = compared(specs).contrasts
    assert contrast.result is Result.CONTROLLED, contrast.sentence
    assert contrast.verdict is Verdict.SLOWER
    assert contrast.primary
    assert contrast.primary.metric.name == "time_to_first_trustworthy_result"
