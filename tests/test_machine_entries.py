"""Proves that `[machines.NAME]` is read, and that what is wrong in it is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from compute_router.config import load_config
from compute_router.errors import ConfigError
from compute_router.machines.entry import MachineEntry, read_entries


def read(folder: Path, text: str) -> dict[str, MachineEntry]:
    (folder / "route.toml").write_text(text)
    config = load_config(folder)
    return read_entries(config.machines, config.origins)


def test_a_machine_needs_no_more_than_its_address(tmp_path: Path) -> None:
    found = read(tmp_path, '[machines.b]\naddress = "me@b"\n[machines.a]\naddress = "a:2222"\n')
    assert list(found) == ["a", "b"]
    assert found["b"] == MachineEntry(address="me@b")
    assert found["b"].has is None


def test_all_that_can_be_said_of_a_machine(tmp_path: Path) -> None:
    text = """[machines.h1]
address = "ml@10.0.0.1"
identity = "~/.ssh/lab"
root = "/nvme/route"
accelerator = "H200:8"
price_per_hour = "31.60"
currency = "EUR"
labels = { rack = "4" }
exclusive = true
slots = 4
group = "east"
fabric = "infiniband"
peer_address = "192.168.0.1"
interface = "ib0"
transport = "openssh"
"""
    entry = read(tmp_path, text)["h1"]
    assert str(entry.has) == "H200:8"
    assert (entry.root, entry.group, entry.labels) == ("/nvme/route", "east", {"rack": "4"})


@pytest.mark.parametrize(
    ("line", "what", "mend"),
    [
        ('adress = "x"', "no key 'adress'", "address"),
        ('transport = "openshh"', "transport is 'openshh'", "openssh"),
        ('price_per_hour = "4 dollars"', "price_per_hour", "decimal"),
        ("price_per_hour = 4", "price_per_hour", "machine"),
        ('root = "route"', "root is 'route'", "~/path"),
        ('accelerator = "H200 x 8"', "accelerator", "H200:8"),
        ("slots = 0", "slots is 0", "from 1"),
        ("labels = { a = 1 }", "labels", "machine"),
    ],
)
def test_what_cannot_be_is_named_with_its_line(tmp_path: Path, line: str, what: str, mend: str) -> None:
    text = f'[machines.x]\naddress = "x"\n{line}\n'
    with pytest.raises(ConfigError) as raised:
        read(tmp_path, text)
    assert what in raised.value.what
    assert mend in raised.value.mend
    assert raised.value.line == 1


def test_a_name_that_could_not_be_a_folder_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no name of a machine"):
        read(tmp_path, '[machines."../x"]\naddress = "x"\n')
