"""Proves that the kit can fail: a backend that breaks a promise is caught by the test of it."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from flawed_suite import FLAWED

HERE = Path(__file__).parent
PARTS = 2


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_broken_promise_is_caught(part: int, tmp_path: Path) -> None:
    flawed = FLAWED[part::PARTS]
    report = tmp_path / "report.xml"
    nodes = [f"{HERE / 'flawed_suite.py'}::Test{cls.__name__}::{cls.caught}" for cls in flawed]
    quiet = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--basetemp", str(tmp_path / "below")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *quiet, "--junitxml", str(report), *nodes],
        cwd=HERE.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    cases = {
        case.get("classname", "").rpartition(".")[2]: case
        for case in ElementTree.parse(report).iter("testcase")
    }
    missed = []
    for cls in flawed:
        failure = cases[f"Test{cls.__name__}"].find("failure")
        if failure is None:
            missed.append(f"{cls.__name__}: {cls.caught} did not fail")
        elif cls.says not in (failure.text or ""):
            missed.append(f"{cls.__name__}: {cls.caught} failed for another reason: {failure.get('message')}")
    assert not missed, "\n".join(missed)


def test_there_are_flaws_for_every_part_of_the_kit() -> None:
    """Guards the test above, which would pass over nothing."""
    from compute_router.testing.backend import BackendConformance

    caught = {cls.caught for cls in FLAWED}
    assert len(FLAWED) >= 40
    for part in BackendConformance.__bases__:
        assert caught & {name for name in vars(part) if name.startswith("test_")}, f"none for {part.__name__}"
