"""The Python of the work on this computer: the one asked for, the client's own, or one built by uv."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from compute_router.cachekey import STACK
from compute_router.errors import PreflightFailed
from compute_router.machines.contract import Interpreter
from compute_router.records import digest as digest_of
from compute_router.supervisor import using
from compute_router.workload import Workload

__all__ = [
    "find_uv",
    "interpreter",
    "known",
    "pip_settings",
    "run_uv",
    "satisfies",
    "stack_of",
    "uv_environ",
]

DEADLINE = 1800.0
"""Seconds that resolving, and then installing, may take."""
STALE = 24 * 3600.0


def interpreter(workload: Workload, envs: Path) -> Interpreter:
    """The Python that `workload` runs under here, with what is known of it.

    `python = "/path"` wins; with dependencies and no `python` an environment is built by uv below
    `envs`, once per lock; else it is the interpreter of this process. May be repeated; two
    builders of one environment do not harm each other. Raises `PreflightFailed` if it is not
    there, is of the wrong version, or cannot be built.
    """
    if workload.python not in (None, "current"):
        python = os.path.expanduser(workload.python or "")
        found = shutil.which(python)
        if found is None:
            raise PreflightFailed(
                f"there is no Python at {python}", mend='correct `python`, or set python = "current"'
            )
        _check_version(workload, version_of(found), found)
        return Interpreter(python=os.path.abspath(found), stack=stack_of(found), source="path")
    if not workload.dependencies or workload.python == "current":
        _check_version(workload, platform.python_version(), "the client's Python")
        return Interpreter(python=_own(), stack=stack_of(sys.executable), source="current")
    return _built(workload, envs)


def _own() -> str:
    """The interpreter of this process under one name, however it was called (`../env/bin/python`): it
    stands in the specification, and the same key from another process must give the same one. Its last
    part stays as it is: in an environment that is a link."""
    folder, name = os.path.split(sys.executable)
    return os.path.join(os.path.realpath(folder), name)


def known(workload: Workload, envs: Path) -> Interpreter | None:
    """What `interpreter` would return, as far as it can be told at once: nothing is resolved or built.

    None for dependencies that no environment was built for yet, and where `interpreter` would raise.
    """
    try:
        if workload.python is not None or not workload.dependencies:
            return interpreter(workload, envs)
        digest, minor = _asked(workload, envs).read_text().split()
        python = envs / digest / "bin" / "python"
        if not python.exists():
            return None
        return _of_lock(python, digest, minor)
    except (OSError, ValueError, PreflightFailed):
        return None


def _asked(workload: Workload, envs: Path) -> Path:
    """Where it is kept which lock the same request led to last."""
    request = [list(workload.dependencies), workload.requires_python, workload.package_index, sys.version]
    return envs / "asked" / digest_of(request)


def _check_version(workload: Workload, version: str, whose: str) -> None:
    if workload.requires_python and not satisfies(version, workload.requires_python):
        raise PreflightFailed(
            f"{whose} is {version}, the workload needs Python {workload.requires_python}",
            mend='set python = "/path/to/one", or list dependencies: then one is built',
        )


def version_of(python: str) -> str:
    """The version of another interpreter, e.g. `3.12.1`. Raises `PreflightFailed` if it does not start."""
    line = "import platform; print(platform.python_version())"
    try:
        answer = subprocess.run(
            [python, "-I", "-S", "-c", line], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError) as e:
        raise PreflightFailed(f"{python} does not start: {_last(str(e))}", mend="correct `python`") from e
    return answer.stdout.strip()


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    if found is None:
        raise ValueError(version)
    return tuple(int(part) for part in found[0].split("."))


def satisfies(version: str, specifier: str) -> bool:
    """Whether a Python version meets a `requires-python` such as `>=3.11,<3.13`.

    Compares release numbers only. Raises `PreflightFailed` for a specifier that cannot be read.
    """
    have = _numbers(version)
    for clause in filter(None, (part.strip() for part in specifier.split(","))):
        found = re.fullmatch(r"(===|~=|==|!=|<=|>=|<|>)\s*(\d+(?:\.\d+)*)(\.\*)?", clause)
        if found is None:
            raise PreflightFailed(
                f"requires-python {specifier!r} cannot be read", mend='write it like ">=3.11,<3.14"'
            )
        sign, want, star = found[1], _numbers(found[2]), found[3]
        size = max(len(have), len(want))
        mine, theirs = (t + (0,) * (size - len(t)) for t in (have, want))
        same = have[: len(want)] == want if star else mine == theirs
        holds = {
            "==": same,
            "===": same,
            "!=": not same,
            ">=": mine >= theirs,
            "<=": mine <= theirs,
            ">": mine > theirs,
            "<": mine < theirs,
            "~=": mine >= theirs and have[: len(want) - 1] == want[:-1],
        }
        if not holds[sign]:
            return False
    return True


@functools.lru_cache(maxsize=64)
def stack_of(python: str) -> dict[str, str]:
    """The versions of `STACK` installed beside an interpreter, and its `python` as `3.11`.

    Read from the names of its site-packages folders; nothing is imported and nothing is run.
    What is not found is left out.
    """
    found: dict[str, str] = {}
    if python == sys.executable:
        folders = [Path(entry) for entry in sys.path if entry.endswith("-packages")]
        found["python"] = f"{sys.version_info.major}.{sys.version_info.minor}"
    else:
        prefix = Path(python).parent.parent
        folders = [*prefix.glob("lib/python3*/site-packages"), *prefix.glob("lib/python3/dist-packages")]
        if folders and (minor := re.search(r"python(3\.\d+)", str(folders[0]))):
            found["python"] = minor[1]
    for folder in folders:
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        for name in names:
            if name.endswith(".dist-info"):
                distribution, _, version = name.removesuffix(".dist-info").partition("-")
                if distribution.lower() in STACK:
                    found.setdefault(distribution.lower(), version)
    return found


# Environments built by uv


def _built(workload: Workload, envs: Path) -> Interpreter:
    begun = time.monotonic_ns()
    uv = find_uv()
    python, version = _base(workload, uv)
    environ = uv_environ(workload)
    lock = run_uv(
        [uv, "pip", "compile", "-", "--quiet", "--no-header", "--no-annotate", "--python", python],
        environ,
        "the dependencies cannot be resolved",
        stdin="\n".join(workload.dependencies) + "\n",
    )
    lock = f"# Python {version}, {platform.system()} {platform.machine()}\n{lock}"
    digest = hashlib.sha256(lock.encode()).hexdigest()
    home = envs / digest
    built = used = False
    while not used:
        if not (home / "bin" / "python").exists():
            built = _build(uv, python, lock, home, environ) or built
        # From here on, until this process ends, nobody tidies it away.
        used = using.environment(str(home)) or not (home / using.LOCK).exists()
    minor = ".".join(version.split(".")[:2])
    asked = _asked(workload, envs)
    asked.parent.mkdir(exist_ok=True)
    beside = asked.with_suffix(f".{os.urandom(6).hex()}")
    beside.write_text(f"{digest} {minor}\n")
    beside.replace(asked)
    spent = (time.monotonic_ns() - begun) // 1000
    found = _of_lock(home / "bin" / "python", digest, minor)
    return msgspec.structs.replace(found, built=built, build_us=spent)


def _of_lock(python: Path, digest: str, minor: str) -> Interpreter:
    stack = {"lock": digest, "python": minor}
    return Interpreter(python=str(python), stack=stack, source="uv", lock_sha256=digest)


_FINDING = threading.Lock()


def find_uv() -> str:
    """The path of the client's uv. Raises `PreflightFailed` if there is none."""
    try:
        from uv import find_uv_bin

        # It asks sysconfig, whose first answers to several threads at once can be None.
        with _FINDING:
            return find_uv_bin()
    except (ImportError, FileNotFoundError) as e:
        found = shutil.which("uv")
        if found is None:
            raise PreflightFailed(
                "uv, which builds environments, is not installed", mend="pip install uv"
            ) from e
        return found


