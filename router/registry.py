"""Finds plugins, keeps the good and names the broken.

Installed means loaded. Every entry point is loaded in its own `try`: what raises, what implements
a hook that does not exist and what returns something of the wrong type becomes a warning that
names plugin and distribution, and the rest goes on.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from compute_router import hookspecs
from compute_router.backend import Backend, Power, Surface
from compute_router.entrypoints import EntryPoint, installed
from compute_router.policy import Policy
from compute_router.records import Record
from compute_router.workload import Kind

if TYPE_CHECKING:
    import click

__all__ = ["Origin", "Registry"]

T = TypeVar("T")


class Origin(Record, frozen=True, kw_only=True):
    """Where a backend, policy or kind comes from; stands in the receipt.

    `digest` is the sha256 of the plugin module's source file, None if it has none.
    """

    plugin: str
    distribution: str
    version: str
    digest: str | None = None


class Registry:
    """The plugins of this process.

    `disabled` names entry points that are not loaded; with `enabled=False` only those of this
    distribution are. `warnings` lists in words what could not be used.
    """

    def __init__(
        self,
        *,
        disabled: Iterable[str] = (),
        enabled: bool = True,
        entries: Iterable[EntryPoint] | None = None,
    ) -> None:
        self._disabled = frozenset(disabled)
        self._enabled = enabled
        self._entries = list(installed() if entries is None else entries)
        self._origins: dict[tuple[str, str], Origin] = {}
        self.warnings: list[str] = []

    def listing(self) -> list[tuple[EntryPoint, bool]]:
        """Every installed plugin and whether it is in use, from metadata alone: imports nothing."""
        return [(entry, self._used(entry)) for entry in self._entries]

    def _used(self, entry: EntryPoint) -> bool:
        ours = entry.distribution == "compute-router"
        return entry.name not in self._disabled and (self._enabled or ours)

    @functools.cached_property
    def _manager(self) -> pluggy.PluginManager:
        manager = pluggy.PluginManager("route")
        manager.add_hookspecs(hookspecs)
        for entry in self._entries:
            if self._used(entry):
                self._load(manager, entry)
        return manager

    def _load(self, manager: pluggy.PluginManager, entry: EntryPoint) -> None:
        label = f"{entry.name}@{entry.distribution}"
        module, _, attribute = entry.value.partition(":")
        try:
            plugin: Any = importlib.import_module(module)
            for part in attribute.split(".") if attribute else ():
                plugin = getattr(plugin, part)
            if manager.has_plugin(label) or manager.is_registered(plugin):
                return
            manager.register(plugin, label)
        # A plugin may fail in any way at all, and may not take the router with it.
        except (Exception, SystemExit) as e:
            self._warn(entry, f"cannot be loaded ({type(e).__name__}: {_first_line(e)})")
            return
        try:
            manager.check_pending()
        except pluggy.PluginValidationError:
            unknown = sorted(
                name for name, value in inspect.getmembers(plugin) if _is_unknown_hook(manager, value, name)
            )
            manager.unregister(name=label)
            self._warn(entry, f"implements hooks that do not exist: {', '.join(unknown)}")

    def _warn(self, entry: EntryPoint, text: str) -> None:
        name = f"plugin {entry.name!r} of {entry.distribution} {entry.version}".rstrip()
        self.warnings.append(f"{name} {text}; `route plugins` lists it, plugins.disable silences it")

    def _entry(self, label: str) -> EntryPoint:
        return next(e for e in self._entries if f"{e.name}@{e.distribution}" == label)

    def _collect(self, hook: str, check: Callable[[Any], str | None]) -> dict[str, Any]:
        """Ask each plugin on its own, so that one that raises spoils nothing for the others."""
        things: dict[str, Any] = {}
        plugins = sorted(
            self._manager.list_name_plugin(), key=lambda p: (not p[0].endswith("@compute-router"), p[0])
        )
        everyone = [plugin for _, plugin in plugins if plugin is not None]
        for label, plugin in plugins:
            if plugin is None:
                continue
            entry = self._entry(label)
            caller = self._manager.subset_hook_caller(hook, [p for p in everyone if p is not plugin])
            try:
                brought = [thing for answer in caller() for thing in answer]
            except (Exception, SystemExit) as e:
                self._warn(entry, f"failed in {hook} ({type(e).__name__}: {_first_line(e)})")
                continue
            for thing in brought:
                if problem := check(thing):
                    self._warn(entry, f"brings something unusable: {problem}")
                elif thing.name in things:
                    other = self._origins[hook, thing.name]
                    self._warn(entry, f"brings {thing.name!r}, which {other.distribution} has already")
                else:
                    things[thing.name] = thing
                    self._origins[hook, thing.name] = Origin(
                        plugin=entry.name,
                        distribution=entry.distribution,
                        version=entry.version,
                        digest=_digest(entry),
                    )
        return dict(sorted(things.items()))

    @functools.cached_property
    def _backends(self) -> dict[str, type[Backend]]:
        return self._collect("route_backends", _wrong_backend)

    @functools.cached_property
    def _policies(self) -> dict[str, Policy]:
        return self._collect("route_policies", lambda p: _wrong_instance(p, Policy))

    @functools.cached_property
    def _kinds(self) -> dict[str, Kind]:
        return self._collect("route_kinds", lambda k: _wrong_instance(k, Kind))

    def backends(self) -> dict[str, type[Backend]]:
        """Backend classes by name, sorted."""
        return self._backends

    def policies(self) -> dict[str, Policy]:
        """Policies by name, sorted."""
        return self._policies

    def kinds(self) -> dict[str, Kind]:
        """Kinds of workload by name, sorted."""
        return self._kinds

    def origin(self, thing: str, name: str) -> Origin:
        """Where the `backend`, `policy` or `kind` called `name` comes from. Raises `KeyError` if nowhere."""
        getattr(self, {"backend": "backends", "policy": "policies", "kind": "kinds"}[thing])()
        hook = {"backend": "route_backends", "policy": "route_policies", "kind": "route_kinds"}[thing]
        return self._origins[hook, name]

    def add_commands(self, group: click.Group) -> None:
        """Let every plugin add its commands to `group`."""
        for label, plugin in self._manager.list_name_plugin():
            add = getattr(plugin, "route_commands", None)
            if add is not None:
                try:
                    add(group=group)
                except (Exception, SystemExit) as e:
                    self._warn(self._entry(label), f"failed in route_commands ({type(e).__name__}: {e})")

    def notify(self, run_id: str, event: dict[str, Any]) -> None:
        """Tell every plugin that something happened to a run; what they raise becomes a warning."""
        for label, plugin in self._manager.list_name_plugin():
            tell = getattr(plugin, "route_event", None)
            if tell is not None:
                try:
                    tell(run_id=run_id, event=dict(event))
                except (Exception, SystemExit) as e:
                    self._warn(self._entry(label), f"failed in route_event ({type(e).__name__}: {e})")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or ["no message"])[0][:200]


def _is_unknown_hook(manager: pluggy.PluginManager, value: object, name: str) -> bool:
    return hasattr(value, "route_impl") and getattr(getattr(manager.hook, name, None), "spec", None) is None


def _digest(entry: EntryPoint) -> str | None:
    try:
        file = inspect.getsourcefile(importlib.import_module(entry.value.partition(":")[0]))
        if file is None:
            return None
        with open(file, "rb") as source:
            return hashlib.sha256(source.read()).hexdigest()
    except (OSError, TypeError):
        return None


def _wrong_backend(thing: object) -> str | None:
    if not (isinstance(thing, type) and issubclass(thing, Backend)):
        return f"{thing!r} is no Backend class"
    if inspect.isabstract(thing):
        return f"{thing.__name__} leaves {', '.join(sorted(thing.__abstractmethods__))} undone"
    for name, kind in (("name", str), ("surface", Surface), ("Settings", type), ("powers", frozenset)):
        if not isinstance(getattr(thing, name, None), kind):
            return f"{thing.__name__}.{name} is missing or no {kind.__name__}"
    if not issubclass(thing.Settings, Record):
        return f"{thing.__name__}.Settings is no Record"
    if not all(isinstance(power, Power) for power in thing.powers):
        return f"{thing.__name__}.powers holds something that is no Power"
    return None


def _wrong_instance(thing: object, type_: type) -> str | None:
    if not isinstance(thing, type_):
        return f"{thing!r} is no {type_.__name__}"
    if not isinstance(getattr(thing, "name", None), str):
        return f"{type(thing).__name__} has no name"
    return None
