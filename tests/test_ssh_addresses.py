"""Proves that an address is what ssh would take it for, and that what is none never reaches ssh."""

from __future__ import annotations

from pathlib import Path

import pytest

from compute_router.errors import ConfigError, RouteError
from compute_router.machines import MachineEntry
from compute_router.machines.hops import Address
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
