"""A machine behind the real `ssh`: for keys that live in hardware, and whatever else only it can do."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compute_router.errors import CredentialsError, Rejected, RouteError, Unavailable
from compute_router.machines.contract import Machine
from compute_router.machines.hops import Address, Hop, user_config
from compute_router.machines.local import LocalStream, open_command
from compute_router.machines.pins import HostKey, alias, changed, pinned, pins_file, told

if TYPE_CHECKING:
    from compute_router.machines.entry import MachineEntry

__all__ = ["OpenSSHMachine", "scan_by_ssh"]

LOST = 255
"""What ssh ends with when it is its own end, not that of the command."""
KEPT = 60
"""Seconds that the shared connection stays after its last command."""
CLOSING = 10.0


class OpenSSHMachine(Machine):
    """One machine of the configuration, by the user's `ssh` over one shared connection."""

    def __init__(self, name: str, entry: MachineEntry) -> None:
        self.name, self.root, self.entry = name, entry.root, entry

    def open(self, argv: Sequence[str], *, deadline: float) -> LocalStream:
        options = [*_options(self.name, self.entry, min(deadline, 10.0)), *self._shared()]
        if not os.path.exists(_socket(self.name, self.entry)):
            self._connect(options, deadline)
        words = [*_ssh(), *options, *_target(self.entry), "exec " + shlex.join(argv)]
        return open_command(words, lost=LOST)

    def _shared(self) -> list[str]:
        said = (
            "ControlMaster=auto",
            f"ControlPath={_quoted(_socket(self.name, self.entry))}",
            f"ControlPersist={KEPT}",
        )
        return [word for each in said for word in ("-o", each)]

    def _connect(self, options: Sequence[str], deadline: float) -> None:
        """Make the shared connection, so that what is wrong with it is told before anything is opened."""
        if not pinned(alias(self.name)):
            raise CredentialsError(
                f"{self.name}: its key is not pinned",
                mend=f"route machine add {self.name} ADDRESS shows it and asks",
            )
        # A file, not a pipe: the connection stays in the background and keeps what it writes to.
        with tempfile.TemporaryFile() as complaints:
            words = [*_ssh(), *options, "-N", "-f", *_target(self.entry)]
            try:
                done = subprocess.run(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=complaints,
                    timeout=deadline,
                    check=False,
                )
            except subprocess.TimeoutExpired as e:
                raise Unavailable(
                    f"{self.name}: ssh did not connect within {deadline:.0f} s",
                    mend="try: ssh " + self.entry.address,
                ) from e
            except OSError as e:
                raise Unavailable(
                    f"{self.name}: ssh cannot be started: {e.strerror}", mend="route doctor"
                ) from e
            complaints.seek(0)
            said = complaints.read().decode("utf-8", "replace").strip()
        if done.returncode:
            raise _refusal(self.name, self.entry, said)

    def close(self) -> None:
        path = _socket(self.name, self.entry)
        if os.path.exists(path):
            words = [*_ssh(), "-o", f"ControlPath={_quoted(path)}", "-O", "exit", *_target(self.entry)]
            # One that does not hear ends by itself, once nobody has used it for a while.
            with contextlib.suppress(subprocess.TimeoutExpired, OSError):
                subprocess.run(words, capture_output=True, timeout=CLOSING, check=False)


def _refusal(name: str, entry: MachineEntry, said: str) -> RouteError:
    """The error of ours that ssh's words stand for."""
    last = (said.splitlines() or ["ssh gave no reason"])[-1].strip()[:300]
    if "IDENTIFICATION HAS CHANGED" in said or "Host key verification failed" in said:
        return changed(name, entry.address, "ssh says that its key is not the one that is pinned")
    if "no matching host key type" in said:
        return changed(name, entry.address, "it no longer has a key of the kind that is pinned")
    if "Permission denied" in said or "Too many authentication failures" in said:
        return CredentialsError(f"{name}: {last}", mend=f"does it work with: ssh {entry.address}")
    return Unavailable(f"{name}: {last}", mend=f"try: ssh {entry.address}")


