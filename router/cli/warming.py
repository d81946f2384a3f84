"""`route warm`: a seeding pass, so that a workload that must start warm finds its compile cache warm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec

from compute_router.cli.app import verb
from compute_router.cli.call import Cli
from compute_router.cli.options import profile_option, set_option
from compute_router.cli.output import problem
from compute_router.cli.running import go, how, limits
from compute_router.cli.target import TargetVerb, load
from compute_router.cli.words import one_line
from compute_router.errors import ExitCode, InputError

if TYPE_CHECKING:
    from compute_router.planning import Plan
    from compute_router.workload import Workload

__all__ = ["warm"]


@verb(cls=TargetVerb)
@how
@set_option
@profile_option
@click.pass_obj
def warm(
    cli: Cli,
    /,
    target: str | None,
    args: tuple[str, ...],
    sets: tuple[str, ...],
    profile: str | None,
    **options: Any,
) -> int:
    """Fill a workload's compile cache by running it once; never evidence.

    It runs at the place the policy would choose for a warm start (or `--backend`). TARGET and what
    stands behind `--` are as for `route run`: a seeding pass may well be short.

    \b
      route warm train.py -- --steps 3

    Does nothing where a place is warm already. Exits with the work's code, and with 65 if the cache
    is not warm after it.
    """
    from compute_router.cli.planning import refused

    loaded = load(cli, target, args, sets=sets, profile=profile)
    for warning in loaded.warnings:
        cli.out.warn(warning)
    claim = _claim(loaded.workload)
    if args and claim.shapes is None:
        cli.out.warn(
            "the arguments are part of the cache key: these warm a run with the same ones (or set `shapes`)"
        )
    made = _plan(cli, claim, options)
    match made.decision.outcome.value:
        case "run" | "wait":
            place = made.decision.ranked[0].backend
            cli.out.note(f"{place} is warm for it already; nothing was started")
            cli.out.done({"warm": True, "backend": place, "run_id": None})
            return 0
        case "refused":
            return refused(cli, made)
    seeding = _seeding(claim)
    cli.out.holding = not (options["detach"] or options["dry_run"])
    code = go(cli, seeding, **{**options, "backend": made.decision.ranked[0].backend})
    if code or not cli.out.holding:
        return code
    cli.out.holding = False
    after = _plan(cli, claim, options)
    if after.decision.outcome.value in ("run", "wait"):
        cli.out.done(cli.out.held)
        return 0
    what, mend = f"it is not warm after all: {one_line(after.decision.sentence)}", "route receipt show"
    cli.out.note(what)
    cli.out.note(f"  mend: `{mend}` tells the verdict of every cache")
    cli.out.done(cli.out.held, error=problem("NOT_WARM", what, mend))
    return int(ExitCode.REFUSED)


def _claim(workload: Workload) -> Workload:
    """The workload as it will claim a warm start."""
    from compute_router.workload import Role, Warmth

    if Role.COMPILE_CACHE not in workload.volumes:
        raise InputError(
            f"{workload.name} keeps no compile cache that could be warm",
            mend='declare it: volumes = { compile-cache = "/cache" }',
        )
    return msgspec.structs.replace(
        workload, needs=msgspec.structs.replace(workload.needs, warmth=Warmth.WARM)
    )


def _seeding(workload: Workload) -> Workload:
    """The workload as it is run to seed: it takes the cache as it finds it, and its receipt says so."""
    from compute_router.workload import SEEDING, Warmth

    return msgspec.structs.replace(
        workload,
        needs=msgspec.structs.replace(workload.needs, warmth=Warmth.ANY),
        tags=tuple(dict.fromkeys((*workload.tags, SEEDING))),
    )


def _plan(cli: Cli, workload: Workload, options: dict[str, Any]) -> Plan:
    allowed = limits(
        cli, workload, backend=options["backend"], wait=options["wait"], detach=options["detach"]
    )
    cli.out.busy("asking the backends")
    made = cli.router.plan(workload, policy=options["policy"], limits=allowed)
    cli.out.calm()
    cli.tell_warnings()
    return made
