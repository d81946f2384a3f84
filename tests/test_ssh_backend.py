"""The backend `ssh` offers what each machine has by its own answer, names what is wrong, and runs work."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from boards import element, process, uuid
from peers import workload
from reserved import Fleet, asks, ended, offered, refusals, submission
from sshd import keygen

from compute_router.backend import NoOffer, Offer, State, Surface
from compute_router.backends.ssh import SSHBackend, SSHSettings
from compute_router.gather import gather
from compute_router.machines.entry import MachineEntry
from compute_router.machines.placing import sentence
from compute_router.machines.refusing import refusal


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path / "fleet")
    yield made
    made.close()


def test_a_plain_script_runs_on_a_machine(fleet: Fleet, home: Path, folder: Path) -> None:
    fleet.add("h1")
    backend = fleet.backend(home)
    # A look has two seconds, which a computer full of tests may not give it the first time.
    assert any(backend.health().ok for _ in range(10))
    [offer] = backend.offers(workload(folder))
    assert isinstance(offer, Offer)
    assert (offer.backend, offer.id, offer.surface) == ("ssh", "h1", Surface.RESERVED)
    assert offer.estimates.queue is not None
    assert offer.quote is None
    handle = backend.submit(submission(backend, workload(folder)))
    status, log = ended(backend, handle)
    assert (status.state, log) == (State.SUCCEEDED, "hello\n")
    assert (fleet.folder / "h1" / "root" / "runs" / handle.run_id).is_dir()


def test_without_machines_there_is_one_reason(home: Path, folder: Path) -> None:
    backend = SSHBackend(SSHSettings(), home)
    [no] = backend.offers(workload(folder))
    assert isinstance(no, NoOffer)
    assert (no.code, no.set_up) == ("no_machines", False)
    assert no.mend == "route machine add NAME USER@ADDRESS"
    health = backend.health()
    assert not health.ok
    assert not health.set_up
    assert no.reason in health.summary
    assert not home.exists()


def test_tpus_are_not_its_own(home: Path, folder: Path) -> None:
    entries = {"t1": MachineEntry(address="u@t1", accelerator="v6e-8")}
    backend = SSHBackend(SSHSettings(machines=entries), home)
    assert backend.places() == []
    assert [no.code for no in refusals(backend, workload(folder))] == ["no_machines"]


def test_part_of_a_machine_is_offered_by_its_gpus(fleet: Fleet, home: Path, folder: Path) -> None:
    fleet.add("h1", *(element("H200-SXM", n) for n in range(8)), accelerator="H200:8", price_per_hour="32.00")
    backend = fleet.backend(home)
    [offer] = offered(backend, workload(folder, needs=asks("H200:2"))).values()
    assert offer.id == "h1:h200:2"
    assert (offer.hardware.family, offer.hardware.sku, offer.hardware.count) == ("gpu", "H200", 2)
    assert offer.capacity == min(4, offer.hardware.cpus or 1)
    assert offer.quote is not None
    assert offer.quote.amount == "8"
    assert "2 of 8 GPUs of h1" in offer.quote.source
    assert offer.note == ""
    [no] = backend.offers(workload(folder, needs=asks("H100:2")))
    assert isinstance(no, NoOffer)
    assert no.code == "accelerator"
    assert "h1 has 8 (NVIDIA H200)" in no.reason


def test_what_is_found_counts_and_not_what_was_said(fleet: Fleet, home: Path, folder: Path) -> None:
    fleet.add("h1", *(element("H200-SXM", n) for n in range(7)), accelerator="H200:8")
    backend = fleet.backend(home)
    [offer] = offered(backend, workload(folder, needs=asks("H200:2"))).values()
    assert "its entry says H200:8, found are 7" in offer.note
    [no] = backend.offers(workload(folder, needs=asks("H200:8")))
    assert isinstance(no, NoOffer)
    assert "h1 has 7" in no.reason
    assert "its entry says H200:8" in no.reason


def test_a_sick_gpu_and_one_that_others_use_are_left_out(fleet: Fleet, home: Path, folder: Path) -> None:
    fleet.add(
        "h1",
        element("H200-SXM", 0),
        element("H200-SXM", 1, failure="Yes"),
        element("H200-SXM", 2, used="9000 MiB", processes=process(4_000_000)),
    )
    backend = fleet.backend(home)
    [offer] = offered(backend, workload(folder, needs=asks("H200:1"))).values()
    assert offer.capacity == 1
    assert not offer.busy
    [no] = backend.offers(workload(folder, needs=asks("H200:2")))
    assert isinstance(no, NoOffer)
    assert no.code == "sick_gpu"
    assert "could not replace a broken row" in no.reason


def test_a_process_of_others_is_the_reason(fleet: Fleet, home: Path, folder: Path) -> None:
    fleet.add("h1", element("H200-SXM", 0, used="9000 MiB", processes=process(4_000_000)))
    [no] = fleet.backend(home).offers(workload(folder, needs=asks("H200:1")))
    assert isinstance(no, NoOffer)
    assert no.code == "foreign"
    assert "4000000" in no.reason


def test_a_dead_machine_costs_the_others_nothing(fleet: Fleet, home: Path, folder: Path) -> None:
    home.mkdir()
    for name in ("h1", "h2"):
        fleet.add(name)
    fleet.servers["h2"].kill()
    backend = fleet.backend(home)
    assert list(offered(backend, workload(folder))) == ["h1"]
    [no] = refusals(backend, workload(folder))
    assert no.code == "unreachable"
    assert "h2 is unreachable since" in no.reason
    assert no.mend
    since = no.reason.split(":")[0]
    [again] = refusals(fleet.backend(home), workload(folder))
    assert since in again.reason, "another process knows since when"
    fleet.servers["h2"].start()
    assert list(offered(fleet.backend(home), workload(folder))) == ["h1", "h2"], "it is back at once"
    fleet.servers["h2"].kill()
    backend = fleet.backend(home)
    health = backend.health()
    assert health.ok
    assert "1 of 2 machines answer" in health.summary
    assert [(check.name, check.ok) for check in health.checks] == [("h1", True), ("h2", False)]


def test_only_those_named_are_offered(fleet: Fleet, home: Path, folder: Path) -> None:
    for name in ("h1", "h2"):
        fleet.add(name)
    assert list(offered(fleet.backend(home), workload(folder))) == ["h1", "h2"]
    only = fleet.backend(home, "h2")
    assert list(offered(only, workload(folder))) == ["h2"]
    handle = fleet.backend(home).submit(submission(fleet.backend(home), workload(folder), "h1"))
    assert only.status(handle).state is not State.UNKNOWN, "runs on the others are still found"
    [no] = fleet.backend(home, "h3").offers(workload(folder))
    assert isinstance(no, NoOffer)
    assert no.code == "only"
    assert "h1, h2" in no.mend


def test_a_leased_gpu_makes_it_busy(fleet: Fleet, home: Path, folder: Path) -> None:
    fleet.add("h1", *(element("H200-SXM", n) for n in range(2)))
    backend = fleet.backend(home)
    source = "import os, time\nprint(os.environ['CUDA_VISIBLE_DEVICES'], flush=True)\ntime.sleep(60)\n"
    one = workload(folder, source, needs=asks("H200:1"))
    handle = backend.submit(submission(backend, one))
    assert next(backend.logs(handle, follow=True)).decode().strip() in (uuid(0), uuid(1))
    [free] = offered(backend, one).values()
    [both] = offered(backend, workload(folder, source, needs=asks("H200:2"))).values()
    assert not free.busy
    assert both.busy
    assert both.estimates.queue is None
    backend.cancel(handle)


OLD = """#!/bin/sh
exec {python} -I -S -c 'import sys; sys.version_info = (3, 6, 15, "final", 0); exec(sys.argv[1])' "$4"
"""
"""A stand-in for a Python that is too old to be found on today's machines."""


