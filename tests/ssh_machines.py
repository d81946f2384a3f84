"""A machine of the configuration behind a test's own sshd: pinned, with a root of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sshd import Sshd

from compute_router.machines import MachineEntry
from compute_router.machines.pins import pin
from compute_router.machines.scanning import scan

__all__ = ["entry_of", "pin_all", "write_machines"]


def entry_of(server: Sshd, root: Path, **more: Any) -> MachineEntry:
    """The entry of the machine behind `server`, with `root` there."""
    fields = {"address": server.address, "identity": str(server.identity), "root": str(root), **more}
    return MachineEntry(**fields)


def pin_all(name: str, entry: MachineEntry) -> None:
    """Take every key on the way to the machine for right, as `--trust-first-use` does."""
    for _ in range(10):
        keys = scan(name, entry)
        pin(name, keys[-1:])
        if keys[-1].target:
            return
    raise AssertionError("the way to the machine does not end")


def write_machines(path: Path, entries: dict[str, MachineEntry]) -> None:
    """Write a configuration with these machines."""
    text = ""
    for name, entry in entries.items():
        text += f"[machines.{name}]\n"
        for key in entry.__struct_fields__:
            value = getattr(entry, key)
            if value is not None and value != {} and value is not False:
                shown = "true" if value is True else str(value) if isinstance(value, int) else f'"{value}"'
                text += f"{key} = {shown}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
