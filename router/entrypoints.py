"""Which plugins are installed, read from distribution metadata without importing anything.

The standard library's `importlib.metadata` answers the same question in about 30 ms; reading the
few `entry_points.txt` files oneself takes about 1 ms, which is what `route --help` can afford.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["GROUP", "EntryPoint", "installed"]

GROUP = "route"
_INFO = re.compile(r"(?P<name>[^-]+)-(?P<version>[^-]+)(?:-[^-]+)?\.(?:dist-info|egg-info)")
_LINE = re.compile(r"\s*(?P<name>[^=\s][^=]*?)\s*=\s*(?P<value>[\w.]+(?::[\w.]+)?)\s*(?:\[[^\]]*\])?\s*")


class EntryPoint(NamedTuple):
    """One line of a distribution's `entry_points.txt`: `name = module[:attribute]`."""

    name: str
    value: str
    distribution: str
    version: str


def installed(path: Iterable[str] | None = None) -> list[EntryPoint]:
    """The entry points of group `route` of every distribution on `path` (default `sys.path`).

    As in Python's import, the first distribution of a name hides later ones. Unreadable folders
    and files are passed over: a plugin that cannot be read is not installed. Sorted by name.
    """
    found: list[EntryPoint] = []
    seen: set[str] = set()
    for folder in sys.path if path is None else path:
        try:
            names = sorted(os.listdir(folder or "."))
        except OSError:
            continue
        for info in names:
            if not info.endswith((".dist-info", ".egg-info")):
                continue
            match = _INFO.fullmatch(info)
            distribution = match["name"] if match else info.rpartition(".")[0]
            normal = re.sub(r"[-_.]+", "-", distribution).lower()
            if normal in seen:
                continue
            seen.add(normal)
            try:
                with open(os.path.join(folder, info, "entry_points.txt"), encoding="utf-8") as file:
                    text = file.read()
            except (OSError, UnicodeDecodeError):
                continue
            version = match["version"] if match else ""
            found += [EntryPoint(n, v, normal, version) for n, v in _group(text)]
    return sorted(found)


def _group(text: str) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    inside = False
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("["):
            inside = line == f"[{GROUP}]"
        elif inside and line and not line.startswith(("#", ";")) and (match := _LINE.fullmatch(line)):
            lines.append((match["name"], match["value"]))
    return lines
