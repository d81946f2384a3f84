"""Looks at the keys on the way to a machine, so that somebody can take them for right before a login."""

from __future__ import annotations

from compute_router.errors import CredentialsError
from compute_router.machines.dialing import dial
from compute_router.machines.entry import MachineEntry
from compute_router.machines.pins import HostKey, trust

__all__ = ["scan"]


def scan(name: str, entry: MachineEntry) -> tuple[HostKey, ...]:
    """The keys on the way to the machine, up to and with the first that may not be gone on with.

    Where that is a jump (`target` is False), pin it and scan again. Logs in at jumps, never at the
    machine itself. Raises what `dial` raises where it cannot be reached.
    """
    if entry.transport == "openssh":
        from compute_router.machines.openssh import scan_by_ssh

        return scan_by_ssh(name, entry)
    seen: list[HostKey] = []

    def note(key: HostKey) -> bool:
        seen.append(key)
        if key.target:
            return False
        try:
            trust(key, name)
        except CredentialsError:
            return False
        return True

    connection = dial(name, entry, deadline=20.0, accept=note)
    if connection is not None:
        connection.abandon()
    return tuple(seen)
