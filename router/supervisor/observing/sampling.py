"""Samples taken beside the work, and what they add up to."""

from __future__ import annotations

import os

from .. import closing, files, machine, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict

    from ..runs import Attempt
    from .facts import Look, Observed

    Json = Dict[str, Any]


class Sampler:
    """Takes samples of one attempt, in its watcher. What it opens stays open between samples."""

    def __init__(self, attempt: Attempt, spec: Json) -> None:
        self.attempt, self.spec = attempt, spec

    def sample(self) -> Json:
        """What can be seen cheaply: memory, load, free disk. Integers, with the unit in the name."""
        line: Json = {"t_us": machine.now_us(), "mono_us": machine.mono_us(), "pid": os.getpid()}
        for row in (files.read("/proc/meminfo", 4096) or b"").splitlines():
            name, _, rest = row.partition(b":")
            if name in (b"MemTotal", b"MemAvailable"):
                line["mem_total_bytes" if name == b"MemTotal" else "mem_free_bytes"] = (
                    int(rest.split()[0]) * 1024
                )
        try:
            line["load_milli"] = int(os.getloadavg()[0] * 1000)
        except OSError:
            pass
        disk = os.statvfs(self.attempt.path)
        line["disk_free_bytes"] = disk.f_bavail * disk.f_frsize
        return line


def block(o: Observed, look: Look) -> Json:
    """The least free memory and disk among the samples. A hint: the watcher looks seldom."""
    least: Dict[str, int] = {}
    count = 0
    for line in closing.tail(look.attempt.at("samples.jsonl"), 8 << 20).splitlines():
        try:
            row = wire.loads(line)
        except ValueError:
            continue
        count += 1
        for name in ("mem_free_bytes", "disk_free_bytes"):
            value = row.get(name) if isinstance(row, dict) else None
            before = least.get(name)
            if isinstance(value, int) and (before is None or value < before):
                least[name] = value
    return {
        "count": count,
        "mem_free_bytes_min": o.seen(least.get("mem_free_bytes"), "no sample was taken"),
        "disk_free_bytes_min": o.seen(least.get("disk_free_bytes"), "no sample was taken"),
    }
