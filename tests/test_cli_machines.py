"""Proves `route machine`: keys are shown and asked about, machines written down, checked and forgotten."""

from __future__ import annotations

import json
import re
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROUTE, Route
from sshd import Sshd, keygen
from terminals import Terminal


@pytest.fixture(autouse=True)
def _no_ssh_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ssh_config").write_text(
        f"UserKnownHostsFile {tmp_path}/known\nIdentityFile {tmp_path}/none\n"
    )
    monkeypatch.setenv("ROUTE_SSH_CONFIG", str(tmp_path / "ssh_config"))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    server = Sshd(tmp_path / "sshd").start()
    yield server
    server.kill()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "config" / "route" / "config.toml"


def fingerprint(server: Sshd) -> str:
    said = subprocess.run(["ssh-keygen", "-lf", f"{server.host_key}.pub"], capture_output=True, text=True)
    return said.stdout.split()[1]


def arguments(server: Sshd, name: str = "h1") -> list[str]:
    root = server.folder / "root"
    return ["machine", "add", name, server.address, "--identity", str(server.identity), "--root", str(root)]


def document(out: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    [line] = out.stdout.splitlines()
    found: dict[str, Any] = json.loads(line)
    return found


def nothing_is_kept(config: Path) -> bool:
    pins = config.with_name("known_hosts")
    return not config.exists() and (not pins.exists() or pins.read_text() == "")


# From a script


def test_nobody_to_ask_is_a_refusal_with_the_fingerprint_and_the_flag(
    route: Route, sshd: Sshd, config: Path
) -> None:
    out = route(*arguments(sshd))
    assert out.returncode == 64
    assert fingerprint(sshd) in out.stderr
    assert "--trust-first-use" in out.stderr
    assert out.stdout == ""
    assert nothing_is_kept(config)


def test_a_machine_is_added_listed_checked_and_removed(route: Route, sshd: Sshd, config: Path) -> None:
    words = ["--trust-first-use", "--accelerator", "cpu", "--group", "east", "--fabric", "roce"]
    words += ["--price-per-hour", "3.20", "--label", "rack=4", "--exclusive"]
    out = route(*arguments(sshd), *words)
    assert out.returncode == 0, out.stderr
    assert fingerprint(sshd) in out.stderr
    assert config.read_text() == (
        f'[machines.h1]\naddress = "{sshd.address}"\nidentity = "{sshd.identity}"\n'
        f'root = "{sshd.folder}/root"\naccelerator = "cpu"\ngroup = "east"\nfabric = "roce"\n'
        'price_per_hour = "3.20"\nexclusive = true\nlabels = {rack = "4"}\n'
    )
    key = Path(f"{sshd.host_key}.pub").read_text().split()
    assert config.with_name("known_hosts").read_text() == f"route-h1 {key[0]} {key[1]}\n"
    assert stat.S_IMODE(config.with_name("known_hosts").stat().st_mode) == 0o600

    sshd_up = route("machine", "list")
    head, row = sshd_up.stdout.splitlines()
    assert head.split() == ["NAME", "ADDRESS", "ACCELERATOR", "ROOT", "GROUP", "PRICE"]
    assert row.split() == [
        "h1",
        sshd.address,
        "cpu",
        f"{sshd.folder}/root",
        "east",
        "(roce)",
        "3.20",
        "USD/h",
    ]

    out = route("machine", "check", "h1", "--json")
    assert out.returncode == 0, out.stdout
    [found] = document(out)["data"]
    assert [each["check"] for each in found["checks"]][:3] == ["reachable", "python3", "login shell"]

    out = route("machine", "remove", "h1", "--json")
    assert document(out)["data"] == {"machine": "h1", "removed": True, "key_removed": True, "live": []}
    assert config.read_text() == config.with_name("known_hosts").read_text() == ""
    assert (sshd.folder / "root").exists()


def test_what_was_remembered_of_a_machine_is_not_said_of_the_next_of_its_name(
    route: Route, sshd: Sshd, config: Path, home: Path
) -> None:
    assert route(*arguments(sshd), "--trust-first-use", "--no-check").returncode == 0
    (home / "machines").mkdir(parents=True)
    seen = home / "machines" / "h1.json"
    seen.write_text('{"silent_us": 1, "seen_us": 1}')
    assert route("machine", "remove", "h1").returncode == 0
    assert not seen.exists()


def test_the_real_ssh_will_do_too(route: Route, sshd: Sshd, config: Path, tmp_path: Path) -> None:
    (tmp_path / "ssh_config").write_text("")
    words = [*arguments(sshd), "--transport", "openssh", "--accelerator", "cpu"]
    out = route(*words, "--trust-first-use", env={"XDG_RUNTIME_DIR": None})
    assert out.returncode == 0, out.stderr
    assert fingerprint(sshd) in out.stderr
    assert 'transport = "openssh"' in config.read_text()
    out = route("machine", "check", env={"XDG_RUNTIME_DIR": None})
    assert (out.returncode, "ok  python3" in out.stdout) == (0, True), out.stdout


def test_what_the_real_ssh_shares_or_is_told_to_run_is_in_nobodys_way(
    route: Route, sshd: Sshd, config: Path, tmp_path: Path
) -> None:
    shared, known = tmp_path / "s", tmp_path / "k"
    ssh = ["ssh", "-F", str(tmp_path / "ssh_config"), "-p", str(sshd.port), "-i", str(sshd.identity)]
    ssh += ["-o", "StrictHostKeyChecking=accept-new", "-o", f"UserKnownHostsFile={known}"]
    (tmp_path / "ssh_config").write_text(
        f"ControlMaster auto\nControlPath {shared}\nControlPersist 60\nRemoteCommand touch {tmp_path}/ran\n"
    )
    subprocess.run([*ssh, "-o", "RemoteCommand=none", "-N", "-f", sshd.bind], check=True, timeout=60)
    try:
        assert shared.exists(), "a connection that ssh would use again"
        out = route(*arguments(sshd), "--transport", "openssh", "--trust-first-use", "--accelerator", "cpu")
        assert out.returncode == 0, out.stderr
        assert fingerprint(sshd) in out.stderr
        assert not (tmp_path / "ran").exists()
    finally:
        subprocess.run([*ssh, "-O", "exit", sshd.bind], capture_output=True, timeout=60, check=False)


def test_a_run_that_is_not_over_is_named_when_its_machine_is_removed(
    route: Route, sshd: Sshd, folder: Path, config: Path
) -> None:
    add = [*arguments(sshd), "--trust-first-use", "--accelerator", "cpu", "--no-check"]
    assert route(*add).returncode == 0
    (folder / "work.py").write_text("import time\ntime.sleep(120)\n")
    run = route("run", "work.py", "--backend", "ssh", "--detach").stdout.strip()
    out = route("machine", "remove", "h1", "--json")
    assert document(out)["data"]["live"] == [run]
    assert f"1 run there is not over and goes on unseen: {run}" in out.stderr
    assert "unknown" in route("status", run).stdout
    # It is found again once the machine is there again.
    assert route(*add).returncode == 0
    assert "running" in route("status", run).stdout
    assert route("cancel", run).returncode == 0
    assert route("wait", run).returncode == 143


def test_two_names_of_one_machine_warn(route: Route, sshd: Sshd, config: Path) -> None:
    assert route(*arguments(sshd), "--trust-first-use", "--no-check").returncode == 0
    out = route(*arguments(sshd, "h2"), "--trust-first-use", "--no-check")
    assert out.returncode == 0
    assert "h1 has the same address" in out.stderr


def test_a_name_that_is_there_is_fine_changed_or_refused(route: Route, sshd: Sshd, config: Path) -> None:
    assert route(*arguments(sshd), "--trust-first-use", "--no-check").returncode == 0
    before = config.read_text()
    again = route("machine", "add", "h1", sshd.address, "--no-check")
    assert (again.returncode, "is there already, with the same address and key" in again.stdout) == (0, True)
    assert config.read_text() == before
    more = route("machine", "add", "h1", sshd.address, "--group", "east", "--no-check", "--json")
    assert document(more)["data"]["changed"] == ["group"]
    assert config.read_text() == before + 'group = "east"\n'
    other = route("machine", "add", "h1", "me@127.0.0.2", "--trust-first-use")
    assert other.returncode == 65
    assert sshd.address in other.stderr
    assert "route machine remove h1" in other.stderr


def test_a_changed_key_stops_everything_until_the_machine_is_removed(
    route: Route, sshd: Sshd, config: Path
) -> None:
    assert route(*arguments(sshd), "--trust-first-use").returncode == 0
    sshd.kill()
    sshd.host_key.unlink()
    Path(f"{sshd.host_key}.pub").unlink()
    keygen(sshd.host_key)
    sshd.start()
    out = route("machine", "check")
    assert out.returncode == 69
    assert re.search(r"no +key: .*HAS CHANGED.*" + re.escape(fingerprint(sshd)), out.stdout), out.stdout
    out = route("run", "--backend", "ssh", "--", "true")
    assert (out.returncode, "ssh: h1: THE KEY OF" in out.stderr) == (65, True), out.stderr
    out = route(*arguments(sshd), "--trust-first-use")
    assert out.returncode == 77
    assert "HAS CHANGED" in out.stderr
    assert "route machine remove h1" in out.stderr
    assert route("machine", "remove", "h1").returncode == 0
    assert route(*arguments(sshd), "--trust-first-use").returncode == 0


@pytest.mark.parametrize("same", [True, False], ids=["same", "another"])
def test_what_the_users_own_ssh_knows_is_said_and_another_key_stops(
    route: Route, sshd: Sshd, config: Path, tmp_path: Path, same: bool
) -> None:
    key = sshd.host_key if same else keygen(tmp_path / "other")
    line = f"[127.0.0.1]:{sshd.port} {Path(f'{key}.pub').read_text()}"
    (tmp_path / "known").write_text(line)
    # Names in such a file are often hashed.
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(tmp_path / "known")], check=True, capture_output=True)
    out = route(*arguments(sshd), "--trust-first-use")
    if same:
        assert out.returncode == 0
        assert "the one that your own ssh knows" in out.stderr
    else:
        assert out.returncode == 77
        assert "known_hosts" in out.stderr
        assert nothing_is_kept(config)


