"""The kit on every flawed backend: run by test_conformance_catches.py, where each of them must fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import flawed_ends  # noqa: F401 - its classes are subclasses
import flawed_sdk  # noqa: F401
import pytest
from flawed import Flawed

from compute_router.backend import Backend
from compute_router.backends.local import LocalSettings
from compute_router.testing import BackendConformance

FLAWED = sorted(Flawed.__subclasses__(), key=lambda cls: cls.__name__)


class OfFlawed(BackendConformance):
    """What is run on each."""

    flawed: type[Flawed]
    kills = 3
    sdks = ("sqlite3",)

    @pytest.fixture
    def backend(self, home: Path) -> Iterator[Backend]:
        made = self.flawed(LocalSettings(), home)
        yield made
        handle = getattr(made, "handle", None)
        if handle is not None:
            super(Flawed, made).cancel(handle)

    def cut(self, backend: Backend) -> Backend | None:
        found: Backend | None = getattr(backend, "cut", lambda: None)()
        return found


for each in FLAWED:
    hooks = {"flawed": each, "patience": each.patience, "here": each.here}
    globals()[f"Test{each.__name__}"] = type(f"Test{each.__name__}", (OfFlawed,), hooks)
