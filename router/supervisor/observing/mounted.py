"""Where a path lies: the class of its storage, from the mount table and from the disks below it."""

from __future__ import annotations

import os
import re

from .. import machine
from . import apart, drives
from .container import LAYERED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

    Json = Dict[str, Any]
    Mount = machine.Mount

FAMILIES = {
    **dict.fromkeys(("container_ephemeral", "image_baked"), "container"),
    **dict.fromkeys(("bucket_fuse", "object_direct"), "object"),
    **dict.fromkeys(("local_nvme", "local_disk"), "local"),
    **dict.fromkeys(("network_block", "network_fs", "modal_volume_v1", "modal_volume_v2"), "network"),
    "tmpfs": "memory",
}
MEMORY = frozenset(("tmpfs", "ramfs", "rootfs", "devtmpfs", "hugetlbfs"))
_BUCKETS = """gcsfuse mount-s3 mountpoint-s3 s3fs goofys geesefs rclone blobfuse blobfuse2 juicefs ossfs
ossfs2 cosfs obsfs s3ql s3backer riofs yas3fs"""
BUCKETS = frozenset(_BUCKETS.split())
"""Programs that show a bucket as a folder: the file system is `fuse.NAME`, or `fuse` from source NAME."""
SHARED = frozenset(("virtiofs", "9p", "vboxsf", "prl_fs", "hgfs", "fuse.vmhgfs-fuse", "drvfs"))
"""A folder of the computer that this virtual machine runs on."""
CONTAINERS = (
    *("/docker/", "/containerd", "/containers/storage/", "/lib/kubelet/", "/k3s/", "/crio", "/podman/"),
    *("/buildkit/", "/enroot/", "/lxc/", "/lxd/", "/incus/", "/nerdctl/"),
)
"""Where container runtimes keep the upper folders of their overlays."""
_OPTIONS = """ro sync dirsync async noatime relatime strictatime lazytime discard nobarrier barrier data soft
hard vers proto nconnect rsize wsize compress compress-force noac actimeo cache trans allocsize nodatacow
flock localflock dax commit logbsize"""
OPTIONS = frozenset(_OPTIONS.split())
"""The options of a mount that a figure may depend on; the others are not kept."""
SECTIONS = {"dedup": True, "special": True, "logs": True, "cache": False, "spare": False, "spares": False}
"""Parts of a ZFS pool, as `zpool` heads them -> whether what is written there stays there: a spare holds
nothing, a cache a copy."""
MOST_LINKS = 40
MAC_WHY = "this system does not tell which disk a file system lies on"


