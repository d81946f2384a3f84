"""One receipt as a comparison keeps it: what the rules ask for, and no more; the rest is read again if asked.

A thousand receipts are some forty megabytes of files and as much of decoded records. Touching that memory
would take longer than decoding does, so what no rule asks for is let go as soon as its digest is checked.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

import msgspec

from compute_router.compare.decoding import NOBODY, SEEN, SKIPPED, Fact, Reason, attribute, skipped
from compute_router.receipt.evidence import comparability, evidence
from compute_router.receipt.schema import TABLE

__all__ = ["KEYED", "WARNED", "Loaded"]

_OWN_RULES = """
numerics.seed hw.observed.temp_c_max hw.observed.clock_sm_mhz clock.offset_us clock.stepped_us
hw.observed.throttle_reasons compile.recompiles steady.n_steps steady.inside hw.observed.errors
hw.observed.cotenants hw.match
"""
_NOISE = frozenset(_OWN_RULES.split())
"""Fields of class W that rules of their own judge, or that differ in any two runs."""
WARNED = tuple(f.path for f in TABLE if f.cls in ("W", "V") and f.path not in _NOISE)
"""Fields of which a difference is told."""
KEYED = {f.path: frozenset(f.sources) for f in TABLE if f.cls == "K" and f.block != "receipt"}
"""Fields that must be equal, and the sources that are good enough for each."""
_KEYED = tuple(KEYED)
_MISSED = (
    *WARNED,
    *("kernel.observed", "hw.observed.cotenants", "hw.observed.throttle_reasons", "compile.recompiles"),
)
_SUBMIT = "timing.submit_us"


class Loaded:
    """One receipt as a comparison needs it. Its content is what its id stands for."""

    __slots__ = (
        *("_again", "_fields", "_head", "_raw", "attempt", "evidence", "inapplicable", "key", "kind"),
        *("measured", "purpose", "reasons", "receipt_id", "ref", "run_id", "seen", "signatures"),
        *("submitted_us", "warned", "weak"),
    )

    def __init__(
        self,
        ref: str,
        head: Any,
        read_again: Callable[[], Any],
        receipt: Mapping[str, Any] | None = None,
    ) -> None:
        """`head` is a receipt as `decoding.codec` decodes it, proven to be what its id says; `read_again`
        gives an equal one, or None where the file is gone. With the whole `receipt` its class of evidence
        and its key are made anew."""
        self.ref = ref
        self._again, self._head = read_again, None
        self.receipt_id: str = head.receipt_id
        self.run_id: str = head.run_id
        self.attempt: int = head.attempt
        self.kind: str = head.kind
        self.purpose: str = head.purpose
        self.measured: bool = memoryview(head.measured).nbytes != 4 or bytes(head.measured) != b"null"
        """Whether the machine left measurements."""
        self.signatures: bytes = bytes(head.signatures)
        """The detached signatures, as JSON."""
        self.key: str = head.comparability.key
        self.evidence: str = head.evidence_class
        self.reasons: tuple[Reason, ...] = head.evidence_reasons
        self._raw = _shared(bytes(head.comparability.fields))
        self._fields: dict[str, Any] | None = None
        if receipt is not None:
            made = comparability(receipt)
            self.key, self._fields = made["key"], made["fields"]
            self.evidence, reasons = evidence(receipt)
            self.reasons = msgspec.convert(reasons, tuple[Reason, ...])
        context = head.context
        self.seen: dict[str, Any] = dict(zip(SEEN, _parts(context, SEEN, "v"), strict=True))
        """The values that every comparison asks for, by path."""
        self.warned: tuple[Any, ...] = _parts(context, WARNED, "v")
        """The values of `WARNED`, in order."""
        self.weak: tuple[str, ...] = _weak(_parts(context, _KEYED, "src"))
        """Fields of class K that are told by a source that is not good enough."""
        self.inapplicable: frozenset[str] = _inapplicable(_parts(context, _MISSED, "why"))
        """Of `WARNED` and of what may not apply beside them, the fields that do not apply."""
        submit = _fact(context, _SUBMIT)
        at, took = submit.at, submit.v
        told = at - took if isinstance(at, int) and isinstance(took, int) else None
        self.submitted_us: int | None = told
        """When the run was submitted, by the client's clock, epoch."""

    @property
    def fields(self) -> Mapping[str, Any]:
        """The value of every field that must be equal, by path, as `evidence.comparability` makes it."""
        found = self._fields
        if found is None:
            found = self._fields = msgspec.json.decode(self._raw, type=dict[str, Any])
        return found

    def value(self, path: str) -> Any:
        """The value of the fact at a path, None where it has none."""
        try:
            return self.seen[path]
        except KeyError:
            return self.fact(path).v

    def fact(self, path: str) -> Fact:
        """The fact at any path of the schema, out of the receipt read again; nobody's where the receipt is
        older than the field, or is not there any more."""
        if self._head is None:
            self._head = self._again()
        return NOBODY if self._head is None else _fact(self._head.context, path)


def _fact(context: Any, path: str) -> Fact:
    try:
        found = _getter(path)(context)
    except AttributeError:
        found = None
    if isinstance(found, Fact):
        return found
    return skipped(context, path) if path in SKIPPED else NOBODY


def _parts(context: Any, paths: tuple[str, ...], part: str) -> tuple[Any, ...]:
    """One part (`v`, `src`, `why`) of the facts at several paths, quicker than one by one."""
    try:
        return _getters(paths, part)(context)
    except AttributeError:
        # A receipt of older rules has not every field.
        return tuple(getattr(_fact(context, path), part) for path in paths)


@functools.cache
def _getters(paths: tuple[str, ...], part: str) -> Callable[[Any], tuple[Any, ...]]:
    return attrgetter(*(f"{attribute(path)}.{part}" for path in paths))


@functools.cache
def _getter(path: str) -> Callable[[Any], Any]:
    return attrgetter(attribute(path))


# What most receipts of one comparison have in common is made once.


@functools.lru_cache(maxsize=256)
def _shared(raw: bytes) -> bytes:
    return raw


@functools.lru_cache(maxsize=256)
def _weak(sources: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(
        path
        for src, (path, good) in zip(sources, KEYED.items(), strict=True)
        if src and src not in good and src.partition(":")[0] not in good
    )


@functools.lru_cache(maxsize=256)
def _inapplicable(whys: tuple[Any, ...]) -> frozenset[str]:
    return frozenset(
        path
        for path, why in zip(_MISSED, whys, strict=True)
        if isinstance(why, str) and why.startswith("not_applicable")
    )
