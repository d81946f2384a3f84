"""What is said of the machines of a run on several: the option `--node`, a line for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from compute_router.cli.words import age

if TYPE_CHECKING:
    from pathlib import Path

    from compute_router.backend import Backend, Handle
    from compute_router.planning import Plan

__all__ = ["lines", "log_of", "node_option", "part_of", "several"]

node_option = click.option(
    "--node", type=click.IntRange(min=0), metavar="N", help="Of a run on several machines: the N-th, from 0."
)


def part_of(backend: Backend, handle: Handle, node: int | None) -> Handle:
    """The handle that a verb is about: the run's own, or that of its part on one machine."""
    if node is None:
        return handle
    from compute_router.starting import guarded

    return guarded(handle.backend, lambda: backend.node(handle, node))


def log_of(folder: Path, node: int | None) -> Path | None:
    """The log that was brought of the run in `folder`, of `node` where that is given; None if none was."""
    for found in [folder / "log"] if not node else sorted(folder.glob(f"nodes/{node}-*/log")):
        if found.is_file():
            return found
    return None


def several(plan: Plan) -> bool:
    """Whether the place that comes first is several machines, which are waited for by their client."""
    first = plan.decision.ranked[0]
    return plan.offer(first.backend, first.offer_id).hardware.nodes > 1


def lines(status: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Label and text for each machine of a run on several; none for any other."""
    found = []
    for node in status.get("nodes") or ():
        state = str(node.get("state"))
        said = [state if node.get("reason") != "held" else "held"]
        if node.get("position"):
            said.append(f"place {node['position']} in the queue")
        if node.get("since_us"):
            said.append(f"not seen since {age(node['since_us'])}, then {node.get('last') or 'never seen'}")
        if count := len(node.get("devices") or ()):
            said.append(f"{count} GPU{'s' if count > 1 else ''}")
        if state not in ("running", "succeeded") and node.get("detail") and node.get("reason") != "held":
            said.append(str(node["detail"]))
        found.append((f"node {node.get('rank')}", f"{node.get('name')}: {', '.join(said)}"))
    return found