class Places:
    """Tells of paths where they lie. The mount table is read when one is made, a disk once."""

    def __init__(self, mountinfo: str = "/proc/self/mountinfo", sys: str = "/sys") -> None:
        self.linux = machine.LINUX or mountinfo != "/proc/self/mountinfo"
        self.mounts = machine.mounts(mountinfo) if self.linux else table(machine.said(["mount"]))
        self.drives = drives.Drives(self.of, sys)
        self._known: Dict[str, Json] = {}
        self._deep = 0

    def of(self, path: str) -> Json:
        """`class` or `why` it is None, `family`, `fs`, `mount`, `device`, `backing` (models and
        transports), `told` (how it was told), `options`, `read_only`, `counters` and `disks` (numbers
        of the block devices that everything passes, and of the whole disks they are).

        The path need not be there yet.
        """
        mount = machine.mount_of(path, self.mounts)
        if mount is None:
            return _place(None, None, "there is no mount table here", "", [])
        known = self._known.get(mount.point)
        if known is None:
            if self._deep > 4:
                return _place(mount, None, "it lies on more layers than are followed", "", [])
            self._deep += 1
            try:
                known = self._known[mount.point] = self._look(mount)
            finally:
                self._deep -= 1
        return known

    def far(self, path: str) -> Optional[Mount]:
        """The mount that the way to `path` leads over and that may never answer: of another computer, of a
        program (FUSE), or one that is made when it is touched (autofs). Nothing on it is touched."""
        at, links = "/", 0
        rest = path.split("/")[::-1]
        while rest:
            name = rest.pop()
            if name == "..":
                at = os.path.dirname(at)
            if name in ("", ".", ".."):
                continue
            here = os.path.join(at, name)
            mount = self._above(here)
            if mount is not None and _distant(mount):
                return mount
            try:
                target = os.readlink(here)
            except OSError:
                at = here
                continue
            links += 1
            if links > MOST_LINKS:
                return None
            rest += target.split("/")[::-1]
            at = "/" if target.startswith("/") else at
        return None

    def _above(self, path: str) -> Optional[Mount]:
        """The mount of a path without links."""
        while path not in self.mounts and path != "/":
            path = os.path.dirname(path)
        return self.mounts.get(path)

    def _look(self, mount: Mount) -> Json:
        fs = mount.fs
        program = fs[5:] if fs.startswith("fuse.") else mount.source.lower() if fs == "fuse" else ""
        program = program.partition(":")[0].partition("#")[0]
        if fs in MEMORY:
            return _place(mount, "tmpfs", "", "%s is memory" % fs, [])
        if program in BUCKETS:
            return _place(mount, "bucket_fuse", "", "%s shows a bucket as a folder" % program, [])
        if fs in LAYERED:
            return self._layered(mount)
        if fs == "9p" and "trans=fd" in mount.extra and not self.drives.there():
            if mount.point == "/":
                return _place(mount, "container_ephemeral", "", "the root of a sandbox without sysfs", [])
            return _place(mount, None, "the sandbox hides what its folders lie on", "", [])
        if fs in SHARED:
            return _place(mount, "network_fs", "", "%s: a folder of another computer" % fs, [])
        if machine.is_network(fs):
            return _place(mount, "network_fs", "", "%s from another computer" % fs, [])
        if not self.linux:
            return _place(mount, None, MAC_WHY, "", [])
        return self._on_disks(mount)

    def _layered(self, mount: Mount) -> Json:
        """An overlay is a container's own, gone with it, unless somebody laid it over folders here."""
        upper = _option(mount.extra, "upperdir")
        if mount.point == "/":
            return _place(mount, "container_ephemeral", "", "the root is an overlay", [])
        if any(part in upper for part in CONTAINERS):
            return _place(mount, "container_ephemeral", "", "an overlay that a container runtime made", [])
        if not upper and mount.fs == "overlay":
            upper = _option(mount.extra, "lowerdir").partition(":")[0]  # only read, then
        if not upper or not os.path.isdir(upper):
            return _place(mount, None, "the folder an overlay writes to cannot be seen from here", "", [])
        below = self.of(upper)
        why = below["why"] and "the overlay writes to %s: %s" % (below["fs"], below["why"])
        found = _place(mount, below["class"], why, "an overlay over %s" % below["told"], [])
        return dict(found, **{k: below[k] for k in ("backing", "counters", "disks")})

    def _on_disks(self, mount: Mount) -> Json:
        if not self.drives.there():
            return _place(mount, None, "no device can be seen here (no sysfs)", "", [])
        if mount.fs == "zfs":
            sources = pool(mount.source)
            if not sources:
                return _place(mount, None, "`zpool` does not tell the disks of %s" % mount.source, "", [])
            folders = [self.drives.named(source) for source in sources]
        elif mount.fs == "bcachefs":
            folders = [self.drives.named(source) for source in mount.source.split(":")]
        elif mount.fs == "btrfs":
            folders = self._btrfs(mount.source)
        elif mount.device.startswith("0:"):
            return _place(mount, None, "no device belongs to a file system %s" % mount.fs, "", [])
        else:
            folders = [self.drives.numbered(mount.device)]
        if not all(folders):
            return _place(mount, None, "the device of %s is not in sysfs" % mount.source, "", [])
        legs: List[Json] = []
        for folder in folders:
            legs += [leg for leg in self.drives.legs(folder) if leg["name"] not in [f["name"] for f in legs]]
        found, why = drives.weakest(legs)
        told = _told(mount.fs, legs, found)
        whole = [os.path.dirname(f) if os.path.exists(f + "/partition") else f for f in folders]
        numbers = [[drives.line(folder + "/dev") for folder in some] for some in (folders, whole)]
        return dict(_place(mount, found, why, told, legs), counters=numbers[0], disks=numbers[1])

    def _btrfs(self, source: str) -> List[str]:
        """All devices of a btrfs, of which the mount table names one."""
        one = self.drives.named(source)
        if not one:
            return [one]
        above = self.drives.sys + "/fs/btrfs"
        try:
            for uuid in os.listdir(above):
                devices = "%s/%s/devices" % (above, uuid)
                if os.path.exists("%s/%s" % (devices, os.path.basename(one))):
                    return [
                        os.path.realpath("%s/%s" % (devices, name)) for name in sorted(os.listdir(devices))
                    ]
        except OSError:
            pass
        return [one]


