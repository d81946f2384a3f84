"""Options and arguments that several verbs share, with what the shell completes them with."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

__all__ = [
    "PROFILE",
    "RUN",
    "Waiting",
    "Words",
    "backend_option",
    "policy_option",
    "profile_option",
    "set_option",
]

if TYPE_CHECKING:
    Words = click.ParamType[Any]
else:
    # Only late versions of click have it generic.
    Words = click.ParamType


class RunRef(Words):
    """A run: its id, the first characters of it, `latest`, or a workload's name (its newest run)."""

    name = "run"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from compute_router.errors import RouteError
        from compute_router.home import default_home
        from compute_router.index import list_runs

        found: dict[str, str] = {"latest": "the newest run"}
        try:
            rows = list_runs(default_home(), limit=200)
        except RouteError:
            rows = []
        for row in rows:
            about = f"{row.name}, {row.state}"
            found[row.id] = about
            found.setdefault(row.name, f"newest run of that name: {row.state}")
        return [CompletionItem(n, help=t) for n, t in found.items() if n.startswith(incomplete)]


class Named(Words):
    """The name of a policy, backend or kind. Completed from plugin names, which need no import."""

    def __init__(self, name: str, folder: str) -> None:
        self.name, self._folder = name, folder

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from compute_router.entrypoints import installed

        # A third party's module may bring anything, so its name is offered everywhere.
        names = {
            entry.name
            for entry in installed()
            if entry.distribution != "compute-router" or f".{self._folder}." in entry.value
        }
        return [CompletionItem(n) for n in sorted(names) if n.startswith(incomplete)]


class Profile(Words):
    """A profile of the nearest `route.toml`."""

    name = "profile"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from pathlib import Path

        from compute_router.config import load_config

        try:
            names = sorted(load_config(Path.cwd()).profiles)
        except Exception:
            # Completion never complains; the verb itself will.
            return []
        return [CompletionItem(n) for n in names if n.startswith(incomplete)]


_LENGTH = re.compile(r"(?P<n>[0-9]+(?:\.[0-9]+)?)\s*(?P<unit>s|m|min|h|d)?", re.I)
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


class Waiting(Words):
    """A length of time: `0`, `90s`, `30m`, `4h`, `forever`. In microseconds; -1 is for ever."""

    name = "0|30m|forever"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if value.strip().lower() == "forever":
            return -1
        match = _LENGTH.fullmatch(value.strip())
        if match is None:
            self.fail(f"{value!r} is no length of time (write 0, 90s, 30m, 4h or forever)", param, ctx)
        if not match["unit"] and float(match["n"]):
            self.fail(
                f"{value!r} lacks a unit (write {match['n']}s, {match['n']}m or {match['n']}h)", param, ctx
            )
        return round(float(match["n"]) * _SECONDS[(match["unit"] or "s").lower()] * 1_000_000)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(n) for n in ("0", "30m", "forever") if n.startswith(incomplete)]


RUN = RunRef()
PROFILE = Profile()


def policy_option(f: Any) -> Any:
    """`--policy NAME`"""
    kind = Named("policy", "policies")
    return click.option("--policy", "-p", type=kind, metavar="NAME", help="Who decides (default: auto).")(f)


def backend_option(f: Any) -> Any:
    """`--backend NAME`"""
    kind = Named("backend", "backends")
    return click.option("--backend", "-b", type=kind, metavar="NAME", help="Only there, or not at all.")(f)


def profile_option(f: Any) -> Any:
    """`--profile NAME`"""
    return click.option("--profile", type=PROFILE, metavar="NAME", help="[profiles.NAME] of route.toml.")(f)


def set_option(f: Any) -> Any:
    """`--set KEY=VALUE`, any number of times"""
    return click.option(
        "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override one key of [tool.route]."
    )(f)
