"""Keys of machines that somebody has looked at and taken for right: kept, and compared ever after."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compute_router.errors import ConfigError, CredentialsError
from compute_router.records import Record

if TYPE_CHECKING:
    from compute_router.machines.hops import Hop

__all__ = [
    "HostKey",
    "alias",
    "changed",
    "fingerprint",
    "pin",
    "pinned",
    "pins_file",
    "told",
    "trust",
    "unpin",
]

MOST = 4 << 20


class HostKey(Record, frozen=True, kw_only=True):
    """The key that one computer on the way showed.

    `hop`: it, as it is said to a person. `place`: its name in our file of keys. `type` and `line`
    (without the name) are OpenSSH's. `known` tells how it is known: `pinned` (by us), `known` (to the
    user's own ssh), `new`, `changed` (we had pinned another), `differs` (ssh knows another).
    `target`: it is the machine itself, not one on the way to it.
    """

    hop: str
    place: str
    type: str
    fingerprint: str
    line: str
    known: str
    target: bool


def alias(name: str) -> str:
    """What a machine is called in the file of keys: by its name, so that its address may change."""
    return f"route-{name}"


def pins_file() -> Path:
    """The file of pinned keys, in OpenSSH's form, beside the user's `config.toml`."""
    from compute_router.config import own_path

    return own_path().with_name("known_hosts")


def fingerprint(key: str) -> str:
    """`SHA256:...` of a public key in base64, as `ssh-keygen -l` says it."""
    made = hashlib.sha256(base64.b64decode(key)).digest()
    return "SHA256:" + base64.b64encode(made).decode().rstrip("=")


def pinned(place: str) -> list[tuple[str, str]]:
    """Type and key in base64 of what is pinned for `place`. Raises `ConfigError` if it cannot be read."""
    found = []
    for line in _lines():
        words = line.split()
        if len(words) >= 3 and place in words[0].split(","):
            found.append((words[1], words[2]))
    return found


def _lines() -> list[str]:
    path = pins_file()
    try:
        from compute_router.durable import read_file

        data = read_file(path, MOST)
        return [] if data is None else data.decode().splitlines()
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path} cannot be read: {e}", mend="make it a readable file of keys") from e


def pin(keys: Sequence[HostKey]) -> None:
    """Take `keys` for right from now on, in the place of what was pinned for them before. Durable;
    may be repeated. Raises `ConfigError` if it cannot be written."""
    places = {key.place for key in keys}
    _rewrite(places, [f"{key.place} {key.line}" for key in keys])


def unpin(name: str) -> None:
    """Forget the key of the machine `name`. Silent if there is none."""
    _rewrite({alias(name)}, [])


def _rewrite(places: set[str], added: Sequence[str]) -> None:
    from compute_router.durable import held, write_file

    path = Path(os.path.realpath(pins_file()))
    if not added and not path.exists():
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A file, for an NFS home lets nobody lock a folder.
        with held(path.parent / f".{path.name}.lock", create=True):
            kept = [line for line in _lines() if not places & set(line.split(" ", 1)[0].split(","))]
            text = "".join(f"{line}\n" for line in [*kept, *added])
            write_file(path.parent, path.name, text.encode())
    except OSError as e:
        raise ConfigError(f"{path} cannot be written: {e.strerror}", mend="make its folder writable") from e


def told(name: str, hop: Hop, target: bool, type_: str, key: str) -> HostKey:
    """What is known of the key that `hop` showed."""
    place = alias(name) if target else hop.place
    have = pinned(place)
    if have:
        known = "pinned" if (type_, key) in have else "changed"
    else:
        known = _users(hop, type_, key)
    return HostKey(
        hop=hop.shown,
        place=place,
        type=type_,
        fingerprint=fingerprint(key),
        line=f"{type_} {key}",
        known=known,
        target=target,
    )


def _users(hop: Hop, type_: str, key: str) -> str:
    """What the user's own ssh knows of the hop: `known`, `differs` or `new`."""
    found = "new"
    for file in hop.known:
        try:
            lines = Path(file).read_text(errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            # A line of a form that is not ours to read (`@cert-authority`, damage) tells nothing.
            words = line.split()
            if len(words) < 3 or words[1] != type_ or not _names(words[0], hop.place):
                continue
            if words[2] == key:
                return "known"
            found = "differs"
    return found


def _names(patterns: str, place: str) -> bool:
    """Whether the first word of a line of known_hosts, which may be hashed, names `place`."""
    import fnmatch

    import paramiko

    found = False
    for pattern in patterns.lower().split(",") if not patterns.startswith("|") else [patterns]:
        if pattern.startswith("|"):
            with contextlib.suppress(Exception):  # damage
                found = found or paramiko.HostKeys.hash_host(place, pattern) == pattern
            continue
        # In a pattern of ssh brackets stand for themselves.
        plain = re.sub(r"\[", "[[]", pattern.removeprefix("!"))
        if fnmatch.fnmatchcase(place.lower(), plain):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def changed(
    name: str, hop: str, what: str, *, pinned: bool = True, jump: str | None = None
) -> CredentialsError:
    """The hard stop: whoever answers is not who answered before. `jump`: the place of one on the way."""
    forget = f"route machine remove {name}, and add it again"
    if not pinned:
        forget = "remove the old one from known_hosts"
    elif jump is not None:
        # Other machines may be reached through it too: it goes with none of them.
        forget = f"ssh-keygen -R {shlex.quote(jump)} -f {shlex.quote(str(pins_file()))}, and add {name} again"
    return CredentialsError(
        f"{name}: THE KEY OF {hop} HAS CHANGED: {what}",
        mend=f"ask who runs it whether that is right; only then: {forget}",
    )


def trust(key: HostKey, name: str) -> None:
    """Raise `CredentialsError` unless `key` is one that may be gone on with: the machine's own must be
    pinned; one on the way may also be known to the user's own ssh."""
    if key.known == "pinned" or (key.known == "known" and not key.target):
        return
    if key.known in ("changed", "differs"):
        what, jump = f"it shows {key.type} {key.fingerprint}", None if key.target else key.place
        raise changed(name, key.hop, what, pinned=key.known == "changed", jump=jump)
    raise CredentialsError(
        f"{name}: the key of {key.hop} is not pinned; it shows {key.type} {key.fingerprint}",
        mend=f"route machine add {name} ADDRESS shows it and asks",
    )
