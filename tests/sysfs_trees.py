"""Builds folders that look like /sys and a mount table, as real machines show them, for the storage tests.

Stand-ins: the hardware cannot be had here. Paths, names and models are those that kernels and clouds
are documented to show.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from compute_router.supervisor.observing.mounted import Places

PCI = "devices/pci0000:00/0000:00:1f.0"


class Tree:
    """A machine's sysfs and mount table below a folder."""

    def __init__(self, folder: Path) -> None:
        self.sys = folder / "sys"
        self.table = folder / "mountinfo"
        self.rows: list[str] = []
        for path in ("dev/block", "class/block"):
            (self.sys / path).mkdir(parents=True)

    def write(self, path: str, **files: str) -> Path:
        folder = self.sys / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            place = folder / name.replace("__", "/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text + "\n")
        return folder

    def link(self, path: str, target: Path) -> None:
        place = self.sys / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(target, place.parent))

    def block(self, path: str, number: str, *, device: str = "", **files: str) -> Path:
        """A block device at `path`, whose `device` link leads to `device` (relative to sysfs)."""
        files = {"dev": number, "stat": "1 0 8 1 2 0 16 1 0 1 2", "queue__rotational": "0", **files}
        folder = self.write(path, **files)
        self.link(f"dev/block/{number}", folder)
        self.link(f"class/block/{folder.name}", folder)
        (folder / "slaves").mkdir()
        if device:
            (folder / "device").symlink_to(os.path.relpath(self.sys / device, folder))
        return folder

    def part(self, disk: Path, number: str, name: str) -> Path:
        folder = disk / name
        folder.mkdir()
        (folder / "partition").write_text("1\n")
        (folder / "dev").write_text(number + "\n")
        (folder / "stat").write_text("1 0 4 1 2 0 6 1 0 1 2\n")
        self.link(f"dev/block/{number}", folder)
        self.link(f"class/block/{name}", folder)
        return folder

    def nvme(self, index: int, model: str, *, transport: str = "pcie", above: str = PCI) -> Path:
        controller = f"{above}/nvme/nvme{index}"
        self.write(controller, model=model.ljust(40), transport=transport, serial="S")
        return self.block(f"{controller}/nvme{index}n1", f"259:{index * 8}", device=controller)

    def scsi(
        self, name: str, number: str, vendor: str, model: str, between: str, *, lun: int = 0, **files: str
    ) -> Path:
        """A SCSI disk below adapter 2, which hangs at `between` (a path of sysfs)."""
        unit = f"{between}/2:0:0:{lun}"
        self.write(unit, vendor=vendor.ljust(8), model=model.ljust(16), type="0")
        return self.block(f"{unit}/block/{name}", number, device=unit, **files)

    def made_of(self, name: str, number: str, below: Sequence[Path], **files: str) -> Path:
        """A device of dm or md over others."""
        folder = self.block(f"devices/virtual/block/{name}", number, **files)
        for one in below:
            (folder / "slaves" / one.name).symlink_to(os.path.relpath(one, folder / "slaves"))
        return folder

    def mount(
        self, point: str, fs: str, source: str, device: str = "0:50", options: str = "rw", extra: str = "rw"
    ) -> None:
        self.rows.append(
            f"{len(self.rows) + 30} 1 {device} / {point} {options} shared:1 - {fs} {source} {extra}"
        )
        self.table.write_text("\n".join(self.rows) + "\n")

    def places(self) -> Places:
        return Places(str(self.table), str(self.sys))


def row(found: Mapping[str, object], *names: str) -> tuple[object, ...]:
    return tuple(found[name] for name in names)
