"""Proves that one machine of config.toml is added, changed and removed, and that nothing else of it moves."""

from __future__ import annotations

import multiprocessing
import os
import stat
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute_router.config import own_path
from compute_router.errors import ConfigError, InputError, Refused
from compute_router.machines.editing import put, remove

WRITTEN = """\
# mine
timeout = "4h" # of all

[machines.a] # the old one
address = "me@a" # by name
labels = { rack = "4" }

# how to decide
[[rules]]
effect = "prefer"
"""


@pytest.fixture
def file() -> Path:
    path = own_path()
    path.parent.mkdir(parents=True)
    return path


def add(name: str, **values: Any) -> Path:
    return put(name, lambda there: values)


def test_a_file_that_is_not_there_is_made_for_its_owner_alone() -> None:
    path = add("h1", address="me@h1", exclusive=True, labels={"rack": "4 \U0001f600"})
    assert path == own_path()
    assert path.read_text() == (
        '[machines.h1]\naddress = "me@h1"\nexclusive = true\nlabels = {rack = "4 \U0001f600"}\n'
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert sorted(p.name for p in path.parent.iterdir()) == [".config.toml.lock", "config.toml"]
    assert remove("h1")
    assert path.read_text() == ""
    assert not remove("h1")


def test_a_new_table_stands_behind_the_last_machine_and_comments_stay_where_they_were(file: Path) -> None:
    file.write_text(WRITTEN)
    file.chmod(0o644)
    add("b", address="me@b")
    assert file.read_text() == WRITTEN.replace('"4" }\n', '"4" }\n\n[machines.b]\naddress = "me@b"\n')
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert remove("b")
    assert file.read_text() == WRITTEN
    assert remove("a")
    assert (
        file.read_text()
        == '# mine\ntimeout = "4h" # of all\n\n# how to decide\n[[rules]]\neffect = "prefer"\n'
    )
    add("c", address="c")
    assert file.read_text().endswith('effect = "prefer"\n\n[machines.c]\naddress = "c"\n')


def test_one_key_is_changed_and_the_comment_beside_it_stays(file: Path) -> None:
    file.write_text(WRITTEN)
    put("a", lambda there: {"address": "me@b", "root": "/nvme", "labels": None})
    assert file.read_text() == WRITTEN.replace('"me@a" #', '"me@b" #').replace(
        'labels = { rack = "4" }\n', 'root = "/nvme"\n'
    )


def test_nothing_is_written_where_nothing_changes_or_the_caller_says_no(file: Path) -> None:
    file.write_text(WRITTEN)
    before = file.stat()

    def no(there: Mapping[str, Any] | None) -> None:
        assert there == {"address": "me@a", "labels": {"rack": "4"}}
        raise Refused("no")

    with pytest.raises(Refused):
        put("a", no)
    put("a", lambda there: None)
    put("a", lambda there: {"address": "me@a"})
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize(
    "text",
    [
        'machines.a.address = "me@a"\nmachines.b.address = "me@b"\n',
        'machines = { a = { address = "me@a" }, b = { address = "me@b" } }\n',
        '[machines]\na = { address = "me@a" }\nb.address = "me@b"\n',
        '[machines]\n[machines.a]\naddress = "me@a"\n[rules]\nx = 1\n[machines.b]\naddress = "me@b"\n',
        '[ machines . "a" ]\naddress = "me@a"\n[machines.b]\naddress = "me@b"\n[machines.b.labels]\nx = ""\n',
        '[machines.a]\naddress = "me@a"\nlabels.x = """\n[machines.b]\n"""\n[machines.b]\naddress = "me@b"\n',
        '[machines.a]\r\naddress = "me@a"\r\n\r\n[machines.b]\r\naddress = "me@b"\r\n',
        '\ufeff[machines.a]\naddress = "me@a"\n[machines.b]\naddress = "me@b"',
    ],
    ids=["dotted", "inline", "mixed", "apart", "spaced", "string", "crlf", "bom"],
)
def test_every_form_of_writing_machines_is_edited_or_refused_and_left(file: Path, text: str) -> None:
    file.write_bytes(text.encode())
    before = values(file)
    for doing, wanted in (
        (lambda: add("c", address="me@c"), {"c": {"address": "me@c"}}),
        (lambda: put("b", lambda there: {"root": "/x"}), {"b": {"root": "/x"}}),
        (lambda: remove("a"), {"a": None}),
    ):
        doing()
        for name, table in wanted.items():
            if table is None:
                del before["machines"][name]
            else:
                before["machines"].setdefault(name, {}).update(table)
        assert values(file) == before
    if "\r\n" in text:
        assert file.read_bytes().count(b"\n") == file.read_bytes().count(b"\r\n")
    assert file.read_text(encoding="utf-8").startswith("\ufeff") == text.startswith("\ufeff")


def values(file: Path) -> dict[str, Any]:
    return tomllib.loads(file.read_text(encoding="utf-8-sig"))


KEYS = st.sampled_from(["address", "root", "group", "slots", "labels"])
VALUES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
    st.integers(-9, 9),
    st.booleans(),
    st.dictionaries(st.text("abc-_. é", max_size=3), st.text("x\"'\\\n\x7f", max_size=3), max_size=2),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcd"), st.dictionaries(KEYS, VALUES, max_size=3) | st.none()), max_size=6
    )
)
def test_any_row_of_edits_leaves_what_was_meant(edits: list[tuple[str, dict[str, Any] | None]]) -> None:
    path = own_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(WRITTEN)
    expected = values(path)
    for name, table in edits:
        if table is None:
            assert remove(name) == (expected["machines"].pop(name, None) is not None)
        else:
            put(name, lambda there, table=table: table)  # type: ignore[misc]
            if table or name in expected["machines"]:
                expected["machines"].setdefault(name, {}).update(table)
            else:
                expected["machines"][name] = {}
        found = values(path)
        found.setdefault("machines", {})
        assert found == expected
        for comment in ("# mine", "# of all", "# how to decide"):
            assert comment in path.read_text()


