"""Proves `route shell`: real terminals, real shells beside real runs, over a pipe and over a real sshd."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROUTE, Route
from ssh_machines import entry_of, pin_all
from sshd import Sshd
from supervisor_driver import Place, shell
from terminals import Terminal

WORK = """\
import pathlib, time
print("begun", flush=True)
while not pathlib.Path("stop").exists():
    time.sleep(0.02)
"""


@pytest.fixture
def run_id(folder: Path, route: Route) -> Iterator[str]:
    """A run that goes on until `stop` lies in its folder; cancelled afterwards."""
    (folder / "work.py").write_text(WORK)
    started = route("run", "-d", "work.py")
    assert started.returncode == 0, started.stderr
    found = started.stdout.strip()
    yield found
    route("cancel", found)
    route("wait", found)


def ended(route: Route, run_id: str) -> None:
    assert route("shell", run_id, "--", "touch", "stop").returncode == 0
    assert route("wait", run_id).returncode == 0


def test_a_shell_stands_in_the_runs_folder_on_a_terminal_of_this_size(run_id: str, folder: Path) -> None:
    terminal = Terminal(folder, "shell", run_id, env={"PS1": "$ "}, columns=97)
    before = terminal.modes
    terminal.until("leaving it does nothing to the run")
    terminal.type("echo $((40 + 2)) $ROUTE_RUN_ID; stty size; ls\n")
    terminal.until(f"42 {run_id}")
    terminal.until("40 97")
    terminal.until("work.py")
    terminal.resize(33, 71)
    # The signal and what is typed come by two ways.
    for _ in range(50):
        terminal.type("stty size\n")
        time.sleep(0.1)
        terminal.drain()
        if "33 71" in terminal.seen:
            break
    terminal.until("33 71")
    terminal.type("exit 7\n")
    assert terminal.exit() == 7
    assert terminal.last_modes == before, "the terminal is as it was"


def test_a_terminal_that_knows_no_size_and_no_stdin_at_all_will_do(run_id: str, folder: Path) -> None:
    terminal = Terminal(folder, "shell", run_id, "--", "stty", "size", columns=0)
    assert terminal.exit() == 0, terminal.seen
    assert "40 80" in terminal.seen
    words = [sys.executable, *ROUTE[1:], "shell", run_id, "--", "echo", "there"]
    out = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *words], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert (out.returncode, out.stdout) == (0, "there\n"), out.stderr


def test_ctrl_c_reaches_the_program_there_and_not_the_client(run_id: str, folder: Path) -> None:
    terminal = Terminal(folder, "shell", run_id)
    terminal.until("leaving it")
    terminal.type("echo ready; sleep 100; echo after=$?\n")
    terminal.until("ready\n")
    time.sleep(0.3)
    terminal.type("\x03")
    terminal.type("echo still $((1 + 1))\n")
    terminal.until("still 2")
    terminal.type("exit\n")
    terminal.exit()
    assert "Traceback" not in terminal.seen


def test_a_hanging_shell_is_let_go_of_by_tilde_dot(run_id: str, folder: Path) -> None:
    terminal = Terminal(folder, "shell", run_id, "--", "sh", "-c", "trap '' INT; echo ready; sleep 100")
    terminal.until("ready")
    terminal.type("\x03\r~.")
    assert terminal.exit() == 69


def test_a_command_without_a_terminal_carries_bytes_as_they_are(
    run_id: str, folder: Path, seed: random.Random
) -> None:
    data = seed.randbytes(1_000_003)
    done = subprocess.run(
        [*ROUTE, "shell", run_id, "--", "sh", "-c", "cat; echo done >&2; exit 3"],
        input=data,
        capture_output=True,
        cwd=folder,
        timeout=60,
    )
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()
    assert (done.returncode, done.stderr) == (3, b"done\n")


def test_ends_are_those_of_the_command(run_id: str, route: Route) -> None:
    assert route("shell", run_id, "--", "sh", "-c", "kill -9 $$").returncode == 137
    missing = route("shell", run_id, "--", "no-such-program")
    assert missing.returncode == 127
    assert "no-such-program: No such file or directory" in missing.stderr
    hurt = route("shell", run_id, "--", "echo", "x; $(touch hurt)", "&", "'quoted'")
    assert hurt.stdout == "x; $(touch hurt) & 'quoted'\n"
    told = route("shell", "--json", run_id, "--", "sh", "-c", "echo out; echo err >&2; exit 4")
    *events, last = [json.loads(line) for line in told.stdout.splitlines()]
    assert sorted((e["stream"], e["text"]) for e in events) == [(1, "out\n"), (2, "err\n")]
    assert (told.returncode, last["data"]["exit_code"], last["error"]["code"]) == (4, 4, "COMMAND_FAILED")
    bare = route("shell", run_id)
    assert bare.returncode == 64
    assert "needs a terminal" in bare.stderr


def test_it_is_no_part_of_the_run_and_has_none_of_its_secrets(
    folder: Path, route: Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "work.py").write_text('# /// script\n# [tool.route]\n# secrets = ["CANARY"]\n# ///\n' + WORK)
    monkeypatch.setenv("CANARY", "tweet-tweet-4711")
    run_id = route("run", "-d", "work.py").stdout.strip()
    beside = subprocess.Popen([*ROUTE, "shell", run_id, "--", "cat"], stdin=subprocess.PIPE, cwd=folder)
    try:
        env = route("shell", run_id, "--", "env").stdout
        assert f"ROUTE_RUN_ID={run_id}" in env
        assert "ROUTE_OUTPUTS=" in env
        assert "tweet" not in env
        assert "ROUTE_METRICS=/dev/null" in env, "what is tried there is not measured"
        ended(route, run_id)
        assert beside.poll() is None, "the end of the run sweeps its own processes alone"
    finally:
        beside.communicate(timeout=20)
    assert beside.returncode == 0
    [receipt] = (Path(os.environ["ROUTE_HOME"]) / "runs").glob("*/receipt.json")
    measured = json.loads(receipt.read_text())["measured"]
    assert measured["processes"]["strays"]["v"] == 0


def test_after_the_folder_was_removed_it_is_one_line(run_id: str, route: Route) -> None:
    ended(route, run_id)
    done = route("shell", run_id, "--", "ls")
    assert done.returncode == 65
    assert "was removed" in done.stderr
    assert "Traceback" not in done.stderr


OVER_SSH = """\
import json, sys
from pathlib import Path
from compute_router.cli.shell import _plain, lend
from compute_router.errors import RouteError
from compute_router.machines.entry import MachineEntry
from compute_router.machines.reaching import reach
from compute_router.machines.shell import open_shell
import os
entry = MachineEntry(**json.loads(sys.argv[1]))
size = os.get_terminal_size(0)
opened = open_shell(reach("h1", entry), sys.argv[2], sys.argv[3:], size=(size.lines, size.columns))
try:
    sys.exit(lend(opened, _plain, terminal=True))
