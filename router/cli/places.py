"""`route backends`, `policies` and `kinds`: what this installation has."""

from __future__ import annotations

import click

from compute_router.cli.app import verb
from compute_router.cli.call import Cli

__all__ = ["backends", "kinds", "policies"]


@verb()
@click.option("--check/--no-check", default=True, help="Ask each for its health (the default).")
@click.pass_obj
def backends(cli: Cli, check: bool) -> int:
    """List backends and whether they can be used now."""
    from compute_router.records import plain

    router = cli.router
    healths = {h.backend: h for h in router.healths()} if check else {}
    cli.tell_warnings()
    rows, data = [], []
    for name, cls in router.registry.backends().items():
        health, origin = healths.get(name), router.registry.origin("backend", name)
        usable = "-" if health is None else "yes" if health.ok else "no"
        rows.append([name, cls.surface.value, usable, origin.distribution, health.summary if health else ""])
        data.append(
            {
                "name": name,
                "surface": cls.surface.value,
                "powers": sorted(power.value for power in cls.powers),
                "health": plain(health) if health else None,
                "origin": plain(origin),
            }
        )
    cli.out.table(["BACKEND", "SURFACE", "USABLE", "FROM", "SEEN"], rows)
    cli.out.done(data)
    return 0


@verb()
@click.pass_obj
def policies(cli: Cli) -> int:
    """List policies; `auto` decides unless another is named."""
    from compute_router.records import plain

    registry = cli.router.registry
    found = registry.policies()
    cli.tell_warnings()
    chosen = cli.router.config.policy or "auto"
    rows = [
        [name, policy.version, registry.origin("policy", name).distribution, policy.about]
        for name, policy in found.items()
    ]
    cli.out.table(["POLICY", "VERSION", "FROM", "ABOUT"], rows)
    cli.out.done(
        [
            {
                "name": name,
                "version": policy.version,
                "about": policy.about,
                "default": name == chosen,
                "origin": plain(registry.origin("policy", name)),
            }
            for name, policy in found.items()
        ]
    )
    return 0


@verb()
@click.pass_obj
def kinds(cli: Cli) -> int:
    """List kinds of workload, and the ready-made workloads that run by name."""
    from compute_router.records import plain

    registry = cli.router.registry
    found = registry.kinds()
    cli.tell_warnings()
    rows, data = [], []
    for name, kind in found.items():
        ready = ", ".join(f"{name}:{each}" for each in sorted(kind.ready))
        purposes = ", ".join(p.value for p in kind.purposes)
        rows.append([name, registry.origin("kind", name).distribution, kind.about])
        rows.append(["", "", f"purposes: {purposes}"])
        if ready:
            rows.append(["", "", f"ready-made: {ready}"])
        data.append(
            {
                "name": name,
                "about": kind.about,
                "purposes": [p.value for p in kind.purposes],
                "fields": [plain(field) for field in kind.fields],
                "ready": {f"{name}:{each}": path for each, path in sorted(kind.ready.items())},
                "origin": plain(registry.origin("kind", name)),
            }
        )
    cli.out.table(["KIND", "FROM", "ABOUT"], rows)
    cli.out.done(data)
    return 0
