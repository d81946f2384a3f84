"""The hardware of a run: processors, memory, accelerators; whether it is what was asked for."""

from __future__ import annotations

import os
import platform

from .. import machine
from .facts import LATER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional

    from .facts import Look, Observed

    Json = Dict[str, Any]

_DEVICE = "topology mig power_limit_w driver cc ecc clock_sm_mhz throttle_reasons cotenants"


def before(look: Look) -> Json:
    """What is seen before user code. Raises `Fault` if the work must not start on this hardware."""
    return {}


def block(o: Observed, look: Look) -> Json:
    plain = look.plain
    # A run without an accelerator has none to observe: that is a value, and equal to itself.
    none = "not_applicable" if plain else None
    return {
        "requested": look.spec.get("devices", {}),
        "observed": {
            "sku": o.seen("cpu" if plain else None, LATER),
            "count": o.seen(0 if plain else len(look.devices)),
            "uuid": o.seen([] if plain else look.devices),
            "cpu_model": o.seen(cpu_model()),
            "cpus": o.seen(cpus()),
            "mem_bytes": o.seen(memory_bytes()),
            **{name: o.seen(none, LATER) for name in _DEVICE.split()},
        },
    }


def cpus() -> Optional[int]:
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count()


def cpu_model() -> Optional[str]:
    for line in machine.told("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(b":")
        if name.strip() in (b"model name", b"Hardware", b"cpu model"):
            return value.decode("utf-8", "replace").strip()[:200]
    return platform.processor() or platform.machine() or None


def memory_bytes() -> Optional[int]:
    for line in machine.told("/proc/meminfo").splitlines():
        if line.startswith(b"MemTotal:"):
            return int(line.split()[1]) * 1024
    try:
        return int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError):
        return None
