"""The environment of a workload's dependencies on a machine: resolved here for that machine, built there."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from compute_router.environment import find_uv, run_uv, satisfies, uv_environ
from compute_router.errors import Broken, PreflightFailed, RouteError, Unavailable
from compute_router.machines.blobs import Blob, of_file
from compute_router.machines.contract import Interpreter
from compute_router.machines.refusing import Resend
from compute_router.machines.session import Session, Sessions
from compute_router.machines.shipping import Tries, bring
from compute_router.workload import Workload

__all__ = ["built_on"]

GLIBC = (17, 28, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40)
"""The minor versions of glibc 2 that uv resolves for."""
NEEDS_GLIBC = 17
"""What the uv of its wheel for Linux needs (its tag is manylinux_2_17)."""
SENT = ("UV_", "SSL_CERT_FILE")
"""Of the variables that uv is given here, those that it is given there too."""
HERE = """CACHE_DIR CONFIG_FILE CONSTRAINT BUILD_CONSTRAINT OVERRIDE EXCLUDE ENV_FILE PROJECT
PROJECT_ENVIRONMENT WORKING_DIR WORKING_DIRECTORY PYTHON PYTHON_BIN_DIR PYTHON_CACHE_DIR PYTHON_INSTALL_DIR
PYTHON_DOWNLOADS_JSON_URL SYSTEM_PYTHON TOOL_BIN_DIR TOOL_DIR CREDENTIALS_DIR INSTALL_DIR"""
ELSEWHERE = frozenset(f"UV_{name}" for name in HERE.split())
"""Those that name places of this computer."""
PUBLISHING = "UV_PUBLISH_"
PATH = 'set python = "/path/on/the/machine"'


def built_on(sessions: Sessions, workload: Workload, home: Path) -> Interpreter:
    """The interpreter of an environment with the workload's dependencies on that machine, built there if
    it is not.

    The lock is made here, by this client's uv and indexes, for the processor, C library and Python of
    the machine; so an environment of the same lock is used again and nothing is fetched. uv is sent,
    and so are wheels that lie on this computer. May be repeated, also by several at once. Raises
    `PreflightFailed` with uv's own reason where it cannot be built, `Unavailable` where the machine
    cannot be asked.
    """
    began = time.monotonic_ns()
    uv, name = find_uv(), sessions.machine.name
    about = _facts(sessions)
    python, version = _python(workload, about)
    if python is None:
        about = _facts(sessions, all=True)
        python, version = _python(workload, about)
    if python is None:
        raise PreflightFailed(
            f"{name} has Python {version}, the workload needs {workload.requires_python}",
            mend=f"install one there that fits, or {PATH}",
        )
    target = _target(name, about)
    words = [uv, "pip", "compile", "-", "--quiet", "--no-header", "--python-platform", target]
    words += ["--python-version", version]
    environ = uv_environ(workload)
    listed = "\n".join(workload.dependencies) + "\n"
    what = f"the dependencies cannot be resolved for {name}"
    text = run_uv([*words, "--no-annotate"], environ, what, stdin=listed)
    # As an environment on this computer begins: the same packages are the same lock everywhere.
    lock = f"# Python {version}, {about['system']} {about['arch']}\n{text}"
    digest = hashlib.sha256(lock.encode()).hexdigest()
    tool = functools.lru_cache(maxsize=1)(lambda: _tool(uv, about, home))
    wheels: dict[str, Blob] | None = None
    cause: Exception | None = None
    tries = Tries()
    for fresh in tries:
        try:
            with sessions.use(fresh=fresh) as session:
                head: dict[str, Any] = {"lock_sha256": digest}
                found: Mapping[str, Any] = session.ask("environment", b"", **head).head
                if found.get("python") is None:
                    if wheels is None:
                        pinned = run_uv([*words, "--format", "pylock.toml"], environ, what, stdin=listed)
                        wheels = _wheels(pinned)
                    how = {"lock": lock, "python": python, "environ": _sent(environ, text, wheels)}
                    found = _build(session, head, how, wheels, tool(), tries)
            break
        except (Broken, Resend) as e:
            cause = e
        except Unavailable as e:
            if not tries.underway:
                raise
            cause = e
    else:
        raise Unavailable(
            f"the environment could not be built on {name}: {cause}", mend="try again: what arrived is kept"
        ) from cause
    path = found.get("python")
    if not isinstance(path, str) or not path:
        raise Unavailable(f"{name} does not say where the environment is", mend="update compute-router")
    return Interpreter(
        python=path,
        stack={"lock": digest, "python": ".".join(version.split(".")[:2])},
        source="uv",
        lock_sha256=digest,
        built=bool(found.get("built")),
        build_us=(time.monotonic_ns() - began) // 1000,
    )


def _facts(sessions: Sessions, **fields: Any) -> Mapping[str, Any]:
    found = sessions.ask("environment", **fields).head
    pythons = found.get("pythons")
    good = isinstance(pythons, list) and all(
        isinstance(one, list) and len(one) == 2 and all(isinstance(word, str) for word in one)
        for one in pythons
    )
    if not good or not all(isinstance(found.get(name), str) for name in ("system", "arch", "libc")):
        raise Unavailable(f"{sessions.machine.name} does not say what it is", mend="update compute-router")
    return found


def _python(workload: Workload, about: Mapping[str, Any]) -> tuple[str | None, str]:
    """The first Python there that fits, and its version; without one, the version of the first."""
    for path, version in about["pythons"]:
        if workload.requires_python is None or satisfies(version, workload.requires_python):
            return path, version
    return None, about["pythons"][0][1] if about["pythons"] else "none"


def _glibc(about: Mapping[str, Any]) -> int | None:
    """The minor version of its glibc 2; None if it has none."""
    found = re.fullmatch(r"glibc 2\.(\d+)", about["libc"])
    return int(found[1]) if found else None


def _target(name: str, about: Mapping[str, Any]) -> str:
    """The platform as uv calls it."""
    arch, minor = about["arch"], _glibc(about)
    if about["system"] != "Linux" or arch not in ("x86_64", "aarch64"):
        if (about["system"], arch) == (platform.system(), platform.machine()):
            return {"Darwin": "macos", "Windows": "windows"}.get(platform.system(), "linux")
        raise PreflightFailed(f"no environments are made for {about['system']} {arch} ({name})", mend=PATH)
    if minor is None:
        return f"{arch}-unknown-linux-musl"
    fitting = [number for number in GLIBC if number <= minor]
    if not fitting:
        raise PreflightFailed(f"the C library of {name} is older than any wheel: {about['libc']}", mend=PATH)
    return f"{arch}-manylinux_2_{fitting[-1]}"


def _tool(uv: str, about: Mapping[str, Any], home: Path) -> Blob | None:
    """The uv that is sent; None where the machine has one of its own and ours does not fit.

    Raises `PreflightFailed` where there is none for it.
    """
    minor = _glibc(about)
    same = (about["system"], about["arch"]) == (platform.system(), platform.machine())
    if same and (platform.system() != "Linux" or (minor or 0) >= NEEDS_GLIBC):
        return of_file(Path(uv))
    if about.get("uv"):
        return None
    if about["system"] == "Linux" and about["arch"] in ("x86_64", "aarch64"):
        libc = "gnu" if (minor or 0) >= NEEDS_GLIBC else "musl"
        return of_file(_other_uv(uv, f"{about['arch']}-unknown-linux-{libc}", home))
    raise PreflightFailed(f"no uv is known for {about['system']} {about['arch']}", mend=PATH)


def _other_uv(uv: str, target: str, home: Path) -> Path:
    """The uv of the same version for another sort of machine, out of its wheel; fetched once."""
    version = run_uv([uv, "--version"], dict(os.environ), "uv does not run").split()[1]
    folder = home / "uv" / f"{version}-{target}"
    path = folder / "bin" / "uv"
    if not path.exists():
        beside = folder.with_name(f".{folder.name}.{os.urandom(4).hex()}")
        words = [uv, "pip", "install", "--quiet", "--no-deps", "--target", str(beside)]
        words += ["--python-platform", target, f"uv=={version}"]
        run_uv(words, uv_environ(None), f"no uv can be had for {target}", mend=f"install uv there, or {PATH}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.rename(folder)
        except OSError:
            if not path.exists():
                raise
    return path


def _wheels(pinned: str) -> dict[str, Blob]:
    """The wheels of a lock that lie on this computer, by file name: no machine can fetch those."""
    found = {}
    for package in tomllib.loads(pinned).get("packages", []):
        for wheel in package.get("wheels", []):
            address = str(wheel.get("url") or wheel.get("path") or "")
            parts = urlsplit(address)
            if parts.scheme not in ("", "file"):
                continue
            path = Path(unquote(parts.path))
            try:
                blob = of_file(path)
            except OSError:
                continue
            if blob.sha256 == wheel.get("hashes", {}).get("sha256", blob.sha256):
                found[path.name] = blob
    return found


def _is_sent(name: str) -> bool:
    return name.startswith(SENT) and name not in ELSEWHERE and not name.startswith(PUBLISHING)


def _sent(environ: Mapping[str, str], text: str, wheels: Mapping[str, Blob]) -> dict[str, str]:
    """What uv is to know there. It travels on stdin: an index's address may hold a password."""
    sent = {name: value for name, value in environ.items() if _is_sent(name)}
    packages = [line for line in text.splitlines() if line.strip() and not line.startswith(("#", "-", " "))]
    if len(wheels) >= len(packages):
        # All of it was sent, so nothing need be asked of anybody.
        sent["UV_OFFLINE"] = "1"
        sent["UV_NO_INDEX"] = "1"
    return sent


def _build(
    session: Session,
    head: Mapping[str, Any],
    how: Mapping[str, Any],
    wheels: Mapping[str, Blob],
    tool: Blob | None,
    tries: Tries,
) -> Mapping[str, Any]:
    bring(session, "want", {}, [*wheels.values(), *([tool] if tool else [])], tries)
    body = json.dumps({**how, "wheels": {name: blob.sha256 for name, blob in wheels.items()}}).encode()
    try:
        return session.ask("environment", body, **head, uv=tool.sha256 if tool else None).head
    except Resend:
        tries.there.clear()
        raise
    except RouteError as e:
        # Nothing was started, and the next offer may be tried.
        if isinstance(e, Unavailable):
            raise PreflightFailed(e.what, mend=e.mend) from e
        raise