def _ssh() -> list[str]:
    ssh = shutil.which("ssh")
    if ssh is None:
        raise Rejected("there is no ssh here", mend='install OpenSSH\'s client, or transport = "paramiko"')
    config = user_config()
    return [ssh, *(("-F", config) if config else ())]


def _target(entry: MachineEntry) -> list[str]:
    address = Address.parse(entry.address)
    words = ["-l", address.user] if address.user else []
    words += ["-p", str(address.port)] if address.port else []
    return [*words, "--", address.name]


def _options(name: str, entry: MachineEntry, timeout: float) -> list[str]:
    said = {
        "BatchMode": "yes",
        "ConnectTimeout": str(max(1, int(timeout))),
        "ServerAliveInterval": "5",
        "ServerAliveCountMax": "3",
        "HostKeyAlias": alias(name),
        "UserKnownHostsFile": _quoted(str(pins_file())),
        "GlobalKnownHostsFile": "none",
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "ForwardAgent": "no",
        "ClearAllForwardings": "yes",
        "PermitLocalCommand": "no",
        "RequestTTY": "no",
        "RemoteCommand": "none",
        "LogLevel": "ERROR",
    }
    words = [word for key, value in said.items() for word in ("-o", f"{key}={value}")]
    if entry.identity:
        file = os.path.expanduser(entry.identity)
        # Of a key that is in the agent alone ssh wants the public half; others would only be too many.
        there = os.path.exists(file) or not os.path.exists(f"{file}.pub")
        words += ["-i", file if there else f"{file}.pub", "-o", "IdentitiesOnly=yes"]
    return words


def _quoted(path: str) -> str:
    """The name of a file as it stands for itself in a line of ssh_config."""
    return '"' + path.replace("%", "%%") + '"'


def _socket(name: str, entry: MachineEntry) -> str:
    """A short path that nobody else may use: sockets have at most some hundred bytes of name."""
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"route-{os.getuid()}"
    try:
        base.mkdir(mode=0o700, exist_ok=True)
        found = base.lstat()
    except OSError as e:
        raise Unavailable(f"{base} cannot be made: {e.strerror}", mend="make it, for you alone") from e
    if found.st_uid != os.getuid() or found.st_mode & 0o077 or base.is_symlink():
        raise Unavailable(f"{base} is not yours alone", mend=f"remove {base}")
    about = f"{name}\n{entry.address}\n{entry.identity}\n{pins_file()}\n{user_config()}"
    return str(base / hashlib.sha256(about.encode()).hexdigest()[:16])


def scan_by_ssh(name: str, entry: MachineEntry) -> tuple[HostKey, ...]:
    """The key of the machine, which ssh notes before it logs in. Jumps are ssh's own business."""
    address = Address.parse(entry.address)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys"
        options = _options(name, entry, 10.0)
        options = [o.replace(_quoted(str(pins_file())), _quoted(str(file))) for o in options]
        # Over a connection that is shared already no key would be shown.
        options = ["-o", "ControlMaster=no", "-o", "ControlPath=none", *options]
        options = [
            "StrictHostKeyChecking=accept-new" if o == "StrictHostKeyChecking=yes" else o for o in options
        ]
        words = [*_ssh(), *options, "-o", "PreferredAuthentications=none", *_target(entry), "true"]
        try:
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False
            )
        except subprocess.TimeoutExpired as e:
            raise Unavailable(
                f"{name}: {entry.address} did not answer in time", mend="try it with ssh"
            ) from e
        lines = file.read_text().splitlines() if file.exists() else []
    if not lines:
        said = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"])[-1]
        raise Unavailable(f"{name}: {said[:300]}", mend=f"try: ssh {entry.address}")
    _, type_, key = lines[0].split()[:3]
    hop = Hop(name=address.name, address=address.name, port=address.port or 22, user=address.user or "")
    return (told(name, hop, True, type_, key),)