def test_a_python_that_is_too_old_is_named(fleet: Fleet, home: Path, folder: Path, tmp_path: Path) -> None:
    old = tmp_path / "old" / "python3"
    old.parent.mkdir()
    old.write_text(OLD.format(python=sys.executable))
    old.chmod(0o755)
    # After the rc files of whoever runs the tests, which may have another python3 first.
    fleet.add("h1", extra=f'ForceCommand PATH="{old.parent}:$PATH"; eval "$SSH_ORIGINAL_COMMAND"')
    [no] = refusals(fleet.backend(home), workload(folder))
    assert no.code == "python"
    assert "h1: python3 here is 3.6" in no.reason
    assert "3.8" in no.mend


def test_what_the_work_needs_of_python_is_looked_at_there(fleet: Fleet, home: Path, folder: Path) -> None:
    fleet.add("h1")
    backend = fleet.backend(home)
    for fields, said in (
        ({"requires_python": ">=3.99"}, "the workload needs Python >=3.99"),
        ({"python": "/no/such/python"}, "there is no Python at /no/such/python"),
    ):
        [no] = refusals(backend, workload(folder, **fields))
        assert no.code == "python"
        assert said in no.reason
    named = workload(folder, "import sys\nprint(sys.executable)\n", python=sys.executable)
    status, log = ended(backend, backend.submit(submission(backend, named)))
    assert (status.state, log.strip()) == (State.SUCCEEDED, sys.executable)


