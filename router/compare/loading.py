"""Reads a receipt for comparison: quickly where it is as it was made, never trusting it, never raising.

The quick way decodes a receipt into typed records, the measured block unread, and encodes them again:
where the bytes are the same, they are canonical, no key stands twice and every type is the schema's, so
that the digest can be taken of them as they are. Everything else goes the slow way, which says why not.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import msgspec

from compute_router.compare.decoding import codec
from compute_router.compare.loaded import Loaded
from compute_router.receipt.building import receipt_id
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
_BLOCK = b',"measured":'
_NULL = msgspec.Raw(b"null")


class Unread(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is no receipt, or not the one it says it is: one line what, one line mend."""

    ref: str
    code: str
    what: str
    mend: str

    def __str__(self) -> str:
        return f"{self.code}: {self.ref}: {self.what}"


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
        head, receipt = _head(data, ref), None
        if isinstance(head, tuple):
            head, receipt = head
        if isinstance(head, Unread):
            return head
        return Loaded(ref, head, functools.partial(_again, source, head.receipt_id), receipt)
    # The one promise of this function: whatever the bytes are, the answer is a record.
    except Exception as e:
        return _unread(ref, "BAD_VALUE", f"it cannot be judged ({type(e).__name__})")


def _head(data: bytes, ref: str) -> Any:
    """The receipt as its records, proven to be what its id says; with the whole of it where other rules
    made it; or why it is none."""
    head = _quickly(data)
    if head is None:
        return _slowly(data, ref)
    return head if head.rules == RULES else (head, msgspec.json.decode(data))


def _again(source: Path | str | bytes, told: str) -> Any:
    """The records of a receipt that was read before; None where it is not there any more."""
    data = source if isinstance(source, bytes) else _read(source, "")
    try:
        found = data if isinstance(data, Unread) else _head(data, "")
    except Exception:
        return None
    head = found[0] if isinstance(found, tuple) else found
    return None if isinstance(head, Unread) or head.receipt_id != told else head


def _unread(ref: str, code: str, what: str) -> Unread:
    line = " ".join(what.split())
    return Unread(ref=ref, code=code, what=line[:300], mend=UNREAD[code])


def _read(path: Path | str, ref: str, *, inside: bool = False) -> bytes | Unread:
    """The bytes of a regular file. What is no such file is never waited for."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            found = os.fstat(fd)
            if stat.S_ISDIR(found.st_mode) and not inside:
                return _read(os.path.join(path, "receipt.json"), ref, inside=True)
            if not stat.S_ISREG(found.st_mode):
                return _unread(ref, "UNREADABLE", "it is no regular file")
            if found.st_size > MOST_BYTES:
                return _unread(ref, "TOO_LARGE", f"it is larger than {MOST_BYTES >> 20} MiB")
            data = os.read(fd, found.st_size + 1)
            if len(data) == found.st_size and data:
                return data
            with open(fd, "rb", buffering=0, closefd=False) as f:
                return data + f.read(MOST_BYTES + 1)
        finally:
            os.close(fd)
    except (OSError, ValueError) as e:
        why = getattr(e, "strerror", None) or type(e).__name__
        return _unread(ref, "UNREADABLE", f"it cannot be read: {why}")


def _quickly(data: bytes) -> Any:
    """The records of a receipt whose bytes are exactly those they encode to; None for the slow way."""
    _, decode, encode = codec()
    try:
        head = decode(data)
    except (ValueError, RecursionError):
        return None
    if head.schema != SCHEMA:
        return None
    measured, told, signatures = head.measured, head.receipt_id, head.signatures
    if msgspec.UNSET in (measured, told, signatures):
        return None
    apart = bytes(signatures)
    if apart != b"[]" and _SORTED.encode(msgspec.json.decode(apart)) != apart:
        return None
    # These three are left out of what is encoded: two are not hashed, and the third is as long as the rest.
    head.measured = head.receipt_id = head.signatures = msgspec.UNSET
    rest = encode(head)
    head.measured, head.receipt_id, head.signatures = measured, told, signatures
    # In a text every quote is escaped, and after the context there are only texts: these are their keys.
    one, two = rest.rindex(b',"measured_sha256":'), rest.rindex(b',"rules":')
    first, middle = rest[:one] + _BLOCK, rest[one:two]
    last = b'%b,"receipt_id":"%b"%b,"signatures":%b}' % (middle, told.encode(), rest[two:-1], apart)
    # Nothing stands between them but the block: were another one before it, there would be more.
    begin, size = len(first), memoryview(measured).nbytes
    end = begin + size
    total = end + len(last)
    if len(data) != total and not (len(data) == total + 1 and data.endswith(b"\n")):
        return None
    if not data.startswith(first) or not data.startswith(last, end):
        return None
    view = memoryview(data)
    content = hashlib.sha256(view[: end + len(middle)])
    content.update(rest[two:])
    if content.hexdigest() != told:
        return None
    block = None if measured == _NULL else hashlib.sha256(view[begin:end]).hexdigest()
    if block != head.measured_sha256:
        return None
    key = head.comparability
    if hashlib.sha256(key.fields).hexdigest() != key.key:
        return None
    return head


def _slowly(data: bytes, ref: str) -> Any:
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
    return (head, receipt) if other else head


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of a receipt")
