"""Reads the user's own rules, and says of a wrong one which it is and what was probably meant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

from compute_router.policies import prices
from compute_router.policies.conditions import Effect, Rule, fields
from compute_router.policies.never import NEVER
from compute_router.policies.traits import TRAITS, Trait, Type
from compute_router.records import MAX_INT

__all__ = ["KEYS", "WrongRule", "read_rules"]

KEYS = ("id", "when", "effect", "surface", "backend", "rank", "sentence", "mend")
_RESERVED = {"rules", "unnamed", *(rule.id for rule in NEVER)}
_MOST_RANK = 1000


class WrongRule(Exception):
    """A rule cannot be read: `what` names it and what is wrong, `mend` what was probably meant."""

    def __init__(self, what: str, mend: str) -> None:
        super().__init__(what)
        self.what, self.mend = what, mend


def read_rules(tables: Sequence[Mapping[str, object]]) -> tuple[Rule, ...]:
    """The rules that the tables of `[[rules]]` say, in their order. Raises `WrongRule`."""
    rules: list[Rule] = []
    for number, table in enumerate(tables, 1):
        rule = _rule(table, number)
        if rule.id in {other.id for other in rules}:
            raise WrongRule(f"two rules are called {rule.id!r}", "give each an id of its own")
        rules.append(rule)
    return tuple(rules)


def _rule(table: Mapping[str, object], number: int) -> Rule:
    if not isinstance(table, Mapping):
        raise WrongRule(f"rule {number} is no table", "write each as [[rules]]")
    name = table.get("id", f"rule-{number}")
    if not isinstance(name, str) or not name.strip() or len(name) > 80:
        raise WrongRule(f"the id of rule {number} is no short text", 'id = "what-it-is-for"')
    where = f"rule {name!r}"
    if name in _RESERVED:
        raise WrongRule(f"{where} has the id of a rule that is built in", "give it another id")
    for key in table:
        if key not in KEYS:
            raise WrongRule(f"{where} has no key {key!r}", _near(key, KEYS))
    effect = table.get("effect")
    if effect not in ("refuse", "prefer"):
        raise WrongRule(f"{where} has the effect {effect!r}", 'effect = "refuse" or effect = "prefer"')
    rank = table.get("rank", 1)
    if not _whole(rank) or not 1 <= rank <= _MOST_RANK:
        raise WrongRule(f"{where} has the rank {rank!r}", f"a whole number from 1 to {_MOST_RANK}")
    if effect == "refuse" and "rank" in table:
        raise WrongRule(f"{where} refuses and has a rank", "leave rank out, or prefer")
    when = _when(where, table.get("when", {}))
    for key in ("surface", "backend"):
        if key in table:
            if key in when:
                raise WrongRule(f"{where} names {key} twice", f"once, as {key} or in when")
            when[key] = _test(where, key, TRAITS[key], table[key])
    if effect == "refuse" and not when:
        raise WrongRule(f"{where} would refuse every place", "say when it applies: when = { ... }")
    default = f"your rule {name} {'refuses' if effect == 'refuse' else 'prefers'} it"
    return Rule(
        id=name,
        effect=Effect(effect),
        when=when,
        rank=rank,
        sentence=_template(where, "sentence", table.get("sentence"), default),
        mend=_template(where, "mend", table.get("mend"), f"change your rule {name}, or --policy auto")
        if effect == "refuse"
        else "",
    )


def _template(where: str, key: str, text: object, default: str) -> str:
    if text is None:
        return default.replace("{", "{{").replace("}", "}}")
    if not isinstance(text, str) or not text.strip():
        raise WrongRule(f"{where}: its {key} is no text", f'{key} = "..."')
    try:
        names = fields(text)
    except ValueError as e:
        raise WrongRule(
            f"{where}: its {key} cannot be read: {e}", "name traits as {surface}; a brace itself is {{ or }}"
        ) from None
    for name in names:
        if name not in TRAITS:
            raise WrongRule(f"{where}: its {key} names no trait with {{{name}}}", _near(name, TRAITS))
    return text


def _when(where: str, given: object) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise WrongRule(f"{where}: its when is no table", 'when = { kind = "train" }')
    known = [name for name, trait in TRAITS.items() if trait.of != "sentence"]
    when = {}
    for name, test in given.items():
        if name not in known:
            raise WrongRule(f"{where} tests {name!r}, which is no trait", _near(str(name), known))
        when[str(name)] = _test(where, str(name), TRAITS[str(name)], test)
    return when


def _test(where: str, name: str, trait: Trait, test: object) -> Any:
    """A test as `holds` wants it; decimals become billionths."""
    if isinstance(test, Mapping):
        ordered = trait.type in (Type.NUMBER, Type.DECIMAL)
        allowed = ("min", "max", "not") if ordered else ("not",)
        for key in test:
            if key not in allowed:
                raise WrongRule(f"{where}: {name} has no test {key!r}", _near(str(key), allowed))
        if not test:
            raise WrongRule(f"{where}: the test of {name} is empty", f"one of {', '.join(allowed)}")
        return {
            str(key): _values(where, name, trait, value)
            if key == "not"
            else _value(where, name, trait, value)
            for key, value in test.items()
        }
    return _values(where, name, trait, test)


def _values(where: str, name: str, trait: Trait, test: object) -> Any:
    if isinstance(test, (list, tuple)):
        if not test:
            raise WrongRule(f"{where}: the list of {name} is empty", "name one at least")
        return [_value(where, name, trait, each) for each in test]
    return _value(where, name, trait, test)


def _value(where: str, name: str, trait: Trait, value: object) -> Any:
    if trait.type is Type.YES_NO:
        if isinstance(value, bool):
            return value
        raise _wrong(where, name, value, "true or false")
    if trait.type is Type.NUMBER:
        if _whole(value) and abs(value) <= MAX_INT:
            return value
        raise _wrong(where, name, value, "a whole number")
    if trait.type is Type.DECIMAL:
        text = str(value) if _whole(value) else value
        figure = prices.amount(text) if isinstance(text, str) else None
        if figure is None:
            raise _wrong(where, name, value, 'a decimal in quotes, as "4.50"')
        return figure
    if not isinstance(value, str):
        raise _wrong(where, name, value, "text")
    if trait.values and value not in trait.values:
        raise WrongRule(f"{where}: {name} is never {value!r}", _near(value, trait.values))
    return value


def _whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _wrong(where: str, name: str, value: object, wanted: str) -> WrongRule:
    return WrongRule(f"{where}: {name} cannot be {repr(value)[:40]}", wanted)


def _near(word: str, known: Iterable[str]) -> str:
    import difflib

    words = list(known)
    close = difflib.get_close_matches(word, words, 1, 0.5)
    return f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(words)}"
