"""Proves that a file of cases becomes one workload for each line, and that a bad line is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from compute_router.config import Config
from compute_router.errors import InputError, WorkloadError
from compute_router.reading import Loaded, load, load_cases
from compute_router.workload import Kind
from compute_router.workloads.train import Train

KINDS: dict[str, Kind] = {"train": Train()}


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    monkeypatch.chdir(tmp_path)
    Path("t.py").write_text(
        "# /// script\n# [tool.route]\n# args = ['--a']\n# env = { A = '1', B = '1' }\n# ///\n"
    )
    return load("t.py", kinds=KINDS, config=Config())


def test_a_case_is_laid_over_the_base(base: Loaded) -> None:
    Path("c.jsonl").write_text(
        '{"name": "one", "args": ["--lr", "0.1"], "env": {"B": "2"}}\n\n'
        '{"metrics.discard_steps": 3, "backend": {"local": {"x": 1}}, "env.C": "3"}\r\n{}\n'
    )
    one, two, three = load_cases("c.jsonl", base)
    assert (one.name, one.entry.args, one.env) == ("one", ("--lr", "0.1"), {"A": "1", "B": "2"})
    assert (two.name, two.metrics.discard_steps, two.backend) == ("t-2", 3, {"local": {"x": 1}})
    assert two.env == {"A": "1", "B": "1", "C": "3"}
    assert (three.name, three.entry, three.env) == ("t-3", base.workload.entry, base.workload.env)
    assert base.workload.name == "t"


def test_cases_of_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = load(None, args=["true", "--common"], kinds=KINDS, config=Config())
    Path("c.jsonl").write_text('{"args": ["x"]}\n')
    assert load_cases("c.jsonl", base)[0].entry.argv == ("true", "--common", "x")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("{}\n{", 2, "no JSON"),
        ("[]", 1, "JSON object"),
        ('{"a": 1, "a": 2}', 1, "twice"),
        ('{}\n\n{"kidn": "x"}', 3, "'kidn'"),
        ('{"name": "a"}\n{"name": "a"}', 2, "line 1"),
        ('{"args": "x"}', 1, "list"),
        ('{"args": [NaN]}', 1, "string"),
        ('{"env": {"A": null}}', 1, "nothing"),
        ('{"env": 3}', 1, "table"),
        ('{"env": {"A": "x"}, "env.A": "y"}', 1, "twice"),
        ('{"env": 3, "env.A": "y"}', 1, "twice"),
        ('{"env.A": "y", "env": {}}', 1, "twice"),
        ('{"price_limit": 4.5}', 1, "decimal"),
        ('{"warmth": "warm"}', 1, "compile cache"),
        ('{"a": ' + "[" * 100_000 + "}", 1, "no JSON"),
        ('{"backend": {"x": {"y": ' + "[" * 500 + "]" * 500 + "}}}", 1, ""),
        ("\n\n", None, "no cases"),
        ("", None, "no cases"),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), 1, "no JSON"),
    ],
)
def test_a_bad_line_is_named(base: Loaded, text: str, line: int | None, says: str) -> None:
    Path("c.jsonl").write_bytes(text.encode("latin-1"))
    try:
        load_cases("c.jsonl", base)
    except WorkloadError as e:
        error = e
    else:
        assert not says, "only the deep nest may pass"
        return
    assert says in str(error)
    assert error.line == line
    assert error.mend
    assert "\n" not in str(error)


def test_the_file_may_be_missing(base: Loaded) -> None:
    for name in ("none.jsonl", ".", "a\0b"):
        with pytest.raises(InputError):
            load_cases(name, base)


def test_many_cases_do_not_take_long_to_name(base: Loaded) -> None:
    Path("c.jsonl").write_text("".join(f'{{"args": ["{i}"]}}\n' for i in range(2000)))
    cases = load_cases("c.jsonl", base)
    assert len({case.digest for case in cases}) == 2000
