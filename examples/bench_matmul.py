"""A roofline of this machine: matrix products over sizes and number formats, and the memory's bandwidth.

It times products warm, several times over, and checks one product of each format against float64 before it
believes any time. A table goes to stdout, everything to roofline.json in $ROUTE_OUTPUTS (else ./results).
"""
# /// script
# requires-python = ">=3.11"
# dependencies = ["torch>=2.6", "numpy"]
#
# [tool.route]
# name = "matmul"
# kind = "bench"
# purpose = "benchmark"
# accelerator = "cpu"
# framework = "torch"
# args = ["--device", "cpu"]
# python = "current"                # the Python that is there, though dependencies are listed
# timeout = "15m"
#
# [tool.route.metrics]
# primary = "tflops_best"
# discard_steps = 0                 # the warm-up is inside: a step is one format at one size
#
# [tool.route.fields]
# family = "gemm"
# operation = "matmul"
# ///

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")
import torch

SIZES = {
    "tiny": ([64, 128, 256], 4 << 20, 0.2),
    "small": ([256, 512, 1024, 1536], 128 << 20, 4.0),
    "large": ([1024, 2048, 4096, 8192, 16384], 2 << 30, 20.0),
}
"""--size -> the edges of the square matrices, bytes of one array for the bandwidth, most seconds for a case."""

FORMATS = {
    "float32": (torch.float32, 2.0**-24, 0.0),
    "tf32": (torch.float32, 2.0**-24, 2.0**-11),
    "bfloat16": (torch.bfloat16, 2.0**-8, 0.0),
    "float16": (torch.float16, 2.0**-11, 0.0),
}
"""Format -> dtype, the most its result is rounded by, and the most its operands are (relative)."""


def report(event: str, /, **values: Any) -> None:
    """One line for the receipt: by `route_report` where the router put it on the path, else by hand."""
    try:
        import route_report
    except ImportError:
        if path := os.environ.get("ROUTE_METRICS"):
            line = values if event == "step" else {"event": event, **values}
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    else:
        route_report.step(**values) if event == "step" else route_report.note(event, **values)


def take_device(asked: str) -> torch.device:
    """The device asked for; `auto` is CUDA where there is one."""
    if asked == "cuda" and not torch.cuda.is_available():
        sys.exit("bench_matmul: torch sees no CUDA device (mend: --device cpu, or a torch made for CUDA)")
    return torch.device("cuda" if asked != "cpu" and torch.cuda.is_available() else "cpu")


def formats_of(device: torch.device) -> list[str]:
    """The number formats the device has. Nothing is emulated."""
    if device.type == "cpu":
        return ["float32", "bfloat16", "float16"]
    ampere = torch.cuda.get_device_capability(device) >= (8, 0)
    return ["float32", "tf32", "bfloat16", "float16"] if ampere else ["float32", "float16"]


def use(name: str) -> torch.dtype:
    """Set what torch may do to float32 products and to sums of half formats; the dtype of the operands."""
    torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    return FORMATS[name][0]


def seconds_of(run: Callable[[], Any], device: torch.device, repeats: int, most: float) -> list[float]:
    """Durations of `repeats` calls after two that are thrown away; at least three, and fewer than asked for
    if they would take longer than `most` seconds. On CUDA by events, so that the launch is not timed."""
    cuda = device.type == "cuda"

    def once() -> float:
        if cuda:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            run()
            end.record()
            end.synchronize()
            return float(begin.elapsed_time(end)) / 1000
        began = time.perf_counter()
        run()
        return time.perf_counter() - began

    once()
    spent = once()
    count = max(3, min(repeats, int(most / max(spent, 1e-9))))
    return [once() for _ in range(count)]


def worst_error(name: str, device: torch.device, edge: int) -> float:
    """How far one product is off, as a part of what rounding allows: above 1 the product is wrong.

    For C = A B with sums of length k in float32 the componentwise bound is g |A||B| + r |C| with
    g = k u / (1 - k u), u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, 2002,
    section 3.5) and r the rounding of the result; operands rounded by t add (2 t + t^2) |A||B|.
    """
    dtype, rounded, truncated = FORMATS[name]
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(edge, edge, generator=generator).to(dtype) for _ in range(2))
    found = (a.to(device) @ b.to(device)).double().cpu()
    exact, total = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    unit = edge * 2.0**-24
    allowed = (unit / (1 - unit) + 2 * truncated + truncated**2) * total + rounded * exact.abs()
    return float(((found - exact).abs() / allowed).max())


