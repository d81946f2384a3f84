"""Proves that the backend `metered` keeps every promise it makes, and that its price is what was set."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from route_metered import MeteredBackend, MeteredSettings

from compute_router.testing import BackendConformance


class TestMetered(BackendConformance):
    """Its own tests stand beside those of the kit, and use the same ways to run work."""

    @pytest.fixture
    def backend(self, home: Path) -> MeteredBackend:
        return MeteredBackend(MeteredSettings(per_hour="36.00"), home)

    def test_a_run_costs_its_time(self, backend: MeteredBackend, folder: Path) -> None:
        """36.00 an hour are 0.01 a second."""
        work = self.workload(folder, "import time\ntime.sleep(0.3)\n")
        quote = self.offer(backend, work).quote
        assert quote is not None
        assert quote.amount == "36.00"
        handle, status, _ = self.ran(backend, work)
        cost = backend.cost(handle)
        assert cost is not None
        assert status.started_us is not None
        assert status.ended_us is not None
        seconds = Decimal(status.ended_us - status.started_us) / 1_000_000
        assert abs(Decimal(cost.amount) - seconds / 100) < Decimal("0.000001")
