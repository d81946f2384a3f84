"""What the work may report of itself: JSON lines into $ROUTE_METRICS; does nothing without it."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_rank = os.environ.get("RANK", "0")
_path = os.environ.get("ROUTE_METRICS")
if _path and _rank != "0":
    # Rank 0 speaks for the work; of the others only their first step and their memory are kept.
    _path = f"{_path}.{_rank}" if _rank.isdigit() else None
_pid = os.getpid()
_stepped = False


def _put(**line: object) -> None:
    if not _path or (_rank != "0" and line.get("event", "memory") != "memory"):
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


if _path and _rank == "0":
    atexit.register(_end)


def step(step: int, tokens: int | None = None, **values: object) -> None:
    """One optimiser step is done: `tokens` of the global batch, and values such as `loss`.

    Call it on every rank: rank 0 reports for all, of the others only the end of their first step is kept.
    """
    global _stepped
    if _rank == "0" or not _stepped:
        _stepped = True
        _put(step=step, tokens=tokens, **values)


@contextlib.contextmanager
def span(name: str, **facts: object) -> Iterator[None]:
    """Time what is done inside; `eval`, `checkpoint` and `data_wait` have fields of the receipt."""
    began = time.monotonic_ns()
    try:
        yield
    finally:
        _put(event=name, us=(time.monotonic_ns() - began) // 1000, **facts)


def resumed(step: int) -> None:
    """The work goes on from a checkpoint made after `step` steps; 0 says that it begins anew."""
    _put(event="resumed", step=step)


def fields(**values: object) -> None:
    """What this run is, under the names of `[tool.route.fields]`: `seed`, `dtype`, `tokens_per_step`, ...;
    besides `manifest_sha256`, a digest of the files of the data set."""
    _put(event="fields", **values)


def memory(peak_alloc_bytes: int | None = None, peak_reserved: int | None = None, **facts: object) -> None:
    """Most memory that this rank used on its device, in bytes."""
    _put(event="memory", peak_alloc_bytes=peak_alloc_bytes, peak_reserved=peak_reserved, **facts)


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
