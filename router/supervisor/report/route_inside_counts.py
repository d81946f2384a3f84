"""What the frameworks in this process have counted and are: read from what is loaded, importing nothing."""

import json
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict

_NAMES = """torch torchvision torch_xla torch_tpu jax jaxlib flax tensorflow triton numpy transformers
accelerate deepspeed vllm flash_attn transformer_engine lightning"""
INDUCTOR = ("fxgraph_cache_hit", "fxgraph_cache_miss", "fxgraph_cache_bypass")
AOT = ("autograd_cache_hit", "autograd_cache_miss", "autograd_cache_bypass")
XLA = (
    "PersistentCacheHit",
    "PersistentCacheMiss",
    "PersistentCacheDeserializeFailure",
    "UncachedCompile",
    "CachedCompile",
)
JAX = {
    "/jax/compilation_cache/cache_hits": "hits",
    "/jax/compilation_cache/cache_misses": "misses",
    "/jax/compilation_cache/compile_requests_use_cache": "requests",
}
JAX_SPENT = "/jax/core/compile/backend_compile_duration"

_jax: "Dict[str, int]" = {}
_listening: "Dict[str, Any]" = {}


def attach(name: str, put: "Callable[[str], None]") -> None:
    """After the import of `name`: listen where it counts for listeners only."""
    module = sys.modules.get(name)
    if name == "jax":
        try:
            events = module.monitoring  # type: ignore[union-attr]
            events.register_event_listener(_jax_event)
            events.register_event_duration_secs_listener(_jax_spent)
            _listening["jax"] = True
        except Exception:
            _listening["jax"] = False
    elif name == "triton":
        try:
            knobs = module.knobs.compilation  # type: ignore[union-attr]
            _listening["triton"] = knobs.listener = _after_triton(knobs.listener, put)
        except Exception:
            _listening["triton"] = None


def _jax_event(event: str, **_: object) -> None:
    word = JAX.get(event)
    if word:
        _jax[word] = _jax.get(word, 0) + 1


def _jax_spent(event: str, seconds: float, **_: object) -> None:
    if event == JAX_SPENT:
        _jax["us"] = _jax.get("us", 0) + int(seconds * 1e6)


def _after_triton(before: "Any", put: "Callable[[str], None]") -> "Callable[..., Any]":
    """A listener that writes a line at once (a worker that compiles may end without a word)."""

    def listener(*args: "Any", **said: "Any") -> "Any":
        try:
            hit = said["cache_hit"] if "cache_hit" in said else args[4]
            times = said["times"] if "times" in said else args[3]
            spent = getattr(times, "total", None)
            us = int(spent) if isinstance(spent, (int, float)) else -1
            put('{"e":"triton","pid":%d,"hit":%s,"us":%d}' % (os.getpid(), "true" if hit else "false", us))
        except Exception:
            pass
        return before(*args, **said) if before is not None else None

    return listener


def end(identity: str) -> str:
    """The last line of this process."""
    found: "Dict[str, Any]" = {
        "e": "end",
        "id": identity,
        "pid": os.getpid(),
        "mono_us": time.monotonic_ns() // 1000,
        "rank": _whole(os.environ.get("RANK")),
        "local_rank": _whole(os.environ.get("LOCAL_RANK")),
        "raised": hasattr(sys, "last_type"),
    }
    for name, look in (
        ("versions", _versions),
        ("dynamo", _dynamo),
        ("xla", _xla),
        ("cuda", _cuda),
        ("extensions", _extensions),
    ):
        try:
            seen = look()
        except Exception as e:
            seen = {"error": type(e).__name__}
        if seen is not None:
            found[name] = seen
    if "jax" in _listening:
        found["jax"] = dict(_jax) if _listening["jax"] else {"error": "no listener"}
    if "triton" in _listening:
        try:
            now = sys.modules["triton"].knobs.compilation.listener
            kept = _listening["triton"] is not None and now is _listening["triton"]
        except Exception:
            kept = False
        found["triton"] = {"listening": kept}
    return json.dumps(found, separators=(",", ":"))


def _whole(text: "Any") -> "Any":
    return int(text) if text and text.isdigit() else None


def _versions() -> "Dict[str, str]":
    found = {}
    for name in _NAMES.split():
        version = getattr(sys.modules.get(name), "__version__", None)
        if isinstance(version, str):
            found[name] = version[:100]
    torch = sys.modules.get("torch")
    built = getattr(torch, "version", None)
    for name, key in (("cuda", "cuda"), ("hip", "hip"), ("xpu", "xpu")):
        version = getattr(built, key, None)
        if isinstance(version, str):
            found[name] = version[:100]
    # Of a build without CUDA these have nothing to tell, and of one that has not used it neither.
    if getattr(built, "cuda", None) and torch is not None and torch.cuda.is_initialized():
        for name, look in (
            ("cudnn", lambda: torch.backends.cudnn.version()),
            ("nccl", lambda: ".".join(map(str, torch.cuda.nccl.version()))),
        ):
            try:
                found[name] = str(look())[:100]
            except Exception:
                continue
    return found


def _dynamo() -> "Any":
    """The counters of torch.compile. `{}` says that it is loaded and has counted nothing."""
    if "torch" not in sys.modules:
        return None
    module = sys.modules.get("torch._dynamo.utils")
    if module is None:
        return {"loaded": False}
    counters = module.counters
    found: "Dict[str, Any]" = {"loaded": True}
    for group, names in (("inductor", INDUCTOR), ("aot_autograd", AOT)):
        counted = dict(counters.get(group) or {})
        found.update((name, int(counted[name])) for name in names if name in counted)
    frames, stats = dict(counters.get("frames") or {}), dict(counters.get("stats") or {})
    found["frames"] = int(frames.get("total", 0))
    found["graphs"] = int(stats.get("unique_graphs", 0))
    found["graph_breaks"] = sum(int(n) for n in dict(counters.get("graph_break") or {}).values())
    return found


def _xla() -> "Any":
    module = sys.modules.get("_XLAC")
    if module is None:
        return None
    names = set(module._xla_counter_names())
    found = {name: int(module._xla_counter_value(name)) for name in XLA if name in names}
    compiled = module._xla_metric_data("CompileTime")
    if compiled:
        found["compiles"], found["compile_us"] = int(compiled[0]), int(compiled[1] / 1000)
    return found


def _cuda() -> "Any":
    """Peak memory of this process on its devices; only where CUDA was really used."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    devices = range(torch.cuda.device_count())
    return {
        "peak_alloc_bytes": max([int(torch.cuda.max_memory_allocated(n)) for n in devices] or [0]),
        "peak_reserved_bytes": max([int(torch.cuda.max_memory_reserved(n)) for n in devices] or [0]),
    }


def _extensions() -> "Any":
    """The libraries of torch extensions that are loaded: a name alone would not say that one was used."""
    folder = os.environ.get("TORCH_EXTENSIONS_DIR")
    if not folder or "torch.utils.cpp_extension" not in sys.modules:
        return None
    folder = os.path.realpath(folder) + os.sep
    loaded = set()
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            path = line.rstrip("\n").split(" ", 5)[-1].lstrip()
            if path.startswith(folder):
                loaded.add(path[len(folder) :][:200])
    return {"loaded": sorted(loaded)[:100]}
