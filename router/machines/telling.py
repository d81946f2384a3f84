"""What a machine tells of a run, as a status of ours: read strictly, never guessed."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from compute_router.backend import Status
from compute_router.errors import Broken

__all__ = ["status_of", "told_of"]

_FIELDS = frozenset(field.name for field in msgspec.structs.fields(Status))


def told_of(statuses: Any, run_id: str) -> Status | None:
    """What a reply says of one run; None = not committed there. Raises `Broken` if it says nothing."""
    if not isinstance(statuses, dict) or run_id not in statuses:
        raise Broken("its answer names no status")
    return None if statuses[run_id] is None else status_of(statuses[run_id])


def status_of(told: Any) -> Status:
    """The other side's status as ours. Raises `Broken` for anything but one: never a guess."""
    if not isinstance(told, dict):
        raise Broken(f"no status: {str(told)[:80]!r}")
    fields = {name: value for name, value in told.items() if name in _FIELDS and value is not None}
    holder = told.get("holder")
    if holder and not fields.get("detail"):
        fields["detail"] = f"held by {holder if isinstance(holder, str) else json.dumps(holder)}"
    try:
        return msgspec.convert(fields, Status)
    except msgspec.ValidationError as e:
        raise Broken(f"a status that cannot be read: {e}") from e
