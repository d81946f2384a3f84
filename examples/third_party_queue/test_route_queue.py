"""Proves that the backend `queue` keeps every promise it makes."""

from __future__ import annotations

from pathlib import Path

import pytest
from route_queue import QueueBackend, QueueSettings

from compute_router.testing import BackendConformance


class TestQueue(BackendConformance):
    """Tests of powers that are not claimed are skipped, with the reason (`pytest -rs`)."""

    measures = False  # it runs the work itself, without the supervisor: nothing is measured

    @pytest.fixture
    def backend(self, home: Path) -> QueueBackend:
        return QueueBackend(QueueSettings(), home)
