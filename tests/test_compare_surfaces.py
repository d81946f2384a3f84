"""Proves what is said across surfaces: a cold serverless run, a warm machine, a slice with its XLA cache."""

from __future__ import annotations

from typing import Any

import pytest
from planted import MEASURED, Spec, Study, study

from compute_router.compare.comparing import compare
from compute_router.compare.gathering import gather
from compute_router.compare.outcome import Contrast, Result, Role, Verdict

WORD = "surface claim, end to end"


def serverless(spec: Spec, number: int) -> Spec:
    """A fresh container: image and caches cold, data behind a mounted bucket."""
    spec.surface, spec.backend, spec.price = "serverless", "functions", "31.60"
    spec.cache = [{"kind": "inductor", "state": "empty", "verdict": "miss", "hits": 0, "misses": 12}]
    spec.storage = {"data": "bucket_fuse", "compile-cache": "container_ephemeral"}
    spec.measured |= {
        "startup.class": "cold_container_cached_image",
        "distributed.first_step_us": [200_000_000 + number * 1_000_000] * 8,
        "timing.compile_us": 150_000_000,
        "hw.observed.driver": "550.54",
        "hw.observed.uuid": [f"GPU-{n}" for n in range(8, 16)],
        "timing.run_us": 900_000_000,
    }
    return spec


def on_slice(spec: Spec, number: int) -> Spec:
    """A slice of 8 chips with a populated XLA cache."""
    spec.surface, spec.backend, spec.price = "slice", "slices", "21.60"
    spec.accelerator = "v6e-8"
    spec.cache = [{"kind": "xla_hlo", "state": "warm_same_key", "verdict": "hit", "hits": 9, "misses": 0}]
    spec.measured |= {
        "hw.observed.sku": "v6e",
        "hw.observed.topology": "2x4",
        "compile.posture": "xla_step",
        "kernel.requested": "splash",
        "kernel.observed": "splash",
        "distributed.first_step_us": [90_000_000 + number * 1_000_000] * 8,
        "env.stack": {"python": "3.12.3", "torch": "2.9.0", "torch_xla": "2.9.0", "libtpu": "0.0.23"},
    }
    spec.fields["kernel"] = "splash"
    return spec


def reserved(spec: Spec, number: int) -> Spec:
    """A machine that was up, with a warm Inductor cache."""
    spec.measured["distributed.first_step_us"] = [40_000_000 + number * 400_000] * 8
    return spec


def sides(other: Any, n: int = 6) -> tuple[Study, Study]:
    """Runs on the reserved machine and on another surface, in turn, of no study."""
    made = study(blocks=n)
    arms: tuple[Study, Study] = ([], [])
    for number, spec in enumerate(made):
        spec.study, spec.entry = None, "entry"
        side = spec.arm == "candidate"
        spec.measured = {k: v.copy() if isinstance(v, (list, dict)) else v for k, v in MEASURED.items()}
        arms[side].append(other(spec, number) if side else reserved(spec, number))
    return arms


def contrast(other: Any, vary: tuple[str, ...], **more: Any) -> Contrast:
    base, candidate = ([spec.loaded() for spec in side] for side in sides(other))
    (found,) = compare(gather(base, candidate), vary=vary, **more).contrasts
    return found


def test_a_cold_container_against_a_warm_machine() -> None:
    found = contrast(serverless, ("surface",))
    assert found.result is Result.CONTROLLED, found.sentence
    assert found.label == WORD
    assert found.primary
    assert found.primary.metric.name == "time_to_first_trustworthy_result"
    assert found.verdict is Verdict.SLOWER
    roles = {d.field: d.role for d in found.differences}
    for confounder in (
        "startup.class",
        "cache",
        "storage",
        "hw.observed.driver",
        "hw.observed.uuid",
        "backend",
    ):
        assert roles[confounder] is Role.FOLLOWS
        assert confounder in " ".join(found.cannot)
    assert {e.metric.name for e in found.others} == {"wall", "cost"}
    assert "faster than the other in general" in " ".join(found.cannot)


def test_a_slice_with_its_cache_against_a_warm_machine_needs_its_stack_declared() -> None:
    refused = contrast(on_slice, ("surface",))
    assert refused.result is Result.REFUSED
    told = {r.code: r for r in refused.refusals}
    assert "env.stack" in told["CONFOUNDED"].what
    assert "compile.posture" in told["CONFOUNDED"].what
    assert "--vary" in told["CONFOUNDED"].mend

    found = contrast(on_slice, ("surface", "stack", "compile"))
    assert found.result is Result.CONTROLLED, found.sentence
    assert WORD in found.label
    assert "joint effect only" in found.label
    assert found.verdict is Verdict.SLOWER
    assert found.primary
    assert found.primary.metric.name == "time_to_first_trustworthy_result"
    assert any(d.field == "hw.observed.sku" and d.role is Role.FOLLOWS for d in found.differences)


def test_three_surfaces_at_once_each_against_the_first() -> None:
    base, slow = sides(serverless)
    _, third = sides(on_slice)
    for number, spec in enumerate(third):
        spec.number, spec.at_us = 5000 + number, spec.at_us + 1
    runs = [spec.loaded() for spec in (*base, *slow, *third)]
    found = compare(gather(runs, by="surface"), vary=("surface", "stack", "compile"))
    assert [arm.name for arm in found.arms] == ["reserved", "serverless", "slice"]
    assert [c.result for c in found.contrasts] == [Result.CONTROLLED] * 2
    assert {p.startup for p in found.points} == {"warm_machine_fresh_process", "cold_container_cached_image"}


@pytest.mark.parametrize("metric", ["tok_s_global", "loss_last", "time_to_first_step"])
def test_a_figure_of_the_steady_window_is_refused_and_the_answer_says_what_may_be_compared(
    metric: str,
) -> None:
    found = contrast(serverless, ("surface",), metric=metric)
    (told,) = [r for r in found.refusals if r.code == "SURFACE_METRIC"]
    assert found.result is Result.REFUSED
    assert not told.waivable
    assert "time_to_first_trustworthy_result, wall or cost" in told.mend


@pytest.mark.parametrize("metric", ["wall", "cost"])
def test_wall_time_and_cost_may_be_compared(metric: str) -> None:
    found = contrast(serverless, ("surface",), metric=metric)
    assert found.result is Result.CONTROLLED
    assert found.primary
    assert found.primary.metric.name == metric
    assert found.verdict is not None


def test_throughput_may_be_compared_where_start_and_caches_are_alike() -> None:
    def alike(spec: Spec, number: int) -> Spec:
        spec.surface, spec.backend = "cluster", "queue"
        return spec

    found = contrast(alike, ("surface",), metric="tok_s_global")
    assert found.result is Result.CONTROLLED, found.sentence
    assert found.verdict is Verdict.FASTER


def test_without_the_surface_declared_nothing_is_compared() -> None:
    found = contrast(serverless, ())
    assert found.result is Result.REFUSED
    assert {"COLD_VS_WARM", "CONFOUNDED"} <= {r.code for r in found.refusals}
