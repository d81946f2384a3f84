"""The keys that a login at a computer on the way is tried with: files, and what the agent holds."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

from compute_router.errors import Rejected
from compute_router.machines.hops import Hop

__all__ = ["first_line", "keys_of", "load"]

ALONE = "sk-"
"""How the names of key types begin that live in hardware."""


def load() -> Any:
    """paramiko, kept from writing to a terminal. Raises `Rejected` where it is not installed."""
    try:
        import paramiko
    except ImportError as e:
        raise Rejected(
            f"paramiko is needed to reach machines by SSH: {e}", mend="pip install 'compute-router[ssh]'"
        ) from e
    log = logging.getLogger("paramiko")
    if not log.handlers:
        log.addHandler(logging.NullHandler())
        log.propagate = False
    return paramiko


def keys_of(hop: Hop, tried: list[str]) -> Iterator[tuple[str, Any]]:
    """Keys to try, the likeliest first: the files, out of the agent where it has them; then the rest
    of the agent's. What cannot be used is noted in `tried`."""
    agent = {key.asbytes(): key for key in _agent(hop)}
    used: set[bytes] = set()
    for file in hop.identities:
        public = _public(file)
        if public in agent:
            used.add(public)
            yield f"{file} by the agent", agent[public]
            continue
        if os.path.exists(file):
            key = _private(file, tried)
            if key is not None:
                yield file, key
    if not hop.only:
        for blob, key in agent.items():
            if blob not in used:
                yield f"{key.get_name()} of the agent", key


def _agent(hop: Hop) -> list[Any]:
    paramiko = load()
    if hop.agent is None:
        return []
    with _AGENT, _environment("SSH_AUTH_SOCK", hop.agent):
        try:
            return list(paramiko.Agent().get_keys())
        except (paramiko.SSHException, OSError):
            return []


_AGENT = threading.Lock()


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    # paramiko asks the environment alone for the agent.
    before = os.environ.get(name)
    if before == value:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _public(file: str) -> bytes:
    """The public half of a key's file, where it stands beside; empty if it does not."""
    import base64

    try:
        with open(f"{file}.pub" if not file.endswith(".pub") else file, encoding="utf-8") as f:
            return base64.b64decode(f.readline().split()[1])
    except (OSError, ValueError, IndexError):
        return b""


def _private(file: str, tried: list[str]) -> Any:
    paramiko = load()
    try:
        return paramiko.PKey.from_path(file)
    except (paramiko.PasswordRequiredException, TypeError):
        tried.append(f"{file}: needs a passphrase")
    except OSError as e:
        tried.append(f"{file}: {e.strerror}")
    except Exception as e:  # the library behind has errors of its own for each kind of damage
        hard = ALONE in first_line(e) or _is_hard(file)
        tried.append(f"{file}: is a hardware key" if hard else f"{file}: cannot be read: {first_line(e)}")
    return None


def _is_hard(file: str) -> bool:
    try:
        with open(f"{file}.pub", encoding="utf-8") as f:
            return f.read(64).startswith(ALONE)
    except (OSError, ValueError):
        return False


def first_line(e: BaseException) -> str:
    """What an error says, in one line."""
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:300]
