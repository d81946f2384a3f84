"""Proves that docs/policies.md tells every rule with its sentence and every trait, and no other."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from routing import POLICIES

from compute_router.policies.auto import OTHERWISE, PREFER
from compute_router.policies.conditions import Rule, fields
from compute_router.policies.never import NEVER
from compute_router.policies.reading import read_rules
from compute_router.policies.traits import TRAITS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "policies.md"


def shown(test: Any) -> str:
    if isinstance(test, dict):
        return ", ".join(f"{key} {shown(value)}" for key, value in test.items())
    if isinstance(test, list):
        return " or ".join(map(shown, test))
    return {True: "yes", False: "no"}.get(test, str(test)) if isinstance(test, bool) else str(test)


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def condition(rule: Rule) -> str:
    return "; ".join(f"{name}: {shown(test)}" for name, test in rule.when.items()) or "always"


def never() -> Iterable[str]:
    yield from ("| rule | when | sentence | mend |", "|---|---|---|---|")
    for rule in NEVER:
        mend = rule.mend.replace("{{", "{").replace("}}", "}")
        yield row(f"`{rule.id}`", condition(rule), rule.sentence, mend)


def prefer() -> Iterable[str]:
    yield from ("| rule | when | order of surfaces | sentence |", "|---|---|---|---|")
    for rule in (*PREFER, OTHERWISE):
        order = ", ".join(surface.value for surface in rule.order) + ", others" if rule.order else "all alike"
        yield row(f"`{rule.id}`", condition(rule), order, rule.sentence)


def traits() -> Iterable[str]:
    yield from ("| trait | of | holds | what it says |", "|---|---|---|---|")
    for name, trait in TRAITS.items():
        if trait.of != "sentence":
            values = ", ".join(trait.values) or trait.type.value
            yield row(f"`{name}`", trait.of, values, trait.about)


@pytest.mark.parametrize("table", [never, prefer, traits], ids=lambda t: t.__name__)
def test_the_page_has_the_table_as_the_data_has_it(table: Any) -> None:
    expected = "\n".join(table())
    page = PAGE.read_text()
    assert expected in page, f"docs/policies.md should have this table:\n\n{expected}"
    first = re.escape(expected.splitlines()[0])
    assert len(re.findall(rf"^{first}$", page, re.M)) == 1


def test_every_policy_is_told() -> None:
    page = PAGE.read_text()
    for policy in POLICIES:
        assert re.search(rf"^#+ .*`{policy.name}`", page, re.M), policy.name


def test_the_rules_shown_can_be_read() -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.S)
    read = read_rules(tomllib.loads(text)["rules"])
    assert [rule.id for rule in read] == ["nights-on-our-own", "not-that-dear"]


def test_rules_are_whole() -> None:
    """Every id once, every trait known, every name in a sentence one that can be said."""
    rules = (*NEVER, *PREFER, OTHERWISE)
    assert len({rule.id for rule in rules}) == len(rules)
    for rule in rules:
        assert all(TRAITS[name].of != "sentence" for name in rule.when), rule.id
        assert all(name in TRAITS for text in (rule.sentence, rule.mend) for name in fields(text)), rule.id
        for name, test in rule.when.items():
            given = test.get("not", ()) if isinstance(test, dict) else test
            values = given if isinstance(given, (list, tuple)) else (given,)
            allowed = TRAITS[name].values
            assert not allowed or set(values) <= set(allowed), f"{rule.id}: {name}"
    assert all(not rule.when for rule in (OTHERWISE,))
