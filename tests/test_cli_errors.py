"""Proves that whatever is mistyped, missing or broken ends in one clear line, its mend and the right code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROUTE, Route


def told(out: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """Exit code, the two lines on stderr, every word in them, nothing on stdout, no traceback."""
    assert out.returncode == code, out.stdout + out.stderr
    lines = out.stderr.strip().splitlines()
    assert lines[0].startswith("route: "), out.stderr
    assert lines[1].startswith("  mend: "), out.stderr
    assert len(lines) == 2, out.stderr
    assert out.stdout == ""
    for word in words:
        assert word in out.stderr, out.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["statsu"], ["statsu", "route status"]),
        (["receipt", "verfy"], ["verfy", "route receipt verify"]),
        (["run", "--detahc", "x.py"], ["--detahc", "--detach"]),
        (["machine", "add", "m", "u@h", "--pric", "3"], ["--pric", "--price-per-hour"]),
        (["comp"], ["comp", "route compare"]),
        (["run", "x.py", "--lr", "3"], ["--lr", "behind `--`"]),
        (["run"], ["names nothing to run"]),
        (["run", "--"], ["missing"]),
        (["run", "x.py", "y.py"], ["y.py"]),
        (["run", "--wait", "soon", "x.py"], ["soon", "30m"]),
        (["run", "--wait", "30", "x.py"], ["30", "unit"]),
        (["ps", "--limit", "0"], ["--limit"]),
        (["logs", "--tail", "-1"], ["--tail"]),
        (["wait"], ["ID"]),
        (["completion", "tcsh"], ["tcsh", "bash"]),
        (["frobnicate"], ["frobnicate", "--help"]),
        (["--frobnicate"], ["--frobnicate"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_call(route: Route, args: list[str], words: list[str]) -> None:
    told(route(*args), 64, *words)


def test_a_script_without_the_verb(route: Route, folder: Path) -> None:
    (folder / "train.py").write_text("")
    told(route("train.py"), 64, "route run train.py")


def test_names_that_stand_for_nothing(route: Route, folder: Path) -> None:
    (folder / "work.py").write_text("pass\n")
    told(route("status", "zzzzzzzz"), 64, "zzzzzzzz")
    told(route("status"), 64, "no run yet")
    told(route("logs", "latest"), 64)
    told(route("rerun", "no/such/receipt.json"), 64, "no/such/receipt.json")
    told(route("receipt", "show", "no-such.json"), 64, "no-such.json")
    told(route("run", "--policy", "atuo", "work.py"), 64, "atuo", "auto")
    told(route("run", "--backend", "lokal", "work.py"), 64, "lokal", "local")
    told(route("run", "--profile", "nigthly", "work.py"), 64, "nigthly")
    told(route("run", "--set", "porpoise=smoke", "work.py"), 64, "porpoise", "purpose")
    told(route("run", "bench:matmull"), 64, "matmull", "matmul")


def test_a_wrong_env_file_is_named_and_its_lines_are_not_shown(route: Route, folder: Path) -> None:
    (folder / "work.py").write_text("# /// script\n# [tool.route]\n# secrets = ['TOKEN']\n# ///\n")
    (folder / "env").write_text("# mine\nhf_secretvalue\n")
    out = route("run", "--env-file", "env", "work.py")
    told(out, 64, "env:2")
    assert "hf_secretvalue" not in out.stderr
    told(route("run", "--env-file", "none", "work.py"), 64, "none")
    (folder / "env").write_text("export OTHER='x'\n")
    told(route("run", "--env-file", "env", "work.py"), 77, "TOKEN")


def test_a_typo_among_several_runs_does_not_keep_the_others(route: Route) -> None:
    assert route("run", "--", "true").returncode == 0
    out = route("collect", "latest", "zzzzzz", "--json")
    assert out.returncode == 64
    document = json.loads(out.stdout)
    assert document["data"][0]["receipt_id"]
    assert document["data"][1]["ref"] == "zzzzzz"


def test_no_home(route: Route) -> None:
    """A home folder that does not exist and cannot be made."""
    gone: dict[str, str | None] = {
        "HOME": "/proc/no/such/home",
        "ROUTE_HOME": None,
        "XDG_DATA_HOME": None,
        "XDG_CONFIG_HOME": None,
    }
    told(route("run", "--", "true", env=gone), 73, "ROUTE_HOME")
    assert route("--help", env=gone).returncode == 0
    assert route("plugins", env=gone).returncode == 0
    doctor = route("doctor", env=gone)
    assert doctor.returncode == 69
    assert "ROUTE_HOME" in doctor.stdout
    assert "Traceback" not in doctor.stderr


def test_a_home_that_is_a_file(route: Route, tmp_path: Path) -> None:
    """Root may write anywhere, so what cannot be written here is no folder."""
    (tmp_path / "file").write_text("mine")
    told(route("run", "--", "true", env={"ROUTE_HOME": str(tmp_path / "file" / "home")}), 73, "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_home_that_may_not_be_written(route: Route, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    told(route("run", "--", "true", env={"ROUTE_HOME": str(locked / "home")}), 73, str(locked))


def test_a_traceback_only_when_asked_for(route: Route, folder: Path) -> None:
    out = route("run", "--debug", "missing.py")
    assert out.returncode == 64
    assert "Traceback" in out.stderr
    assert "Traceback" in route("run", "missing.py", env={"ROUTE_DEBUG": "1"}).stderr
    told(route("run", "missing.py", env={"ROUTE_DEBUG": "0"}), 64, "missing.py")


def test_an_error_of_our_own_is_one_line(folder: Path) -> None:
    """A store whose methods are gone stands for a defect nobody foresaw."""
    code = (
        "import sys\n"
        "from compute_router.router import Router\n"
        "Router.config = property(lambda self: 1 / 0)\n"
        "from compute_router.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    call = [sys.executable, "-c", code, "policies"]
    out = subprocess.run(call, cwd=folder, capture_output=True, text=True)
    told(out, 70, "internal error", "ZeroDivisionError", "--debug")
    out = subprocess.run([*call, "--debug", "--json"], cwd=folder, capture_output=True, text=True)
    assert "Traceback" in out.stderr
    assert json.loads(out.stdout)["error"]["code"] == "INTERNAL"


def test_who_stops_reading_is_not_answered_with_an_error(folder: Path) -> None:
    for args in (["--help"], ["plugins"], ["ps"], ["completion", "bash"]):
        line = " ".join([sys.executable, "-c", f"'{ROUTE[2]}'", *args])
        out = subprocess.run(
            ["sh", "-c", f"{line} | head -n 1 >/dev/null; {line} | true"],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert out.stderr == "", (args, out.stderr)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(folder: Path, home: Path, closed: str) -> None:
    line = " ".join([sys.executable, "-c", f"'{ROUTE[2]}'", "run", "--", "sh", "-c", "'echo hello; exit 3'"])
    out = subprocess.run(["sh", "-c", f"{line} {closed}"], cwd=folder, capture_output=True, text=True)
    assert out.returncode == 3, out.stderr
    assert (out.stdout == "hello\n") == (">&-" not in closed.replace("2>&-", ""))
    [run] = (home / "runs").iterdir()
    assert (run / "log").read_text() == "hello\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "args", [["--help"], ["plugins"], ["ps", "--json"], ["completion", "bash"]], ids=" ".join
)
def test_a_full_disk_behind_stdout(folder: Path, args: list[str]) -> None:
    with open("/dev/full", "w") as full:
        out = subprocess.run([*ROUTE, *args], cwd=folder, stdout=full, stderr=subprocess.PIPE, text=True)
    assert out.returncode == 64
    assert out.stderr.splitlines()[0] == "route: stdout cannot be written: No space left on device"
    assert len(out.stderr.splitlines()) == 2, out.stderr


BROKEN = "raise RuntimeError('no driver\\x1b[31m here')\n"


def test_a_broken_plugin_is_named_and_everything_else_works(route: Route, tmp_path: Path) -> None:
    from test_registry import install

    site = tmp_path / "site"
    site.mkdir()
    install(site, "broken-route", BROKEN)
    env: dict[str, str | None] = {"PYTHONPATH": str(site)}
    listed = json.loads(route("plugins", "--json", env=env).stdout)
    assert listed["warnings"] == []
    [entry] = [e for e in listed["data"] if e["distribution"] == "broken-route"]
    assert (entry["used"], entry["broken"]) == (True, None)
    checked = json.loads(route("plugins", "--check", "--json", env=env).stdout)
    [entry] = [e for e in checked["data"] if e["distribution"] == "broken-route"]
    assert "no driver" in entry["broken"]
    out = route("policies", env=env)
    assert out.returncode == 0
    assert "auto" in out.stdout
    warned = [line for line in out.stderr.splitlines() if "broken-route" in line]
    assert len(warned) == 1
    assert warned[0].startswith("route: warning: ")
    assert "\x1b" not in out.stderr
    assert "no driver^[[31m here" in warned[0]
    assert route("--help", env=env).returncode == 0
    assert "broken-route" not in route("policies", "--no-plugins", env=env).stderr
    doctor = route("doctor", env=env)
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert "broken-route" in doctor.stdout


def test_a_plugin_whose_module_is_gone_is_named_without_an_import(route: Route, tmp_path: Path) -> None:
    from test_registry import install

    site = tmp_path / "site"
    site.mkdir()
    install(site, "gone-route", "")
    (site / "gone_route.py").unlink()
    install(site, "loud-route", "print('imported')")
    out = route("plugins", env={"PYTHONPATH": str(site)})
    assert out.returncode == 0
    assert "gone_route: there is no module gone_route" in out.stdout
    assert "imported" not in out.stdout


COMMANDS = """\
import click
from compute_router import hookimpl

@hookimpl
def route_commands(group):
    @group.command()
    @click.argument("name")
    def greet(name):
        "Greet somebody."
        click.echo(f"hello {name}")

    @group.command("ps")
    def mine():
        "Take a verb of core."
        click.echo("taken")
"""


def test_a_plugins_verb_is_listed_and_runs(route: Route, tmp_path: Path) -> None:
    from test_registry import install

    site = tmp_path / "site"
    site.mkdir()
    install(site, "greet-route", COMMANDS)
    env: dict[str, str | None] = {"PYTHONPATH": str(site)}
    for _ in range(2):
        assert "Greet somebody." in route("--help", env=env).stdout
    assert route("greet", "you", env=env).stdout == "hello you\n"
    assert "taken" not in route("ps", env=env).stdout
    told(route("gret", "you", env=env), 64, "route greet")
    assert "greet" not in route("--no-plugins", "--help", env=env).stdout
    told(route("greet", "you"), 64, "greet")
