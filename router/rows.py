"""One row of the list of runs, and how it is read from a run's folder. Standard library only."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["COLUMNS", "Loads", "Row", "is_run_id", "row_of", "seen", "settled_row", "storable", "told"]

Loads = Callable[[bytes], Any]
MOST_BYTES = 64 << 20
_ID = frozenset("0123456789abcdefghjkmnpqrstvwxyz")


class Row(NamedTuple):
    """What a list shows of a run. Times in epoch microseconds; text that is not known is empty.

    `collected` says that the receipt is here; `seen` is the stamp of the status file that the row
    was read from.
    """

    id: str
    created_us: int
    updated_us: int
    name: str
    kind: str
    purpose: str
    backend: str
    surface: str
    state: str
    attempt: int
    exit_code: int | None
    policy: str
    accelerator: str
    key: str
    receipt_id: str | None
    collected: bool
    ended_us: int | None
    seen: str = ""


COLUMNS = Row._fields


def storable(values: Iterable[Any]) -> tuple[Any, ...]:
    """`values` with text as a database takes it: a lone surrogate becomes a visible escape."""
    return tuple(
        v.encode("utf-8", "backslashreplace").decode() if isinstance(v, str) and not v.isascii() else v
        for v in values
    )


def is_run_id(text: str) -> bool:
    """Whether `text` has the form of a run id: 26 characters of lower-case Crockford base 32."""
    return len(text) == 26 and _ID.issuperset(text)


def seen(folder: str | Path) -> str:
    """A stamp of `status.json` that differs whenever it was written; empty if there is none."""
    try:
        status = os.stat(os.path.join(folder, "status.json"))
    except OSError:
        return ""
    return f"{status.st_ino}:{status.st_mtime_ns}"


def load(path: str, loads: Loads = json.loads) -> dict[str, Any]:
    """The JSON object in `path`; an empty one if it is missing, no object, too large or damaged."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb", buffering=0) as f:
            status = os.fstat(fd)
            good = stat.S_ISREG(status.st_mode) and status.st_size <= MOST_BYTES
            found = loads(f.readall()) if good else None
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _whole(value: Any) -> int | None:
    return value if type(value) is int and abs(value) < 2**53 else None


def _at(data: Any, *path: str) -> Any:
    for name in path:
        data = data.get(name) if isinstance(data, dict) else None
    return data


def accelerator(workload: dict[str, Any]) -> str:
    """`H200:8`, `v6e-8`, `cpu` or `any`, from a workload as plain data."""
    part = _at(workload, "needs", "accelerator") or {"family": "cpu"}
    family, sku, count = _text(_at(part, "family")), _text(_at(part, "sku")), _whole(_at(part, "count")) or 0
    if family == "any":
        return "any" if count <= 1 else f"any:{count}"
    return family if family == "cpu" else f"{sku}-{count}" if family == "tpu" else f"{sku}:{count}"


def row_of(folder: str | Path, loads: Loads = json.loads) -> Row | None:
    """The row of the run in `folder`; None if neither `run.json` nor `workload.json` can be read.

    Reads defensively: what has the wrong type counts as not there.
    """

    def file(name: str) -> dict[str, Any]:
        return load(os.path.join(folder, f"{name}.json"), loads)

    stamp = seen(folder)
    begun, receipt = file("run"), file("receipt")
    workload = file("workload") if not begun else {}
    if not begun and not workload:
        return None
    known = told(receipt) if isinstance(receipt.get("receipt_id"), str) else {}
    if "state" not in known:
        status, intent = file("status"), file("intent")
        backend = _text(intent.get("backend"))
        known = {
            "state": _text(status.get("state")) or ("staging" if intent else "planned"),
            "attempt": _whole(status.get("attempt")) or _whole(intent.get("attempt")) or 1,
            "exit_code": _whole(status.get("exit_code")),
            "ended_us": _whole(status.get("ended_us")),
            "backend": backend,
            "surface": _surface(file("offers"), intent) if backend else "",
            "policy": _text(file("decision").get("policy")),
            "receipt_id": None,
            "collected": False,
            **known,
        }
    created = _whole(begun.get("created_us"))
    try:
        changed = os.stat(folder).st_mtime_ns // 1000
    except OSError:
        changed = 0
    return Row(
        id=os.path.basename(folder),
        created_us=changed if created is None else created,
        updated_us=changed,
        name=_text(begun.get("name") or workload.get("name")),
        kind=_text(begun.get("kind") or workload.get("kind")),
        purpose=_text(begun.get("purpose") or workload.get("purpose")),
        accelerator=_text(begun.get("accelerator")) or accelerator(workload),
        key=_text(begun.get("key")) or os.path.basename(folder),
        seen=stamp,
        **known,
    )


def told(receipt: dict[str, Any]) -> dict[str, Any]:
    """The columns that a receipt speaks of; at least `receipt_id` and `collected`."""

    def fact(*path: str) -> Any:
        return _at(receipt, "context", *path, "v")

    found: dict[str, Any] = {"receipt_id": _text(receipt.get("receipt_id")), "collected": True}
    state = fact("outcome", "state")
    if isinstance(state, str):
        found |= {
            "state": state,
            "attempt": _whole(receipt.get("attempt")) or 1,
            "exit_code": _whole(fact("outcome", "exit_code")),
            "ended_us": _whole(fact("outcome", "ended_us")),
            "backend": _text(fact("backend")),
            "surface": _text(fact("surface")),
            "policy": _text(fact("decision", "policy")),
        }
    return found


def _surface(offers: dict[str, Any], intent: dict[str, Any]) -> str:
    listed = offers.get("offers")
    for offer in listed if isinstance(listed, list) else []:
        if _at(offer, "backend") == intent.get("backend") and _at(offer, "id") == intent.get("offer_id"):
            return _text(_at(offer, "surface"))
    return ""


def settled_row(row: Row, runs: Path, loads: Loads = json.loads) -> Row | None:
    """`row` as its folder has it now; None if the folder is not there.

    A row with a receipt is returned as it is: nothing changes any more.
    """
    if row.collected:
        return row._replace(collected=True)
    folder = os.path.join(runs, row.id)
    stamp = seen(folder)
    if stamp == row.seen and not os.path.exists(os.path.join(folder, "receipt.json")):
        return row._replace(collected=False) if stamp or os.path.isdir(folder) else None
    return row_of(folder, loads) or (row if os.path.isdir(folder) else None)
