"""Rules as data: the record, when it applies, and the sentence it leaves behind."""

from __future__ import annotations

import enum
import functools
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from compute_router.backend import Surface
from compute_router.policies.traits import TRAITS, Traits, Type
from compute_router.records import Record

__all__ = ["Effect", "Left", "Live", "Rule", "fields", "fill", "holds", "live", "matches"]


class Effect(enum.StrEnum):
    """What a rule does to the offers it applies to."""

    REFUSE = "refuse"
    PREFER = "prefer"


class Rule(Record, frozen=True, kw_only=True):
    """One rule: applies where every test of `when` holds.

    A test is a value, a list of values, or a table of `min`, `max` and `not`. `sentence` and
    `mend` name traits in braces. A rule that prefers gives the rank: by its `order` of surfaces
    (those not in it come last), or else `rank` itself. The first rule that applies counts.
    After one that refuses and is `enough` no other is looked at: what else is amiss is no news.
    """

    id: str
    effect: Effect
    sentence: str
    when: dict[str, Any] = {}
    mend: str = ""
    order: tuple[Surface, ...] = ()
    rank: int = 1
    enough: bool = False

    def rank_of(self, surface: Surface) -> int:
        """The rank of an offer of `surface` this rule applies to, from 1."""
        if not self.order:
            return self.rank
        return self.order.index(surface) + 1 if surface in self.order else len(self.order) + 1


class Left(NamedTuple):
    """A test that is left to be made; `plain` if it holds exactly for the value it names."""

    name: str
    test: Any
    plain: bool


class Live(NamedTuple):
    """A rule that applies to the work, with the tests that are left to be made of each offer."""

    rule: Rule
    left: tuple[Left, ...]
    sentence: str | None
    """The sentence, where it is the same for every offer."""


def holds(test: Any, value: Any) -> bool:
    """Whether one test holds for one value. For an unknown value (None) none does."""
    if value is None:
        return False
    if isinstance(value, tuple):  # several words: one of them will do, `not` speaks of all
        if isinstance(test, dict):
            return all(not holds(test["not"], word) for word in value)
        return any(holds(test, word) for word in value)
    if isinstance(test, dict):
        return (
            ("min" not in test or value >= test["min"])
            and ("max" not in test or value <= test["max"])
            and ("not" not in test or not holds(test["not"], value))
        )
    if isinstance(test, (list, tuple)):
        return value in test
    return bool(value == test)


def matches(tests: Sequence[Left], traits: Mapping[str, Any]) -> bool:
    """Whether every test holds for `traits`."""
    # No all(...), and no call for the plain ones: this is where the time of a decision goes.
    for name, test, plain in tests:
        value = traits[name]
        if value != test and (plain or not holds(test, value)):
            return False
    return True


def live(rules: Sequence[Rule], work: Traits) -> list[Live]:
    """The rules that can still apply once the tests of the work and the call are made, in order.

    `work` holds the traits of those alone.
    """
    found = []
    for rule in rules:
        of_work = [_left(name, test) for name, test in rule.when.items() if TRAITS[name].of == "work"]
        if matches(of_work, work):
            left = tuple(_left(*pair) for pair in rule.when.items() if TRAITS[pair[0]].of != "work")
            same = all(TRAITS[name].of == "work" for name in fields(rule.sentence))
            found.append(Live(rule, left, fill(rule.sentence, work) if same else None))
    return found


def _left(name: str, test: Any) -> Left:
    return Left(name, test, isinstance(test, (str, bool)) and TRAITS[name].type in (Type.TEXT, Type.YES_NO))


@functools.lru_cache(maxsize=512)
def fields(template: str) -> tuple[str, ...]:
    """The names in braces of a template. Raises `ValueError` for anything but plain names."""
    names = []
    for _, name, spec, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        if not name.isidentifier() or spec or conversion:
            raise ValueError(f"{{{name}}} is no plain name in braces")
        names.append(name)
    return tuple(names)


def fill(template: str, traits: Traits) -> str:
    """The sentence that `template` makes of `traits`."""
    names = fields(template)
    if not names:
        return (
            template.replace("{{", "{").replace("}}", "}") if "{" in template or "}" in template else template
        )
    return template.format_map({name: _text(traits[name]) for name in names})


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(value)
    return "unknown" if value is None else str(value)
