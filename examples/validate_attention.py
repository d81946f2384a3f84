"""Accepts or rejects an attention kernel: forward and gradients against float64, within rounding's own bounds.

Every element of the output and of the three gradients must lie within the error that rounding can explain,
over a sparse grid of shapes, masks and number formats. Exit code 0 = accept, 1 = reject, 2 = bad input.
"""
# /// script
# requires-python = ">=3.11"
# dependencies = ["torch>=2.6", "numpy"]
#
# [tool.route]
# name = "attention"
# kind = "validate"
# purpose = "smoke"
# accelerator = "cpu"
# framework = "torch"
# args = ["--device", "cpu"]
# python = "current"                # the Python that is there, though dependencies are listed
# timeout = "15m"
#
# [tool.route.fields]
# family = "attention"
# subject = "scaled_dot_product_attention"
# reference = "float64, explicit"
# ///

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend as Kernel
from torch.nn.attention import sdpa_kernel

Tensors = tuple[torch.Tensor, ...]
KERNELS = {
    "flash": Kernel.FLASH_ATTENTION,
    "efficient": Kernel.EFFICIENT_ATTENTION,
    "cudnn": Kernel.CUDNN_ATTENTION,
    "math": Kernel.MATH,
}
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""The most one rounding to a format changes a normal number, relative to it (Higham, 2002, section 2.1)."""
SUM = ROUNDING[torch.float32]
"""Sums are kept in float32 by every kernel that may be accepted."""
SLACK = 2.0
"""The bounds are of first order and know nothing of the kernel's blocks, its exp2 or its order of sums."""

SIZES = {
    "tiny": [(1, 1, 1, 1, 16), (2, 2, 33, 33, 16), (1, 2, 17, 65, 32)],
    "small": [
        (1, 1, 1, 1, 16), (2, 3, 7, 7, 32), (1, 2, 64, 64, 64), (2, 2, 127, 127, 64), (1, 4, 128, 128, 128),
        (1, 2, 129, 257, 64), (1, 1, 257, 129, 80), (1, 2, 512, 512, 64), (1, 1, 1000, 1000, 32),
    ],
    "large": [
        (1, 1, 1, 1, 16), (2, 3, 127, 127, 64), (4, 16, 512, 512, 128), (1, 2, 129, 1025, 64),
        (2, 8, 2048, 2048, 128), (1, 4, 4096, 4096, 64), (1, 2, 5000, 5000, 128),
    ],
}  # fmt: skip
"""--size -> shapes (batch, heads, queries, keys, head width), some beside a multiple of every block size."""


def report(event: str, /, **values: Any) -> None:
    """One line for the receipt: by `route_report` where the router put it on the path, else by hand."""
    try:
        import route_report
    except ImportError:
        if path := os.environ.get("ROUTE_METRICS"):
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"event": event, **values}) + "\n")
    else:
        route_report.note(event, **values)


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, up: torch.Tensor, causal: bool
) -> tuple[Tensors, Tensors]:
    """Attention in float64 by its definition: (out, dq, dk, dv) for the gradient `up`, and a bound on the
    rounding error of each element of them, given what one rounding to the operands' format changes.

    First-order componentwise bounds, with g(n) = n u / (1 - n u) for a sum of n terms (Higham, 2002,
    section 3.1), carried through the steps a fused kernel takes: S = q k' / sqrt(d), P = softmax(S), out = P v;
    dP = up v', D = rowsum(up * out), dS = P (dP - D), dq = dS k / sqrt(d), dk = dS' q / sqrt(d), dv = P' up
    (Dao, FlashAttention-2, 2023, algorithms 1 and 2). P, dS and the results are rounded to the format.
    """
    once = ROUNDING[q.dtype]
    q, k, v, up = (t.double() for t in (q, k, v, up))
    queries, keys, width = q.shape[-2], k.shape[-2], q.shape[-1]
    scale = width**-0.5

    def g(n: int) -> float:
        return n * SUM / (1 - n * SUM)

    score = q @ k.mT * scale
    if causal:
        score = score.masked_fill(
            ~torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(), -torch.inf
        )
    p = score.softmax(-1)
    out = p @ v
    dp, d = up @ v.mT, (up * out).sum(-1, keepdim=True)
    ds = p * (dp - d)
    dq, dk, dv = ds @ k * scale, ds.mT @ q * scale, p.mT @ up

    # A score that is off by e makes a weight off by e of itself, and the row's sum by no more than that;
    # a kernel may also round the score as it is.
    off = g(width + 2) * (q.abs() @ k.abs().mT) * scale + SUM * score.abs().nan_to_num(posinf=0.0)
    relative = off + off.masked_fill(p == 0, 0.0).amax(-1, keepdim=True) + g(keys) + 4 * SUM
    out_off = ((relative + once + g(keys)) * p) @ v.abs() + once * out.abs()
    d_off = (up.abs() * out_off).sum(-1, keepdim=True) + g(width) * (up * out).abs().sum(-1, keepdim=True)
    ds_off = relative * ds.abs() + p * (g(width) * (up.abs() @ v.abs().mT) + d_off) + once * ds.abs()
    dq_off = ((ds_off + g(keys) * ds.abs()) @ k.abs()) * scale + once * dq.abs()
    dk_off = ((ds_off + g(queries) * ds.abs()).mT @ q.abs()) * scale + once * dk.abs()
    dv_off = ((relative + once + g(queries)) * p).mT @ up.abs() + once * dv.abs()
    return (out, dq, dk, dv), (out_off, dq_off, dk_off, dv_off)


