"""Reserved machines for tests: real SSH servers on loopback, each with its own root, leases and boards."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from boards import printed, tool
from sshd import Sshd

from compute_router.backend import Backend, NoOffer, Offer, Status, Submission
from compute_router.backends.ssh import SSHBackend, SSHSettings
from compute_router.machines.entry import MachineEntry
from compute_router.machines.pins import pin
from compute_router.machines.scanning import scan
from compute_router.records import new_run_id
from compute_router.snapshot import take
from compute_router.workload import Accelerator, Needs, Workload

__all__ = ["Fleet", "asks", "ended", "offered", "refusals", "submission"]


class Fleet:
    """Some machines, their entries, and the file that configures them for the command line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, MachineEntry] = {}
        self.servers: dict[str, Sshd] = {}
        self.given: dict[str, dict[str, str]] = {}

    def add(
        self,
        name: str,
        *boards: str,
        env: dict[str, str] | None = None,
        extra: str = "",
        bind: str = "127.0.0.1",
        netns: str | None = None,
        **entry: Any,
    ) -> MachineEntry:
        """Start a machine that has these boards (elements of `boards.element`), and trust its key. It
        answers at `bind`, in the network namespace `netns` where that is given."""
        place = self.folder / name
        (place / "leases").mkdir(parents=True)
        (place / "leases").chmod(0o1777)
        given = {"ROUTE_LEASE_DIR": str(place / "leases"), "ROUTE_NVML": "none", **(env or {})}
        if boards:
            given |= tool(place, printed(*boards))
        self.given[name] = given
        words = " ".join(f'{key}="{value}"' for key, value in given.items())
        extra = f"SetEnv {words}\n{extra}"
        server = Sshd(place / "sshd", extra=extra, bind=bind, netns=netns).start()
        self.servers[name] = server
        made = MachineEntry(
            address=server.address,
            identity=str(server.identity),
            **{"root": str(place / "root"), **entry},
        )
        self.entries[name] = made
        pin(scan(name, made))
        return made

    def backend(self, home: Path, *only: str) -> SSHBackend:
        """The backend `ssh` with these machines, in this process."""
        return SSHBackend(SSHSettings(machines=self.entries, only=list(only)), home)

    def configure(self, more: str = "") -> Path:
        """Write the user's configuration, which the command line reads."""
        lines = []
        for name, entry in self.entries.items():
            lines.append(f"[machines.{name}]")
            for key in entry.__struct_fields__:
                value = getattr(entry, key)
                if isinstance(value, bool):
                    lines.append(f"{key} = {str(value).lower()}")
                elif isinstance(value, (str, int)):
                    lines.append(f"{key} = {value!r}" if isinstance(value, int) else f'{key} = "{value}"')
        file = Path(os.environ["XDG_CONFIG_HOME"]) / "route" / "config.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines) + "\n" + more)
        return file

    def close(self) -> None:
        for server in self.servers.values():
            server.kill()


def asks(text: str, *others: str, **more: Any) -> Needs:
    return Needs(
        accelerator=Accelerator.parse(text), substitutes=tuple(map(Accelerator.parse, others)), **more
    )


def offered(backend: Backend, work: Workload) -> dict[str, Offer]:
    return {offer.id: offer for offer in backend.offers(work) if isinstance(offer, Offer)}


def refusals(backend: Backend, work: Workload) -> list[NoOffer]:
    return [answer for answer in backend.offers(work) if isinstance(answer, NoOffer)]


def submission(backend: Backend, work: Workload, offer: str = "", **more: Any) -> Submission:
    found = offered(backend, work)
    assert found, backend.offers(work)
    run_id = more.pop("id", None) or new_run_id()
    return Submission(
        id=run_id,
        key=more.pop("key", run_id),
        attempt=1,
        workload=work,
        offer=found[offer] if offer else next(iter(found.values())),
        snapshot=take(Path(work.entry.root)),
        **more,
    )


def ended(backend: Backend, handle: Any) -> tuple[Status, str]:
    items = list(backend.attached(handle))
    assert isinstance(items[-1], Status)
    log = b"".join(item for item in items if isinstance(item, bytes))
    return items[-1], log.decode()