except RouteError as e:
    print("told:", e.what)
    sys.exit(e.exit_code)
"""


@pytest.mark.parametrize("transport", ["paramiko", "openssh"])
def test_the_terminal_is_as_it_was_after_sshd_was_killed(
    transport: str, run_id: str, folder: Path, tmp_path: Path, route: Route
) -> None:
    """And the shell over there is told by SIGHUP that nobody listens any more."""
    with_server = Sshd(tmp_path / "sshd").start()
    try:
        entry = entry_of(with_server, tmp_path / "home" / "machine", transport=transport)
        pin_all("h1", entry)
        said = {name: getattr(entry, name) for name in ("address", "identity", "root", "transport")}
        script = "trap 'touch hung-up; exit' HUP; stty size; echo ready; while :; do sleep 0.05; done"
        terminal = Terminal(
            folder,
            *[json.dumps(said), run_id, "sh", "-c", script],
            program=[sys.executable, "-c", textwrap.dedent(OVER_SSH)],
            columns=91,
        )
        before = terminal.modes
        terminal.until("ready")
        assert "40 91" in terminal.seen
        with_server.kill()
        assert terminal.exit() == 69
        assert "told: the shell is gone" in terminal.seen
        assert terminal.last_modes == before
        work = tmp_path / "home" / "machine" / "runs" / run_id / "work"
        end = time.monotonic() + 20
        while not (work / "hung-up").exists():
            assert time.monotonic() < end, "the shell was not hung up on"
            time.sleep(0.05)
    finally:
        with_server.kill()


def test_requests_for_a_shell_that_are_none_are_refused_by_name(tmp_path: Path) -> None:
    place = Place(tmp_path)
    try:
        link = place.link()
        run_id = place.submit(link, shell("true"))
        bad: list[dict[str, Any]] = [
            {"argv": 7},
            {"argv": ["a\0b"]},
            {"argv": [["x"]]},
            {"rows": 0, "columns": 80},
            {"rows": 24},
            {"rows": "24", "columns": 80},
            {"rows": 2**40, "columns": 80},
        ]
        for fields in bad:
            link.send("shell", run_id=run_id, **fields)
            head, _ = link.receive()
            assert (head["ok"], head["error"]["code"]) == (False, "BAD_REQUEST"), fields
        link.send("shell", run_id="0" * 26, argv=["true"])
        assert link.receive()[0]["error"]["code"] == "NOT_COMMITTED"
        # Whatever comes for a shell that is over is nobody's, and the connection goes on.
        link.send("input", b"x")
        link.send("window", rows="?")
        assert link.ask("status", run_ids=[run_id])["statuses"][run_id]["state"] == "committed"
    finally:
        place.close()
