"""A receipt as typed records, made from the table of the schema: checked and compared at the speed of C."""

from __future__ import annotations

import functools
import keyword
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import msgspec

from compute_router.receipt.facts import MAX_INT, MOST_TEXT
from compute_router.receipt.schema import BY_PATH, ENUMS, ITEMS, TABLE

__all__ = [
    "NOBODY",
    "SEEN",
    "SKIPPED",
    "Comparability",
    "Fact",
    "Head",
    "Reason",
    "attribute",
    "codec",
    "skipped",
]


class Fact(msgspec.Struct, gc=False):
    """A fact as it stands in a receipt. `v` is checked for the type of its field."""

    at: int | msgspec.UnsetType = msgspec.UNSET
    src: str | msgspec.UnsetType = msgspec.UNSET
    v: Any = None
    why: str | msgspec.UnsetType = msgspec.UNSET


NOBODY = Fact(why="unobserved")
_SORTED = msgspec.json.Encoder(order="sorted")
_SEEN = """
study.id study.sha256 study.index study.n_planned study.arm study.arms study.block study.order_seed
study.vary study.margin workload.name surface backend hw.match hw.observed.sku hw.observed.count
hw.observed.cotenants hw.observed.errors hw.observed.throttle_reasons kernel.requested kernel.observed
compile.recompiles startup.class startup.seeding cache storage volumes code.dirty code.diff_sha256
steady.n_steps steady.inside steady.warmup_steps_discarded metrics.values metrics.primary numerics.seed
clock.offset_us caveats promotion.status cost.currency cost.estimate cost.actual outcome.state
outcome.reason_code outcome.started_us outcome.ended_us checks.end_marker checks.eval_off
checks.kernel_truth checks.success mem.peak_alloc_bytes mem.host_rss_peak mem.host_rss_scope
distributed.first_step_us timing.queue_us timing.image_us timing.boot_us timing.stage_in_us timing.run_us
timing.bootstrap_us timing.import_us timing.compile_us timing.first_step_us timing.warmup_us
timing.steady_us timing.eval_us timing.checkpoint_us timing.idle_us hw.observed.clock_sm_mhz clock.boot_id
"""
SEEN = tuple(_SEEN.split())
"""What rules, figures and tables ask every receipt for."""
SKIPPED = frozenset(
    f.path
    for f in TABLE
    if f.block != "receipt" and f.cls == "I" and f.path not in {*SEEN, "timing.submit_us"}
)
"""Fields that no rule looks at: they are hashed, and decoded only if somebody asks for them by name."""
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


@functools.cache
def _fact(path: str) -> Any:
    """The type of one fact, `v` being of its field's type."""
    return msgspec.defstruct("Fact", [("v", _type(BY_PATH[path].type) | None, None)], bases=(Fact,), gc=False)


def attribute(path: str) -> str:
    """What a path of the schema is called among the attributes of the decoded records."""
    return ".".join(f"{part}_" if keyword.iskeyword(part) else part for part in path.split("."))


def skipped(context: Any, path: str) -> Fact:
    """A fact of `SKIPPED`, decoded now; nobody's if it is not there or not as the schema has it."""
    node = context
    try:
        for name in path.split("."):
            node = node[name] if isinstance(node, dict) else getattr(node, attribute(name))
            if isinstance(node, msgspec.Raw):
                raw, node = bytes(node), msgspec.json.decode(node)
                if _SORTED.encode(node) != raw:
                    return NOBODY
        found: Fact = msgspec.convert(node, _fact(path))
    except (AttributeError, KeyError, ValueError, RecursionError):
        return NOBODY
    return found


def _context() -> Any:
    """The type of `context`: sections of facts by the table of the schema; of what is skipped, any JSON. A
    section of which all is skipped is skipped as one."""
    tree: dict[str, Any] = {}
    for field in TABLE:
        if field.block != "receipt":
            *parents, last = field.path.split(".")
            at = tree
            for name in parents:
                at = at.setdefault(name, {})
            at[last] = field.path

    def made(node: Any) -> Any:
        if isinstance(node, str):
            return msgspec.Raw if node in SKIPPED else _fact(node)
        parts = {key: made(node[key]) for key in node}
        if all(part is msgspec.Raw for part in parts.values()):
            return msgspec.Raw
        return _struct("Section", parts)

    return made(tree)


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
