"""Reads a receipt for comparison: quickly where it is as it was made, never trusting it, never raising.

The quick way decodes a receipt into typed records, the measured block unread, and encodes them again:
where the bytes are the same, they are canonical, no key stands twice and every type is the schema's, so
that the digest can be taken of them as they are. Everything else goes the slow way, which says why not.
"""

from __future__ import annotations

import functools
import hashlib
import json
import keyword
import os
import stat
from collections.abc import Callable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec

from compute_router.compare.decoding import FACTS, NOBODY, Comparability, Fact, Reason, codec
from compute_router.receipt.building import receipt_id
from compute_router.receipt.evidence import comparability, evidence
from compute_router.receipt.schema import RULES, SCHEMA
from compute_router.receipt.verifying import MOST_BYTES
from compute_router.records import canonical

__all__ = ["Loaded", "Unread", "load"]

UNREAD = {
    "UNREADABLE": "name a receipt.json, a run or its folder",
    "TOO_LARGE": "no receipt is this large; name the receipt.json itself",
    "NOT_JSON": "bring the receipt again from where it was made",
    "NO_RECEIPT": "name a receipt.json, a run or its folder",
    "NEWER_SCHEMA": "upgrade compute-router: pip install -U compute-router",
    "NOT_CANONICAL": "use the file as it was written: something formatted or edited it since",
    "BAD_VALUE": "see `route receipt verify`: a receipt of ours never says that",
    "HASH_MISMATCH": "bring the receipt again from the store it was made in; a changed one proves nothing",
}
"""Why a file cannot be compared, and how to mend it."""


_SORTED = msgspec.json.Encoder(order="sorted")


