"""Proves that a storage has the class of its disks, through every layer, and none where they hide."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sysfs_trees import PCI, Tree

from compute_router.supervisor import cgroup
from compute_router.supervisor.observing import mounted, transfer

AZURE = "devices/LNXSYSTM:00/LNXSYBUS:00/ACPI0004:00/VMBUS:00"
SYSTEM, DATA = (f"f8b3781{c}-1e82-4818-a1c3-63d806ec15bb" for c in "ab")
AZURE_TAG = "7783-7084-3265-9085-8269-3286-77"
VIRTIO = "devices/pci0000:00/0000:00:03.0/virtio0"
EC2_LOCAL = "Amazon EC2 NVMe Instance Storage"
Build = Callable[[Tree], object]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    made = Tree(tmp_path)
    made.mount("/", "ext4", "/dev/none", "1:1")
    return made


def azure_disk(tree: Tree, channel: str, lun: int, tag: str = AZURE_TAG) -> None:
    tree.write("class/dmi/id", chassis_asset_tag=tag)
    tree.write(f"{AZURE}/{channel}", device_id="{" + channel + "}")
    between = f"{AZURE}/{channel}/host2/target2:0:0"
    tree.scsi("sda", "8:0", "Msft", "Virtual Disk", between, lun=lun)


ONE_DISK: list[tuple[str, Build, str, str | None, str]] = [
    ("plain NVMe", lambda t: t.nvme(0, "SAMSUNG MZQL23T8HCLS-00A07"), "259:0", "local_nvme", "nvme/pcie"),
    ("EBS", lambda t: t.nvme(0, "Amazon Elastic Block Store"), "259:0", "network_block", "Elastic Block"),
    ("EC2 local", lambda t: t.nvme(0, EC2_LOCAL), "259:0", "local_nvme", EC2_LOCAL),
    ("GCP disk", lambda t: t.nvme(0, "nvme_card-pd"), "259:0", "network_block", "nvme_card-pd"),
    ("GCP SSD", lambda t: t.nvme(0, "nvme_card"), "259:0", "local_nvme", "nvme_card"),
    ("GCP SSD 15", lambda t: t.nvme(0, "nvme_card15"), "259:0", "local_nvme", "nvme_card15"),
    ("Azure remote", lambda t: t.nvme(0, "MSFT NVMe Accelerator v1.0"), "259:0", "network_block", "MSFT"),
    ("Azure local", lambda t: t.nvme(0, "Microsoft NVMe Direct Disk v2"), "259:0", "local_nvme", "Direct"),
    ("Alibaba", lambda t: t.nvme(0, "Alibaba Cloud Elastic Block Storage"), "259:0", "network_block", ""),
    ("QEMU NVMe", lambda t: t.nvme(0, "QEMU NVMe Ctrl"), "259:0", None, "cannot be seen"),
    ("VMware NVMe", lambda t: t.nvme(0, "VMware Virtual NVMe Disk"), "259:0", None, "cannot be seen"),
    (
        "NVMe over TCP",
        lambda t: t.nvme(0, "Linux", transport="tcp", above="devices/virtual/nvme-fabrics/ctl"),
        "259:0",
        "network_block",
        "nvme/tcp",
    ),
    (
        "NVMe over RDMA",
        lambda t: t.nvme(0, "Dell PowerStore", transport="rdma", above="devices/virtual/nvme-fabrics/ctl"),
        "259:0",
        "network_block",
        "nvme/rdma",
    ),
    ("NVMe loop", lambda t: t.nvme(0, "Linux", transport="loop"), "259:0", None, "cannot be seen"),
    (
        "SATA SSD",
        lambda t: t.scsi("sda", "8:0", "ATA", "Samsung SSD 870", f"{PCI}/ata1/host2/target2:0:0"),
        "8:0",
        "local_disk",
        "Samsung SSD 870 (sata)",
    ),
    (
        "hard disk",
        lambda t: t.scsi(
            "sda", "8:0", "SEAGATE", "ST8000NM", f"{PCI}/host2/port-2:0/end_device-2:0/target2:0:0",
            queue__rotational="1",
        ),
        "8:0",
        "local_disk",
        "SEAGATE ST8000NM (sas, rotational)",
    ),
    (
        "virtual SATA",
        lambda t: t.scsi("sda", "8:0", "ATA", "QEMU HARDDISK", f"{PCI}/ata1/host2/t"),
        "8:0",
        None,
        "virtual disk (QEMU HARDDISK)",
    ),
    (
        "USB",
        lambda t: t.scsi("sda", "8:0", "WD", "Elements", f"{PCI}/usb1/1-1/host2/t"),
        "8:0",
        "local_disk",
        "usb",
    ),
    (
        "iSCSI",
        lambda t: t.scsi("sda", "8:0", "LIO-ORG", "vol1", "devices/platform/host2/session1/target2:0:0"),
        "8:0",
        "network_block",
        "LIO-ORG vol1 (iscsi)",
    ),
    (
        "Fibre Channel",
        lambda t: t.scsi("sda", "8:0", "PURE", "FlashArray", f"{PCI}/host2/rport-2:0-1/target2:0:1"),
        "8:0",
        "network_block",
        "(fc)",
    ),
    (
        "RAID adapter",
        lambda t: (
            t.write(f"{PCI}/host2/scsi_host/host2", proc_name="megaraid_sas"),
            t.scsi("sda", "8:0", "DELL", "PERC H755", f"{PCI}/host2/target2:0:0"),
        ),
        "8:0",
        "local_disk",
        "DELL PERC H755 (raid)",
    ),
    (
        "unknown adapter",
        lambda t: t.scsi("sda", "8:0", "ACME", "Thing", f"{PCI}/host2/target2:0:0"),
        "8:0",
        None,
        "nothing tells how sda is attached",
    ),
    (
        "GCP SCSI",
        lambda t: t.scsi("sda", "8:0", "Google", "PersistentDisk", f"{VIRTIO}/host2/t"),
        "8:0",
        "network_block",
        "",
    ),
    (
        "GCP SCSI SSD",
        lambda t: t.scsi("sda", "8:0", "Google", "EphemeralDisk", f"{VIRTIO}/host2/t"),
        "8:0",
        "local_disk",
        "",
    ),
    (
        "Oracle",
        lambda t: t.scsi("sda", "8:0", "ORACLE", "BlockVolume", f"{VIRTIO}/host2/t"),
        "8:0",
        "network_block",
        "ORACLE BlockVolume (virtio)",
    ),
    ("VMware", lambda t: t.scsi("sda", "8:0", "VMware", "Virtual disk", f"{PCI}/host2/t"), "8:0", None, ""),
    (
        "virtio",
        lambda t: (
            t.write(VIRTIO, vendor="0x1af4", device="0x0002"),
            t.block(f"{VIRTIO}/block/vda", "254:0", device=VIRTIO, queue__rotational="1"),
        ),
        "254:0",
        None,
        "virtual disk (virtio) cannot be seen",
    ),
    (
        "Xen",
        lambda t: (
            t.write("devices/vbd-51712", devtype="vbd"),
            t.block("devices/vbd-51712/block/xvda", "202:0", device="devices/vbd-51712"),
        ),
        "202:0",
        None,
        "virtual disk (xen) cannot be seen",
    ),
    ("nbd", lambda t: t.block("devices/virtual/block/nbd0", "43:0"), "43:0", "network_block", "nbd0 (nbd)"),
    ("rbd", lambda t: t.block("devices/rbd/0/block/rbd0", "251:0"), "251:0", "network_block", "rbd"),
    ("drbd", lambda t: t.block("devices/virtual/block/drbd0", "147:0"), "147:0", "network_block", "drbd"),
    ("zram", lambda t: t.block("devices/virtual/block/zram0", "252:0"), "252:0", "tmpfs", "memory"),
    ("Azure data", lambda t: azure_disk(t, DATA, 3), "8:0", "network_block", ""),
    ("Azure scratch", lambda t: azure_disk(t, SYSTEM, 1), "8:0", "local_disk", ""),
    ("Azure system", lambda t: azure_disk(t, SYSTEM, 0), "8:0", None, "ephemeral"),
    (
        "Hyper-V of one's own",
        lambda t: azure_disk(t, DATA, 3, tag="none"),
        "8:0",
        None,
        "cannot be seen",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("build", "number", "kind", "says"), [c[1:] for c in ONE_DISK], ids=[c[0] for c in ONE_DISK]
)
def test_a_disk_is_told_by_model_and_transport(
    tree: Tree, build: Build, number: str, kind: str | None, says: str
) -> None:
    build(tree)
    tree.mount("/data", "xfs", "/dev/x", number, "rw,noatime", "rw,logbsize=256k,secret=1")
    found = tree.places().of("/data/deep/below")
    assert found["class"] == kind
    assert says in (found["why"] if kind is None else found["backing"])
    assert found["family"] == (mounted.FAMILIES[kind] if kind else None)
    assert (found["fs"], found["mount"]) == ("xfs", "/data")
    assert found["options"] == ["logbsize=256k", "noatime"]
    assert found["counters"] == [number]


def test_native_multipath_of_nvme_takes_the_weakest_path(tree: Tree) -> None:
    above = "devices/virtual/nvme-subsystem/nvme-subsys0"
    tree.write(above, model="Dell PowerMax")
    for name, transport in (("nvme0", "fc"), ("nvme1", "tcp")):
        controller = tree.write(f"devices/virtual/nvme-fabrics/ctl/{name}", transport=transport)
        tree.link(f"{above}/{name}", controller)
    tree.block(f"{above}/nvme0n1", "259:0", device=above)
    tree.mount("/data", "xfs", "/dev/nvme0n1", "259:0")
    found = tree.places().of("/data")
    assert found["class"] == "network_block"
    assert found["backing"].startswith("Dell PowerMax (nvme/")


def test_lvm_over_a_partition(tree: Tree) -> None:
    part = tree.part(tree.nvme(0, "Micron_7450"), "259:1", "nvme0n1p1")
    tree.made_of("dm-0", "253:0", [part], dm__name="vg-data", dm__uuid="LVM-abc")
    tree.mount("/data", "ext4", "/dev/mapper/vg-data", "253:0")
    found = tree.places().of("/data")
    assert (found["class"], found["told"]) == ("local_nvme", "ext4 on vg-data (lvm) on nvme0n1")


def test_encryption_over_raid_of_eight(tree: Tree) -> None:
    disks = [tree.nvme(n, EC2_LOCAL) for n in range(8)]
    array = tree.made_of("md0", "9:0", disks, md__level="raid0")
    tree.made_of("dm-1", "253:1", [array], dm__name="scratch", dm__uuid="CRYPT-LUKS2-x-scratch")
    tree.mount("/scratch", "xfs", "/dev/mapper/scratch", "253:1")
    found = tree.places().of("/scratch")
    assert found["class"] == "local_nvme"
    assert found["backing"] == f"8 x {EC2_LOCAL} (nvme/pcie)"
    assert found["told"].startswith("xfs on scratch (crypt) on md0 (raid0) on nvme0n1, nvme1n1")
    assert found["told"].endswith("and 4 more")


def test_two_kinds_in_one_array_count_as_the_weaker_and_say_so(tree: Tree) -> None:
    disks = [tree.nvme(0, EC2_LOCAL), tree.nvme(1, "Amazon Elastic Block Store")]
    tree.made_of("md0", "9:0", disks, md__level="raid1")
    tree.mount("/data", "xfs", "/dev/md0", "9:0")
    found = tree.places().of("/data")
    assert found["class"] == "network_block"
    assert "the weakest of local_nvme, network_block" in found["told"]
    assert found["backing"] == f"{EC2_LOCAL} (nvme/pcie) + Amazon Elastic Block Store (nvme/pcie)"


def test_one_leg_that_hides_hides_the_whole(tree: Tree) -> None:
    tree.write(VIRTIO, vendor="0x1af4")
    disks = [tree.nvme(0, EC2_LOCAL), tree.block(f"{VIRTIO}/block/vdb", "254:16", device=VIRTIO)]
    tree.made_of("md0", "9:0", disks, md__level="raid0")
    tree.mount("/data", "xfs", "/dev/md0", "9:0")
    found = tree.places().of("/data")
    assert found["class"] is None
    assert "virtio" in found["why"]


def test_multipath_over_iscsi(tree: Tree) -> None:
    legs = [
        tree.scsi(name, number, "NETAPP", "LUN C-Mode", f"devices/platform/host{n}/session{n}/t")
        for n, (name, number) in enumerate([("sda", "8:0"), ("sdb", "8:16")])
    ]
    tree.made_of("dm-2", "253:2", legs, dm__name="mpatha", dm__uuid="mpath-3600")
    tree.mount("/data", "xfs", "/dev/mapper/mpatha", "253:2")
    found = tree.places().of("/data")
    assert (found["class"], found["backing"]) == ("network_block", "2 x NETAPP LUN C-Mode (iscsi)")


def test_devices_that_lie_on_each_other_in_a_ring_end(tree: Tree) -> None:
    one = tree.made_of("dm-0", "253:0", [])
    two = tree.made_of("dm-1", "253:1", [one])
    (one / "slaves" / "dm-1").symlink_to(os.path.relpath(two, one / "slaves"))
    tree.mount("/data", "ext4", "/dev/dm-0", "253:0")
    assert tree.places().of("/data")["class"] is None


def test_a_loop_is_what_its_file_lies_on(tree: Tree, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.touch()
    tree.nvme(0, "nvme_card-pd")
    tree.mount(str(tmp_path), "ext4", "/dev/nvme0n1", "259:0")
    loop = tree.block("devices/virtual/block/loop0", "7:0", loop__backing_file=str(image))
    tree.mount("/data", "ext4", "/dev/loop0", "7:0")
    found = tree.places().of("/data")
    assert (found["class"], found["counters"]) == ("network_block", ["7:0"])
    (loop / "loop" / "backing_file").write_text(f"{image} (deleted)\n")
    assert "cannot be seen from here" in tree.places().of("/data")["why"]


def test_pools_of_several_disks(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tree.nvme(0, "Micron_7450"), tree.nvme(1, "Amazon Elastic Block Store")
    for disk in (one, two):
        tree.link(f"fs/btrfs/1234-abcd/devices/{disk.name}", disk)
    tree.write("fs/btrfs/features", big_metadata="1")
    tree.mount("/b", "btrfs", "/dev/nvme0n1", "0:60")
    tree.mount("/c", "bcachefs", "/dev/nvme0n1:/dev/nvme1n1", "0:61")
    tree.mount("/z", "zfs", "tank/data", "0:62")
    places = tree.places()
    for point in ("/b", "/c"):
        assert places.of(point)["class"] == "network_block", point
        assert places.of(point)["counters"] == ["259:0", "259:8"]
    # A btrfs whose device is not to be seen is not any other one that is.
    tree.mount("/g", "btrfs", "/dev/sdz", "0:63")
    assert tree.places().of("/g")["class"] is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "`zpool` does not tell" in tree.places().of("/z")["why"]
    # A stand-in for ZFS, which is no part of the kernel here: what `zpool list -v -H -P` prints.
    tool = tmp_path / "zpool"
    tool.write_text("#!/bin/sh\nprintf 'tank\\t1T\\n\\t/dev/nvme0n1\\t1T\\n'\n")
    tool.chmod(0o755)
    assert tree.places().of("/z")["class"] == "local_nvme"
    for section, found in (("cache", "local_nvme"), ("spare", "local_nvme"), ("logs", "network_block")):
        rows = f"tank\\t1T\\n\\t/dev/nvme0n1\\t1T\\n{section}\\t-\\n\\t/dev/nvme1n1\\t1T\\n"
        tool.write_text(f"#!/bin/sh\nprintf '{rows}'\n")
        assert tree.places().of("/z")["class"] == found, section


FILE_SYSTEMS: list[tuple[str, str, str, str | None, str]] = [
    ("tmpfs", "tmpfs", "rw", "tmpfs", "memory"),
    ("nfs4", "10.0.0.1:/export", "rw,vers=4.2,proto=rdma", "network_fs", "another computer"),
    ("lustre", "10.0.0.1@o2ib:/scratch", "rw,flock", "network_fs", ""),
    ("cifs", "//server/share", "rw", "network_fs", ""),
    ("ceph", "1.2.3.4:6789:/", "rw", "network_fs", ""),
    ("gpfs", "fs1", "rw", "network_fs", ""),
    ("beegfs", "beegfs_nodev", "rw", "network_fs", ""),
    ("virtiofs", "shared", "rw", "network_fs", "folder of another computer"),
    ("9p", "hostshare", "rw,trans=virtio", "network_fs", "folder of another computer"),
    ("fuse.gcsfuse", "corpus", "ro", "bucket_fuse", "gcsfuse shows a bucket"),
    ("fuse", "mountpoint-s3", "ro", "bucket_fuse", "mountpoint-s3 shows a bucket"),
    ("fuse", "blobfuse2", "rw", "bucket_fuse", ""),
    ("fuse.rclone", "remote:bucket", "rw", "bucket_fuse", ""),
    ("fuse.juicefs", "JuiceFS:myjfs", "rw", "bucket_fuse", ""),
    ("fuse", "JuiceFS:myjfs", "rw", "bucket_fuse", ""),
    ("fuse.s3fs", "s3fs", "rw", "bucket_fuse", ""),
    ("fuse.sshfs", "me@there:/data", "rw", "network_fs", ""),
    ("fuse.mergerfs", "a:b", "rw", None, "no device belongs to"),
    ("fuse", "something", "rw", None, "no device belongs to"),
    ("fuse", r"s3fs\043corpus", "rw", "bucket_fuse", "s3fs shows a bucket"),
    ("overlay", "overlay", "rw,lowerdir=/l,upperdir=/nowhere/u,workdir=/w", None, "cannot be seen from here"),
    (
        "overlay",
        "overlay",
        "rw,lowerdir=/l,upperdir=/var/lib/docker/overlay2/abc/diff,workdir=/w",
        "container_ephemeral",
        "container runtime",
    ),
]


@pytest.mark.parametrize(("fs", "source", "extra", "kind", "says"), FILE_SYSTEMS)
def test_a_file_system_without_disks(
    tree: Tree, fs: str, source: str, extra: str, kind: str | None, says: str
) -> None:
    tree.mount("/x", fs, source, "0:70", "rw", extra)
    found = tree.places().of("/x")
    assert found["class"] == kind
    assert says in (found["told"] or found["why"])
    assert found["read_only"] == extra.startswith("ro")


def test_names_and_passwords_in_a_source_are_not_kept(tree: Tree) -> None:
    tree.mount("/x", "davfs", "https://me:canary@server/dav", "0:70")
    assert tree.places().of("/x")["device"] == "https://***@server/dav"


def test_a_container(tree: Tree) -> None:
    """The root is the container's own; a volume of the runtime is a folder on the machine's disk."""
    part = tree.part(tree.nvme(0, "Amazon Elastic Block Store"), "259:1", "nvme0n1p1")
    extra = "rw,lowerdir=/var/lib/docker/overlay2/l/A,upperdir=/var/lib/docker/overlay2/x/diff,workdir=/w"
    tree.mount("/", "overlay", "overlay", "0:55", "rw", extra)
    tree.mount("/volume", "ext4", "/dev/nvme0n1p1", "259:1")
    places = tree.places()
    assert places.of("/root/x")["class"] == "container_ephemeral"
    volume = places.of("/volume")
    assert (volume["class"], volume["counters"], volume["disks"]) == ("network_block", ["259:1"], ["259:0"])
    assert part.name == "nvme0n1p1"
    tree.mount("/", "overlay", "overlay", "0:56", "rw", "rw,lowerdir=/l,upperdir=/anywhere/u,workdir=/w")
    assert tree.places().of("/")["class"] == "container_ephemeral", "whoever made it"


def test_a_sandbox_without_sysfs(tmp_path: Path) -> None:
    """As gVisor shows it: 9p over a descriptor, no block devices."""
    tree = Tree(tmp_path)
    for path in ("dev/block", "dev"):
        (tree.sys / path).rmdir()
    fd = "rw,trans=fd,rfdno=4,wfdno=4,aname=/,dcache=1000"
    tree.mount("/", "9p", "none", "0:20", "rw", fd)
    tree.mount("/vol", "9p", "none", "0:21", "rw", fd)
    tree.mount("/scratch", "ext4", "/dev/sda", "8:0")
    tree.mount("/dev/shm", "tmpfs", "none", "0:22")
    places = tree.places()
    assert places.of("/root")["class"] == "container_ephemeral"
    assert (places.of("/vol")["class"], places.of("/scratch")["class"]) == (None, None)
    assert "hides" in places.of("/vol")["why"]
    assert "no sysfs" in places.of("/scratch")["why"]
    assert places.of("/dev/shm/x")["class"] == "tmpfs"


def test_nothing_is_there_to_read(tmp_path: Path) -> None:
    found = mounted.Places(str(tmp_path / "none"), str(tmp_path)).of("/")
    assert (found["class"], found["fs"], found["why"]) == (None, None, "there is no mount table here")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads what nobody may")
def test_an_unreadable_sysfs(tree: Tree) -> None:
    tree.nvme(0, "Micron_7450")
    tree.mount("/data", "ext4", "/dev/nvme0n1", "259:0")
    (tree.sys / "dev" / "block").chmod(0)
    try:
        assert tree.places().of("/data")["class"] is None
    finally:
        (tree.sys / "dev" / "block").chmod(0o755)


def test_what_mount_prints_on_macos() -> None:
    said = (
        "/dev/disk3s1s1 on / (apfs, sealed, local, read-only, journaled)\n"
        "/dev/disk3s5 on /System/Volumes/Data (apfs, local, journaled, nobrowse)\n"
        "me@server:/data on /Volumes/my data (nfs, nodev)\n"
        "mountpoint-s3 on /Users/me/mnt (macfuse, nodev, nosuid, mounted by me)\n"
    )
    places = mounted.Places(mountinfo="/nonexistent")
    places.linux, places.mounts = False, mounted.table(said)
    assert places.of("/Volumes/my data/x")["class"] == "network_fs"
    assert places.of("/Users/me/mnt")["class"] == "bucket_fuse"
    root = places.of("/")
    assert (root["fs"], root["read_only"], root["class"], root["why"]) == (
        "apfs",
        True,
        None,
        mounted.MAC_WHY,
    )


def test_counters_of_a_device(tree: Tree) -> None:
    disk = tree.nvme(0, "Micron_7450")
    tree.mount("/data", "ext4", "/dev/nvme0n1", "259:0")
    place = tree.places().of("/data")
    first = transfer.counter(place, sys=str(tree.sys))
    assert first == {"scope": "device", "counter": "259:0", "read": 8 * 512, "written": 16 * 512}
    (disk / "stat").write_text("1 0 18 1 2 0 116 1 0 1 2\n")
    count, why = transfer.between(first, transfer.counter(place, sys=str(tree.sys)))
    assert count
    assert (count["read"], count["written"], why) == (5120, 51200, "")
    (disk / "stat").write_text("0 0 0 0 0 0 0 0 0 0 0\n")
    assert transfer.between(first, transfer.counter(place, sys=str(tree.sys)))[0] is None
    (disk / "stat").unlink()
    assert transfer.between(first, transfer.counter(place, sys=str(tree.sys)))[0] is None


def test_counters_of_nfs_lustre_and_a_group(tree: Tree, tmp_path: Path) -> None:
    tree.mount("/n", "nfs4", "server:/e", "0:70")
    tree.mount("/l", "lustre", "10.0.0.1@o2ib:/scratch", "0:71")
    tree.mount("/x", "tmpfs", "x", "0:72")
    stats = tmp_path / "mountstats"
    stats.write_text(
        "device proc mounted on /proc with fstype proc\n"
        "device server:/e mounted on /n with fstype nfs4 statvers=1.1\n"
        "\topts:\trw,vers=4.2\n"
        "\tbytes:\t11 22 33 44 555 666 7 8\n"
    )
    tree.write(
        "kernel/debug/lustre/llite/scratch-ffff8881",
        stats="snapshot_time 1 secs.usecs\nread_bytes 2 samples [bytes] 1 4096 777\n"
        "write_bytes 1 samples [bytes] 1 1 888",
    )
    places = tree.places()
    count = [transfer.counter(places.of(p), str(stats), str(tree.sys)) for p in ("/n", "/l", "/x")]
    assert count[0] == {"scope": "mount", "counter": "/n", "read": 555, "written": 666}
    assert count[1] == {"scope": "mount", "counter": "scratch", "read": 777, "written": 888}
    assert count[2] is None
    place = dict(places.of("/x"), disks=["259:0"])
    assert transfer.of_group({"8:0": [1, 2]}, place) is None
    assert transfer.of_group({"259:0": [1, 2]}, place) == {
        "scope": "cgroup", "counter": "259:0", "read": 1, "written": 2
    }  # fmt: skip


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the mount table of Linux")
def test_this_machine_says_something_of_every_mount() -> None:
    places = mounted.Places()
    assert places.mounts
    for point in places.mounts:
        found = places._look(places.mounts[point])
        assert (found["class"] is None) == bool(found["why"]), point


def test_the_count_of_a_group(tmp_path: Path) -> None:
    """As cgroup v2 writes it; the groups of the machine itself need not count."""
    (tmp_path / "io.stat").write_text(
        "259:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n8:0 \n253:1 rbytes=x wbytes=1\n"
    )
    attempt: Any = None
    assert cgroup.io(attempt, str(tmp_path)) == {"259:0": [4096, 8192]}
    assert cgroup.io(attempt, str(tmp_path / "none")) is None
