"""What every test may use: a home of its own, the real `route` command, and the seed of this session."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROUTE = [sys.executable, "-c", "from compute_router.cli import main; main()"]
"""The console script's own two lines, so that no test depends on what else is on PATH."""

Route = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own store or configuration."""
    monkeypatch.setenv("ROUTE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("ROUTE_CONFIG", "ROUTE_DEBUG", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder a user might stand in."""
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


@pytest.fixture
def route(folder: Path) -> Route:
    """Run `route ARGS...` as a user does: a process of its own, in `folder`."""

    def call(
        *args: str, timeout: float = 60, cwd: Path | None = None, env: dict[str, str | None] | None = None
    ) -> subprocess.CompletedProcess[str]:
        merged = {**os.environ, **(env or {})}
        return subprocess.run(
            [*ROUTE, *args],
            cwd=cwd or folder,
            env={k: v for k, v in merged.items() if v is not None},
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    return call


@pytest.fixture
def seed() -> random.Random:
    """A generator whose seed is printed with a failure; ROUTE_SEED repeats a run."""
    number = int(os.environ.get("ROUTE_SEED", random.randrange(2**32)))
    print(f"ROUTE_SEED={number}")
    return random.Random(number)


FIGURES = """\
# /// script
# [tool.route]
# kind = "bench"
# purpose = "benchmark"
# framework = "none"
# [tool.route.metrics]
# primary = "speed"
# [tool.route.fields]
# dtype = "float64"
# deterministic = true
# ///
import sys
import route_report
for step in range(6):
    route_report.step(step, step_us=1000, speed=float(sys.argv[1]))
"""


@pytest.fixture
def two(route: Route, folder: Path, home: Path) -> list[Path]:
    """The receipts of two runs that differ in their arguments."""
    (folder / "work.py").write_text(FIGURES)
    for speed in ("10", "20"):
        assert route("run", "work.py", "--", speed).returncode == 0
    found = sorted((home / "runs").glob("*/receipt.json"), key=lambda path: path.stat().st_mtime)
    assert len(found) == 2
    return found
