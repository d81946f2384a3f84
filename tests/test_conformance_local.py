"""Proves the local backend by the kit that every plugin's author has, and by way of that the kit itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from peers import Cut, CutMachine, On

from compute_router.backend import Backend
from compute_router.backends.local import LocalBackend, LocalSettings
from compute_router.testing import BackendConformance


class TestLocal(BackendConformance):
    """All powers that local claims, on this machine."""

    @pytest.fixture
    def backend(self, home: Path) -> Backend:
        return LocalBackend(LocalSettings(), home)

    def cut(self, backend: Backend) -> Backend | None:
        return On(backend.home, CutMachine(backend.home / "machine", Cut(opens=0)))
