"""Proves that clocks of the steady window are those sampled between its first and its last step."""

from __future__ import annotations

import json
from pathlib import Path

from compute_router.supervisor import runs
from compute_router.supervisor.observing import sampling
from compute_router.supervisor.observing.facts import Look


def test_an_evaluation_between_steps_does_not_move_the_window(tmp_path: Path) -> None:
    attempt = runs.Attempt(runs.Run(str(tmp_path), "r" * 26), 1)
    Path(attempt.path).mkdir(parents=True)
    # The counted steps last one second each, with 20 s of evaluation between the second and the third.
    ends = [9, 10, 11, 32, 33]
    steps = [
        {"step": n, "step_us": 1_000_000, "t_us": 1_800_000_000_000_000 + at * 1_000_000,
         "mono_us": at * 1_000_000}
        for n, at in enumerate(ends)
    ]  # fmt: skip
    Path(attempt.at("metrics.jsonl")).write_text("".join(json.dumps(s) + "\n" for s in steps))
    rows = [
        {"mono_us": at * 1_000_000, "gpus": [{"sm_mhz": mhz}]}
        for at, mhz in ((5, 100), (10, 1500), (32, 1700), (40, 200))
    ]
    Path(attempt.at("samples.jsonl")).write_text("".join(json.dumps(r) + "\n" for r in rows))
    clocks = sampling.accelerators(Look(attempt, {}))["clock_sm_mhz"]
    assert clocks == {"p50": 1500, "min": 1500, "samples": 2, "window": "steady"}
