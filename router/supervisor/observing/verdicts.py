"""What the counters of a cache say of it. Never the contents of its folder: files in it prove no use."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Mapping, Optional

    Json = Dict[str, Any]

FALSE = ("0", "false", "no", "off")
"""What a variable says that is a switch turned off."""
OFF = {
    "inductor": (
        ("TORCHINDUCTOR_FORCE_DISABLE_CACHES", True),
        ("TORCHINDUCTOR_FX_GRAPH_CACHE", False),
        ("TORCH_COMPILE_DISABLE", True),
        ("TORCHDYNAMO_DISABLE", True),
    ),
    "triton": (("TRITON_ALWAYS_COMPILE", True),),
    "jax_pcc": (("JAX_ENABLE_COMPILATION_CACHE", False),),
    "ccache": (("CCACHE_DISABLE", True),),
}
"""The variables by which a cache is turned off, and whether it is by being set or by being unset."""


def turned_off(kind: str, env: Mapping[str, str]) -> str:
    """The variable that turns the cache of this kind off; empty if none does."""
    for name, on in OFF.get(kind, ()):
        value = env.get(name)
        if value is not None and value != "" and (value.lower() in FALSE) is not on:
            return name
    return ""


def judge(hits: int, misses: int, passed: int = 0, failed: int = 0, off: bool = False) -> str:
    """`hit`, `partial`, `miss`, `failed_load`, `disabled` or `unobserved`.

    `passed` counts what went by the cache though it is on (it cannot hold it), `failed` what was
    there and could not be loaded.
    """
    if failed:
        return "failed_load"
    if hits:
        return "partial" if misses or passed else "hit"
    if misses:
        return "miss"
    return "disabled" if off or passed else "unobserved"


def xla(counted: Json) -> Optional[Json]:
    """The persistent cache of torch_xla, from its counters; None if nothing was compiled.

    A program that was compiled for want of a cache counts as uncached alone. `CachedCompile` is
    use again within the process: never a hit.
    """
    hits, misses, failed, uncached = (
        int(counted.get(name, 0))
        for name in (
            "PersistentCacheHit",
            "PersistentCacheMiss",
            "PersistentCacheDeserializeFailure",
            "UncachedCompile",
        )
    )
    if not (hits or misses or failed or uncached or counted.get("compiles")):
        return None
    if counted.get("bad"):
        return {"verdict": "unobserved"}
    # A miss is compiled, and so is what failed to load: what is more than these went by the cache.
    passed = max(0, uncached - misses - failed)
    verdict = judge(hits, misses, passed, failed, off=bool(uncached))
    return {"verdict": verdict, "hits": hits, "misses": misses + failed, "us": counted.get("compile_us")}


def jax(counted: Json, off: str = "") -> Optional[Json]:
    """JAX's persistent cache, from the events it gives to listeners; None if nothing was compiled."""
    hits, asked = int(counted.get("hits", 0)), int(counted.get("requests", 0))
    misses = max(int(counted.get("misses", 0)), asked - hits)
    if not (hits or misses or counted.get("us")) and not counted.get("bad"):
        return None
    if counted.get("bad"):
        return {"verdict": "unobserved"}
    # Compiled, and the cache was never asked: it is off, or has no folder.
    verdict = judge(hits, misses, off=bool(off) or not asked)
    return {"verdict": verdict, "hits": hits, "misses": misses, "us": counted.get("us")}


def inductor(caches: Mapping[str, int], compiled: bool, complete: bool, off: str) -> Optional[Json]:
    """Inductor's graph cache, from counts as `Trace.count` names them; None if it compiled nothing.

    `above` counts graphs that the cache above it (AOTAutograd's) missed: to compile again what lies
    between is no clean hit. `compiled` says that Inductor made code; `complete` that every cache
    event would have been seen, so that code without one went past a cache that is off.
    """
    hits, misses, passed = (int(caches.get(word, 0)) for word in ("hit", "miss", "bypass"))
    if not (compiled or hits or misses or passed):
        return None
    off_now = bool(off) or complete
    verdict = judge(hits, misses, passed + (caches.get("above", 0) if hits else 0), off=off_now)
    return {"verdict": verdict, "hits": hits, "misses": misses}
