"""What this client remembers of machines from one process to the next: small files, and hints only."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compute_router.machines.contract import Interpreter
from compute_router.records import digest
from compute_router.workload import Workload

__all__ = ["Memory"]

FRESH_US = 60_000_000
AGAIN_US = 300_000_000
"""How often a machine that is silent is given all the time again that it may take."""
TIMES = ("seen_us", "silent_us", "waited_us")
MOST = 200
"""Environments of one machine that are remembered; beyond it the oldest is forgotten."""


class Memory:
    """When each machine answered last, since when it does not, and which lock a list of dependencies led
    to there. `home` is the router's own folder: where it is not there yet nothing is kept."""

    def __init__(self, home: Path) -> None:
        self._home, self._folder = home, home / "machines"

    def answered(self, name: str) -> None:
        """It has answered just now."""
        seen = self._read(name)
        # Written at most once a minute: nobody needs it finer.
        if seen.get("silent_us") or _now() - int(seen.get("seen_us") or 0) > FRESH_US:
            self._write(name, {**seen, "seen_us": _now(), "silent_us": None})

    def is_hurried(self, name: str) -> bool:
        """Whether it did not answer the last time, and had all the time it may take not long ago: one that
        answers slowly would stay silent for ever otherwise. Counts as a look at it."""
        seen = self._read(name)
        if not seen.get("silent_us"):
            return False
        since = _now() - int(seen.get("waited_us") or 0)
        if 0 <= since < AGAIN_US:
            return True
        self._write(name, {**seen, "waited_us": _now()})
        return False

    def silent(self, name: str) -> str:
        """Since when it does not answer, as words; it has not answered just now."""
        seen = self._read(name)
        if not seen.get("silent_us"):
            seen["silent_us"] = seen["waited_us"] = _now()
            self._write(name, seen)
        last = f", last seen {_when(seen['seen_us'])}" if seen.get("seen_us") else ""
        return f"unreachable since {_when(seen['silent_us'])}{last}"

    def forget(self, name: str) -> None:
        """Whatever is called `name` from here on is another machine."""
        with contextlib.suppress(OSError):
            (self._folder / f"{name}.json").unlink()

    def built(self, name: str, workload: Workload, interpreter: Interpreter) -> None:
        """An environment of these dependencies is there."""
        seen = self._read(name)
        known = seen.get("environments")
        found = dict(known) if isinstance(known, dict) else {}
        asked = _asked(workload)
        if found.get(asked) == interpreter.stack:
            return
        found.pop(asked, None)
        found[asked] = interpreter.stack
        self._write(name, {**seen, "environments": dict(list(found.items())[-MOST:])})

    def environment(self, name: str, workload: Workload) -> dict[str, str] | None:
        """The `stack` of the environment that these dependencies led to there last; None if there was none
        from here. An index that has something newer by now leads to another."""
        known = self._read(name).get("environments")
        found = known.get(_asked(workload)) if isinstance(known, dict) else None
        good = isinstance(found, dict) and all(isinstance(word, str) for word in found.values())
        return dict(found) if isinstance(found, dict) and good else None

    def _read(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self._folder / f"{name}.json").read_bytes())
        except (OSError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        times = {key: found.get(key) for key in TIMES}
        return {**found, **{key: us if type(us) is int else None for key, us in times.items()}}

    def _write(self, name: str, seen: Mapping[str, Any]) -> None:
        # Looking makes no home: what is not there yet is made by the first run.
        if not self._home.is_dir():
            return
        try:
            self._folder.mkdir(exist_ok=True)
            beside = self._folder / f".{name}.{time.monotonic_ns()}"
            beside.write_text(json.dumps(seen))
            beside.replace(self._folder / f"{name}.json")
        except OSError:
            return


def _asked(workload: Workload) -> str:
    return digest([list(workload.dependencies), workload.requires_python, workload.package_index])


def _now() -> int:
    return time.time_ns() // 1000


def _when(us: int) -> str:
    try:
        return datetime.fromtimestamp(us / 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return "an unknown time"
