"""Puts another specification in the place of one that was refused: the next offer on the same machine."""

from __future__ import annotations

import os

from . import files, wire
from .runs import Attempt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List

    from .runs import Run

    Json = Dict[str, Any]

SAME = (
    *("schema", "run_id", "key", "workload_digest", "kind", "purpose", "argv", "cwd", "tree", "env"),
    *("secrets", "timeout_us", "outputs", "volumes", "metrics", "in_place"),
)
"""What makes two specifications those of one run: they differ in what they are offered alone."""


def replace(run: Run, stands: bytes, body: bytes, wanted: Json) -> bool:
    """Make `body` the specification of a committed run of which nothing was ever started.

    False, and nothing is changed, where it is that of another workload, or where an attempt has
    begun or may be about to. Every `sup.lock` is held meanwhile, and a waiter looks at the
    specification again once it has its own: none can start by one that is no longer there.
    """
    try:
        before = wire.loads(stands)
    except ValueError:
        return False
    if not isinstance(before, dict) or any(before.get(name) != wanted.get(name) for name in SAME):
        return False
    locks: List[int] = []
    try:
        for number in range(1, 1 + max(files.numbered(run.attempts), default=1)):
            attempt = Attempt(run, number)
            os.makedirs(attempt.path, 0o700, exist_ok=True)
            locks.append(files.lock(attempt.at("sup.lock")))
            begun = any(attempt.has(name) for name in ("started.json", "exec.json", "exit.json"))
            if locks[-1] < 0 or begun:
                return False
        files.write(os.path.join(run.path, "spec.json"), body)
        return True
    finally:
        for fd in locks:
            if fd >= 0:
                os.close(fd)
