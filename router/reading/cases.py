"""Reads a file of cases: JSON lines, each one more independent run of the same workload."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compute_router.errors import WorkloadError
from compute_router.reading.block import read_bytes
from compute_router.reading.build import Loaded, build
from compute_router.reading.layers import Layer, shown_path
from compute_router.workload import Workload

__all__ = ["load_cases"]


def load_cases(path: str | Path, base: Loaded, *, cwd: Path | None = None) -> list[Workload]:
    """One workload for each line of `path`: `base` with the line's keys laid over it.

    A line is a JSON object of the keys of `[tool.route]` (`{"name": "a", "args": ["--lr", "0.1"]}`;
    dotted keys as in `--set`); blank lines are passed over, a case without a name gets the base's
    and its number. Raises `WorkloadError` with the line, also for two cases of one name.
    """
    stand = cwd or Path.cwd()
    shown = shown_path(stand / path, stand)
    if base.recipe is None:
        raise ValueError("base was not made by load")
    found: list[Workload] = []
    names: dict[str, int] = {}
    for line, values in _lines(stand / path, shown):
        values.setdefault("name", f"{base.workload.name}-{len(found) + 1}")
        layer = Layer(shown, values, first=line).checked()
        workload = build(base.recipe, layer).workload
        if workload.name in names:
            what = f"two cases are called {workload.name!r} (the other stands at line {names[workload.name]})"
            raise WorkloadError(what, mend="give each case a name of its own", file=shown, line=line)
        names[workload.name] = line
        found.append(workload)
    if not found:
        raise WorkloadError(
            f"{shown} holds no cases", mend='write one JSON object on each line: {"name": "a"}'
        )
    return found


def _lines(path: Path, shown: str) -> Iterator[tuple[int, dict[str, Any]]]:
    data = read_bytes(path, shown, what="file of cases")
    for line, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not raw.strip():
            continue
        try:
            value = json.loads(raw.decode(), object_pairs_hook=_once)
        except (ValueError, RecursionError) as e:
            why = e.msg if isinstance(e, json.JSONDecodeError) else str(e) or "nested too deeply"
            raise WorkloadError(
                f"this line is no JSON: {why}",
                mend='write {"name": "a", "args": ["--lr", "0.1"]}',
                file=shown,
                line=line,
            ) from None
        if not isinstance(value, dict):
            raise WorkloadError(
                "a case is a JSON object",
                mend='write {"name": "a", "args": ["--lr", "0.1"]}',
                file=shown,
                line=line,
            )
        yield line, _nested(value, shown, line)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands in it twice")
    return found


def _nested(value: dict[str, Any], shown: str, line: int) -> dict[str, Any]:
    """`{"metrics.primary": "x"}` as `{"metrics": {"primary": "x"}}`."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        *outer, last = key.split(".")
        into: Any = found
        for part in outer:
            into = into.setdefault(part, {})
            if not isinstance(into, dict):
                break
        if not isinstance(into, dict) or last in into:
            raise WorkloadError(f"{key!r} is said twice", mend="say it once", file=shown, line=line)
        into[last] = dict(item) if isinstance(item, dict) else item
    return found
