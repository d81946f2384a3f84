"""Runs on the machines of one backend, whoever submitted them: what is left there for other clients, what
others left, and what is removed."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from compute_router.backend import Freed, Handle, Kept, Submission, There
from compute_router.errors import Broken, RouteError, Unavailable
from compute_router.gather import side_by_side
from compute_router.machines.contract import Machine, MachineBackend
from compute_router.machines.framing import MOST_PAYLOAD, encode
from compute_router.records import key_run_id, plain

if TYPE_CHECKING:
    from compute_router.machines.running import Running
    from compute_router.machines.session import Session

__all__ = ["client", "keep", "kept", "sweep", "there", "unsure"]

DEADLINE = 8.0
"""Seconds that every machine may take; they are asked side by side."""
SWEEPING = 600.0
"""Seconds that a machine may take to remove what is not needed: a disk that is full of it is slow."""
_RUN_ID = re.compile(r"[0-9a-hjkmnp-tv-z]{26}")
T = TypeVar("T")


def keep(session: Session, submission: Submission, handle: Handle) -> None:
    """Send what another client needs of the run along with its start, without waiting for an answer."""
    lines = submission.records + json.dumps({"handle": plain(handle)}).encode() + b"\n"
    # Without them this client alone can go on with the run: no reason not to start it.
    if submission.records and len(lines) <= MOST_PAYLOAD:
        session.write(encode({"op": "keep", "run_id": submission.id, "attempt": submission.attempt}, lines))


def client(home: Path) -> str:
    """What this client is called in the mark of a run that it has collected."""
    import getpass
    import platform

    from compute_router.home import identity

    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a user without a name
        user = "somebody"
    return f"{user}@{platform.node() or 'somewhere'} (store {(identity(home) or 'unknown')[:8]})"


def unsure(name: str, key: str, why: BaseException) -> Unavailable:
    """The refusal of a start, or of an answer, that depends on what a machine knows that cannot be asked."""
    told = _plain(name, why.what if isinstance(why, RouteError) else str(why))
    return Unavailable(f"whether {key!r} was started on {name} cannot be known: {told}", mend=_ways_out(name))


def _ways_out(name: str) -> str:
    return f"wait until {name} answers, or if it never will: route machine remove {name}"


def _plain(name: str, why: str) -> str:
    """Why a machine could not be asked, where its name is told already."""
    return why.removeprefix(f"{name}: ").removeprefix(f"{name}, ")


def kept(backend: MachineBackend, running: Running, ref: str) -> Kept | None:
    """The run whose id or key is `ref`; see `Backend.kept`."""
    ids = [*([ref] if _RUN_ID.fullmatch(ref) else []), key_run_id(ref)]

    def ask(machine: Machine) -> Kept | None:
        frame = running.sessions(machine).ask("kept", run_ids=ids)
        if not isinstance(run_id := frame.head.get("run_id"), str) or run_id not in ids:
            return None
        status = frame.head.get("status")
        attempt = status.get("attempt") if isinstance(status, dict) else 1
        return Kept(
            handle=_handle(frame.body, backend, machine, run_id, attempt if type(attempt) is int else 1),
            place=machine.name,
            records=frame.body,
        )

    found, unseen = _ask(backend, ask)
    for answer in found:
        if answer is not None:
            return answer
    if unseen:
        raise Unavailable(
            f"{' and '.join(unseen)} could not be asked: {_why(unseen)}", mend=_ways_out(next(iter(unseen)))
        )
    return None


def _handle(lines: bytes, backend: MachineBackend, machine: Machine, run_id: str, attempt: int) -> Handle:
    """The handle of a run by its machines' names here. One that was kept knows all of them, in order."""
    import msgspec

    from compute_router.machines.running import VERSION

    data: dict[str, Any] = {"machines": [machine.name], "roots": [machine.root]}
    key = run_id
    for line in lines.splitlines():
        if not line.startswith(b'{"handle"'):
            continue
        with contextlib.suppress(ValueError, KeyError, TypeError, msgspec.ValidationError):
            told = msgspec.convert(json.loads(line)["handle"], Handle)
            names = {place.name for place in backend.places()}
            key = told.key
            # Another client may know the same machine under another name: then one machine is what is known.
            if told.run_id == run_id and names.issuperset(told.data["machines"]):
                data = dict(told.data)
    return Handle(backend=backend.name, version=VERSION, run_id=run_id, key=key, attempt=attempt, data=data)


def there(backend: MachineBackend, running: Running) -> Sequence[There]:
    """Every run on the machines of `backend`; see `Backend.there`."""

    def ask(machine: Machine) -> list[There]:
        listed = running.sessions(machine).ask("list", about=True).head.get("runs")
        return [_there(machine, run) for run in listed if isinstance(run, dict)] if listed else []

    found, unseen = _ask(backend, ask)
    if unseen and not found:
        raise Unavailable(f"{' and '.join(unseen)} could not be asked: {_why(unseen)}", mend="try again")
    return sorted((run for runs in found for run in runs), key=lambda run: run.run_id, reverse=True)


def _there(machine: Machine, run: dict[str, Any]) -> There:
    about, ended = run.get("about"), run.get("ended_us")
    return There(
        run_id=str(run.get("run_id")),
        place=machine.name,
        state=str(run.get("state")),
        attempt=run["attempt"] if type(run.get("attempt")) is int else 1,
        ended_us=ended if type(ended) is int else None,
        collected=bool(run.get("collected")),
        about=about if isinstance(about, dict) else {},
    )


def sweep(backend: MachineBackend, running: Running, before_us: int, *, delete: bool) -> Sequence[Freed]:
    """What is not needed any more on the machines of `backend`; see `Backend.sweep`."""

    def ask(machine: Machine) -> Freed:
        told = running.sessions(machine).ask(
            "gc", before_us=before_us, dry_run=not delete, deadline=SWEEPING
        ).head  # fmt: skip
        runs, files, size = (told.get(name) for name in ("removed", "blobs", "bytes"))
        return Freed(
            place=machine.name,
            runs=tuple(map(str, runs)) if isinstance(runs, list) else (),
            files=files if type(files) is int else 0,
            size_bytes=size if type(size) is int else 0,
        )

    found, unseen = _ask(backend, ask, SWEEPING)
    missed = [Freed(place=name, why=_plain(name, why)) for name, why in unseen.items()]
    return [*found, *missed]


def _why(unseen: dict[str, str]) -> str:
    name, why = next(iter(unseen.items()))
    return _plain(name, why)


def _ask(
    backend: MachineBackend, ask: Callable[[Machine], T], deadline: float = DEADLINE
) -> tuple[list[T], dict[str, str]]:
    """What each machine answers, side by side, and why the others could not be asked, by name."""
    machines = {machine.name: machine for machine in backend.places()}
    calls = {name: functools.partial(ask, machine) for name, machine in machines.items()}
    got = side_by_side(calls, deadline)
    found: list[T] = []
    unseen = {name: f"no answer within {deadline:.0f} s" for name in machines if name not in got}
    for name, answer in got.items():
        if isinstance(answer, (RouteError, Broken)):
            unseen[name] = str(answer)
        elif isinstance(answer, BaseException):
            raise answer
        else:
            found.append(answer)
    return found, unseen
