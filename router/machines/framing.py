"""Frames over a Stream: one JSON line and, where it has a size, that many raw bytes.

Pure functions of bytes; who reads and writes them is `session.py`.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from compute_router.errors import Broken

__all__ = [
    "MOST_BANNER",
    "MOST_HEADER",
    "MOST_PAYLOAD",
    "MOST_REPLY",
    "Decoder",
    "Frame",
    "Greeting",
    "encode",
]

MOST_HEADER = 1 << 20
"""Bytes in one line that we send."""
MOST_PAYLOAD = 1 << 20
"""Bytes behind one line that we send; the payload of `commit` may be 16 times as long."""
MOST_REPLY = 16 << 20
"""Bytes in one line, or behind it, that we take from the other side."""
MOST_BANNER = 1 << 20
"""Bytes of banners and rc files that may stand before the nonce line."""


# Made once: `json.dumps` makes one each time, which a frame for each small file would wait for.
_compact = json.JSONEncoder(separators=(",", ":")).encode


class Frame(NamedTuple):
    """One frame: the line as an object, and the bytes behind it."""

    head: dict[str, Any]
    body: bytes = b""


def encode(head: dict[str, Any], body: bytes = b"") -> bytes:
    """The bytes of one frame. Raises `ValueError` if it is larger than the protocol allows."""
    if body:
        head = {**head, "size": len(body)}
    line = _compact(head).encode() + b"\n"
    most = MOST_PAYLOAD * 16 if head.get("op") == "commit" else MOST_PAYLOAD
    if len(line) > MOST_HEADER or len(body) > most:
        raise ValueError(f"a frame of {len(line)} + {len(body)} bytes is larger than the protocol allows")
    return line + body


class Decoder:
    """Cuts a stream of bytes into frames. Raises `Broken` for what is none: the stream is of no use then."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._head: dict[str, Any] | None = None
        self._size = 0
        self._looked = 0

    @property
    def inside(self) -> bool:
        """Whether a frame has begun and not ended."""
        return bool(self._buffer) or self._head is not None

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> Frame | None:
        """The next whole frame, or None until more bytes are fed."""
        if self._head is None:
            end = self._buffer.find(b"\n", self._looked)
            if end < 0:
                self._looked = len(self._buffer)
                if self._looked > MOST_REPLY:
                    raise Broken("the other side sent a line without an end")
                return None
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            self._looked = 0
            self._head, self._size = _read(line)
        if len(self._buffer) < self._size:
            return None
        frame = Frame(self._head, bytes(self._buffer[: self._size]))
        del self._buffer[: self._size]
        self._head = None
        return frame

    def torn(self) -> Frame | None:
        """The frame that more bytes would have made whole, with those of its payload that were fed."""
        return None if self._head is None else Frame(self._head, bytes(self._buffer))


def _read(line: bytes) -> tuple[dict[str, Any], int]:
    try:
        head = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise Broken(f"the other side sent a line that is no JSON: {line[:60]!r}") from e
    if not isinstance(head, dict):
        raise Broken(f"the other side sent a line that is no object: {line[:60]!r}")
    size = head.get("size", 0)
    if type(size) is not int or not 0 <= size <= MOST_REPLY:
        raise Broken(f"the other side announced a payload of {size!r} bytes")
    return head, size


class Greeting:
    """Finds the nonce line behind banners and whatever else a login prints first."""

    def __init__(self, nonce: str) -> None:
        self._mark = b"\n" + nonce.encode() + b" "
        self._buffer = bytearray(b"\n")
        self.banner = b""

    def feed(self, data: bytes) -> str | None:
        """The text behind the nonce, once its line is complete; what follows is in `rest`.

        Raises `Broken` when more than `MOST_BANNER` bytes came without it.
        """
        self._buffer += data
        start = self._buffer.find(self._mark)
        if start < 0:
            self.banner = bytes(self._buffer[1:400])
            if len(self._buffer) > MOST_BANNER:
                raise Broken(f"no answer within {MOST_BANNER} bytes, which begin {self.banner[:60]!r}")
            return None
        end = self._buffer.find(b"\n", start + len(self._mark))
        if end < 0:
            if len(self._buffer) - start > MOST_HEADER:
                raise Broken("the other side's greeting has no end")
            return None
        text = self._buffer[start + len(self._mark) : end].decode("utf-8", "replace")
        # The line end stays: it may be the one that the next nonce line begins with.
        del self._buffer[:end]
        return text

    @property
    def rest(self) -> bytes:
        """What came behind the last nonce line."""
        return bytes(self._buffer[1:])
