"""Reads `route.toml` and the user's `config.toml`: defaults, profiles, settings, machines, plugins."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compute_router.errors import ConfigError, NotFound
from compute_router.reading import values as v
from compute_router.reading.keys import HINTS, KEYS
from compute_router.reading.layers import Layer, merge, parse_toml, shown_path, toml_layer
from compute_router.reading.locate import Lines, line_of, locate
from compute_router.reading.place import git_root

__all__ = ["Config", "load_config", "own_path"]

SECTIONS = ("workload", "profiles", "backends", "machines", "plugins", "policy", "rules")
"""Keys of a configuration file besides those of `[tool.route]`."""

_HINTS = {
    **HINTS,
    "workload": "its keys stand at the top of the file",
    "tool": "its keys stand at the top of the file",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What the configuration files say; `Config()` is that of nobody who wrote any.

    `layers` are the workload-level defaults, the lowest first; `files` what was read. `backends`
    and `machines` hold raw tables by name. Values of the nearest `route.toml` win.
    """

    layers: tuple[Layer, ...] = ()
    profiles: Mapping[str, tuple[Layer, ...]] = dataclasses.field(default_factory=dict)
    backends: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    machines: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    plugins_disable: tuple[str, ...] = ()
    policy: str | None = None
    rules: tuple[dict[str, Any], ...] = ()
    files: tuple[Path, ...] = ()
    origins: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Where `policy`, `rules` and each `backends.NAME` and `machines.NAME` come from."""

    @property
    def workload(self) -> dict[str, Any]:
        """The workload-level defaults, merged, as they were written."""
        return merge(self.layers).values

    def backend(self, name: str) -> dict[str, Any]:
        """The settings of backend `name`; empty if there are none."""
        return dict(self.backends.get(name, {}))

    def profile(self, name: str) -> tuple[Layer, ...]:
        """The layers of profile `name`. Raises `NotFound` with the nearest name."""
        if name not in self.profiles:
            known = v.near(name, self.profiles) if self.profiles else "write [profiles.NAME] in route.toml"
            raise NotFound(f"there is no profile {name!r}", mend=known)
        return self.profiles[name]


def load_config(start: Path) -> Config:
    """The configuration that holds in folder `start`.

    The user's own file (`ROUTE_CONFIG`, else `config.toml` in the platform's configuration
    folder, `~/.config/route` on Linux) and above it the nearest `route.toml`, looked for from
    `start` up to the git root; outside a work tree in `start` alone. Raises `ConfigError` with
    file and line.
    """
    found = []
    if (own := _own_file()) is not None:
        found.append(own)
    start = Path(os.path.realpath(start))
    root = git_root(start) or start
    for folder in (start, *start.parents):
        if os.path.lexists(folder / "route.toml"):
            found.append(folder / "route.toml")
            break
        if folder == root:
            break
    config = Config()
    for path in dict.fromkeys(found):
        config = _over(config, _read(path, start))
    return config


def own_path() -> Path:
    """Where the user's own `config.toml` is or would be; `ROUTE_CONFIG` names another."""
    if named := os.environ.get("ROUTE_CONFIG"):
        return Path(os.path.abspath(os.path.expanduser(named)))
    return _own_folder() / "config.toml"


def _own_file() -> Path | None:
    if named := os.environ.get("ROUTE_CONFIG"):
        path = Path(os.path.abspath(os.path.expanduser(named)))
        if not path.exists():
            raise ConfigError(f"ROUTE_CONFIG names {named}, which does not exist", mend="unset ROUTE_CONFIG")
        return path
    path = _own_folder() / "config.toml"
    return path if path.is_absolute() and os.path.lexists(path) else None


def _own_folder() -> Path:
    if sys.platform == "darwin":
        import platformdirs

        return Path(platformdirs.user_config_dir("route"))
    # What platformdirs answers everywhere else, without the 15 ms of its import.
    base = os.environ.get("XDG_CONFIG_HOME", "").strip() or os.path.expanduser("~/.config")
    return Path(base) / "route"


def _over(low: Config, high: Config) -> Config:
    names = [*low.profiles, *(n for n in high.profiles if n not in low.profiles)]
    return Config(
        layers=(*low.layers, *high.layers),
        profiles={n: (*low.profiles.get(n, ()), *high.profiles.get(n, ())) for n in names},
        backends=_tables(low.backends, high.backends),
        machines=_tables(low.machines, high.machines),
        plugins_disable=tuple(dict.fromkeys((*low.plugins_disable, *high.plugins_disable))),
        policy=high.policy or low.policy,
        rules=high.rules or low.rules,
        files=(*low.files, *high.files),
        origins={**low.origins, **high.origins},
    )


