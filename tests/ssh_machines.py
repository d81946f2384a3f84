"""A machine of the configuration behind a test's own sshd: pinned, with a root of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from peers import On, workload
from sshd import Sshd

from compute_router.machines import MachineEntry
from compute_router.machines.pins import pin
from compute_router.machines.reaching import reach
from compute_router.machines.scanning import scan
from compute_router.workload import Entry

__all__ = ["Made", "entry_of", "leases", "on", "pin_all", "server", "slow", "write_machines"]

SLOW = "import os, sys, time\nopen(sys.argv[1], 'a').write('x')\nprint('begun', flush=True)\n"
SLOW += "time.sleep(float(sys.argv[2]))\nprint('done', flush=True)\nsys.exit(7)\n"


def entry_of(server: Sshd, root: Path, **more: Any) -> MachineEntry:
    """The entry of the machine behind `server`, with `root` there."""
    fields = {"address": server.address, "identity": str(server.identity), "root": str(root), **more}
    return MachineEntry(**fields)


def pin_all(name: str, entry: MachineEntry) -> None:
    """Take every key on the way to the machine for right, as `--trust-first-use` does."""
    for _ in range(10):
        keys = scan(name, entry)
        pin(keys[-1:])
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


# Fixtures, for the tests that import them


@pytest.fixture
def leases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "leases").mkdir()
    monkeypatch.setenv("ROUTE_LEASE_DIR", str(tmp_path / "leases"))
    return f"SetEnv ROUTE_LEASE_DIR={tmp_path / 'leases'}"


@pytest.fixture
def server(tmp_path: Path, leases: str) -> Iterator[Sshd]:
    made = Sshd(tmp_path / "sshd", extra=leases).start()
    yield made
    made.kill()


Made = Callable[..., On]


@pytest.fixture
def on(tmp_path: Path, home: Path) -> Iterator[Made]:
    """A backend on the machine of an entry; each call is another client with nothing kept."""
    clients: list[On] = []

    def make(entry: MachineEntry) -> On:
        client = On(home, reach("h1", entry))
        clients.append(client)
        return client

    yield make
    for client in clients:
        for machine in client.given:
            machine.close()


def slow(folder: Path, witness: Path, seconds: float) -> Any:
    entry = Entry(root=str(folder), script="work.py", args=(str(witness), str(seconds)))
    return workload(folder, SLOW, entry=entry)