FAULTS: dict[str, Callable[..., torch.Tensor]] = {
    "none": lambda q, k, v, causal: F.scaled_dot_product_attention(q, k, v, is_causal=causal),
    "tail": lambda q, k, v, causal: F.scaled_dot_product_attention(
        q, k[..., : max(1, k.shape[-2] - 1), :], v[..., : max(1, v.shape[-2] - 1), :], is_causal=causal
    ),
    "scale": lambda q, k, v, causal: F.scaled_dot_product_attention(
        q, k, v, is_causal=causal, scale=1.1 * q.shape[-1] ** -0.5
    ),
    "mask": lambda q, k, v, causal: F.scaled_dot_product_attention(q, k, v, is_causal=not causal),
}
"""Candidates: the right one, and ones that forget the last key, scale wrongly, or mask wrongly."""


@contextlib.contextmanager
def watching(device: torch.device, names: set[str]) -> Iterator[None]:
    """Add the attention operators and device kernels that are dispatched inside to `names`."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if device.type == "cuda" else []
    with torch.profiler.profile(activities=kinds, acc_events=True) as profile:
        yield
        if device.type == "cuda":
            torch.cuda.synchronize()
    words = ("attention", "fmha", "flash")
    names |= {e.key.removeprefix("aten::") for e in profile.key_averages() if any(w in e.key for w in words)}


def kernel_in(names: set[str]) -> str:
    """Which of KERNELS the operators belong to; `unobserved` if none was seen."""
    ran = [k for k in KERNELS if any(f"product_{k}" in n or f"attention_{k}" in n for n in names)]
    return "+".join(ran) or "unobserved"


def ratios(
    attend: Callable[..., torch.Tensor], shape: tuple[int, ...], dtype: torch.dtype, causal: bool,
    device: torch.device, kernel: str, seed: int, names: set[str],
) -> dict[str, float]:  # fmt: skip
    """For out, dq, dk and dv: the largest error as a part of its bound. Infinite where something is not finite."""
    batch, heads, queries, keys, width = shape
    generator = torch.Generator().manual_seed(seed)
    lengths = (queries, keys, keys, queries)
    q, k, v, up = (
        torch.randn(batch, heads, n, width, generator=generator, dtype=torch.float64).to(device, dtype)
        for n in lengths
    )
    for tensor in (q, k, v):
        tensor.requires_grad_()
    with sdpa_kernel([KERNELS[kernel]]), watching(device, names):
        out = attend(q, k, v, causal)
        out.backward(up)
    exact, bounds = reference(q.detach(), k.detach(), v.detach(), up, causal)
    found: dict[str, float] = {}
    tiny = torch.finfo(dtype).tiny  # where numbers have gradual underflow, an absolute error is allowed
    for name, got, right, bound in zip(
        ("out", "dq", "dk", "dv"), (out, q.grad, k.grad, v.grad), exact, bounds, strict=True
    ):
        assert got is not None
        error = (got.detach().double() - right).abs() / (SLACK * bound + tiny)
        found[name] = float(error.max()) if bool(torch.isfinite(got).all()) else float("inf")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--size", choices=tuple(SIZES), help="the grid; default: small on a CPU, large on a GPU"
    )
    parser.add_argument("--kernel", choices=tuple(KERNELS), default="flash", help="the one that is judged")
    parser.add_argument("--compile", action="store_true", help="judge it as torch.compile calls it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inject-fault", choices=tuple(FAULTS), nargs="?", const="tail", default="none")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("validate_attention: torch sees no CUDA device (mend: --device cpu, or another torch)")
    device = torch.device("cuda" if given.device != "cpu" and torch.cuda.is_available() else "cpu")
    size = given.size or ("large" if device.type == "cuda" else "small")
    half = [torch.bfloat16, torch.float16]
    fused_half = device.type == "cuda" and given.kernel in ("flash", "cudnn")
    formats = half if fused_half else [torch.float32, torch.bfloat16]
    attend = torch.compile(FAULTS[given.inject_fault]) if given.compile else FAULTS[given.inject_fault]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(f"{given.kernel} attention on {where}, torch {torch.__version__}, grid {size}, seed {given.seed}")

    report("fields", dtype="+".join(str(f)[6:] for f in formats), seed=given.seed,
           deterministic=torch.are_deterministic_algorithms_enabled())  # fmt: skip
    names: set[str] = set()
    criteria: list[dict[str, Any]] = []
    cases = 0
    for dtype in formats:
        for causal in (False, True):
            worst = dict.fromkeys(("out", "dq", "dk", "dv"), (0.0, ""))
            for shape in SIZES[size]:
                if causal and shape[2] != shape[3]:
                    continue  # libraries do not agree on what that means
                cases += 1
                try:
                    seen = ratios(attend, shape, dtype, causal, device, given.kernel, given.seed, names)
                except RuntimeError as e:
                    seen = dict.fromkeys(worst, float("inf"))
                    print(f"{shape} {dtype} causal={causal}: {str(e).splitlines()[0]}")
                for name, ratio in seen.items():
                    if ratio > worst[name][0]:
                        worst[name] = (ratio, "x".join(map(str, shape)))
            for name, (ratio, at) in worst.items():
                label = f"{str(dtype)[6:]}/{'causal' if causal else 'full'}/{name}"
                why = "" if ratio <= 1 else f"{ratio:.3g} times its bound at {at}"
                criteria.append({"name": label, "ok": ratio <= 1, "why": why, "ratio": f"{ratio:.4f}"})
    observed = kernel_in(names)
    why = "" if observed == given.kernel else f"{observed} ran"
    criteria.append({"name": f"dispatched/{given.kernel}", "ok": observed == given.kernel, "why": why})
    # What cannot fail proves nothing: the same bounds must find a key that is forgotten.
    control = ratios(
        FAULTS["tail"], (1, 1, 33, 33, 16), formats[-1], False, device, given.kernel, given.seed, set()
    )
    found = max(control.values())
    criteria.append(
        {"name": "control/forgotten-key", "ok": found > 1, "why": "" if found > 1 else "not found"}
    )

    for criterion in criteria:
        mark = "ok" if criterion["ok"] else "NOT MET"
        print(
            f"  {criterion['name']:<24} {criterion.get('ratio', ''):>9}  {mark} {criterion['why']}".rstrip()
        )
    accepted = all(criterion["ok"] for criterion in criteria)
    status = "accept" if accepted else "reject"
    ready = accepted and size != "tiny"  # a tiny grid is a look, not a reason to promote
    report("kernel", requested=given.kernel, observed=observed, operators=sorted(names)[:20])
    report("verdict", status=status, verdict=status, criteria=criteria, ready=ready, cases=cases)
    folder = Path(os.environ.get("ROUTE_OUTPUTS") or "results")
    folder.mkdir(parents=True, exist_ok=True)
    verdict = {"verdict": status, "ready": ready, "cases": cases, "size": size, "criteria": criteria}
    verdict |= {"kernel": given.kernel, "observed": observed, "device": where, "torch": torch.__version__}
    (folder / "verdict.json").write_text(json.dumps(verdict, indent=2) + "\n", encoding="utf-8")
    print(f"{status}: {sum(c['ok'] for c in criteria)} of {len(criteria)} criteria met over {cases} cases")
    return 0 if accepted else 1


if __name__ == "__main__":
    sys.exit(main())
