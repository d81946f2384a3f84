"""Proves what a person at a terminal sees: real pseudo-terminals, real signals, real runs."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROUTE, Route
from terminals import Terminal

SLOW = "import time\nprint('begun', flush=True)\ntime.sleep({seconds})\nprint('over', flush=True)\n"
ID = re.compile(r"\b[0-9a-hjkmnp-tv-z]{26}\b")


@pytest.fixture
def slow(folder: Path, route: Route) -> Iterator[Path]:
    """A script that takes a while; whatever it started is cancelled afterwards."""
    (folder / "slow.py").write_text(SLOW.format(seconds=120))
    yield folder
    ids = [r["run_id"] for r in json.loads(route("ps", "--live", "--json").stdout)["data"]["runs"]]
    if ids:
        route("cancel", *ids)
        route("wait", *ids)


def state(route: Route, run_id: str) -> str:
    return str(json.loads(route("status", run_id, "--json").stdout)["data"]["state"])


def test_ctrl_c_leaves_after_a_while_and_says_how_to_come_back(slow: Path, route: Route) -> None:
    terminal = Terminal(slow, "run", "slow.py")
    terminal.until("begun")
    terminal.type("\x03")
    terminal.until("leaving in 2 s")
    assert terminal.exit() == 130
    found = ID.search(terminal.seen)
    assert found
    run_id = found[0]
    assert f"route resume {run_id}" in terminal.seen
    assert f"route cancel {run_id}" in terminal.seen
    assert "Traceback" not in terminal.seen
    assert state(route, run_id) == "running"


def test_a_second_ctrl_c_asks_and_yes_cancels(slow: Path, route: Route) -> None:
    terminal = Terminal(slow, "run", "slow.py")
    terminal.until("begun")
    terminal.type("\x03")
    terminal.until("leaving in 2 s")
    terminal.type("\x03")
    terminal.until("[y/N]")
    terminal.type("y\n")
    assert terminal.exit() == 143
    assert terminal.seen.count("begun") == 1
    assert "cancelled" in terminal.seen
    run_id = ID.search(terminal.seen)
    assert run_id
    assert state(route, run_id[0]) == "cancelled"


@pytest.mark.parametrize("answer", ["n\n", "\n", "\x03", "\x04"], ids=["n", "enter", "ctrl-c", "ctrl-d"])
def test_any_other_answer_leaves_the_run_alone(slow: Path, route: Route, answer: str) -> None:
    terminal = Terminal(slow, "run", "slow.py")
    terminal.until("begun")
    terminal.type("\x03")
    terminal.until("leaving in 2 s")
    terminal.type("\x03")
    terminal.until("[y/N]")
    terminal.type(answer)
    assert terminal.exit() == 130
    run_id = ID.search(terminal.seen)
    assert run_id
    assert state(route, run_id[0]) == "running"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_off_a_terminal_a_signal_detaches_at_once(slow: Path, route: Route, number: signal.Signals) -> None:
    client = subprocess.Popen(
        [*ROUTE, "run", "slow.py"],
        cwd=slow,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "begun\n"
    client.send_signal(number)
    _, err = client.communicate(timeout=20)
    assert client.returncode == 130, err
    run_id = ID.search(err)
    assert run_id
    assert "leaving in" not in err
    assert state(route, run_id[0]) == "running"


def test_a_reader_that_stops_detaches(slow: Path, route: Route) -> None:
    (slow / "chatty.py").write_text(
        "import time\nfor n in range(600):\n    print('line', n, flush=True)\n    time.sleep(0.1)\n"
    )
    client = subprocess.Popen(
        [*ROUTE, "run", "chatty.py"],
        cwd=slow,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert client.stdout is not None
    assert client.stdout.readline() == "line 0\n"
    client.stdout.close()
    assert client.stderr is not None
    err = client.stderr.read()
    assert client.wait(20) == 130, err
    run_id = ID.search(err)
    assert run_id
    assert "Broken" not in err
    assert state(route, run_id[0]) == "running"


def test_wait_is_left_by_ctrl_c_and_the_run_goes_on(slow: Path, route: Route) -> None:
    run_id = route("run", "--detach", "slow.py").stdout.strip()
    terminal = Terminal(slow, "wait", run_id)
    terminal.until("running")
    terminal.type("\x03")
    assert terminal.exit() == 130
    assert state(route, run_id) == "running"


HOSTILE = (
    b"\\x1b]0;title\\x07\\x1b[2Jred \\x1b[31m\\x9b5n\\xc2\\x9b5n bad\\xff \\xe2\\x80\\xae over\\rwritten\\n"
)


def test_escape_sequences_reach_no_terminal(route: Route, folder: Path) -> None:
    code = f"import sys; sys.stdout.buffer.write(b'{HOSTILE.decode()}')"
    (folder / "hostile.py").write_text(code)
    out = subprocess.run([*ROUTE, "run", "hostile.py"], cwd=folder, capture_output=True)
    raw = eval(f"b'{HOSTILE.decode()}'")
    assert out.stdout == raw, "a pipe gets the bytes themselves"
    shown = Terminal(folder, "logs", env={"NO_COLOR": "1"})
    assert shown.exit() == 0
    assert "\x1b" not in shown.seen
    assert "\x9b" not in shown.seen
    assert "\u202e" not in shown.seen
    assert "^[]0;title^G^[[2Jred ^[[31m" in shown.seen
    assert "over\nwritten" in shown.seen
    as_it_is = Terminal(folder, "logs", "--raw")
    assert as_it_is.exit() == 0
    assert "\x1b[31m" in as_it_is.seen


def test_a_hostile_name_reaches_no_terminal(route: Route, folder: Path) -> None:
    (folder / "a\x1b[31mb.py").write_text("pass")
    terminal = Terminal(folder, "run", "a\x1b[31mb.py", "--lr", env={"NO_COLOR": "1"})
    terminal.exit()
    assert "\x1b" not in terminal.seen


def test_errors_and_stages_are_folded_and_coloured_not_spelled_out(route: Route, folder: Path) -> None:
    (folder / "work.py").write_text("pass\n")
    for args, code in ((["run", "work.py"], 0), (["run", "no-such.py"], 64), (["ps", "--state", "x"], 64)):
        coloured = Terminal(folder, *args)
        assert coloured.exit() == code
        assert "\x1b[" in coloured.seen
        assert "^[" not in coloured.seen
        plain = Terminal(folder, *args, env={"NO_COLOR": "1"})
        assert plain.exit() == code
        assert "\x1b" not in plain.seen
        # Paths are not broken, so that they can be taken whole.
        assert max(len(line) for line in plain.seen.splitlines() if "/" not in line) <= 80, plain.seen


def test_colours_on_a_terminal_alone_and_never_with_no_color(route: Route, folder: Path) -> None:
    assert route("run", "--", "true").returncode == 0
    coloured = Terminal(folder, "ps")
    assert coloured.exit() == 0
    assert "\x1b[" in coloured.seen
    plain = Terminal(folder, "ps", env={"NO_COLOR": "1"})
    assert plain.exit() == 0
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", plain.seen)
    assert "succeeded" in plain.seen
    assert "\x1b" not in route("ps").stdout
    dumb = Terminal(folder, "ps", env={"TERM": "dumb"})
    assert dumb.exit() == 0
    assert "\x1b" not in dumb.seen


@pytest.mark.parametrize(
    "line",
    [
        "ps",
        "plan work.py",
        "plan work.py --values",
        "backends",
        "policies",
        "kinds",
        "plugins",
        "doctor",
        "status",
        "receipt show",
        "receipt list",
        "gc",
        "gc --older-than 0 --outputs",
    ],
)
def test_80_columns_are_enough(route: Route, folder: Path, line: str) -> None:
    (folder / "work.py").write_text("pass\n")
    assert route("run", "work.py").returncode == 0
    terminal = Terminal(folder, *line.split(), env={"NO_COLOR": "1"})
    assert terminal.exit() == 0, terminal.seen
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in terminal.seen.splitlines()]
    # A path is not broken, so that it can be taken whole.
    assert max(len(line) for line in lines if "/" not in line) <= 80, terminal.seen
