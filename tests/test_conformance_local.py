"""Proves the local backend by the kit that every plugin's author has, and by way of that the kit itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from peers import Cut, CutMachine, On

from compute_router.backend import Backend, Power
from compute_router.backends.local import LocalBackend, LocalSettings
from compute_router.testing import BackendConformance
from compute_router.testing.once import Once


class TestLocal(BackendConformance):
    """All powers that local claims, on this machine."""

    @pytest.fixture
    def backend(self, home: Path) -> Backend:
        return LocalBackend(LocalSettings(), home)

    def cut(self, backend: Backend) -> Backend | None:
        return On(backend.home, CutMachine(backend.home / "machine", Cut(opens=0)))


class TestFromAfar(Once):
    """As if it ran elsewhere: executions are counted in a volume, which the kit reads by another run."""

    here = False
    kills = 2

    @pytest.fixture
    def backend(self, home: Path) -> Backend:
        return LocalBackend(LocalSettings(), home)


class WithoutVolumes(LocalBackend):
    """Local, claiming less."""

    powers = LocalBackend.powers - {Power.VOLUMES, Power.SECRETS}


class TestFromAfarByTheLog(Once):
    """And where there are no volumes either: by what the log tells."""

    here = False
    kills = 2

    @pytest.fixture
    def backend(self, home: Path) -> Backend:
        return WithoutVolumes(LocalSettings(), home)
