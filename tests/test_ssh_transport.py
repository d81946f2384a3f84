"""Proves over real OpenSSH servers that a machine is reached, that its key is compared before anything is
said to it, and that whoever cannot get in is told why and what mends it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ssh_machines import entry_of, pin_all
from sshd import Sshd, keygen

from compute_router.errors import Broken, CredentialsError, Unavailable
from compute_router.machines import Machine, MachineEntry, Stream
from compute_router.machines.pins import pin, pins_file, unpin
from compute_router.machines.reaching import reach
from compute_router.machines.scanning import scan
from compute_router.machines.session import Sessions
from compute_router.machines.ssh import SSHMachine

BOTH = pytest.mark.parametrize("transport", ["paramiko", "openssh"])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Sshd]:
    made = Sshd(tmp_path / "sshd").start()
    yield made
    made.kill()


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    made: list[Machine] = []
    yield made
    for machine in made:
        machine.close()


def pinned(entry: MachineEntry, machines: list[Machine]) -> Machine:
    """The machine of an entry, with its key taken for right."""
    pin_all("h1", entry)
    machines.append(reach("h1", entry))
    return machines[-1]


def said(machine: Machine, *argv: str, deadline: float = 20.0) -> bytes:
    """All that a command says, to its end."""
    stream = machine.open(argv, deadline=deadline)
    try:
        return rest(stream)
    finally:
        stream.close()


def rest(stream: Stream) -> bytes:
    found = b""
    while data := stream.read(1 << 16):
        found += data
    return found


@BOTH
def test_a_command_is_run_word_by_word_and_its_end_is_told(
    tmp_path: Path, server: Sshd, machines: list[Machine], transport: str
) -> None:
    entry = entry_of(server, tmp_path / "root", transport=transport)
    machine = pinned(entry, machines)
    assert (machine.name, machine.root) == ("h1", str(tmp_path / "root"))
    assert said(machine, "printf", "%s|", "a b", "$HOME", "'", '"', ";echo x") == b"a b|$HOME|'|\"|;echo x|"
    stream = machine.open(("sh", "-c", "cat; exit 3"), deadline=20)
    stream.write(b"x" * 100_000)
    stream.close_write()
    assert rest(stream) == b"x" * 100_000
    assert stream.exit_status(10) == 3
    stream.close()
    stream.close()
    failed = machine.open(("sh", "-c", "echo no such thing >&2; exit 4"), deadline=20)
    with pytest.raises(Broken, match="status 4: no such thing"):
        failed.read(10)


@BOTH
def test_nothing_is_said_to_a_machine_whose_key_nobody_looked_at(
    tmp_path: Path, server: Sshd, machines: list[Machine], transport: str
) -> None:
    entry = entry_of(server, tmp_path / "root", transport=transport)
    machine = reach("h1", entry)
    machines.append(machine)
    with pytest.raises(CredentialsError, match="not pinned") as raised:
        machine.open(("touch", str(tmp_path / "ran")), deadline=20)
    assert "route machine add h1" in raised.value.mend
    assert not (tmp_path / "ran").exists()
    assert "Accepted" not in server.log


@BOTH
def test_the_key_that_is_shown_is_the_servers(tmp_path: Path, server: Sshd, transport: str) -> None:
    entry = entry_of(server, tmp_path / "root", transport=transport)
    [key] = scan("h1", entry)
    listed = subprocess.run(
        ["ssh-keygen", "-lf", str(server.host_key)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert (key.fingerprint, key.type, key.known, key.target) == (listed[1], "ssh-ed25519", "new", True)
    pin([key])
    assert scan("h1", entry)[0].known == "pinned"
    assert "Accepted" not in server.log, "looking at a key is no login"
    unpin("h1")
    assert scan("h1", entry)[0].known == "new"


@BOTH
def test_a_changed_key_is_a_hard_stop(
    tmp_path: Path, server: Sshd, machines: list[Machine], transport: str
) -> None:
    entry = entry_of(server, tmp_path / "root", transport=transport)
    pin_all("h1", entry)
    server.kill()
    other = Sshd(tmp_path / "other", port=server.port, identity=server.identity).start()
    try:
        machine = reach("h1", entry)
        machines.append(machine)
        with pytest.raises(CredentialsError, match="HAS CHANGED") as raised:
            machine.open(("touch", str(tmp_path / "ran")), deadline=20)
        assert "ask who runs it" in raised.value.mend
        assert scan("h1", entry)[0].known == "changed"
        assert "Accepted" not in other.log
    finally:
        other.kill()


def test_another_kind_of_key_does_not_stand_in_for_the_pinned_one(
    tmp_path: Path, server: Sshd, machines: list[Machine]
) -> None:
    entry = entry_of(server, tmp_path / "root")
    pin_all("h1", entry)
    server.kill()
    folder = tmp_path / "other"
    folder.mkdir()
    keygen(folder / "host_key", "ecdsa")
    other = Sshd(folder, port=server.port, identity=server.identity).start()
    try:
        machine = reach("h1", entry)
        machines.append(machine)
        with pytest.raises(CredentialsError, match="no longer has one of kind ssh-ed25519"):
            machine.open(("true",), deadline=20)
    finally:
        other.kill()


def test_a_key_of_several_is_asked_for_by_the_kind_that_is_pinned(
    tmp_path: Path, machines: list[Machine]
) -> None:
    folder = tmp_path / "sshd"
    folder.mkdir()
    rsa = keygen(folder / "rsa", "rsa")
    both = Sshd(folder, extra=f"HostKey {rsa}").start()
    try:
        entry = entry_of(both, tmp_path / "root")
        [key] = scan("h1", entry)
        words = Path(f"{rsa}.pub").read_text().split()
        pin([msgspec.structs.replace(key, type=words[0], line=" ".join(words[:2]))])
        machine = reach("h1", entry)
        machines.append(machine)
        assert said(machine, "echo", "in") == b"in\n"
    finally:
        both.kill()


@BOTH
def test_a_login_that_is_refused_names_what_was_tried(
    tmp_path: Path, server: Sshd, machines: list[Machine], transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    stranger = keygen(tmp_path / "stranger")
    entry = entry_of(server, tmp_path / "root", identity=str(stranger), transport=transport)
    machine = pinned(entry, machines)
    with pytest.raises(CredentialsError) as raised:
        machine.open(("true",), deadline=20)
    assert "stranger" in raised.value.what or "Permission denied" in raised.value.what
    assert "ssh " in raised.value.mend


def test_a_key_behind_a_passphrase_says_what_to_type(
    tmp_path: Path, server: Sshd, machines: list[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    locked = keygen(tmp_path / "locked", phrase="open sesame")
    entry = entry_of(server, tmp_path / "root", identity=str(locked))
    machine = pinned(entry, machines)
    with pytest.raises(CredentialsError, match="needs a passphrase") as raised:
        machine.open(("true",), deadline=20)
    assert raised.value.mend == f"ssh-add {locked}"


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    end = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
    yield path
    process.terminate()
    process.wait()


@BOTH
def test_the_agent_opens_with_a_key_whose_file_is_locked_or_gone(
    tmp_path: Path, server: Sshd, machines: list[Machine], agent: Path, transport: str
) -> None:
    # So many keys before the right one that sshd would hang up: the one that is named goes first.
    for number in range(8):
        extra = keygen(tmp_path / f"extra{number}")
        subprocess.run(["ssh-add", "-q", str(extra)], check=True)
    subprocess.run(["ssh-add", "-q", str(server.identity)], check=True)
    server.identity.rename(tmp_path / "put away")
    entry = entry_of(server, tmp_path / "root", transport=transport)
    machine = pinned(entry, machines)
    assert said(machine, "echo", "in") == b"in\n"


def configured(path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(text)
    monkeypatch.setenv("ROUTE_SSH_CONFIG", str(path))


@BOTH
def test_a_name_of_the_users_configuration_is_as_good_as_an_address(
    tmp_path: Path, server: Sshd, machines: list[Machine], transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "more").write_text(
        f"Host gpu\n  HostName 127.0.0.1\n  Port {server.port}\n  IdentityFile {server.identity}\n"
        "  IdentitiesOnly yes\n"
    )
    configured(tmp_path / "ssh_config", f"Include {tmp_path / 'more'}\n", monkeypatch)
    entry = MachineEntry(address="gpu", root=str(tmp_path / "root"), transport=transport)
    machine = pinned(entry, machines)
    assert said(machine, "echo", "in") == b"in\n"


def test_a_chain_of_jumps_each_with_a_key_of_its_own(
    tmp_path: Path, machines: list[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = [Sshd(tmp_path / f"s{number}").start() for number in range(3)]
    try:
        text = ""
        for number, each in enumerate(chain):
            text += f"Host s{number}\n  HostName 127.0.0.1\n  Port {each.port}\n"
            text += f"  IdentityFile {each.identity}\n  IdentitiesOnly yes\n"
            text += f"  UserKnownHostsFile {tmp_path / 'known'}\n"
        text += "Host s2\n  ProxyJump s0,s1\n"
        configured(tmp_path / "ssh_config", text, monkeypatch)
        entry = MachineEntry(address="s2", root=str(tmp_path / "root"))
        [first] = scan("h1", entry)
        assert (first.known, first.target, str(chain[0].port) in first.hop) == ("new", False, True)
        # One of the jumps is known to the user's own ssh, the other is pinned by us.
        words = Path(f"{chain[0].host_key}.pub").read_text().split()[:2]
        (tmp_path / "known").write_text(f"[127.0.0.1]:{chain[0].port} {' '.join(words)}\n")
        keys = scan("h1", entry)
        assert [key.known for key in keys] == ["known", "new"]
        machine = pinned(entry, machines)
        assert said(machine, "echo", "in") == b"in\n"
        assert "Accepted" in chain[0].log
        assert "Accepted" in chain[1].log
        # A jump that shows another key stops it too.
        chain[1].kill()
        machine.close()
        port = chain[1].port
        chain[1] = Sshd(tmp_path / "bad", port=port, identity=chain[1].identity).start()
        with pytest.raises(CredentialsError, match="HAS CHANGED"):
            machine.open(("true",), deadline=20)
    finally:
        for each in chain:
            each.kill()


def test_the_users_own_command_leads_there(
    tmp_path: Path, server: Sshd, machines: list[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "through.py"
    script.write_text(
        "import socket, sys, threading, os\n"
        "s = socket.create_connection((sys.argv[1], int(sys.argv[2])))\n"
        "def up():\n"
        "    while True:\n"
        "        d = os.read(0, 65536)\n"
        "        if not d: break\n"
        "        s.sendall(d)\n"
        "threading.Thread(target=up, daemon=True).start()\n"
        "while True:\n"
        "    d = s.recv(65536)\n"
        "    if not d: break\n"
        "    os.write(1, d)\n"
    )
    configured(
        tmp_path / "c",
        f"Host gpu\n  Port {server.port}\n  ProxyCommand python3 {script} 127.0.0.1 %p\n",
        monkeypatch,
    )
    entry = MachineEntry(address="gpu", identity=str(server.identity), root=str(tmp_path / "root"))
    machine = pinned(entry, machines)
    assert said(machine, "echo", "in") == b"in\n"


@BOTH
@pytest.mark.parametrize(
    ("address", "what"),
    [("127.0.0.1:1", "refuse"), ("no-such-name.invalid", "looked up|resolve")],
)
def test_what_cannot_be_reached_is_unavailable_with_a_mend(
    tmp_path: Path, machines: list[Machine], transport: str, address: str, what: str
) -> None:
    entry = MachineEntry(address=address, root=str(tmp_path), transport=transport)
    pins_file().parent.mkdir(parents=True, exist_ok=True)
    pins_file().write_text(
        "route-h1 ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFm3yLGlmeglV3ooByfDzIiFDoPNUV+Vrodsa9Df3qzX\n"
    )
    machine = reach("h1", entry)
    machines.append(machine)
    with pytest.raises(Unavailable, match=rf"(?i){what}") as raised:
        machine.open(("true",), deadline=5)
    assert raised.value.mend


@BOTH
def test_all_commands_share_one_connection_until_it_is_full(
    tmp_path: Path, server: Sshd, machines: list[Machine], transport: str
) -> None:
    entry = entry_of(server, tmp_path / "root", transport=transport)
    machine = pinned(entry, machines)
    for _ in range(3):
        assert said(machine, "echo", "in") == b"in\n"
    assert server.log.count("Accepted publickey") == 1
    many = [machine.open(("cat",), deadline=20) for _ in range(12)]
    for number, stream in enumerate(many):
        stream.write(b"%d\n" % number)
        assert stream.read(100) == b"%d\n" % number
        stream.close_write()
    assert 1 < server.log.count("Accepted publickey") <= 4
    for stream in many:
        stream.close()


@BOTH
def test_a_server_that_dies_breaks_what_is_open_and_is_reached_again(
    tmp_path: Path, server: Sshd, machines: list[Machine], transport: str
) -> None:
    entry = entry_of(server, tmp_path / "root", transport=transport)
    machine = pinned(entry, machines)
    stream = machine.open(("cat",), deadline=20)
    stream.write(b"x")
    assert stream.read(1) == b"x"
    server.kill()
    with pytest.raises(Broken):
        assert stream.read(1) == b"never"
    with pytest.raises((Unavailable, Broken)):
        said(machine, "true", deadline=3)
    server.start()
    assert said(machine, "echo", "in") == b"in\n"


def test_a_flood_of_complaints_holds_nothing_up(
    tmp_path: Path, server: Sshd, machines: list[Machine]
) -> None:
    entry = entry_of(server, tmp_path / "root")
    machine = pinned(entry, machines)
    flood = "import os\nfor _ in range(200):\n os.write(2, b'e' * 65536); os.write(1, b'o' * 1024)\n"
    assert said(machine, "python3", "-c", flood) == b"o" * 1024 * 200


def test_fifty_megabytes_go_there_and_back_unchanged(
    tmp_path: Path, server: Sshd, machines: list[Machine]
) -> None:
    import threading

    entry = entry_of(server, tmp_path / "root")
    machine = pinned(entry, machines)
    block = os.urandom(1 << 20)
    stream = machine.open(("cat",), deadline=20)

    def send() -> None:
        for _ in range(50):
            stream.write(block)
        stream.close_write()

    sending = threading.Thread(target=send)
    sending.start()
    told = hashlib.sha256()
    while data := stream.read(1 << 16):
        told.update(data)
    sending.join()
    assert told.hexdigest() == hashlib.sha256(block * 50).hexdigest()


@BOTH
def test_the_supervisor_answers_there(
    tmp_path: Path, server: Sshd, machines: list[Machine], transport: str
) -> None:
    entry = entry_of(server, tmp_path / "root", transport=transport)
    machine = pinned(entry, machines)
    sessions = Sessions(machine)
    assert sessions.ask("list").head["runs"] == []
    assert (tmp_path / "root" / "runs").is_dir()
    sessions.close()


class Public:
    """A transport without what is not promised of it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._inner, name)


