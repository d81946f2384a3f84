"""A character-level GPT, trained on the running Python's own sources: one file for CPU, CUDA and XLA.

Checkpoints go to $ROUTE_CHECKPOINTS (else ./checkpoints) and are resumed from, a summary and a sample to
$ROUTE_OUTPUTS (else ./results). Under torchrun the ranks share the global batch; the trajectory stays.
"""
# /// script
# requires-python = ">=3.11"
# dependencies = ["torch>=2.6", "numpy"]
#
# [tool.route]
# name = "char-gpt"
# kind = "train"
# purpose = "smoke"
# accelerator = "cpu"
# framework = "any"
# args = ["--device", "cpu"]
# python = "current"                # the Python that is there, though dependencies are listed
# shapes = "char-gpt-tiny/bs16/seq128"
# timeout = "30m"
# on_interrupt = "resume"
#
# [tool.route.metrics]
# primary = "tok_s_global"
# discard_steps = 1                 # step 0 holds the profiler and any compiling
#
# [tool.route.fields]
# family = "char-gpt"
# data = "python-stdlib"
# ///

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import hashlib
import json
import math
import os
import resource
import signal
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler of step 0 need not announce itself
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend as Kernel
from torch.nn.attention import sdpa_kernel
from torch.utils._pytree import tree_map_only

RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
CHARACTERS = "\n" + "".join(map(chr, range(32, 127))) + "\N{REPLACEMENT CHARACTER}"
"""The vocabulary: fixed, so that the model depends neither on the text nor on the Python version."""
Size = collections.namedtuple("Size", "layers heads width length batch steps rate text")
"""A model and how it is trained: `batch` is the global batch in sequences of `length` characters, `rate`
the peak learning rate, `text` the most bytes of text to read."""
SIZES = {
    "tiny": Size(4, 4, 128, 128, 16, 120, 1e-3, 1 << 20),  # 0.8 M parameters, for two CPU cores
    "small": Size(6, 6, 384, 256, 64, 500, 1e-3, 4 << 20),  # 11 M
    "gpt2": Size(12, 12, 768, 1024, 64, 1000, 6e-4, 8 << 20),  # 86 M: the shape of the smallest GPT-2
}
say: Callable[[str], None] = functools.partial(print, flush=True) if RANK == 0 else lambda _: None
KERNELS = {"flash": Kernel.FLASH_ATTENTION, "efficient": Kernel.EFFICIENT_ATTENTION, "math": Kernel.MATH}


def report(event: str, /, **values: Any) -> None:
    """One line for the receipt: by `route_report` where the router put it on the path, else by hand."""
    try:
        import route_report
    except ImportError:
        if RANK == 0 and (path := os.environ.get("ROUTE_METRICS")):
            line = values if event == "step" else {"event": event, **values}
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
    else:
        route_report.step(**values) if event == "step" else route_report.note(event, **values)


def read_text(limit: int) -> tuple[str, str, dict[str, Any]]:
    """The licence and standard library of the running Python: training text, held-out text, what was read.

    Files are taken in the order of their names up to `limit` bytes; every tenth is held out. `sha256`
    is the digest of the manifest: a line of path, digest and size for each file.
    """
    library = Path(sysconfig.get_path("stdlib"))
    licences = [folder / "LICENSE.txt" for folder in (library, library.parent.parent, Path(sys.prefix))]
    other = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}
    sources = sorted(p for p in library.rglob("*.py") if not other & set(p.relative_to(library).parts))
    parts: tuple[list[str], list[str]] = ([], [])
    manifest: list[str] = []
    total = 0
    for path in [*[p for p in licences if p.is_file()][:1], *sources]:
        data = path.read_bytes()[: limit - total]
        total += len(data)
        parts[len(manifest) % 10 == 9].append(data.decode("utf-8", "replace").expandtabs(4))
        name = path.relative_to(library) if path.is_relative_to(library) else path.name
        manifest.append(f"{name} {hashlib.sha256(data).hexdigest()} {len(data)}\n")
        if total == limit:
            break
    if len(manifest) < 10:
        sys.exit(f"train_char_gpt: no sources to learn from in {library} (mend: a Python that has them)")
    sha256 = hashlib.sha256("".join(manifest).encode()).hexdigest()
    return "".join(parts[0]), "".join(parts[1]), {"files": len(manifest), "bytes": total, "sha256": sha256}


