"""Resolve secrets by name: from a file named by flag, the environment, or the keyring."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from compute_router import scrubbing
from compute_router.errors import CredentialsError, InputError, WorkloadError
from compute_router.workload import Workload

__all__ = ["SERVICE", "check", "read_env_file", "recall", "resolve"]

SERVICE = "compute-router"
"""The name under which the keyring holds secrets: `keyring set compute-router HF_TOKEN`."""


def resolve(
    names: Sequence[str],
    *,
    env_file: str | Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The values of `names`: from `env_file` first, then the environment, then the keyring.

    What is found is removed from all that this process writes from then on. Raises
    `CredentialsError` that names all that are missing (an empty value counts as missing), and
    `InputError` for a file that cannot be read.
    """
    scrubbing.declare(names)
    given = {} if env_file is None else read_env_file(env_file)
    environ = os.environ if environ is None else environ
    found = {name: given.get(name) or environ.get(name) or "" for name in names}
    missing = [name for name, value in found.items() if not value]
    why = ""
    if missing:
        stored, why = _from_keyring(missing)
        found.update(stored)
        missing = [name for name in missing if name not in stored]
    if missing:
        what = "secret" if len(missing) == 1 else "secrets"
        stands = f"`keyring set {SERVICE} {missing[0]}`"
        if importlib.util.find_spec("keyring") is None:
            stands += " (pip install 'compute-router[secrets]')"
        raise CredentialsError(
            f"missing {what}: {', '.join(missing)}{why}",
            mend=f"export {missing[0]}=..., or --env-file FILE with a line {missing[0]}=..., or {stands}",
        )
    scrubbing.know(found)
    return found


def recall(names: Sequence[str], *, keyring: bool = False) -> dict[str, str]:
    """Those of `names` that can be had without asking anybody; never raises. They count as known."""
    found = {name: scrubbing.known(name) or os.environ.get(name) or "" for name in names}
    found = {name: value for name, value in found.items() if value}
    if keyring:
        found.update(_from_keyring([name for name in names if name not in found])[0])
    scrubbing.declare(names)
    scrubbing.know(found)
    return found


def read_env_file(path: str | Path) -> dict[str, str]:
    """The variables of a `.env` file; `$NAME` in a value stands for itself.

    Raises `InputError` with file and line for what is no assignment. The line itself is never
    shown: it may be a secret that only lacks its name.
    """
    from dotenv.parser import parse_stream

    try:
        with open(path, encoding="utf-8") as file:
            lines = list(parse_stream(file))
    except UnicodeDecodeError as e:
        raise InputError(
            f"the env file {path} is no UTF-8 text", mend="save it as UTF-8"
        ) from e.with_traceback(None)
    except OSError as e:
        raise InputError(f"the env file {path} cannot be read: {e.strerror}", mend="check --env-file") from e
    found: dict[str, str] = {}
    for line in lines:
        bare = line.key is not None and line.value is None
        if line.error or bare or (line.key is not None and not line.key.isidentifier()):
            raise InputError(
                "not of the form NAME=VALUE",
                mend="write NAME=VALUE, a value with spaces or # in it in quotes",
                file=str(path),
                line=line.original.line,
            )
        if line.key is not None:
            found[line.key] = line.value or ""
    return found


def _from_keyring(names: Sequence[str]) -> tuple[dict[str, str], str]:
    """What the keyring holds of `names`, and in a few words why it could not be asked."""
    if not names or importlib.util.find_spec("keyring") is None:
        return {}, ""
    found: dict[str, str] = {}
    try:
        import keyring

        for name in names:
            value = keyring.get_password(SERVICE, name)
            if value:
                found[name] = value
    # A backend of it may raise anything; that there is no keyring here is no news.
    except Exception as e:
        if type(e).__name__ in ("NoKeyringError", "InitError"):
            return found, ""
        first = (str(e).splitlines() or [""])[0][:120]
        return found, f" (the keyring could not be asked: {type(e).__name__}{': ' + first if first else ''})"
    return found, ""


def check(workload: Workload, key: str | None, secrets: Mapping[str, str]) -> None:
    """See that no value stands where it would be written down. Raises `WorkloadError`, naming the field."""
    found = scrubbing.exposed(workload, key, secrets)
    if found is not None:
        field, name = found
        raise WorkloadError(
            f"the value of secret {name} stands in {field}, which everybody on the machine can see",
            mend=f"leave it out there and let the work read {name} from its environment",
        )
