"""How a study stands: each run in the planned order, what is missing, what claims to be part of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compute_router.collecting import STUDY
from compute_router.index import folders
from compute_router.studies.folder import Ending, StudyFolder, TurnRecord
from compute_router.studies.plan import StudyPlan, Turn

__all__ = ["Missing", "Seen", "Standing", "receipts", "standing"]

_FINAL = ("succeeded", "failed", "cancelled", "timed_out", "preempted", "lost")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """One run of the order as it stands.

    `state` is that of the run, or `planned` before it, or `not_started` after tries that never executed.
    `receipt` is the file, if there is one of the run that counts. `began_us` to `over_us` is what the
    run took as a whole, queue and staging included.
    """

    turn: Turn
    state: str
    run_id: str | None
    receipt: Path | None
    why: str = ""
    tries: int = 0
    began_us: int | None = None
    over_us: int | None = None

    @property
    def counted(self) -> bool:
        return self.state in _FINAL


@dataclasses.dataclass(frozen=True, kw_only=True)
class Missing:
    """A planned run without a receipt, and why."""

    index: int
    arm: str
    why: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standing:
    """What a study has come to. Made from files alone; nothing is asked of any place.

    `receipts` are those that count, in the planned order, failures included: exactly one for each index
    that is not in `missing`. `failed` are the indexes whose run counted and did not succeed. `retried` are
    receipts of tries that are proven never to have executed: they claim their index, and another
    run holds it. `extra` are runs in the store that claim this study and are no part of it.
    """

    plan: StudyPlan
    seen: tuple[Seen, ...]
    retried: tuple[Path, ...] = ()
    extra: tuple[Path, ...] = ()
    driven: bool = False
    ending: Ending | None = None

    @property
    def receipts(self) -> tuple[Path, ...]:
        return tuple(each.receipt for each in self.seen if each.receipt is not None)

    @property
    def missing(self) -> tuple[Missing, ...]:
        return tuple(
            Missing(index=each.turn.index, arm=each.turn.arm, why=each.why or "never started")
            for each in self.seen
            if each.receipt is None
        )

    @property
    def failed(self) -> tuple[int, ...]:
        return tuple(s.turn.index for s in self.seen if s.counted and s.state != "succeeded")

    @property
    def complete(self) -> bool:
        """Whether every planned run counted and has its receipt."""
        return not self.missing

    @property
    def state(self) -> str:
        """`running`, `over`, `stopped`, `cancelled`, `left`, or `interrupted`: its driver was killed."""
        if self.driven:
            return "running"
        if all(each.counted for each in self.seen):
            return "over"
        if self.ending is not None and self.ending.state != "over":
            return self.ending.state
        return "interrupted"


def receipts(home: Path, ref: str) -> Standing:
    """How the study that `ref` names (an id, the beginning of one, a name, `latest`) stands.

    Reads files only. Raises `NotFound`, and `StoreError` for a plan or record that was damaged.
    """
    return standing(StudyFolder.open(home, ref))


def standing(folder: StudyFolder) -> Standing:
    """How the study of `folder` stands."""
    driven = folder.driven
    plan, runs = folder.plan, folder.home / "runs"
    records = {turn.index: folder.turn(turn.index) for turn in plan.turns}
    seen = tuple(_seen(turn, records[turn.index], runs, driven) for turn in plan.turns)
    tries = [this for record in records.values() for this in record.tries]
    own = {this.run_id for this in tries}
    retried = (runs / this.run_id / "receipt.json" for this in tries if this.executed is False)
    return Standing(
        plan=plan,
        seen=seen,
        retried=tuple(path for path in retried if path.is_file()),
        extra=tuple(
            path for path, sha256 in _claims(folder.home) if sha256 == plan.sha256 and path.name not in own
        ),
        driven=driven,
        ending=folder.ending,
    )


def _seen(turn: Turn, record: TurnRecord, runs: Path, driven: bool) -> Seen:
    if not record.tries:
        return Seen(turn=turn, state="planned", run_id=None, receipt=None, why="never started")
    this = record.tries[-1]
    path = runs / this.run_id
    receipt: Path | None = path / "receipt.json"
    assert receipt is not None
    there = receipt.is_file()
    shared: dict[str, Any] = {
        "turn": turn,
        "run_id": this.run_id,
        "tries": len(record.tries),
        "began_us": this.begun_us,
        "over_us": this.over_us,
    }
    if this.executed is False:
        why = f"never executed: {this.what or this.reason}"
        return Seen(state="not_started", receipt=None, why=why, **shared)
    if this.executed:
        why = "" if there else "its receipt was removed"
        return Seen(state=this.state or "unknown", receipt=receipt if there else None, why=why, **shared)
    status = _json(path / "status.json")
    state = str(status.get("state") or ("planned" if path.is_dir() else "begun"))
    why = "still running" if driven and state not in _FINAL else "never collected"
    # A receipt that nobody has written down as counted may be that of an attempt which never executed.
    return Seen(state="collecting" if state in _FINAL else state, receipt=None, why=why, **shared)


def _claims(home: Path) -> Iterator[tuple[Path, str]]:
    """Every run that says it belongs to a study, with the digest of that one."""
    for found in folders(home):
        path = Path(found)
        labels = _json(path / "run.json").get("labels")
        if isinstance(labels, Mapping) and isinstance(labels.get(STUDY), str):
            try:
                said = json.loads(labels[STUDY])
            except ValueError:
                continue
            if isinstance(said, Mapping) and isinstance(said.get("sha256"), str):
                yield path, said["sha256"]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
