"""The router's own folder: where it is, whose version it has, and its identity. Standard library only."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from compute_router.errors import NewerStore, StoreError

__all__ = ["SCHEMA", "default_home", "fault", "identity", "prepare", "restore_identity", "runs_of"]

SCHEMA = "route.store/1"
_MENDS = {
    "ENOSPC": "free space below {home}, or set ROUTE_HOME to a folder with room",
    "EDQUOT": "free space below {home}, or set ROUTE_HOME to a folder with room",
    "EFBIG": "lift the limit on file sizes (ulimit -f)",
    "EACCES": "give yourself access to {home}, or set ROUTE_HOME to a folder of your own",
    "EPERM": "give yourself access to {home}, or set ROUTE_HOME to a folder of your own",
    "EROFS": "{home} is on a read-only file system: set ROUTE_HOME to a folder that can be written",
    "ENOTDIR": "set ROUTE_HOME to a folder",
    "ELOOP": "set ROUTE_HOME to a folder",
    "EMFILE": "close files, or raise the limit on them (ulimit -n)",
}


def default_home() -> Path:
    """`$ROUTE_HOME`, else `route` below the platform's folder for user data. Absolute; may not exist.

    Raises `StoreError` if neither is known.
    """
    given = os.environ.get("ROUTE_HOME")
    if given:
        path = Path(given).expanduser()
        return path if path.is_absolute() else Path.cwd() / path
    # Without HOME the answer would be taken from the password file, where nobody looks for it.
    if not any(os.path.isabs(os.environ.get(name, "")) for name in ("HOME", "XDG_DATA_HOME")):
        raise StoreError(
            "no HOME is set, so there is no folder to keep runs in", mend="export ROUTE_HOME=/a/folder"
        )
    if sys.platform == "darwin":
        import platformdirs

        return Path(platformdirs.user_data_dir("route", appauthor=False))
    # What platformdirs answers everywhere else, without the 15 ms of its import.
    base = os.environ.get("XDG_DATA_HOME", "").strip()
    return (
        Path(base if os.path.isabs(base) else os.path.join(os.environ["HOME"], ".local", "share")) / "route"
    )


def fault(error: OSError, path: Path | str, home: Path, doing: str = "written") -> StoreError:
    """What an `OSError` means for the store, in one line, and its mend."""
    import errno

    why = os.strerror(error.errno) if error.errno else str(error)
    name = errno.errorcode.get(error.errno or 0, "")
    mend = _MENDS.get(name, "look at {home} and at its disk, or set ROUTE_HOME to another folder")
    return StoreError(f"{path} cannot be {doing}: {why}", mend=mend.format(home=home))


def runs_of(home: Path) -> Path:
    """The folder of all runs."""
    return home / "runs"


def _read(home: Path) -> dict[str, Any] | None:
    """`store.json` as data; None if there is none; an empty dict if it is damaged."""
    try:
        data = json.loads((home / "store.json").read_bytes())
    except FileNotFoundError:
        return None
    except OSError as e:
        raise fault(e, home / "store.json", home, "read") from e
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) and isinstance(data.get("id"), str) else {}


def identity(home: Path, *, writing: bool = False) -> str | None:
    """The store's id (32 hex digits); None if there is no store yet or its file is damaged.

    With `writing`, raises `NewerStore` if a newer version made the store: it is only read.
    """
    data = _read(home)
    if not data:
        return None
    schema = data.get("schema")
    if writing and schema != SCHEMA:
        raise NewerStore(
            f"{home} was made by a newer version of the router ({schema}); this one only reads it",
            mend="upgrade compute-router, or set ROUTE_HOME to another folder",
        )
    return str(data["id"])


def prepare(home: Path) -> str:
    """Make the store's folders if need be and return the store's id. May be repeated, by anyone.

    A folder made here has mode 0700; one that was there keeps its own, while `runs/` is ours.
    Raises `StoreError`, and `NewerStore` for a store that may not be written.
    """
    found = identity(home, writing=True)
    if found is not None:
        return found
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        runs_of(home).mkdir(mode=0o700, exist_ok=True)
        path = home / "store.json"
        if _read(home) == {}:
            restore_identity(home, os.urandom(16).hex())
        else:
            _create(path, os.urandom(16).hex())
    except OSError as e:
        raise fault(e, home, home) from e
    found = identity(home, writing=True)
    if found is None:
        raise StoreError(f"{home / 'store.json'} cannot be read", mend=f"remove it and try again: {path}")
    return found


def restore_identity(home: Path, store_id: str) -> None:
    """Put a damaged `store.json` aside and write one with `store_id`."""
    path = home / "store.json"
    number = 1
    while (home / f"store.json.damaged-{number}").exists():
        number += 1
    try:
        path.rename(home / f"store.json.damaged-{number}")
    except FileNotFoundError:
        pass
    _create(path, store_id)


def _create(path: Path, store_id: str) -> None:
    """Create `store.json` once, whole: of two processes the first wins."""
    beside = path.with_name(f".store.json.{os.getpid()}.{os.urandom(4).hex()}.part")
    text = json.dumps({"id": store_id, "schema": SCHEMA}, sort_keys=True, separators=(",", ":")) + "\n"
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.write(fd, text.encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        try:
            os.link(beside, path)
        except FileExistsError:
            pass
    finally:
        beside.unlink(missing_ok=True)
