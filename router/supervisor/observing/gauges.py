"""A process of its own that reads the GPUs' gauges when asked: the watcher never waits for a driver."""

from __future__ import annotations

import os
import resource
import signal
import time

from .. import files, forking, machine, wire
from . import boards, nvml, smi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Set, Tuple

    Json = Dict[str, Any]

SHARE = 1000
"""One reading may cost a thousandth of the time that passes before the next: nvidia-smi takes long,
and is asked as seldom as that needs."""
GAUGES = ("sm_mhz", "temp_c", "power_w", "util_pct", "memory_used_bytes", "throttle", "ecc_uncorrected")


class Gauges:
    """The watcher's side. `fd` becomes readable when an answer has come; -1 where there is none to read."""

    def __init__(self, uuids: List[str], work: int) -> None:
        ask, self._ask = os.pipe()
        self.fd, say = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.dup2(ask, 0)
                let_go(0, say)
                signal.set_wakeup_fd(-1)
                for number in (signal.SIGUSR1, signal.SIGPIPE):
                    signal.signal(number, signal.SIG_DFL)
                serve(uuids, work, say)
            finally:
                os._exit(0)
        os.close(ask)
        os.close(say)
        os.set_blocking(self.fd, False)
        os.set_blocking(self._ask, False)
        self.asked: Optional[float] = None
        self._data = b""

    def ask(self) -> Optional[str]:
        """Ask for one reading; what is wrong if the one before was never answered."""
        if self.fd < 0:
            return "whoever reads the GPUs is gone"
        if self.asked is not None:
            return "the driver has not answered for %d s" % (time.monotonic() - self.asked)
        try:
            os.write(self._ask, b"?")
        except OSError:
            return "whoever reads the GPUs is gone"
        self.asked = time.monotonic()
        return None

    def answers(self) -> List[Json]:
        """The readings that have come since."""
        try:
            got = os.read(self.fd, 1 << 16)
        except OSError:
            return []
        if not got:
            os.close(self.fd)
            self.fd = -1
            return []
        self._data += got
        rows = self._data.split(b"\n")
        self._data = rows.pop()
        if rows:
            self.asked = None
        found = []
        for row in rows:
            try:
                found.append(dict(wire.loads(row)))
            except (ValueError, TypeError):
                continue
        return found

    def close(self) -> None:
        """Let it end. One that hangs in the kernel is left behind; it holds nothing."""
        for fd in (self.fd, self._ask):
            if fd >= 0:
                os.close(fd)
        self.fd = -1
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, os.WNOHANG)
        except (OSError, ChildProcessError):
            pass


def let_go(ask: int, say: int) -> None:
    """Hold nothing of the watcher's but the two pipes."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (1, 2):
        os.dup2(null, fd)
    forking.close_others({ask, 1, 2, say})


def serve(uuids: List[str], work: int, say: int) -> None:
    """Answer each byte that is read with one line, until the pipe ends."""
    reader: Callable[[], Tuple[str, List[Json], List[Json]]] = _library(uuids)
    due = 0.0
    while os.read(0, 1):
        line: Json = {}
        if time.monotonic() >= due:
            before = _spent()
            try:
                source, gpus, events = reader()
                line["source"] = source
                line["gpus"] = [_row(gpu, work) for gpu in gpus]
                if events:
                    line["xids"] = events
            except Exception as e:
                line["why"] = str(e)[:200] or type(e).__name__
            line["cpu_us"] = _spent() - before
            due = time.monotonic() + line["cpu_us"] * SHARE / 1e6 - 1.0
        line.update(t_us=machine.now_us(), mono_us=machine.mono_us())
        files.write_all(say, wire.dumps(line) + b"\n")


def _spent() -> int:
    """Microseconds of processor time of this process and of the tools it has run."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        total += used.ru_utime + used.ru_stime
    return int(total * 1e6)


def _library(uuids: List[str]) -> Callable[[], Tuple[str, List[Json], List[Json]]]:
    """Reads by NVML kept open, or by nvidia-smi where that cannot be loaded."""
    try:
        lib = nvml.Library()
        handles = _find(lib, uuids)
    except nvml.Unseen:
        return lambda: ("nvidia-smi", smi.look(uuids)["gpus"], [])
    events = _listen(lib, [handle for _, handle, _ in handles])

    def read() -> Tuple[str, List[Json], List[Json]]:
        rows = []
        for index, handle, device in handles:
            record: Json = {"index": index, "why": {}}
            boards.gauges(lib, handle, record)
            boards.watched(lib, device, record)
            rows.append(record)
        return "nvml", rows, _heard(lib, events, handles)

    return read


def _find(lib: nvml.Library, uuids: List[str]) -> List[Tuple[int, Any, Any]]:
    """Index, handle of the board, and handle of the device itself (a part of it), for each UUID."""
    found = []
    for index in range(lib.get("nvmlDeviceGetCount_v2")):
        try:
            handle = lib.get("nvmlDeviceGetHandleByIndex_v2", index)
        except nvml.Unseen:
            continue
        record: Json = {"index": index, "why": {}}
        boards.identify(lib, handle, record)
        for device, entry in [(handle, record), *boards.parts(lib, handle, record)]:
            if entry.get("uuid") in uuids:
                found.append((index, handle, device))
    return found


def _listen(lib: nvml.Library, handles: List[Any]) -> Any:
    """A set of events that hears of Xid errors; None where the driver gives none."""
    try:
        events = lib.get("nvmlEventSetCreate")
    except nvml.Unseen:
        return None
    heard = 0
    for handle in handles:
        try:
            lib.get("nvmlDeviceRegisterEvents", handle, nvml.XID, events)
            heard += 1
        except nvml.Unseen:
            continue
    return events if heard else None


def _heard(lib: nvml.Library, events: Any, handles: List[Tuple[int, Any, Any]]) -> List[Json]:
    found: List[Json] = []
    while events is not None and len(found) < 32:
        try:
            event = lib.get("nvmlEventSetWait_v2", events, 0)
        except nvml.Unseen:
            break
        index = next((i for i, handle, _ in handles if handle == event.device), None)
        found.append({"index": index, "xid": int(event.data)})
    return found


def _row(gpu: Json, work: int) -> Json:
    """What of a record stands in a sample; `others` counts processes that are not of the work."""
    row = {name: gpu[name] for name in ("index", *GAUGES) if gpu.get(name) is not None}
    if gpu.get("lost"):
        row["lost"] = gpu["lost"]
    pids = gpu.get("processes")
    if pids is not None:
        known: Set[int] = {work}
        row["others"] = sum(not _ours(pid, known) for pid in pids)
    return row


def _hidden(pid: int) -> bool:
    """Whether there is such a process, of another user, that /proc does not show (hidepid)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        pass  # it has ended
    return False


def _ours(pid: int, known: Set[int]) -> bool:
    """Whether the process is of the work: below it, or in its session."""
    chain: List[int] = []
    while pid > 1 and len(chain) < 64:
        if pid in known:
            known.update(chain)
            return True
        found = machine.process(pid)
        if found is None:
            return not chain and not _hidden(pid)
        if found.session in known:
            known.update(chain, [pid])
            return True
        chain.append(pid)
        pid = found.parent
    return False
