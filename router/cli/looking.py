"""`route status`: where one run stands."""

from __future__ import annotations

from typing import Any

import click

from compute_router.cli.app import verb
from compute_router.cli.call import Cli
from compute_router.cli.codes import ENDS, told
from compute_router.cli.nodes import lines
from compute_router.cli.options import RUN
from compute_router.cli.words import age, clock, duration

__all__ = ["status"]


@verb()
@click.argument("id", type=RUN, metavar="[ID]", default="latest")
@click.option("--refresh/--no-refresh", default=True, help="Ask the place of a live run (the default).")
@click.pass_obj
def status(cli: Cli, id: str, refresh: bool) -> int:
    """Say where one run stands (default: the newest).

    Changes nothing there. What cannot be seen now is `unknown`, with the state that was seen last:
    the run itself goes on.
    """
    run = cli.folder(id)
    seen: dict[str, Any] = run.read_json("status") or {"state": "planned"}
    if refresh and seen["state"] not in ENDS:
        from compute_router.records import plain

        seen = plain(cli.router.status(run))
        cli.tell_warnings()
    workload = run.read_json("workload") or {}
    intent = run.read_json("intent") or {}
    decision = run.read_json("decision") or {}
    place = "/".join(filter(None, [intent.get("backend"), intent.get("offer_id")]))
    begun, over = seen.get("started_us"), seen.get("ended_us")
    rows = [
        ("run", run.id),
        ("name", str(workload.get("name", "-"))),
        ("state", told(seen)),
        ("attempt", str(seen.get("attempt", 1))),
        ("kind", f"{workload.get('kind', '-')}, {workload.get('purpose', '-')}"),
        ("place", place or "-"),
        ("decided", str(decision.get("sentence") or "-")),
    ]
    if seen.get("position") is not None:
        rows.append(("queue", f"place {seen['position']}"))
    if seen.get("since_us"):
        rows.append(("not seen", f"since {clock(seen['since_us'])} ({age(seen['since_us'])})"))
    rows += lines(seen)
    if begun:
        rows.append(("started", f"{clock(begun)} ({age(begun)})"))
    if begun and over:
        rows.append(("took", duration(over - begun)))
    receipt = run.path / "receipt.json"
    if run.has("receipt"):
        rows.append(("receipt", str(receipt)))
    elif seen["state"] in ENDS:
        rows.append(("receipt", f"none yet: route collect {run.id}"))
    rows.append(("folder", str(run.path)))
    cli.out.pairs(rows)
    cli.out.done(
        {
            "run_id": run.id,
            "name": workload.get("name"),
            "kind": workload.get("kind"),
            "purpose": workload.get("purpose"),
            "backend": intent.get("backend"),
            "offer_id": intent.get("offer_id"),
            "sentence": decision.get("sentence"),
            **seen,
            "path": str(run.path),
            "receipt": str(receipt) if run.has("receipt") else None,
        }
    )
    return 0
