"""Proves that the three shells get a script they can read, and quick answers that are right."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROUTE, Route


def ask(folder: Path, line: str, shell: str = "bash", **env: str) -> list[str]:
    """What a shell is answered while `line` is typed; the last word is the one to complete."""
    words = line.split(" ")
    asked = {"_ROUTE_COMPLETE": f"{shell}_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    out = subprocess.run(
        ROUTE, cwd=folder, env={**os.environ, **asked, **env}, capture_output=True, text=True, timeout=30
    )
    assert out.returncode == 0, out.stderr
    assert out.stderr == ""
    return [found.partition(",")[2] for found in out.stdout.splitlines()]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_one_the_shell_can_read(route: Route, shell: str, tmp_path: Path) -> None:
    out = route("completion", shell)
    assert out.returncode == 0, out.stderr
    assert f"_ROUTE_COMPLETE={shell}_complete" in out.stdout
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed, so it cannot be asked")
    script = tmp_path / "script"
    script.write_text(out.stdout)
    checked = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_itself_completes(route: Route, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "route"
    command.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{ROUTE[2]}' \"$@\"\n")
    command.chmod(0o755)
    code = (
        'eval "$(route completion bash)"\n'
        "COMP_WORDS=(route stat) COMP_CWORD=1\n"
        "_route_completion route\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    env = {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}"}
    out = subprocess.run(["bash", "--norc", "-c", code], env=env, capture_output=True, text=True)
    assert out.stdout.split() == ["status"], out.stderr


def test_verbs_options_and_names(folder: Path) -> None:
    assert ask(folder, "route sta") == ["status"]
    assert ask(folder, "route re") == ["receipt", "record", "report", "rerun", "resume"]
    assert {"run", "ps", "completion"} <= set(ask(folder, "route "))
    assert ask(folder, "route receipt ver") == ["verify"]
    assert ask(folder, "route run --det") == ["--detach"]
    assert ask(folder, "route run --policy ch") == ["cheapest"]
    assert ask(folder, "route run --backend lo") == ["local"]
    assert "train" not in ask(folder, "route run --policy ")
    assert ask(folder, "route completion f") == ["fish"]
    assert ask(folder, "route zzz") == []


def test_profiles_of_the_nearest_file(folder: Path) -> None:
    (folder / "route.toml").write_text("[profiles.big]\n[profiles.quick]\n")
    assert ask(folder, "route run --profile ") == ["big", "quick"]
    (folder / "route.toml").write_text("[profiles.")
    assert ask(folder, "route run --profile ") == []


def test_runs_by_id_and_by_name(route: Route, folder: Path, home: Path) -> None:
    assert ask(folder, "route status ") == ["latest"]
    (folder / "work.py").write_text("pass\n")
    assert route("run", "work.py").returncode == 0
    [run] = (home / "runs").iterdir()
    assert ask(folder, "route logs ") == ["latest", run.name, "work"]
    assert ask(folder, f"route logs {run.name[:6]}") == [run.name]
    assert ask(folder, "route receipt show w") == ["work"]


def test_nothing_is_said_where_nothing_can_be(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert ask(folder, "route status ", ROUTE_HOME=str(tmp_path / "file" / "x")) == ["latest"]
    assert ask(folder, "route ps ", HOME="/proc/no") == []


def test_an_answer_loads_no_plugin(folder: Path) -> None:
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: sys.stderr.write(' '.join(m.split('.')[0] for m in sys.modules)))\n"
        + ROUTE[2]
    )
    asked = {"_ROUTE_COMPLETE": "bash_complete", "COMP_WORDS": "route status l", "COMP_CWORD": "2"}
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={**os.environ, **asked}, capture_output=True, text=True
    )
    assert "latest" in out.stdout
    assert not {"pluggy", "msgspec", "rich"} & set(out.stderr.split())
