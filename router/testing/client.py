"""A client of its own: what the kit runs as another process, given one line of JSON on standard input.

It is run by its path, so that it imports no more than a client would.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

OPENED_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
DEEDS = ("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.system", "os.mkdir",
         "os.rename", "os.remove", "os.link", "os.symlink", "os.chmod", "os.truncate", "shutil.")  # fmt: skip
"""Audit events by which a process does more than look."""


def main() -> None:
    """Do what the first line asks for; print one line of JSON."""
    order = json.loads(sys.stdin.readline())
    sys.path += [entry for entry in order["path"] if entry not in sys.path]
    answer = {"modules": modules, "make": make, "look": look, "submit": submit, "fetch": fetch}[order["do"]]
    print(json.dumps(answer(order)), flush=True)


def modules(order: dict[str, Any]) -> Any:
    """Which of `names` the plugin's module imports."""
    importlib.import_module(order["class"].partition(":")[0])
    return sorted(name for name in order["names"] if name in sys.modules)


def make(order: dict[str, Any]) -> Any:
    """What making the backend does besides making it."""
    cls = _class(order)
    sys.dont_write_bytecode = True
    seen: list[str] = []
    on = False

    def heard(event: str, args: Any) -> None:
        if not on:
            return
        if event == "open":
            flags = args[2] if len(args) > 2 and isinstance(args[2], int) else 0
            if flags & OPENED_TO_WRITE:
                seen.append(f"opens {args[0]} to write")
        elif event.startswith(DEEDS):
            seen.append(f"{event} {args[:1]}")

    sys.addaudithook(heard)
    on = True
    _backend(order, cls)
    on = False
    return seen


def look(order: dict[str, Any]) -> Any:
    """What a run looks like from here: its status, its log as latin-1, and the handle found by its key."""
    from compute_router.records import plain

    backend, handle = _backend(order), _handle(order)
    found = backend.find(handle.key)
    return {
        "status": plain(backend.status(handle)),
        "log": b"".join(backend.logs(handle)).decode("latin-1"),
        "found": None if found is None else plain(found),
    }


def submit(order: dict[str, Any]) -> Any:
    """Submit once a line says so."""
    import msgspec

    from compute_router.backend import Offer, Submission
    from compute_router.records import plain
    from compute_router.snapshot import take
    from compute_router.workload import Workload

    backend = _backend(order)
    work = msgspec.convert(order["workload"], Workload)
    submission = Submission(
        id=order["id"],
        key=order["key"],
        attempt=1,
        workload=work,
        offer=msgspec.convert(order["offer"], Offer),
        snapshot=take(Path(work.entry.root)),
    )
    _wait()
    return plain(backend.submit(submission))


def fetch(order: dict[str, Any]) -> Any:
    """Fetch once a line says so."""
    backend, handle = _backend(order), _handle(order)
    _wait()
    return [str(path) for path in backend.fetch(handle, Path(order["into"]))]


def _wait() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def _class(order: dict[str, Any]) -> Callable[..., Any]:
    module, _, name = order["class"].partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


def _backend(order: dict[str, Any], cls: Any = None) -> Any:
    import msgspec

    cls = cls or _class(order)
    return cls(msgspec.convert(order["settings"], cls.Settings), Path(order["home"]))


def _handle(order: dict[str, Any]) -> Any:
    from compute_router.backend import Handle
    from compute_router.records import decode

    return decode(Handle, order["handle"].encode())


if __name__ == "__main__":
    main()
