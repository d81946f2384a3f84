"""Reads inside.jsonl: what was seen from inside the Python processes of the work (see report/route_inside).

The file is written by the processes of the work, so every line of it is read with suspicion.
"""

from __future__ import annotations

import os

from . import metrics

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Set

    Json = Dict[str, Any]

SRC = "inside"
"""Who says so, in a fact: neither the work itself nor the supervisor, but what it put into the work."""
MOST_LINES = 200_000
_GROUPS = ("versions", "dynamo", "xla", "cuda", "extensions", "jax", "triton")


class Process:
    """One Python process of the work: when it began, what it imported, what it counted at its end."""

    def __init__(self, pid: int, parent: int, mono_us: int) -> None:
        self.pid, self.parent, self.mono_us = pid, parent, mono_us
        self.imports: List[Json] = []
        """`name`, `begin_us` and `end_us` on the monotonic clock of the machine, `ok`; in order of ending."""
        self.ended_us: Optional[int] = None
        """When it looked at itself for the last time; None if it ended without (a signal, `os._exit`)."""
        self.rank: Optional[int] = None
        self.groups: Dict[str, Json] = {}
        """What it counted, by name (see `_GROUPS`); a group that is not there was not looked at."""


class Inside:
    """All processes that were seen. `seen` is false where nothing looked: no Python, `python -I` or `-S`,
    or ROUTE_OBSERVE=0."""

    def __init__(self) -> None:
        self.processes: Dict[str, Process] = {}
        self.triton: Dict[str, int] = {"hits": 0, "misses": 0, "us": 0}
        self.cut = False
        self.files: Set[str] = set()
        """Files of the work that were imported, as paths below it, by all processes together."""
        self.told: Set[str] = set()
        """The processes that have told all of theirs."""

    @property
    def imported(self) -> Optional[List[str]]:
        """The files of the work that its processes imported; None if its first one did not tell (a signal,
        `os._exit`) or nothing was seen. Helpers that one of them started and ended by force (those that
        compile) are not waited for."""
        first = next(iter(self.processes), None)
        if self.cut or first not in self.told:
            return None
        pids = {p.pid for p in self.processes.values()}
        if any(p.parent not in pids for key, p in self.processes.items() if key not in self.told):
            return None
        return sorted(self.files)

    @property
    def seen(self) -> bool:
        return bool(self.processes)

    def imports(self) -> List[Json]:
        """Every timed import of every process, each with its `pid` and `rank`, by begin."""
        found = [
            dict(row, pid=p.pid, rank=p.rank, first=number == 0)
            for number, p in enumerate(self.processes.values())
            for row in p.imports
        ]
        return sorted(found, key=lambda row: (row["begin_us"], row["end_us"]))

    def loaded(self, *names: str) -> List[Process]:
        """The processes that imported one of these packages, to its end: an import that failed loaded
        nothing that could be used."""
        return [p for p in self.processes.values() if any(r["name"] in names and r["ok"] for r in p.imports)]

    def versions(self) -> Dict[str, str]:
        """Versions of what was really loaded; where processes differ all of them, joined by ` | `."""
        found: Dict[str, List[str]] = {}
        for p in self.processes.values():
            for name, version in p.groups.get("versions", {}).items():
                if isinstance(version, str) and version not in found.setdefault(name, []):
                    found[name].append(version)
        return {name: " | ".join(sorted(each)[:8]) for name, each in sorted(found.items())}

    def counted(self, group: str) -> Optional[Json]:
        """The sums of a group over the processes that told of it; None if none did.

        `processes` says how many; `bad` how many could not read their counters.
        """
        rows = [p.groups[group] for p in self.processes.values() if group in p.groups]
        if not rows:
            return None
        sums: Json = {"processes": len(rows), "bad": sum("error" in row for row in rows)}
        for row in rows:
            for name, value in row.items():
                if type(value) is int and name not in ("processes", "bad"):
                    sums[name] = sums.get(name, 0) + value
        return sums

    def peaks(self, name: str) -> Optional[List[int]]:
        """`peak_alloc_bytes` or `peak_reserved_bytes` of the processes that used CUDA, by rank."""
        rows = [
            (p.rank or 0, p.groups["cuda"].get(name)) for p in self.processes.values() if "cuda" in p.groups
        ]
        return [v for _, v in sorted((r, v) for r, v in rows if isinstance(v, int))] or None

    def add(self, line: bytes) -> None:
        if not line.strip():
            return
        row = metrics.plain(metrics.parse(line) or {})
        event, key = row.get("e"), row.get("id")
        if event == "triton":
            self.triton["hits" if row.get("hit") is True else "misses"] += 1
            self.triton["us"] += max(0, _whole(row.get("us")) or 0)
        if not isinstance(key, str):
            return
        if event == "start" and len(self.processes) < 10_000:
            numbers = [_whole(row.get(name)) for name in ("pid", "parent", "mono_us")]
            if None not in numbers:
                self.processes.setdefault(key, Process(*numbers))  # type: ignore[arg-type]
        process = self.processes.get(key)
        if process is None:
            return
        if event == "files" and isinstance(row.get("paths"), list) and len(self.files) < 20_000:
            self.files.update(path for path in row["paths"] if isinstance(path, str))
        elif event == "imported":
            self.told.add(key)
        elif event == "import" and len(process.imports) < 100:
            begin, end = _whole(row.get("begin_us")), _whole(row.get("end_us"))
            if begin is not None and end is not None and begin <= end and isinstance(row.get("name"), str):
                process.imports.append(
                    {"name": row["name"], "begin_us": begin, "end_us": end, "ok": row.get("ok") is True}
                )
        elif event == "end":
            process.ended_us, process.rank = _whole(row.get("mono_us")), _whole(row.get("rank"))
            process.groups = {name: row[name] for name in _GROUPS if isinstance(row.get(name), dict)}


def _whole(value: Any) -> Optional[int]:
    return value if type(value) is int and 0 <= value < 2**53 else None


def read(path: str) -> Inside:
    """What stands in the file at `path`, in bounded memory; nothing seen if there is none."""
    found = Inside()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return found
    try:
        for number, line in enumerate(metrics.lines(fd)):
            if number >= MOST_LINES:
                found.cut = True
                break
            found.add(line)
        found.cut = found.cut or metrics.unread(fd)
    except OSError:
        found.cut = True
    finally:
        os.close(fd)
    return found
