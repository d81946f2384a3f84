"""The chain of a store's receipts: each names the one before, so that a missing one shows.

`chain.jsonl` is a log written ahead: a header line, then one line `[seq, run id, attempt,
receipt id]` for every receipt, on disk before the receipt has its name, and one line
`[seq, run id, attempt, null]` for every receipt that was removed on purpose. A line whose receipt
never got its name (power failed just then) is made good when the run is collected again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from compute_router.durable import held, put_aside

__all__ = ["Chain", "Link"]

NAME = "chain.jsonl"
SCHEMA = "route.chain/1"


class Link(NamedTuple):
    """One line: `receipt_id` is None where the receipt with that `seq` was removed on purpose."""

    seq: int
    run_id: str
    attempt: int
    receipt_id: str | None


class Chain:
    """The chain as one process holds it; made by `locked` only."""

    def __init__(self, fd: int, store_id: str, last: Link | None) -> None:
        self._fd, self.store_id, self.last = fd, store_id, last

    def next(self) -> dict[str, Any]:
        """The block `chain` of the next receipt: `store_id`, `prev` (None for the first), `seq` from 1."""
        last = self.last
        return {
            "store_id": self.store_id,
            "prev": last.receipt_id if last else None,
            "seq": last.seq + 1 if last else 1,
        }

    def append(self, run_id: str, attempt: int, receipt_id: str) -> None:
        """Write down the next receipt. It is on the disk on return."""
        link = Link(self.next()["seq"], run_id, attempt, receipt_id)
        self._write(link)
        self.last = link

    def removed(self, links: Iterable[Link]) -> None:
        """Write down that these receipts are removed on purpose."""
        for link in links:
            self._write(link._replace(receipt_id=None))

    def _write(self, link: Link) -> None:
        data = (json.dumps(link, separators=(",", ":")) + "\n").encode()
        start = os.fstat(self._fd).st_size
        try:
            if os.write(self._fd, data) != len(data):
                raise OSError(28, os.strerror(28))
            # fdatasync is missing on some platforms; it is enough where it is there.
            getattr(os, "fdatasync", os.fsync)(self._fd)
        except OSError:
            os.ftruncate(self._fd, start)
            raise


@contextlib.contextmanager
def locked(home: Path, store_id: str, known: Iterable[Link] | None = None) -> Iterator[Chain]:
    """Hold the chain of the store: one process at a time.

    If the file is missing or its end is damaged it is written again from `known`, the links of
    the receipts that are there; the damaged one is put aside. Raises `OSError`.
    """
    path = home / NAME
    while True:
        with held(path, create=True) as fd:
            if os.fstat(fd).st_ino != os.stat(path).st_ino:
                continue
            last, whole = _last(fd)
            if not whole:
                if os.fstat(fd).st_size:
                    # The lock goes with the file: take that of the new one before anything is written.
                    put_aside(path)
                    continue
                yield _restored(fd, store_id, sorted(known or ()))
                return
            yield Chain(fd, store_id, last)
            return


def _restored(fd: int, store_id: str, links: list[Link]) -> Chain:
    lines: list[Any] = [{"schema": SCHEMA, "store_id": store_id}, *links]
    os.ftruncate(fd, 0)
    data = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode()
    while data:
        data = data[os.write(fd, data) :]
    os.fsync(fd)
    last = next((link for link in reversed(links) if link.receipt_id), None)
    return Chain(fd, store_id, last)


def _last(fd: int) -> tuple[Link | None, bool]:
    """The last receipt of the file, and whether the end of the file is whole.

    A last line without its end is what a crash leaves; it never counted and is cut off.
    """
    size = os.fstat(fd).st_size
    if size == 0:
        return None, False
    start = max(0, size - 1024)
    while True:
        data = os.pread(fd, size - start, start)
        body = data.rpartition(b"\n")[0]
        lines = body.split(b"\n")[1 if start else 0 :]
        for number, line in enumerate(reversed(lines)):
            link = _link(line)
            if link is False and number == 0:
                return None, False
            if isinstance(link, Link) and link.receipt_id:
                break
        else:
            if start:
                start = max(0, start - (1 << 20))
                continue
            link = None
            if not body:
                return None, False
        if len(body) + 1 != len(data):
            os.ftruncate(fd, start + len(body) + 1)
        return link if isinstance(link, Link) else None, True


def _link(line: bytes) -> Link | bool:
    """The link a line holds; True for the header, False for damage."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return False
    if isinstance(data, dict):
        return data.get("schema") == SCHEMA
    if not isinstance(data, list) or len(data) != 4:
        return False
    seq, run_id, attempt, receipt_id = data
    good = type(seq) is int and isinstance(run_id, str) and type(attempt) is int
    return Link(seq, run_id, attempt, receipt_id) if good and isinstance(receipt_id, str | None) else False


def links(home: Path) -> tuple[str | None, list[Link], bool]:
    """The store's id as the chain has it, its links, and whether every line could be read."""
    try:
        data = (home / NAME).read_bytes()
    except FileNotFoundError:
        return None, [], True
    store_id, found, whole = None, [], True
    for line in data.rpartition(b"\n")[0].split(b"\n"):
        link = _link(line)
        if isinstance(link, Link):
            found.append(link)
        elif link and store_id is None:
            store_id = str(json.loads(line).get("store_id"))
        else:
            whole = False
    return store_id, found, whole
