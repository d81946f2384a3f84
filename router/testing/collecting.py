"""What a run leaves: brought back whole, as often as it is asked for, and then let go."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from compute_router.backend import Backend, Handle, State
from compute_router.errors import RouteError
from compute_router.records import canonical
from compute_router.testing import works
from compute_router.testing.kit import Kit

__all__ = ["Collecting"]


class Collecting(Kit):
    """Fetch and cleanup."""

    def left(self, backend: Backend, folder: Path, *, size: int = 3000, code: int = 0) -> tuple[Handle, Any]:
        """A final run that left files of the kit's names: its handle, and path -> digest of each."""
        names = json.dumps(list(self.names))
        work = self.workload(folder, works.LEAVES, names, str(size), str(code), outputs=("results/",))
        handle, status, log = self.ran(backend, work)
        assert status.exit_code == code, (status, log[-500:])
        return handle, self.told(log, "LEFT")

    def test_outputs_come_back_whole(self, backend: Backend, folder: Path, tmp_path: Path) -> None:
        """Every output with its right bytes: an empty file, nested folders, odd names, both places."""
        handle, told = self.left(backend, folder)
        into = tmp_path / "into"
        brought = backend.fetch(handle, into)
        assert _digests(into, told) == told
        listed = {str(path.relative_to(into)) for path in brought}
        assert listed >= {*told, "log"}, f"not listed: {sorted({*told, 'log'} - listed)}"
        assert all(path.is_file() for path in brought)
        assert (into / "log").read_bytes() == b"".join(backend.logs(handle))

    def test_fetching_again_gives_the_same(self, backend: Backend, folder: Path, tmp_path: Path) -> None:
        """Twice into one folder, once into another, by another instance; what was damaged is mended."""
        handle, told = self.left(backend, folder)
        first = backend.fetch(handle, tmp_path / "a")
        large = tmp_path / "a" / "outputs" / self.names[1]
        large.write_bytes(large.read_bytes()[:-1])
        assert sorted(backend.fetch(handle, tmp_path / "a")) == sorted(first)
        assert _digests(tmp_path / "a", told) == told, "what stood there under its final name was believed"
        self.fresh(backend).fetch(handle, tmp_path / "b")
        assert _all(tmp_path / "a") == _all(tmp_path / "b")

    def test_a_failed_run_is_collected_too(self, backend: Backend, folder: Path, tmp_path: Path) -> None:
        """What a work that failed has left is evidence, and comes back the same way."""
        handle, told = self.left(backend, folder, code=3)
        backend.fetch(handle, tmp_path / "into")
        assert _digests(tmp_path / "into", told) == told

    def test_a_killed_fetch_leaves_nothing_half(
        self, backend: Backend, folder: Path, tmp_path: Path, chance: random.Random
    ) -> None:
        """A client killed while it fetches: no file is partial under its final name, and the next goes on."""
        handle, told = self.left(backend, folder, size=20_000_000)
        began = time.monotonic()
        backend.fetch(handle, tmp_path / "whole")
        whole = time.monotonic() - began
        text = canonical(handle).decode()
        for number in range(self.kills):
            into = tmp_path / f"into{number}"
            order = self.order(backend, "fetch", handle=text, into=str(into))
            part = (number + chance.random()) / self.kills  # one kill in each part of the time
            self.killed(order, 1.5 * whole * part)
            there = {path: sha256 for path, sha256 in _digests(into, told).items() if sha256 is not None}
            assert there.items() <= told.items(), "a file stands half under its final name"
            backend.fetch(handle, into)
            assert _digests(into, told) == told

    def test_what_was_measured_is_of_this_run(self, backend: Backend, folder: Path, tmp_path: Path) -> None:
        """`measured.json` is canonical JSON and names the run; a receipt rests on it."""
        handle, _, _ = self.ran(backend, self.workload(folder, works.HELLO))
        backend.fetch(handle, tmp_path / "into")
        file = tmp_path / "into" / "measured.json"
        if not self.measures:
            assert not file.exists(), "it brings measured.json: leave out `measures = False`"
            pytest.skip("measures = False: the receipts of this backend have `measured: null`")
        data = file.read_bytes()
        measured = json.loads(data)
        assert data.rstrip(b"\n") == canonical(measured)
        assert measured["run_id"] == handle.run_id

    def test_cleanup_may_be_repeated_and_loses_no_state(
        self, backend: Backend, folder: Path, tmp_path: Path
    ) -> None:
        """After cleanup, twice and by another instance, the final status is still told, and the key still
        starts nothing."""
        witness = self.witness(backend, folder)
        submission = self.submission(backend, witness.workload(7))
        handle = backend.submit(submission)
        status = self.final(backend, handle)
        backend.fetch(handle, tmp_path / "into")
        for other in (backend, backend, self.fresh(backend)):
            other.cleanup(handle)
        assert status.state is State.FAILED
        assert self.fresh(backend).status(handle) == status
        assert backend.find(submission.key) == handle
        try:
            assert backend.submit(submission) == handle
        except RouteError:
            pass  # saying no is right too, as long as nothing runs
        assert self.final(backend, handle) == status
        assert witness.count(handle) == 1


def _digests(into: Path, names: Sequence[str]) -> dict[str, str | None]:
    """The digest of each of these files, None for one that is not there."""
    return {
        name: hashlib.sha256((into / name).read_bytes()).hexdigest() if (into / name).is_file() else None
        for name in names
    }


def _all(into: Path) -> dict[str, bytes]:
    return {str(path.relative_to(into)): path.read_bytes() for path in into.rglob("*") if path.is_file()}