def bandwidth(device: torch.device, array: int, repeats: int, most: float) -> dict[str, float]:
    """Bytes per second of copy (read 1, write 1) and triad a = b + s c (read 2, write 1).

    The two kernels and their way of counting are STREAM's (McCalpin, 1995): what a cache reads in
    order to write is not counted. Arrays must be much larger than the last cache.
    """
    a, b, c = (torch.rand(array // 4, device=device) for _ in range(3))
    runs = {"copy": (2, lambda: a.copy_(b)), "triad": (3, lambda: torch.add(b, c, alpha=3.0, out=a))}
    return {n: k * array / min(seconds_of(run, device, repeats, most)) for n, (k, run) in runs.items()}


def kernels_of(run: Callable[[], Any], device: torch.device) -> tuple[str, list[str]]:
    """The torch operator that was dispatched, and the names of the kernels it started on the device."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    with torch.profiler.profile(activities=kinds, acc_events=True) as profile:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
    names = [event.key for event in profile.key_averages()]
    operator = next((n for n in names if n in ("aten::mm", "aten::addmm", "aten::bmm")), "unobserved")
    on_device = [e.key for e in profile.key_averages() if e.device_type != torch.autograd.DeviceType.CPU]
    return operator, on_device[:5]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--size", choices=tuple(SIZES), help="default: small on a CPU, large on a GPU")
    parser.add_argument("--edges", help="edges of the square matrices, e.g. 512,1024 (default: the size's)")
    parser.add_argument("--formats", help=f"of {', '.join(FORMATS)} (default: those the device has)")
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args()
    device = take_device(given.device)
    size = given.size or ("large" if device.type == "cuda" else "small")
    edges, array, most = SIZES[size]
    try:
        edges = [int(edge) for edge in given.edges.split(",")] if given.edges else edges
    except ValueError:
        parser.error(f"--edges {given.edges!r} is no list of whole numbers")
    names = given.formats.split(",") if given.formats else formats_of(device)
    if min(edges) < 1 or given.repeats < 1:
        parser.error("edges and repeats are at least 1")
    if unknown := [name for name in names if name not in FORMATS]:
        parser.error(f"there is no format {unknown[0]!r}; there are {', '.join(FORMATS)}")
    model = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(f"{model}, torch {torch.__version__}, {torch.get_num_threads()} threads", flush=True)

    torch.manual_seed(0)
    report("fields", dtype="+".join(names), seed=0, repeats=given.repeats, sizes=",".join(map(str, edges)),
           deterministic=torch.are_deterministic_algorithms_enabled())  # fmt: skip
    probe = torch.rand(64, 64, device=device)
    operator, started = kernels_of(lambda: probe @ probe, device)
    report("kernel", requested="aten::mm", observed=operator, device_kernels=started)
    speeds = bandwidth(device, array, given.repeats, most)
    report("bandwidth", **{f"{name}_bytes_s": round(speed) for name, speed in speeds.items()})
    print(
        "memory: " + ", ".join(f"{name} {speed / 1e9:.1f} GB/s" for name, speed in speeds.items()), flush=True
    )

    right, rows, skipped = True, [], []
    print(f"{'format':>9} {'edge':>6} {'best':>9} {'median':>9} TFLOP/s  {'flop/byte':>9}  {'runs':>4}")
    for name in names:
        dtype = use(name)
        error = worst_error(name, device, min(256, max(edges)))
        if not error <= 1:
            right = False
            print(f"{name:>9} is wrong: an error of {error:.3g} times what rounding allows", flush=True)
            continue
        for edge in edges:
            item = torch.empty(0, dtype=dtype).element_size()
            flops, moved = 2 * edge**3, 3 * edge * edge * item
            before = [row for row in rows if row["format"] == name]
            if before and 5 * flops / before[-1]["flops_median"] > most:
                skipped.append(
                    {"format": name, "edge": edge, "why": f"five products would take over {most:g} s"}
                )
                print(f"{name:>9} {edge:>6} skipped: {skipped[-1]['why']}", flush=True)
                continue
            began = time.perf_counter()
            a, b = (torch.randn(edge, edge, device=device).to(dtype) for _ in range(2))
            out = torch.empty(edge, edge, device=device, dtype=dtype)
            times = seconds_of(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), device, given.repeats, most)
            row = {"format": name, "edge": edge, "runs": len(times), "error": error}
            row |= {"flops_best": flops / min(times), "flops_median": flops / statistics.median(times)}
            row |= {"flop": flops, "bytes": moved, "intensity": flops / moved, "seconds": times}
            rows.append(row)
            best, median = row["flops_best"] / 1e12, row["flops_median"] / 1e12
            top = max(r["flops_best"] for r in rows) / 1e12
            spent = round((time.perf_counter() - began) * 1e6)
            report("step", step=len(rows) - 1, step_us=spent, edge=edge, tflops=best, tflops_median=median,
                   tflops_best=top)  # fmt: skip
            print(
                f"{name:>9} {edge:>6} {best:9.4f} {median:9.4f}          {row['intensity']:>9.1f}  {len(times):>4}",
                flush=True,
            )

    # Below the ridge point memory is the limit, above it arithmetic (Williams, Waterman, Patterson, 2009).
    peaks = {n: max(r["flops_best"] for r in rows if r["format"] == n) for n in {r["format"] for r in rows}}
    ridges = {name: peak / max(speeds.values()) for name, peak in sorted(peaks.items())}
    for name, ridge in ridges.items():
        print(f"{name}: best {peaks[name] / 1e12:.3f} TFLOP/s, ridge point {ridge:.2f} flop/byte")
    folder = Path(os.environ.get("ROUTE_OUTPUTS") or "results")
    folder.mkdir(parents=True, exist_ok=True)
    found = {"device": model, "torch": torch.__version__, "threads": torch.get_num_threads(), "size": size}
    found |= {"bandwidth_bytes_s": speeds, "ridge_flop_per_byte": ridges, "cases": rows, "skipped": skipped}
    (folder / "roofline.json").write_text(
        json.dumps({**found, "right": right}, indent=2) + "\n", encoding="utf-8"
    )
    return 0 if right and rows else 1


if __name__ == "__main__":
    sys.exit(main())
