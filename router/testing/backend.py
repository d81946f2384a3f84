"""The conformance of a backend: all its parts in one class to subclass."""

from __future__ import annotations

from compute_router.testing.collecting import Collecting
from compute_router.testing.declared import Declared
from compute_router.testing.ending import Ending
from compute_router.testing.once import Once
from compute_router.testing.seeing import Seeing
from compute_router.testing.watching import Watching

__all__ = ["BackendConformance"]


class BackendConformance(Declared, Once, Watching, Ending, Collecting, Seeing):
    """Every promise of `compute_router.Backend` as a test. Subclass it as `Test...` and give `backend`.

    Tests of what a backend does not claim in `powers` are skipped, and say so. The hooks that
    may be overridden are those of `compute_router.testing.kit.Kit`.
    """
