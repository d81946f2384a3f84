"""Proves that what is said of a run is true: reboots, reused pids, other machines, full disks, bad files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from supervisor_driver import BUNDLE, DIGEST, Fault, Link, Place, holders, kill, shell, spec

from compute_router.supervisor import machine
from compute_router.supervisor.boot import BOOT


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


def stop_all(place: Place, run_id: str) -> None:
    """End waiter, watcher and work as a power cut would: none of them writes another byte."""
    attempt = place.attempt(run_id)
    # Those that see others die may write of it: all are stopped before any is killed.
    while pids := set(holders(attempt, "sup.lock") + holders(attempt, "watch.lock")):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        kill(list(pids))
        time.sleep(0.02)
    kill([int(place.read(run_id, "exec.json")["pid"])])
    time.sleep(0.1)


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_another_boot_means_rebooted(place: Place) -> None:
    link = place.link()
    run_id = place.submit(link, shell("sleep 60", leases=["one"]))
    link.start(run_id)
    stop_all(place, run_id)
    rewrite(place.attempt(run_id) / "started.json", boot_id="another-boot")
    status = link.status(run_id)
    assert (status["state"], status["reason"]) == ("lost", "rebooted")
    assert link.start(run_id) == status
    with pytest.raises(Fault, match="ATTEMPT"):
        link.start(run_id, attempt=2)
    link.ask("manifest", run_id=run_id)
    measured = place.read(run_id, "measured.json")
    assert measured["outcome"]["state"] == "lost"
    assert measured["timing"]["run_us"]["v"] is None
    assert measured["timing"]["run_us"]["why"]


def test_an_outcome_on_disk_outlives_a_reboot(place: Place) -> None:
    """The waiter wrote the reserve and died before the link: the outcome is still the work's own."""
    link = place.link()
    run_id = place.submit(link, shell("exit 3"))
    link.start(run_id)
    status, _, _ = link.follow(run_id)
    link.ask("manifest", run_id=run_id)
    attempt = place.attempt(run_id)
    (attempt / "exit.json").unlink()
    rewrite(attempt / "started.json", boot_id="another-boot")
    assert link.status(run_id) == status
    assert json.loads((attempt / "exit.json").read_text())["exit_code"] == 3


@pytest.mark.parametrize("kept", [0, 1, 50, 4095])
def test_half_a_record_in_the_reserve_is_none(place: Place, kept: int) -> None:
    link = place.link()
    run_id = place.submit(link, shell("exit 3"))
    link.start(run_id)
    link.follow(run_id)
    link.ask("manifest", run_id=run_id)
    attempt = place.attempt(run_id)
    data = (attempt / "exit.reserve").read_bytes()
    (attempt / "exit.json").unlink()
    (attempt / "exit.reserve").write_bytes(data[:kept].ljust(4096, b"\0"))
    status = link.status(run_id)
    assert (status["state"], status["reason"]) == ("lost", "waiter_died")


def test_a_boot_id_that_really_differs(place: Place, tmp_path: Path) -> None:
    """A server that sees another boot id (bind mount in its own mount namespace) says rebooted."""
    link = place.link()
    run_id = place.submit(link, shell("sleep 60"))
    link.start(run_id)
    stop_all(place, run_id)
    (tmp_path / "boot").write_text("00000000-1111-2222-3333-444444444444\n")
    script = f'mount --bind {tmp_path}/boot {machine.BOOT_ID} && exec "$@"'
    argv = ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-I", "-S", "-c", BOOT]
    hello = {"route": 1, "nonce": "c" * 32, "root": str(place.root), "digest": DIGEST}
    ask = {"op": "status", "run_ids": [run_id]}
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    out = subprocess.run(
        argv, input=f"{json.dumps(hello)}\n{json.dumps(ask)}\n".encode(), capture_output=True, timeout=30
    )
    if out.returncode and b"c" * 32 not in out.stdout:
        pytest.skip(f"no mount namespace of our own here: {out.stderr.decode()[:100]}")
    reply = json.loads(out.stdout.splitlines()[-1])
    assert (reply["statuses"][run_id]["state"], reply["statuses"][run_id]["reason"]) == ("lost", "rebooted")


def test_a_committed_run_survives_a_reboot_whole(place: Place) -> None:
    """Work that was not synced is made again from its blobs, which were."""
    files = {"say.py": b"print('whole')"}
    link = place.link()
    run_id = place.submit(link, spec(["{python}", "say.py"], files=files), files=files)
    folder = place.root / "runs" / run_id
    (folder / "work" / "say.py").write_bytes(b"")
    rewrite(folder / "committed.json", boot_id="another-boot")
    link.start(run_id)
    assert link.follow(run_id)[1] == b"whole\n"


