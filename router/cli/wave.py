"""`route run --cases`: one file of cases becomes a wave of independent runs."""

from __future__ import annotations

from typing import Any

from compute_router.cli.attached import Stages, guard
from compute_router.cli.call import Cli
from compute_router.cli.codes import exit_code, told
from compute_router.cli.leaving import Leaving
from compute_router.cli.output import problem
from compute_router.cli.running import limits, secret_values
from compute_router.cli.target import load
from compute_router.errors import RouteError
from compute_router.store import RunFolder
from compute_router.workload import Workload

__all__ = ["wave"]


def wave(
    cli: Cli,
    target: str | None,
    args: tuple[str, ...],
    *,
    sets: tuple[str, ...],
    profile: str | None,
    cases: str,
    policy: str | None,
    backend: str | None,
    detach: bool,
    dry_run: bool,
    wait: int,
    key: str | None,
    env_file: str | None,
    raw: bool,
) -> int:
    """Submit every case, then wait for each in turn; their logs are not shown (`route logs`).

    With `--key K` the case called N has the key `K/N`, so that the same wave is started once. A
    case that is refused does not keep the others. Exits with the first code that is not 0.
    """
    from compute_router.cli.planning import as_data, show
    from compute_router.reading import load_cases

    loaded = load(cli, target, args, sets=sets, profile=profile)
    for warning in loaded.warnings:
        cli.out.warn(warning)
    workloads = load_cases(cases, loaded)
    out, stages = cli.out, Stages(cli)
    leaving = Leaving(asking=False)

    def planned(workload: Workload) -> Any:
        allowed = limits(cli, workload, backend=backend, wait=wait, detach=detach, cases=len(workloads))
        return cli.router.plan(workload, policy=policy, limits=allowed)

    def work() -> int:
        if dry_run:
            plans = [planned(workload) for workload in workloads]
            show(cli, plans[0])
            out.line()
            out.line(f"{len(plans)} cases: {', '.join(w.name for w in workloads[:10])}")
            out.done([as_data(plan) for plan in plans])
            return 0
        started: list[tuple[str, RunFolder | RouteError]] = []
        for workload in workloads:
            try:
                case_key = f"{key}/{workload.name}" if key else None
                secrets = secret_values(workload, env_file)
                run = cli.router.submit(planned(workload), key=case_key, secrets=secrets)
                if detach and not out.as_json:
                    out.text(run.id + "\n")
                elif not out.as_json:
                    out.stage("run", f"{run.id} {workload.name}")
                out.event({"event": "submitted", "run_id": run.id, "name": workload.name})
                started.append((workload.name, run))
                # From here on an interruption leaves runs that go on.
                stages.run_id, leaving.attached = run.id, True
            except RouteError as e:
                out.note(f"route: {workload.name}: {e.what}")
                started.append((workload.name, e))
        cli.tell_warnings()
        leaving.attached = True
        return _ends(cli, started, stages, follow=not detach)

    return guard(cli, leaving, stages, work)


def _ends(
    cli: Cli, started: list[tuple[str, RunFolder | RouteError]], stages: Stages, *, follow: bool
) -> int:
    """Wait for every run that was started and say how each ended."""
    data: list[dict[str, Any]] = []
    code, bad = 0, None
    for name, run in started:
        this = 0
        error: dict[str, Any] | None = None
        entry: dict[str, Any] = {"name": name}
        try:
            if isinstance(run, RouteError):
                raise run
            entry["run_id"] = stages.run_id = run.id
            if follow:
                cli.router.resume(run)
                status = run.read_json("status") or {}
                entry |= {"state": status.get("state"), "exit_code": (this := exit_code(status))}
                cli.out.line(f"{run.id}  {name}  {told(status)}")
                if this:
                    error = problem("RUN_FAILED", f"{name}: {told(status)}", f"route logs {run.id}")
        except RouteError as e:
            this, error = int(e.exit_code), problem(e.code, f"{name}: {e.what}", e.mend, e.file, e.line)
        data.append({**entry, "error": error})
        if this and not code:
            code, bad = this, error
    cli.out.done(data, error=bad)
    return code
