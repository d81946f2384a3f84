"""Proves the state and verdict of compile caches on real torch: cold, warm, disabled, unwritable, seeded."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from conftest import Route

TOP = Path(__file__).resolve().parent.parent
TRAIN = TOP / "examples" / "train_char_gpt.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),  # compiling takes a minute, and many on a machine that others use
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler for the CPU"),
]

SMALL = """
# /// script
# [tool.route]
# name = "small"
# kind = "train"
# python = "current"
# framework = "torch"
# accelerator = "cpu"
# shapes = "small/8"
# warmth = "warm"
# volumes = { compile-cache = "/cache" }
# ///
import torch, route_report

@torch.compile
def work(x):
    return torch.nn.functional.gelu(x) * 2

for i in range(4):
    work(torch.ones(8))
    route_report.step(i, tokens=8, loss=1.0)
"""
GPT = ("--compile", "--fresh", "--steps", "4", "--batch", "4")
QUICK = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
CXX = '#!/bin/sh\nfor a do shift; [ "$a" = -O3 ] && a=-O0; set -- "$@" "$a"; done\nexec g++ "$@"\n'
"""The real compiler without its optimiser, whose minutes would prove nothing here."""


class Runs:
    """A folder, a home, and `route` in them; receipts by the order of their runs."""

    def __init__(self, top: Path) -> None:
        self.folder, self.home = top / "project", top / "home"
        self.folder.mkdir()
        self.cxx = top / "g++"
        self.cxx.write_text(CXX)
        self.cxx.chmod(0o755)

    def __call__(self, *args: str, code: int = 0) -> CompletedProcess[str]:
        import subprocess

        from conftest import ROUTE

        env = {
            **os.environ,
            **QUICK,
            "CXX": str(self.cxx),
            "ROUTE_HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.folder),
        }
        done = subprocess.run(
            [*ROUTE, *args],
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=900,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def receipt(self) -> dict[str, Any]:
        """That of the newest run."""
        newest = max((self.home / "runs").iterdir())
        found: dict[str, Any] = json.loads((newest / "receipt.json").read_bytes())
        return found


def inductor(receipt: dict[str, Any]) -> dict[str, Any]:
    fact = receipt["context"]["cache"]
    assert fact["src"] == "observed:inside", "not the work's own word"
    (item,) = fact["v"]
    assert item["kind"] == "inductor"
    return dict(item)


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Runs, dict[str, dict[str, Any]]]:
    """The char-GPT under torch.compile, twice with one cache."""
    runs, made = Runs(tmp_path_factory.mktemp("gpt")), {}
    (runs.folder / "train.py").write_bytes(TRAIN.read_bytes())
    declared = ("--set", "volumes.compile-cache=/cache")
    for name in ("cold", "warm"):
        runs("run", "train.py", *declared, "--", "--device", "cpu", *GPT)
        made[name] = runs.receipt()
    return runs, made


Gpt = tuple[Runs, dict[str, dict[str, Any]]]


def test_cold_and_warm_are_told_from_counters(gpt: Gpt) -> None:
    cold, warm = (inductor(gpt[1][name]) for name in ("cold", "warm"))
    assert (cold["state"], cold["verdict"], cold["seed_source"]) == ("empty", "miss", "none")
    assert (warm["state"], warm["verdict"], warm["seed_source"]) == ("warm_same_key", "hit", "previous_run")
    assert (cold["hits"], warm["misses"]) == (0, 0)
    assert cold["misses"] == warm["hits"] > 0
    assert cold["entries_start"] == 0 < cold["entries_end"] == warm["entries_start"]
    assert cold["key_sha256"] == warm["key_sha256"]
    assert float(cold["seconds"]) > float(warm["seconds"]) > 0, "seconds of compiling, beside the counters"


VARIES = (
    # Who and when.
    *("receipt_id", "run_id", "idempotency_key", "created_us", "chain", "measured_sha256", "measured"),
    *("outcome.started_us", "outcome.ended_us", "outcome.log_tail_sha256", "lifecycle", "artifacts"),
    *(
        "decision.",
        "clock.",
        "workload.digest",
        "mem.",
        "timing.",
        "distributed.first_step_us",
        "steady.step_us",
        "env.fp",
    ),
    *("storage", "volumes", "metrics.values", "metrics.tok_s_global", "offer."),
    # What this is about.
    *("cache", "compile.cache_hits", "comparability"),
    # A first run may build what a second one finds.
    *("startup.class", "hw.observed.clock_sm_mhz"),
)


def flat(receipt: dict[str, Any]) -> dict[str, Any]:
    """Every fact by its path, without when it was seen."""
    from compute_router.receipt.facts import leaves

    rest = {k: v for k, v in receipt.items() if k != "context"}
    found = {**rest, **dict(leaves(receipt["context"]))}
    return {
        p: {k: v for k, v in f.items() if k != "at"} if isinstance(f, dict) else f for p, f in found.items()
    }


def test_the_two_receipts_differ_in_the_cache_and_in_nothing_else_that_matters(gpt: Gpt) -> None:
    cold, warm = flat(gpt[1]["cold"]), flat(gpt[1]["warm"])
    assert set(cold) == set(warm)
    differ = {path for path in cold if cold[path] != warm[path]}
    assert "cache" in differ
    assert not {p for p in differ if not p.startswith(VARIES)}
    keys = [receipt["comparability"]["fields"] for receipt in (gpt[1]["cold"], gpt[1]["warm"])]
    # What nobody saw is never equal: it says nothing of the two runs.
    seen = {p for p in keys[0] if keys[0][p] != keys[1][p] and "unobserved" not in json.dumps(keys[0][p])}
    assert seen <= {"cache", "startup.class"}
    assert "cache" in seen


def test_what_was_compiled_is_seen(gpt: Gpt) -> None:
    for receipt in gpt[1].values():
        told = {name: fact["v"] for name, fact in receipt["context"]["compile"].items()}
        assert told["posture"] == "whole_graph"
        assert told["programs"] >= 1
        assert told["recompiles"] == 0, "none between the first step that counts and the last"
        assert told["warmup"] is True
        assert receipt["measured"]["compile"]["graph_breaks"]["v"] == 0
        assert not list((gpt[0].home / "machine" / "runs" / receipt["run_id"]).rglob("*torch_trace*"))


def test_another_stack_or_world_is_another_key(gpt: Gpt) -> None:
    from compute_router.supervisor import stamps

    volume = gpt[0].home / "machine" / "volumes" / "compile-cache" / "char-gpt"
    (stamp,) = [json.loads(p.read_bytes()) for p in (volume / ".route").glob("*.json")]
    parts = stamp["parts"]
    assert stamps.state(str(volume), stamp["key"], parts) == "warm_same_key"
    for change, expected in (
        ({"world": 8}, "warm_other_world"),
        ({"world": 8, "accelerator": ["cpu", "", 8]}, "warm_other_world"),
        ({"stack": {**parts["stack"], "torch": "2.6.0"}}, "warm_other_image"),
        ({"world": 8, "python": "3.9"}, "warm_other_image"),
        ({"accelerator": ["gpu", "H200", 1]}, "warm_other_image"),
        ({"shapes": "other"}, "partial"),
    ):
        assert stamps.state(str(volume), "f" * 64, {**parts, **change}) == expected, change


def test_a_warm_claim_is_refused_seeded_by_route_warm_and_then_accepted(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    (runs.folder / "small.py").write_text(SMALL)
    refused = runs("run", "small.py", code=65)
    assert "route warm small.py --backend local" in refused.stderr
    assert not (runs.home / "runs").exists() or not list((runs.home / "runs").iterdir())

    runs("warm", "small.py")
    seeding = runs.receipt()
    assert (inductor(seeding)["state"], inductor(seeding)["verdict"]) == ("empty", "miss")
    assert seeding["context"]["startup"]["seeding"]["v"] is True
    assert seeding["evidence_class"] == "invalid"
    assert "SEEDING" in {reason["code"] for reason in seeding["evidence_reasons"]}

    runs("run", "small.py")
    claim = runs.receipt()
    assert (inductor(claim)["state"], inductor(claim)["verdict"]) == ("warm_same_key", "hit")
    assert claim["context"]["startup"]["seeding"]["v"] is False
    assert "SEEDING" not in {reason["code"] for reason in claim["evidence_reasons"]}
    assert inductor(claim)["key_sha256"] == inductor(seeding)["key_sha256"]

    runs("run", "small.py", "--set", "env.TORCHINDUCTOR_FORCE_DISABLE_CACHES=1")
    off = inductor(runs.receipt())
    assert (off["state"], off["verdict"], off["hits"], off["misses"]) == ("disabled", "disabled", 0, 0)
    assert off["key_sha256"] == inductor(seeding)["key_sha256"], "the stamp of which stands as it was"

    assert "warm for it already" in runs("warm", "small.py").stderr
    assert len(list((runs.home / "runs").iterdir())) == 3, "and nothing was started"
    # The stamp alone warms nothing: what it speaks of must be there.
    volume = runs.home / "machine" / "volumes" / "compile-cache" / "small"
    for path in volume.iterdir():
        if path.name != ".route":
            shutil.rmtree(path)
    runs("run", "small.py", code=65)


EAGER = "volumes.compile-cache=/cache"


def test_two_eager_runs_used_no_cache_and_say_so(route: Route, folder: Path, home: Path) -> None:
    (folder / "eager.py").write_text("import torch\nprint(torch.ones(2).sum().item())\n")
    facts = []
    for _ in range(2):
        assert route("run", "--set", EAGER, "--set", "python=current", "eager.py").returncode == 0
        facts.append(json.loads((max((home / "runs").iterdir()) / "receipt.json").read_bytes()))
    for receipt in facts:
        assert receipt["context"]["cache"]["v"] == []
        assert receipt["context"]["compile"]["posture"]["v"] == "eager"
    first, second = (r["comparability"]["fields"] for r in facts)
    assert first["cache"] == second["cache"] == []
    assert not list((home / "machine" / "volumes").rglob(".route/*.json")), "nothing was seeded"


def test_a_cache_that_cannot_be_written_stops_before_user_code(
    route: Route, folder: Path, home: Path, tmp_path: Path
) -> None:
    (folder / "work.py").write_text("print('user code ran')\n")
    blocked = tmp_path / "file"
    blocked.write_text("")
    for name in ("XLA_PERSISTENT_CACHE_PATH", "JAX_COMPILATION_CACHE_DIR"):
        done = route("run", "--set", f"env.{name}={blocked}/cache", "--set", "python=current", "work.py")
        assert done.returncode != 0
        assert "user code ran" not in done.stdout
        assert "cache cannot be written" in done.stderr
        assert name in done.stderr, "and how to mend it"
