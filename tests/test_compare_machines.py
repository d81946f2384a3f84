"""Proves what a comparison says of the machines its arms ran on: others for each arm, clocks, who looked."""

from __future__ import annotations

from typing import Any

import planted
import pytest
from planted import Study, candidates, compared, study

from compute_router.compare.outcome import Contrast, Standing, Verdict

OTHERS = [f"GPU-{n}" for n in range(8, 16)]


def only(specs: Study, **more: Any) -> Contrast:
    (contrast,) = compared(specs, **more).contrasts
    return contrast


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("hw.observed.uuid", OTHERS),
        ("hw.observed.driver", "575.10"),
        ("hw.observed.ecc", "off"),
        ("hw.observed.mem_bytes", 140 << 30),
        ("hw.observed.cpu_milli", 4000),
        ("hw.observed.governor", "powersave"),
    ],
)
def test_arms_on_machines_of_their_own_make_no_claim(path: str, value: Any) -> None:
    """In turn by the clock, and still each arm always on its own machine: that may be all the difference."""
    specs = study(effect=1.10, noise=0.005)
    assert only(specs).standing is Standing.CLAIM
    for spec in candidates(specs):
        spec.measured[path] = value
    found = only(specs)
    assert found.verdict is Verdict.FASTER, "it is shown, and found"
    assert found.standing is Standing.EXPLORATORY
    assert f"{path} differ between the arms in every run" in " ".join(found.cannot)


def test_machines_that_both_arms_ran_on_are_no_confounder() -> None:
    specs = study(effect=1.10, noise=0.005)
    for number, spec in enumerate(specs):
        if number % 4 < 2:
            spec.measured["hw.observed.uuid"] = OTHERS
    assert only(specs).standing is Standing.CLAIM


def test_a_fresh_machine_for_every_run_is_no_confounder() -> None:
    """As serverless surfaces give them out: then the machine is drawn anew with each run, as all else is."""
    specs = study(effect=1.10, noise=0.005)
    for number, spec in enumerate(specs):
        spec.measured["hw.observed.uuid"] = [f"GPU-{number}"]
    assert only(specs).standing is Standing.CLAIM
    candidates(specs)[0].measured["hw.observed.uuid"] = candidates(specs)[1].measured["hw.observed.uuid"]
    assert only(specs).standing is Standing.EXPLORATORY, "fewer machines than a verdict needs runs"


def test_other_machines_are_no_confounder_of_the_hardware_itself() -> None:
    specs = study(effect=1.10, noise=0.005, vary=("hardware",))
    for spec in specs:
        spec.entry = "entry"
    for spec in candidates(specs):
        spec.measured["hw.observed.uuid"] = OTHERS
        spec.measured["hw.observed.power_limit_w"] = 600
    assert only(specs).standing is Standing.CLAIM


def test_what_nobody_looked_for_is_not_ruled_out() -> None:
    """Inside a container nobody sees the processes of others: that is no proof that there were none."""
    specs = study()
    assert "disturbed" not in " ".join(only(specs).cannot)
    for spec in candidates(specs):
        spec.measured["hw.observed.cotenants"] = None
    specs[0].measured["compile.recompiles"] = None
    told = " ".join(only(specs).cannot)
    assert "nobody looked for processes of others in 6 of 12 runs, recompiles in 1 of 12 runs" in told
    assert "disturbed" not in " ".join(only(specs, metric="wall").cannot), "only of figures of the window"


def test_other_clocks_are_told() -> None:
    specs = study()
    for spec in candidates(specs):
        spec.measured["hw.observed.clock_sm_mhz"] = {"p50": 1400, "min": 1350}
    told = " ".join(only(specs).cannot)
    assert "1980 MHz in base, 1400 MHz in candidate" in told
    for odd in ({"p50": "fast"}, {"p50": 0}, {}):
        for spec in candidates(specs):
            spec.measured["hw.observed.clock_sm_mhz"] = odd
        assert "MHz" not in " ".join(only(specs).cannot)


def test_a_power_cap_on_one_of_several_machines_counts() -> None:
    """Of a run on two machines each tells of its own throttling."""
    specs = study()
    for spec in specs:
        spec.measured["hw.observed.throttle_reasons"] = ["sw_power_cap 5%", "sw_power_cap 5%"]
    assert only(specs).refusals == ()
    planted.candidates(specs)[0].measured["hw.observed.throttle_reasons"] = [
        "sw_power_cap 90%",
        "sw_power_cap 5%",
    ]
    assert [r.code for r in only(specs).refusals] == ["UNSTABLE_WINDOW"]


def test_runs_that_shared_their_machine_make_no_claim() -> None:
    """A wave of runs side by side on one machine: each slows the others, by nobody knows how much."""
    specs = study(effect=1.10, noise=0.005)
    assert only(specs).standing is Standing.CLAIM
    specs[1].at_us = specs[0].at_us + 300_000_000
    found = only(specs)
    assert found.standing is Standing.EXPLORATORY
    assert "2 runs shared their machine with another of them" in " ".join(found.cannot)
    specs[1].measured["clock.boot_id"] = "b-2"
    assert only(specs).standing is Standing.CLAIM, "side by side on two machines"
    specs[1].measured["clock.boot_id"] = "b-1"
    specs[1].at_us = specs[0].at_us + 599_000_000
    assert only(specs).standing is Standing.CLAIM, "a second of ten minutes is the roundness of clocks"


def test_a_long_run_shares_its_machine_with_all_that_run_beside_it() -> None:
    specs = study(effect=1.10, noise=0.005)
    specs[0].measured["timing.run_us"] = 6 * planted.HOUR
    told = " ".join(only(specs).cannot)
    assert "6 runs shared their machine" in told, told
