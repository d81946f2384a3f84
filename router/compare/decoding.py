"""A receipt as typed records, made from the table of the schema: checked and compared at the speed of C."""

from __future__ import annotations

import functools
import keyword
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import msgspec

from compute_router.receipt.facts import MAX_INT, MOST_TEXT, missing
from compute_router.receipt.schema import BY_PATH, ENUMS, ITEMS, TABLE

__all__ = ["FACTS", "NOBODY", "SKIPPED", "Comparability", "Fact", "Head", "Reason", "codec"]


class Fact(msgspec.Struct, gc=False):
    """A fact as it stands in a receipt. `v` is checked for the type of its field."""

    at: int | msgspec.UnsetType = msgspec.UNSET
    src: str | msgspec.UnsetType = msgspec.UNSET
    v: Any = None
    why: str | msgspec.UnsetType = msgspec.UNSET

    @property
    def missing(self) -> str:
        """`unobserved` or `not_applicable` of a fact without a value, else nothing."""
        if self.v is not None:
            return ""
        return missing({"v": None, "why": self.why if isinstance(self.why, str) else ""})


NOBODY = Fact(why="unobserved")
FACTS: set[type] = {Fact}
"""The types of facts, one for each field that is read."""
_UNREAD = """
artifacts lifecycle nodes plugins redactions decision offer client frontier checks.own promotion.criteria
steady.step_us started_by.ids workload.digest outcome.log_tail_sha256 outcome.detail code.message code.branch
"""
SKIPPED = frozenset(_UNREAD.split())
"""Fields and sections that no comparison looks at: they are hashed, but not read."""
_Int = Annotated[int, msgspec.Meta(ge=0, le=MAX_INT)]
_Text = Annotated[str, msgspec.Meta(max_length=MOST_TEXT)]
_TYPES: dict[str, Any] = {
    "int": _Int,
    "signed": Annotated[int, msgspec.Meta(ge=-MAX_INT, le=MAX_INT)],
    "bool": bool,
    "decimal": Annotated[str, msgspec.Meta(pattern=r"^-?(0|[1-9][0-9]{0,39})(\.[0-9]{1,40})?$")],
    "json": dict[str, Any],
    "texts": tuple[_Text, ...],
    "numbers": tuple[_Int, ...],
    "map": dict[str, _Text],
}


def _type(type_: str) -> Any:
    """What the schema's `type_` is decoded as."""
    name, _, rest = type_.partition(":")
    if name == "enum":
        return Literal[ENUMS[rest]]
    return tuple[_item(rest), ...] if name == "list" else _TYPES.get(name, _Text)  # type: ignore[misc]


def _struct(name: str, fields: Mapping[str, Any], **more: Any) -> Any:
    """A record of these fields, in the order of their names, any of which may be left out."""
    renamed = {f"{key}_": key for key in fields if keyword.iskeyword(key)}
    rows = [
        (f"{key}_" if keyword.iskeyword(key) else key, fields[key] | msgspec.UnsetType, msgspec.UNSET)
        for key in sorted(fields)
    ]
    return msgspec.defstruct(name, rows, rename=renamed or None, gc=False, **more)


@functools.cache
def _item(name: str) -> Any:
    return _struct(f"Item_{name}", {key: _type(type_) | None for key, type_ in ITEMS[name].items()})


def _fact(path: str) -> Any:
    """The type of one fact, `v` being of its field's type."""
    made = msgspec.defstruct("Fact", [("v", _type(BY_PATH[path].type) | None, None)], bases=(Fact,), gc=False)
    FACTS.add(made)
    return made


def _context() -> Any:
    """The type of `context`: sections of facts by the table of the schema; of what is skipped, any JSON."""
    tree: dict[str, Any] = {}
    for field in TABLE:
        if field.block != "receipt":
            *parents, last = field.path.split(".")
            at = tree
            for name in parents:
                at = at.setdefault(name, {})
            at[last] = field.path

    def made(path: str, node: Any) -> Any:
        if path in SKIPPED:
            return msgspec.Raw
        if isinstance(node, str):
            return _fact(node)
        return _struct("Section", {key: made(f"{path}.{key}".lstrip("."), node[key]) for key in node})

    return made("", tree)


class Comparability(msgspec.Struct, gc=False):
    fields: msgspec.Raw
    key: str


class Reason(msgspec.Struct, gc=False):
    """Why a receipt is of no better class of evidence."""

    class_: str = msgspec.field(name="class")
    code: str
    sentence: str


class Head(msgspec.Struct, gc=False):
    """The top of a receipt, in the order of its canonical bytes."""

    attempt: Annotated[int, msgspec.Meta(ge=1, le=MAX_INT)]
    chain: msgspec.Raw
    comparability: Comparability
    context: Any
    created_us: _Int
    evidence_class: Any
    evidence_reasons: tuple[Reason, ...]
    idempotency_key: _Text
    kind: _Text
    measured: msgspec.Raw | msgspec.UnsetType
    measured_sha256: str | None
    purpose: Any
    receipt_id: str | msgspec.UnsetType
    rules: _Int
    run_id: _Text
    schema: str
    signatures: msgspec.Raw | msgspec.UnsetType


@functools.cache
def codec() -> tuple[Any, Callable[[bytes], Any], Callable[[Any], bytes]]:
    """Type, decoder and encoder of a whole receipt; made when the first one is read."""
    head = msgspec.defstruct(
        "Receipt",
        [
            ("context", _context()),
            ("evidence_class", Literal[ENUMS["evidence"]]),
            ("purpose", Literal[ENUMS["purpose"]]),
        ],
        bases=(Head,),
        gc=False,
    )
    return head, msgspec.json.Decoder(head, float_hook=_no_float).decode, msgspec.json.Encoder().encode


def _no_float(text: str) -> Any:
    raise ValueError(f"{text[:20]} is a float; decimals are strings")
