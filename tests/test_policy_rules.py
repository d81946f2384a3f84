"""Proves that the user's own rules do as written, and that a wrong one is named and never ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import Route
from routing import decide, estimates, offer, order, why, work

from compute_router.backend import Quote
from compute_router.policies.rules import Rules
from compute_router.policy import Decision, Outcome
from compute_router.records import canonical

RULES = Rules()


def by(*rules: dict[str, Any], workload: Any = None, **limits: Any) -> Decision:
    offers = [offer("reserved", price="2.50"), offer("serverless", price="4.54"), offer("cluster")]
    return decide(workload or work(), offers, policy=RULES, rules=rules, **limits)


def test_a_preferred_surface_comes_first_and_the_rest_stays_behind() -> None:
    rule = {"id": "night", "effect": "prefer", "surface": "cluster", "sentence": "{backend} is idle at night"}
    decision = by(rule)
    assert order(decision)[0] == "cluster"
    assert "cluster is idle at night" in decision.sentence
    assert {r.rule for r in decision.ranked[1:]} == {"unnamed"}
    assert decision.limits.rules == (rule,)


def test_ranks_put_places_in_order_and_the_first_rule_that_applies_counts() -> None:
    decision = by(
        {"id": "third", "effect": "prefer", "backend": "hosts", "rank": 3},
        {"id": "first", "effect": "prefer", "surface": ["serverless", "reserved"], "rank": 1},
        {"id": "second", "effect": "prefer", "rank": 2},
    )
    assert [(r.backend, r.rank, r.rule) for r in decision.ranked] == [
        ("cloud", 1, "first"),
        ("cluster", 2, "second"),
        ("hosts", 3, "third"),
    ]


def test_a_refusal_of_ones_own_is_told_with_its_sentence() -> None:
    decision = by(
        {
            "id": "dear",
            "effect": "refuse",
            "when": {"price_per_hour": {"min": "4.00"}, "kind": ["train", "bench"]},
            "sentence": "{place} is too dear for {kind}",
            "mend": "ask",
        }
    )
    assert why(decision, "cloud") == "dear"
    (told,) = decision.rejections
    assert (told.sentence, told.mend) == ("cloud/one is too dear for train", "ask")


def test_a_default_sentence_takes_the_id_as_it_is_written() -> None:
    decision = by({"id": "{odd}", "effect": "refuse", "backend": "cloud"})
    assert decision.rejections[0].sentence == "your rule {odd} refuses it"


def test_own_rules_stand_on_top_of_what_no_policy_does() -> None:
    everything = {"id": "all", "effect": "prefer", "rank": 1}
    asked = work("H100:1")
    decision = by(everything, workload=asked)
    assert decision.outcome is Outcome.REFUSED
    assert {r.rule for r in decision.rejections} == {"hardware"}


def test_numbers_words_and_negations_are_tested() -> None:
    busy = offer("cluster", busy=True, estimates=estimates(queue=40 * 60))
    rules = (
        {"id": "long", "effect": "refuse", "when": {"queue_minutes": {"min": 40}}},
        {"id": "tagged", "effect": "refuse", "when": {"tags": "night", "surface": {"not": "reserved"}}},
    )
    offers = [offer("reserved"), offer("serverless"), busy]
    decision = decide(work(tags=("x", "night")), offers, policy=RULES, rules=rules, wait_us=None)
    assert (order(decision), why(decision, "cluster"), why(decision, "cloud")) == (
        ["hosts"],
        "long",
        "tagged",
    )


def test_an_unknown_figure_meets_no_test() -> None:
    euro = offer("cluster", quote=Quote(amount="1", currency="EUR", source="s", date="d"))
    rule = {"id": "cheap", "effect": "refuse", "when": {"price_per_hour": {"max": "5"}}}
    assert order(decide(work(), [euro], policy=RULES, rules=(rule,))) == ["cluster"]


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"id": "a", "efect": "refuse"}, "rule 'a' has no key 'efect'", "did you mean 'effect'?"),
    ({"id": "a", "effect": "forbid"}, "rule 'a' has the effect 'forbid'", "refuse"),
    ({"id": "a"}, "rule 'a' has the effect None", "prefer"),
    ({"id": 7}, "the id of rule 1", "id ="),
    ({"id": "hardware", "effect": "refuse"}, "built in", "another id"),
    (
        {"id": "a", "effect": "refuse", "when": {"surfce": "local"}},
        "rule 'a' tests 'surfce', which is no trait",
        "did you mean 'surface'?",
    ),
    (
        {"id": "a", "effect": "refuse", "surface": "serverles"},
        "rule 'a': surface is never 'serverles'",
        "did you mean 'serverless'?",
    ),
    (
        {"id": "a", "effect": "refuse", "when": {"detached": "yes"}},
        "detached cannot be 'yes'",
        "true or false",
    ),
    ({"id": "a", "effect": "refuse", "when": {"cases": True}}, "cases cannot be True", "a whole number"),
    (
        {"id": "a", "effect": "refuse", "when": {"cases": {"min": 1.5}}},
        "cases cannot be 1.5",
        "a whole number",
    ),
    ({"id": "a", "effect": "refuse", "when": {"cases": 2**53}}, "cases cannot be", "a whole number"),
    ({"id": "a", "effect": "refuse", "when": {"cases": {"mni": 1}}}, "cases has no test 'mni'", "'min'"),
    ({"id": "a", "effect": "refuse", "when": {"cases": {}}}, "the test of cases is empty", "min"),
    ({"id": "a", "effect": "refuse", "when": {"kind": []}}, "the list of kind is empty", "one"),
    ({"id": "a", "effect": "refuse", "when": {"kind": {"min": "a"}}}, "kind has no test 'min'", "not"),
    ({"id": "a", "effect": "refuse", "when": {"price_per_hour": {"max": 4.5}}}, "cannot be 4.5", '"4.50"'),
    ({"id": "a", "effect": "refuse", "when": "kind"}, "its when is no table", "when ="),
    ({"id": "a", "effect": "refuse", "when": {"place": "x"}}, "which is no trait", "place_"),
    ({"id": "a", "effect": "refuse"}, "rule 'a' would refuse every place", "when"),
    ({"id": "a", "effect": "refuse", "backend": "x", "rank": 1}, "refuses and has a rank", "leave rank out"),
    ({"id": "a", "effect": "prefer", "rank": 0}, "has the rank 0", "from 1"),
    (
        {"id": "a", "effect": "prefer", "backend": "x", "when": {"backend": "y"}},
        "names backend twice",
        "once",
    ),
    ({"id": "a", "effect": "prefer", "sentence": "{surfac}"}, "names no trait with {surfac}", "'surface'"),
    (
        {"id": "a", "effect": "prefer", "sentence": "{kind.__class__}"},
        "its sentence cannot be read",
        "a brace",
    ),
    ({"id": "a", "effect": "prefer", "sentence": "{0}"}, "its sentence cannot be read", "a brace"),
    ({"id": "a", "effect": "prefer", "sentence": "{kind!r}"}, "its sentence cannot be read", "a brace"),
    ({"id": "a", "effect": "prefer", "sentence": "open {"}, "its sentence cannot be read", "a brace"),
    ({"id": "a", "effect": "prefer", "sentence": ""}, "its sentence is no text", "sentence ="),
]


@pytest.mark.parametrize(("rule", "what", "mend"), WRONG, ids=[what for _, what, _ in WRONG])
def test_a_wrong_rule_is_a_refusal_that_names_it(rule: dict[str, Any], what: str, mend: str) -> None:
    decision = by(rule)
    assert decision.outcome is Outcome.REFUSED
    assert what in decision.sentence
    assert mend in decision.mend
    assert ("{{" in decision.mend) is (mend == "a brace")
    assert {r.rule for r in decision.rejections} == {"rules"}
    assert len(decision.rejections) == 3
    assert canonical(decision)


def test_rules_of_a_route_toml_decide_in_the_command(route: Route, folder: Path) -> None:
    (folder / "route.toml").write_text(
        'policy = "rules"\n[[rules]]\nid = "not-here"\neffect = "refuse"\nsurface = "local"\n'
        'when = { kind = "train" }\nsentence = "{place} is for {kind}ing people"\n'
    )
    told = route("plan", "--json", "--set", "kind=train", "--", "true")
    decision = json.loads(told.stdout)["data"]["decision"]
    assert (told.returncode, decision["outcome"]) == (65, "refused")
    (rejection,) = [r for r in decision["rejections"] if r["backend"] == "local"]
    assert (rejection["rule"], rejection["sentence"]) == ("not-here", "local/machine is for training people")
    assert route("plan", "--policy", "auto", "--", "true").returncode == 0


def test_two_rules_of_one_id_are_wrong() -> None:
    rule = {"id": "a", "effect": "prefer"}
    assert "two rules are called 'a'" in by(rule, rule).sentence


def test_no_rules_at_all_is_a_refusal_with_the_mend() -> None:
    decision = by()
    assert decision.outcome is Outcome.REFUSED
    assert "[[rules]]" in decision.mend
