"""The folder of one run: its records, its events, its receipt."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from compute_router.durable import fsync_folder, held, put_aside, read_file, write_beside, write_file
from compute_router.errors import Conflict, InputError, NewerStore, StoreError
from compute_router.home import fault
from compute_router.records import canonical, encode, plain
from compute_router.rows import MOST_BYTES, row_of, seen, told
from compute_router.scrubbing import cleaned

if TYPE_CHECKING:
    from compute_router.chain import Chain
    from compute_router.index import Index

__all__ = ["NAMES", "RunFolder"]

NAMES = ("workload", "offers", "decision", "intent", "handle", "status", "receipt")
"""The records of a run, in the order they come about. `run.json` beside them says whose folder it is."""

# Without these nobody could tell whether the run was started, or as what: a damaged one must never
# look like one that is not there yet.
_VITAL = ("run", "workload", "intent")
_FINAL = ("succeeded", "failed", "cancelled", "timed_out", "preempted", "lost")
T = TypeVar("T")
Build = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class Keeper(Protocol):
    """What a run's folder needs of the store that it is in."""

    home: Path
    runs: Path
    index: Index

    def writable(self) -> None: ...
    def notice(self, text: str) -> None: ...
    def chained(self) -> AbstractContextManager[Chain]: ...


class RunFolder:
    """One run of a store. Reading and writing may be repeated and done by several processes at once."""

    def __init__(self, store: Keeper, run_id: str) -> None:
        self.store, self.id = store, run_id
        self.path: Path = store.runs / run_id

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        """What `run.json` says: `id`, `key`, `created_us`, `workload_digest`, `labels` and more."""
        return self.read_json("run") or {}

    @property
    def key(self) -> str:
        """The idempotency key: the run id unless the user gave one."""
        found = self.about.get("key")
        return found if isinstance(found, str) else self.id

    @property
    def labels(self) -> dict[str, str]:
        """Labels given when the run was made."""
        return dict(self.about.get("labels") or {})

    def file(self, name: str) -> Path:
        """Where record `name` is kept."""
        return self.path / f"{name}.json"

    def has(self, name: str) -> bool:
        """Whether the record is there, readable or (`intent`, `workload`) damaged."""
        return self.file(name).exists() or (name in _VITAL and self._aside(name) is not None)

    def problems(self) -> list[str]:
        """The damaged files of this run that were put aside, in sentences."""
        return [f"{path} is damaged" for path in sorted(self.path.glob("*.damaged-*"))]

    # Reading

    def read(self, name: str, type: type[T]) -> T | None:
        """Record `name` as `type`; None if it is not there.

        A damaged file is put aside under the name `<name>.json.damaged-<n>`, noted in the store's
        `problems`, and counts as not there; but `StoreError` for a damaged `intent` or `workload`,
        now and whenever it is read again. `NewerStore` for a record of a newer version.
        """
        data = self._data(name)
        if data is None:
            return None
        try:
            return msgspec.json.decode(data, type=type)
        except msgspec.ValidationError as e:
            schema = self._newer(data, type)
            if schema:
                raise NewerStore(
                    f"{self.file(name)} was written by a newer version of the router ({schema})",
                    mend="upgrade compute-router",
                ) from e
            raise StoreError(
                f"{self.file(name)} cannot be read: {e}", mend="it was written by another version, or by hand"
            ) from e
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            self._damaged(name, str(e))
            return None

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Record `name` as plain data; None if it is not there or damaged, as `read` says.

        A receipt counts as damaged too if it is not the one its `receipt_id` stands for.
        """
        data = self._data(name)
        if data is None:
            return None
        try:
            found = msgspec.json.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
            self._damaged(name, str(e))
            return None
        if not isinstance(found, dict):
            self._damaged(name, "it is no JSON object")
            return None
        if name == "receipt" and not _is_itself(found):
            self._damaged(name, "it is not the one its receipt_id stands for")
            return None
        return found

    def _data(self, name: str) -> bytes | None:
        try:
            data = read_file(self.file(name), MOST_BYTES)
        except ValueError as e:
            self._damaged(name, str(e))
            return None
        except OSError as e:
            raise fault(e, self.file(name), self.store.home, "read") from e
        if data is None and name in _VITAL and (aside := self._aside(name)) is not None:
            raise self._unusable(name, aside)
        return data

    def _aside(self, name: str) -> Path | None:
        return next(iter(sorted(self.path.glob(f"{name}.json.damaged-*"))), None)

    def _unusable(self, name: str, aside: Path) -> StoreError:
        return StoreError(
            f"the {name} of run {self.id} is damaged", mend=f"look at {aside}, or start a new run"
        )

    def _damaged(self, name: str, why: str) -> None:
        path = self.file(name)
        try:
            aside = put_aside(path)
        except FileNotFoundError:
            # Another reader was quicker.
            aside = self._aside(name) or path
        except OSError:
            aside = path
        self.store.notice(f"{path} was damaged ({why}); it is now {aside.name}")
        if name in _VITAL:
            raise self._unusable(name, aside)

    def _newer(self, data: bytes, type: type[Any]) -> str:
        """The schema of `data` if it is a later one than that of `type`, else nothing."""
        ours = next((f.default for f in msgspec.structs.fields(type) if f.name == "schema"), "")
        theirs = msgspec.json.decode(data)
        theirs = theirs.get("schema") if isinstance(theirs, dict) else None
        if not isinstance(theirs, str) or not isinstance(ours, str):
            return ""
        name, _, version = theirs.partition("/")
        known, _, least = ours.partition("/")
        newer = name == known and version.isdigit() and least.isdigit() and int(version[:9]) > int(least)
        return theirs if newer else ""

    # Writing

    def write(self, name: str, value: Any) -> bool:
        """Write record `name`: canonical bytes, on the disk on return; nothing partial ever shows.

        Returns whether it was written. A status is not, once a final one stands for its attempt
        or a later one; a receipt is not, if the same one stands. Raises `Conflict` for another
        receipt of the same attempt, `InputError` for what has no canonical form, `StoreError`.
        """
        if name not in NAMES:
            raise InputError(f"{name!r} is no record of a run", mend=f"they are: {', '.join(NAMES)}")
        # A workload was refused if a secret stood in it, and a receipt was made without: its digest stands.
        fields = plain(value) if name in ("workload", "receipt") else cleaned(plain(value))
        data = _encoded(name, fields)
        self.store.writable()
        try:
            with held(self.path):
                if name == "receipt":
                    return self._put_receipt(fields, data)
                if name == "status" and self._outlived(fields):
                    return False
                write_file(self.path, f"{name}.json", data)
                self._tell_index(name, fields)
        except OSError as e:
            raise fault(e, self.file(name), self.store.home) from e
        return True

    def seal(
        self, build: Callable[[Mapping[str, Any]], Mapping[str, Any]], *, attempt: int
    ) -> dict[str, Any]:
        """Write the receipt of `attempt`, once, and return the one that stands.

        `build` is given the receipt's block `chain` (`store_id`, `prev`, `seq`) and returns the
        receipt with it; it is not called if there is a receipt of this attempt already. Whatever
        it raises leaves everything as it was.
        """
        self.store.writable()
        try:
            with held(self.path):
                there = self.read_json("receipt")
                if there is not None and not _later(attempt, there.get("attempt")):
                    if there.get("attempt") == attempt:
                        return there
                    what = f"run {self.id} has a receipt of attempt {there.get('attempt')}, after {attempt}"
                    raise Conflict(what, mend=f"route receipt show {self.id}")
                with self.store.chained() as chain:
                    receipt = dict(build(chain.next()))
                    self._name_receipt(receipt, _encoded("receipt", receipt), chain)
                return receipt
        except OSError as e:
            raise fault(e, self.file("receipt"), self.store.home) from e

    def append_event(self, line: Mapping[str, Any]) -> None:
        """Add one line to `events.jsonl`. Events are notes beside the truth: not brought to the disk."""
        data = encode(cleaned(line))
        try:
            fd = os.open(
                self.path / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
            try:
                os.write(fd, data)
            finally:
                os.close(fd)
        except OSError as e:
            raise fault(e, self.path / "events.jsonl", self.store.home) from e

    def _outlived(self, new: dict[str, Any]) -> bool:
        """Whether a status stands that `new` may not replace."""
        old = self.read_json("status") or {}
        before, after = old.get("attempt"), new.get("attempt")
        if type(before) is not int or type(after) is not int:
            return False
        return before > after or (before == after and old.get("state") in _FINAL and old != new)

    def _put_receipt(self, receipt: dict[str, Any], data: bytes) -> bool:
        there = self.read_json("receipt")
        if there is not None:
            if _encoded("receipt", there) == data:
                return False
            if not _later(receipt.get("attempt"), there.get("attempt")):
                raise Conflict(
                    f"run {self.id} already has another receipt of attempt {there.get('attempt')}",
                    mend=f"route receipt show {self.id}",
                )
        if not isinstance(receipt.get("chain"), dict):
            self._name_receipt(receipt, data, None)
            return True
        with self.store.chained() as chain:
            if receipt["chain"] != chain.next():
                raise Conflict(
                    f"another receipt was written before that of run {self.id}",
                    mend=f"route collect {self.id}",
                )
            self._name_receipt(receipt, data, chain)
        return True

    def _name_receipt(self, receipt: dict[str, Any], data: bytes, chain: Any) -> None:
        beside = write_beside(self.path, "receipt.json", data)
        try:
            if chain is not None:
                chain.append(self.id, receipt["attempt"], receipt["receipt_id"])
            earlier = self.read_json("receipt")
            if earlier is not None:
                aside = f"receipt-{earlier.get('attempt')}.json"
                # Its signature goes first: it must never lie beside another receipt.
                with contextlib.suppress(FileNotFoundError):
                    os.replace(self.path / "receipt.json.sig", self.path / f"{aside}.sig")
                os.replace(self.file("receipt"), self.path / aside)
            os.replace(beside, self.file("receipt"))
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        fsync_folder(self.path)
        self._tell_index("receipt", receipt)

    def _tell_index(self, name: str, fields: dict[str, Any]) -> None:
        """Bring the row up to date. The record is safe already, so a failure here is only noted."""
        try:
            if name == "receipt":
                self.store.index.change(self.id, told(fields))
                return
            values: dict[str, Any] = {}
            if name == "decision":
                values = {"policy": fields.get("policy") or ""}
            elif name == "status":
                names = ("state", "attempt", "exit_code", "ended_us")
                values = {n: fields.get(n) for n in names} | {"seen": seen(self.path)}
            elif name == "intent":
                row = row_of(self.path, msgspec.json.decode)
                names = ("backend", "surface", "state", "attempt")
                values = {n: getattr(row, n) for n in names} if row else {}
            if values:
                self.store.index.change(self.id, values)
        except StoreError as e:
            self.store.notice(f"{e.what}; `route ps` may lag behind")


def _encoded(name: str, value: Any) -> bytes:
    try:
        data = encode(value)
    except (ValueError, TypeError, RecursionError) as e:
        raise InputError(f"the {name} cannot be written: {e}") from e
    if not data.startswith(b"{"):
        raise InputError(f"the {name} cannot be written: it is no JSON object")
    return data


def _later(new: Any, old: Any) -> bool:
    return type(new) is int and (type(old) is not int or new > old)


def _is_itself(receipt: dict[str, Any]) -> bool:
    """Whether the content of a receipt is what its `receipt_id` stands for, as far as this can be told."""
    name = receipt.get("receipt_id")
    if not isinstance(name, str) or len(name) != 64 or receipt.get("schema") != "route.receipt/1":
        return True
    rest = {key: value for key, value in receipt.items() if key not in ("receipt_id", "signatures")}
    try:
        return hashlib.sha256(canonical(rest)).hexdigest() == name
    except ValueError:
        return False
