"""What the work may report of itself: JSON lines into $ROUTE_METRICS; does nothing without it."""

from __future__ import annotations

import atexit
import json
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_path = os.environ.get("ROUTE_METRICS") if os.environ.get("RANK", "0") == "0" else None
_pid = os.getpid()


def _put(**line: object) -> None:
    if not _path:
        return
    line.update(t_us=time.time_ns() // 1000, mono_us=time.monotonic_ns() // 1000)
    try:
        # `default`: a tensor or an array of one number is reported as that number.
        data = json.dumps({k: v for k, v in line.items() if v is not None}, default=float) + "\n"
        fd = os.open(_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(fd, data.encode())
        finally:
            os.close(fd)
    except (OSError, TypeError, ValueError):
        pass  # a report that cannot be written must not cost the work


def _end() -> None:
    # Only a process that got to its end by itself says so: not a fork, not one that ends in a traceback.
    if os.getpid() == _pid and not hasattr(sys, "last_type"):
        _put(event="end")


if _path:
    atexit.register(_end)


def step(step: int, tokens: int | None = None, **values: object) -> None:
    """One optimiser step is done: `tokens` of the global batch, and values such as `loss`. Rank 0 alone."""
    _put(step=step, tokens=tokens, **values)


def cache(
    kind: str,
    *,
    hits: int | None = None,
    misses: int | None = None,
    verdict: str | None = None,
    **facts: object,
) -> None:
    """Counters of a compile cache: `kind` such as `inductor`, `triton` or `jax_pcc`."""
    _put(event="cache", kind=kind, hits=hits, misses=misses, verdict=verdict, **facts)


def kernel(requested: str, observed: str, **facts: object) -> None:
    """The kernel that was asked for and the one that was really dispatched."""
    _put(event="kernel", requested=requested, observed=observed, **facts)


def verdict(status: str, criteria: Iterable[object] = (), ready: bool | None = None, **facts: object) -> None:
    """The outcome of a validation: `status` (accepted or rejected), criteria met or not, ready to promote."""
    _put(event="verdict", status=status, criteria=list(criteria), ready=ready, **facts)


def note(event: str, **facts: object) -> None:
    """Anything else worth a line, under a name of its own."""
    _put(event=event, **facts)
