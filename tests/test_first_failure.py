"""Of several ranks on one machine the one that failed first is named, in the state and in what was measured.

Real torchrun with two ranks; programs that know nothing of torch's own error files.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from supervisor_driver import FINAL, Link, Place, spec

pytest.importorskip("torch")
RANK = "import os, sys, time\nrank = os.environ['RANK']\nprint('rank', rank, os.getpid(), flush=True)\n"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


def start(place: Place, link: Link, source: str, **more: Any) -> str:
    files = {"w.py": (RANK + source).encode()}
    made = spec(["{python}", "w.py"], files=files, launcher={"name": "torchrun", "ranks": 2}, **more)
    run_id = place.submit(link, made, files=files)
    secrets = dict.fromkeys(made["secrets"], "hunter2-hunter2")
    link.start(run_id, secrets=secrets)
    return run_id


def test_the_rank_that_raised_is_named(place: Place) -> None:
    with place.link() as link:
        source = "if rank == '1': raise ValueError('boom')\ntime.sleep(60)\n"
        run_id = start(place, link, source)
        found = place.until(link, run_id, FINAL, 90)
        assert found["detail"] == "exit code 1; rank 1 failed first: ValueError: boom"
        assert (found["first"]["rank"], found["first"]["follows"]) == (1, False)
        listed = link.ask("manifest", run_id=run_id)["files"]
        assert any(f["role"] == "error" and f["path"].endswith("/1/error.json") for f in listed)
        outcome = place.read(run_id, "measured.json")["outcome"]
        assert outcome["first"]["what"] == "ValueError: boom"


def test_a_rank_that_was_killed_is_named(place: Place) -> None:
    with place.link() as link:
        run_id = start(place, link, "time.sleep(60)\n")
        log, pid, until = place.attempt(run_id) / "log", 0, time.monotonic() + 150
        while not pid:
            assert time.monotonic() < until
            lines = log.read_text().splitlines() if log.exists() else []
            pid = next((int(line.split()[-1]) for line in lines if line.startswith("rank 1 ")), 0)
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        found = place.until(link, run_id, FINAL, 90)
        assert found["detail"] == "exit code 1; rank 1 failed first: signal 9"


def test_what_a_failing_rank_says_is_masked(place: Place) -> None:
    with place.link() as link:
        source = "if rank == '0': raise ValueError('my key is ' + os.environ['KEY'])\ntime.sleep(60)\n"
        run_id = start(place, link, source, secrets=["KEY"])
        found = place.until(link, run_id, FINAL, 90)
        assert "rank 0 failed first: ValueError: my key is ***" in found["detail"]
        link.ask("manifest", run_id=run_id)
        for path in place.attempt(run_id).rglob("*"):
            if path.is_file():
                assert b"hunter2" not in path.read_bytes(), path


def test_an_exception_that_is_caught_leaves_nothing(place: Place) -> None:
    with place.link() as link:
        source = "try:\n    raise ValueError('no')\nexcept ValueError:\n    pass\n"
        run_id = start(place, link, source)
        found = place.until(link, run_id, FINAL, 90)
        assert found["state"] == "succeeded"
        assert "first" not in found
        assert not list((place.attempt(run_id) / "ranks").rglob("error.json"))


def test_a_programs_own_hook_for_exceptions_still_runs(place: Place) -> None:
    with place.link() as link:
        source = (
            "before = sys.excepthook\n"
            "sys.excepthook = lambda *told: (print('mine', flush=True), before(*told))\n"
            "if rank == '1': raise KeyError('k')\ntime.sleep(60)\n"
        )
        run_id = start(place, link, source)
        found = place.until(link, run_id, FINAL, 90)
        assert "rank 1 failed first: KeyError: 'k'" in found["detail"]
        log = (place.attempt(run_id) / "log").read_text()
        assert "mine\n" in log
        assert "KeyError: 'k'" in log
