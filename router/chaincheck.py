"""Looks whether a store's receipts are those its chain names: none missing, changed, moved or cut off."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from compute_router import chain
from compute_router.chain import Link
from compute_router.durable import held
from compute_router.home import identity
from compute_router.index import folders
from compute_router.rows import load

__all__ = ["Checked", "Head", "Kept", "Proof", "check", "kept"]


class Kept(NamedTuple):
    """One receipt as it lies in a store. `prev` and `store_id` are what its block `chain` says."""

    link: Link
    prev: Any
    store_id: Any
    path: Path


class Head(NamedTuple):
    """The number and id of a receipt, noted down elsewhere at an earlier time."""

    seq: int
    receipt_id: str


class Proof(NamedTuple):
    """What a head proves: the ids of receipts `first` to `last` are those they were then.

    That holds for what the receipts say if each is whole (`verify`). `why` says what stops it at
    `first`, if that is not 1.
    """

    first: int
    last: int
    why: str = ""


class Checked(NamedTuple):
    """What a look at a chain found. `problems` are sentences, empty if all is well."""

    store_id: str | None
    head: Link | None
    receipts: tuple[Kept, ...]
    removed: tuple[Link, ...]
    proofs: tuple[Proof, ...]
    problems: tuple[str, ...]


def check(home: Path, heads: Sequence[Head] = ()) -> Checked:
    """Look at the chain of the store at `home`; writes nothing. Raises `OSError`, `StoreError`.

    Compares the ids that receipts have with those of the chain; that a receipt is what its id
    stands for is for `verify`. Whoever writes to this disk can write a whole chain anew: only
    `heads`, kept elsewhere, show that.
    """
    found = _look(home, heads)
    if found.problems:
        # A receipt that is being written just now has its line before its name: look once more, alone.
        with contextlib.suppress(OSError), held(home / chain.NAME):
            found = _look(home, heads)
    return found


def kept(folder: Path) -> Iterator[Kept]:
    """The receipts in one run's folder, those of earlier attempts included."""
    for path in sorted(folder.glob("receipt*.json")):
        receipt = load(str(path), msgspec.json.decode)
        block, attempt, receipt_id = (receipt.get(name) for name in ("chain", "attempt", "receipt_id"))
        if isinstance(block, dict) and type(block.get("seq")) is int and isinstance(receipt_id, str):
            link = Link(block["seq"], folder.name, attempt if type(attempt) is int else 1, receipt_id)
            yield Kept(link, block.get("prev"), block.get("store_id"), path)


def _look(home: Path, heads: Sequence[Head]) -> Checked:
    named, links, whole = chain.links(home)
    receipts = tuple(each for path in folders(home) for each in kept(Path(path)))
    listed = {link.seq: link for link in links if link.receipt_id is not None}
    removed = {link.seq: link for link in links if link.receipt_id is None}
    there = {each.link.seq: each for each in receipts}
    own = identity(home)
    said = [] if whole else [f"{home / chain.NAME} has lines that cannot be read"]
    if named is None and (links or receipts):
        said.append(f"{home / chain.NAME} is missing or does not name its store")
    if named is not None and own is not None and own != named:
        said.append(f"store.json names the store {own}, the chain {named}")
    said += _ordered(links)
    for each in receipts:
        if named is not None and each.store_id != named:
            said.append(f"receipt {each.link.seq} of run {each.link.run_id} is of another store")
        if there[each.link.seq] is not each:
            other = there[each.link.seq].link.run_id
            said.append(f"receipt {each.link.seq} stands twice: in run {each.link.run_id} and in {other}")
    said += _missing(listed, removed, there)
    proofs = []
    for head in heads:
        proof = _proof(head, listed, removed, there)
        if isinstance(proof, str):
            said.append(proof)
        else:
            proofs.append(proof)
    last = listed[max(listed)] if listed else None
    gone = tuple(link for seq, link in sorted(removed.items()) if seq not in there)
    return Checked(named or own, last, receipts, gone, tuple(proofs), tuple(said))


def _ordered(links: Sequence[Link]) -> Iterator[str]:
    before: dict[int, Link] = {}
    last = 0
    for link in links:
        if link.receipt_id is None:
            noted = before.get(link.seq)
            if noted is None or noted[:3] != link[:3]:
                yield f"receipt {link.seq} is noted as removed before the chain had it"
        elif link.seq <= last:
            yield f"receipt {link.seq} stands in the chain after receipt {last}"
        else:
            last = link.seq
            before[link.seq] = link


def _missing(
    listed: Mapping[int, Link], removed: Mapping[int, Link], there: Mapping[int, Kept]
) -> Iterator[str]:
    again = {(link.run_id, link.attempt): seq for seq, link in listed.items()}
    for seq in sorted({*range(1, len(listed) + len(there) + 1), *listed, *there}):
        if seq > max([*listed, *there]):
            return
        want, found = listed.get(seq), there.get(seq)
        if want is None:
            what = "is not in the chain" if found else "is missing: neither the chain nor a run has it"
            yield f"receipt {seq} {what}"
        elif found is None:
            if seq not in removed and again[want.run_id, want.attempt] == seq:
                yield f"receipt {seq} (run {want.run_id}, attempt {want.attempt}) is missing"
        elif found.link != want:
            yield f"receipt {seq} of run {found.link.run_id} is not the one the chain names"
        elif not _follows(found, listed):
            yield f"receipt {seq} of run {found.link.run_id} does not follow the one the chain has before it"


def _follows(found: Kept, listed: Mapping[int, Link]) -> bool:
    seq = found.link.seq
    before = listed.get(seq - 1)
    if seq == 1:
        return found.prev is None
    return before is None or found.prev == before.receipt_id


def _proof(
    head: Head, listed: Mapping[int, Link], removed: Mapping[int, Link], there: Mapping[int, Kept]
) -> Proof | str:
    """How far back a head reaches: each receipt names the id of the one before it."""
    at = listed.get(head.seq)
    if at is None:
        last = max(listed, default=0)
        return f"the head {head.seq} is not there: the chain ends at {last}, so receipts were cut off"
    if at.receipt_id != head.receipt_id:
        return f"receipt {head.seq} is not that of the head: it was written anew, or this is another store"
    seq = head.seq
    while seq > 1:
        found, before = there.get(seq), listed.get(seq - 1)
        if found is None or found.link != listed[seq]:
            gone = "was removed on purpose" if seq in removed else "is not there"
            return Proof(seq, head.seq, f"receipt {seq} {gone}, and named the one before it")
        if before is None or found.prev != before.receipt_id:
            return Proof(seq, head.seq, f"receipt {seq} names another one before it")
        seq -= 1
    return Proof(1, head.seq)