def test_a_broken_file_is_refused_with_its_line_and_left(file: Path) -> None:
    file.write_text('[machines.a]\naddress = "a\n')
    with pytest.raises(ConfigError) as raised:
        add("b", address="b")
    assert raised.value.line == 2
    assert file.read_text() == '[machines.a]\naddress = "a\n'
    file.write_text('x = 1\nmachines = "a"\n')
    with pytest.raises(ConfigError, match="machines must be a table") as raised:
        add("b", address="b")
    assert raised.value.line == 2
    file.write_bytes(b"x = '\xff'\n")
    with pytest.raises(ConfigError, match="UTF-8"):
        remove("b")


def test_a_link_stays_one_and_the_file_it_leads_to_is_written(file: Path, tmp_path: Path) -> None:
    dotfiles = tmp_path / "dotfiles"
    dotfiles.mkdir()
    (dotfiles / "route.toml").write_text(WRITTEN)
    file.symlink_to(dotfiles / "route.toml")
    add("b", address="b")
    assert file.is_symlink()
    assert "[machines.b]" in (dotfiles / "route.toml").read_text()
    assert [p.name for p in dotfiles.iterdir()] == ["route.toml"]


def test_a_file_that_an_editor_writes_meanwhile_keeps_what_it_wrote(file: Path) -> None:
    file.write_text("x = 1\n")
    calls = []

    def change(there: object) -> dict[str, str]:
        calls.append(there)
        if len(calls) == 1:  # an editor saves now, and knows no lock
            (file.parent / "new").write_text("x = 2 # saved\n")
            os.replace(file.parent / "new", file)
        return {"address": "b"}

    put("b", change)
    assert len(calls) == 2
    assert file.read_text() == 'x = 2 # saved\n\n[machines.b]\naddress = "b"\n'


def _add_some(first: int) -> None:
    for number in range(first, first + 8):
        add(f"m{number}", address=f"a{number}")


def test_edits_at_the_same_time_are_all_kept(file: Path) -> None:
    file.write_text(WRITTEN)
    context = multiprocessing.get_context("fork")
    several = [context.Process(target=_add_some, args=(n * 8,)) for n in range(4)]
    for process in several:
        process.start()
    for process in several:
        process.join()
        assert process.exitcode == 0
    assert set(values(file)["machines"]) == {"a", *(f"m{n}" for n in range(32))}


def test_a_file_that_its_owner_made_read_only_is_left(file: Path) -> None:
    file.write_text("")
    file.chmod(0o444)
    with pytest.raises(InputError, match=r"config.toml cannot be written: it is read-only"):
        add("b", address="b")
    assert file.read_text() == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(file: Path) -> None:
    file.write_text("")
    file.parent.chmod(0o500)
    try:
        with pytest.raises(InputError, match=r"config.toml cannot be written: Permission denied"):
            add("b", address="b")
    finally:
        file.parent.chmod(0o700)


def test_without_tomlkit_one_line_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['tomlkit'] = None\n"
        "from compute_router.errors import InputError\n"
        "from compute_router.machines.editing import put\n"
        "try: put('a', lambda there: {'address': 'a'})\n"
        "except InputError as e: print(e.what, '|', e.mend)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "pip install 'compute-router[ssh]'" in out.stdout, out.stderr
    assert not own_path().exists()
