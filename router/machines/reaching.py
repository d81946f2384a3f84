"""From an entry of the configuration to the Machine it stands for, by the transport it asks for."""

from __future__ import annotations

from compute_router.machines.contract import Machine
from compute_router.machines.entry import MachineEntry

__all__ = ["reach"]


def reach(name: str, entry: MachineEntry) -> Machine:
    """The machine `name`. Asks nothing and sends nothing before its first `open`."""
    if entry.transport == "openssh":
        from compute_router.machines.openssh import OpenSSHMachine

        return OpenSSHMachine(name, entry)
    from compute_router.machines.ssh import SSHMachine

    return SSHMachine(name, entry)