def test_a_login_that_fails_keeps_nothing(route: Route, sshd: Sshd, config: Path, tmp_path: Path) -> None:
    words = arguments(sshd)
    words[words.index("--identity") + 1] = str(keygen(tmp_path / "stranger"))
    out = route(*words, "--trust-first-use")
    assert out.returncode == 77
    assert "lets nobody in" in out.stderr
    assert nothing_is_kept(config)


def test_a_machine_that_is_not_there_keeps_nothing(route: Route, config: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        out = route("machine", "add", "h1", f"me@127.0.0.1:{free.getsockname()[1]}", "--trust-first-use")
    assert out.returncode == 69
    assert "refuses the connection" in out.stderr
    assert nothing_is_kept(config)


def test_a_machine_that_lacks_something_is_kept_and_it_is_said(
    route: Route, config: Path, tmp_path: Path
) -> None:
    """The real sentence of the shell there comes through."""
    script = tmp_path / "command"
    hide = 'case "$SSH_ORIGINAL_COMMAND" in *python3*) PATH=/nowhere;; esac'
    script.write_text(f'#!/bin/sh\necho Welcome\n{hide}\neval "$SSH_ORIGINAL_COMMAND"\n')
    script.chmod(0o755)
    server = Sshd(tmp_path / "sshd", extra=f"ForceCommand {script}").start()
    try:
        out = route(*arguments(server), "--trust-first-use")
        assert out.returncode == 0, out.stderr
        assert re.search(r"^  no  python3: .*python3: not found$", out.stdout, re.M), out.stdout
        assert re.search(r"^  !!  banner: .*8 bytes.*'Welcome.*\n      mend: ", out.stdout, re.M), out.stdout
        assert "one thing is missing on h1" in out.stderr
        assert "[machines.h1]" in config.read_text()
        out = route("machine", "check")
        assert out.returncode == 69
        assert "h1 cannot be used" in out.stderr
        assert "install Python 3.8" in out.stderr
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("words", "what", "mend"),
    [
        (["h 1", "me@h1"], "no name of a machine", "letters"),
        (["h1", "-oProxyCommand=x"], "is no address", "user@name"),
        (["h1", "me@h1", "--accelerator", "8xH200"], "no accelerator", "H200:8"),
        (["h1", "me@h1", "--price-per-hour", "four"], "price_per_hour", "decimal"),
        (["h1", "me@h1", "--label", "rack"], "--label rack has no value", "KEY=VALUE"),
        (["h1", "me@h1", "--identity", "/no/such"], "there is no file /no/such", "--identity"),
        (["h1", "me@h1", "--transport", "telnet"], "transport is 'telnet'", "paramiko"),
        (["h1", "me@h1", "--root", "route"], "root is 'route'", "~/path"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_asked(
    route: Route, config: Path, words: list[str], what: str, mend: str
) -> None:
    out = route("machine", "add", *words[:2], *words[2:], "--trust-first-use")
    if words[1].startswith("-"):
        out = route("machine", "add", "--trust-first-use", "--", *words)
    assert out.returncode == 64
    assert what in out.stderr
    assert mend in out.stderr
    assert not config.exists()


# The configuration


def test_machines_of_a_project_are_looked_at_and_edited_by_nobody(
    route: Route, sshd: Sshd, folder: Path, config: Path
) -> None:
    (folder / "route.toml").write_text(f'timeout = "1h"\n[machines.p1]\naddress = "{sshd.address}"\n')
    assert "p1" in route("machine", "list").stdout
    for words in (["add", "p1", sshd.address], ["remove", "p1"]):
        out = route("machine", *words)
        assert out.returncode == 65
        assert "route.toml:2: p1 stands in a project's file" in out.stderr
    out = route("machine", "check", "p1")
    assert out.returncode == 69  # its key is not pinned
    assert "is not pinned" in out.stdout
    assert nothing_is_kept(config)


def test_a_typo_and_a_broken_file_are_named_with_their_lines(route: Route, sshd: Sshd, config: Path) -> None:
    config.parent.mkdir(parents=True)
    config.write_text('# mine\n[machines.h2]\nadress = "x"\n')
    out = route("machine", "list")
    assert out.returncode == 64
    assert "config.toml:2: machines.h2: there is no key 'adress'" in out.stderr
    assert "address" in out.stderr.splitlines()[1]
    assert route("machine", "remove", "h2").returncode == 0  # which mends it
    config.write_text('# mine\n[machines.h2\nadress = "x"\n')
    out = route(*arguments(sshd), "--trust-first-use")
    assert out.returncode == 64
    assert "config.toml:2: TOML" in out.stderr
    assert not config.with_name("known_hosts").exists()
    assert config.read_text() == '# mine\n[machines.h2\nadress = "x"\n'


def test_without_tomlkit_nothing_is_asked_or_pinned(
    route: Route, sshd: Sshd, folder: Path, config: Path
) -> None:
    (folder / "tomlkit.py").write_text("raise ImportError('hidden')\n")
    out = route(*arguments(sshd), "--trust-first-use")
    assert out.returncode == 64
    assert "mend: pip install 'compute-router[ssh]'" in out.stderr
    assert nothing_is_kept(config)


def test_two_machines_added_at_once_are_both_kept(sshd: Sshd, folder: Path, config: Path) -> None:
    several = [
        subprocess.Popen(
            [*ROUTE, *arguments(sshd, name), "--trust-first-use", "--no-check"],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name in ("h1", "h2", "h3", "h3")
    ]
    for each in several:
        _, complaint = each.communicate(timeout=60)
        assert each.returncode == 0, complaint
    assert set(re.findall(r"machines\.(\w+)", config.read_text())) == {"h1", "h2", "h3"}
    assert len(config.with_name("known_hosts").read_text().splitlines()) == 3


def test_a_link_into_dotfiles_stays_one(route: Route, sshd: Sshd, config: Path, tmp_path: Path) -> None:
    config.parent.mkdir(parents=True)
    (tmp_path / "dotfiles.toml").write_text("# of all my computers\n")
    config.symlink_to(tmp_path / "dotfiles.toml")
    assert route(*arguments(sshd), "--trust-first-use", "--no-check").returncode == 0
    assert config.is_symlink()
    assert (tmp_path / "dotfiles.toml").read_text().startswith("# of all my computers\n\n[machines.h1]\n")


def test_names_that_are_not_there(route: Route, config: Path) -> None:
    assert route("machine", "list").stdout.split() == [
        "NAME",
        "ADDRESS",
        "ACCELERATOR",
        "ROOT",
        "GROUP",
        "PRICE",
    ]
    assert route("machine", "check").returncode == 64
    config.parent.mkdir(parents=True)
    config.write_text('[machines.box-1]\naddress = "x"\n')
    for verb in ("check", "remove"):
        out = route("machine", verb, "box1")
        assert out.returncode == 64
        assert "did you mean box-1?" in out.stderr


def test_completion_of_machines(folder: Path, config: Path) -> None:
    from test_cli_completion import ask

    config.parent.mkdir(parents=True)
    config.write_text('[machines.h1]\naddress = "x"\n[machines.h2]\naddress = "y"\n')
    assert ask(folder, "route machine ") == ["add", "check", "list", "remove"]
    assert ask(folder, "route machine check h1 ") == ["h2"]
    assert ask(folder, "route machine remove h") == ["h1", "h2"]


# The network


def test_machines_that_do_not_answer_hold_up_no_other(route: Route, sshd: Sshd, config: Path) -> None:
    assert route(*arguments(sshd), "--trust-first-use", "--no-check").returncode == 0
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with config.open("a") as f:
            f.write(f'[machines.silent]\naddress = "me@127.0.0.1:{silent.getsockname()[1]}"\n')
            f.write('[machines.nameless]\naddress = "me@no-such-name.invalid"\n')
        out = route("machine", "check", "--json", timeout=30)
    assert out.returncode == 69
    found = {each["machine"]: each for each in document(out)["data"]}
    assert found["h1"]["ok"], found["h1"]
    assert "in time" in {each["check"] for each in found["silent"]["checks"]} or not found["silent"]["ok"]
    [only] = found["nameless"]["checks"]
    assert only["check"] == "reachable"
    assert "looked up" in only["seen"]


def test_a_jump_on_the_way_is_asked_about_too(route: Route, sshd: Sshd, config: Path, tmp_path: Path) -> None:
    jump = Sshd(tmp_path / "jump", identity=sshd.identity).start()
    try:
        (tmp_path / "ssh_config").write_text(
            f"Host inner\n HostName 127.0.0.1\n Port {sshd.port}\n ProxyJump jump\n"
            f"Host jump\n HostName 127.0.0.1\n Port {jump.port}\n"
            f"Host *\n User {sshd.user}\n UserKnownHostsFile {tmp_path}/known\n"
            f" IdentityFile {sshd.identity}\n"
        )
        words = ["machine", "add", "h1", "inner", "--root", str(tmp_path / "root")]
        out = route(*words)
        assert out.returncode == 64
        assert fingerprint(jump) in out.stderr
        assert "on the way to h1" in out.stderr
        out = route(*words, "--trust-first-use", "--no-check")
        assert out.returncode == 0, out.stderr
        assert out.stderr.index(fingerprint(jump)) < out.stderr.index(fingerprint(sshd))
        assert route("machine", "check").returncode == 0

        # Its mend has to be one: the key of a jump goes with no machine.
        jump.kill()
        jump.host_key.unlink()
        Path(f"{jump.host_key}.pub").unlink()
        keygen(jump.host_key)
        jump.start()
        out = route(*words, "--trust-first-use", "--no-check")
        assert out.returncode == 77
        assert fingerprint(jump) in out.stderr
        mend = re.search(r"ssh-keygen -R .*?(?=, and add h1 again)", " ".join(out.stderr.split()))
        assert mend, out.stderr
        subprocess.run(["sh", "-c", mend[0]], check=True, capture_output=True, timeout=60)
        assert route(*words, "--trust-first-use", "--no-check").returncode == 0
    finally:
        jump.kill()


# A person


def test_a_person_is_asked_and_may_paste_the_fingerprint(sshd: Sshd, folder: Path, config: Path) -> None:
    words = [*arguments(sshd), "--no-check"]
    for answer, code in (("no", 65), ("SHA256:another", 65), ("yes", 0)):
        terminal = Terminal(folder, *words)
        shown = terminal.until("paste what its owner told you")
        assert fingerprint(sshd) in shown
        assert "never seen before" in shown
        terminal.type("what\n")
        terminal.type(answer + "\n")
        assert terminal.exit() == code, terminal.seen
        assert terminal.seen.count("paste what its owner told you") == 2
        assert nothing_is_kept(config) == (code != 0)
    again = Terminal(folder, *words)
    assert again.exit() == 0
    assert "paste" not in again.seen


def test_the_fingerprint_itself_is_an_answer(sshd: Sshd, folder: Path, config: Path) -> None:
    terminal = Terminal(folder, *arguments(sshd))
    terminal.until("paste what its owner told you")
    # As ssh-keygen says it.
    terminal.type(f"256 {fingerprint(sshd)} root@h1 (ED25519)\n")
    assert terminal.exit() == 0, terminal.seen
    assert "[machines.h1]" in config.read_text()
    assert "\x1b[32mok\x1b[0m" in terminal.seen
