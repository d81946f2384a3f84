"""A real OpenSSH server of a test's own, with keys that are thrown away afterwards."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

SSHD = shutil.which("sshd") or next((p for p in ("/usr/sbin/sshd",) if os.path.exists(p)), None)


def need_sshd() -> str:
    """The path of sshd; skips the test where there is none."""
    if SSHD is None or shutil.which("ssh-keygen") is None:
        pytest.skip("needs OpenSSH's server (apt install openssh-server)")
    return SSHD


def keygen(path: Path, kind: str = "ed25519", phrase: str = "") -> Path:
    """Make a key; returns its file, the public half beside it."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, "-N", phrase, "-C", "test", "-f", str(path)], check=True, timeout=60
    )
    return path


def free_port(bind: str = "127.0.0.1") -> int:
    with socket.socket() as s:
        s.bind((bind, 0))
        return int(s.getsockname()[1])


class Sshd:
    """One sshd. `extra`: further lines of its configuration. `netns`: the network namespace it lives in,
    where `bind` is one of its addresses. The user who runs the test logs in with `identity`."""

    def __init__(
        self,
        folder: Path,
        *,
        bind: str = "127.0.0.1",
        port: int | None = None,
        extra: str = "",
        netns: str | None = None,
        identity: Path | None = None,
    ) -> None:
        self.program = need_sshd()
        self.folder, self.bind, self.netns = folder, bind, netns
        folder.mkdir(parents=True, exist_ok=True)
        self.port = port or (free_port(bind) if netns is None else 22)
        self.user = getpass.getuser()
        self.identity = identity or keygen(folder / "id")
        self.host_key = folder / "host_key"
        if not self.host_key.exists():
            keygen(self.host_key)
        keys = folder / "authorized_keys"
        keys.write_text(Path(f"{self.identity}.pub").read_text())
        keys.chmod(0o600)
        self.config = folder / "sshd_config"
        self.config.write_text(
            f"Port {self.port}\nListenAddress {bind}\nHostKey {self.host_key}\n"
            f"AuthorizedKeysFile {keys}\nPidFile {folder / 'pid'}\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n"
            f"MaxStartups 100\nPrintMotd no\nLogLevel VERBOSE\n{extra}\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """What `route machine add` is given."""
        return f"{self.user}@{self.bind}:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text() if (self.folder / "log").exists() else ""

    def start(self) -> Sshd:
        """Start it; returns once it takes connections."""
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        words = [self.program, "-D", "-f", str(self.config), "-E", str(self.folder / "log")]
        if self.netns:
            words = ["ip", "netns", "exec", self.netns, *words]
        self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)
        end = time.monotonic() + 20
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"sshd does not come up: {self.log[-500:]}")
            time.sleep(0.02)
        return self

    def _answers(self) -> bool:
        if self.netns:
            return f"listening on {self.bind}" in self.log
        try:
            with socket.create_connection((self.bind, self.port), timeout=1):
                return True
        except OSError:
            return False

    def sessions(self) -> list[int]:
        """The pids of the processes that serve connections now; not of the commands that they run."""
        import psutil

        if self.process is None:
            return []
        # For other users than root a connection is held by a child of a child.
        below = psutil.Process(self.process.pid).children(recursive=True)
        found = []
        for each in below:
            with contextlib.suppress(psutil.Error):
                if each.name().startswith("sshd"):
                    found.append(each.pid)
        return found

    def kill(self) -> None:
        """End it and every connection, as a crash would."""
        for pid in [*self.sessions(), *([self.process.pid] if self.process else [])]:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                pass
        self.wait()

    def stop(self) -> None:
        """Take no new connection; those that are there go on."""
        if self.process is not None:
            self.process.terminate()
            self.wait()

    def wait(self) -> None:
        if self.process is not None:
            self.process.wait(20)
            self.process = None
