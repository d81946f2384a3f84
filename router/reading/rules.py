"""What must hold among the keys of one workload, and what only deserves a warning."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from compute_router.reading import values as v
from compute_router.workload import (
    Coupling,
    Field,
    Framework,
    Kind,
    Launcher,
    Purpose,
    Role,
    Warmth,
    Workload,
)

__all__ = ["Problem", "check_fields", "problems", "warnings"]

KeyPath = tuple[str | int, ...]
Problem = tuple[KeyPath, str, str]
"""Where it stands, what is wrong, how to mend it."""


def problems(w: Workload, kind: Kind) -> Iterator[Problem]:
    """Everything about `w` that cannot be, the most telling first. Pure."""
    yield from _nodes(w)
    yield from _frameworks(w)
    yield from _states(w)
    yield from _paths(w)
    for name in w.secrets:
        if name in w.env:
            yield (
                ("env", name),
                f"{name} is both in env and a secret",
                "take it out of env: its value would be written",
            )
    if w.launcher is Launcher.TORCHRUN and w.entry.script is None:
        yield ("launcher",), "torchrun starts Python scripts, not commands", 'write launcher = "auto"'
    if w.purpose not in kind.purposes:
        known = ", ".join(kind.purposes)
        yield ("purpose",), f"kind {kind.name!r} has no purpose {str(w.purpose)!r}", f"one of: {known}"
    for text in kind.problems(w):
        yield ("kind",), str(text), f"kind {kind.name}: {kind.about}"


def _nodes(w: Workload) -> Iterator[Problem]:
    needs = w.needs
    several = needs.nodes > 1 or (needs.accelerator.family == "tpu" and needs.accelerator.count > 8)
    if needs.coupling is Coupling.MULTI_NODE and not several:
        yield (
            ("coupling",),
            "coupling is multi-node, but nodes = 1",
            "write nodes = 2 or more, or single-node",
        )
    if needs.nodes > 1 and needs.coupling is not Coupling.MULTI_NODE:
        mend = 'write coupling = "multi-node"; for runs that need not know of each other: --cases'
        yield ("nodes",), f"nodes = {needs.nodes}, but coupling is {needs.coupling}", mend
    if (
        needs.coupling is Coupling.SINGLE_NODE
        and needs.accelerator.family == "tpu"
        and needs.accelerator.count > 8
    ):
        slice_ = needs.accelerator
        yield ("coupling",), f"{slice_} has several hosts, but coupling is single-node", 'write "multi-node"'


def _frameworks(w: Workload) -> Iterator[Problem]:
    asked = [(("accelerator",), w.needs.accelerator)]
    asked += [(("substitutes", i), a) for i, a in enumerate(w.needs.substitutes)]  # type: ignore[misc]
    for path, accelerator in asked:
        if w.needs.framework is Framework.XLA and accelerator.family == "gpu":
            yield (
                path,
                f"framework is xla, but {accelerator} is on the CUDA path",
                'ask for a slice ("v6e-8") or "cpu"',
            )
        if w.needs.framework is Framework.TORCH and accelerator.family == "tpu":
            yield (
                path,
                f"framework is torch, but {accelerator} is on the XLA path",
                'write framework = "xla" or "any"',
            )
    if w.needs.accelerator in w.needs.substitutes:
        at = w.needs.substitutes.index(w.needs.accelerator)
        yield ("substitutes", at), f"{w.needs.accelerator} stands in for itself", "take it out of substitutes"


def _states(w: Workload) -> Iterator[Problem]:
    if w.needs.warmth is Warmth.WARM and Role.COMPILE_CACHE not in w.volumes:
        mend = 'write volumes = { compile-cache = "/cache" }'
        yield ("warmth",), "a warm start needs a compile cache that outlives runs", mend
    if w.purpose is Purpose.COLD_START and w.needs.warmth is Warmth.WARM:
        yield ("warmth",), "purpose is cold-start, but warmth is warm", 'write warmth = "cold"'
    for index, stage in enumerate(w.stage):
        if stage.to not in w.volumes:
            mend = f'write volumes = {{ {stage.to} = "/{stage.to}" }}'
            yield ("stage", index), f"stages into the volume {str(stage.to)!r}, which is not declared", mend


def _paths(w: Workload) -> Iterator[Problem]:
    taken: list[tuple[KeyPath, str]] = [(("volumes", role), path) for role, path in w.volumes.items()]
    taken += [(("buckets", path), path) for path in w.buckets]
    for index, (place, path) in enumerate(taken):
        for other, before in taken[:index]:
            if _below(path, before) or _below(before, path):
                same = "is also" if path == before else "overlaps"
                what = (
                    f"{v.join(str(place[0]), f'.{place[1]}')} {path} {same} {before} of {other[0]}.{other[1]}"
                )
                yield place, what, "give each a path of its own, none inside another"


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def check_fields(values: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """The record fields as `kind` has them. Raises `Wrong` whose path begins with `fields`."""
    known = {field.name: field for field in kind.fields}
    for name, value in values.items():
        if name not in known:
            mend = v.near(name, known) if known else "it has none; take it out"
            raise v.Wrong(f"kind {kind.name!r} has no field {name!r}", mend, ("fields", name))
        try:
            _field(known[name], value)
        except v.Wrong as e:
            raise v.Wrong(v.join(f"fields.{name}", e.what), e.mend, ("fields", name)) from None
    for field in kind.fields:
        if field.required and field.name not in values:
            mend = f"write fields.{field.name}: {field.about}"
            raise v.Wrong(f"kind {kind.name!r} needs the field {field.name!r}", mend, ("kind",))
    return dict(values)


def _field(field: Field, value: Any) -> None:
    if field.type == "decimal":
        v.decimal(value)
    elif field.type == "boolean":
        v.boolean(value)
    elif field.type == "integer":
        v.count(-(2**53) + 1, 2**53 - 1)(value)
    else:
        v.text(value)


_SECRET_NAME = re.compile(r"(?:^|_)(?:KEY|TOKEN|SECRET|PASS|PASSWD|PASSWORD|CREDENTIALS?|AUTH)(?:_|$)", re.I)
_SECRET_VALUE = re.compile(
    r"(?:^|[^A-Za-z0-9])(?:AKIA[0-9A-Z]{16}|gh[pousr]_\w{20,}|github_pat_\w{20,}|AIza[\w-]{30,}"
    r"|xox[abprs]-[\w-]{10,}|hf_[A-Za-z0-9]{20,}|sk-[\w-]{20,}|a[ks]-[A-Za-z0-9]{20,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY|eyJ[\w-]{10,}\.[\w-]{10,}\.)"
)


def warnings(w: Workload) -> Iterator[Problem]:
    """What is allowed and probably not meant."""
    for name, value in w.env.items():
        named = _SECRET_NAME.search(name) and len(value) >= 8 and not value.startswith("/")
        if named or _SECRET_VALUE.search(value):
            yield (
                ("env", name),
                f"the value of env.{name} looks like a secret",
                f'write secrets = ["{name}"], export it',
            )
    for index, value in enumerate((*w.entry.args, *w.entry.argv)):
        if _SECRET_VALUE.search(value):
            yield (
                ("args", index),
                f"argument {index + 1} looks like a secret",
                "name it under secrets, read it from env",
            )
    if (
        w.needs.coupling is Coupling.INDEPENDENT
        and w.needs.accelerator.family == "gpu"
        and w.needs.accelerator.count > 1
    ):
        what = f"{w.needs.accelerator} and coupling is independent"
        yield ("accelerator",), what, 'if its ranks move in lockstep, write coupling = "single-node"'
    if w.purpose is Purpose.COLD_START and w.needs.warmth is Warmth.ANY:
        yield (
            ("purpose",),
            "purpose is cold-start and warmth is any",
            'write warmth = "cold", or the start may be warm',
        )
    for index, stage in enumerate(w.stage):
        if stage.source.startswith("/") and not any(_below(stage.source, path) for path in w.buckets):
            what = f"stages from {stage.source}, which lies in no bucket"
            yield ("stage", index), what, "so its files are sent from this computer"
    if w.python == "current" and w.image:
        yield (
            ("python",),
            "python is current and an image is named",
            "inside the image its own python3 is current",
        )