def test_a_silent_machine_is_left_out_in_time(fleet: Fleet, home: Path, folder: Path) -> None:
    """Its packets are swallowed, as by a firewall: the others are offered all the same."""
    entry = fleet.add("h1")
    fleet.add("h2")
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(1)
        address = f"{entry.address.rpartition(':')[0]}:{deaf.getsockname()[1]}"
        fleet.entries["h1"] = msgspec.structs.replace(entry, address=address)
        backend = fleet.backend(home)
        got = gather({"ssh": backend}, workload(folder))
        assert [offer.id for offer in got if isinstance(offer, Offer)] == ["h2"]
        [no] = [answer for answer in got if isinstance(answer, NoOffer)]
        assert no.code == "unreachable"
        assert "h1" in no.reason
        [ill, well] = backend.health().checks
        assert (ill.name, ill.ok, well.ok) == ("h1", False, True)


def test_a_place_without_room_for_leases_is_refused(fleet: Fleet, home: Path, folder: Path) -> None:
    fleet.add("h1", env={"ROUTE_LEASE_DIR": "/no/such/folder"})
    [no] = refusals(fleet.backend(home), workload(folder))
    assert no.code == "leases"
    assert no.mend


def test_an_exclusive_machine_takes_one_run(fleet: Fleet, home: Path, folder: Path) -> None:
    fleet.add("h1", exclusive=True, price_per_hour="3")
    backend = fleet.backend(home)
    work = workload(folder, "import time\nprint('on', flush=True)\ntime.sleep(60)\n")
    [offer] = offered(backend, work).values()
    assert (offer.capacity, offer.busy) == (1, False)
    assert offer.quote is not None
    assert offer.quote.amount == "3"
    handle = backend.submit(submission(backend, work))
    assert next(iter(backend.logs(handle, follow=True))).startswith(b"on")
    [offer] = offered(backend, work).values()
    assert offer.busy
    backend.cancel(handle)


def test_a_changed_key_stops_everything(fleet: Fleet, home: Path, folder: Path) -> None:
    fleet.add("h1")
    server = fleet.servers["h1"]
    server.kill()
    for path in (server.host_key, Path(f"{server.host_key}.pub")):
        path.unlink()
    keygen(server.host_key)
    server.start()
    backend = fleet.backend(home)
    [no] = refusals(backend, workload(folder))
    assert no.code == "login"
    assert "route machine remove h1" in no.mend
    assert not backend.health().ok


@pytest.mark.parametrize(
    ("code", "slug"),
    [("NETWORK_ROOT", "network_root"), ("BAD_ROOT", "root"), ("OLD_PYTHON", "python"), ("NEW", "rejected")],
)
def test_what_a_machine_refuses_at_the_door_has_a_name(code: str, slug: str) -> None:
    e = refusal("h1", "hello", {"code": code, "what": "it cannot be used", "mend": "do this"})
    no = sentence(e)
    assert (no.code, no.mend) == (slug, "do this")
    assert "it cannot be used" in no.reason
