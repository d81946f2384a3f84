"""Proves that docs/writing-a-backend.md tells of the kit as it is: every test, hook, power and method."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from compute_router.backend import Backend, Power
from compute_router.registry import Registry
from compute_router.testing import BackendConformance, PolicyConformance
from compute_router.testing.__main__ import table
from compute_router.testing.kit import Kit

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "writing-a-backend.md").read_text()


@pytest.mark.parametrize("conformance", [BackendConformance, PolicyConformance])
def test_the_tables_are_those_of_the_code(conformance: type) -> None:
    assert table(conformance) in PAGE, "python -m compute_router.testing prints them"
    tests = [name for name in dir(conformance) if name.startswith("test_")]
    assert len(tests) == table(conformance).count("\n") - 2
    assert all(getattr(conformance, name).__doc__ for name in tests)


def test_what_is_bundled_is_proved_by_the_kit() -> None:
    """Every bundled backend has a file here that hands it to the kit; the policies share one."""
    from routing import POLICIES

    registry = Registry(enabled=False)
    files = [path.read_text() for path in Path(__file__).parent.glob("test_conformance_*.py")]
    for cls in registry.backends().values():
        assert any(f"{cls.__name__}(" in text and "BackendConformance" in text for text in files), cls
    assert {policy.name for policy in POLICIES} == set(registry.policies())


def test_every_power_is_told() -> None:
    told = re.findall(r"^\| `([A-Z_]+)` \|", PAGE, re.M)
    assert told == [power.name for power in Power]


def test_every_hook_is_told() -> None:
    [rows] = re.findall(r"\| hook \| default \| says \|\n\|---\|---\|---\|\n((?:\|.*\n)+)", PAGE)
    told = {name for row in rows.splitlines() for name in re.findall(r"`(\w+)", row.split("|")[1])}
    plain = {name for name, value in vars(Kit).items() if not name.startswith("_") and not callable(value)}
    fixtures = {"home", "folder", "backend", "chance"}
    assert told == (plain - fixtures) | {"workload", "fresh", "cut"}


def test_every_method_of_the_contract_is_told() -> None:
    methods = [name for name, _ in inspect.getmembers(Backend, inspect.isfunction) if name != "__init__"]
    for name in set(methods) - {"attached"}:
        assert re.search(rf"`{name}[(`]", PAGE), f"{name} is not told of"
