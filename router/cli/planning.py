"""`route plan`: the deciding sentence, then every place with its offer or the reason for none."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import click

from compute_router.cli.app import verb
from compute_router.cli.call import Cli
from compute_router.cli.options import Waiting, backend_option, policy_option, profile_option, set_option
from compute_router.cli.output import problem
from compute_router.cli.target import TargetVerb, load
from compute_router.cli.words import duration, one_line, size
from compute_router.errors import ExitCode

if TYPE_CHECKING:
    from compute_router.backend import Hardware, Offer
    from compute_router.planning import Plan
    from compute_router.workload import Workload

__all__ = ["dry", "plan", "refused"]

WIDTH = 80


@verb(cls=TargetVerb)
@policy_option
@backend_option
@set_option
@profile_option
@click.option(
    "--wait",
    type=Waiting(),
    default="0",
    metavar="TIME",
    help="How long a busy place may be waited for.",
)
@click.option("--detach", "-d", is_flag=True, help="Decide as for a detached run.")
@click.option("--files", is_flag=True, help="List every file that would ship, and what does not and why.")
@click.option("--values", is_flag=True, help="Show every value of the workload and where it comes from.")
@click.pass_obj
def plan(
    cli: Cli,
    target: str | None,
    args: tuple[str, ...],
    policy: str | None,
    backend: str | None,
    sets: tuple[str, ...],
    profile: str | None,
    wait: int,
    detach: bool,
    files: bool,
    values: bool,
) -> int:
    """Say where a workload would run and why, and why not elsewhere. Starts nothing.

    TARGET and what stands behind `--` are as for `route run`. Exits 65 if no place may be used.
    """
    from compute_router.cli.running import limits

    loaded = load(cli, target, args, sets=sets, profile=profile)
    for warning in loaded.warnings:
        cli.out.warn(warning)
    allowed = limits(cli, loaded.workload, backend=backend, wait=wait, detach=detach)
    cli.out.busy("asking the backends")
    made = cli.router.plan(loaded.workload, policy=policy, limits=allowed)
    cli.tell_warnings()
    cli.out.calm()
    valued = _valued(loaded.workload, loaded.origins)
    show(cli, made)
    data = {**as_data(made), "values": valued, "environment": _environment(cli, made)}
    if files:
        data["snapshot"] = _ships(cli, made, everything=True)
    if values:
        cli.out.line()
        cli.out.table(["KEY", "FROM", "VALUE"], [[k, f, v] for k, v, f in _values(valued)])
    return _over(cli, made, data)


def as_data(made: Plan) -> dict[str, Any]:
    """A plan as JSON data."""
    from compute_router.records import plain

    return {
        "workload": plain(made.workload),
        "decision": plain(made.decision),
        "offers": [{"offer": hasattr(o, "id"), **plain(o)} for o in made.offers],
    }


def _over(cli: Cli, made: Plan, data: dict[str, Any]) -> int:
    decision = made.decision
    if decision.outcome.value == "refused":
        cli.out.done(data, error=problem("NO_PLACE", decision.sentence, decision.mend))
        return int(ExitCode.REFUSED)
    cli.out.done(data)
    return 0


def refused(cli: Cli, made: Plan) -> int:
    """The refusal of `run`: why no place may be used, each place with its reason. Exit code 65."""
    bare = {offer.backend for offer in made.offers if not getattr(offer, "set_up", True)}
    # Whoever named the one backend does not ask why it is none of the others.
    told = [r for r in made.decision.rejections if r.backend not in bare and r.rule != "pin"]
    # A single one is what the sentence says already.
    for rejection in told if len(told) > 1 else ():
        place = "/".join(filter(None, [rejection.backend, rejection.offer_id]))
        cli.out.note(f"  {place}: {one_line(rejection.sentence)}")
        if rejection.mend:
            cli.out.note(f"    mend: {one_line(rejection.mend)}")
    mend = made.decision.mend or "`route plan` shows every place and what would mend it"
    cli.out.failed("NO_PLACE", made.decision.sentence, mend=mend, data=as_data(made))
    return int(ExitCode.REFUSED)


def dry(cli: Cli, made: Plan) -> int:
    """What `run` would do: the plan, and the files that would ship."""
    show(cli, made)
    data = {**as_data(made), "environment": _environment(cli, made)}
    data["snapshot"] = _ships(cli, made, everything=False)
    return _over(cli, made, data)


def _environment(cli: Cli, made: Plan) -> dict[str, Any] | None:
    """Print which Python the work would have at the best place, and whether it would be built; the same
    as data. None where no place may be used or its backend says nothing about it."""
    from compute_router.machines.contract import MachineBackend

    if not made.decision.ranked:
        return None
    name = made.decision.ranked[0].backend
    backend = cli.router.backend(name, made.workload)
    found = backend.environment(made.workload) if isinstance(backend, MachineBackend) else None
    if found is None:
        return None
    cli.out.line()
    cli.out.line(one_line(f"Environment: {found['sentence']}"))
    return dict(found)


def _ships(cli: Cli, made: Plan, *, everything: bool) -> dict[str, Any]:
    """Print what would ship and what not, the first 20 of that unless `everything` is asked for; as data."""
    from compute_router.planning import ships

    snapshot, out = ships(made.workload, cli.router.store.home, keep=False), cli.out
    out.line()
    out.line(f"Would ship {len(snapshot.entries)} files, {size(snapshot.total_bytes)}, from {snapshot.root}")
    for entry in snapshot.entries if everything else ():
        out.line(f"  {one_line(entry.path)}")
    shown = snapshot.skipped if everything else snapshot.skipped[:20]
    for path, why in shown:
        out.line(f"  not {one_line(path)}: {one_line(why)}")
    if len(snapshot.skipped) > len(shown):
        out.line(f"  and {len(snapshot.skipped) - len(shown)} more; route plan --files lists them")
    return {**snapshot.facts(), "paths": [entry.path for entry in snapshot.entries]}


def show(cli: Cli, made: Plan) -> None:
    """The sentence, then a line per place and its reasons below it, in 80 columns."""
    from compute_router.backend import NoOffer

    out, decision = cli.out, made.decision
    for line in textwrap.wrap(one_line(decision.sentence), WIDTH):
        out.line(line, style="bold")
    if decision.mend:
        _folded(cli, f"mend: {decision.mend}", 2)
    out.line()
    ranks = {(r.backend, r.offer_id): (str(n), r) for n, r in enumerate(decision.ranked, 1)}
    rows: list[tuple[list[str], list[str]]] = []
    for offer in made.offers:
        if isinstance(offer, NoOffer):
            mend = [f"mend: {offer.mend}"] if offer.mend else []
            rows.append((["-", offer.backend, "no offer", "", ""], [offer.reason, *mend]))
            continue
        rank, ranked = ranks.get((offer.backend, offer.id), ("-", None))
        # What decided stands at the top already.
        notes = [ranked.sentence] if ranked and ranked.sentence not in decision.sentence else []
        for rejection in decision.rejections:
            if (rejection.backend, rejection.offer_id) == (offer.backend, offer.id):
                notes += [rejection.sentence] + ([f"mend: {rejection.mend}"] if rejection.mend else [])
        result = f"{duration(ranked.total_us)} ({ranked.source.value})" if ranked and ranked.total_us else "-"
        place = offer.backend if offer.id == offer.backend else f"{offer.backend}/{offer.id}"
        rows.append(([rank, place, _has(offer.hardware), result, _price(offer)], [*notes, offer.note]))
    rows.sort(key=lambda row: (row[0][0] == "-", row[0][0].zfill(4), row[0][1]))
    header = ["#", "PLACE", "HARDWARE", "FIRST RESULT", "PRICE"]
    widths = [max(len(r[i]) for r in [header, *(row for row, _ in rows)]) for i in range(len(header))]
    out.line(_row(header, widths), style="bold")
    for cells, notes in rows:
        out.line(_row([one_line(cell) for cell in cells], widths))
        for note in filter(None, notes):
            _folded(cli, note, 3)


def _row(cells: list[str], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _folded(cli: Cli, text: str, indent: int) -> None:
    pad = " " * indent
    for line in textwrap.wrap(one_line(text), WIDTH, initial_indent=pad, subsequent_indent=pad):
        cli.out.line(line)


def _has(hardware: Hardware) -> str:
    if hardware.family == "cpu":
        text = f"{hardware.cpus} cpus" if hardware.cpus else "cpu"
    elif hardware.family == "tpu":
        text = f"{hardware.sku}-{hardware.count}"
    else:
        text = f"{hardware.count}x {hardware.sku or hardware.family}"
    return f"{hardware.nodes}x ({text})" if hardware.nodes > 1 else text


def _price(offer: Offer) -> str:
    quote = offer.quote
    return f"{quote.amount} {quote.currency}/{quote.unit}" if quote else "-"


def _valued(workload: Workload, origins: dict[str, str]) -> list[dict[str, Any]]:
    """Every key of `[tool.route]` with the value the workload has for it, and where it comes from."""
    from compute_router.records import plain

    needs = workload.needs
    flat: dict[str, Any] = {**plain(workload), **plain(needs), "args": list(workload.entry.args)}
    flat |= {
        "timeout": workload.timeout_us,
        "accelerator": str(needs.accelerator),
        "substitutes": [str(each) for each in needs.substitutes],
    }
    found = []
    for key, origin in origins.items():
        value: Any = flat
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        found.append({"key": key, "value": value, "from": origin})
    return found


def _values(valued: list[dict[str, Any]]) -> list[list[str]]:
    rows = []
    for entry in valued:
        value = entry["value"]
        if entry["key"] == "timeout":
            shown = duration(value)
        elif isinstance(value, (list, tuple, dict)):
            shown = " ".join(map(str, value)) or "-"
        elif isinstance(value, bool):
            shown = str(value).lower()
        else:
            shown = "-" if value is None else str(value)
        rows.append([entry["key"], shown, entry["from"]])
    return rows
