"""Keeps why a rank of torchrun failed, as torch's own `@record` would, for programs that do not use it."""

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MOST_TEXT = 1 << 16
_pid = 0
_path = ""
_behind: "Any" = None


def attach(path: str) -> None:
    """Write `path` should this process, and no fork of it, end in an exception that nobody caught."""
    global _pid, _path, _behind
    if not _path:
        _pid, _path, _behind = os.getpid(), path, sys.excepthook
        sys.excepthook = _failed


def _failed(kind: "Any", value: "Any", trace: "Any") -> None:
    try:
        if os.getpid() == _pid and issubclass(kind, Exception):
            _write(kind, value, trace)
    except Exception:
        pass  # nothing of ours may cost the work its own traceback
    _behind(kind, value, trace)


def _write(kind: "Any", value: "Any", trace: "Any") -> None:
    import json
    import traceback

    text = "%s: %s" % (kind.__name__, value)
    calls = "".join(traceback.format_exception(kind, value, trace))
    extra = {"py_callstack": calls[-MOST_TEXT:], "timestamp": str(int(time.time()))}
    data = json.dumps({"message": {"message": text[:MOST_TEXT], "extraInfo": extra}}).encode()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
    # What `@record` has written already stays: it was nearer.
    fd = os.open(_path, flags, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
