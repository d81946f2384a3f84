"""Bytes that are sent by content: what they are, and how they are read from any offset on."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["Blob", "of_file", "pieces"]

PIECE = 1 << 18


@dataclasses.dataclass(frozen=True)
class Blob:
    """Some bytes to be sent, by content. `pieces(offset)` gives them from `offset` on as (offset, piece,
    last); it raises `InputError` if they are no longer what `sha256` says."""

    sha256: str
    size: int
    pieces: Callable[[int], Iterator[tuple[int, bytes, bool]]]
    shard: bool = False
    """Whether it goes into a volume and not into the tree."""


def of_file(path: Path) -> Blob:
    """A whole file, hashed now. Raises `OSError`."""
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = os.fstat(file.fileno()).st_size
    return Blob(sha256, size, functools.partial(pieces, path))


def pieces(path: Path, offset: int) -> Iterator[tuple[int, bytes, bool]]:
    """The bytes of a file from `offset` on as (offset, piece, last). Not hashed: who takes them does that."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(offset)
        while offset < size and (piece := file.read(min(PIECE, size - offset))):
            last = offset + len(piece) >= size
            yield offset, piece, last
            if last:
                return
            offset += len(piece)
    yield offset, b"", True