def _base(workload: Workload, uv: str) -> tuple[str, str]:
    """The interpreter an environment is made from: the client's if it will do, else what uv finds."""
    version = platform.python_version()
    if workload.requires_python is None or satisfies(version, workload.requires_python):
        return sys.executable, version
    path = run_uv(
        [uv, "python", "find", "--quiet", workload.requires_python],
        dict(os.environ),
        f"no Python {workload.requires_python} is here",
        mend='uv python install fetches one, or set python = "/path/to/one"',
    ).strip()
    return path, version_of(path)


def _build(uv: str, python: str, lock: str, home: Path, environ: Mapping[str, str]) -> bool:
    """Build beside, then rename: an environment under its final name is whole. False if another
    builder was faster."""
    home.parent.mkdir(parents=True, exist_ok=True)
    for left in home.parent.glob(".*"):
        if time.time() - left.lstat().st_mtime > STALE:
            shutil.rmtree(left, ignore_errors=True)
    beside = home.parent / f".{home.name[:16]}.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        what = "the environment cannot be made"
        run_uv([uv, "venv", "--quiet", "--relocatable", "--python", python, str(beside)], environ, what)
        if lock.partition("\n")[2].strip():
            inside = str(beside / "bin" / "python")
            what = "the dependencies cannot be installed"
            run_uv(
                [uv, "pip", "install", "--quiet", "--python", inside, "-r", "-"], environ, what, stdin=lock
            )
        (beside / "route-lock.txt").write_text(lock)
        try:
            os.rename(beside, home)
        except OSError:
            if not (home / "bin" / "python").exists():
                raise
            return False
        return True
    except OSError as e:
        raise PreflightFailed(
            f"the environment cannot be written: {e.strerror}", mend=f"free space below {home.parent}"
        ) from e
    finally:
        shutil.rmtree(beside, ignore_errors=True)


