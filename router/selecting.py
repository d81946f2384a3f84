"""Finds rows in the index of runs: the newest first, by any filter, in a few steps. Standard library only."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from compute_router.rows import COLUMNS, Row, storable

__all__ = ["LIVE", "select"]

LIVE: tuple[str, ...] = (
    "planned",
    "staging",
    "committed",
    "waiting",
    "starting",
    "running",
    "orphaned",
    "unknown",
)
FINAL: tuple[str, ...] = ("succeeded", "failed", "cancelled", "timed_out", "preempted", "lost")
ALL = ", ".join(COLUMNS)


def select(
    connection: sqlite3.Connection,
    most: int,
    states: set[str] | None,
    kind: str | None,
    backend: str | None,
    name: str | None,
) -> list[Row]:
    """The newest rows first, at most `most` (-1 = all), of those that fit every filter given."""
    newest = "ORDER BY created_us DESC, id DESC LIMIT ?"
    if states is None and kind is None and backend is None and name is None:
        return [Row(*r) for r in connection.execute(f"SELECT {ALL} FROM runs {newest}", (most,))]
    found: list[Row] = []
    if name is not None:
        rest = "".join(f" AND {column} = ?" for column, v in (("kind", kind), ("backend", backend)) if v)
        more = [value for value in (kind, backend) if value]
        for value in sorted(states if states is not None else {*LIVE, *FINAL}):
            text = f"SELECT {ALL} FROM runs INDEXED BY by_name WHERE name = ? AND state = ?{rest} {newest}"
            found += [Row(*r) for r in connection.execute(text, storable((name, value, *more, most)))]
    else:
        text = (
            f"SELECT {ALL} FROM runs INDEXED BY by_state"
            f" WHERE state = ? AND kind = ? AND backend = ? {newest}"
        )
        for group in _groups(connection):
            if (
                (states is None or group[0] in states)
                and (kind is None or group[1] == kind)
                and (backend is None or group[2] == backend)
            ):
                found += [Row(*r) for r in connection.execute(text, storable((*group, most)))]
    found.sort(key=lambda row: (row.created_us, row.id), reverse=True)
    return found if most < 0 else found[:most]


def _groups(connection: sqlite3.Connection, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The combinations of state, kind and backend there are: a few steps in the index for each."""
    columns = ("state", "kind", "backend")
    if len(above) == len(columns):
        yield above
        return
    column = columns[len(above)]
    where = "".join(f"{name} = ? AND " for name in columns[: len(above)])
    text = f"SELECT min({column}) FROM runs INDEXED BY by_state WHERE {where}{column} > ?"
    at: str | None = ""
    # Empty text sorts first and is passed over by `>`; a backend not yet decided is empty.
    if connection.execute(f"SELECT 1 FROM runs WHERE {where}{column} = '' LIMIT 1", above).fetchone():
        yield from _groups(connection, (*above, ""))
    while (at := connection.execute(text, (*above, at)).fetchone()[0]) is not None:
        yield from _groups(connection, (*above, at))
