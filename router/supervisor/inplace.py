"""A command that another launcher started, observed where it stands: no tree, no lease, its own folder."""

from __future__ import annotations

import os
import signal

from . import files, machine, names, wire
from .wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Mapping, Optional

    from .runs import Attempt

    Json = Dict[str, Any]

STDIN = "ROUTE_STDIN"
"""The variable that tells the supervisor which descriptor of its own is the stdin of the work."""
OUTCOME = "ROUTE_OUTCOME"
"""The same for a file without a name, in which it is said what becomes of the work: whoever records it reads
that even if the command removes the folders of its own run."""
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""What asks a command to end."""
GROUPED = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE, signal.SIGSTOP, signal.SIGCONT)
"""What a terminal or a pipe sends to all processes of a command, not to its first one alone."""
_KEYS = frozenset(("cwd", "stdin", "keep", "launcher", "ranks"))


def of(spec: Json) -> Optional[Json]:
    """The block `in_place` of a specification; None for a run that was staged here."""
    found = spec.get("in_place")
    return found if isinstance(found, dict) else None


def check(spec: Json) -> None:
    """Raises `Fault` BAD_SPEC for an `in_place` that we do not write."""
    block = spec.get("in_place")
    if block is None:
        return
    if not isinstance(block, dict) or set(block) - _KEYS:
        raise Fault("BAD_SPEC", "in_place cannot be %.60r" % (block,))
    cwd = names.text(block.get("cwd"), "in_place.cwd")
    if not cwd.startswith("/"):
        raise Fault("BAD_SPEC", "in_place.cwd %.80r is not absolute" % cwd)
    for name in ("stdin", "keep"):
        if not isinstance(block.get(name, False), bool):
            raise Fault("BAD_SPEC", "in_place.%s is neither true nor false" % name)
    if block.get("launcher") is not None:
        names.word(block["launcher"], "in_place.launcher")
    if block.get("ranks") is not None:
        names.whole(block["ranks"], "in_place.ranks", 1, 1 << 20)
    if spec.get("tree") or spec.get("volumes") or spec.get("leases") or spec.get("secrets"):
        raise Fault("BAD_SPEC", "what is observed in place has no tree, volumes, leases or secrets")


def stdin(spec: Json) -> int:
    """The descriptor that is the stdin of the work, or -1. Told by whoever opened this supervisor."""
    block = of(spec)
    return -1 if block is None or not block.get("stdin") else _given(STDIN)


def outcome(spec: Json) -> int:
    """The descriptor of `OUTCOME`, which the work does not inherit, or -1."""
    number = -1 if of(spec) is None else _given(OUTCOME)
    if number >= 0:
        os.set_inheritable(number, False)
    return number


def _given(name: str) -> int:
    number = os.environ.get(name, "")
    if not number.isdigit():
        return -1
    try:
        os.fstat(int(number))
    except OSError:
        return -1
    return int(number)


def tell(spec: Json, **facts: Any) -> None:
    """Say in the file of `OUTCOME` what has become of the work; nothing where there is none."""
    number = outcome(spec)
    if number >= 0:
        try:
            files.write_all(number, wire.dumps(facts) + b"\n")
        except OSError:
            pass


def visible(environ: Mapping[str, str], found: List[str]) -> List[str]:
    """Those of the GPUs `found` (UUIDs, in nvidia-smi's order) that the launcher left visible.

    Read as CUDA reads it: up to the first entry that names no device. Numbers count in the tool's
    order, which is CUDA's own where all GPUs are of one model.
    """
    chosen: List[str] = []
    named = environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return list(found)
    for entry in named.split(","):
        entry = entry.strip()
        if entry.isdigit() and int(entry) < len(found):
            chosen.append(found[int(entry)])
            continue
        same = [uuid for uuid in found if entry and uuid.startswith(entry)]
        if not same:
            break
        chosen.append(same[0])
    return chosen


def pass_on(attempt: Attempt, number: int, known: Optional[Json] = None) -> bool:
    """Send the work a signal that came to whoever records it; False while there is no work to send it to.

    It is noted first, with whether the work ignores it, so that the end is not called a failure of
    its own. A note that cannot be written costs the signal nothing. `known` names the work where its
    record is gone.
    """
    executed = attempt.json("exec.json") or known
    if executed is None:
        return False
    pid, start = int(executed["pid"]), int(executed["start"])
    if number in ENDING:
        line = {
            "signal": number,
            "ignored": ignores(pid, number),
            "t_us": machine.now_us(),
            "mono_us": machine.mono_us(),
        }
        try:
            fd = os.open(
                attempt.at("signals.jsonl"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
            try:
                files.write_all(fd, wire.dumps(line) + b"\n")
            finally:
                os.close(fd)
        except OSError:
            pass
    if not machine.alive(pid, start):
        return True
    try:
        if number in GROUPED:
            os.killpg(pid, number)
        else:
            from . import ending

            ending.send(pid, start, number)
    except OSError:
        pass
    return True


def ignores(pid: int, number: int) -> bool:
    """Whether the process has told the kernel to ignore this signal."""
    for line in machine.told("/proc/%d/status" % pid).splitlines():
        if line.startswith(b"SigIgn:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def asked(attempt: Attempt) -> Optional[int]:
    """The last signal passed on that asked the work to end and that it did not ignore."""
    last = None
    for line in (files.read(attempt.at("signals.jsonl")) or b"").splitlines():
        try:
            note = wire.loads(line)
        except ValueError:
            continue
        if isinstance(note, dict) and note.get("signal") in ENDING and not note.get("ignored"):
            last = int(note["signal"])
    return last
