"""Proves every bundled policy by the kit that every plugin's author has."""

from __future__ import annotations

import pytest
from routing import POLICIES

from compute_router.policy import Policy
from compute_router.testing import PolicyConformance


class TestBundled(PolicyConformance):
    """All of them."""

    @pytest.fixture(params=POLICIES, ids=lambda policy: policy.name)
    def policy(self, request: pytest.FixtureRequest) -> Policy:
        found: Policy = request.param
        return found
