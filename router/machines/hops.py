"""The way to a machine by SSH: its address, and what `~/.ssh/config` makes of it, jump by jump."""

from __future__ import annotations

import dataclasses
import functools
import getpass
import os
import pwd
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from compute_router.errors import ConfigError, Rejected

__all__ = ["Address", "Hop", "Way", "resolve", "user_config"]

MOST_JUMPS = 8
KNOWN = {"userknownhostsfile": ["~/.ssh/known_hosts"], "globalknownhostsfile": list[str]()}
"""The keywords that name files of known keys, and what they are where there is no ssh to ask."""
PORT = 22
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+$-]{0,63}(@[A-Za-z0-9_.-]{1,64})?")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")


@dataclasses.dataclass(frozen=True)
class Address:
    """`user@name:port` in its parts; what is not said is left to `~/.ssh/config`."""

    name: str
    user: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `[user@]name[:port]`, an IPv6 address with a port in brackets. Raises `ConfigError`."""
        user, at, rest = text.strip().rpartition("@")
        match = re.fullmatch(r"\[([0-9A-Fa-f:.%a-z]+)\](?::(\d+))?", rest)
        if match:
            name, port = match[1], match[2]
        elif rest.count(":") == 1:
            name, _, port = rest.partition(":")
        else:
            name, port = rest, None
        if at and not _USER.fullmatch(user):
            raise _wrong(text, "before the @ stands no user's name")
        if not (_is_ipv6(name) if ":" in name else _NAME.fullmatch(name)):
            raise _wrong(text, "it names no machine")
        if port is not None and not (port.isdigit() and 0 < int(port) < 65536):
            raise _wrong(text, "behind the colon stands no port")
        return cls(name=name, user=user if at else None, port=int(port) if port else None)


def _is_ipv6(name: str) -> bool:
    import ipaddress

    try:
        ipaddress.IPv6Address(name)
    except ValueError:
        return False
    return True


def _wrong(text: str, why: str) -> ConfigError:
    return ConfigError(f"{text!r} is no address: {why}", mend="write user@name or user@name:port")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hop:
    """One computer to log in at. `identities`: files of private keys, the likeliest first;
    `only`: no other key of the agent than these; `agent`: its socket, None = no agent;
    `known`: files of known keys that the user's own ssh trusts, where `alias` names it if there is one."""

    name: str
    address: str
    port: int
    user: str
    identities: tuple[str, ...] = ()
    only: bool = False
    agent: str | None = None
    known: tuple[str, ...] = ()
    alias: str | None = None

    @property
    def shown(self) -> str:
        """The hop as it is said to a person."""
        at = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.user}@{at}" + ("" if self.port == PORT else f":{self.port}")

    @property
    def command(self) -> str:
        """The `ssh` that goes there by the first of its keys, for a person to try."""
        import shlex

        port = () if self.port == PORT else ("-p", str(self.port))
        key = ("-i", self.identities[0]) if self.identities else ()
        return shlex.join(["ssh", *port, *key, f"{self.user}@{self.address}"])

    @property
    def place(self) -> str:
        """Its name in a file of known keys."""
        if self.alias is not None:
            return self.alias
        return self.address if self.port == PORT else f"[{self.address}]:{self.port}"


@dataclasses.dataclass(frozen=True)
class Way:
    """The hops to a machine, that one last, and a command that leads to the first where there is one."""

    hops: tuple[Hop, ...]
    proxy: str | None = None

    @property
    def target(self) -> Hop:
        return self.hops[-1]


def user_config() -> str | None:
    """The file that `ROUTE_SSH_CONFIG` names instead of `~/.ssh/config`."""
    return os.environ.get("ROUTE_SSH_CONFIG") or None


def resolve(address: str, identity: str | None = None) -> Way:
    """The way to `address`, as the user's own `ssh` would take it.

    `ssh -G` reads the configuration (Include, Match, tokens and defaults are its business), so that
    what is taken is what `ssh` takes. Asks no network. Raises `ConfigError` for an address that
    is none or a configuration that ssh cannot read, `Rejected` for more than eight jumps.
    """
    return _way(Address.parse(address), identity, 0)


def _way(address: Address, identity: str | None, depth: int) -> Way:
    if depth > MOST_JUMPS:
        raise Rejected(
            f"the way to {address.name} has more than {MOST_JUMPS} jumps",
            mend="look for a circle of ProxyJump in ~/.ssh/config",
        )
    told = _told(address)
    hop = _hop(address, told, identity)
    jump = _last(told, "proxyjump")
    if jump and jump.lower() != "none":
        first, *others = jump.split(",")
        # Only the first jump is looked up with its own way: the others are reached through it.
        way = _way(_jump(first), None, depth + 1)
        hops = [*way.hops, *(_hop(a, _told(a), None) for a in map(_jump, others)), hop]
        if len(hops) > MOST_JUMPS + 1:
            return _way(address, identity, MOST_JUMPS + 1)
        return Way(tuple(hops), way.proxy)
    proxy = _last(told, "proxycommand")
    if proxy and proxy.lower() != "none":
        if _last(told, "proxyusefdpass") == "yes":
            raise Rejected(
                f"the way to {address.name} is by ProxyUseFdpass, which only the real ssh can go",
                mend='transport = "openssh" in [machines.NAME]',
            )
        return Way((hop,), _expanded(proxy, _tokens(address, hop)))
    return Way((hop,))


