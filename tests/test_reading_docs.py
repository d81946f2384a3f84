"""Proves that docs/workloads.md tells keys, fields and kinds as the code has them; its examples hold.

`ROUTE_WRITE_DOCS=1 pytest tests/test_reading_docs.py` writes the tables anew.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest

from compute_router.config import SECTIONS, Config, load_config
from compute_router.reading import load, load_cases
from compute_router.reading.keys import KEYS, METRICS, Key
from compute_router.workload import Kind, MetricRule, Needs, Workload
from compute_router.workloads.bench import Bench
from compute_router.workloads.train import Train
from compute_router.workloads.validate import Validate

DOC = Path(__file__).resolve().parent.parent / "docs" / "workloads.md"
KINDS: list[Kind] = [Train(), Bench(), Validate()]


def rows(head: str, lines: Iterable[Iterable[str]]) -> str:
    cells = [cell.strip() for cell in head.split("|")]
    made = ["| " + " | ".join(cells) + " |", "|" + "---|" * len(cells)]
    return "\n".join(
        made + ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    )


def keys(table: dict[str, Key]) -> str:
    lines = (
        (f"`{k.name}`", k.type, _code(k.default), k.about, f"`{k.name} = {k.example}`")
        for k in table.values()
    )
    return rows("key | type | default | meaning | example", lines)


def _code(text: str) -> str:
    return f"`{text}`" if re.fullmatch(r'".*"|\[\]|\{\}|\d+|true|false', text) else text


def tables() -> dict[str, str]:
    fields = ((k.name, f"`{f.name}`", f.type, f.about) for k in KINDS for f in k.fields)
    kinds = (
        (
            f"`{k.name}`",
            k.about,
            ", ".join(k.purposes),
            str(k.default_purpose),
            k.primary or "none",
            ", ".join(f"`{k.name}:{ready}`" for ready in k.ready),
        )
        for k in KINDS
    )
    return {
        "keys": keys(KEYS),
        "metrics": keys(METRICS),
        "fields": rows("kind | field | type | meaning", fields),
        "kinds": rows(
            "kind | about | purposes | default purpose | default primary metric | ready-made", kinds
        ),
    }


@pytest.mark.parametrize("name", ["keys", "metrics", "fields", "kinds"])
def test_the_page_has_the_table(name: str) -> None:
    text, table = DOC.read_text(), tables()[name]
    pattern = re.compile(rf"<!-- {name} -->\n(.*?)<!-- end -->", re.S)
    if os.environ.get("ROUTE_WRITE_DOCS"):
        text = pattern.sub(lambda _: f"<!-- {name} -->\n{table}\n<!-- end -->", text)
        DOC.write_text(text)
    found = pattern.search(text)
    assert found is not None
    assert found[1].strip() == table, "ROUTE_WRITE_DOCS=1 writes it anew"


@pytest.mark.parametrize("key", [*KEYS.values(), *METRICS.values()], ids=lambda key: key.name)
def test_every_example_holds(key: Key) -> None:
    key.read(tomllib.loads(f"x = {key.example}")["x"])


def test_every_default_is_the_one_of_the_record() -> None:
    fields = [f for r in (Workload, Needs, MetricRule) for f in msgspec.structs.fields(r)]
    # A default that is an empty dict is made anew for each record, so it stands there as its factory.
    made = {f.name: None if f.default is msgspec.NODEFAULT else f.default for f in fields}
    made["timeout"] = made["timeout_us"]
    told = [key for key in [*KEYS.values(), *METRICS.values()] if _code(key.default) != key.default]
    for key in told:
        value = tomllib.loads(f"x = {key.default}")["x"]
        if value in ([], {}):
            assert not made.get(key.name), key.name
        else:
            assert key.read(value) == made[key.name], key.name
    assert len(told) >= 18


def test_every_key_of_a_workload_can_be_written() -> None:
    apart = {"schema", "entry", "needs", "dependencies", "requires_python", "timeout_us"}
    assert set(KEYS) - set(Needs.__struct_fields__) - {"args", "timeout"} == (
        set(Workload.__struct_fields__) - apart
    )
    assert set(Needs.__struct_fields__) <= set(KEYS)
    assert set(METRICS) == set(MetricRule.__struct_fields__)


def test_the_pages_own_examples_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = DOC.read_text()
    block = re.search(r"```python\n(.*?)```", text, re.S)
    cases = re.search(r"```json\n(.*?)```", text, re.S)
    assert block
    assert cases
    (tmp_path / "train.py").write_text(block[1])
    kinds = {kind.name: kind for kind in KINDS}
    loaded = load("train.py", kinds=kinds, config=Config())
    assert str(loaded.workload.needs.accelerator) == "H200:8"
    (tmp_path / "cases.jsonl").write_text(cases[1])
    assert [w.name for w in load_cases("cases.jsonl", loaded)] == ["lr-1", "lr-2"]
    assert all(json.loads(line) for line in cases[1].splitlines())


def test_every_section_of_a_configuration_is_told() -> None:
    text = DOC.read_text()
    for section in SECTIONS:
        assert re.search(rf"`\[*{section}\b", text), section
    assert load_config(DOC.parent) is not None
