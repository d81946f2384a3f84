"""What a block device really is: through partitions, dm, md and loop to the disks, by model and transport.

The rules are tables. A figure of a cloud is what its own tools tell a disk by: Amazon's model names,
Google's `google_nvme_id`, Azure's azure-vm-utils, Oracle's and others' SCSI vendor and model.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List, Optional, Tuple

    Json = Dict[str, Any]
    Look = Callable[[str], Json]

UNSEEN = "what is behind a virtual disk (%s) cannot be seen from inside"
MODELS = (
    ("Amazon EC2 NVMe Instance Storage", "local_nvme"),
    ("Amazon Elastic Block Store", "network_block"),
    ("nvme_card-pd", "network_block"),  # Google: Persistent Disk and Hyperdisk
    ("nvme_card*", "local_nvme"),  # Google: local SSD, nvme_card or nvme_card0 and on
    ("Google PersistentDisk", "network_block"),
    ("Google EphemeralDisk", "local_disk"),  # Google: local SSD that shows as SCSI
    ("MSFT NVMe Accelerator*", "network_block"),
    ("Microsoft NVMe Direct Disk*", "local_nvme"),
    ("ORACLE BlockVolume", "network_block"),
    ("Alibaba Cloud Elastic Block Storage", "network_block"),
    ("DO Volume", "network_block"),  # DigitalOcean
    ("HC Volume", "network_block"),  # Hetzner Cloud
    ("Linode Volume", "network_block"),
    *((begin + "*", "") for begin in ("QEMU", "VBOX", "VMware", "Virtual", "VirtIO", "Parallels", "NUTANIX")),
    *((begin + "*", "") for begin in ("Msft", "RHEV", "XEN", "Mellanox NVMe SNAP", "NVIDIA BlueField")),
)
"""Vendor and model of a SCSI disk, the model of another -> class; without one it is virtual. The first
that fits counts, `*` stands for any end."""
AZURE_TAG = "7783-7084-3265-9085-8269-3286-77"
AZURE = (
    ("{f8b3781a-", "1", "local_disk", ""),
    ("{f8b3781a-", "0", "", "Azure's system disk is the same to look at whether remote or ephemeral"),
    ("{f8b3781b-", "", "network_block", ""),
    ("{f8b3781c-", "", "network_block", ""),
    ("{f8b3781d-", "", "network_block", ""),
    ("{00000000-0001-", "", "local_disk", ""),
)
"""The controller's id on Azure's virtual bus and the disk's unit there ("" = any) -> class, or why not."""
TRANSPORTS = (
    ("session", "iscsi"),
    ("rport-", "fc"),
    ("usb", "usb"),
    ("end_device-", "sas"),
    ("ata", "sata"),
    ("mmc", "mmc"),
    ("ndbus", "pmem"),
    ("virtio", "virtio"),
    ("vbd-", "xen"),
    ("vmbus", "hyperv"),
    ("VMBUS:", "hyperv"),
)
"""How a part of the device's path in sysfs begins, before a number -> transport; the first that is there."""
DRIVERS = {
    **dict.fromkeys(("megaraid_sas", "mpi3mr", "mpt2sas", "mpt3sas", "hpsa", "smartpqi", "aacraid"), "raid"),
    **dict.fromkeys(("arcmsr", "3w-9xxx", "3w-sas", "isci", "pm80xx", "mvsas"), "raid"),
    **dict.fromkeys(("lpfc", "qla2xxx", "zfcp", "bfa", "fnic", "qedf", "bnx2fc"), "fc"),
    **dict.fromkeys(("iscsi_tcp", "ib_iser", "ib_srp", "qedi", "be2iscsi", "cxgb4i"), "iscsi"),
    **dict.fromkeys(("vmw_pvscsi", "pvscsi", "mptspi"), "vmware"),
    **dict.fromkeys(("virtio_scsi", "xen-scsifront", "storvsc_host_t"), "virtio"),
    "ufshcd": "ufs",
}
"""The driver of a SCSI adapter -> transport, where the path does not tell."""
NAMES = (
    ("zram", "memory"),
    ("ram", "memory"),
    ("nbd", "nbd"),
    ("rbd", "rbd"),
    ("drbd", "drbd"),
    ("etherd", "aoe"),
    ("mmcblk", "mmc"),
    ("pmem", "pmem"),
)
CLASSES = {
    **dict.fromkeys(("nvme/pcie", "nvme/apple-nvme"), "local_nvme"),
    **dict.fromkeys(("nvme/tcp", "nvme/rdma", "nvme/fc"), "network_block"),
    **dict.fromkeys(("sata", "sas", "usb", "mmc", "raid", "ufs", "pmem"), "local_disk"),
    **dict.fromkeys(("iscsi", "fc", "nbd", "rbd", "drbd", "aoe"), "network_block"),
    "memory": "tmpfs",
}
"""Transport -> class. One that is not here belongs to a virtual disk."""
WEAKEST = ("tmpfs", "local_nvme", "local_disk", "network_block", "network_fs", "bucket_fuse")
"""Classes from the quickest on: of several legs the weakest counts."""
MOST_LEGS = 64


