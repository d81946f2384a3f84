"""Small studies to run: a script that counts its starts and reports steps, and what its witness saw."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["document", "driver_of", "kill", "study", "until", "witnessed"]

WORK = '''\
"""Notes each start in WITNESS, works for a while, reports steps; what it finds in FAIL fails."""
# /// script
# [tool.route]
# kind = "train"
# purpose = "benchmark"
# python = "current"
# outputs = []
# ///
import json
import os
import sys
import time

said = dict(zip(sys.argv[1::2], sys.argv[2::2]))
fd = os.open(said["--witness"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
os.write(fd, (said["--arm"] + " " + said["--index"] + "\\n").encode())
time.sleep(float(said.get("--sleep", "0")))
if os.path.exists(said["--witness"] + ".fail." + said["--arm"]):
    sys.exit(3)
for step in range(4):
    with open(os.environ["ROUTE_METRICS"], "a") as file:
        file.write(json.dumps({"step": step, "tokens": 100, "step_us": 1000 + len(said["--arm"])}) + "\\n")
'''


def study(folder: Path, *, n: int = 2, sleep: float = 0.0, more: str = "", arms: str = "") -> Path:
    """A study.toml and its work in `folder`; returns the witness file."""
    witness = folder.parent / "witness"
    (folder / "work.py").write_text(WORK)
    args = ["--witness", str(witness), "--index", "{index}", "--sleep", str(sleep)]
    (folder / "study.toml").write_text(
        f'[study]\nname = "s"\nworkload = "work.py"\nn = {n}\nvary = ["workload.preset"]\n'
        f"args = {json.dumps(args)}\n{more}\n"
        + (arms or '[arms.one]\nargs = ["--arm", "one"]\n[arms.three]\nargs = ["--arm", "three"]\n')
    )
    return witness


def witnessed(witness: Path) -> Counter[str]:
    """How often each `arm index` was started."""
    return Counter(witness.read_text().splitlines()) if witness.exists() else Counter()


def document(text: str) -> dict[str, Any]:
    """The last document of a stream of `--json`."""
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    return found


def until(true: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait for something, and return what it was."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)
    return found


def driver_of(home: Path) -> int:
    """The process that drives the only study there is; waits until there is one."""
    from compute_router.studies.folder import studies

    def look() -> int | None:
        return next((pid for folder in studies(home) if (pid := folder.driver)), None)

    found: int = until(look)
    os.kill(found, 0)
    return found


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
