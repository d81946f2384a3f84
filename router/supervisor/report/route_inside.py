"""What route sees from inside a Python process of a run: slow imports, and at the end what was counted.

Appends JSON lines to $ROUTE_INSIDE. Loaded at every Python start of a run, so it is small and imports
nothing that is not loaded already; what it looks at is read only where the work itself has loaded it.
"""

import atexit
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Optional

_NAMES = """
torch torchvision torchaudio torch_xla torch_tpu jax jaxlib flax tensorflow keras triton numpy
scipy pandas sklearn transformers accelerate datasets diffusers deepspeed vllm flash_attn
transformer_engine lightning pytorch_lightning megatron apex
"""
SLOW: "set[str]" = set(_NAMES.split())
"""Top-level packages whose import is timed."""
MOST_BYTES = 8 << 20
MOST_LINE = 1 << 15

_path = ""
_pid = 0
_id = ""
_told = ""


def begin() -> None:
    """Look at this process from now on. Called again it does nothing: a run inside a run has two of us."""
    global _path, _pid, _id
    path = os.environ.get("ROUTE_INSIDE", "")
    if _path or not path:
        return
    _path, _pid = path, os.getpid()
    now = time.monotonic_ns() // 1000
    _id = "%d-%d" % (_pid, now)
    put('{"e":"start","id":"%s","pid":%d,"parent":%d,"mono_us":%d}' % (_id, _pid, os.getppid(), now))
    sys.meta_path.insert(0, _Finder())
    atexit.register(_files)
    if os.environ.get("TORCHELASTIC_ERROR_FILE"):
        __import__("route_inside_failure").attach(os.environ["TORCHELASTIC_ERROR_FILE"])


def put(line: str) -> None:
    """Append one line; a file that has grown too large takes no more, and nothing here raises."""
    if len(line) > MOST_LINE:
        return
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        fd = os.open(_path, flags, 0o600)
        try:
            if os.fstat(fd).st_size < MOST_BYTES:
                # A newline in front as well: what another process could write only in part ends there.
                os.write(fd, ("\n%s\n" % line).encode("ascii", "backslashreplace"))
        finally:
            os.close(fd)
    except OSError:
        pass


class _Finder:
    """Stands first among the finders and finds nothing itself: times what the others find."""

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Any":
        if name not in SLOW:
            return None
        try:
            others = sys.meta_path[sys.meta_path.index(self) + 1 :]
        except ValueError:
            return None
        for finder in others:
            find: "Optional[Callable[..., Any]]" = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find else None
            if spec is not None:
                try:
                    _time(name, spec.loader)
                except Exception:
                    pass  # a loader that lets nothing be set on it is not timed
                return spec
        return None


def _time(name: str, loader: "Any") -> None:
    """Let `loader` be timed once; what it is afterwards is what it was before."""
    run = loader.exec_module

    def timed(module: "Any") -> None:
        SLOW.discard(name)
        vars(loader).pop("exec_module", None)
        began, good = time.monotonic_ns() // 1000, False
        try:
            run(module)
            good = True
        finally:
            if not good:
                SLOW.add(name)  # the work may mend what was lacking, and import it again
            _imported(name, began, good)

    loader.exec_module = timed


def _imported(name: str, began: int, good: bool) -> None:
    try:
        ended = time.monotonic_ns() // 1000
        put(
            '{"e":"import","id":"%s","pid":%d,"name":"%s","begin_us":%d,"end_us":%d,"ok":%s}'
            % (_id, os.getpid(), name, began, ended, "true" if good else "false")
        )
        if good and os.getpid() == _pid:
            # It stands beside us, and is loaded only where there is something to count.
            __import__("route_inside_counts").attach(name, put)
            # Registered behind what it imported, so that it looks before that is torn down.
            atexit.unregister(_end)
            atexit.register(_end)
    except Exception:
        pass


def _files() -> None:
    """At the end of this process: which files of the work it has imported, by their paths below it.

    The last line says that all were told.
    """
    if os.getpid() != _pid:
        return
    try:
        # The record of a run stands beside its attempts: <run>/attempts/<n>/inside.jsonl, <run>/work.
        run = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(_path))))
        top = os.path.realpath(os.path.join(run, "work")) + os.sep
        found = []
        for module in list(sys.modules.values()):
            where = getattr(module, "__file__", None)
            if isinstance(where, str) and not where.startswith(sys.prefix):
                real = os.path.realpath(where)
                if real.startswith(top):
                    found.append(real[len(top) :])
        if found:
            import json

            for at in range(0, len(found), 50):
                put(json.dumps({"e": "files", "id": _id, "paths": found[at : at + 50]}))
        put('{"e":"imported","id":"%s"}' % _id)
    except Exception:
        pass


def _end() -> None:
    """At the end of this process, not of a fork of it: once, what its frameworks have counted."""
    global _told
    if os.getpid() != _pid or _told:
        return
    _told = _id
    try:
        put(__import__("route_inside_counts").end(_id))
    except Exception:
        pass
