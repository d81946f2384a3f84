"""Proves that the kit can fail: what breaks a promise is caught by the test of that promise."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import flawed_policies
import flawed_suite
import pytest

pytestmark = pytest.mark.timeout(1800)  # whole suites of real runs, on machines that may be slow

HERE = Path(__file__).parent
PARTS = 8


def missed(suite: str, flawed: list[Any], tmp_path: Path) -> list[str]:
    """Run the one test of each that must fail, and tell of those that do not, or for another reason."""
    report = tmp_path / "report.xml"
    nodes = [f"{HERE / suite}::Test{cls.__name__}::{cls.caught}" for cls in flawed]
    quiet = ["-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "below")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *quiet, "--junitxml", str(report), *nodes],
        cwd=HERE.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    told = ElementTree.parse(report).iter("testcase")
    cases = {case.get("classname", "").rpartition(".")[2]: case for case in told}
    found = []
    for cls in flawed:
        failure = cases[f"Test{cls.__name__}"].find("failure")
        if failure is None:
            found.append(f"{cls.__name__}: {cls.caught} did not fail")
        elif cls.says not in (failure.text or ""):
            found.append(f"{cls.__name__}: {cls.caught} failed for another reason: {failure.get('message')}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_broken_promise_of_a_backend_is_caught(part: int, tmp_path: Path) -> None:
    assert missed("flawed_suite.py", flawed_suite.FLAWED[part::PARTS], tmp_path) == []


@pytest.mark.slow
def test_every_broken_promise_of_a_policy_is_caught(tmp_path: Path) -> None:
    assert missed("flawed_policies.py", flawed_policies.FLAWED, tmp_path) == []


def test_there_are_flaws_for_every_part_of_the_kit() -> None:
    """Guards the tests above, which would pass over nothing."""
    from compute_router.testing import BackendConformance, PolicyConformance

    caught = {cls.caught for cls in flawed_suite.FLAWED}
    assert len(flawed_suite.FLAWED) >= 40
    for part in BackendConformance.__bases__:
        assert caught & {name for name in vars(part) if name.startswith("test_")}, f"none for {part.__name__}"
    tests = {name for name in vars(PolicyConformance) if name.startswith("test_")}
    assert {cls.caught for cls in flawed_policies.FLAWED} == tests
