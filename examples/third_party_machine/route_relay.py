"""The backend `relay`: one computer, reached by a command such as `ssh box` or `docker exec -i box`."""

from __future__ import annotations

import functools
import shlex
import shutil
from collections.abc import Sequence

from compute_router import (
    Accelerator,
    Backend,
    Hardware,
    Health,
    Machine,
    MachineBackend,
    NoOffer,
    Offer,
    Power,
    Record,
    Rejected,
    StartClass,
    Stream,
    Surface,
    Workload,
    hookimpl,
    open_command,
)


class RelaySettings(Record, frozen=True, kw_only=True):
    """`command` reaches the computer (empty: it is this one). `shell`: what is behind it takes one line
    for a shell, as `ssh` does, and not words, as `docker exec` does. `root`: the folder there."""

    command: tuple[str, ...] = ()
    shell: bool = False
    root: str = "~/.route"


class RelayMachine(Machine):
    """All that core needs of a computer: a way to open a command on it."""

    def __init__(self, settings: RelaySettings) -> None:
        self.settings, self.root = settings, settings.root
        self.name = shlex.join(settings.command) or "this computer"

    def open(self, argv: Sequence[str], *, deadline: float) -> Stream:
        words = [shlex.join(argv)] if self.settings.shell else argv
        return open_command([*self.settings.command, *words])

    def close(self) -> None:
        """Each stream stands for itself."""


class RelayBackend(MachineBackend):
    """What is yours to change: what the computer has (`offers`), and how it is reached (`open`)."""

    name = "relay"
    surface = Surface.RESERVED
    Settings = RelaySettings
    powers = frozenset({Power.DETACH, Power.FOLLOW, Power.CANCEL, Power.SECRETS, Power.VOLUMES})
    settings: RelaySettings

    @functools.cached_property
    def _machine(self) -> RelayMachine:
        return RelayMachine(self.settings)

    def places(self) -> Sequence[Machine]:
        return [self._machine]

    def machines(self, offer: Offer) -> Sequence[Machine]:
        return [self._machine]

    def health(self) -> Health:
        program = (*self.settings.command, "python3")[0]
        there = shutil.which(program) is not None
        seen = f"{self._machine.name} by {program}" if there else f"{program} is not installed"
        return Health(backend=self.name, ok=there, summary=seen)

    def offers(self, workload: Workload) -> Sequence[Offer | NoOffer]:
        cpu, needs = Accelerator(family="cpu"), workload.needs
        lacks = [name for name in ("buckets", "stage", "image") if getattr(workload, name)]
        if needs.nodes > 1 or cpu not in (needs.accelerator, *needs.substitutes):
            lacks.append(f"{needs.nodes} x {needs.accelerator}")
        try:
            self.interpreter(workload)
        except Rejected:
            lacks.append("way to install dependencies")
        if lacks:
            reason = f"{self._machine.name} has no {', no '.join(lacks)}"
            return [NoOffer(backend=self.name, code="lacks", reason=reason, mend="use another backend")]
        return [
            Offer(
                backend=self.name,
                id="machine",
                surface=self.surface,
                hardware=Hardware(family="cpu"),
                start_class=StartClass.WARM_MACHINE_FRESH_PROCESS,
                powers=tuple(sorted(self.powers)),
            )
        ]


@hookimpl
def route_backends() -> list[type[Backend]]:
    """What this plugin brings."""
    return [RelayBackend]
