"""Proves that one backend which fails, hangs or lies cannot spoil what the others offer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from compute_router.backend import Backend, Hardware, Health, NoOffer, Offer, Surface
from compute_router.errors import CredentialsError
from compute_router.gather import gather, healths
from compute_router.records import Record
from compute_router.workload import Entry, Workload

WORKLOAD = Workload(name="w", entry=Entry(root="/", argv=("true",)))


class NoSettings(Record, frozen=True, kw_only=True):
    """None."""


def backend(name_: str, offers_: Callable[[], Any]) -> Backend:
    class Given(Backend):
        name = name_
        surface = Surface.CLUSTER
        Settings = NoSettings
        powers = frozenset()

        def health(self) -> Health:
            offers_()
            return Health(backend=name_, ok=True, summary="well")

        def offers(self, workload: Workload) -> Sequence[Offer | NoOffer]:
            return offers_()  # type: ignore[no-any-return]

        submit = find = status = logs = fetch = cancel = cleanup = None  # type: ignore[assignment]

    return Given(NoSettings(), Path("/nowhere"))


def offer(name: str, id_: str = "a") -> Offer:
    return Offer(backend=name, id=id_, surface=Surface.CLUSTER, hardware=Hardware(family="cpu"))


def test_a_good_offer_stands_beside_every_way_to_fail() -> None:
    never = threading.Event()

    def hang() -> list[Offer]:
        never.wait(30)
        return []

    def raises() -> list[Offer]:
        raise RuntimeError("boom\nsecond line")

    def credentials() -> list[Offer]:
        raise CredentialsError("no token", mend="log in")

    began = time.monotonic()
    found = gather(
        {
            "good": backend("good", lambda: [offer("good", "b"), offer("good", "a")]),
            "hangs": backend("hangs", hang),
            "raises": backend("raises", raises),
            "login": backend("login", credentials),
            "silent": backend("silent", list),
            "liar": backend("liar", lambda: [offer("good")]),
            "junk": backend("junk", lambda: ["an offer"]),
            "nothing": backend("nothing", lambda: None),
            "twice": backend("twice", lambda: [offer("twice"), offer("twice")]),
        },
        WORKLOAD,
        deadline=0.5,
    )
    never.set()
    assert time.monotonic() - began < 10
    assert [o.id for o in found if isinstance(o, Offer)] == ["a", "b"]
    why = {o.backend: (o.code, o.reason, o.mend) for o in found if isinstance(o, NoOffer)}
    assert why["hangs"][0] == "timeout"
    assert "within 0.5 s" in why["hangs"][1]
    assert why["raises"][:2] == ("plugin_error", "the plugin raised RuntimeError: boom")
    assert why["login"] == ("credentials_error", "no token", "log in")
    assert "gave no reason" in why["silent"][1]
    assert "no offer of its own" in why["liar"][1]
    assert "no offer of its own" in why["junk"][1]
    assert "no list of offers" in why["nothing"][1]
    assert "the same id" in why["twice"][1]


def test_health_never_raises() -> None:
    def raises() -> list[Offer]:
        raise OSError("disk on fire")

    seen = healths({"well": backend("well", list), "ill": backend("ill", raises)}, deadline=5)
    assert [(h.backend, h.ok) for h in seen] == [("ill", False), ("well", True)]
    assert "disk on fire" in seen[0].summary
