"""Proves that a machine may have any login shell, and that what its rc files print is named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Route
from sshd import Sshd


@pytest.fixture
def users() -> Iterator[Any]:
    """Makes users with login shells of their own, and takes them away again."""
    made: list[str] = []

    def make(shell: str, files: dict[str, str]) -> str:
        if os.geteuid() != 0 or shutil.which("useradd") is None:
            pytest.skip("making users takes root and useradd")
        if shutil.which(shell) is None:
            pytest.skip(f"{shell} is not installed")
        name = f"route{os.getpid()}x{len(made)}"
        program = shutil.which(shell) or shell
        words = ["useradd", "-m", "-p", "*", "-s", program, name]
        if subprocess.run(words, capture_output=True).returncode:
            pytest.skip("no user can be made here")
        made.append(name)
        for path, text in files.items():
            file = Path(f"/home/{name}") / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        subprocess.run(["chown", "-R", f"{name}:", f"/home/{name}"], check=True)
        return name

    yield make
    for name in made:
        subprocess.run(["userdel", "-rf", name], capture_output=True)


@pytest.mark.parametrize(
    ("shell", "files", "noisy"),
    [
        ("tcsh", {}, False),
        ("tcsh", {".tcshrc": "echo Welcome\n"}, True),
        ("fish", {}, False),
        ("fish", {".config/fish/config.fish": "echo Welcome\n"}, True),
        ("zsh", {".zshenv": "echo Welcome\n"}, True),
        ("bash", {".bashrc": "echo Welcome\n"}, True),
    ],
)
def test_every_login_shell_will_do_and_noise_is_named(
    route: Route, users: Any, monkeypatch: pytest.MonkeyPatch, shell: str, files: dict[str, str], noisy: bool
) -> None:
    monkeypatch.setenv("ROUTE_SSH_CONFIG", os.devnull)
    user = users(shell, files)
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        server = Sshd(Path(folder) / "sshd")
        # Read by sshd as the user who logs in.
        os.chmod(server.folder, 0o755)
        os.chmod(server.folder / "authorized_keys", 0o644)
        server.start()
        try:
            words = ["machine", "add", "h1", f"{user}@127.0.0.1:{server.port}", "--accelerator", "cpu"]
            out = route(*words, "-i", str(server.identity), "--trust-first-use", "--json")
            assert out.returncode == 0, out.stdout + server.log
            checks = {each["check"]: each for each in json.loads(out.stdout)["data"]["checks"]}
            assert all(each["ok"] for each in checks.values()), checks
            assert ("banner" in checks) == noisy, checks
            if noisy:
                assert "begin 'Welcome" in checks["banner"]["seen"]
        finally:
            server.kill()
