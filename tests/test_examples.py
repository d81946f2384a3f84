"""Proves the examples by themselves, on real torch: they learn, resume, share a batch, accept and reject."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Route

TOP = Path(__file__).resolve().parent.parent
TRAIN = TOP / "examples" / "train_char_gpt.py"
TINY = ("--device", "cpu", "--steps", "12", "--batch", "4", "--checkpoint-every", "4")

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed"),
    pytest.mark.slow,
]


def surroundings(folder: Path, **more: str) -> dict[str, str]:
    """What an example sees: three places of its own, and nothing of a router around this test."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ROUTE_")}
    places = {
        "ROUTE_METRICS": str(folder / "metrics.jsonl"),
        "ROUTE_OUTPUTS": str(folder / "outputs"),
        "ROUTE_CHECKPOINTS": str(folder / "checkpoints"),
    }
    return {**kept, **places, "OMP_NUM_THREADS": "1", **more}


def call(folder: Path, *command: object, code: int = 0, **more: str) -> str:
    """Run Python with `command` in `folder`; its output. Its exit code must be `code`."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env=surroundings(folder, **more),
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in lines(folder) if "loss" in line and "step" in line}


def event(folder: Path, name: str) -> dict[str, Any]:
    """The last line of that event."""
    return [line for line in lines(folder) if line.get("event") == name][-1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training of twelve steps that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    call(folder, TRAIN, *TINY)
    return folder


def test_training_learns_and_tells_what_it_did(tmp_path: Path) -> None:
    call(tmp_path, TRAIN, "--device", "cpu", "--steps", "30", "--batch", "8")
    seen = losses(tmp_path)
    assert list(seen) == list(range(30))
    assert seen[0] > 4.0, "an untrained model should know next to nothing of 97 characters"
    assert sum(list(seen.values())[-5:]) / 5 < seen[0] - 0.8
    summary = json.loads((tmp_path / "outputs" / "summary.json").read_text())
    assert summary["loss_held_out"] < seen[0] - 0.8
    assert (summary["device"], summary["kernel"], summary["first_step"]) == ("cpu", "flash", 0)
    assert summary["host_rss_peak"] > 50 << 20
    assert len((tmp_path / "outputs" / "sample.txt").read_text()) == 4 + 240 + 1
    kernel = event(tmp_path, "kernel")
    assert (kernel["requested"], kernel["observed"]) == ("flash", "flash")
    assert event(tmp_path, "eval")["off"] is True, "none inside the measured window"
    assert {line["tokens"] for line in lines(tmp_path) if "step" in line} == {8 * 128}


def test_another_seed_is_another_training(whole: Path, tmp_path: Path) -> None:
    call(tmp_path, TRAIN, *TINY, "--steps", "1", "--seed", "1")
    assert abs(losses(tmp_path)[0] - losses(whole)[0]) > 1e-4


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda n: n.name)
def test_training_that_was_ended_goes_on_where_it_was(
    number: signal.Signals, whole: Path, tmp_path: Path
) -> None:
    """Killed, it goes on from the last checkpoint; asked to end, from the step it was at."""
    process = subprocess.Popen(
        [sys.executable, str(TRAIN), *TINY],
        cwd=tmp_path,
        env=surroundings(tmp_path),
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "metrics.jsonl").exists() or 5 not in losses_so_far(tmp_path):
        assert process.poll() is None, "it ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    assert process.wait(timeout=30) == -number
    before = losses_so_far(tmp_path)
    assert not list((tmp_path / "checkpoints").glob("*.part")) or number == signal.SIGKILL

    (tmp_path / "metrics.jsonl").unlink()
    said = call(tmp_path, TRAIN, *TINY)
    after = losses(tmp_path)
    first = min(after)
    assert f"resumed at step {first} of 12" in said
    assert first % 4 == 0 if number == signal.SIGKILL else first == max(before) + 1
    assert 4 <= first <= max(before) + 1
    assert list(after) == list(range(first, 12))
    assert before | after == pytest.approx(losses(whole), rel=1e-4)


def losses_so_far(folder: Path) -> dict[int, float]:
    """Losses of a metrics file that is being written: a last line without its end is left out."""
    found = {}
    for row in (folder / "metrics.jsonl").read_text().split("\n")[:-1]:
        line = json.loads(row)
        if "step" in line and "loss" in line:
            found[line["step"]] = line["loss"]
    return found


def test_a_finished_training_is_not_trained_again_and_fresh_is_the_same_again(
    whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
    assert "resumed at step 12 of 12" in call(tmp_path, TRAIN, *TINY)
    assert losses(tmp_path) == {}
    assert "resumed" not in call(tmp_path, TRAIN, *TINY, "--fresh")
    assert losses(tmp_path) == pytest.approx(losses(whole), rel=1e-5)
    texts = [json.loads((f / "outputs" / "summary.json").read_text())["text"] for f in (whole, tmp_path)]
    assert texts[0] == texts[1]


def test_two_ranks_share_the_global_batch(whole: Path, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = ("-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-addr", "127.0.0.1")
    said = call(tmp_path, *ranks, "--master-port", port, TRAIN, *TINY)
    assert "on 2 x cpu" in said
    assert losses(tmp_path) == pytest.approx(losses(whole), rel=1e-3), "two halves of a batch are the batch"
    steps = [line for line in lines(tmp_path) if "step" in line]
    assert len(steps) == 12, "rank 0 alone reports"
    assert {line["tokens"] for line in steps} == {4 * 128}
    assert json.loads((tmp_path / "outputs" / "summary.json").read_text())["world"] == 2


def test_without_the_router_an_example_keeps_to_its_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(TRAIN), "--device", "cpu", "--steps", "2", "--batch", "2"],
        cwd=tmp_path,
        env={k: v for k, v in surroundings(tmp_path).items() if not k.startswith("ROUTE_")},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoints", "results"]
    assert sorted(p.name for p in (tmp_path / "results").iterdir()) == ["sample.txt", "summary.json"]


@pytest.mark.parametrize("name", ["train_char_gpt", "bench_matmul", "validate_attention"])
def test_a_device_that_is_not_there_is_an_error_of_one_line(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(TOP / "examples" / f"{name}.py"), "--device", "cuda"],
        cwd=tmp_path,
        env=surroundings(tmp_path, CUDA_VISIBLE_DEVICES=""),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{done.stderr.splitlines()[0]}\n"
    assert "mend: --device cpu" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_reporting_module_of_the_supervisor_is_used_where_it_is(tmp_path: Path) -> None:
    reporting = tmp_path / "path"
    reporting.mkdir()
    (reporting / "route_report.py").write_text(
        (TOP / "router" / "supervisor" / "report" / "route_report.py").read_text()
    )
    call(tmp_path, TRAIN, *TINY, "--steps", "2", PYTHONPATH=str(reporting))
    assert list(losses(tmp_path)) == [0, 1]
    assert all("mono_us" in line for line in lines(tmp_path)), "these lines were written by hand"
    assert event(tmp_path, "cache")["verdict"] == "disabled"


def test_the_bench_checks_before_it_believes(tmp_path: Path) -> None:
    said = call(tmp_path, TOP / "examples" / "bench_matmul.py", "--device", "cpu", "--size", "tiny")
    found = json.loads((tmp_path / "outputs" / "roofline.json").read_text())
    assert found["right"] is True
    assert {(c["format"], c["edge"]) for c in found["cases"]} >= {("float32", 64), ("float32", 256)}
    for case in found["cases"]:
        assert case["flop"] == 2 * case["edge"] ** 3
        size = 4 if case["format"] == "float32" else 2
        assert case["bytes"] == 3 * case["edge"] ** 2 * size
        assert case["flops_best"] >= case["flops_median"] > 0
        assert case["flops_best"] == pytest.approx(case["flop"] / min(case["seconds"]))
        assert 0 <= case["error"] <= 1
    for name, ridge in found["ridge_flop_per_byte"].items():
        best = max(c["flops_best"] for c in found["cases"] if c["format"] == name)
        assert ridge == pytest.approx(best / max(found["bandwidth_bytes_s"].values()))
        assert f"{name}: best" in said
    steps = [line for line in lines(tmp_path) if "step" in line]
    assert len(steps) == len(found["cases"])
    assert max(s["tflops"] for s in steps) == steps[-1]["tflops_best"]
    assert event(tmp_path, "kernel")["observed"] == "aten::mm"


def test_the_bench_refuses_a_wrong_product(tmp_path: Path) -> None:
    """A product that is off by one part in ten thousand is no product, however fast it is."""
    wrong = (
        "import runpy, sys, torch\n"
        "real = torch.Tensor.__matmul__\n"
        "def off(a, b):\n"
        "    found = real(a, b)\n"
        "    return found * 1.0001 if found.dtype is torch.float32 and found.numel() > 4096 else found\n"
        "torch.Tensor.__matmul__ = off\n"
        "sys.argv = ['bench', '--device', 'cpu', '--size', 'tiny', '--formats', 'float32']\n"
        f"runpy.run_path({str(TOP / 'examples' / 'bench_matmul.py')!r}, run_name='__main__')\n"
    )
    said = call(tmp_path, "-c", wrong, code=1)
    assert "float32 is wrong" in said
    assert json.loads((tmp_path / "outputs" / "roofline.json").read_text())["right"] is False


VALIDATE = (TOP / "examples" / "validate_attention.py", "--device", "cpu", "--size", "tiny")


def test_the_validation_accepts_what_is_right(tmp_path: Path) -> None:
    said = call(tmp_path, *VALIDATE)
    verdict = event(tmp_path, "verdict")
    assert verdict["status"] == "accept"
    assert verdict["ready"] is False, "a tiny grid is no reason to promote"
    assert all(criterion["ok"] is True for criterion in verdict["criteria"])
    assert len(verdict["criteria"]) == 2 * 2 * 4 + 2, "two formats, two masks, four tensors, and two more"
    kernel = event(tmp_path, "kernel")
    assert (kernel["requested"], kernel["observed"]) == ("flash", "flash")
    assert "accept: 18 of 18" in said


@pytest.mark.parametrize("fault", ["tail", "scale", "mask"])
def test_the_validation_finds_a_fault(fault: str, tmp_path: Path) -> None:
    said = call(tmp_path, *VALIDATE, "--inject-fault", fault, code=1)
    verdict = event(tmp_path, "verdict")
    assert (verdict["status"], verdict["ready"]) == ("reject", False)
    unmet = {c["name"] for c in verdict["criteria"] if not c["ok"]}
    assert {"float32/full/out", "float32/causal/out", "float32/full/dq", "float32/full/dv"} <= unmet
    assert not {"dispatched/flash", "control/forgotten-key"} & unmet
    assert said.splitlines()[-1].startswith("reject: ")


def test_the_validation_tells_another_kernel_from_the_one_asked_for(tmp_path: Path) -> None:
    call(tmp_path, *VALIDATE, "--kernel", "math")
    assert event(tmp_path, "kernel")["observed"] == "math"


def receipt_of(route: Route, *args: str, code: int = 0) -> dict[str, Any]:
    """The receipt of `route run --json ARGS`, which must exit with `code`."""
    done = route("run", "--json", *args, timeout=120, cwd=TOP, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    receipt: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["data"]
    return receipt


def test_a_routed_training_has_its_figures_in_the_receipt(route: Route) -> None:
    receipt = receipt_of(route, "train:char-gpt", "--", *TINY)
    context = receipt["context"]
    assert context["outcome"]["state"]["v"] == "succeeded"
    assert context["checks"]["success"]["v"] is True
    assert context["checks"]["eval_off"]["v"] is True
    assert receipt["measured"]["kernel"]["observed"]["v"] == "flash"
    assert context["steady"]["n_steps"]["v"] == 11, "the first of twelve is discarded"
    assert float(receipt["measured"]["metrics"]["tok_s_global"]["v"]) > 0
    assert {"summary.json", "sample.txt"} <= {Path(a["path"]).name for a in receipt["measured"]["artifacts"]}


@pytest.mark.parametrize(("fault", "verdict", "code"), [("none", "accept", 0), ("tail", "reject", 1)])
def test_a_routed_validation_has_its_verdict_in_the_receipt(
    fault: str, verdict: str, code: int, route: Route
) -> None:
    args = (*map(str, VALIDATE[1:]), "--inject-fault", fault)
    receipt = receipt_of(route, "validate:attention", "--", *args, code=code)
    promotion = receipt["context"]["promotion"]
    assert promotion["status"]["v"] == verdict
    assert promotion["ready"]["v"] is False
    assert len(promotion["criteria"]["v"]) == 18
    assert receipt["context"]["checks"]["success"]["v"] is True, "to reject is as good a result"
