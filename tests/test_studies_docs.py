"""Proves that docs/studies.md tells the keys of a study.toml as the code has them, and shows a good one.

`ROUTE_WRITE_DOCS=1 pytest tests/test_studies_docs.py` writes the tables anew.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from compute_router.reading.keys import Key
from compute_router.registry import Registry
from compute_router.studies.keys import ARM, STUDY
from compute_router.studies.reading import find, read, ready

DOC = Path(__file__).resolve().parent.parent / "docs" / "studies.md"


def table(keys: dict[str, Key]) -> str:
    lines = ["| Key | Type | Default | Meaning | Example |", "|---|---|---|---|---|"]
    for key in keys.values():
        default = f"`{key.default}`" if re.fullmatch(r"[\[\]{}\d.a-z]+", key.default) else key.default
        cells = (f"`{key.name}`", key.type, default, key.about, f"`{key.name} = {key.example}`")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


@pytest.mark.parametrize(("name", "keys"), [("study", STUDY), ("arm", ARM)])
def test_the_tables_are_the_codes(name: str, keys: dict[str, Key]) -> None:
    text = DOC.read_text()
    between = re.compile(rf"(?<=<!-- {name} keys -->\n).*?(?=<!-- /{name} keys -->)", re.S)
    wanted = "\n" + table(keys) + "\n\n"
    if os.environ.get("ROUTE_WRITE_DOCS"):
        DOC.write_text(between.sub(lambda _: wanted, text))
    found = between.search(DOC.read_text())
    assert found
    assert found[0] == wanted


def test_the_example_of_the_page_is_a_study(folder: Path, home: Path) -> None:
    match = re.search(r"```toml\n(.*?)```", DOC.read_text(), re.S)
    assert match
    (folder / "study.toml").write_text(match[1])
    found = read(folder / "study.toml", stand=folder, kinds=Registry().kinds(), home=home)
    assert found.warnings == ()
    assert [arm.name for arm in found.plan.arms] == ["math", "flash"]


@pytest.mark.parametrize("name", ready())
def test_a_ready_made_study_is_found_by_its_name_and_has_no_fault(name: str, home: Path) -> None:
    path, stand = find(name)
    found = read(path, stand=stand, kinds=Registry().kinds(), home=home)
    assert found.plan.name == name
    assert found.warnings == ()


def test_there_is_a_ready_made_study() -> None:
    assert "attention" in ready()
