"""From a request to a waiter of its own: two forks, no way back, and every failure told."""

from __future__ import annotations

import errno
import os
import signal

from . import files, using, wire
from .wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional, Set

    from .runs import Attempt

    Json = Dict[str, Any]


class Told:
    """The pipe to the server that asked for this start; each answer is one line of JSON."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def say(self, answer: str, **facts: Any) -> None:
        if self.fd < 0:
            return
        try:
            files.write_all(self.fd, wire.dumps(dict(facts, answer=answer)) + b"\n")
        except OSError:
            pass
        os.close(self.fd)
        self.fd = -1


def detach(log: str) -> None:
    """Let go of the connection: the three descriptors lead nowhere that could hold it open."""
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    err = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(err, 2)
    os.chdir("/")
    # At shutdown everything gets SIGTERM; whoever writes down what became of the work goes last.
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "SIGXFSZ"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def name_process(name: str) -> bool:
    """Show as `name` in process lists, and adopt what the work leaves behind. Whether that worked."""
    try:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(15, name.encode(), 0, 0, 0)
        return bool(libc.prctl(36, 1, 0, 0, 0) == 0)
    except (ImportError, OSError, AttributeError):
        return False


def close_others(keep: Set[int]) -> None:
    keep = keep | using.lasting()
    for name in os.listdir("/dev/fd"):
        fd = int(name)
        if fd not in keep:
            try:
                os.close(fd)
            except OSError:
                pass


def _grandchild(
    attempt: Attempt,
    spec: Json,
    secrets: Dict[str, str],
    wait_us: Optional[int],
    asked: Json,
    told: Told,
) -> None:
    """Be the waiter; a failure to become one is told to the server."""
    detached = False
    try:
        from . import inplace, waiter

        close_others({0, 1, 2, told.fd, inplace.stdin(spec), inplace.outcome(spec)})
        os.makedirs(attempt.path, 0o700, exist_ok=True)
        detach(attempt.at("supervisor.log"))
        detached = True
        using.of_work(spec)
        waiter.Waiter(attempt, spec, secrets, asked).run(told, wait_us)
    except OSError as e:
        told.say("fault", **refusal(e).told())
    except BaseException as e:
        if detached:
            return traceback()
        # A folder of ours that is not whole: nothing was started, and it must be heard of.
        what = "the supervisor cannot be loaded: %s: %s" % (type(e).__name__, str(e)[:200])
        told.say("fault", code="PREFLIGHT", what=what, mend="remove bin/ below the root and try again")


def own() -> str:
    """The digest of the supervisor that this process is."""
    return os.path.basename(using.own())


def traceback() -> None:
    import sys
    import traceback as trace

    trace.print_exc(file=sys.stderr)


def launch(
    attempt: Attempt, spec: Json, secrets: Dict[str, str], wait_us: Optional[int], asked: Json
) -> Json:
    """Fork a waiter and return what it answers; it goes on without us.

    The waiter is a grandchild in a session of its own, and nothing of it leads back here.
    """
    hear, say = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                _grandchild(attempt, spec, secrets, wait_us, asked, Told(say))
        finally:
            os._exit(0)
    os.close(say)
    os.waitpid(child, 0)
    text = b""
    while not text.endswith(b"\n"):
        got = os.read(hear, 4096)
        if not got:
            break
        text += got
    os.close(hear)
    return dict(wire.loads(text)) if text else {"answer": "gone"}


def refusal(e: OSError) -> Fault:
    """A failure of the file system as an error with a mend."""
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return Fault(
            "NO_SPACE",
            "no space is left under the root",
            "`route gc --older-than 0` shows what can go there; or give it more room",
        )
    what = e.strerror or type(e).__name__
    return Fault(
        "PREFLIGHT", "%s: %s" % (e.filename or "the run's folder", what), "see that the root can be written"
    )
