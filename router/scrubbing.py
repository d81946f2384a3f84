"""The secrets this process knows, and their removal from whatever it writes: records, events, errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from compute_router.supervisor.scrub import Scrubber
    from compute_router.workload import Workload

__all__ = [
    "clean",
    "clean_bytes",
    "cleaned",
    "declare",
    "exposed",
    "hidden",
    "know",
    "known",
    "resolved",
    "scrubber",
]

LEAST_PART = 8
"""Bytes from which on a value may not stand in a longer text of the workload either."""
_values: dict[str, str] = {}
_names: set[str] = set()
_scrubber: Scrubber | None = None


def declare(names: Iterable[str]) -> None:
    """These are names of secrets: programs that this process starts do not inherit them."""
    _names.update(names)


def hidden(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` without the variables that a workload of this process declares as secrets."""
    return {name: value for name, value in environ.items() if name not in _names}


def know(secrets: Mapping[str, str]) -> None:
    """Remove these values, name to value, from all that this process writes from now on."""
    global _scrubber
    declare(secrets)
    for name, value in secrets.items():
        if value and value not in _values:
            _values[value] = name
            _scrubber = None


def known(name: str) -> str | None:
    """The value last learnt for `name`; None if there is none."""
    return next((value for value, owner in reversed(_values.items()) if owner == name), None)


def scrubber(more: Mapping[str, str] | None = None) -> Scrubber | None:
    """What looks for all known values, and for `more` (name to value); None if there is nothing to find."""
    global _scrubber
    if more is None and _scrubber is not None:
        return _scrubber
    if not _values and not more:
        return None
    from compute_router.supervisor.scrub import Scrubber

    listed: dict[str, str] = {}
    for value, name in [*_values.items(), *((v, n) for n, v in (more or {}).items())]:
        # One name may have had several values here.
        while name in listed:
            name += "'"
        listed[name] = value
    made = Scrubber(listed)
    if more is None:
        _scrubber = made
    return made


def clean(text: str) -> str:
    """`text` with `***` for every known value, in whatever form it stands there."""
    look = scrubber()
    return text if look is None else look.replaced(text)[0]


def clean_bytes(data: bytes) -> bytes:
    """Bytes of a log with every known value that stands in them whole overwritten."""
    look = scrubber()
    return data if look is None else look.masked(data)


def cleaned(data: Any) -> Any:
    """Plain data with `clean` done to every text in it, keys included."""
    return data if scrubber() is None else _cleaned(data)


def _cleaned(data: Any) -> Any:
    if isinstance(data, str):
        return clean(data)
    if isinstance(data, Mapping):
        return {_cleaned(key): _cleaned(item) for key, item in data.items()}
    if isinstance(data, (list, tuple)):
        return [_cleaned(item) for item in data]
    return data


def resolved(
    workload: Workload, key: str | None, given: Mapping[str, str] | None, notice: Callable[[str], None]
) -> Mapping[str, str]:
    """The secrets of `workload`: those that were given, else looked up; known from here on.

    Raises `CredentialsError` for missing ones, `WorkloadError` if a value stands where it would be
    written down. What cannot be looked for is told to `notice`.
    """
    if not workload.secrets and not given:
        return {}
    from compute_router.secrets import check, resolve

    secrets = resolve(workload.secrets) if given is None else given
    know(secrets)
    check(workload, key, secrets)
    look = scrubber(secrets)
    for name in look.short if look is not None else ():
        notice(f"secret {name} is too short to be looked for: it is removed from nothing")
    return secrets


def exposed(workload: Workload, key: str | None, secrets: Mapping[str, str]) -> tuple[str, str] | None:
    """The field of `workload` in which the value of a secret stands, and the secret's name; else None."""
    from compute_router.records import plain
    from compute_router.supervisor.scrub import Scrubber

    if not secrets:
        return None
    look = Scrubber(secrets)
    for path, text in _texts({**plain(workload), "key": key or ""}, ""):
        name = look.holds(text.encode("utf-8", "surrogatepass"))
        if name and (
            len(secrets[name].encode("utf-8", "surrogatepass")) >= LEAST_PART or text == secrets[name]
        ):
            return path.removeprefix("entry."), name
    return None


def _texts(data: Any, path: str) -> Iterable[tuple[str, str]]:
    if isinstance(data, str):
        yield path, data
    elif isinstance(data, Mapping):
        for key, item in data.items():
            at = f"{path}.{key}" if path else str(key)
            # A name is told by its table alone: it may be what must not be shown.
            yield path, str(key)
            yield from _texts(item, at)
    elif isinstance(data, (list, tuple)):
        for item in data:
            yield from _texts(item, path)