def test_a_paramiko_that_only_does_what_is_public_will_do(
    tmp_path: Path, server: Sshd, machines: list[Machine]
) -> None:
    machine = pinned(entry_of(server, tmp_path / "root"), machines)
    assert isinstance(machine, SSHMachine)
    assert said(machine, "echo", "first") == b"first\n"
    [connection] = machine._connections
    connection.transport = Public(connection.transport)  # type: ignore[assignment]
    assert said(machine, "echo", "second") == b"second\n"
    assert machine._connections == [connection]


def shells() -> list[str]:
    return [path for path in ("/bin/sh", "/bin/tcsh", "/usr/bin/fish", "/bin/zsh") if os.path.exists(path)]


@pytest.mark.skipif(os.getuid() != 0, reason="only root makes users with another login shell")
@pytest.mark.parametrize("shell", shells())
def test_any_login_shell_will_do(
    tmp_path: Path, machines: list[Machine], shell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"route-{Path(shell).name}-{os.getpid()}"
    home = Path("/tmp") / name
    subprocess.run(
        ["useradd", "-m", "-d", str(home), "-s", shell, "-p", "*", name], check=True, capture_output=True
    )
    server = None
    try:
        # A login that talks before it does anything, as many do.
        for rc in (".cshrc", ".bashrc", ".zshenv", ".config/fish/config.fish"):
            (home / rc).parent.mkdir(parents=True, exist_ok=True)
            (home / rc).write_text("echo welcome to the cluster\n")
        subprocess.run(["chown", "-R", name, str(home)], check=True)
        server = Sshd(tmp_path / "sshd").start()
        (tmp_path / "sshd").chmod(0o755)
        for folder in (tmp_path, *tmp_path.parents):
            if folder != Path("/") and folder != Path("/tmp"):
                folder.chmod(folder.stat().st_mode | 0o011)
        (tmp_path / "sshd" / "authorized_keys").chmod(0o644)
        address = f"{name}@127.0.0.1:{server.port}"
        entry = MachineEntry(address=address, identity=str(server.identity), root=f"{home}/root")
        machine = pinned(entry, machines)
        sessions = Sessions(machine)
        assert sessions.ask("list").head["runs"] == []
        sessions.close()
    finally:
        if server is not None:
            server.kill()
        subprocess.run(["pkill", "-KILL", "-u", name], check=False)
        subprocess.run(["userdel", "-r", name], check=False, capture_output=True)
