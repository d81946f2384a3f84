"""What the tests of `route record` share: starting it as a launcher does, and reading what it left."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import ROUTE

Env = dict[str, "str | None"]
PLAIN = (
    *("ROUTE_RUN_ID", "SLURM_JOB_ID", "SKYPILOT_TASK_ID", "KUBERNETES_SERVICE_HOST", "TMUX", "STY"),
    *("TORCHX_JOB_ID", "RAY_JOB_ID", "LSB_JOBID", "PBS_JOBID", "FLUX_JOB_ID", "_CONDOR_SCRATCH_DIR"),
)
"""Variables of launchers that the tests may themselves stand below."""


def run_of(home: Path) -> Path:
    """The folder of the one run in the store."""
    (found,) = (home / "runs").iterdir()
    return found


def receipt_of(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_of(home) / "receipt.json").read_bytes())
    return found


def fact(receipt: dict[str, Any], path: str) -> Any:
    """The fact at a path of the context."""
    at: Any = receipt["context"]
    for name in path.split("."):
        at = at[name]
    return at


def until(ready: Callable[[], bool], what: str) -> None:
    """Wait for something that other processes do; a minute is only for a machine that stands still."""
    end = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.01)


def recorder(folder: Path, *args: str, **more: Any) -> subprocess.Popen[bytes]:
    """`route record ARGS` in a session of its own, as a launcher starts it."""
    return subprocess.Popen(
        [*ROUTE, "record", *args],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **{"stdin": subprocess.DEVNULL, **more},
    )


def script(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path