def as_tokens(text: str) -> torch.Tensor:
    """The text as token numbers, uint8, one for each character."""
    numbers = {character: number for number, character in enumerate(CHARACTERS)}
    return torch.tensor([numbers.get(c, len(CHARACTERS) - 1) for c in text], dtype=torch.uint8)


def batch_of(tokens: torch.Tensor, at: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences that begin at `at`, and the same one later: two tensors (sequences, length), int64."""
    windows = tokens[at[:, None] + torch.arange(length + 1)].long()
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


class Block(nn.Module):
    """One layer: causal self-attention and an MLP, each behind a LayerNorm and added to its input."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads, width = size.heads, size.width
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape
        qkv = self.qkv(self.before_attention(x)).view(n, length, 3, self.heads, width // self.heads)
        mixed = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4), is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(n, length, width))
        return x + self.down(F.gelu(self.up(self.before_mlp(x)), approximate="tanh"))


class GPT(nn.Module):
    """Learned positions, tied embeddings: tokens (n, length) -> logits (n, length, characters)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.token = nn.Embedding(len(CHARACTERS), size.width)
        self.position = nn.Embedding(size.length, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                # As in GPT-2: what is added to the residual stream shrinks with the number of additions.
                added = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * size.layers) if added else 0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.token.weight)


class Place:
    """The device that was really got: `device`, its `name`, the `dtype` and attention `kernel` used on it,
    and `wait`, which returns once it is idle."""

    def __init__(self, asked: str, kernel: str) -> None:
        """Take the device asked for. An accelerator that quietly became a CPU is an error."""
        self.dtype, self.kernel, self.wait = torch.float32, kernel if kernel != "auto" else "flash", bool
        if asked == "xla":
            import torch_xla
            from torch_xla import runtime

            self.device, real = torch_xla.device(), runtime.device_type()
            if real == "CPU" and os.environ.get("PJRT_DEVICE", "").upper() != "CPU":
                sys.exit(
                    "train_char_gpt: XLA fell back to the CPU (mend: free the device, or PJRT_DEVICE=CPU)"
                )
            if WORLD > 1:
                sys.exit("train_char_gpt: --device xla is one process (mend: start it without torchrun)")
            self.name, self.kernel, self.wait = f"xla:{real}", "math", torch_xla.sync
        elif asked == "cuda" or (asked == "auto" and torch.cuda.is_available()):
            if not torch.cuda.is_available():
                sys.exit("train_char_gpt: torch sees no CUDA device (mend: --device cpu, or another torch)")
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self.device)
            self.name, self.wait = torch.cuda.get_device_name(self.device), torch.cuda.synchronize
            if torch.cuda.is_bf16_supported(including_emulation=False):
                self.dtype = torch.bfloat16
            elif kernel == "auto":
                self.kernel = "efficient"  # flash attention has no float32 on CUDA
        else:
            self.device, self.name = torch.device("cpu"), "cpu"

    @contextlib.contextmanager
    def rules(self) -> Any:
        """What a forward pass runs under."""
        half = self.dtype is not torch.float32
        with sdpa_kernel([KERNELS[self.kernel]]), torch.autocast(self.device.type, self.dtype, enabled=half):
            yield


def tell_kernel(place: Place, profile: torch.profiler.profile) -> None:
    """Report which attention kernel was dispatched, and end if it is not the one asked for."""
    names = sorted(e.key.removeprefix("aten::") for e in profile.key_averages() if "attention" in e.key)
    ran = [k for k in KERNELS if any(f"product_{k}" in n or f"attention_{k}" in n for n in names)]
    observed = "+".join(ran) or "unobserved"
    report("kernel", requested=place.kernel, observed=observed, operators=names)
    if observed not in (place.kernel, "unobserved"):
        sys.exit(f"train_char_gpt: attention kernel {place.kernel} was asked for, {observed} ran")


def tell_cache(compiled: bool) -> str:
    """Report what Inductor's cache did, by its own counters: a folder with files in it is not yet a hit."""
    from torch._dynamo.utils import counters

    hits, misses = (counters["inductor"][f"fxgraph_cache_{word}"] for word in ("hit", "miss"))
    verdict = "partial" if hits and misses else "hit" if hits else "miss" if misses else "unobserved"
    verdict, counted = (verdict, {"hits": hits, "misses": misses}) if compiled else ("disabled", {})
    report("cache", kind="inductor", verdict=verdict, **counted)
    return verdict


