"""What is done once the work has ended: the exit record first, then sweeping, listing and measuring."""

from __future__ import annotations

import os
import time

from . import cgroup, ending, files, forking, group, inplace, leases, logcap, machine, masking, truth, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

    from .runs import Attempt
    from .waiter import Waiter

    Json = Dict[str, Any]

TAIL = 1 << 16
UNWATCH = 2.0
"""Seconds that a watcher may take to see that its attempt is final; one that hangs costs no more."""
OUT_OF_DEVICE_MEMORY = (
    b"CUDA out of memory",
    b"torch.OutOfMemoryError",
    b"torch.cuda.OutOfMemoryError",
    b"CUDA_ERROR_OUT_OF_MEMORY",
    b"HIP out of memory",
    b"cudaErrorMemoryAllocation",
)


def close(waiter: Waiter, status: int) -> None:
    """Everything after the work's end. The outcome is on disk before anything slow begins."""
    attempt = waiter.attempt
    inplace.tell(waiter.spec, code=status)
    record = conclude(attempt, status, waiter.spec, waiter.secrets)
    executed = attempt.json("exec.json")
    waiter.note(record["state"])
    # Whatever the work left running is no part of its outcome, but of its leases.
    link = waiter.link.pid if waiter.link is not None else 0
    tree = ending.Tree(attempt, executed, os.getpid(), waiter.watcher, link)
    strays: List[int] = []
    stuck: List[int] = []
    if not alone({waiter.pid, waiter.watcher, link}):
        strays = [p.pid for p in tree.members()]
        # What a command left in the background is its launcher's to end, if we observed it in place.
        if strays and not inplace.of(waiter.spec):
            stuck = tree.end("stray", grace=min(2.0, _grace(waiter.spec)))
    usage = waiter.reap()
    io = cgroup.io(attempt)
    cgroup.leave(attempt)
    if not stuck:
        leases.release(waiter.fds)
    waiter.note("swept")
    unwatch(waiter)
    facts = {
        "strays": len(strays),
        "stuck": len(stuck),
        "max_rss_bytes": usage.ru_maxrss * (1 if _darwin() else 1024) if usage else None,
        "cpu_us": int((usage.ru_utime + usage.ru_stime) * 1e6) if usage else None,
        "events": waiter.events,
        "io": io,
    }
    settle(attempt, waiter.spec, facts, waiter.secrets)


def unwatch(waiter: Waiter) -> None:
    """Wait for the watcher, which ends once the attempt is final: nothing is to grow that was listed."""
    until = time.monotonic() + UNWATCH
    try:
        while waiter.watcher and time.monotonic() < until:
            if os.waitpid(waiter.watcher, os.WNOHANG)[0]:
                waiter.watcher = 0
            else:
                time.sleep(0.001)
    except ChildProcessError:
        waiter.watcher = 0


def conclude(attempt: Attempt, status: int, spec: Json, secrets: Dict[str, str]) -> Json:
    """Write the exit record of work that ended with `status`; tries hard, for nobody else knows it."""
    more: Json = {}
    try:
        state, reason, detail = judge(attempt, status)
        first = first_failure(attempt, spec, secrets, status) if status else None
        if first is not None:
            more["first"] = first
            torchrun = spec.get("launcher", {}).get("name") == "torchrun"
            if state == "failed" and reason in ("exit", "signal") and torchrun:
                detail = "%s; %s" % (detail, sentence(first))
    except Exception:
        forking.traceback()
        state, reason, detail = ("failed", "exit", "") if status else ("succeeded", "", "")
    for pause in (0.1, 1.0, 10.0, None):
        try:
            return attempt.finish(
                state,
                reason,
                detail,
                exit_code=status if status >= 0 else None,
                signal=-status if status < 0 else None,
                **more,
            )
        except OSError:
            if pause is None:
                raise
            forking.traceback()
            time.sleep(pause)
    raise AssertionError


def first_failure(attempt: Attempt, spec: Json, secrets: Dict[str, str], status: int) -> Optional[Json]:
    """The rank that failed first, with no secret in what it said."""
    if spec.get("launcher", {}).get("name") != "torchrun" and not group.of(spec):
        return None
    from . import failing

    found = failing.first(attempt, spec, tail(attempt.at("log"), failing.TAIL), status)
    killing = files.hint_json(attempt.at("killing.json"))
    if found is not None and killing.get("why") == "group":
        # Whatever a rank says once it is asked to end because of another one is no cause of its own.
        at, asked = found["at_us"], killing.get("at_us")
        found["follows"] = found["follows"] or at is None or (type(asked) is int and at >= asked)
    look = masking.scrubber(secrets)
    if found is not None and look is not None:
        found["what"] = look.replaced(found["what"])[0]
    return found