_MEND = 'correct `dependencies`, or set python = "current" to use what is installed'


def run_uv(
    argv: Sequence[str], environ: Mapping[str, str], what: str, *, stdin: str = "", mend: str = _MEND
) -> str:
    """What uv prints. Raises `PreflightFailed`, which begins with `what` and ends with uv's own reason."""
    try:
        done = subprocess.run(
            argv, env=environ, input=stdin, capture_output=True, text=True, timeout=DEADLINE, cwd="/"
        )
    except subprocess.TimeoutExpired as e:
        raise PreflightFailed(f"{what}: uv took more than {DEADLINE:.0f} s", mend="try again") from e
    except OSError as e:
        raise PreflightFailed(f"{what}: {e.strerror}", mend="pip install --force-reinstall uv") from e
    if done.returncode:
        raise PreflightFailed(f"{what}: {_last(done.stderr)}", mend=mend)
    return done.stdout


def _last(text: str) -> str:
    """The last thing uv said, on one line, without credentials in URLs."""
    lines = [line.strip(" \t│├╰▶─▸×·") for line in text.strip().splitlines()]
    lines = [line for line in lines if line and not line.startswith("hint:")]
    said = lines[-1] if lines else "no reason given"
    # uv wraps its sentences; the last one may begin some lines above.
    for line in reversed(lines[:-1]):
        if said[:1].isupper() or said.startswith("error"):
            break
        said = f"{line} {said}"
    return re.sub(r"://[^/@\s]+@", "://***@", said)[:400]


def uv_environ(workload: Workload | None) -> dict[str, str]:
    """The environment for uv: its own variables win over what pip is configured to use."""
    settings, index = pip_settings(), workload.package_index if workload else None
    if index:
        settings["UV_DEFAULT_INDEX"] = index
    own = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    if index:
        own.pop("UV_DEFAULT_INDEX", None)
    if any(name in own for name in ("UV_INDEX_URL", "UV_DEFAULT_INDEX")) and not index:
        settings.pop("UV_DEFAULT_INDEX", None)
    return {"UV_NO_PROGRESS": "1", "NO_COLOR": "1", **settings, **own}


_PIP_TO_UV = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "cert": "SSL_CERT_FILE",
    "trusted-host": "UV_INSECURE_HOST",
}


def pip_settings() -> dict[str, str]:
    """What pip is configured to use (its files, then `PIP_*`), as uv's variables.

    Read without pip, which need not be installed. They go by environment, never on a command
    line, since an index's address may hold a password.
    """
    import configparser

    found: dict[str, str] = {}
    home = Path(os.path.expanduser("~"))
    files = [
        *(Path(base) / "pip" / "pip.conf" for base in ("/etc/xdg", "/Library/Application Support")),
        Path("/etc/pip.conf"),
        home / ".pip" / "pip.conf",
        Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf",
        Path(sys.prefix) / "pip.conf",
    ]
    if os.environ.get("PIP_CONFIG_FILE"):
        files.append(Path(os.environ["PIP_CONFIG_FILE"]))
    for file in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue
        for section in ("global", "install"):
            if parser.has_section(section):
                found |= {name.replace("_", "-"): value for name, value in parser.items(section)}
    for name, value in os.environ.items():
        if name.startswith("PIP_") and value:
            found[name[4:].lower().replace("_", "-")] = value
    given = {uv: found[name].split() for name, uv in _PIP_TO_UV.items() if found.get(name)}
    return {uv: ("," if uv == "UV_FIND_LINKS" else " ").join(values) for uv, values in given.items()}