def _tables(
    low: Mapping[str, Mapping[str, Any]], high: Mapping[str, Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    return {name: {**low.get(name, {}), **high.get(name, {})} for name in (*low, *high)}


@dataclasses.dataclass(frozen=True)
class _File:
    """One configuration file, located, so that what is wrong in it can be pointed at."""

    shown: str
    values: dict[str, Any]
    lines: Lines

    def fault(self, path: tuple[str | int, ...], what: str, mend: str) -> ConfigError:
        return ConfigError(what, mend=mend, file=self.shown, line=line_of(self.lines, path))

    def at(self, *path: str) -> str:
        return f"{self.shown}:{line_of(self.lines, path) or 1}"

    def table(self, *path: str) -> dict[str, Any]:
        """The table at `path`, empty if there is none."""
        found: Any = self.values
        for key in path:
            found = found.get(key, {})
        if not isinstance(found, dict):
            name = ".".join(path)
            raise self.fault(path, f"{name} must be a table", f"write [{name}] and its keys below")
        return found

    def layer(self, values: Mapping[str, Any], *below: str, note: str = "") -> Layer:
        layer = toml_layer(values, self.lines, self.shown, below=below, note=note, error=ConfigError)
        return layer.checked()


def _read(path: Path, start: Path) -> Config:
    shown = shown_path(path, start)
    file = _parse(path, shown)
    for key in file.values:
        if key not in KEYS and key not in SECTIONS:
            mend = _HINTS.get(key) or v.near(key, (*KEYS, *SECTIONS))
            raise file.fault((key,), f"there is no key {key!r}", mend)
    top = {key: value for key, value in file.values.items() if key in KEYS}
    table = file.table("workload")
    for key in table:
        if key in top:
            raise file.fault(
                ("workload", key), f"{key!r} stands at the top of the file already", "say it once"
            )
    profiles = {
        name: (file.layer(file.table("profiles", name), "profiles", name, note=f"[profiles.{name}]"),)
        for name in file.table("profiles")
    }
    origins: dict[str, str] = {key: file.at(key) for key in ("policy", "rules") if key in file.values}
    named: dict[str, dict[str, Any]] = {}
    for section in ("backends", "machines"):
        named[section] = {name: _raw(file, section, name) for name in file.table(section)}
        origins |= {f"{section}.{name}": file.at(section, name) for name in named[section]}
    return Config(
        layers=(file.layer(top), file.layer(table, "workload")),
        profiles=profiles,
        backends=named["backends"],
        machines=named["machines"],
        plugins_disable=_disabled(file),
        policy=_policy(file),
        rules=_rules(file),
        files=(path,),
        origins=origins,
    )


def _parse(path: Path, shown: str) -> _File:
    try:
        # Opening a pipe would wait for somebody to write to it.
        if not path.is_file() and not path.is_dir() and path.exists():
            raise ConfigError(f"{shown} is not a regular file", mend="write a TOML file there")
        data = path.read_bytes()
    except OSError as e:
        mend = "it must be a readable file" if path.exists() else "it is a link to nothing"
        raise ConfigError(f"{shown} cannot be read: {e.strerror}", mend=mend) from None
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise ConfigError(
            "the bytes here are not UTF-8", mend="save it as UTF-8", file=shown, line=line
        ) from None
    return _File(shown, parse_toml(text, shown, error=ConfigError), locate(text))


def _raw(file: _File, section: str, name: str) -> dict[str, Any]:
    try:
        found = v.plain_json(file.table(section, name))
    except v.Wrong as e:
        raise file.fault((section, name, *e.path), v.join(f"{section}.{name}", e.what), e.mend) from None
    except RecursionError:
        raise file.fault(
            (section, name), f"{section}.{name} is nested too deeply", "make it flatter"
        ) from None
    assert isinstance(found, dict)
    return found


def _disabled(file: _File) -> tuple[str, ...]:
    table = file.table("plugins")
    for key in table:
        if key != "disable":
            raise file.fault(("plugins", key), f"plugins has no key {key!r}", v.near(key, ("disable",)))
    try:
        return tuple(v.items(v.text)(table.get("disable", ())))
    except v.Wrong as e:
        where = ("plugins", "disable", *e.path)
        raise file.fault(where, v.join("plugins.disable", e.what), e.mend) from None


def _policy(file: _File) -> str | None:
    if "policy" not in file.values:
        return None
    try:
        return v.text(file.values["policy"])
    except v.Wrong as e:
        raise file.fault(("policy",), v.join("policy", e.what), 'write policy = "auto"') from None


def _rules(file: _File) -> tuple[dict[str, Any], ...]:
    found = file.values.get("rules", [])
    if not isinstance(found, list) or not all(isinstance(rule, dict) for rule in found):
        raise file.fault(("rules",), "rules must be tables", "write each as [[rules]]")
    try:
        return tuple(v.plain_json(found))
    except (v.Wrong, RecursionError) as e:
        path, what = (e.path, e.what) if isinstance(e, v.Wrong) else ((), "is nested too deeply")
        raise file.fault(("rules", *path), v.join("rules", what), "use strings, integers and lists") from None
