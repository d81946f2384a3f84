"""What a backend says of itself and of its places, before anything runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from compute_router.backend import Backend, Health, NoOffer, Offer, Power, Quote, Surface
from compute_router.errors import CredentialsError, Unavailable
from compute_router.records import Record, new_run_id
from compute_router.testing import works
from compute_router.testing.kit import Kit
from compute_router.workload import Accelerator, Coupling, Needs, Role, Workload

__all__ = ["Declared"]

HEAVY = ("torch", "jax", "tensorflow", "numpy", "pandas", "rich")
"""Packages so slow to import that nobody's plugin may bring them into every `route`."""
NONE_SUCH = Accelerator(family="gpu", sku="NONESUCH", count=4096)
_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_DECIMAL = re.compile(r"\d+(\.\d+)?")


class Declared(Kit):
    """Names, powers, settings, health and offers."""

    def test_the_class_says_what_it_is(self, backend: Backend) -> None:
        """`name`, `surface`, `Settings` and `powers` are there, of the right type, and handed on."""
        cls = type(backend)
        assert _NAME.fullmatch(cls.name), f"{cls.name!r} is no plain lower-case name"
        assert isinstance(cls.surface, Surface)
        assert issubclass(cls.Settings, Record)
        assert isinstance(cls.powers, frozenset)
        assert all(isinstance(power, Power) for power in cls.powers)
        assert isinstance(backend.settings, cls.Settings), "hand settings and home on to super().__init__"
        assert isinstance(backend.home, Path)
        assert msgspec.convert(msgspec.to_builtins(backend.settings), cls.Settings) == backend.settings

    def test_making_one_does_nothing(self, backend: Backend) -> None:
        """The constructor does no I/O: nothing is written, no process or connection is opened."""
        assert self.elsewhere(backend, "make") == []

    def test_importing_the_plugin_imports_no_sdk(self, backend: Backend) -> None:
        """A plugin's module is loaded by every `route`; what is slow is imported inside functions."""
        assert self.elsewhere(backend, "modules", names=[*self.sdks, *HEAVY]) == []

    def test_health_is_told_and_starts_nothing(self, backend: Backend) -> None:
        """`health` names the backend, says in one line what was seen, and how to mend what is not well."""
        looks = [backend.health(), backend.health()]
        for health in looks:
            assert isinstance(health, Health)
            assert health.backend == backend.name
            assert health.summary
            assert "\n" not in health.summary
            self.keeps(health)
            for check in health.checks:
                assert check.ok or check.mend, f"{check.name} is not well and nothing mends it"
            # Of several places one may be out of order: it is told, and the others can be used.
            assert not health.ok or not health.checks or any(check.ok for check in health.checks)
        # A look is quick, so a busy moment may make it fail; the kit can prove nothing where each does.
        well = any(health.ok for health in looks) or backend.health().ok
        assert well, f"the kit can prove nothing where the backend is not well: {looks[-1].summary}"

    def test_health_never_raises(self, backend: Backend, tmp_path: Path) -> None:
        """Not even where the router's own folder cannot be made."""
        (tmp_path / "file").write_text("")
        assert isinstance(type(backend)(backend.settings, tmp_path / "file" / "below").health(), Health)

    def test_offers_are_whole_and_stable(self, backend: Backend, folder: Path) -> None:
        """The same places come under the same ids, and each offer is true to the class and to the need."""
        work = self.workload(folder, works.HELLO)
        answers = [backend.offers(work), backend.offers(work), self.fresh(backend).offers(work)]
        ids = [[offer.id for offer in answer if isinstance(offer, Offer)] for answer in answers]
        assert ids[0], f"nothing is offered for a work of the kit: {answers[0]}"
        assert ids[0] == ids[1] == ids[2]
        assert len(set(ids[0])) == len(ids[0]), "two places of one id"
        for offer in answers[0]:
            self.keeps(offer)
            assert offer.backend == backend.name
            if isinstance(offer, Offer):
                assert offer.id
                assert offer.surface is backend.surface
                assert set(offer.powers) <= backend.powers
                assert _serves(work.needs, offer), f"{offer.hardware} was not asked for"
                parts = (getattr(offer.estimates, name) for name in offer.estimates.__struct_fields__)
                assert all(part is None or part.us >= 0 for part in parts)
                assert offer.capacity is None or offer.capacity >= 0

    def test_looking_starts_nothing(self, backend: Backend, folder: Path) -> None:
        """Offers and quotes read only: no run is found, and asking for one that never was is None."""
        work = self.workload(folder, works.HELLO)
        for offer in backend.offers(work):
            if isinstance(offer, Offer):
                backend.expect(offer)
                quote = backend.quote(work, offer)
                assert quote is None or isinstance(quote, Quote)
                if quote is not None:
                    assert _DECIMAL.fullmatch(quote.amount), f"{quote.amount!r} is no decimal"
                    assert quote.source
                    assert quote.date
        assert backend.find(new_run_id()) is None
        assert self.fresh(backend).find("a key nobody used") is None

    def test_what_is_not_there_is_no_offer(self, backend: Backend, folder: Path) -> None:
        """Hardware nobody has, and more nodes than there are, give a NoOffer with code, reason and mend."""
        for needs in (Needs(accelerator=NONE_SUCH), Needs(coupling=Coupling.MULTI_NODE, nodes=4096)):
            self._none(backend, self.workload(folder, works.HELLO, needs=needs))

    def test_hardware_is_what_was_asked_or_a_substitute(self, backend: Backend, folder: Path) -> None:
        """Where only a listed substitute is there it is offered, and nothing else ever is."""
        there = Accelerator.parse(self.accelerator)
        needs = Needs(accelerator=NONE_SUCH, substitutes=(there,))
        work = self.workload(folder, works.HELLO, needs=needs)
        found = [offer for offer in backend.offers(work) if isinstance(offer, Offer)]
        assert found, f"{self.accelerator} is a listed substitute and is not offered"
        assert all(_serves(needs, offer) for offer in found)

    def test_a_power_it_has_not_is_no_offer(self, backend: Backend, folder: Path) -> None:
        """A workload that needs more than the backend claims is never offered a place."""
        asks: dict[Power, dict[str, Any]] = {
            Power.SECRETS: {"secrets": ("A_SECRET",)},
            Power.VOLUMES: {"volumes": {Role.DATA: "/data"}},
            Power.BUCKETS: {"buckets": {"/corpus": "s3://corpus/tokens"}},
            Power.IMAGES: {"image": "docker.io/library/python:3.12"},
        }
        for power, fields in asks.items():
            if power not in backend.powers:
                self._none(backend, self.workload(folder, works.HELLO, **fields))

    def _none(self, backend: Backend, work: Workload) -> None:
        try:
            found = backend.offers(work)
        except (Unavailable, CredentialsError):
            return
        assert found, "no place and no reason"
        for answer in found:
            assert isinstance(answer, NoOffer), f"offered: {answer}"
            assert answer.backend == backend.name
            assert re.fullmatch(r"[a-z][a-z0-9_-]*", answer.code), f"{answer.code!r} is no slug"
            assert answer.reason
            assert answer.mend
            self.keeps(answer)


def _serves(needs: Needs, offer: Offer) -> bool:
    """Whether an offer has what was asked for: exactly, a substitute, or more GPUs of the same."""
    has = offer.hardware
    for wanted in (needs.accelerator, *needs.substitutes):
        if wanted.family == "any":
            if has.count >= wanted.count or wanted.count <= 1:
                return True
        elif (wanted.family, wanted.sku) == (has.family, has.sku) and (
            has.count == wanted.count or (wanted.family == "gpu" and has.count > wanted.count)
        ):
            return True
    return False
