"""Reads one script: its bytes, its block, its `[tool.route]` table as a layer."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compute_router.errors import WorkloadError
from compute_router.reading import values as v
from compute_router.reading.block import Block, check_syntax, read_bytes, script_block, to_text
from compute_router.reading.keys import KEYS
from compute_router.reading.layers import Layer, parse_toml, toml_layer
from compute_router.reading.locate import Lines, line_of, locate
from compute_router.reading.place import inside

__all__ = ["Script", "as_name", "program", "read"]

_TOP = ("dependencies", "requires-python", "tool")
_SPECIFIER = re.compile(r"\s*(?:===|~=|==|!=|<=|>=|<|>)\s*[A-Za-z0-9.*+!_-]+\s*")
_REQUIREMENT = re.compile(r"\s*[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\s*(?:[\[(@;<>=!~].*)?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Script:
    """What was read: the layer of its table (None without one), a name, and what stands beside it."""

    path: Path
    name: str
    layer: Layer | None
    sha256: str | None
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    extra_origins: Mapping[str, str] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def as_name(stem: str) -> str:
    """A name made of a file's: what is no letter, digit or `. _ -` becomes `-`."""
    name = re.sub(r"[^\w.-]+", "-", stem).strip("-.")[:100] or "run"
    return name if name != "latest" else "latest-run"  # `latest` names the newest run


def read(path: Path, shown: str, *, ready: Sequence[str] = (), given: str = "") -> Script:
    """Read the script at `path`. Raises `WorkloadError`; names the nearest file if there is none."""
    try:
        os.stat(path)
    except PermissionError:
        pass  # there may well be one: reading it says what is wrong
    except (OSError, ValueError):
        raise _missing(path, given or shown, ready) from None
    data = read_bytes(path, shown)
    text = to_text(data, shown)
    if not text.strip():
        raise WorkloadError(f"{shown} is empty", mend="route init writes a workload to begin with")
    block = script_block(text, shown)
    if path.suffix != ".py" and block is None and not re.match(r"#!.*\b(?:python|uv)", text):
        raise WorkloadError(
            f"{shown} is no Python script", mend=f"to run it as a command: route run -- ./{path.name}"
        )
    layer, extra, origins, noted = _from_block(block, shown) if block else (None, {}, {}, [])
    late = check_syntax(data, shown, extra.get("requires_python"))
    return Script(
        path=path,
        name=as_name(path.name.removesuffix(".py")),
        layer=layer,
        sha256=hashlib.sha256(data).hexdigest(),
        extra=extra,
        extra_origins=origins,
        warnings=(*noted, *([late] if late else [])),
    )


def _missing(path: Path, given: str, ready: Sequence[str]) -> WorkloadError:
    if os.path.lexists(path):
        return WorkloadError(f"{given} is a link to nothing", mend="check where it leads: readlink")
    try:
        names = [name for name in os.listdir(path.parent) if name.endswith(".py")][:10_000]
    except OSError:
        names = []
    mend = v.near(path.name, names) if names else "check the path"
    if not mend.startswith("did"):
        near = v.near(given, ready) if ready else ""
        mend = near if near.startswith("did") else "check the path, or cd to where it is"
    elif os.path.dirname(given):
        mend += f" (in {os.path.dirname(given)})"
    return WorkloadError(f"there is no file {given!r}", mend=mend)


def _from_block(block: Block, shown: str) -> tuple[Layer | None, dict[str, Any], dict[str, str], list[str]]:
    values = parse_toml(block.toml, shown, first=block.first)
    lines = locate(block.toml)
    fault = functools.partial(_fault, lines, block, shown)
    noted = []
    for key in values:
        if key in _TOP:
            continue
        if key in KEYS:
            raise fault((key,), f"{key!r} stands above [tool.route]", "move it below [tool.route]")
        mend = v.near(key, _TOP)
        if mend.startswith("did"):
            raise fault((key,), f"a script block has no key {key!r}", mend)
        noted.append(f"{shown}:{(line_of(lines, (key,)) or 1) + block.first - 1}: {key!r} means nothing here")
    extra: dict[str, Any] = {}
    for key, check in (("dependencies", _dependencies), ("requires-python", _requires)):
        if key in values:
            try:
                extra[key.replace("-", "_")] = check(values[key])
            except v.Wrong as e:
                raise fault((key, *e.path), v.join(key, e.what), e.mend) from None
    origins = {
        key.replace("-", "_"): f"{shown}:{(line_of(lines, (key,)) or 1) + block.first - 1}"
        for key in ("dependencies", "requires-python")
        if key in values
    }
    tool = values.get("tool", {})
    if not isinstance(tool, dict):
        raise fault(("tool",), "tool must be a table", "write [tool.route]")
    if "uv" in tool:
        at = (line_of(lines, ("tool", "uv")) or 1) + block.first - 1
        noted.append(
            f"{shown}:{at}: [tool.uv] is not read: route builds the environment from dependencies alone"
        )
    if "route" not in tool:
        for name, table in tool.items():
            ours = isinstance(table, dict) and any(key in KEYS for key in table)
            if ours and v.near(name, ("route",)).startswith("did"):
                raise fault(("tool", name), f"[tool.{name}] is not read", "did you mean [tool.route]?")
        return None, extra, origins, noted
    if not isinstance(tool["route"], dict):
        raise fault(("tool", "route"), "tool.route must be a table", "write [tool.route] and its keys below")
    below = ("tool", "route")
    layer = toml_layer(tool["route"], lines, shown, below=below, first=block.first)
    return layer.checked(), extra, origins, noted


def _fault(
    lines: Lines, block: Block, shown: str, path: tuple[str | int, ...], what: str, mend: str
) -> WorkloadError:
    line = (line_of(lines, path) or 1) + block.first - 1
    return WorkloadError(what, mend=mend, file=shown, line=line)


def _dependencies(value: Any) -> tuple[str, ...]:
    def one(item: Any) -> str:
        text = v.text(item)
        if not _REQUIREMENT.fullmatch(text):
            raise v.Wrong(f"{text!r} is no requirement", 'write it like "torch>=2.6"')
        if re.search(r"://[^/\s]*@", text):
            raise v.Wrong("holds a user name or password", "name it under secrets: receipts keep this text")
        return text

    return tuple(v.items(one)(value))


def _requires(value: Any) -> str:
    text = v.text(value)
    if not all(_SPECIFIER.fullmatch(part) for part in text.split(",") if part.strip()):
        raise v.Wrong(f"{text!r} names no versions", 'write it like ">=3.11"')
    return text


def program(path: Path, given: str, root: Path) -> str:
    """The digest of the program of a command, which must lie inside what ships and be executable."""
    if not os.path.exists(path):
        raise WorkloadError(f"there is no file {given!r}", mend="check the path")
    if path.is_dir():
        raise WorkloadError(f"{given!r} is a folder", mend="name a program")
    if not inside(Path(os.path.realpath(path.parent)), root):
        raise WorkloadError(
            f"{given!r} lies outside {root}, which is what ships", mend="cd to the folder it is in"
        )
    if not os.access(path, os.X_OK):
        mend = f"route run {given}" if path.suffix == ".py" else f"chmod +x {given}"
        raise WorkloadError(f"{given!r} is not executable", mend=mend)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise WorkloadError(f"{given} cannot be read: {e.strerror}", mend="check its permissions") from None
