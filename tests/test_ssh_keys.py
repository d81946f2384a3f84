"""A key names one run on all reserved machines together, whoever submits it and wherever it is offered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from peers import workload
from reserved import Fleet, ended, submission

from compute_router.backend import State
from compute_router.errors import Conflict, Unavailable
from compute_router.records import key_run_id


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path / "fleet")
    for name in ("h1", "h2"):
        made.add(name)
    yield made
    made.close()


def runs(fleet: Fleet) -> int:
    return sum(len(list((fleet.folder / name / "root" / "runs").glob("*"))) for name in ("h1", "h2"))


def test_another_client_starts_no_second_one_elsewhere(fleet: Fleet, tmp_path: Path, folder: Path) -> None:
    one, other = fleet.backend(tmp_path / "one", "h1"), fleet.backend(tmp_path / "other", "h2")
    given = {"id": key_run_id("nightly"), "key": "nightly"}
    first = one.submit(submission(one, workload(folder), **given))
    with pytest.raises(Conflict, match="started on h1"):
        other.submit(submission(other, workload(folder), **given))
    assert other.find("nightly") == first
    assert ended(one, first)[0].state is State.SUCCEEDED
    assert runs(fleet) == 1


def test_what_cannot_be_asked_starts_nothing(fleet: Fleet, tmp_path: Path, folder: Path) -> None:
    client = fleet.backend(tmp_path / "one", "h2")
    fleet.servers["h1"].kill()
    given = {"id": key_run_id("nightly"), "key": "nightly"}
    made = submission(client, workload(folder), **given)
    with pytest.raises(Unavailable, match="cannot be known") as refused:
        client.submit(made)
    with pytest.raises(Unavailable, match="cannot be known") as sought:
        client.find("nightly")
    for told in (refused.value, sought.value):
        assert told.what.startswith("whether 'nightly' was started on h1 cannot be known: ")
        assert "refuses the connection" in told.what, "why"
        assert "wait until h1 answers" in told.mend
        assert "route machine remove h1" in told.mend
        assert "\n" not in told.what + told.mend
    assert runs(fleet) == 0
    without = client.submit(submission(client, workload(folder)))
    assert ended(client, without)[0].state is State.SUCCEEDED
    assert client.find(without.run_id) == without, "found where it is, whoever else is silent"
