"""`route ps`: the runs of this store, newest first. Answered from the index unless a run is live."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from compute_router.cli.app import verb
from compute_router.cli.call import Cli
from compute_router.cli.codes import ENDS
from compute_router.cli.words import age, duration, short_id

if TYPE_CHECKING:
    from compute_router.rows import Row

__all__ = ["ps"]

LIVE = ("planned", "staging", "committed", "waiting", "starting", "running", "orphaned", "unknown")
ASKED_AT_ONCE = 8
"""Live runs that are looked at side by side."""


@verb()
@click.option("--all", "-a", "every", is_flag=True, help="All of them, not only the newest 20.")
@click.option("--limit", "-n", type=click.IntRange(min=1), default=20, help="How many at most (20).")
@click.option("--live", "-l", is_flag=True, help="Only runs that are not over.")
@click.option("--state", "-s", "states", multiple=True, metavar="STATE", help="Only in this state.")
@click.option("--kind", metavar="KIND", help="Only of this kind.")
@click.option("--backend", "-b", metavar="NAME", help="Only at this backend.")
@click.option("--name", metavar="NAME", help="Only workloads of this name.")
@click.option("--ids", "-q", is_flag=True, help="Print the ids alone.")
@click.option("--there", is_flag=True, help="Also runs at the places that this store does not know.")
@click.option("--refresh/--no-refresh", default=True, help="Ask the places of live runs (default).")
@click.pass_obj
def ps(
    cli: Cli,
    every: bool,
    limit: int,
    live: bool,
    states: tuple[str, ...],
    kind: str | None,
    backend: str | None,
    name: str | None,
    ids: bool,
    there: bool,
    refresh: bool,
) -> int:
    """List runs, newest first.

    With --there the places are asked for runs that other clients submitted; any verb that takes an ID
    works with theirs.
    """
    from compute_router.home import default_home
    from compute_router.index import list_runs

    _known(states)
    rows = list_runs(
        default_home(),
        limit=None if every else limit,
        state=states or None,
        kind=kind,
        backend=backend,
        name=name,
        live=live,
        notice=cli.out.warn,
    )
    if refresh:
        rows = _afresh(cli, rows)
        # What was asked for must hold of what is shown.
        rows = [
            row for row in rows if (not states or row.state in states) and (not live or row.state not in ENDS)
        ]
    others = _elsewhere(cli, backend, states, live, None if every else limit) if there else []
    if ids:
        for row_id in [*(row.id for row in rows), *(other["run_id"] for other in others)]:
            cli.out.line(row_id)
    elif rows or not cli.out.terminal:
        cli.out.table(
            ["RUN", "NAME", "KIND", "PLACE", "STATE", "AGE", "TOOK"], [_cells(cli, row) for row in rows]
        )
    else:
        cli.out.line("no runs; `route run workload.py` makes one, `route init` writes a starter")
    if there and not ids:
        _show(cli, others)
    cli.out.done({"runs": [_as_data(row) for row in rows], **({"there": others} if there else {})})
    return 0


def _elsewhere(
    cli: Cli, backend: str | None, states: tuple[str, ...], live: bool, limit: int | None
) -> list[dict[str, Any]]:
    """The runs that places have and this store does not know; a warning for each that could not be asked."""
    from compute_router.adopting import there

    cli.out.busy("asking the places")
    found, unseen = there(cli.router, backend)
    cli.out.calm()
    for why in unseen:
        cli.out.warn(why)
    listed = [
        {
            "run_id": run.run_id,
            "backend": name,
            "place": run.place,
            "state": run.state,
            "attempt": run.attempt,
            "ended_us": run.ended_us,
            "collected": run.collected,
            **{key: run.about.get(key) for key in ("name", "kind", "purpose", "created_us")},
        }
        for name, run in found
        if (not states or run.state in states) and (not live or run.state not in ENDS)
    ]
    return listed[:limit]


def _show(cli: Cli, others: list[dict[str, Any]]) -> None:
    if not others:
        cli.out.line("the places have no other runs")
        return
    cli.out.line()
    cells = [
        [
            other["run_id"],
            str(other["name"] or "-"),
            str(other["kind"] or "-"),
            f"{other['backend']}/{other['place']}",
            other["state"],
            age(other["created_us"] if type(other["created_us"]) is int else None).removesuffix(" ago"),
            "yes" if other["collected"] else "-",
        ]
        for other in others
    ]
    cli.out.table(["ELSEWHERE", "NAME", "KIND", "PLACE", "STATE", "AGE", "COLLECTED"], cells)


def _known(states: tuple[str, ...]) -> None:
    from compute_router.cli.words import nearest
    from compute_router.errors import InputError

    known = [
        *ENDS,
        "planned",
        "staging",
        "committed",
        "waiting",
        "starting",
        "running",
        "orphaned",
        "unknown",
    ]
    for state in states:
        if state not in known:
            near = nearest(state, known)
            mend = f"did you mean {near}? " if near else ""
            raise InputError(f"there is no state {state!r}", mend=f"{mend}they are: {', '.join(known)}")


def _afresh(cli: Cli, rows: list[Row]) -> list[Row]:
    """`rows` with live runs looked at now. What cannot be asked stays as it was, with a warning."""
    live = [row.id for row in rows if row.state not in ENDS]
    if not live:
        return rows
    from concurrent.futures import ThreadPoolExecutor

    from compute_router.errors import RouteError

    store = cli.router.store

    def look(run_id: str) -> Row | None:
        try:
            cli.router.status(store.open(run_id))
        except RouteError as e:
            cli.out.warn(f"{run_id}: {e.what}")
        return store.row(run_id)

    # Loaded before the threads begin, so that it is loaded once.
    cli.router.registry.backends()
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        seen = dict(zip(live, pool.map(look, live), strict=True))
    return [seen.get(row.id) or row for row in rows]


def _cells(cli: Cli, row: Row) -> list[str]:
    took = duration(row.ended_us - row.created_us) if row.ended_us else "-"
    state = f"{row.state} ({row.exit_code})" if row.exit_code else row.state
    if row.state in ("unknown", "waiting"):
        status = _status(row)
        since, last, place = (status.get(name) for name in ("since_us", "last", "position"))
        if row.state == "waiting" and place:
            state = f"waiting (place {place})"
        elif since:
            state = f"unknown {age(since).removesuffix(' ago')} ({last or 'never seen'})"
    name = row.name if len(row.name) <= 20 or not cli.out.terminal else row.name[:19] + "…"
    run_id = short_id(row.id) if cli.out.terminal else row.id
    return [run_id, name, row.kind, _place(row), state, age(row.created_us).removesuffix(" ago"), took]


def _offer(row: Row) -> str | None:
    """Which place of its backend a run was sent to: of its intent, for the index has only the backend."""
    found = _noted(row, "intent").get("offer_id")
    return found if isinstance(found, str) else None


def _place(row: Row) -> str:
    return "/".join(filter(None, [row.backend, _offer(row)])) or "-"


def _status(row: Row) -> dict[str, Any]:
    """What is noted of a run that cannot be seen: since when, and how it was then."""
    return _noted(row, "status")


def _noted(row: Row, record: str) -> dict[str, Any]:
    """A record of a run as it lies in its folder; empty where there is none."""
    from compute_router.home import default_home, runs_of
    from compute_router.rows import load

    return load(str(runs_of(default_home()) / row.id / f"{record}.json"))


def _as_data(row: Row) -> dict[str, Any]:
    data = row._asdict() | {"offer_id": _offer(row)}
    if row.state == "unknown":
        data |= {name: _status(row).get(name) for name in ("last", "since_us", "detail")}
    if row.state == "waiting":
        data["position"] = _status(row).get("position")
    data["run_id"] = data.pop("id")
    data.pop("seen")
    return data
