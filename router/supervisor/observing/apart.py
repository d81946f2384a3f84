"""Does what may hang or crash in a process of its own: a driver in trouble hangs in the kernel, and so
does whoever asks it, so that not even SIGKILL ends it."""

from __future__ import annotations

import os
import select
import signal
import time

from .. import files, forking, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

    Json = Dict[str, Any]

MOST = 1 << 20


class Failed(Exception):
    """It hung, crashed or raised: the text says which."""


def let_go(keep: int) -> None:
    """Hold nothing of the parent's but `keep`: whoever hangs must not keep a lock or a connection."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    forking.close_others({0, 1, 2, keep})


def do(what: Callable[[], Json], seconds: float) -> Json:
    """What `what` returns, made in a child. Raises `Failed` once `seconds` have passed, or it broke.

    A child that cannot be killed is left behind: it holds nothing, and ends when the kernel lets it.
    """
    hear, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            let_go(say)
            try:
                told: Json = {"made": what()}
            except Exception as e:
                told = {"error": str(e) or type(e).__name__}
            files.write_all(say, wire.dumps(told))
        finally:
            os._exit(0)
    os.close(say)
    data, until = b"", time.monotonic() + seconds
    try:
        while len(data) < MOST:
            if not select.select([hear], [], [], max(0.0, until - time.monotonic()))[0]:
                raise Failed("no answer within %d seconds" % seconds)
            got = os.read(hear, 1 << 16)
            if not got:
                break
            data += got
    finally:
        os.close(hear)
        status = _end(pid)
    try:
        answer = wire.loads(data)
    except ValueError:
        how = "ended by signal %d" % os.WTERMSIG(status) if os.WIFSIGNALED(status) else "left no answer"
        raise Failed("the library %s" % how)
    if "made" not in answer:
        raise Failed(str(answer.get("error")))
    return dict(answer["made"])


def output(
    argv: List[str],
    seconds: float,
    *,
    most: int = MOST,
    env: Optional[Mapping[str, str]] = None,
    errors: bool = False,
) -> Tuple[int, bytes]:
    """How a command ended (minus a signal) and what it printed, with `errors` on both outputs.

    Raises `OSError` if it cannot be started, `Failed` once `seconds` have passed or `most` bytes came: it is
    killed then with all that it started; what cannot be killed is left behind.
    """
    import subprocess

    until = time.monotonic() + seconds
    child = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if errors else subprocess.DEVNULL,
        env=None if env is None else dict(env),
        start_new_session=True,
    )
    assert child.stdout is not None
    hear, data = child.stdout.fileno(), b""
    late = "no answer within %d seconds" % seconds
    try:
        while True:
            if not select.select([hear], [], [], max(0.0, until - time.monotonic()))[0]:
                raise Failed(late)
            got = os.read(hear, 1 << 16)
            if not got:
                break
            data += got
            if len(data) > most:
                raise Failed("it prints more than %d MiB" % (most >> 20))
        while child.poll() is None:
            if time.monotonic() >= until:
                raise Failed(late)
            time.sleep(0.001)
        return child.returncode, data
    except Failed:
        # Before it is reaped, whether or not it has ended: until then the number is that of its group.
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except OSError:
            pass
        for pause in (0.001, 0.005, 0.02, 0.1):
            if child.poll() is not None:
                break
            time.sleep(pause)
        raise
    finally:
        child.stdout.close()


def _end(pid: int) -> int:
    """End the child and reap it if that can be done now; its status."""
    for pause in (0.0, 0.0, 0.001, 0.005, 0.02, 0.1):
        time.sleep(pause)
        try:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return status
            if pause:
                os.kill(pid, signal.SIGKILL)
        except (ChildProcessError, ProcessLookupError):
            return 0
    return 0