def sentence(first: Json) -> str:
    from . import failing

    return failing.sentence(first)


def _darwin() -> bool:
    import sys

    return sys.platform == "darwin"


def _grace(spec: Json) -> float:
    grace = spec.get("grace_us")
    return 2.0 if grace is None else float(grace) / 1e6


def alone(known: set[int]) -> bool:
    """Whether this process, a subreaper, has no children but `known`: then the work left nothing behind."""
    try:
        pid = os.getpid()
        children = files.read("/proc/%d/task/%d/children" % (pid, pid))
    except OSError:
        return False
    if children is None:
        return False
    return {int(child) for child in children.split()} <= known


def judge(attempt: Attempt, status: int) -> Tuple[str, str, str]:
    """State, reason and detail of an attempt whose work ended with `status` (minus a signal)."""
    why = ending.reason(attempt)
    if why == "group":
        return "failed", why, group.why_ended(attempt)
    if why in truth.KILLED:
        detail = "killed because it was cancelled" if why == "cancel" else "killed at its time limit"
        return truth.KILLED[why], why, detail
    passed_on = inplace.asked(attempt)
    if passed_on is not None:
        how = "signal %d" % -status if status < 0 else "exit code %d" % status
        return "cancelled", "signal_passed_on", "asked to end by signal %d; ended by %s" % (passed_on, how)
    if status == 0:
        return "succeeded", "", ""
    started = attempt.json("started.json") or {}
    reason = out_of_memory(attempt, started.get("oom") or {}, status)
    if reason:
        return "failed", reason[0], reason[1]
    if status < 0:
        return "failed", "signal", "ended by signal %d" % -status
    return "failed", "exit", "exit code %d" % status


def out_of_memory(attempt: Attempt, before: Json, status: int) -> Optional[Tuple[str, str]]:
    """Whether memory is why it failed: by the kernel's own counters, or by what the log says last."""
    for scope, now in (("group", cgroup.oom_kills()), ("machine", cgroup.machine_oom_kills())):
        was = before.get(scope)
        # The machine's counter may mean anybody: it counts only if the work died as the kernel kills.
        fits = scope == "group" or status in (-9, 137)
        if was is not None and now is not None and now > was and fits:
            return "oom_host", "the kernel killed %d process(es) of the %s for memory" % (now - was, scope)
    data = tail(attempt.at("log"))
    for line in OUT_OF_DEVICE_MEMORY:
        if line in data:
            return "oom_gpu", "the log says: %s" % line.decode()
    return None


def tail(path: str, most: int = TAIL, end: int = 2**62) -> bytes:
    """The last bytes of a file, of its first `end` bytes; nothing if there is no file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return b""
    try:
        size = min(end, os.fstat(fd).st_size)
        return os.pread(fd, min(most, size), max(0, size - most))
    finally:
        os.close(fd)


def settle(attempt: Attempt, spec: Json, facts: Json, secrets: Dict[str, str]) -> Json:
    """Write manifest, measured block and `done.json` of a final attempt; the record that stands.

    May be called again: what stands is kept. The caller holds `sup.lock`.
    """
    import hashlib

    from . import manifest, measured
    from .observing import caches

    stands = attempt.json("done.json")
    if stands is not None:
        return stands
    began = machine.mono_us()
    listed = attempt.json("manifest.json")
    if listed is None:
        last_cap(attempt, spec)
        look, withheld = masking.finish(attempt, spec, secrets)
        listed = manifest.make(attempt, spec, look)
        listed["skipped"] += withheld
        files.write(attempt.at("manifest.json"), wire.dumps(listed))
    facts = dict(facts, collect_us=machine.mono_us() - began)
    data = files.read(attempt.at("measured.json"))
    if data is None:
        try:
            data = measured.canonical(measured.block(attempt, spec, listed, facts))
        except Exception as e:
            # A final state without its block would be an outcome lost; one that says so is none.
            forking.traceback()
            data = measured.canonical(measured.least(attempt, spec, "%s: %s" % (type(e).__name__, e)))
        files.write(attempt.at("measured.json"), data)
    done = {
        "schema": "route.done/1",
        "measured_sha256": hashlib.sha256(data).hexdigest(),
        "measured_bytes": len(data),
        "at_us": machine.now_us(),
    }
    caches.settled(attempt, spec)
    files.create_once(attempt.at("done.json"), wire.dumps(done))
    return attempt.json("done.json") or done


def last_cap(attempt: Attempt, spec: Json) -> None:
    """Hold the log to its cap once more: what was written last came after the watcher's last look."""
    most = spec.get("log_cap_bytes")
    try:
        status = os.stat(attempt.at("log"))
        if most is not None and status.st_blocks * 512 > most:
            logcap.cap(attempt, most, status.st_size)
    except OSError:
        forking.traceback()
