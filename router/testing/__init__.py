"""What a plugin's author proves a backend or a policy with: subclass, give it yours, run pytest.

::

    from compute_router.testing import BackendConformance

    class TestMine(BackendConformance):
        @pytest.fixture
        def backend(self, home):
            return MyBackend(MySettings(), home)

Needs pytest, which the base install does not bring.
"""

from __future__ import annotations

try:
    import pytest
except ImportError as missing:
    raise ImportError("compute_router.testing needs pytest; mend: pip install pytest") from missing

PARTS = ("collecting", "declared", "ending", "kit", "once", "policy", "seeing", "watching")
pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in PARTS))

from compute_router.testing.backend import BackendConformance  # noqa: E402
from compute_router.testing.fakes import Drawn, hardware, offer, work  # noqa: E402
from compute_router.testing.kit import needs  # noqa: E402
from compute_router.testing.policy import PolicyConformance  # noqa: E402

__all__ = [
    "BackendConformance",
    "Drawn",
    "PolicyConformance",
    "hardware",
    "needs",
    "offer",
    "work",
]
