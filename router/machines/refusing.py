"""What a machine's refusal stands for on this side: an error of ours, by its code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compute_router.errors import (
    Conflict,
    CredentialsError,
    HandleLost,
    PreflightFailed,
    Rejected,
    RouteError,
    SubmitUnknown,
    Unavailable,
)

__all__ = ["Resend", "refusal"]


class Resend(Unavailable):
    """Nothing is committed: files did not arrive whole, or somebody else is sending them just now.
    Sending them again over a fresh session mends it."""


_REFUSED: dict[str, tuple[type[RouteError], str]] = {
    "BUSY": (Unavailable, "--wait 30m waits for it"),
    "FOREIGN": (Unavailable, "end that process, or use another place"),
    "HW_MISMATCH": (Unavailable, "ask for what is there, name a substitute, or use another place"),
    "SICK_GPU": (Unavailable, "mend that GPU, or use another place"),
    "NOT_COMMITTED": (Unavailable, "run it again"),
    "BLOBS_MISSING": (Resend, "run it again: what arrived is kept"),
    "CONFLICT": (Conflict, "use another --key"),
    "NO_SPACE": (PreflightFailed, "`route gc --older-than 0` shows what can go there"),
    "PREFLIGHT": (PreflightFailed, ""),
    "NOT_HELD": (Unavailable, "run it again"),
    "ATTEMPT": (Rejected, "route status tells where the run stands"),
    "BAD_SPEC": (Rejected, ""),
    "BAD_REQUEST": (Rejected, "update compute-router"),
    "BAD_ROOT": (Rejected, "set the backend's root to a folder that can be written"),
    "NETWORK_ROOT": (Rejected, "set the backend's root to a folder on a disk of the machine itself"),
    "OLD_PYTHON": (Rejected, "put Python 3.8 or later first on the PATH there"),
    "SECRETS": (CredentialsError, ""),
    "ELSEWHERE": (Rejected, "ask the machine the run was started on"),
}


def refusal(machine: str, op: str, error: object) -> RouteError:
    """The error of ours that the other side's `{"code", "what", "mend"}` stands for.

    Of an answer to `start` only what is known to have started nothing is anything else than
    `SubmitUnknown`.
    """
    table = error if isinstance(error, dict) else {}
    code = str(table.get("code", "UNREADABLE"))
    what = str(table.get("what") or "no reason given").splitlines()[0][:500]
    holder = table.get("holder")
    who = holder.get("run_id") if isinstance(holder, dict) else holder
    if who and str(who) not in what:
        what = f"{what} (held by {who})"
    text = f"{machine}: {what}"
    mend = str(table.get("mend") or "route doctor tells more")
    made = _refused(machine, op, code, text, mend, table)
    made.told = code
    position = table.get("position")
    made.position = position if type(position) is int else None
    return made


def _refused(machine: str, op: str, code: str, text: str, mend: str, table: Mapping[str, Any]) -> RouteError:
    if code == "NOT_COMMITTED" and op not in ("commit", "start"):
        return HandleLost(f"{machine} knows no such run", mend="route ps shows those of this store")
    if code in _REFUSED:
        kind, otherwise = _REFUSED[code]
        made = kind(text, mend=str(table.get("mend") or otherwise))
        names = table.get("names")
        if isinstance(made, CredentialsError) and isinstance(names, list):
            made.names = tuple(name for name in names if isinstance(name, str))
        return made
    if op in ("start", "go"):  # whatever went wrong there, it may have started
        return SubmitUnknown(f"{text} [{code}]", mend="route status asks again")
    return (Rejected if op == "hello" else Unavailable)(f"{text} [{code}]", mend=mend)
