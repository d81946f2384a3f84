"""Proves that an address is what ssh would take it for, and that what is none never reaches ssh."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from compute_router.errors import ConfigError, Rejected, RouteError
from compute_router.machines import MachineEntry
from compute_router.machines.hops import Address, resolve
from compute_router.machines.reaching import reach


def configured(path: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text(text)
    monkeypatch.setenv("ROUTE_SSH_CONFIG", str(path))


@pytest.mark.parametrize(
    ("text", "name", "user", "port"),
    [
        ("h1", "h1", None, None),
        ("ml@h1.lab:2222", "h1.lab", "ml", 2222),
        ("ml@[fe80::1%eth0]:22", "fe80::1%eth0", "ml", 22),
        ("::1", "::1", None, None),
        ("first.last@corp.example@h1", "h1", "first.last@corp.example", None),
    ],
)
def test_an_address_is_taken_apart(text: str, name: str, user: str | None, port: int | None) -> None:
    assert Address.parse(text) == Address(name=name, user=user, port=port)


@pytest.mark.parametrize(
    "text", ["", "a b", "-oProxyCommand=x", "me@", "@h", "me@h:0", "me@h:99999", "me@h:22:33", "h;rm", "$(x)"]
)
def test_what_is_no_address_never_reaches_ssh(text: str) -> None:
    with pytest.raises(ConfigError, match="no address"):
        Address.parse(text)


def test_a_circle_of_jumps_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configured(tmp_path / "c", "Host a\n ProxyJump b\nHost b\n ProxyJump a\n", monkeypatch)
    with pytest.raises(RouteError, match="jumps"):
        reach("h1", MachineEntry(address="a")).open(("true",), deadline=5)


def test_a_configuration_that_ssh_cannot_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured(tmp_path / "c", "Host a\n Prot 22\n", monkeypatch)
    with pytest.raises(ConfigError, match=r"(?i)bad configuration option|prot"):
        reach("h1", MachineEntry(address="a")).open(("true",), deadline=5)


def test_files_are_those_that_ssh_would_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configured(
        tmp_path / "c",
        f"""
        Host h1
          HostName h1.lab
          User ml
          HostKeyAlias one
          IdentityFile "{tmp_path}/%r key"
          IdentityFile ${{KEYS}}/%n
          IdentityAgent ${{KEYS}}/agent
          UserKnownHostsFile "{tmp_path}/a b" {tmp_path}/%h
          GlobalKnownHostsFile none
        Host h2
          IdentityAgent $MINE
          UserKnownHostsFile none
        """,
        monkeypatch,
    )
    monkeypatch.setenv("KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("MINE", "/an/agent")
    hop = resolve("h1").target
    assert hop.identities == (f"{tmp_path}/ml key", f"{tmp_path}/keys/h1")
    assert hop.agent == f"{tmp_path}/keys/agent"
    assert hop.known == (f"{tmp_path}/a b", f"{tmp_path}/h1.lab")
    assert hop.place == "one"
    hop = resolve("h2").target
    assert hop.agent == "/an/agent"
    assert "none" not in hop.known


def test_names_of_files_are_bytes_in_any_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c"
    file.write_bytes(b"Host h1\n IdentityFile /keys/schl\xfcssel\n")
    monkeypatch.setenv("ROUTE_SSH_CONFIG", str(file))
    assert [os.fsencode(path) for path in resolve("h1").target.identities] == [b"/keys/schl\xfcssel"]


def test_tokens_of_a_command_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Host h1\n HostName h1.lab\n User ml\n ProxyCommand go %h %n %p %r %k %%\n"
    configured(tmp_path / "c", text, monkeypatch)
    assert resolve("h1").proxy == "go h1.lab h1 22 ml h1 %"
    configured(tmp_path / "d", text + " ProxyUseFdpass yes\n", monkeypatch)
    with pytest.raises(Rejected, match="ProxyUseFdpass") as refused:
        resolve("h1")
    assert "openssh" in refused.value.mend


def test_the_command_to_try_is_one_that_ssh_takes() -> None:
    from compute_router.machines.hops import Hop

    assert Hop(name="h", address="h", port=22, user="me").command == "ssh me@h"
    hop = Hop(name="h", address="10.0.0.1", port=2222, user="me", identities=("/my keys/a", "/b"))
    assert hop.command == "ssh -p 2222 -i '/my keys/a' me@10.0.0.1"
