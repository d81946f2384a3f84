"""One folder per run, written beside and renamed; the index beside them can be built again."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from compute_router import chain, chaincheck
from compute_router.durable import PART, fsync_folder, write_beside
from compute_router.errors import Conflict, InputError, NotFound, StoreError
from compute_router.home import default_home, fault, identity, prepare, restore_identity, runs_of
from compute_router.index import Index, folders, list_runs
from compute_router.records import encode, key_run_id
from compute_router.rows import Row, accelerator, is_run_id, load, row_of, settled_row
from compute_router.runfolder import NAMES, RunFolder
from compute_router.workload import Workload

__all__ = ["NAMES", "Row", "RunFolder", "Store", "default_home"]


class Store:
    """The runs below one home folder. Any number of processes may use it at the same time.

    Nothing is made before the first run is. `problems` collects in sentences what was found
    damaged and what was done about it. Raises `StoreError` for a disk that is full, read-only or
    not ours, and `NewerStore` when asked to write to a store that a newer version made.
    """

    def __init__(self, home: Path) -> None:
        self.home = Path(os.path.abspath(home))
        self.runs = runs_of(self.home)
        self.problems: list[str] = []
        self.index = Index(self.home, loads=msgspec.json.decode, notice=self.notice)
        self._id: str | None = None

    def notice(self, text: str) -> None:
        """Add to `problems`, once."""
        if text not in self.problems:
            self.problems.append(text)

    @property
    def id(self) -> str:
        """32 hex digits, made with the store; stands in every receipt. Makes the store if need be."""
        if self._id is None:
            self._mend_identity()
            self._id = prepare(self.home)
        return self._id

    def _mend_identity(self) -> None:
        """A damaged `store.json` is written again with the id that the chain has kept."""
        try:
            if (self.home / "store.json").exists() and identity(self.home) is None:
                kept = chain.links(self.home)[0]
                restore_identity(self.home, kept or os.urandom(16).hex())
                self.notice(f"{self.home / 'store.json'} was damaged; it was put aside and made again")
        except OSError as e:
            raise fault(e, self.home / "store.json", self.home) from e

    # Runs

    def create(
        self,
        run_id: str,
        workload: Workload,
        *,
        key: str,
        labels: Mapping[str, str] | None = None,
        records: Mapping[str, Any] | None = None,
    ) -> RunFolder:
        """The folder of run `run_id`, made if it is not there; its appearance is the commit point.

        May be repeated: with the same workload (by digest) it returns the folder that is there.
        `records` are there with it from the first moment: those of a run that was submitted
        elsewhere. Raises `Conflict` if that one holds another workload.
        """
        if not is_run_id(run_id):
            raise InputError(
                f"{run_id!r} is no run id", mend="a run id has 26 characters, as `route ps` shows"
            )
        self.writable()
        final = self.runs / run_id
        if not final.exists():
            self._make(final, workload, key, dict(labels or {}), records or {})
        run = RunFolder(self, run_id)
        there = run.read("workload", Workload)
        if there is None:
            raise StoreError(f"{final} has no workload.json", mend=f"remove {final} and try again")
        if there.digest != workload.digest:
            raise Conflict(
                f"run {run_id} is already there with another workload ({there.name})",
                mend="use another --key, or the workload as it was",
            )
        return run

    def _make(
        self, final: Path, workload: Workload, key: str, labels: dict[str, str], records: Mapping[str, Any]
    ) -> None:
        data = msgspec.to_builtins(workload)
        now = time.time_ns() // 1000
        asked = accelerator(data)
        begun = {
            "schema": "route.run/1",
            "id": final.name,
            "key": key,
            "created_us": now,
            "workload_digest": workload.digest,
            "name": workload.name,
            "kind": workload.kind,
            "purpose": workload.purpose.value,
            "accelerator": asked,
            "labels": labels,
            **records.get("run", {}),
        }
        beside = self.runs / f".{final.name}.{os.getpid()}.{os.urandom(4).hex()}{PART}"

        def appear() -> bool:
            try:
                os.rename(beside, final)
            except OSError:
                # Somebody else was first; what stands there is compared by the caller.
                if not final.is_dir():
                    raise
                return False
            fsync_folder(self.runs)
            return True

        try:
            beside.mkdir(mode=0o700)
            for name, record in {**records, "workload": workload, "run": begun}.items():
                os.replace(write_beside(beside, f"{name}.json", encode(record)), beside / f"{name}.json")
            fsync_folder(beside)
            # The row comes first, so that no run can be there without one.
            row = Row(
                id=final.name,
                created_us=now,
                updated_us=now,
                name=workload.name,
                kind=workload.kind,
                purpose=workload.purpose.value,
                backend="",
                surface="",
                state="planned",
                attempt=1,
                exit_code=None,
                policy="",
                accelerator=asked,
                key=key,
                receipt_id=None,
                collected=False,
                ended_us=None,
            )
            if self.index.add(row, appear) != (True, True):
                self._settle(final)
            elif records and (made := row_of(final, msgspec.json.decode)) is not None:
                names = ("created_us", "backend", "surface", "state", "attempt", "policy")
                self.index.change(final.name, {name: getattr(made, name) for name in names})
        except OSError as e:
            raise fault(e, final, self.home) from e
        except (ValueError, UnicodeEncodeError) as e:
            raise InputError(f"the workload cannot be written: {e}") from e
        finally:
            if beside.exists():
                shutil.rmtree(beside, ignore_errors=True)

    def _settle(self, final: Path) -> None:
        """Several made this run at once, or an earlier try was cut off: the row says what the folder says."""
        there = load(str(final / "run.json"), msgspec.json.decode)
        names = ("created_us", "name", "kind", "purpose", "accelerator", "key")
        try:
            self.index.change(final.name, {n: there[n] for n in names if n in there} or {"collected": False})
        except StoreError as e:
            self.notice(f"{e.what}; `route ps` may lag behind")

    def open(self, ref: str) -> RunFolder:
        """The run that `ref` means: an id, a prefix of one of at least four characters, `latest`, `latest~2`
        (two before it), the newest run of that name, or the run of that key. Raises `NotFound` with the
        nearest."""
        ref = ref.strip()
        low = ref.lower()
        if is_run_id(low) and (self.runs / low).is_dir():
            return RunFolder(self, low)
        if back := re.fullmatch("latest(?:~([0-9]{1,6}))?", low):
            before = int(back[1] or 0)
            newest = self.list(limit=before + 1)
            if not newest:
                raise NotFound("there is no run yet", mend="route run workload.py makes one")
            if len(newest) <= before:
                raise NotFound(f"there are only {len(newest)} runs", mend="`route ps` lists the runs")
            return RunFolder(self, newest[before].id)
        found = self._prefixed(low) if len(low) >= 4 else []
        if len(found) == 1:
            return RunFolder(self, found[0])
        named = self.list(limit=1, name=ref)
        if named:
            return RunFolder(self, named[0].id)
        if not found and (keyed := self._keyed(ref)):
            return RunFolder(self, keyed)
        if found:
            more = ", ".join(found[:4]) + (", ..." if len(found) > 4 else "")
            raise NotFound(f"{ref!r} is the beginning of several runs", mend=f"write more of it: {more}")
        raise NotFound(f"there is no run {ref!r}", mend=self._nearest(ref))

    def _prefixed(self, text: str) -> list[str]:
        if not self.runs.is_dir() or not re.fullmatch("[0-9a-hjkmnp-tv-z]{4,26}", text):
            return []
        query = "SELECT id FROM runs WHERE id >= ? AND id < ? ORDER BY id LIMIT 8"
        rows = self.index.read(lambda c: c.execute(query, (text, text + "~")).fetchall())
        return [str(r[0]) for r in rows if (self.runs / str(r[0])).is_dir()]

    def _keyed(self, key: str) -> str:
        try:
            run_id = key_run_id(key)
        except UnicodeEncodeError:  # a file name that is no text cannot have been a key
            return ""
        return run_id if (self.runs / run_id).is_dir() else ""

    def _nearest(self, ref: str) -> str:
        rows = self.list(limit=500)
        words = list(dict.fromkeys([row.name for row in rows] + [row.id for row in rows]))
        near = difflib.get_close_matches(ref.lower(), words, 1, 0.6)
        if near:
            return f"did you mean {near[0]}?"
        return "`route ps` lists the runs" if rows else "route run workload.py makes the first one"

    def list(
        self,
        *,
        limit: int | None = 50,
        state: str | Iterable[str] | None = None,
        kind: str | None = None,
        backend: str | None = None,
        name: str | None = None,
        live: bool = False,
    ) -> list[Row]:
        """The newest runs first; see `compute_router.index.list_runs`. Empty if there is no store."""
        return list_runs(
            self.home,
            limit=limit,
            state=state,
            kind=kind,
            backend=backend,
            name=name,
            live=live,
            index=self.index,
        )

    def row(self, run_id: str) -> Row | None:
        """The row of one run as its folder has it now; None if there is no such run."""
        blank = Row(run_id, 0, 0, "", "", "", "", "", "", 1, None, "", "", run_id, None, False, None, "?")
        return settled_row(blank, self.runs, msgspec.json.decode)

    def rebuild(self) -> int:
        """Build the index from the folders again; returns the number of runs."""
        return self.index.rebuild() or 0 if self.runs.is_dir() else 0

    def remove(self, ref: str) -> None:
        """Remove a run for good. Its receipts are noted in the chain as removed on purpose.

        Raises `NotFound`. That the run is over and collected is for the caller to see to.
        """
        run = self.open(ref)
        self.writable()
        gone = self.runs / f".{run.id}.{os.urandom(4).hex()}{PART}"
        try:
            with self.chained() as links:
                links.removed(self._links_of(run.path))
                os.rename(run.path, gone)
                fsync_folder(self.runs)
            self.index.forget(run.id)
            shutil.rmtree(gone)
        except OSError as e:
            raise fault(e, run.path, self.home, "removed") from e

    def sweep(self, *, before: float) -> int:
        """Remove what writes that never ended left behind before `before` (epoch seconds); how many."""
        count = 0
        for folder in (self.home, self.runs, *map(Path, folders(self.home))):
            for path in folder.glob(f".*{PART}"):
                with contextlib.suppress(OSError):
                    if path.lstat().st_mtime < before:
                        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
                        count += 1
        return count

    def writable(self) -> None:
        """Make the store if need be. Raises `StoreError`, or `NewerStore` if it may only be read."""
        _ = self.id

    # The chain of receipts

    @contextlib.contextmanager
    def chained(self) -> Iterator[chain.Chain]:
        """Hold the chain of this store's receipts; one process at a time."""
        with chain.locked(self.home, self.id, self._every_link()) as found:
            yield found

    def _every_link(self) -> Iterator[chain.Link]:
        for path in folders(self.home):
            yield from self._links_of(Path(path))

    def _links_of(self, folder: Path) -> Iterator[chain.Link]:
        """The links of the receipts in one run's folder, those of earlier attempts included."""
        return (each.link for each in chaincheck.kept(folder))

    def check_chain(self) -> Sequence[str]:
        """What is wrong with the chain, in sentences: receipts that are missing, changed or not in it.

        Empty if all is well. Reads every receipt's identity, not all of its content (see `verify`).
        """
        return list(chaincheck.check(self.home).problems)
