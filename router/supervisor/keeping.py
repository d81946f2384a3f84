"""Keeps what the client that submitted a run knows of it, and gives it to whoever asks for that run."""

from __future__ import annotations

import os

from . import files, follow, names, runs, starting, wire
from .runs import Attempt, Run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict

    Json = Dict[str, Any]

NAME = "client.jsonl"
FIRST = 1 << 16
"""Bytes of the first line, which names the run, that are read for a list."""


def keep(root: str, head: Json, body: bytes) -> None:
    """Put the lines beside a committed run. Those an attempt was started with are not replaced."""
    run = runs.run(root, head)
    number = names.whole(head.get("attempt", 1), "attempt", 1, 10_000)
    if run.committed and not starting.begun(Attempt(run, number)):
        # Not waited for: only a loss of power within moments costs it, and the run with it.
        files.write_hint(os.path.join(run.path, NAME), body)


def kept(root: str, head: Json) -> Json:
    """Of the first of `run_ids` that was committed here: its status, and the lines that were kept."""
    asked = head.get("run_ids")
    if not isinstance(asked, list):
        raise wire.Fault("BAD_REQUEST", "`run_ids` is a list", "see docs/protocol.md")
    for name in asked[:100]:
        run = Run(root, names.run_id(name))
        status = follow.look(run)
        if status is not None:
            return {"run_id": run.id, "status": status, "": files.read(os.path.join(run.path, NAME)) or b""}
    return {"run_id": None, "status": None}


def about(run: Run) -> Json:
    """The first line that was kept of a run, as far as it is one object of modest size."""
    line = (files.read(os.path.join(run.path, NAME), FIRST) or b"").partition(b"\n")[0]
    try:
        found = wire.loads(line).get("run")
    except (ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}