def _jump(text: str) -> Address:
    return Address.parse(text.strip().removeprefix("ssh://"))


def _told(address: Address) -> dict[str, list[str]]:
    return _asked(address.name, address.user, address.port, user_config(), shutil.which("ssh"))


@functools.lru_cache(maxsize=256)
def _asked(
    name: str, user: str | None, port: int | None, config: str | None, ssh: str | None
) -> dict[str, list[str]]:
    """What ssh says that it would do: keyword -> values."""
    if ssh is None:
        if (file := Path(config or _home() / ".ssh" / "config")).exists():
            raise ConfigError(
                f"{file} can be read by ssh alone, which is not here", mend="install OpenSSH's client"
            )
        return {}
    words = [ssh, "-G", *(("-F", config) if config else ()), *(("-l", user) if user else ())]
    words += [*(("-p", str(port)) if port else ()), "--", name]
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise ConfigError(f"ssh -G {name} cannot be asked: {e}", mend="try: ssh -G " + name) from e
    if done.returncode != 0:
        said = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"])[0]
        raise ConfigError(f"ssh cannot read its configuration: {said[:300]}", mend=f"try: ssh -G {name}")
    found: dict[str, list[str]] = {}
    # Names of files are bytes, whatever the locale: they have to lead to the same file again.
    for line in os.fsdecode(done.stdout).split("\n"):
        key, _, value = line.partition(" ")
        found.setdefault(key.lower(), []).append(value.strip())
    return found


def _last(told: dict[str, list[str]], key: str) -> str | None:
    return told[key][-1] if told.get(key) else None


def _hop(address: Address, told: dict[str, list[str]], identity: str | None) -> Hop:
    hop = Hop(
        name=address.name,
        address=_last(told, "hostname") or address.name,
        port=int(_last(told, "port") or address.port or PORT),
        user=_last(told, "user") or address.user or getpass.getuser(),
        only=(_last(told, "identitiesonly") or "no") == "yes",
        alias=_last(told, "hostkeyalias"),
    )
    # What ssh tells of files is as they were written: tokens and variables are still to be filled in.
    tokens = _tokens(address, hop)
    given = (_path(identity),) if identity else ()
    listed = [_path(_filled(value, tokens)) for value in told.get("identityfile", _defaults())]
    known = [file for key in KNOWN for value in told.get(key, KNOWN[key]) for file in _files(value)]
    return dataclasses.replace(
        hop,
        identities=tuple(dict.fromkeys((*given, *listed))),
        agent=_agent(_last(told, "identityagent") or "SSH_AUTH_SOCK", tokens),
        known=tuple(_path(_filled(file, tokens)) for file in known),
    )


def _files(value: str) -> list[str]:
    """The files of a list that ssh told, whose names may hold spaces; "none" is no file."""
    return [file for file in re.split(r" (?=[~/%$]|none$)", value) if file and file.lower() != "none"]


def _agent(said: str, tokens: Mapping[str, str]) -> str | None:
    """The socket of the agent; None = there is none."""
    if said.lower() == "none":
        return None
    named = re.fullmatch(r"\$?(\w+)", said)
    return (os.environ.get(named[1]) if named else _path(_filled(said, tokens))) or None


def _defaults() -> Sequence[str]:
    return [f"~/.ssh/id_{kind}" for kind in ("ed25519", "ecdsa", "rsa")]


def _home() -> Path:
    # ssh takes the home of the account, whatever HOME says.
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return Path.home()


def _path(text: str) -> str:
    return str(_home() / text[2:]) if text.startswith("~/") else text


def _tokens(address: Address, hop: Hop) -> dict[str, str]:
    """The tokens of ssh_config(5), but for %C and %j, which are names of ssh's own files."""
    here = socket.gethostname()
    return {
        "%": "%",
        "d": str(_home()),
        "h": hop.address,
        "i": str(os.getuid()),
        "k": hop.alias or address.name,
        "L": here.partition(".")[0],
        "l": here,
        "n": address.name,
        "p": str(hop.port),
        "r": hop.user,
        "u": getpass.getuser(),
    }


def _expanded(text: str, tokens: Mapping[str, str]) -> str:
    """A ProxyCommand, or the name of a file, with its tokens replaced."""
    return re.sub(r"%(.)", lambda m: tokens.get(m[1], m[0]), text)


def _filled(text: str, tokens: Mapping[str, str]) -> str:
    """The name of a file with its tokens and its `${VARIABLES}` replaced."""
    text = re.sub(r"\$\{(\w+)\}", lambda m: os.environ.get(m[1], m[0]), text)
    return _expanded(text, tokens)
