"""Facts of this machine and of its processes: which boot, which machine, who is alive, what is mounted."""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Iterator, List, Optional

BOOT_ID = "/proc/sys/kernel/random/boot_id"
LINUX = sys.platform.startswith("linux")
_NETWORK = """nfs nfs4 cifs smb2 smb3 smbfs lustre 9p ceph glusterfs afs beegfs gpfs wekafs ocfs2 gfs2
orangefs pvfs2 davfs davfs2 ncpfs coda panfs fuse.sshfs fuse.glusterfs fuse.ceph fuse.ceph-fuse fuse.s3fs
fuse.gcsfuse fuse.rclone fuse.juicefs fuse.mount-s3 fuse.goofys fuse.blobfuse fuse.blobfuse2 fuse.davfs2
fuse.curlftpfs fuse.moosefs fuse.seaweedfs fuse.cvmfs2 fuse.dbxfs fuse.hdfs"""
NETWORK = frozenset(_NETWORK.split())


def now_us() -> int:
    return time.time_ns() // 1000


def mono_us() -> int:
    return time.monotonic_ns() // 1000


def told(path: str) -> bytes:
    """The first 64 KiB of a file of the system; nothing if it cannot be read."""
    try:
        with open(path, "rb") as f:
            return f.read(1 << 16)
    except OSError:
        return b""


def _first(path: str) -> str:
    return told(path).decode("ascii", "replace").strip()


def boot_id(path: str = BOOT_ID) -> str:
    """Names this boot of this kernel; another value means that no process of then lives."""
    found = _first(path)
    if not found and sys.platform == "darwin":
        found = said(["sysctl", "-n", "kern.bootsessionuuid"])
    return found or "unknown"


def machine_id() -> str:
    """Names this machine; empty where the machine has no name of its own."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        found = _first(path)
        if found and found != "uninitialized":
            return found
    return ""


def said(argv: List[str]) -> str:
    """What a command prints within five seconds; nothing if it cannot be run."""
    import subprocess

    try:
        return (
            subprocess.run(argv, stdout=-1, stderr=-3, stdin=-3, timeout=5)
            .stdout.decode("ascii", "replace")
            .strip()
        )
    except (OSError, subprocess.SubprocessError):
        return ""


class Process:
    """One line of the process table; `start` with the pid names a process for ever (of this boot)."""

    __slots__ = ("group", "parent", "pid", "session", "start", "state")

    def __init__(self, pid: int, state: str, parent: int, group: int, session: int, start: int) -> None:
        self.pid, self.state, self.parent = pid, state, parent
        self.group, self.session, self.start = group, session, start


def process(pid: int) -> Optional[Process]:
    """What the kernel says of `pid`; None if there is no such process."""
    try:
        fd = os.open("/proc/%d/stat" % pid, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None if LINUX else _elsewhere(pid)
    try:
        line = os.read(fd, 4096)
    except OSError:  # it ended between open and read
        return None
    finally:
        os.close(fd)
    # The second field is a name that may hold spaces and brackets; the last bracket closes it.
    rest = line[line.rfind(b")") + 2 :].split()
    if len(rest) < 20:
        return None
    return Process(pid, rest[0].decode(), int(rest[1]), int(rest[2]), int(rest[3]), int(rest[19]))


_PS = ["ps", "-ww", "-o", "pid=,stat=,ppid=,pgid=,lstart="]


def _row(line: str) -> Optional[Process]:
    """A line of `ps` on a system without /proc: the start is a digest of the time it prints, and the
    session is not told."""
    import zlib

    cells = line.split(None, 4)
    if len(cells) < 5 or not (cells[0] + cells[2] + cells[3]).isdigit():
        return None
    start = zlib.crc32(cells[4].strip().encode())
    return Process(int(cells[0]), cells[1][0], int(cells[2]), int(cells[3]), 0, start)


def _elsewhere(pid: int) -> Optional[Process]:
    return _row(said([*_PS, "-p", str(pid)]))


def alive(pid: Optional[int], start: Optional[int]) -> bool:
    """Whether the process that was recorded with this start time still runs. A reused pid does not
    count, and neither does one that has ended but was not waited for."""
    if not pid or start is None:
        return False
    found = process(pid)
    return found is not None and found.start == start and found.state not in ("Z", "X", "x")


def pidfd(pid: int, start: int) -> int:
    """A descriptor that becomes readable when this process ends; -1 where there is none."""
    opened = getattr(os, "pidfd_open", None)
    if opened is None or not pid:
        return -1
    try:
        fd: int = opened(pid)
    except OSError:
        return -1
    if alive(pid, start):
        return fd
    os.close(fd)
    return -1


def processes() -> Iterator[Process]:
    """Every process that can be seen, in no order."""
    if not LINUX:
        for line in said([*_PS, "-ax"]).splitlines():
            row = _row(line)
            if row is not None:
                yield row
        return
    try:
        listed = os.listdir("/proc")
    except OSError:
        return
    for name in listed:
        if name.isdigit():
            found = process(int(name))
            if found is not None:
                yield found


class Mount:
    """One row of the mount table. `options` are those of the mount, `extra` those of its file system,
    both as the kernel writes them; `device` is `major:minor`."""

    __slots__ = ("device", "extra", "fs", "options", "point", "source")

    def __init__(
        self, point: str, fs: str, source: str, device: str = "", options: str = "", extra: str = ""
    ) -> None:
        self.point, self.fs, self.source = point, fs, source
        self.device, self.options, self.extra = device, options, extra


_ESCAPES = {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\043": "#", "\\134": "\\"}


def unescape(text: str) -> str:
    """A word of the mount table as it was before the kernel made it one word."""
    if "\\" in text:
        for code, char in _ESCAPES.items():
            text = text.replace(code, char)
    return text


def mounts(path: str = "/proc/self/mountinfo") -> Dict[str, Mount]:
    """What is mounted, by mount point; the later of two mounts on one point is the visible one."""
    found: Dict[str, Mount] = {}
    try:
        with open(path, "rb") as f:
            lines = f.read().decode("utf-8", "surrogateescape").splitlines()
    except OSError:
        return {}
    for line in lines:
        front, _, back = line.partition(" - ")
        left, right = front.split(" "), back.split(" ")
        if len(left) >= 6 and len(right) >= 2:
            point = unescape(left[4])
            found.pop(point, None)
            extra = right[2] if len(right) > 2 else ""
            found[point] = Mount(point, right[0], unescape(right[1]), left[2], left[5], extra)
    return found


def mount_of(path: str, known: Optional[Dict[str, Mount]] = None) -> Optional[Mount]:
    """The mount that `path` lies on; None where it cannot be told."""
    known = mounts() if known is None else known
    path = os.path.realpath(path)
    while True:
        if path in known:
            return known[path]
        above = os.path.dirname(path)
        if above == path:
            return None
        path = above


def is_network(fs: str) -> bool:
    """Whether locks and renames on such a file system may not be what they are on a local disk."""
    return fs in NETWORK
