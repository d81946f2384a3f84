"""Proves that the command line starts light: what each verb imports, and what help and version print."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Route

AUDIT = """\
import atexit, json, sys
atexit.register(lambda: sys.stderr.write("\\nLOADED " + json.dumps(sorted(sys.modules))))
from compute_router.cli import main
main()
"""


def loaded(folder: Path, *args: str, env: dict[str, str] | None = None) -> set[str]:
    """The modules a process of `route ARGS` has imported when it ends."""
    out = subprocess.run(
        [sys.executable, "-c", AUDIT, *args],
        cwd=folder,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert out.returncode == 0, out.stderr
    return set(json.loads(out.stderr.rpartition("LOADED ")[2]))


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version_is_answered_before_click_is_imported(folder: Path, flag: str) -> None:
    modules = loaded(folder, flag)
    assert "click" not in modules
    assert not {m for m in modules if m.startswith("compute_router.") and m != "compute_router.cli"}


@pytest.mark.parametrize("args", [["--help"], [], ["ps"], ["ps", "--json"], ["completion", "bash"]])
def test_help_and_ps_import_no_plugin(folder: Path, args: list[str]) -> None:
    modules = loaded(folder, *args)
    bundled = ("compute_router.backends", "compute_router.policies", "compute_router.workloads")
    heavy = {m for m in modules if m.split(".")[0] in ("pluggy", "msgspec", "rich", "uv", "torch", "tomllib")}
    assert not heavy
    assert not {m for m in modules if m.startswith(bundled)}


def test_ps_and_status_of_finished_runs_import_no_plugin_either(route: Route, folder: Path) -> None:
    assert route("run", "--", "true").returncode == 0
    modules = loaded(folder, "ps")
    assert not {m for m in modules if m.split(".")[0] in ("pluggy", "msgspec", "rich")}
    assert "sqlite3" in modules
    modules = loaded(folder, "status")
    assert not {m for m in modules if m.split(".")[0] in ("pluggy", "rich")}
    assert not {m for m in modules if m.startswith("compute_router.backends")}


def test_version_and_help(route: Route) -> None:
    from compute_router import __version__

    assert route("--version").stdout == f"route {__version__}\n"
    assert route("--json", "--version").stdout == f"route {__version__}\n"
    help_ = route("--help")
    assert help_.returncode == 0
    assert route("-h").stdout == help_.stdout == route().stdout
    assert max(map(len, help_.stdout.splitlines())) <= 80


def verbs() -> list[list[str]]:
    from compute_router.cli.app import SECTIONS

    top = [[name] for section in SECTIONS.values() for name in section]
    return [*top, ["receipt", "show"], ["receipt", "list"], ["receipt", "verify"]]


@pytest.mark.parametrize("verb", verbs(), ids=" ".join)
def test_every_verb_has_help_in_80_columns(verb: list[str]) -> None:
    """In this process, so that 20 verbs do not cost 20 interpreters."""
    from click.testing import CliRunner

    from compute_router.cli.app import group
    from compute_router.cli.call import Cli
    from compute_router.cli.output import Output

    out = CliRunner().invoke(group, [*verb, "--help"], obj=Cli(Output()), prog_name="route")
    assert out.exit_code == 0, out.output
    assert f"Usage: route {' '.join(verb)}" in out.output
    assert max(map(len, out.output.splitlines())) <= 80
    if verb != ["receipt"]:
        assert "--json" in out.output


def test_verbs_below_a_verb_are_told_whole_and_commands_of_a_help_keep_their_lines(route: Route) -> None:
    for above in ("machine", "receipt", "study", "plugins"):
        assert "..." not in route(above, "--help").stdout.partition("Verbs:")[2], above
    lines = route("completion", "--help").stdout.splitlines()
    assert [line.split(":")[0].strip() for line in lines if line.startswith("    ")] == [
        "bash",
        "zsh",
        "fish",
    ]


@pytest.mark.parametrize("verb", ["status", "logs", "receipt show", "study run", "study status"])
def test_a_word_that_may_be_left_out_is_shown_so(route: Route, verb: str) -> None:
    usage = route(*verb.split(), "--help").stdout.splitlines()[0]
    assert usage.endswith("]"), usage


def test_the_short_help_of_the_table_is_the_verbs_own() -> None:
    """The table answers `--help` without importing verbs, so nothing but this keeps the two equal."""
    import importlib

    from compute_router.cli.app import SECTIONS

    for section in SECTIONS.values():
        for name, (module, short) in section.items():
            command = getattr(importlib.import_module(f"compute_router.cli.{module}"), name)
            first = (command.help or "").replace("\b", "").strip().partition("\n\n")[0]
            assert command.name == name
            assert " ".join(first.split()).startswith(short.rstrip(".")), name


def test_the_reference_names_every_verb_and_every_exit_code() -> None:
    import re

    from compute_router.cli.app import SECTIONS
    from compute_router.cli.codes import ENDS
    from compute_router.errors import ExitCode

    text = (Path(__file__).resolve().parent.parent / "docs" / "commands.md").read_text()
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    told = {
        re.sub(r"[`\[].*", "", row[0][1:]).split()[0] for row in rows if re.match(r"`[a-z]+ ?[^_]*`$", row[0])
    }
    told -= set(ENDS)
    assert told == {name for section in SECTIONS.values() for name in section}
    codes = {int(row[0]): row[1].strip("`") for row in rows if row[0].isdigit()}
    assert codes == {int(code): code.name for code in ExitCode}
    ends = {row[0].strip("`"): row[1] for row in rows if row[0].strip("`") in ENDS}
    assert ends.keys() == ENDS.keys()
    for state, (code, _) in ENDS.items():
        assert code is None or ends[state] == str(code)
