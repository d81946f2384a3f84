"""Proves the backend `ssh` by the kit that every plugin's author has, against a real OpenSSH server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from reserved import Fleet

from compute_router.backend import Backend
from compute_router.backends.ssh import SSHBackend, SSHSettings
from compute_router.testing import BackendConformance
from compute_router.testing.once import Once


class TestSSH(BackendConformance):
    """All powers that ssh claims; the machine is this computer, reached over a connection."""

    sdks = ("paramiko", "cryptography")

    @pytest.fixture
    def fleet(self, tmp_path: Path) -> Iterator[Fleet]:
        fleet = Fleet(tmp_path / "fleet")
        fleet.add("h1")
        yield fleet
        fleet.close()

    @pytest.fixture
    def backend(self, home: Path, fleet: Fleet) -> Backend:
        return fleet.backend(home)

    def cut(self, backend: Backend) -> Backend | None:
        """The same machine behind a port that nobody listens on."""
        assert isinstance(backend, SSHBackend)
        entries = {
            name: msgspec.structs.replace(entry, address=entry.address.rpartition(":")[0] + ":1")
            for name, entry in backend.settings.machines.items()
        }
        return SSHBackend(SSHSettings(machines=entries), backend.home)


class TestOfSeveral(Once):
    """With two machines, one of them by the `ssh` program: a key starts once, wherever it was offered."""

    kills = 2

    @pytest.fixture
    def backend(self, home: Path, tmp_path: Path) -> Iterator[Backend]:
        fleet = Fleet(tmp_path / "fleet")
        fleet.add("h1", transport="openssh")
        fleet.add("h2")
        yield fleet.backend(home)
        fleet.close()