def _distant(mount: Mount) -> bool:
    # A root that does not answer stops everything; so does the computer that this virtual machine is on.
    if mount.point == "/" or mount.fs in SHARED:
        return False
    return mount.fs == "autofs" or mount.fs[:4] == "fuse" or machine.is_network(mount.fs)


def unseen(mount: Optional[Mount], why: str) -> Json:
    """The place of what could not be looked at."""
    return _place(mount, None, why, "", [])


def _place(mount: Optional[Mount], found: Optional[str], why: str, told: str, legs: List[Json]) -> Json:
    options = (mount.options + "," + mount.extra).split(",") if mount else []
    return {
        "class": found,
        "why": why,
        "family": FAMILIES.get(found or ""),
        "fs": mount.fs if mount else None,
        "mount": mount.point if mount else None,
        "device": _nameless(mount.source) if mount else None,
        "backing": drives.backing(legs),
        "told": told,
        "options": sorted({o for o in options if o.partition("=")[0] in OPTIONS}),
        "read_only": "ro" in options,
        "counters": [],
        "disks": [],
    }


def _nameless(source: str) -> str:
    """A source without the name and password that an address may have."""
    return re.sub(r"//[^/@]*@", "//***@", source) if "@" in source else source


def _told(fs: str, legs: List[Json], found: Optional[str]) -> str:
    over: List[str] = []
    for leg in legs:
        over += [layer for layer in leg["over"] if layer not in over]
    names = [leg["name"] for leg in legs]
    shown = ", ".join(names[:4]) + (" and %d more" % (len(names) - 4) if len(names) > 4 else "")
    text = " on ".join([fs, *over[:6], shown])
    kinds = {leg["class"] for leg in legs}
    if found and len(kinds) > 1:
        text += "; the weakest of %s" % ", ".join(sorted(kinds, key=drives.rank))
    return text


def _option(extra: str, name: str) -> str:
    """The value of an option whose commas and colons may be escaped."""
    for part in re.split(r"(?<!\\),", machine.unescape(extra)):
        key, _, value = part.partition("=")
        if key == name:
            return value.replace("\\,", ",").replace("\\:", ":")
    return ""


def pool(source: str) -> List[str]:
    """The devices of a ZFS pool, which no file of the system names."""
    words = ["zpool", "list", "-v", "-H", "-P", source.partition("/")[0]]
    try:
        said = apart.output(words, 5.0)[1].decode("utf-8", "replace")
    except (OSError, apart.Failed):
        return []
    found: List[str] = []
    holds = True
    for row in said.splitlines():
        word = row.split()[0] if row.split() else ""
        if word in SECTIONS:
            holds = SECTIONS[word]
        elif holds and word.startswith("/dev/"):
            found.append(word)
    return found


def table(said: str) -> Dict[str, Mount]:
    """The mount table of a system without /proc, as `mount` prints it."""
    found: Dict[str, Mount] = {}
    for row in said.splitlines():
        match = re.fullmatch(r"(.*?) on (/.*) \(([^()]*)\)", row)
        if match:
            source, point, words = match.groups()
            fs, _, options = words.partition(", ")
            flags = options.replace("read-only", "ro").replace(", ", ",")
            kind = "fuse" if fs == "macfuse" else fs
            found[point] = machine.Mount(point, kind, source, options=flags)
    return found