def test_another_machine_is_told(place: Place) -> None:
    if not machine.machine_id():
        pytest.skip("this machine has no id")
    link = place.link()
    run_id = place.submit(link, shell("sleep 60"))
    link.start(run_id)
    stop_all(place, run_id)
    rewrite(place.attempt(run_id) / "started.json", machine_id="f" * 32)
    with pytest.raises(Fault, match="ELSEWHERE"):
        link.status(run_id)
    assert not (place.attempt(run_id) / "exit.json").exists(), "and nothing was concluded"
    (entry,) = link.ask("list")["runs"]
    assert entry["state"] == "unknown"


def test_a_reused_pid_is_not_the_work(place: Place) -> None:
    link = place.link()
    run_id = place.submit(link, shell("sleep 60"))
    link.start(run_id)
    stop_all(place, run_id)
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        rewrite(place.attempt(run_id) / "exec.json", pid=stranger.pid)
        status = link.status(run_id)
        assert (status["state"], status["reason"]) == ("lost", "waiter_died")
        assert stranger.poll() is None, "and it was not killed for it"
    finally:
        stranger.kill()
        stranger.wait()


def test_start_times_name_a_process() -> None:
    me = machine.process(os.getpid())
    assert me is not None
    assert machine.alive(me.pid, me.start)
    assert not machine.alive(me.pid, me.start + 1)
    assert not machine.alive(None, 1)
    dead = subprocess.Popen(["true"])
    time.sleep(0.1)
    zombie = machine.process(dead.pid)
    assert zombie is not None
    assert zombie.state == "Z"
    assert not machine.alive(dead.pid, zombie.start), "one that is not waited for has ended"
    dead.wait()
    assert machine.process(dead.pid) is None


def test_a_name_with_brackets_and_spaces(tmp_path: Path) -> None:
    tool = tmp_path / "a) S 1 (b"
    shutil.copy("/bin/sleep", tool)
    process = subprocess.Popen([str(tool), "30"])
    try:
        until = time.monotonic() + 5
        while time.monotonic() < until:
            found = machine.process(process.pid)
            comm = Path(f"/proc/{process.pid}/comm").read_text().strip()
            if comm == tool.name:
                break
        assert found is not None
        assert found.parent == os.getpid()
    finally:
        process.kill()
        process.wait()


MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /home rw - nfs4 server:/export/home rw,vers=4.2
31 30 8:17 / /home/me/local\\040disk rw - xfs /dev/sdb1 rw
32 22 0:41 / /mnt/s rw master:2 - fuse.sshfs me@there:/ rw
33 22 0:42 / /data rw - lustre 10.0.0.1@tcp:/fs rw
34 33 8:33 / /data/scratch rw - ext4 /dev/sdc1 rw
35 22 8:34 / /over rw - ext4 /dev/sdd1 rw
36 35 0:50 / /over rw - cifs //server/share rw
nonsense
37 22 0:51 / /tmp rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("path", "fs", "network"),
    [
        ("/var/tmp/route", "ext4", False),
        ("/home/me/route", "nfs4", True),
        ("/home/me/local disk/route", "xfs", False),
        ("/home/me/local disk 2", "nfs4", True),
        ("/mnt/s/x", "fuse.sshfs", True),
        ("/data/x", "lustre", True),
        ("/data/scratch/x", "ext4", False),
        ("/over/x", "cifs", True),
        ("/tmp/x", "tmpfs", False),
        ("/homely", "ext4", False),
    ],
)
def test_the_mount_of_a_root(tmp_path: Path, path: str, fs: str, network: bool) -> None:
    (tmp_path / "mountinfo").write_text(MOUNTS)
    mount = machine.mount_of(path, machine.mounts(str(tmp_path / "mountinfo")))
    assert mount is not None
    assert (mount.fs, machine.is_network(mount.fs)) == (fs, network)


