"""The exit code a run's end becomes, for `run`, `wait` and `resume`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compute_router.errors import ExitCode

__all__ = ["ENDS", "exit_code", "told"]

ENDS: dict[str, tuple[int | None, str]] = {
    "succeeded": (0, "the work ended well"),
    "failed": (None, "the work's own code; 128+n for a signal; 69 if it only waited; 1 where it has none"),
    "cancelled": (143, "it was asked to end (128+15)"),
    "timed_out": (int(ExitCode.TIMEOUT), "it reached its timeout"),
    "preempted": (int(ExitCode.UNAVAILABLE), "its place was taken away"),
    "lost": (int(ExitCode.UNKNOWN), "what became of it cannot be told"),
}
"""Final state -> (exit code, None where the work says it; in words)."""


def exit_code(status: Mapping[str, Any]) -> int:
    """The code of a run with this `status` (its JSON form); 75 while it is not final."""
    state = str(status.get("state"))
    if state not in ENDS:
        return int(ExitCode.UNKNOWN)
    fixed = ENDS[state][0]
    if fixed is not None:
        return fixed
    if status.get("reason") == "wait_expired":
        return int(ExitCode.UNAVAILABLE)
    if status.get("signal"):
        return 128 + int(status["signal"])
    return int(status.get("exit_code") or 0) or 1


def told(status: Mapping[str, Any]) -> str:
    """How a run stands, in a few words: `failed with exit code 3`, `lost: the machine was rebooted`."""
    state = str(status.get("state")).replace("_", " ")
    text = state
    if status.get("signal"):
        text += f" by signal {status['signal']}"
    elif status.get("exit_code"):
        text += f" with exit code {status['exit_code']}"
    if state == "unknown" and status.get("last"):
        text += f" (unreachable; last seen {status['last']})"
    why = status.get("detail") or str(status.get("reason") or "").replace("_", " ")
    # "ended by signal 9" says no more than "by signal 9" does.
    return f"{text}: {why}" if why and why.removeprefix("ended ") not in text and why != "exit" else text
