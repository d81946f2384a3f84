"""TPU chips of this machine: by their PCI devices and device files, and who holds them."""

from __future__ import annotations

import os
import re

from .. import files, machine
from .facts import at_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

    Json = Dict[str, Any]

VENDOR = b"0x1ae0"
CHIPS = {
    "0x005e": "v4",
    "0x0062": "v5p",
    "0x0063": "v5e",
    "0x006f": "v6e",
    "0x0076": "tpu7x",
}
"""Generation by PCI device, as jax (hardware_utils.py) and tpu-info have them. Others of the vendor
(network cards, security chips) are no TPU."""
OLDER = {"0x004e": "v2", "0x004f": "v3"}
"""v2 and v3 share the device 0x0027 and differ in the subsystem (tpu-info)."""
LOCK = "/tmp/libtpu_lockfile"


def look(root: str = "/") -> Json:
    """`{"generation", "chips", "files", "lock"}`: chips on the PCI bus, device files to open them, and
    whether the lock file of libtpu is `held` or `stale`, None where there is none."""
    bus = at_root(root, "/sys/bus/pci/devices")
    found: List[str] = []
    for name in _names(bus):
        folder = os.path.join(bus, name)
        if machine.told(folder + "/vendor").strip() != VENDOR:
            continue
        device = machine.told(folder + "/device").strip().decode("ascii", "replace")
        if device == "0x0027":
            under = machine.told(folder + "/subsystem_device").strip().decode("ascii", "replace")
            found.append(OLDER.get(under, "v2 or v3"))
        elif device in CHIPS:
            found.append(CHIPS[device])
    accel = [name for name in _names(at_root(root, "/dev")) if re.match(r"accel\d+\Z", name)]
    accel += ["accel/" + name for name in _names(at_root(root, "/dev/accel")) if name.startswith("accel")]
    vfio = [name for name in _names(at_root(root, "/dev/vfio")) if name.isdigit()]
    return {
        "generation": "+".join(sorted(set(found))) or None,
        "chips": len(found),
        "files": len(accel) or (len(vfio) if found else 0),
        "lock": _lock(at_root(root, LOCK)),
    }


def _names(folder: str) -> List[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _lock(path: str) -> Optional[str]:
    """A lock file that nobody holds is left from a process that died: libtpu refuses to start over it."""
    if not os.path.exists(path):
        return None
    try:
        return "held" if files.held(path) else "stale"
    except OSError:
        return "held"  # another user's: it cannot be opened, and cannot be removed
