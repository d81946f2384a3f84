"""Proves that a script's block is found as PEP 723 has it, and that a script is never run by being read."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute_router.errors import WorkloadError
from compute_router.reading import script
from compute_router.reading.block import check_syntax, script_block, to_text

# The reference expression of PEP 723.
REFERENCE = re.compile(r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
LINES = st.sampled_from(
    [
        "# /// script",
        "# ///",
        "# a = 1",
        "#",
        "#x",
        "",
        "x = 1",
        "# /// other",
        "# # b",
        " # ///",
        "# /// Script",
    ]
)


@settings(max_examples=3000, deadline=None, print_blob=True)
@given(st.lists(LINES, max_size=12).map("\n".join))
def test_the_block_is_that_of_the_reference(text: str) -> None:
    blocks = [m for m in REFERENCE.finditer(text) if m["type"] == "script"]
    try:
        found = script_block(text, "x.py")
    except WorkloadError:
        # We refuse what PEP 723 passes over in silence: an opening without an end, and a second block.
        assert len(blocks) > 1 or len(re.findall("(?m)^# /// script$", text)) > len(blocks)
        return
    if not blocks:
        assert found is None or found.toml == ""
        return
    content = "".join(
        line[2:] if line.startswith("# ") else line[1:]
        for line in blocks[0]["content"].splitlines(keepends=True)
    )
    assert found is not None
    assert found.toml == content.removesuffix("\n")
    assert found.first == text.count("\n", 0, blocks[0].start("content")) + 1


def fails(text: str) -> WorkloadError:
    with pytest.raises(WorkloadError) as e:
        script_block(text, "x.py")
    return e.value


def test_an_open_block_and_a_second_one_are_errors_with_their_line() -> None:
    error = fails("x = 1\n# /// script\n# a = 1\ny = 2\n")
    assert (error.file, error.line, "never closed" in error.what) == ("x.py", 2, True)
    error = fails("# /// script\n# a = 1\n# ///\n\n# /// script\n# b = 1\n# ///\n")
    assert (error.line, "line 1" in error.what) == (5, True)


@pytest.mark.parametrize(
    "opening", ["#/// script", "# /// Script", "# /// script ", " # /// script", "# //// script"]
)
def test_a_table_that_would_be_lost_is_an_error(opening: str) -> None:
    error = fails(f"import os\n{opening}\n# [tool.route]\n# kind = 'bench'\n# ///\n")
    assert (error.line, "outside" in error.what) == (3, True)
    assert script_block("# see [tool.route] in the manual\n", "x.py") is None


Write = Callable[[bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(data: bytes) -> Path:
        path = tmp_path / "x.py"
        path.write_bytes(data)
        return path

    return make


BLOCK = "# /// script\n# [tool.route]\n# name = 'n\u00e4me'\n# ///\n"


@pytest.mark.parametrize(
    "data",
    [
        BLOCK.encode(),
        b"\xef\xbb\xbf" + BLOCK.encode(),
        BLOCK.replace("\n", "\r\n").encode(),
        BLOCK.replace("\n", "\r").encode(),
        b"# -*- coding: latin-1 -*-\n" + BLOCK.encode("latin-1"),
        b"#!/usr/bin/env python\n# vim: set fileencoding=cp1252 :\n" + BLOCK.encode("cp1252"),
    ],
    ids=["utf-8", "bom", "crlf", "cr", "latin-1", "cp1252"],
)
def test_every_encoding_python_reads(write: Write, data: bytes) -> None:
    found = script.read(write(data), "x.py")
    assert found.layer is not None
    assert found.layer.values == {"name": "n\u00e4me"}


@pytest.mark.parametrize(
    ("data", "line", "says"),
    [
        (b"x = 1\ny = '\xff'\n", 2, "not utf-8"),
        (b"# coding: klingon\n", 1, "encoding"),
        (b"\xef\xbb\xbf# coding: latin-1\n", 1, "encoding"),
        (b"x = 1\n\n\ndef f(:\n", 4, "syntax error"),
        (b"return 1\n", 1, "'return' outside function"),
        (b"# /// script\n# [tool.route]\n# kind = train\n# ///\n", 3, "TOML"),
        (b"# /// script\n# [tool.route]\n# kind = 'train'\n# kind = 'bench'\n# ///\n", 4, "TOML"),
        (b"# /// script\n# [tool.route]\n# args = [\n#   'a',\n# ///\nx = 1\n", 4, "TOML"),
        (b"x = 0\n\n# /// script\n# [tool.route]\n# kidn = 'train'\n# ///\n", 5, "kidn"),
        (b"# /// script\n# kind = 'train'\n# ///\n", 2, "above"),
        (b"# /// script\n# dependancies = []\n# ///\n", 2, "dependancies"),
        (b"# /// script\n# dependencies = [\n#  'torch',\n#  3,\n# ]\n# ///\n", 4, "string"),
        (b"# /// script\n# dependencies = ['a @ https://u:p@h/x']\n# ///\n", 2, "password"),
        (b"# /// script\n# requires-python = 'three'\n# ///\n", 2, "versions"),
        (b"# /// script\n# [tool]\n# route = 3\n# ///\n", 3, "table"),
        (b"# /// script\n# [tool.routes]\n# kind = 'train'\n# ///\n", 2, "routes"),
        (b"# /// script\n# tool = 1\n# ///\n", 2, "table"),
        (b"", None, "empty"),
        (b"  \n\n", None, "empty"),
        (b"\x7fELF\0\0\0", None, "binary"),
        (b"x = " + b"(" * 500 + b")" * 500, 1, "parenthes"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(write: Write, data: bytes, line: int | None, says: str) -> None:
    with pytest.raises(WorkloadError, match=says) as e:
        script.read(write(data), "x.py")
    assert e.value.line == line
    assert e.value.mend
    assert "\n" not in e.value.what + e.value.mend


def test_nearest_words_are_in_the_mend(write: Write) -> None:
    for wrong, right in [
        ("kidn = 'x'", "'kind'"),
        ("acelerator = 'cpu'", "'accelerator'"),
        ("purpose = 'benchmrk'", "'benchmark'"),
        ("gpu = 'H200'", "accelerator"),
        ("dependencies = []", "above"),
        ("timeout = 90", '"90s"'),
        ("price_limit = 4.5", '"4.5"'),
        ("metrics = { primry = 'x' }", "'primary'"),
        ("volumes = { chekpoints = '/c' }", "'checkpoints'"),
        ("kind = train", '"train"'),
        ("kind: 'train'", "kind = "),
    ]:
        with pytest.raises(WorkloadError) as e:
            script.read(write(f"# /// script\n# [tool.route]\n# {wrong}\n# ///\n".encode()), "x.py")
        assert right in e.value.mend, (wrong, e.value.mend)
        assert e.value.line == 3


def test_tables_of_other_tools_are_let_be(write: Write) -> None:
    found = script.read(
        write(b"# /// script\n# [tool.router]\n# x = 1\n# [tool.uv]\n# y = 1\n# ///\n"), "x.py"
    )
    assert found.layer is None
    assert ["x.py:4" in warning for warning in found.warnings] == [True]


def test_a_name_is_made_of_the_files(tmp_path: Path) -> None:
    names = [
        script.as_name(n)
        for n in ("train", "a b", "-x-", "latest", "...", "\u202eabc", "n\u00e4me", "x" * 300)
    ]
    assert names == ["train", "a-b", "x", "latest-run", "run", "abc", "n\u00e4me", "x" * 100]


def test_reading_runs_nothing(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    path = tmp_path / "x.py"
    path.write_text(f"open({str(trap)!r}, 'w')\n__import__('os').mkdir({str(trap)!r} + 'd')\n")
    before = set(sys.modules)
    assert script.read(path, "x.py").name == "x"
    assert not trap.exists()
    assert not Path(f"{trap}d").exists()
    assert "x" not in set(sys.modules) - before


def test_a_later_python_is_no_error_of_ours() -> None:
    data = b"def f(:\n"
    assert "the script asks for" in (check_syntax(data, "x.py", ">=3.99") or "")
    with pytest.raises(WorkloadError):
        check_syntax(data, "x.py", ">=3.8")


@settings(max_examples=1500, deadline=None, print_blob=True)
@given(st.binary(max_size=200))
def test_any_bytes_are_text_or_a_clear_error(data: bytes) -> None:
    try:
        text = to_text(data, "x.py")
    except WorkloadError as e:
        text = e.mend
    assert text or not data.strip(b"\xef\xbb\xbf")
    assert "\r" not in text
    assert "\0" not in text
