"""Samples taken beside the work, and what they add up to."""

from __future__ import annotations

import os

from .. import closing, machine, wire
from . import processor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List, Optional, Tuple

    from ..runs import Attempt
    from .facts import Look, Observed
    from .gauges import Gauges

    Json = Dict[str, Any]

MOST = 8 << 20
_PRESSURE = ("cpu", "memory", "io")


class Sampler:
    """Takes samples of one attempt, in its watcher. What it opens stays open between samples.

    GPUs are read by a process beside the watcher: `fd` becomes readable when it has answered (-1 where
    there is none), and `late` then gives its lines.
    """

    def __init__(self, attempt: Attempt, spec: Json) -> None:
        self.attempt, self.spec = attempt, spec
        self._files: Dict[str, int] = {}
        self._gauges: Optional[Gauges] = None
        if spec.get("devices", {}).get("family") == "gpu":
            from . import gauges

            started = attempt.json("started.json") or {}
            executed = attempt.json("exec.json") or {}
            try:
                self._gauges = gauges.Gauges(list(started.get("devices", ())), int(executed.get("pid") or 0))
            except OSError:
                pass
        for name in _PRESSURE:
            self._open("/proc/pressure/" + name)
        self._open("/proc/meminfo")
        self._group = processor.group_file("memory.current", "memory.usage_in_bytes")
        if self._group:
            self._open(self._group)

    @property
    def fd(self) -> int:
        return self._gauges.fd if self._gauges is not None else -1

    def _open(self, path: str) -> None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            os.pread(fd, 1, 0)
        except OSError:
            return
        self._files[path] = fd

    def _read(self, path: str) -> bytes:
        fd = self._files.get(path)
        try:
            return os.pread(fd, 1024, 0) if fd is not None else b""
        except OSError:
            return b""

    def sample(self) -> Json:
        """What can be seen cheaply: memory, load, pressure, free disk. Integers, with the unit in the
        name. The GPUs are asked, and answer in `late`."""
        line: Json = {"t_us": machine.now_us(), "mono_us": machine.mono_us(), "pid": os.getpid()}
        for row in self._read("/proc/meminfo").splitlines()[:3]:
            name, _, rest = row.partition(b":")
            if name == b"MemTotal":
                line["mem_total_bytes"] = int(rest.split()[0]) * 1024
            elif name == b"MemAvailable":
                line["mem_free_bytes"] = int(rest.split()[0]) * 1024
        group = self._read(self._group).strip() if self._group else b""
        if group.isdigit():
            line["mem_group_bytes"] = int(group)
        for what in _PRESSURE:
            some = self._read("/proc/pressure/" + what).split(b"\n", 1)[0].split()
            # `some avg10=1.25 ...`: the share of the last 10 s in which somebody had to wait.
            if len(some) > 1 and some[1].startswith(b"avg10="):
                line["wait_%s_centi" % what] = int(some[1][6:].replace(b".", b""))
        try:
            line["load_milli"] = int(os.getloadavg()[0] * 1000)
        except OSError:
            pass
        disk = os.statvfs(self.attempt.path)
        line["disk_free_bytes"] = disk.f_bavail * disk.f_frsize
        if self._gauges is not None:
            why = self._gauges.ask()
            if why:
                line["gpus_why"] = why
        return line

    def late(self) -> List[Json]:
        """The lines about GPUs that have come since."""
        return self._gauges.answers() if self._gauges is not None else []

    def close(self) -> None:
        if self._gauges is not None:
            self._gauges.close()


def _rows(look: Look) -> Iterator[Json]:
    for line in closing.tail(look.attempt.at("samples.jsonl"), MOST).splitlines():
        try:
            row = wire.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def _window(look: Look) -> Optional[Tuple[int, int]]:
    """When the counted steps ran, by the clock that both sides read; None if that is not known."""
    found = look.reported
    window = found.window_mono_us if found is not None else None
    return None if window is None else (window[0], window[1])


def accelerators(look: Look) -> Json:
    """What the samples of the GPUs add up to: `clock_sm_mhz`, `throttle_reasons`, `temp_c_max`,
    `cotenants`, `xids`, with `why` for what is not there. Those named in `names` become fields.

    Clocks and reasons are those of the steady window where a sample lies in it.
    """
    rows = [row for row in _rows(look) if "gpus" in row or "why" in row]
    good = [row for row in rows if row.get("gpus")]
    found: Json = {"names": ("clock_sm_mhz", "throttle_reasons", "temp_c_max"), "source": "supervisor"}
    found["why"] = str(rows[-1].get("why")) if rows and not good else "no sample of the GPUs was taken"
    if not good:
        return found
    found["source"] = str(good[-1].get("source") or "supervisor")
    found["why"] = "no sample tells it"
    span = _window(look)
    inside = [row for row in good if span and span[0] <= int(row.get("mono_us") or 0) <= span[1]]
    steady = [gpu for row in inside or good for gpu in row["gpus"]]
    clocks = sorted(gpu["sm_mhz"] for gpu in steady if "sm_mhz" in gpu)
    if clocks:
        found["clock_sm_mhz"] = {
            "p50": clocks[(len(clocks) - 1) // 2],
            "min": clocks[0],
            "samples": len(clocks),
            "window": "steady" if inside else "all",
        }
    told = [gpu["throttle"] for gpu in steady if "throttle" in gpu]
    if told:
        words = sorted({word for reasons in told for word in reasons})
        found["throttle_reasons"] = [
            "%s %d%%" % (word, 100 * sum(word in reasons for reasons in told) // len(told)) for word in words
        ]
    everything = [gpu for row in good for gpu in row["gpus"]]
    temps = [gpu["temp_c"] for gpu in everything if "temp_c" in gpu]
    found["temp_c_max"] = max(temps) if temps else None
    powers = sorted(gpu["power_w"] for gpu in steady if "power_w" in gpu)
    found["power_w_p50"] = powers[(len(powers) - 1) // 2] if powers else None
    others = [gpu["others"] for gpu in everything if "others" in gpu]
    found["cotenants"] = max(others) if others else None
    found["xids"] = [
        "GPU %s: the driver reported Xid %s" % (event.get("index"), event.get("xid"))
        for row in good
        for event in row.get("xids", ())
    ][:16]
    found["samples"] = len(good)
    return found


def block(o: Observed, look: Look) -> Json:
    """What was least free and who had to wait, among the samples. A hint: the watcher looks seldom."""
    least: Dict[str, int] = {}
    most: Dict[str, int] = {}
    count = 0
    for row in _rows(look):
        if "pid" not in row:
            continue  # what came of the GPUs, or that they were not due yet
        count += 1
        for name in ("mem_free_bytes", "disk_free_bytes"):
            value = row.get(name)
            if isinstance(value, int):
                least[name] = min(value, least.get(name, value))
        for name in ("mem_group_bytes", "load_milli", *("wait_%s_centi" % name for name in _PRESSURE)):
            value = row.get(name)
            if isinstance(value, int):
                most[name] = max(value, most.get(name, value))
    none = "no sample was taken"
    found: Json = {
        "count": count,
        "mem_free_bytes_min": o.seen(least.get("mem_free_bytes"), none),
        "disk_free_bytes_min": o.seen(least.get("disk_free_bytes"), none),
        **{"%s_max" % name: o.seen(value) for name, value in most.items()},
    }
    if look.spec.get("devices", {}).get("family") == "gpu":
        told = accelerators(look)
        found["gpus"] = {"source": told["source"], "count": told.get("samples", 0)}
        found["gpus"]["power_w_p50"] = o.seen(told.get("power_w_p50"), told["why"], told["source"])
    return found