class Unread(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is no receipt, or not the one it says it is: one line what, one line mend."""

    ref: str
    code: str
    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.code}: {self.ref}: {self.what}"


class Loaded:
    """One receipt as a comparison needs it. Its content is what its id stands for."""

    __slots__ = ("_fields", "_head", "_raw", "evidence", "key", "reasons", "receipt_id", "ref")

    def __init__(self, ref: str, head: Any, receipt_id: str, again: Mapping[str, Any] | None = None) -> None:
        self.ref, self.receipt_id, self._head = ref, receipt_id, head
        self._raw = head.comparability.fields
        self._fields: dict[str, Any] | None = None
        self.key: str = head.comparability.key
        self.evidence: str = head.evidence_class
        self.reasons: tuple[Reason, ...] = head.evidence_reasons
        if again is not None:
            made = comparability(again)
            self.key, self._fields = made["key"], made["fields"]
            self.evidence, reasons = evidence(again)
            self.reasons = msgspec.convert(reasons, tuple[Reason, ...])

    @property
    def run_id(self) -> str:
        return str(self._head.run_id)

    @property
    def attempt(self) -> int:
        return int(self._head.attempt)

    @property
    def kind(self) -> str:
        return str(self._head.kind)

    @property
    def purpose(self) -> str:
        return str(self._head.purpose)

    @property
    def measured(self) -> bool:
        """Whether the machine left measurements."""
        return bytes(self._head.measured) != b"null"

    @property
    def signatures(self) -> bytes:
        """The detached signatures, as JSON."""
        return bytes(self._head.signatures)

    @property
    def fields(self) -> dict[str, Any]:
        """The value of every field that must be equal, by path, as `evidence.comparability` makes it."""
        found = self._fields
        if found is None:
            found = self._fields = msgspec.json.decode(self._raw, type=dict[str, Any])
        return found

    def fact(self, path: str) -> Fact:
        """The fact at a path of the schema; nobody's where the receipt is older than the field."""
        try:
            found = _getter(path)(self._head.context)
        except AttributeError:
            return NOBODY
        return found if isinstance(found, Fact) else NOBODY

    def facts(self, paths: tuple[str, ...]) -> tuple[Fact, ...]:
        """The facts at several paths, quicker than one by one."""
        try:
            found = _getters(paths)(self._head.context)
        except AttributeError:
            return tuple(self.fact(path) for path in paths)
        if FACTS.issuperset(map(type, found)):
            return found
        # A receipt of older rules has not every field.
        return tuple(fact if isinstance(fact, Fact) else NOBODY for fact in found)

    def value(self, path: str) -> Any:
        """The value of the fact at a path, None where it has none."""
        try:
            return _getter(path)(self._head.context).v
        except AttributeError:
            return None


@functools.cache
def _getters(paths: tuple[str, ...]) -> Callable[[Any], tuple[Fact, ...]]:
    return attrgetter(*(_attribute(path) for path in paths))


def _attribute(path: str) -> str:
    return ".".join(f"{p}_" if keyword.iskeyword(p) else p for p in path.split("."))


@functools.cache
def _getter(path: str) -> Callable[[Any], Any]:
    return attrgetter(_attribute(path))


def load(source: Path | bytes, *, ref: str = "") -> Loaded | Unread:
    """The receipt in a file, a run's folder or bytes; or in one line why it cannot be compared. Never raises.

    `ref` is what it is called in the answer; the path if nothing is given. That the stored class of
    evidence and key are what the rules of this version say is not made sure of here (`verify` does), unless
    they were made by other rules: then both are made again. Signatures stand outside of the id: they are
    for `route receipt verify` to judge, and a change in one is found there.
    """
    if isinstance(source, bytes):
        data: bytes | Unread = source
    else:
        ref = ref or str(source)
        data = _read(source, ref)
    if isinstance(data, Unread):
        return data
    if len(data) > MOST_BYTES:
        return _unread(ref, "TOO_LARGE", f"it is larger than {MOST_BYTES >> 20} MiB")
    try:
        return _quickly(data, ref) or _slowly(data, ref)
    # The one promise of this function: whatever the bytes are, the answer is a record.
    except Exception as e:
        return _unread(ref, "BAD_VALUE", f"it cannot be judged ({type(e).__name__})")


def _unread(ref: str, code: str, what: str) -> Unread:
    line = " ".join(what.split())
    return Unread(ref=ref, code=code, what=line[:300], mend=UNREAD[code])


def _read(path: Path, ref: str) -> bytes | Unread:
    """The bytes of a regular file. What is no such file is never waited for."""
    try:
        if os.path.isdir(path):
            path = path / "receipt.json"
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                return _unread(ref, "UNREADABLE", "it is no regular file")
            if found.st_size > MOST_BYTES:
                return _unread(ref, "TOO_LARGE", f"it is larger than {MOST_BYTES >> 20} MiB")
            with open(fd, "rb", buffering=0, closefd=False) as f:
                return f.read(found.st_size + 1) if found.st_size else f.readall()[: MOST_BYTES + 1]
        finally:
            os.close(fd)
    except (OSError, ValueError) as e:
        why = getattr(e, "strerror", None) or type(e).__name__
        return _unread(ref, "UNREADABLE", f"it cannot be read: {why}")


def _quickly(data: bytes, ref: str) -> Loaded | None:
    """A receipt whose bytes are exactly those its typed records encode to; None for the slow way."""
    _, decode, encode = codec()
    try:
        head = decode(data)
    except (ValueError, RecursionError):
        return None
    if head.schema != SCHEMA or head.rules != RULES:
        return None
    measured, told, signatures = head.measured, head.receipt_id, head.signatures
    if msgspec.UNSET in (measured, told, signatures):
        return None
    block, apart = bytes(measured), bytes(signatures)
    if apart != b"[]" and _SORTED.encode(msgspec.json.decode(apart)) != apart:
        return None
    # These three are left out of what is encoded: two are not hashed, and the third is as long as the rest.
    head.measured = head.receipt_id = head.signatures = msgspec.UNSET
    rest = encode(head)
    head.measured, head.receipt_id, head.signatures = measured, told, signatures
    # In a text every quote is escaped, and after the context there are only texts: these are their keys.
    one, two = rest.rindex(b',"measured_sha256":'), rest.rindex(b',"rules":')
    first = b'%b,"measured":%b%b' % (rest[:one], block, rest[one:two])
    again = b'%b,"receipt_id":"%b"%b,"signatures":%b}' % (first, told.encode(), rest[two:-1], apart)
    if not (data == again or data == again + b"\n"):
        return None
    content = hashlib.sha256(first)
    content.update(rest[two:])
    if content.hexdigest() != told:
        return None
    if not _sound(block, head.measured_sha256, head.comparability):
        return None
    return Loaded(ref, head, told)


def _sound(measured: bytes, told: str | None, key: Comparability) -> bool:
    block = None if measured == b"null" else hashlib.sha256(measured).hexdigest()
    return block == told and hashlib.sha256(bytes(key.fields)).hexdigest() == key.key


def _slowly(data: bytes, ref: str) -> Loaded | Unread:
    """What the bytes are, one question after the other, the first wrong answer being the reason."""
    try:
        receipt = json.loads(data.decode(), object_pairs_hook=_once, parse_constant=_no_constant)
    except RecursionError:
        return _unread(ref, "NOT_JSON", "it is nested too deeply")
    except UnicodeDecodeError:
        return _unread(ref, "NOT_JSON", "it is no text in UTF-8")
    except ValueError as e:
        return _unread(ref, "NOT_JSON", f"it is no JSON of a receipt: {str(e)[:200]}")
    schema = receipt.get("schema") if isinstance(receipt, dict) else None
    if not isinstance(schema, str) or not schema.startswith("route.receipt/"):
        return _unread(ref, "NO_RECEIPT", "it is no receipt")
    major = schema.partition("/")[2]
    if major.isdecimal() and len(major) < 9 and int(major) > 1:
        return _unread(ref, "NEWER_SCHEMA", f"it is a {schema}, and this version reads {SCHEMA}")
    if schema != SCHEMA:
        return _unread(ref, "NO_RECEIPT", f"{schema[:80]!r} is no schema of a receipt")
    try:
        whole = canonical(receipt)
    except (ValueError, RecursionError) as e:
        return _unread(ref, "NOT_CANONICAL", f"it has no canonical form: {str(e)[:200]}")
    if receipt.get("receipt_id") != receipt_id(receipt):
        return _unread(ref, "HASH_MISMATCH", "its content is not what its id stands for")
    if data not in (whole, whole + b"\n"):
        return _unread(ref, "NOT_CANONICAL", "its bytes are not those of its canonical form")
    block, told = receipt.get("measured"), receipt.get("measured_sha256")
    if told != (None if block is None else hashlib.sha256(canonical(block)).hexdigest()):
        return _unread(ref, "HASH_MISMATCH", "its measured block is not what measured_sha256 stands for")
    if not isinstance(block, (dict, type(None))):
        return _unread(ref, "BAD_VALUE", "measured is no object")
    # An escape for what has no form in UTF-8 (half a pair in a file's name) is no JSON to everyone.
    read = json.dumps(receipt, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "replace"
    )
    try:
        head = msgspec.json.decode(read, type=codec()[0])
    except (msgspec.DecodeError, RecursionError) as e:
        return _unread(ref, "BAD_VALUE", str(e))
    other = head.rules != RULES or read != whole
    if not other and hashlib.sha256(bytes(head.comparability.fields)).hexdigest() != head.comparability.key:
        return _unread(ref, "HASH_MISMATCH", "its comparability key is not what its fields make")
    return Loaded(ref, head, head.receipt_id, receipt if other else None)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of a receipt")
