"""From layers to one Workload: checks what merged, fills in what the kind says, tells every origin."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec

from compute_router.errors import NotFound, PluginError, WorkloadError
from compute_router.reading import values as v
from compute_router.reading.keys import KEYS, METRICS, TABLES, check
from compute_router.reading.layers import Layer, Merged, dotted, merge
from compute_router.reading.rules import Problem, check_fields, problems, warnings
from compute_router.workload import Entry, Kind, MetricRule, Needs, Purpose, Workload

__all__ = ["Loaded", "Recipe", "build", "verify"]

_NEEDS = ("accelerator", "substitutes", "coupling", "nodes", "warmth", "framework")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that a workload is built from, so that it can be built again with one more layer on top."""

    layers: tuple[Layer, ...]
    entry: Entry
    name: str
    kinds: Mapping[str, Kind]
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """`dependencies` and `requires_python`, which stand outside `[tool.route]`."""
    extra_origins: Mapping[str, str] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """A workload as it was read.

    `origins` says of every dotted key where its value comes from: `train.py:7`, `route.toml:3`,
    `route.toml:12 [profiles.big]`, `--set` or `default`. `warnings` are one line each.
    """

    workload: Workload
    origins: dict[str, str]
    warnings: tuple[str, ...] = ()
    recipe: Recipe | None = dataclasses.field(default=None, repr=False, compare=False)


def build(recipe: Recipe, *extra: Layer) -> Loaded:
    """Lay the layers over one another and make the workload. Raises `WorkloadError`, `ConfigError` (what
    is wrong stands in a config file) or `NotFound` (no such kind)."""
    merged = merge([*recipe.layers, *extra])
    found = _checked(merged)
    kind = _kind(found.pop("kind", "train"), merged, recipe.kinds)
    try:
        fields = check_fields(found.get("fields", {}), kind)
    except v.Wrong as e:
        raise merged.fault(e.path, e.what, e.mend) from None
    metrics = {"primary": kind.primary, **found.pop("metrics", {})}
    args = found.pop("args", None)
    entry = recipe.entry
    if args is not None:
        # A command has no arguments apart from its own, so they go behind those.
        changed = {"args": args} if entry.script is not None else {"argv": (*entry.argv, *args)}
        entry = msgspec.structs.replace(entry, **changed)
    workload = Workload(
        name=found.pop("name", recipe.name),
        entry=entry,
        kind=kind.name,
        purpose=found.pop("purpose", getattr(kind, "default_purpose", Purpose.SMOKE)),
        needs=Needs(**{name: found.pop(name) for name in _NEEDS if name in found}),
        metrics=MetricRule(**metrics),
        fields=fields,
        **{
            "timeout_us" if name == "timeout" else name: value
            for name, value in found.items()
            if name != "fields"
        },
        **recipe.extra,
    )
    if wrong := _first_problem(workload, kind):
        raise merged.fault(*wrong)
    told = [f"{_at(merged, path)}{what}; {mend}" for path, what, mend in warnings(workload)]
    return Loaded(
        workload=workload,
        origins=_origins(merged, recipe),
        warnings=(*recipe.warnings, *told),
        recipe=recipe,
    )


_PLAIN = ("name", "tags", "secrets", "env", "outputs", "volumes", "buckets", "fields", "backend")
_OPTIONAL = ("shapes", "python", "image", "package_index", "price_limit")


def verify(workload: Workload, kinds: Mapping[str, Kind]) -> None:
    """Hold a workload that was made in Python to the rules of those that are read.

    Raises `WorkloadError` for the first thing that cannot be, `NotFound` for a kind there is none of.
    """
    given = {name: getattr(workload, name) for name in _PLAIN}
    given |= {name: value for name in _OPTIONAL if (value := getattr(workload, name)) is not None}
    given["nodes"] = workload.needs.nodes
    merged = merge([Layer("Workload", given)])
    _checked(merged)
    if not 0 < workload.timeout_us <= v.MOST_US:
        raise WorkloadError(f"timeout_us is {workload.timeout_us}", mend="more than 0, at most 1000 days")
    if (workload.entry.script is None) == (not workload.entry.argv):
        raise WorkloadError("an entry is a script or a command", mend="give Entry either script or argv")
    kind = _kind(workload.kind, merged, kinds)
    try:
        check_fields(workload.fields, kind)
    except v.Wrong as e:
        raise WorkloadError(e.what, mend=e.mend) from None
    if wrong := _first_problem(workload, kind):
        raise WorkloadError(wrong[1], mend=wrong[2])


def _first_problem(workload: Workload, kind: Kind) -> Problem | None:
    try:
        return next(iter(problems(workload, kind)), None)
    # A kind may be a plugin's, and may fail in any way.
    except Exception as e:
        what = f"kind {kind.name!r} raised {type(e).__name__}: {(str(e).splitlines() or ['no message'])[0]}"
        raise PluginError(what, mend="route plugins names its author") from e


def _checked(merged: Merged) -> dict[str, Any]:
    found = {}
    for key, value in merged.values.items():
        try:
            found[key] = check(key, value)
        except v.Wrong as e:
            raise merged.fault(e.path, e.what, e.mend) from None
    return found


def _kind(name: str, merged: Merged, kinds: Mapping[str, Kind]) -> Kind:
    if name not in kinds:
        source, mend = merged.source(("kind",)), v.near(name, kinds)
        what = f"there is no kind {name!r}"
        line = source.line(("kind",)) if source else None
        raise NotFound(what, mend=mend, file=source.shown if source and line else None, line=line)
    return kinds[name]


def _at(merged: Merged, path: tuple[str | int, ...]) -> str:
    source = merged.source(path)
    return "" if source is None else f"{source.origin(path)}: "


def _origins(merged: Merged, recipe: Recipe) -> dict[str, str]:
    origins: dict[str, str] = {}
    for key in KEYS:
        if key == "metrics":
            for name in METRICS:
                said = ("metrics", name) in merged.sources
                origins[f"metrics.{name}"] = merged.origin(("metrics", name)) if said else "default"
        elif key in TABLES:
            leaves = [p for p in merged.sources if p[0] == key and not _covers(p, merged.sources)]
            origins |= {dotted(p): merged.origin(p) for p in leaves} or {key: "default"}
        else:
            origins[key] = merged.origin((key,))
    return {**origins, "dependencies": "default", "requires_python": "default", **recipe.extra_origins}


def _covers(path: tuple[str | int, ...], sources: Mapping[tuple[str | int, ...], Layer]) -> bool:
    return any(len(other) > len(path) and other[: len(path)] == path for other in sources)
