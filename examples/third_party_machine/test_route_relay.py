"""Proves that the backend `relay` keeps every promise it makes."""

from __future__ import annotations

from pathlib import Path

import pytest
from route_relay import RelayBackend, RelaySettings

from compute_router import Backend
from compute_router.testing import BackendConformance


class TestRelay(BackendConformance):
    """On this computer. To prove yours give its `command`, and `here = False`."""

    @pytest.fixture
    def backend(self, home: Path) -> Backend:
        return RelayBackend(RelaySettings(root=str(home / "there")), home)

    def cut(self, backend: Backend) -> Backend:
        assert isinstance(backend, RelayBackend)
        away = RelayBackend(backend.settings, backend.home)
        away._machine.settings = RelaySettings(command=("no-such-program",))
        return away
