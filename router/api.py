"""From Python: read a workload, and run it to its receipt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compute_router.journal import OnEvent
from compute_router.policy import Limits
from compute_router.router import OnLog, Router
from compute_router.workload import Workload

__all__ = ["load", "run"]


def load(
    target: str | None,
    *,
    args: Sequence[str] = (),
    sets: Sequence[str] = (),
    profile: str | None = None,
    router: Router | None = None,
) -> Workload:
    """The workload that `target` means: a script's path, a ready-made one (`bench:matmul`), or with
    None the command `args`. `sets` are `key=value` texts, as for `--set`.

    Reads the file as text and runs nothing of it. Raises `WorkloadError` with file and line,
    `ConfigError`, `NotFound`.
    """
    from compute_router import reading

    router = router or Router()
    found = reading.load(
        target,
        args=args,
        sets=sets,
        profile=profile,
        config=router.config,
        kinds=router.registry.kinds(),
    )
    return found.workload


def run(
    workload: Workload,
    *,
    policy: str | None = None,
    limits: Limits | None = None,
    key: str | None = None,
    router: Router | None = None,
    on_log: OnLog | None = None,
    on_event: OnEvent | None = None,
) -> dict[str, Any]:
    """Plan, start, follow and collect `workload`; returns its receipt.

    The same path as `route run`. Raises as `Router.submit` does; a run that fails is no error
    here: its receipt says so. Called again with the same `key` it goes on with the same run.
    """
    router = router or Router()
    folder = router.submit(router.plan(workload, policy=policy, limits=limits), key=key, on_event=on_event)
    return router.resume(folder, on_log=on_log, on_event=on_event)
