"""What may be declared as the variable of a comparison, what follows from it, and what carries it: data."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Collection, Iterable
from typing import NamedTuple

from compute_router.compare.outcome import Difference
from compute_router.errors import InputError
from compute_router.receipt.schema import BY_PATH, TABLE

__all__ = ["ALIASES", "FIXED", "FOLLOWERS", "Variable", "alias_of", "factors", "follows", "paths_of"]


class Variable(NamedTuple):
    """A name for fields that one decision changes together."""

    name: str
    fields: tuple[str, ...]
    about: str
    carries: bool = False
    """Whether it is how other variables are changed: then it is no factor beside one that differs too."""


ALIASES: tuple[Variable, ...] = (
    Variable(
        "code",
        ("workload.entry_sha256", "workload.imported_sha256", "workload.tree_sha256", "code."),
        "the script, the files it imports, the tree and its commit",
        True,
    ),
    Variable(
        "arguments",
        ("workload.args_redacted", "workload.preset"),
        "the arguments, and the preset where it is made from them",
        True,
    ),
    Variable("surface", ("surface",), "the operating surface"),
    Variable("hardware", ("hw.",), "the accelerator, or the CPU where none was asked for"),
    Variable(
        "stack",
        (
            *("env.stack", "lock_sha256", "image.digest", "env.dists_sha256", "env.differs"),
            *("hw.observed.driver", "hw.observed.cuda_driver"),
        ),
        "versions of what is installed, and the driver",
    ),
    Variable("environment", ("env.allow", "env.fp"), "environment variables"),
    Variable("kernel", ("kernel.",), "the kernel asked for and dispatched"),
    Variable("compile", ("compile.",), "what is compiled"),
    Variable("cache", ("cache",), "state of the caches before, verdict after"),
    Variable("startup", ("startup.",), "the state in which the start finds its place"),
    Variable("storage", ("storage", "volumes"), "where data and caches lie"),
    Variable("numerics", ("numerics.",), "numbers it computes in, determinism"),
    Variable("data", ("data.",), "the data set and how it is cut"),
    Variable("parallelism", ("distributed.", "coupling"), "ranks, nodes and how the work is divided"),
    Variable("launcher", ("started_by.",), "routed, or started by another launcher"),
)
FIXED = ("schema", "kind", "purpose", "study.", "metrics.", "steady.warmup_steps_discarded")
"""What is never a variable: it says which question is answered, and how its figure is made."""

FOLLOWERS: dict[str, tuple[str, ...]] = {
    "surface": (
        *("backend", "hw.", "startup.class", "cache", "storage", "volumes", "image.digest", "env.fp"),
        *("env.dists_sha256", "kernel.observed", "clock."),
    ),
    "hw.observed.sku": ("hw.",),
    "hw.observed.count": ("hw.",),
    "compile.posture": ("compile.", "cache"),
    "kernel.observed": ("kernel.requested",),
    "distributed.world": ("distributed.", "data.micro_batch", "data.grad_accum", "coupling"),
    "startup.class": ("cache",),
    "env.stack": ("env.dists_sha256", "env.differs", "lock_sha256", "image.digest"),
}
"""Field that is varied -> fields (a dot at the end: all below) that may differ because it does. They are
confounders, which the claim names."""


def paths_of(names: Iterable[str]) -> tuple[str, ...]:
    """The fields that names stand for: aliases, paths of the schema, or what stands before a dot.

    `InputError` for a name that stands for none, with the nearest that does, and for one of `FIXED`.
    """
    found: dict[str, None] = {}
    for name in names:
        found.update(dict.fromkeys(_paths(name.strip())))
    return tuple(found)


@functools.cache
def _paths(name: str) -> tuple[str, ...]:
    alias = next((v for v in ALIASES if v.name == name), None)
    if alias is not None:
        return tuple(path for pattern in alias.fields for path in _below(pattern))
    found = (name,) if name in BY_PATH else tuple(_below(name.rstrip(".") + "."))
    if not found:
        known = [*(v.name for v in ALIASES), *BY_PATH]
        near = difflib.get_close_matches(name, known, 1, 0.5)
        raise InputError(
            f"{name[:80]!r} is no field of a receipt",
            mend=f"did you mean {near[0]!r}?"
            if near
            else f"name a path of docs/receipts.md, or one of {', '.join(v.name for v in ALIASES)}",
        )
    if any(_covers(FIXED, path) for path in found):
        raise InputError(
            f"{name!r} cannot be the variable: it says which question a run answers",
            mend="compare receipts that agree in it",
        )
    return found


@functools.cache
def alias_of(path: str) -> str:
    """The alias that a field is commonly changed by; empty if there is none."""
    return next((v.name for v in ALIASES if path in _paths(v.name)), "")


def _below(pattern: str) -> list[str]:
    if not pattern.endswith("."):
        return [pattern]
    return [f.path for f in TABLE if f.path.startswith(pattern) and f.cls != "I"]


def _covers(patterns: Iterable[str], path: str) -> bool:
    return any(path == p or (p.endswith(".") and path.startswith(p)) for p in patterns)


def follows(path: str, varied: Collection[str]) -> bool:
    """Whether `path` may differ because one of `varied`, which differs, does."""
    return any(_covers(FOLLOWERS.get(name, ()), path) for name in varied)


def factors(vary: Iterable[str], differences: Iterable[Difference]) -> tuple[str, ...]:
    """The declared names that really differ, without those that only carry another one that does."""
    differing = {d.field for d in differences if d.cls in ("K", "W")}
    active: dict[str, set[str]] = {}
    for name in dict.fromkeys(vary):
        mine = {path for path in _paths(name) if path in differing}
        if mine and mine not in active.values():
            active[name] = mine
    keyed = {d.field for d in differences if d.cls == "K"}
    # What differs only in fields that warn is no factor beside one that differs in the key.
    if any(mine & keyed for mine in active.values()):
        active = {name: mine for name, mine in active.items() if mine & keyed or _carries(name)}
    own = tuple(name for name in active if not _carries(name))
    return own or tuple(active)


def _carries(name: str) -> bool:
    paths = set(_paths(name))
    return any(v.carries and paths <= set(_paths(v.name)) for v in ALIASES)
