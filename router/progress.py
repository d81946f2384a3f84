"""How far a transfer of bytes has come, told to whoever looks on; nothing is done where nobody does.

Whoever moves bytes:      `with transfer("send", machine.name, total) as add: ...; add(len(piece))`
Whoever wants to see it:  `with watched(lambda step: ...): router.submit(...)`

The observer belongs to the context (`contextvars`) in which it was set: a thread of one's own sees it
only if it is started with `contextvars.copy_context().run`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import NamedTuple

__all__ = ["Step", "transfer", "watched"]

EVERY = 0.1
"""Seconds between two things told of one transfer; its beginning and its end are always told."""


class Step(NamedTuple):
    """Where one transfer stands. `what` is `send`, `fetch` or `environment`, `place` the machine; sizes
    in bytes. `over` is told once, also where the transfer broke off: then `done` is less than `total`."""

    what: str
    place: str
    done: int
    total: int
    over: bool = False


Observer = Callable[[Step], None]
_OBSERVER: ContextVar[Observer | None] = ContextVar("route_progress", default=None)


@contextlib.contextmanager
def watched(observer: Observer) -> Iterator[None]:
    """Within the block `observer` is told of every transfer. It is called from the thread that moves
    the bytes, so it must be quick, and must not raise."""
    token = _OBSERVER.set(observer)
    try:
        yield
    finally:
        _OBSERVER.reset(token)


def _nobody(count: int) -> None:
    """Told to nobody."""


@contextlib.contextmanager
def transfer(what: str, place: str, total: int, *, done: int = 0) -> Iterator[Callable[[int], None]]:
    """Tell of a transfer of `total` bytes, `done` of which are there already. The block is given a
    function that takes the bytes moved since its last call; it may be called from several threads."""
    observer = _OBSERVER.get()
    if observer is None or total <= 0:
        yield _nobody
        return
    tell, at, told = observer, done, time.monotonic()

    def add(count: int) -> None:
        nonlocal at, told
        at += count
        now = time.monotonic()
        if now - told >= EVERY:
            told = now
            tell(Step(what, place, min(at, total), total))

    tell(Step(what, place, at, total))
    try:
        yield add
    finally:
        tell(Step(what, place, min(at, total), total, True))