def line(path: str) -> str:
    """The one line of a file of sysfs, blanks made single; nothing where it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return " ".join(os.read(fd, 4096).decode("utf-8", "replace").split())
    except OSError:
        return ""
    finally:
        os.close(fd)


class Drives:
    """The block devices below one sysfs. `look` tells of the storage that a path lies on."""

    def __init__(self, look: Look, sys: str = "/sys") -> None:
        self.look, self.sys = look, sys
        self._legs: Dict[str, List[Json]] = {}

    def there(self) -> bool:
        return os.path.isdir(self.sys + "/dev/block")

    def numbered(self, number: str) -> str:
        """The folder of the device `major:minor`; nothing if it is not to be seen."""
        return self._real("%s/dev/block/%s" % (self.sys, number))

    def named(self, source: str) -> str:
        """The folder of a device by its path in /dev, also by the name that dm gave it."""
        name = os.path.basename(source).replace("/", "!")
        folder = self._real("%s/class/block/%s" % (self.sys, name))
        if folder or not source.startswith("/dev/"):
            return folder
        try:
            for entry in os.listdir(self.sys + "/class/block"):
                if entry.startswith("dm-"):
                    folder = self._real("%s/class/block/%s" % (self.sys, entry))
                    if line(folder + "/dm/name") == name:
                        return folder
        except OSError:
            pass
        try:
            number = os.stat(source).st_rdev
        except OSError:
            return ""
        return self.numbered("%d:%d" % (os.major(number), os.minor(number))) if number else ""

    @staticmethod
    def _real(path: str) -> str:
        return os.path.realpath(path) if os.path.exists(path) else ""

    def legs(self, folder: str, deep: int = 0) -> List[Json]:
        """The disks below the device at `folder`: name, model, transport, class or why there is none,
        and `over`, what lies between."""
        known = self._legs.get(folder)
        if known is None:
            known = self._legs[folder] = self._found(folder, deep)
        return known

    def _found(self, folder: str, deep: int) -> List[Json]:
        if os.path.exists(folder + "/partition"):
            folder = os.path.dirname(folder)
        name = os.path.basename(folder)
        if deep > 8:
            return [_leg(name, why="%s lies on more devices than are followed" % name)]
        below = self._below(folder)
        if not below:
            return [self._loop(folder) if name.startswith("loop") else self._disk(folder)]
        found: List[Json] = []
        for one in below[:MOST_LEGS]:
            for leg in self.legs(one, deep + 1):
                made = dict(leg, over=[_layer(folder), *leg["over"]])
                found += [] if any(leg["name"] == f["name"] for f in found) else [made]
        return found

    def _below(self, folder: str) -> List[str]:
        try:
            listed = sorted(os.listdir(folder + "/slaves"), key=lambda n: (len(n), n))
        except OSError:
            return []
        return [found for found in (self._real("%s/slaves/%s" % (folder, n)) for n in listed) if found]

    def _loop(self, folder: str) -> Json:
        """A file posing as a disk is as quick as what the file lies on."""
        name, backing = os.path.basename(folder), line(folder + "/loop/backing_file")
        if not backing or not os.path.exists(backing):
            return _leg(name, transport="loop", why="the file behind %s cannot be seen from here" % name)
        behind = self.look(backing)
        why = behind["why"] and "the file behind %s: %s" % (name, behind["why"])
        return _leg(name, behind["backing"], "loop", behind["class"] or "", why)

    def _disk(self, folder: str) -> Json:
        name = os.path.basename(folder)
        device = self._real(folder + "/device")
        if name.startswith("nvme"):
            model, transport = line(device + "/model"), self._nvme(folder, device)
        else:
            model = ("%s %s" % (line(device + "/vendor"), line(device + "/model"))).strip()
            # A virtio disk has the number of its maker there, and no model.
            model = "" if model.startswith("0x") else model
            if model.startswith("ATA "):
                model = model[4:]
            transport = self._transport(folder, device)
        spins = line(folder + "/queue/rotational")
        leg = self._judged(name, model, transport, device)
        leg["rotational"] = None if not spins or not leg["class"] else int(spins == "1")
        return leg

    def _judged(self, name: str, model: str, transport: str, device: str) -> Json:
        tag = self.sys + "/class/dmi/id/chassis_asset_tag"
        if model.startswith("Msft Virtual") and line(tag) == AZURE_TAG:
            found, why = self._azure(device)
            return _leg(name, model, transport, found, why or ("" if found else UNSEEN % model))
        for pattern, found in MODELS:
            if _fits(pattern, model):
                return _leg(name, model, transport, found, "" if found else UNSEEN % model)
        found = CLASSES.get(transport, "")
        if not transport:
            return _leg(name, model, why="nothing tells how %s is attached" % name)
        return _leg(name, model, transport, found, "" if found else UNSEEN % transport)

    def _azure(self, device: str) -> Tuple[str, str]:
        unit = os.path.basename(device).rpartition(":")[2]
        while len(device) > len(self.sys):
            told = line(device + "/device_id").lower()
            for begin, want, found, why in AZURE:
                if told.startswith(begin) and want in ("", unit):
                    return found, why
            device = os.path.dirname(device)
        return "", ""

    def _nvme(self, folder: str, device: str) -> str:
        """The transport of an NVMe disk; of one with several paths, the weakest of them."""
        told = line(device + "/transport")
        if not told:
            try:
                several = [n for n in os.listdir(device) if n[:4] == "nvme" and n[4:].isdigit()]
            except OSError:
                several = []
            found = {line("%s/%s/transport" % (device, n)) for n in several} - {""}
            words = sorted(found, key=lambda t: rank(CLASSES.get("nvme/" + t, "")))
            told = words[-1] if words else "pcie" if "/pci" in folder[len(self.sys) :] else ""
        return "nvme/" + told if told else ""

    def _transport(self, folder: str, device: str) -> str:
        name = os.path.basename(folder)
        for begin, word in NAMES:
            if name.startswith(begin) and not name[len(begin) :][:1].isalpha():
                return word
        parts = (device or folder).split("/")
        for begin, word in TRANSPORTS:
            if any(_numbered(part, begin) for part in parts):
                return word
        for at, part in enumerate(parts):
            if _numbered(part, "host"):
                driver = line("%s/scsi_host/%s/proc_name" % ("/".join(parts[: at + 1]), part))
                return DRIVERS.get(driver.lower(), "")
        return ""


def _fits(pattern: str, model: str) -> bool:
    return model.startswith(pattern[:-1]) if pattern[-1] == "*" else model == pattern


def _numbered(part: str, begin: str) -> bool:
    return part.startswith(begin) and part[len(begin) :][:1].isdigit()


def _leg(name: str, model: str = "", transport: str = "", found: str = "", why: str = "") -> Json:
    return {
        "name": name,
        "model": model[:200],
        "transport": transport,
        "class": found,
        "why": why,
        "rotational": None,
        "over": [],
    }


def _layer(folder: str) -> str:
    """A device made of others, with what makes it."""
    name = os.path.basename(folder)
    uuid, level = line(folder + "/dm/uuid"), line(folder + "/md/level")
    kind = level or uuid.partition("-")[0].lower()
    return "%s (%s)" % (line(folder + "/dm/name") or name, kind) if kind else name


def rank(found: str) -> int:
    return WEAKEST.index(found) if found in WEAKEST else len(WEAKEST)


def weakest(legs: List[Json]) -> Tuple[Optional[str], str]:
    """The class of storage that is made of these legs, or why it has none."""
    for leg in legs:
        if not leg["class"]:
            return None, leg["why"] or "%s: nothing is known of it" % leg["name"]
    if not legs:
        return None, "no disk is to be seen behind it"
    return max((leg["class"] for leg in legs), key=rank), ""


def backing(legs: List[Json]) -> str:
    """Models and transports of all legs, equal ones counted: `2 x Samsung PM9A3 (nvme/pcie)`."""
    counts: Dict[str, int] = {}
    for leg in legs:
        spins = ", rotational" if leg["rotational"] else ""
        named = "%s (%s%s)" % (leg["model"] or leg["name"], leg["transport"] or "transport unknown", spins)
        counts[named] = counts.get(named, 0) + 1
    return " + ".join("%d x %s" % (n, t) if n > 1 else t for t, n in counts.items())