def test_a_root_on_a_network_is_refused(tmp_path: Path) -> None:
    """The server itself, with a mount table (bind mounted over /proc) that calls its root a network."""
    (tmp_path / "mountinfo").write_text("1 0 0:40 / / rw - nfs4 server:/ rw\n")
    hello = json.dumps({"route": 1, "nonce": "d" * 32, "root": str(tmp_path / "root"), "digest": DIGEST})
    script = f'mount --bind {tmp_path}/mountinfo /proc/$$/mountinfo && exec "$@"'
    argv = ["unshare", "-m", "sh", "-c", script, "sh", sys.executable, "-I", "-S", "-c", BOOT]
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    size = json.dumps({"size": len(BUNDLE)})
    out = subprocess.run(argv, input=f"{hello}\n{size}\n".encode() + BUNDLE, capture_output=True, timeout=30)
    if b"d" * 32 not in out.stdout:
        pytest.skip(f"no mount namespace of our own here: {out.stderr.decode()[:100]}")
    greeting = json.loads(out.stdout.splitlines()[-1].partition(b" ")[2])
    assert greeting["error"]["code"] == "NETWORK_ROOT"
    assert greeting["error"]["mend"]


def tmpfs(folder: Path, size: str) -> None:
    """Mount a small file system; skips the test where that is not allowed."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True
    )
    if done.returncode:
        pytest.skip(f"no mount of our own here: {done.stderr.decode().strip()[:100]}")


def test_the_outcome_survives_a_full_disk(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    tmpfs(folder, "2m")
    place = Place(folder)
    place.env["ROUTE_LEASE_DIR"] = str(tmp_path / "leases")
    try:
        link = place.link()
        fill = "dd if=/dev/zero of=$ROUTE_OUTPUTS/"
        run_id = place.submit(link, shell(f"{fill}fill bs=4096; {fill}rest bs=1; exit 6"))
        link.start(run_id)
        status, _, _ = link.follow(run_id)
        disk = os.statvfs(folder)
        assert disk.f_bavail == 0, "it really was full"
        assert (status["state"], status["exit_code"]) == ("failed", 6)
        other = shell("true")
        with pytest.raises(Fault, match="NO_SPACE"):
            link.commit(other)
        assert sorted(p.name for p in (place.root / "runs").iterdir()) == [run_id], "nothing half is visible"
        for path in (place.attempt(run_id) / "outputs").iterdir():
            path.unlink()
        again = place.submit(link, shell(f"{fill}fill bs=4096; {fill}rest bs=1; sleep 60", grace_us=200_000))
        link.start(again)
        until = time.monotonic() + 10
        while os.statvfs(folder).f_bavail and time.monotonic() < until:
            time.sleep(0.02)
        link.ask("cancel", run_id=again)
        ended, _, _ = link.follow(again)
        assert (ended["state"], ended["reason"]) == ("cancelled", "cancel"), "full is when one cancels"
        for path in (place.attempt(again) / "outputs").iterdir():
            path.unlink()
        assert link.status(run_id) == status
        link.ask("manifest", run_id=run_id)
        place.submit(link, other)
        link.start(other["run_id"])
        assert link.follow(other["run_id"])[0]["state"] == "succeeded", "room again, and it goes on"
    finally:
        place.close()
        time.sleep(0.1)
        subprocess.run(["umount", "-l", str(folder)], check=False)


def test_a_damaged_record_is_named(place: Place) -> None:
    link = place.link()
    run_id = place.submit(link, shell("true"))
    link.start(run_id)
    status, _, _ = link.follow(run_id)
    link.ask("manifest", run_id=run_id)
    exit_json = place.attempt(run_id) / "exit.json"
    whole = exit_json.read_bytes()
    for damaged in (b"", b"{", b"[]", b"\xff\xfe", whole[:60], b'{"state":"running"}', b"[" * 100_000):
        exit_json.unlink()
        exit_json.write_bytes(damaged)
        with pytest.raises(Fault, match="DAMAGED"):
            link.status(run_id)
    exit_json.unlink()
    exit_json.write_bytes(whole)
    assert link.status(run_id) == status


def test_a_stream_of_pure_json_outlives_odd_files(place: Place) -> None:
    """Folders and files that are none of ours, in places of ours, are passed by."""
    link = place.link()
    run_id = place.submit(link, shell("true"))
    (place.root / "runs" / ("x" * 26)).mkdir()
    (place.root / "runs" / "README").write_text("?")
    (place.root / "runs" / run_id / "attempts" / "01").mkdir()
    (place.root / "runs" / run_id / "attempts" / "notes").touch()
    assert [r["run_id"] for r in link.ask("list")["runs"]] == [run_id]
    link.start(run_id)
    assert link.follow(run_id)[0]["attempt"] == 1
    assert isinstance(link, Link)
