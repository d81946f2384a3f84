"""`route doctor`: what is there, what is missing, and the command that mends it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from compute_router.cli.app import verb
from compute_router.cli.call import Cli
from compute_router.cli.words import size
from compute_router.errors import ExitCode, RouteError

__all__ = ["doctor"]

Found = tuple[bool, str, str]
"""Whether it is good, what was seen, and what mends it."""
Row = tuple[str, str, bool, str, str, bool]
"""Part, check, whether it is good, what was seen, what mends it, and whether it warns."""

LEAST_FREE = 1_000_000_000
_ELSEWHERE = "export ROUTE_HOME=/a/folder/of/your/own"


@verb()
@click.pass_obj
def doctor(cli: Cli) -> int:
    """Check that everything is there, and say what mends it.

    Exits 69 if route cannot work: its own checks fail, or no backend can be used.
    """
    usable: set[str] = set()
    found = [
        {"part": part, "check": name, "ok": ok, "seen": seen, "mend": mend, "warns": warns}
        for part, name, ok, seen, mend, warns in _checks(cli, usable)
    ]
    part = ""
    for each in found:
        if each["part"] != part:
            part = str(each["part"])
            cli.out.line(part, style="bold")
        cli.out.marked(bool(each["ok"]), f"{each['check']}: {each['seen']}", warns=bool(each["warns"]))
        if each["mend"] and (each["warns"] or not each["ok"]):
            cli.out.below(f"mend: {each['mend']}")
    bad = [each for each in found if not each["ok"]]
    backends = {each["part"] for each in found if str(each["part"]).startswith("backend ")}
    if usable and not any(each["part"] == "route" for each in bad):
        cli.out.line(f"{len(bad)} of {len(found)} checks failed" if bad else "all is well")
        cli.out.done(found)
        return 0
    what = "route cannot work here" if backends else "no backend is installed"
    if backends and not usable:
        what = "no backend can be used"
    mend = next((str(each["mend"]) for each in bad if each["mend"]), "")
    cli.out.failed("UNHEALTHY", what, mend=mend, data=found)
    return int(ExitCode.UNAVAILABLE)


def _checks(cli: Cli, usable: set[str]) -> Iterator[Row]:
    """All that is looked at, in the order in which it depends on each other. The parts of backends that
    can be used are put into `usable`."""
    for name, look in (
        ("python", _python),
        ("home", lambda: _home(cli)),
        ("store", lambda: _store(cli)),
        ("settings", lambda: _settings(cli)),
        ("git", lambda: _program("git", None, "install git: without it receipts cannot name a commit")),
        ("uv", _uv),
    ):
        yield ("route", name, *_guarded(look), False)
    try:
        registry = cli.router.registry
        for load in (registry.backends, registry.policies, registry.kinds):
            load()
    except RouteError as e:
        yield "plugins", "loading", False, e.what, e.mend, False
        return
    third = [e for e, used in registry.listing() if used and e.distribution != "compute-router"]
    good = not registry.warnings
    yield "plugins", "loading", good, f"{len(third)} besides the bundled ones", "", False
    # Told here, so not once more on stderr.
    cli.out.warnings += registry.warnings
    for warning in registry.warnings:
        seen, _, mend = warning.partition("; ")
        yield "plugins", "broken", False, seen, mend, False
    for health in _healths(cli):
        if not health.set_up:
            # Nothing is wrong with what nobody asked for.
            yield "not set up", health.backend, True, health.summary, "", False
            continue
        if health.ok:
            usable.add(f"backend {health.backend}")
        if not health.checks:
            yield f"backend {health.backend}", "health", health.ok, health.summary, "", False
        for check in health.checks:
            yield f"backend {health.backend}", check.name, check.ok, check.seen, check.mend, check.warns


def _healths(cli: Cli) -> list[Any]:
    try:
        return cli.router.healths()
    except RouteError:
        # Home or settings cannot be read: told above already.
        return []


def _guarded(look: Callable[[], Found]) -> Found:
    try:
        return look()
    except RouteError as e:
        return False, str(e), e.mend
    except OSError as e:
        return False, str(e), ""


def _python() -> Found:
    seen = f"{platform.python_version()} at {sys.executable}"
    return sys.version_info >= (3, 11), seen, "route needs Python 3.11 or later"


def _home(cli: Cli) -> Found:
    home: Path = cli.router.store.home
    # Looked at only: the folder is made by the first run.
    there = next(path for path in (home, *home.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return False, f"{home} cannot be written", _ELSEWHERE
    free = shutil.disk_usage(there).free
    good = free > LEAST_FREE
    seen = f"{home}, {size(free)} free"
    return good, seen, "" if good else f"make room (route gc shows what may go), or {_ELSEWHERE}"


def _store(cli: Cli) -> Found:
    found = cli.router.store.list(limit=1)
    return True, "readable" + ("" if found else ", empty"), ""


def _settings(cli: Cli) -> Found:
    config = cli.router.config
    profiles = ", ".join(sorted(config.profiles))
    return True, f"readable; profiles: {profiles}" if profiles else "readable", ""


def _program(name: str, path: str | None, mend: str) -> Found:
    found = path or shutil.which(name)
    if found is None:
        return False, "not found", mend
    try:
        out = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired) as e:
        return False, f"{found} does not answer: {e}", mend
    if out.returncode:
        return False, f"{found} --version exits with {out.returncode}", mend
    return True, f"{(out.stdout.splitlines() or ['?'])[0]} at {found}", ""


def _uv() -> Found:
    mend = "pip install uv: it makes the environments of workloads that list dependencies"
    try:
        from uv import find_uv_bin

        return _program("uv", find_uv_bin(), mend)
    except (ImportError, FileNotFoundError):
        return _program("uv", None, mend)