def rate_at(step: int, size: Size) -> float:
    """The learning rate: a linear warm-up over a tenth of the steps, then a cosine to a tenth of the peak."""
    warm = max(1, min(100, size.steps // 10))
    if step < warm:
        return size.rate * (step + 1) / warm
    return size.rate * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(1, size.steps - warm))))


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that a whole one, old or new, stands at `path` at any moment."""
    beside = path.with_name(f".{path.name}.part")
    with open(beside, "wb") as file:
        torch.save(tree_map_only(torch.Tensor, lambda tensor: tensor.cpu(), state), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    os.fsync(folder := os.open(path.parent, os.O_RDONLY))
    os.close(folder)


@torch.no_grad()
def held_out_loss(model: GPT, place: Place, tokens: torch.Tensor, size: Size) -> float:
    """Mean loss in nats for each character over 64 sequences of held-out text, the same ones every time."""
    at = torch.randint(len(tokens) - size.length, (64,), generator=torch.Generator().manual_seed(0))
    x, y = (t.to(place.device) for t in batch_of(tokens, at, size.length))
    with place.rules():
        return float(F.cross_entropy(model(x).flatten(0, 1).float(), y.flatten()))


@torch.no_grad()
def sample(model: GPT, place: Place, size: Size, seed: int) -> str:
    """What the model writes after `def `. Every pass has one shape, so that XLA compiles once."""
    generator = torch.Generator().manual_seed(seed)
    text = as_tokens("def ").tolist()
    for _ in range(240):
        window = text[-size.length :]
        padded = torch.tensor([window + [0] * (min(size.length, 244) - len(window))], device=place.device)
        with place.rules():
            logits = model(padded)[0].float().cpu()[len(window) - 1]
        text.append(int(torch.multinomial(F.softmax(logits / 0.8, dim=-1), 1, generator=generator)))
    return "".join(CHARACTERS[number] for number in text)


def train(given: argparse.Namespace, size: Size, place: Place) -> None:
    learn, held_out, facts = read_text(size.text)
    tokens, held = as_tokens(learn), as_tokens(held_out)
    torch.manual_seed(given.seed)  # the same weights on every rank
    model = GPT(size).to(place.device)
    count = sum(p.numel() for p in model.parameters())
    say(f"{given.size}: {count / 1e6:.1f} M parameters on {WORLD} x {place.name}, {str(place.dtype)[6:]}")
    say(f"text: {facts['files']} files, {facts['bytes']:,} bytes, manifest {facts['sha256'][:12]}")
    optimiser = torch.optim.AdamW(model.parameters(), lr=size.rate, betas=(0.9, 0.95), weight_decay=0.1)
    generator = torch.Generator().manual_seed(given.seed)  # for all ranks: another number may resume
    folder = Path(os.environ.get("ROUTE_CHECKPOINTS") or "checkpoints")
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.dumps([size, given.seed, facts["sha256"]])
    path = folder / f"char-gpt-{hashlib.sha256(settings.encode()).hexdigest()[:12]}.pt"
    first = 0
    if path.exists() and not given.fresh:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        generator.set_state(state["generator"])
        first = state["step"]
        report("resumed", step=first)
        say(f"resumed at step {first} of {size.steps} from {path}")
    elif strange := sorted(p.name for p in folder.glob("char-gpt-*.pt")):
        say(f"begins at step 0; left alone: {', '.join(strange)}")

    runner: nn.Module = nn.parallel.DistributedDataParallel(model) if WORLD > 1 else model
    if given.compile:
        runner.compile()
    stopped: list[int] = []
    if WORLD == 1:  # ranks could not agree on a last step: under torchrun the last checkpoint has to do
        signal.signal(signal.SIGTERM, lambda number, _: stopped.append(number))
    losses, spent, waited = list[float](), list[float](), 0.0
    share, volume = size.batch // WORLD, size.batch * size.length
    report("fields", tokens_per_step=volume, seq_len=size.length, global_batch=size.batch, seed=given.seed)
    report("fields", dtype=str(place.dtype)[6:], deterministic=False, manifest_sha256=facts["sha256"])
    for step in range(first, size.steps):
        profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True)
        began = time.perf_counter()
        for group in optimiser.param_groups:
            group["lr"] = rate_at(step, size)
        at = torch.randint(len(tokens) - size.length, (size.batch,), generator=generator)
        x, y = (t.to(place.device) for t in batch_of(tokens, at[RANK * share :][:share], size.length))
        waited += time.perf_counter() - began
        with profile if step == first else contextlib.nullcontext():
            with place.rules():
                logits = runner(x)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), y.flatten())
            loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        mean = loss.detach()
        if WORLD > 1:
            torch.distributed.all_reduce(mean)  # a sum: the shares are equal
        place.wait()
        losses.append(float(mean) / WORLD)
        spent.append(time.perf_counter() - began)
        seen = {"loss": losses[-1], "grad_norm": float(norm), "lr": rate_at(step, size)}
        report("step", step=step, tokens=volume, step_us=round(spent[-1] * 1e6), **seen)
        if step == first:
            tell_kernel(place, profile)
        if not math.isfinite(losses[-1]):
            sys.exit(f"train_char_gpt: the loss of step {step} is {losses[-1]} (mend: another --seed)")
        last = step + 1 == size.steps
        if step % 10 == 0 or last:
            say(f"step {step:4}  loss {losses[-1]:.3f}  {volume / spent[-1]:,.0f} tokens/s")
        if (step + 1) % given.checkpoint_every == 0 or last or stopped:
            began = time.perf_counter()
            if RANK == 0:
                state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}
                save(path, {**state, "generator": generator.get_state()})
            report("checkpoint", done=step + 1, us=round((time.perf_counter() - began) * 1e6))
        if stopped:
            say(f"signal {stopped[0]}: step {step} is done and stands in {path}")
            signal.signal(stopped[0], signal.SIG_DFL)
            os.kill(os.getpid(), stopped[0])
    report("data_wait", us=round(waited * 1e6))
    tokens_seen = volume * max(0, len(spent) - 1)  # without the first, as the receipt counts
    summary = {"size": given.size, "parameters": count, "seed": given.seed, "world": WORLD, "text": facts}
    summary |= {"first_step": first, "steps": size.steps, "loss_first": losses[0] if losses else None}
    summary |= {"loss_last": losses[-1] if losses else None, "cache": tell_cache(given.compile)}
    summary |= {"tokens_per_second": tokens_seen / sum(spent[1:]) if tokens_seen else None}
    if RANK == 0:
        finish(summary, size, place, model, held)


def finish(summary: dict[str, Any], size: Size, place: Place, model: GPT, held: torch.Tensor) -> None:
    """After the last step, outside the measured window: held-out loss, a sample, the summary."""
    unit = 1 if sys.platform == "darwin" else 1024  # KiB on Linux
    peak = {"host_rss_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if place.device.type == "cuda":
        peak["peak_alloc_bytes"] = torch.cuda.max_memory_allocated()
    report("memory", **peak)
    began = time.perf_counter()
    loss = held_out_loss(model, place, held, size)
    report("eval", off=True, loss=loss, us=round((time.perf_counter() - began) * 1e6))
    summary |= {"device": place.name, "dtype": str(place.dtype)[6:], "kernel": place.kernel, **peak}
    summary |= {"loss_held_out": loss, "torch": torch.__version__}
    written = sample(model, place, size, summary["seed"])
    (folder := Path(os.environ.get("ROUTE_OUTPUTS") or "results")).mkdir(parents=True, exist_ok=True)
    (folder / "sample.txt").write_text(written + "\n", encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    say(f"held-out loss {loss:.3f}, peak memory {peak['host_rss_peak'] >> 20} MiB; it writes:\n{written}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "xla"), default="auto")
    parser.add_argument("--size", choices=tuple(SIZES), default="tiny", help="the model (default: tiny)")
    for name, what in (("steps", "of training"), ("batch", "sequences"), ("length", "characters in each")):
        parser.add_argument(f"--{name}", type=int, help=f"{what} (default: the size's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kernel", choices=("auto", *KERNELS), default="auto", help="of the attention")
    parser.add_argument("--compile", action="store_true", help="torch.compile (a CPU needs a C++ compiler)")
    parser.add_argument("--checkpoint-every", type=int, default=50, metavar="STEPS")
    parser.add_argument("--fresh", action="store_true", help="do not go on from a checkpoint")
    given = parser.parse_args()
    chosen = {n: v for n, v in vars(given).items() if n in Size._fields and v is not None}
    size = SIZES[given.size]._replace(**chosen)
    if min(size.steps, size.batch, size.length, given.checkpoint_every) < 1 or size.batch % WORLD:
        parser.error(f"counts are at least 1, and {WORLD} ranks must be able to share --batch equally")
    place = Place(given.device, given.kernel)
    if WORLD > 1:
        torch.distributed.init_process_group("nccl" if place.device.type == "cuda" else "gloo")
    train(given, size, place)
    if WORLD > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
