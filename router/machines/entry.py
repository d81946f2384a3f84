"""`[machines.NAME]` of the configuration: one machine that somebody owns or reserves, and how to reach it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from compute_router.errors import ConfigError
from compute_router.records import Record
from compute_router.workload import Accelerator

__all__ = ["MachineEntry", "read_entries"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_PRICE = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?")
TRANSPORTS = ("paramiko", "openssh")


class MachineEntry(Record, frozen=True, kw_only=True):
    """One machine. Only `address` has to be said.

    `address`: `user@name[:port]`, where `name` may be one that `~/.ssh/config` knows.
    `identity`: the file of the private key (else what ssh would try, and the agent).
    `root`: the folder there that everything is kept below, on a disk of the machine itself.
    `accelerator`: what it is said to have (`H200:8`, `cpu`, `v6e-8`); None = whatever is found there.
    `price_per_hour`: the owner's price of the whole machine, a decimal string, in `currency`.
    `labels`: free words, for people and rules. `exclusive`: one run at a time on the whole machine.
    `slots`: how many runs without accelerator are offered room side by side (default: its processors).
    `group`: the machines that work may be spread over together, by `fabric` (`infiniband`, `roce`,
    `ethernet`); `peer_address`: where the others of the group reach this one (default: that of
    `address`), `interface` the network interface that leads to them.
    `transport`: `paramiko`, or `openssh` for keys that live in hardware and whatever else needs the
    real `ssh`.
    """

    address: str
    identity: str | None = None
    root: str = "~/.route"
    accelerator: str | None = None
    price_per_hour: str | None = None
    currency: str = "USD"
    labels: dict[str, str] = {}
    exclusive: bool = False
    slots: int | None = None
    group: str | None = None
    fabric: str | None = None
    peer_address: str | None = None
    interface: str | None = None
    transport: str = "paramiko"

    @property
    def has(self) -> Accelerator | None:
        """`accelerator` as it is written in a workload; None = whatever is found there."""
        return None if self.accelerator is None else Accelerator.parse(self.accelerator)


def read_entries(
    tables: Mapping[str, Mapping[str, Any]], origins: Mapping[str, str] | None = None
) -> dict[str, MachineEntry]:
    """The machines of a configuration by name, sorted. `origins`: `machines.NAME` -> `file:line`.

    Raises `ConfigError` for a key there is none of, with the nearest one, and for a value that
    cannot be.
    """
    found = {}
    for name in sorted(tables):
        file, _, line = (origins or {}).get(f"machines.{name}", "").rpartition(":")
        at = {"file": file or None, "line": int(line) if line.isdigit() else None}
        try:
            found[name] = _entry(name, tables[name])
        except _Wrong as e:
            raise ConfigError(f"machines.{name}: {e.what}", mend=e.mend, **at) from None  # type: ignore[arg-type]
    return found


class _Wrong(Exception):
    def __init__(self, what: str, mend: str) -> None:
        super().__init__(what)
        self.what, self.mend = what, mend


def _entry(name: str, table: Mapping[str, Any]) -> MachineEntry:
    from compute_router.reading.values import near

    if not _NAME.fullmatch(name):
        raise _Wrong("no name of a machine", "use letters, digits, `.`, `_` and `-`, at most 63")
    known = [field.name for field in msgspec.structs.fields(MachineEntry)]
    for key in table:
        if key not in known:
            raise _Wrong(f"there is no key {key!r}", near(key, known))
    try:
        entry = msgspec.convert(dict(table), MachineEntry)
    except msgspec.ValidationError as e:
        raise _Wrong(str(e), 'a machine is at least address = "user@name"') from None
    if entry.transport not in TRANSPORTS:
        raise _Wrong(f"transport is {entry.transport!r}", near(entry.transport, TRANSPORTS))
    if entry.price_per_hour is not None and not _PRICE.fullmatch(entry.price_per_hour):
        raise _Wrong(f"price_per_hour is {entry.price_per_hour!r}", 'write a decimal: "31.60"')
    if not entry.root.startswith(("/", "~/")) or "\0" in entry.root:
        raise _Wrong(f"root is {entry.root!r}", "write /path or ~/path, on a disk of that machine")
    if entry.slots is not None and entry.slots < 1:
        raise _Wrong(f"slots is {entry.slots}", "write a number from 1 on, or leave it out")
    try:
        _ = entry.has
    except ValueError as e:
        raise _Wrong(f"accelerator: {e}", 'write what it has: accelerator = "H200:8"') from None
    return entry
