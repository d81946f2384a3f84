"""Frozen records, their one JSON form, and the digests made from it.

Canonical bytes are RFC 8785 (JCS) restricted to what it and the standard library agree on: no
floats, ASCII keys, integers of magnitude below 2**53. Under those limits
`json.dumps(sort_keys=True, separators=(",", ":"), ensure_ascii=False)` is JCS byte for byte.
Times are integer microseconds, sizes integer bytes, other decimals are strings.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from typing import Any, TypeVar

import msgspec

from compute_router.errors import InputError

__all__ = ["Record", "canonical", "decode", "digest", "encode", "key_run_id", "new_run_id", "plain"]

MAX_INT = 2**53 - 1
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford base 32, lower case
T = TypeVar("T")


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every record that is written to disk or crosses a contract: frozen, keyword-only.

    Subclasses repeat `frozen=True, kw_only=True`: msgspec applies the latter to the fields of one
    class only, and type checkers read the former from the class itself.
    """


def plain(value: Any) -> Any:
    """`value` as dicts, lists, strings, integers, booleans and None; a record becomes a dict."""
    return msgspec.to_builtins(value)


def _check(value: Any, path: str) -> None:
    if value is None or isinstance(value, (str, bool)):
        return
    if isinstance(value, int):
        if abs(value) > MAX_INT:
            raise ValueError(f"{path}: {value} does not fit in 53 bits")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str) or not key.isascii():
                raise ValueError(f"{path}: key {key!r} is not ASCII text")
            _check(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _check(item, f"{path}[{index}]")
    else:
        raise ValueError(f"{path}: {type(value).__name__} has no canonical form (decimals are strings)")


def canonical(value: Any) -> bytes:
    """The canonical UTF-8 bytes of a record or of plain JSON data.

    Raises `ValueError`, naming the path, for floats, for integers of 2**53 or more and for
    keys that are not ASCII text.
    """
    data = plain(value)
    _check(data, "$")
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # A lone surrogate (an undecodable file name) has no UTF-8 form; keep it visible as an escape.
    return text.encode("utf-8", "backslashreplace")


def digest(value: Any) -> str:
    """sha256 of the canonical bytes, as 64 lower-case hex digits."""
    return hashlib.sha256(canonical(value)).hexdigest()


def encode(value: Any) -> bytes:
    """What is written to a file: the canonical bytes and a line end."""
    return canonical(value) + b"\n"


def decode(type: type[T], data: bytes, *, what: str = "record") -> T:
    """Read `data` as `type`.

    Raises `InputError` whose text names the path of the first thing wrong (`$.needs.nodes`).
    """
    try:
        return msgspec.json.decode(data, type=type)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise InputError(f"{what} cannot be read: {e}") from e


def _ulid(milliseconds: int, entropy: int) -> str:
    number = (milliseconds << 80) | entropy
    return "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))


def new_run_id() -> str:
    """A fresh run id: a lower-case ULID (26 characters), sortable by creation time."""
    return _ulid(time.time_ns() // 1_000_000, int.from_bytes(os.urandom(10), "big"))


def key_run_id(key: str) -> str:
    """The run id that belongs to an idempotency key: the same key always gives the same id.

    Its time part is taken from the digest too, so that such an id never claims a creation time.
    """
    value = int.from_bytes(hashlib.sha256(b"route.key/1\0" + key.encode()).digest()[:16], "big")
    return _ulid((value >> 80) & (2**48 - 1), value & (2**80 - 1))
