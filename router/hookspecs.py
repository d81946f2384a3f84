"""The five hooks a plugin may implement, typed. Names begin with `route_`.

A plugin is a module (or object) named by an entry point of the group `route`::

    from compute_router import hookimpl

    @hookimpl
    def route_backends():
        return [MyBackend]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import click

    from compute_router.backend import Backend
    from compute_router.policy import Policy
    from compute_router.workload import Kind

__all__ = [
    "hookimpl",
    "hookspec",
    "route_backends",
    "route_commands",
    "route_event",
    "route_kinds",
    "route_policies",
]

hookspec = pluggy.HookspecMarker("route")
hookimpl = pluggy.HookimplMarker("route")


@hookspec
def route_backends() -> Sequence[type[Backend]]:  # type: ignore[empty-body]
    """The backend classes this plugin brings. They are made later, with their settings, when first used."""


@hookspec
def route_policies() -> Sequence[Policy]:  # type: ignore[empty-body]
    """The policies this plugin brings."""


@hookspec
def route_kinds() -> Sequence[Kind]:  # type: ignore[empty-body]
    """The kinds of workload this plugin brings, with their ready-made workloads."""


@hookspec
def route_commands(group: click.Group) -> None:
    """Add commands to `route`. Called once, before a command that core does not know is looked up."""


@hookspec
def route_event(run_id: str, event: dict[str, Any]) -> None:
    """Something happened to a run: `{"event", "state", "at_us", ...}`. For notices and exports.

    Called in the client, in the order of the events, after they are on disk. An exception is
    reported as a warning and changes nothing for the run.
    """
