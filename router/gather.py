"""Ask every backend what it can offer, side by side and with a deadline."""

from __future__ import annotations

import contextvars
import functools
import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from compute_router.backend import Backend, Health, NoOffer, Offer
from compute_router.errors import RouteError
from compute_router.workload import Workload

__all__ = ["DEADLINE", "gather", "healths", "side_by_side"]

DEADLINE = 10.0
"""Seconds a backend may take to answer."""

T = TypeVar("T")


def side_by_side(
    calls: Mapping[str, Callable[[], T]],
    deadline: float | None,
    *,
    enough: Callable[[T | BaseException], bool] = lambda answer: False,
) -> dict[str, T | BaseException]:
    """Call all, each in a thread of its own; whoever is late is left out (None = all are waited for), and
    so is everybody who has not answered by the time that one answer is `enough`.

    Daemon threads, not a pool: a backend that hangs must not hold the process at its end.
    """
    answers: queue.SimpleQueue[tuple[str, T | BaseException]] = queue.SimpleQueue()

    def ask(name: str, call: Callable[[], T]) -> None:
        try:
            answers.put((name, call()))
        # A plugin may fail in any way at all; what it raised is judged by the caller.
        except BaseException as e:
            answers.put((name, e))

    for name, call in calls.items():
        # Each in a context of its own that begins as the caller's: whoever looks on here is told of all.
        told = contextvars.copy_context().run
        threading.Thread(target=told, args=(ask, name, call), name=f"ask {name}", daemon=True).start()
    got: dict[str, T | BaseException] = {}
    end = None if deadline is None else time.monotonic() + deadline
    while len(got) < len(calls):
        try:
            left = None if end is None else max(0.0, end - time.monotonic())
            name, answer = answers.get(timeout=left)
        except queue.Empty:
            break
        got[name] = answer
        if enough(answer):
            break
    return got


def _text(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def gather(
    backends: Mapping[str, Backend], workload: Workload, *, deadline: float = DEADLINE
) -> list[Offer | NoOffer]:
    """Every backend's offers, sorted by backend and id. A backend that fails, is late or has nothing
    to say still stands in the list, as a NoOffer with the reason. Never raises for a backend."""
    calls = {name: functools.partial(b.offers, workload) for name, b in backends.items()}
    got = side_by_side(calls, deadline)
    found: list[Offer | NoOffer] = []
    for name in sorted(backends):
        answer = got.get(name)
        if name not in got:
            found.append(
                NoOffer(
                    backend=name,
                    code="timeout",
                    reason=f"did not answer within {deadline:g} s",
                    mend=f"route doctor shows what {name} is waiting for",
                )
            )
        elif isinstance(answer, RouteError):
            found.append(
                NoOffer(backend=name, code=answer.code.lower(), reason=answer.what, mend=answer.mend)
            )
        elif isinstance(answer, BaseException):
            reason = f"the plugin raised {type(answer).__name__}: {_text(answer)}"
            found.append(
                NoOffer(
                    backend=name, code="plugin_error", reason=reason, mend="route plugins names its author"
                )
            )
        else:
            found += _checked(name, answer)
    return found


def _checked(name: str, answer: object) -> list[Offer | NoOffer]:
    """What a plugin returned, or the NoOffer that says why it cannot be used."""
    wrong = "returned no list of offers"
    if isinstance(answer, (list, tuple)):
        bad = [o for o in answer if not isinstance(o, (Offer, NoOffer)) or o.backend != name]
        ids = [o.id for o in answer if isinstance(o, Offer)]
        if answer and not bad and len(set(ids)) == len(ids):
            return sorted(
                answer, key=lambda o: (isinstance(o, NoOffer), o.id if isinstance(o, Offer) else o.code)
            )
        if not answer:
            wrong = "has nothing to offer and gave no reason"
        elif bad:
            wrong = f"returned {type(bad[0]).__name__} that is no offer of its own"
        else:
            wrong = "gave the same id to two offers"
    return [
        NoOffer(
            backend=name,
            code="plugin_error",
            reason=f"the plugin {wrong}",
            mend="route plugins names its author",
        )
    ]


def healths(backends: Mapping[str, Backend], *, deadline: float = DEADLINE) -> list[Health]:
    """Every backend's health, sorted by name; one that fails or is late is not healthy. Never raises."""
    got = side_by_side({name: b.health for name, b in backends.items()}, deadline)
    found: list[Health] = []
    for name in sorted(backends):
        answer = got.get(name)
        if isinstance(answer, Health):
            found.append(answer)
        elif answer is None:
            found.append(Health(backend=name, ok=False, summary=f"did not answer within {deadline:g} s"))
        else:
            text = (
                f"{type(answer).__name__}: {_text(answer)}"
                if isinstance(answer, BaseException)
                else "no Health"
            )
            found.append(Health(backend=name, ok=False, summary=f"the plugin failed: {text}"))
    return found
