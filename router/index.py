"""The index of runs: one SQLite file that can be deleted at any time. Standard library only.

The run folders are the truth; a row only repeats what they say, so that lists are quick. The
file behind `index.sqlite` (a link) is never written anew under the same name: a program that
still holds an old one, and its write-ahead log, cannot touch the new one.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from compute_router.errors import StoreError
from compute_router.home import fault, runs_of
from compute_router.rows import COLUMNS, Loads, Row, is_run_id, row_of, settled_row, storable
from compute_router.selecting import LIVE, select

__all__ = ["Index", "Row", "list_runs"]

VERSION = 1
BUSY_SECONDS = 30.0
T = TypeVar("T")
_TABLE = """
CREATE TABLE runs (
  id TEXT PRIMARY KEY, created_us INTEGER NOT NULL, updated_us INTEGER NOT NULL, name TEXT NOT NULL,
  kind TEXT NOT NULL, purpose TEXT NOT NULL, backend TEXT NOT NULL, surface TEXT NOT NULL,
  state TEXT NOT NULL, attempt INTEGER NOT NULL, exit_code INTEGER, policy TEXT NOT NULL,
  accelerator TEXT NOT NULL, key TEXT NOT NULL, receipt_id TEXT, collected INTEGER NOT NULL,
  ended_us INTEGER, seen TEXT NOT NULL
) WITHOUT ROWID;
"""
# Three are enough for every filter: the few values of state, kind and backend are gone through one
# by one, each in order of time.
_INDEXES = """
CREATE INDEX by_created ON runs (created_us, id);
CREATE INDEX by_state ON runs (state, kind, backend, created_us, id);
CREATE INDEX by_name ON runs (name, state, created_us, id);
"""
_ALL = ", ".join(COLUMNS)
_INSERT = f"INSERT OR REPLACE INTO runs ({_ALL}) VALUES ({', '.join('?' * len(COLUMNS))})"


class Damaged(Exception):
    """The index cannot be used as it is."""


class Index:
    """The index of one store. One instance may be used by several threads, and across a fork.

    What is damaged, missing or of another version is built again from the folders; `notice` is
    told so in a sentence. Raises `StoreError` where the disk or the permissions do not allow that;
    reading alone then goes on from memory.
    """

    def __init__(
        self, home: Path, *, loads: Loads = json.loads, notice: Callable[[str], None] | None = None
    ) -> None:
        self.home, self._loads, self._notice = home, loads, notice
        self._link = home / "index.sqlite"
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int, int] | None = None
        self._memory = False
        self._forked: list[sqlite3.Connection] = []

    # Using it

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` finds. It may be called twice, if the index turns out to be damaged."""
        with self._lock:
            try:
                return self._try(work, writing=False)
            finally:
                if self._memory:
                    self.close()

    def write(self, work: Callable[[sqlite3.Connection], T], *, durable: bool = False) -> T:
        """Let `work` change the index. With `durable` it is on the disk on return."""
        with self._lock:

            def change(connection: sqlite3.Connection) -> T:
                with self._locked(fcntl.LOCK_SH):
                    if self._stamp() != self._opened:
                        raise Damaged("it was built anew by somebody else")
                    connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                    return work(connection)

            return self._try(change, writing=True)

    def add(self, row: Row, then: Callable[[], T]) -> tuple[bool, T]:
        """Insert a row unless there is one, on the disk; then do `then`, before anybody can build the
        index anew. Returns whether the row is new, and what `then` gave."""

        def work(connection: sqlite3.Connection) -> tuple[bool, T]:
            done = connection.execute(_INSERT.replace("REPLACE", "IGNORE"), storable(row))
            return done.rowcount == 1, then()

        return self.write(work, durable=True)

    def change(self, run_id: str, values: dict[str, Any]) -> None:
        """Change columns of a row; the row is read from the folder if there is none."""
        text = f"UPDATE runs SET {', '.join(f'{name} = ?' for name in values)} WHERE id = ?"

        def work(connection: sqlite3.Connection) -> None:
            if connection.execute(text, storable((*values.values(), run_id))).rowcount == 0:
                row = row_of(runs_of(self.home) / run_id, self._loads)
                if row is not None:
                    connection.execute(_INSERT, storable(row))

        self.write(work)

    def forget(self, run_id: str) -> None:
        """Drop a row."""
        self.write(lambda c: c.execute("DELETE FROM runs WHERE id = ?", (run_id,)))

    def close(self) -> None:
        """Let go of the file. May be repeated; the next use opens it again."""
        with self._lock:
            connection, self._connection, self._opened = self._connection, None, None
            self._memory = False
            if connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    connection.close()

    def _try(self, work: Callable[[sqlite3.Connection], T], *, writing: bool) -> T:
        last: Exception | None = None
        for _ in range(4):
            try:
                return work(self._open(writing=writing))
            except Damaged as e:
                last = e
                self.close()
            except sqlite3.DatabaseError as e:
                last = e
                self.close()
                if not _is_damage(e):
                    raise StoreError(
                        f"{self._link} cannot be used: {e}", mend=f"look at the disk below {self.home}"
                    ) from e
                self._heal(str(e), writing=writing)
            except OSError as e:
                raise fault(e, self._link, self.home) from e
        raise StoreError(
            f"{self._link} cannot be used: {last}", mend=f"remove {self._link}, it is made again"
        )

    # Opening it

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = os.stat(self._link)
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino, os.getpid()

    def _open(self, *, writing: bool) -> sqlite3.Connection:
        stamp = self._stamp()
        if self._connection is not None:
            if self._memory and not writing:
                return self._connection
            if stamp == self._opened and not self._memory:
                return self._connection
            if self._opened is not None and self._opened[2] != os.getpid():
                # SQLite must not be closed across a fork: its locks belong to the other process.
                self._forked.append(self._connection)
                self._connection = None
            self.close()
        if stamp is None:
            self._heal("", writing=writing)
            if self._connection is not None:
                return self._connection
            stamp = self._stamp()
        real = os.path.realpath(self._link)
        try:
            connection = _connect(f"file:{_quoted(real)}?mode=rw")
            connection.execute("PRAGMA wal_autocheckpoint=1000")
            found = _version(connection)
        except sqlite3.OperationalError as e:
            if self._stamp() != stamp:
                raise Damaged("it was built anew by somebody else") from e
            if writing or _is_damage(e):
                raise
            # Nobody can write beside a file that we cannot write beside either.
            connection = _connect(f"file:{_quoted(real)}?mode=ro&immutable=1")
            found = _version(connection)
        if found != VERSION:
            connection.close()
            raise sqlite3.DatabaseError(f"it is of version {found}, not {VERSION}")
        self._connection, self._opened, self._memory = connection, stamp, False
        return connection

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        fd = os.open(self.home / "index.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, how)
            yield
        finally:
            os.close(fd)

    # Building it

    def _heal(self, why: str, *, writing: bool) -> None:
        """Build the index again. Where that is not possible, reading goes on from memory."""
        before = self._stamp()
        try:
            count = self.rebuild(unless=lambda: self._stamp() != before)
        except (StoreError, sqlite3.OperationalError) as e:
            if writing:
                raise
            connection = _connect(":memory:")
            self._fill(connection)
            self._connection, self._opened, self._memory = connection, (0, 0, os.getpid()), True
            why = why or str(e)
            count = -1
        if why and self._notice is not None and count is not None:
            how = "read from the folders" if count < 0 else f"built again from {count} runs"
            self._notice(f"the index of runs could not be used ({why}); it was {how}")

    def rebuild(self, *, unless: Callable[[], bool] | None = None) -> int | None:
        """Build the index from the folders, as if there were none; returns the number of runs.

        Nothing is done, and None returned, if `unless` says so once nobody else is at it.
        """
        try:
            with self._lock, self._locked(fcntl.LOCK_EX):
                if unless is not None and unless():
                    return None
                folder = self.home / "index"
                folder.mkdir(mode=0o700, exist_ok=True)
                name = f"{os.urandom(8).hex()}.sqlite"
                path = folder / name
                connection = _connect(f"file:{_quoted(str(path))}?mode=rwc")
                try:
                    connection.execute("PRAGMA journal_mode=OFF")
                    connection.execute("PRAGMA synchronous=OFF")
                    count = self._fill(connection)
                    connection.execute("PRAGMA journal_mode=WAL")
                finally:
                    connection.close()
                _sync(path)
                os.chmod(path, 0o600)
                beside = self.home / f".index.sqlite.{name}.part"
                os.symlink(f"index/{name}", beside)
                os.replace(beside, self._link)
                self.close()
                for old in os.listdir(folder):
                    if not old.startswith(name):
                        (folder / old).unlink(missing_ok=True)
                return count
        except OSError as e:
            raise fault(e, self._link, self.home) from e
        except sqlite3.Error as e:
            mend = f"look at the disk below {self.home}"
            raise StoreError(f"{self._link} cannot be built: {e}", mend=mend) from e

    def _fill(self, connection: sqlite3.Connection) -> int:
        connection.executescript(_TABLE)
        connection.execute("BEGIN")
        connection.executemany(_INSERT, map(storable, self._rows()))
        connection.executescript(_INDEXES)
        if connection.in_transaction:
            connection.execute("COMMIT")
        connection.execute(f"PRAGMA user_version={VERSION}")
        return int(connection.execute("SELECT count(*) FROM runs").fetchone()[0])

    def _rows(self) -> Iterator[Row]:
        for path in folders(self.home):
            row = row_of(path, self._loads)
            if row is not None:
                yield row
            elif self._notice is not None:
                self._notice(f"{path} holds no readable run.json or workload.json")


def folders(home: Path) -> Iterator[str]:
    """The paths of all run folders, in no order."""
    try:
        with os.scandir(runs_of(home)) as found:
            for entry in found:
                if is_run_id(entry.name) and entry.is_dir(follow_symlinks=False):
                    yield entry.path
    except FileNotFoundError:
        return


def list_runs(
    home: Path,
    *,
    limit: int | None = 50,
    state: str | Iterable[str] | None = None,
    kind: str | None = None,
    backend: str | None = None,
    name: str | None = None,
    live: bool = False,
    index: Index | None = None,
    notice: Callable[[str], None] | None = None,
) -> list[Row]:
    """The newest runs first, at most `limit` (None = all). Imports neither msgspec nor plugins.

    `state` is one state or several, `live` all that are not final. Rows of runs without a receipt
    are compared with their folders, so that a client killed half-way leaves no wrong row. Raises
    `StoreError`.
    """
    if not runs_of(home).is_dir():
        return []
    states = {str(state)} if isinstance(state, str) else {str(s) for s in state} if state else None
    if live:
        states = set(LIVE) if states is None else states & set(LIVE)
    most = -1 if limit is None else max(0, int(limit))
    own = index or Index(home, notice=notice)
    try:
        found = own.read(lambda c: select(c, most, states, kind, backend, name))
    finally:
        if index is None:
            own.close()
    rows = [row for row in (settled_row(row, runs_of(home)) for row in found) if row is not None]
    return [row for row in rows if states is None or row.state in states]


def _connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(
        uri, uri=uri.startswith("file:"), timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _quoted(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _is_damage(error: sqlite3.Error) -> bool:
    """Whether building the index again would help, rather than waiting or freeing space."""
    if isinstance(error, sqlite3.OperationalError):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        return code == sqlite3.SQLITE_IOERR or (code == sqlite3.SQLITE_ERROR and "no such" in str(error))
    return not isinstance(error, sqlite3.ProgrammingError)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
