"""The folder of one study: its plan, what became of each run, who drives it; whole files or none."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from compute_router.durable import PART, fsync_folder, is_held, read_file, write_beside, write_file
from compute_router.errors import NotFound, StoreError
from compute_router.home import fault
from compute_router.records import Record, encode
from compute_router.scrubbing import cleaned
from compute_router.studies.plan import StudyPlan

__all__ = ["Ending", "StudyFolder", "Try", "TurnRecord", "studies", "studies_of"]

MOST_BYTES = 64 << 20


class Try(Record, frozen=True, kw_only=True):
    """One start of a run of the study. `executed` is None until it is known; only what is proven never
    to have executed may be tried again."""

    key: str
    run_id: str
    begun_us: int
    over_us: int | None = None
    state: str | None = None
    reason: str | None = None
    what: str = ""
    executed: bool | None = None
    receipt_id: str | None = None


class TurnRecord(Record, frozen=True, kw_only=True):
    """What became of one run in the order: its tries, the last of which may count."""

    schema: str = "route.turn/1"
    index: int
    tries: tuple[Try, ...] = ()

    @property
    def over(self) -> bool:
        """Whether it counted, however it ended: it is never repeated."""
        return bool(self.tries) and self.tries[-1].executed is True

    @property
    def open(self) -> Try | None:
        """The try that was begun and whose end is not known yet."""
        return self.tries[-1] if self.tries and self.tries[-1].executed is None else None


class Ending(Record, frozen=True, kw_only=True):
    """How the last driver ended: `over`, `stopped`, `cancelled` or `left` (asked to end; nothing lost)."""

    schema: str = "route.ending/1"
    state: str
    at_us: int
    code: str = ""
    what: str = ""
    mend: str = ""
    exit_code: int = 0


def studies_of(home: Path) -> Path:
    return home / "studies"


def studies(home: Path) -> list[StudyFolder]:
    """Every study in a home, newest first. Empty if there is none; unreadable ones are left out."""
    found = []
    try:
        names = sorted(os.listdir(studies_of(home)))
    except FileNotFoundError:
        return []
    except OSError as e:
        raise fault(e, studies_of(home), home, "read") from e
    for name in names:
        folder = StudyFolder(home, name)
        if name.startswith(".") or not folder.file.is_file():
            continue
        with contextlib.suppress(StoreError):
            found.append((folder.plan.created_us, folder))
    return [folder for _, folder in sorted(found, key=lambda pair: -pair[0])]


class StudyFolder:
    """The study `id` below `home`. Anyone may read it at any time; one process at a time drives it."""

    def __init__(self, home: Path, id: str) -> None:
        self.home, self.id = home, id
        self.path = studies_of(home) / id
        self.file = self.path / "study.json"
        self._plan: StudyPlan | None = None

    @classmethod
    def open(cls, home: Path, ref: str) -> StudyFolder:
        """The study that `ref` means: an id, the beginning of one, a name (its newest), `latest`.

        Raises `NotFound` with the nearest there is.
        """
        if ref and "/" not in ref and not ref.startswith(".") and (found := cls(home, ref)).file.is_file():
            return found
        known = studies(home)
        if ref == "latest" and known:
            return known[0]
        for folder in known:
            if folder.plan.name == ref:
                return folder
        begun = [folder for folder in known if ref and folder.id.startswith(ref)]
        if len(begun) == 1:
            return begun[0]
        if begun:
            more = ", ".join(folder.id for folder in begun[:4])
            raise NotFound(f"{ref!r} is the beginning of several studies", mend=f"write more of it: {more}")
        from compute_router.reading.values import near

        names = [folder.id for folder in known]
        mend = near(ref, [*names, *(f.plan.name for f in known)]) if known else "route study run study.toml"
        raise NotFound(
            "there is no study yet" if not known and ref == "latest" else f"there is no study {ref!r}",
            mend=mend,
        )

    @property
    def plan(self) -> StudyPlan:
        """Raises `StoreError` if it cannot be read or was changed."""
        if self._plan is None:
            try:
                data = read_file(self.file, MOST_BYTES)
                if data is None:
                    raise NotFound(f"there is no study {self.id!r}", mend="route study list")
                self._plan = msgspec.json.decode(data, type=StudyPlan).check()
            except OSError as e:
                raise fault(e, self.file, self.home, "read") from e
            except ValueError as e:
                raise StoreError(
                    f"{self.file} is damaged: {e}", mend="put it back, or begin another study"
                ) from e
        return self._plan

    def create(self, plan: StudyPlan) -> bool:
        """Write the plan, once; whether it was not there yet. The folder appears whole or not at all."""
        if self.file.is_file():
            return False
        try:
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            beside = self.path.with_name(f".{self.id}.{os.getpid()}.{os.urandom(4).hex()}{PART}")
            beside.mkdir(mode=0o700)
            try:
                (beside / "turns").mkdir(mode=0o700)
                os.replace(write_beside(beside, "study.json", encode(plan)), self._in(beside, "study.json"))
                fsync_folder(beside)
                try:
                    os.rename(beside, self.path)
                except OSError:
                    if not self.file.is_file():
                        raise
                    return False
                fsync_folder(self.path.parent)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
        except OSError as e:
            raise fault(e, self.path, self.home) from e
        return True

    @staticmethod
    def _in(folder: Path, name: str) -> Path:
        return folder / name

    # What became of each run

    def turn(self, index: int) -> TurnRecord:
        return self._read(f"turns/{index}.json", TurnRecord) or TurnRecord(index=index)

    def write_turn(self, record: TurnRecord) -> None:
        self._write("turns", f"{record.index}.json", record)

    @property
    def ending(self) -> Ending | None:
        """How the last driver ended; None while there was none, or one drives, or it was killed."""
        found: Ending | None = self._read("ending.json", Ending)
        return found

    def end(self, ending: Ending | None) -> None:
        if ending is None:
            (self.path / "ending.json").unlink(missing_ok=True)
        else:
            self._write("", "ending.json", ending)

    def _read(self, name: str, type: type[Any]) -> Any:
        try:
            data = read_file(self.path / name, MOST_BYTES)
            return None if data is None else msgspec.json.decode(data, type=type)
        except OSError as e:
            raise fault(e, self.path / name, self.home, "read") from e
        except ValueError as e:
            # A damaged record must never look like a run that was not started.
            raise StoreError(
                f"{self.path / name} is damaged: {e}", mend="put it back, or begin another study"
            ) from e

    def _write(self, below: str, name: str, record: Record) -> None:
        try:
            write_file(self.path / below, name, encode(record))
        except OSError as e:
            raise fault(e, self.path / below / name, self.home) from e

    # Being cancelled

    @property
    def cancelling(self) -> bool:
        """Whether somebody has asked that the study and its run in flight end."""
        return (self.path / "cancel").exists()

    def ask_cancel(self, asked: bool = True) -> None:
        try:
            (self.path / "cancel").touch(0o600) if asked else (self.path / "cancel").unlink(missing_ok=True)
        except OSError as e:
            raise fault(e, self.path / "cancel", self.home) from e

    # Who drives

    def take(self, *, patience: float = 0.3) -> int | None:
        """The descriptor of the driver's lock, now held; None if another process holds it.

        It is held as long as that descriptor, or one inherited from it, is open. `patience` in
        seconds is for those who only look (`driven`).
        """
        fd = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The number of the driver before may be another process's by now.
                os.ftruncate(fd, 0)
                return fd
            except BlockingIOError:
                if time.monotonic() >= end:
                    os.close(fd)
                    return None
                time.sleep(0.02)
            except BaseException:
                os.close(fd)
                raise

    @property
    def driven(self) -> bool:
        """Whether a process drives it now."""
        return is_held(self.path / "lock")

    @property
    def driver(self) -> int | None:
        """The process that drives it now, if it can be told."""
        try:
            text = (self.path / "lock").read_text()
        except OSError:
            return None
        return int(text) if text.strip().isdigit() and self.driven else None

    # What happens, as it happens

    def tell(self, event: str, **facts: Any) -> None:
        line = encode(cleaned({"event": event, "at_us": time.time_ns() // 1000, **facts}))
        fd = os.open(self.path / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, line)
        finally:
            os.close(fd)

    def events(self, offset: int) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The whole lines from byte `offset` on: the offset behind each, and its event."""
        try:
            with open(self.path / "events.jsonl", "rb") as file:
                file.seek(offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    offset += len(line)
                    try:
                        event = json.loads(line)
                    except ValueError:
                        continue
                    if isinstance(event, dict):
                        yield offset, event
        except FileNotFoundError:
            return

    def told(self) -> int:
        """The size of what was told so far."""
        try:
            return (self.path / "events.jsonl").stat().st_size
        except FileNotFoundError:
            return 0
