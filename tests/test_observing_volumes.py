"""Proves on real mounts and runs what is said of storage and volumes, and that a bad volume stops a start."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from supervisor_driver import Fault, Place, shell

from compute_router.supervisor.observing import contents, mounted

ROOT = os.geteuid() == 0


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


def measured(place: Place, script: str, volumes: dict[str, str], **more: Any) -> dict[str, Any]:
    """The measured block of a run of `script`."""
    link = place.link()
    run_id = place.submit(link, shell(script, volumes=volumes, **more))
    link.start(run_id)
    assert link.follow(run_id)[0]["state"] == "succeeded"
    link.ask("manifest", run_id=run_id)
    return place.read(run_id, "measured.json")


def by_role(items: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {item["role"]: item for item in items}


def events(item: dict[str, Any]) -> list[str]:
    return [event["v"] for event in item["event"]]


# Receipts of real runs


def test_two_runs_share_a_volume(place: Place) -> None:
    """Created, reused, grown, refreshed: only what was seen to happen, and the listing of before is the
    one of after the run before."""
    both = {"data": "d", "compile-cache": "c"}
    first = by_role(measured(place, "echo one > $ROUTE_VOLUME_DATA/one", both)["volumes"])
    grown = by_role(measured(place, "echo two > $ROUTE_VOLUME_DATA/two", both)["volumes"])
    rest = by_role(measured(place, "cat $ROUTE_VOLUME_DATA/one", both)["volumes"])
    script = "echo new > $ROUTE_VOLUME_DATA/x; mv $ROUTE_VOLUME_DATA/x $ROUTE_VOLUME_DATA/one"
    changed = by_role(measured(place, script, both)["volumes"])
    less = by_role(measured(place, "rm $ROUTE_VOLUME_DATA/two", both)["volumes"])
    told = [run["data"] for run in (first, grown, rest, changed, less)]
    assert [events(item) for item in told] == [
        ["created"], ["reused"], ["reused"], ["reused", "refreshed"], ["reused", "refreshed"]
    ]  # fmt: skip
    before = [item["manifest_before"]["v"] for item in told]
    after = [item["manifest_after"]["v"] for item in told]
    assert before[1:] == after[:-1]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False, True, False, False]
    assert [item["committed"]["v"] for item in told] == [True] * 5
    assert events(changed["compile-cache"]) == ["reused"]


def test_a_volume_that_the_work_removes_is_not_committed(place: Place) -> None:
    (item,) = measured(place, "rm -r $ROUTE_VOLUME_DATA", {"data": "d"})["volumes"]
    assert (events(item), item["committed"]["v"]) == (["created", "deleted"], False)


def test_every_role_is_told_with_what_was_read_and_written(place: Place, tmp_path: Path) -> None:
    tmp = tmp_path / "tmp"
    tmp.mkdir()
    # It goes on until the watcher has taken a sample, which it does not of what is over at once.
    script = (
        "head -c 3000000 /dev/zero > $ROUTE_VOLUME_DATA/f; sync $ROUTE_VOLUME_DATA/f; "
        "while ! test -s ${ROUTE_METRICS%/*}/samples.jsonl; do sleep 0.02; done"
    )
    block = measured(place, script, {"data": "d"}, env={"TMPDIR": str(tmp)})
    roles = by_role(block["storage"])
    assert set(roles) == {"root", "checkpoints", "data", "tmp"}
    here = mounted.Places().of(str(place.root))
    for role in ("root", "data"):
        item = roles[role]
        assert [item[n]["v"] for n in ("class", "fs", "mount")] == [here[n] for n in ("class", "fs", "mount")]
        assert item["class"].get("why", "") == here["why"]
        assert item["free_bytes_start"]["v"] > 0
        assert item["free_bytes_min"]["v"] <= item["free_bytes_end"]["v"]
        assert item["class"].get("at", 0) <= item["free_bytes_end"]["at"]
    if here["counters"]:
        assert roles["data"]["bytes_written"]["v"] >= 3_000_000
        assert roles["data"]["bytes_scope"]["v"] in ("device", "cgroup")
        assert roles["data"]["counter"] == roles["root"]["counter"], "one disk, one count"
    else:
        assert roles["data"]["bytes_written"]["why"]


def test_nothing_of_a_secret_is_kept(place: Place, tmp_path: Path) -> None:
    """Even where somebody passes the temporary folder as a secret."""
    hidden = tmp_path / "canary-folder"
    hidden.mkdir()
    link = place.link()
    run_id = place.submit(link, shell("true", secrets=["TMPDIR"]))
    link.start(run_id, secrets={"TMPDIR": str(hidden)})
    link.follow(run_id)
    link.ask("manifest", run_id=run_id)
    for name in ("before.json", "measured.json"):
        assert "canary-folder" not in (place.attempt(run_id) / name).read_text()


# Bounds of the listing


def test_a_listing_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(300):
        (tmp_path / f"f{number}").touch()
    whole = contents.listed(str(tmp_path), contents.Budget(10**9))
    assert (len(whole["digest"]), whole["names"]) == (64, 300)
    spent = contents.listed(str(tmp_path), contents.Budget(0))
    assert (spent["digest"], "takes more than" in spent["why"]) == (None, True)
    monkeypatch.setattr(contents, "MOST_NAMES", 299)
    many = contents.listed(str(tmp_path), contents.Budget(10**9))
    assert (many["digest"], many["why"]) == (None, "it holds more than 299 names")


def test_a_listing_follows_no_link_and_leaves_our_stamps_out(tmp_path: Path) -> None:
    volume = tmp_path / "v"
    volume.mkdir()
    (volume / "up").symlink_to(tmp_path)
    before = contents.listed(str(volume), contents.Budget(10**9))
    assert before["names"] == 1
    (volume / ".route").mkdir()
    (volume / ".route" / "key.json").write_text("{}")
    assert contents.listed(str(volume), contents.Budget(10**9))["digest"] == before["digest"]


# Volumes that cannot be used


def start(place: Place, volumes: dict[str, str], **more: Any) -> dict[str, Any]:
    """The error of a start; nothing may have been started, and no lease taken."""
    link = place.link()
    run_id = place.submit(link, shell("true", volumes=volumes, leases=["machine"], **more))
    with pytest.raises(Fault) as caught:
        link.start(run_id)
    assert not (place.attempt(run_id) / "started.json").exists()
    assert link.status(run_id)["state"] == "committed"
    assert link.ask("probe", keys=[])["leases"] == []
    return caught.value.error


def test_a_file_in_the_place_of_a_volume(place: Place) -> None:
    place.link()
    folder = place.root / "volumes" / "compile-cache"
    folder.mkdir(parents=True)
    (folder / "c").write_text("a file")
    error = start(place, {"compile-cache": "c"})
    assert (error["code"], "is no folder" in error["what"], error["mend"]) == (
        "PREFLIGHT",
        True,
        "move it away",
    )
    (folder / "dangling").symlink_to("nowhere")
    assert "leads nowhere" in start(place, {"compile-cache": "dangling"})["what"]


@pytest.mark.skipif(ROOT, reason="root may write anywhere")
def test_a_volume_of_somebody_else(place: Place) -> None:
    place.link()
    folder = place.root / "volumes" / "checkpoints" / "c"
    folder.mkdir(parents=True)
    folder.chmod(0o555)
    error = start(place, {"checkpoints": "c"})
    folder.chmod(0o755)
    assert error["code"] == "PREFLIGHT"
    assert "mode 555" in error["mend"]


def test_too_little_room_for_the_compile_cache(place: Place) -> None:
    error = start(place, {"compile-cache": "c"}, observe={"sample_us": 10**7, "cache_free_bytes": 1 << 50})
    assert error["code"] == "NO_SPACE"
    assert "volume compile-cache:" in error["what"]
    measured(place, "true", {"compile-cache": "c"}, observe={"sample_us": 10**7, "cache_free_bytes": 0})


IN_MOUNTS = """
import json, os, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from supervisor_driver import Fault, Place, shell
from compute_router.supervisor.observing import mounted
folder = Path({folder!r})
said = {{}}
def start(name, volumes, **more):
    place = Place(folder)
    link = place.link()
    run_id = place.submit(link, shell(more.pop("script", "true"), volumes=volumes, **more))
    try:
        link.start(run_id)
        state = link.follow(run_id)[0]["state"]
        link.ask("manifest", run_id=run_id)
        said[name] = [state, place.read(run_id, "measured.json")]
    except Fault as e:
        said[name] = [e.error["code"], e.error["what"], e.error["mend"]]
    place.close()
{body}
print(json.dumps(said))
"""


def in_mounts(tmp_path: Path, shell_lines: str, body: str) -> dict[str, Any]:
    """Run `body` in a mount namespace of its own, after `shell_lines`; skips where that is not allowed."""
    if shutil.which("unshare") is None or not sys.platform.startswith("linux"):
        pytest.skip("no unshare")
    own = ["unshare", "-m"] if ROOT else ["unshare", "-rm"]
    program = tmp_path / "body.py"
    program.write_text(IN_MOUNTS.format(tests=str(Path(__file__).parent), folder=str(tmp_path), body=body))
    script = f"set -e\ncd {tmp_path}\n{shell_lines}"
    tried = subprocess.run([*own, "sh", "-c", script], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"such a mount is not allowed here: {tried.stderr[-200:]}")
    return _run([*own, "sh", "-c", f"{script}\nexec {sys.executable} {program}"])


def _run(argv: list[str]) -> dict[str, Any]:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


VOLUMES = "mkdir -p root/volumes/compile-cache/c root/volumes/data/d; chmod 700 root\n"


def test_full_read_only_and_out_of_inodes(tmp_path: Path) -> None:
    lines = VOLUMES + (
        "mkdir -p root/volumes/compile-cache/i root/volumes/compile-cache/r root/volumes/home/f\n"
        "mount -t tmpfs -o size=64k none root/volumes/home/f\n"
        "head -c 65536 /dev/zero > root/volumes/home/f/fill || true\n"
        "mount -t tmpfs -o nr_inodes=20 none root/volumes/compile-cache/i\n"
        "mount -t tmpfs none root/volumes/compile-cache/r; mount -o remount,ro root/volumes/compile-cache/r\n"
        "mount -t tmpfs none root/volumes/data/d; echo 1 > root/volumes/data/d/x\n"
        "mount -o remount,ro root/volumes/data/d\n"
    )
    body = (
        'start("full", {"home": "f"})\nstart("inodes", {"compile-cache": "i"})\n'
        'start("ro", {"compile-cache": "r"})\nstart("data", {"data": "d"})'
    )
    said = in_mounts(tmp_path, lines, body)
    assert said["full"][0] == "NO_SPACE"
    assert "no space is left" in said["full"][1]
    assert said["inodes"][0] == "NO_SPACE"
    assert "more files" in said["inodes"][1]
    assert said["ro"][0] == "PREFLIGHT"
    assert "ead-only" in said["ro"][1]
    assert said["data"][0] == "succeeded", "data is there to be read"
    (volume,) = said["data"][1]["volumes"]
    assert (events(volume), volume["committed"]["v"]) == (["reused"], True)
    item = by_role(said["data"][1]["storage"])["data"]
    assert (item["class"]["v"], item["read_only"]["v"]) == ("tmpfs", True)
    assert item["bytes_written"]["why"].startswith("nothing counts")


def test_a_disk_that_turns_read_only_has_not_committed(tmp_path: Path) -> None:
    if not ROOT:
        pytest.skip("the work has to remount, which takes root")
    lines = VOLUMES + "mount -t tmpfs none root/volumes/data/d\n"
    script = "echo 1 > $ROUTE_VOLUME_DATA/x; mount -o remount,ro $ROUTE_VOLUME_DATA"
    said = in_mounts(tmp_path, lines, f'start("ro", {{"data": "d"}}, script="{script}")')
    (volume,) = said["ro"][1]["volumes"]
    assert said["ro"][0] == "succeeded"
    assert (events(volume), volume["committed"]["v"]) == (["created", "commit_failed"], False)


# Real mounts


def test_real_mounts_of_memory_overlay_and_bind(tmp_path: Path) -> None:
    lines = (
        "mkdir -p m l o b; mount -t tmpfs none m; mkdir -p m/u m/w\n"
        "mount -t overlay -o lowerdir=$PWD/l,upperdir=$PWD/m/u,workdir=$PWD/m/w none o\n"
        "mount --bind m b\n"
    )
    body = (
        "p = mounted.Places()\n"
        'for n in "mob": said[n] = p.of(str(folder / n / "deep"))\n'
        'said["x"] = p.of(str(folder)); said["y"] = p.of("/")'
    )
    said = in_mounts(tmp_path, lines, body)
    assert [said[n]["class"] for n in "mob"] == ["tmpfs"] * 3
    assert said["o"]["told"] == "an overlay over tmpfs is memory"
    assert said["b"]["mount"] == str(tmp_path / "b")


def test_a_real_image_through_loop_and_device_mapper(tmp_path: Path) -> None:
    """ext4 in a file, on a loop device, below a linear mapping: the class of what the file lies on."""
    if not ROOT or shutil.which("mkfs.ext4") is None or shutil.which("losetup") is None:
        pytest.skip("takes root, mkfs.ext4 and losetup")
    loop = ""
    name = f"route-test-{os.getpid()}"
    try:
        image = tmp_path / "image"
        with image.open("wb") as f:
            f.truncate(32 << 20)
        made = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"no loop device: {made.stderr.strip()}")
        loop = made.stdout.strip()
        subprocess.run(["mkfs.ext4", "-q", "-F", loop], check=True)
        under = mounted.Places().of(str(tmp_path))
        body = 'said["p"] = mounted.Places().of(str(folder / "mnt" / "x"))'
        found = in_mounts(tmp_path, f"mkdir -p mnt; mount {loop} mnt\n", body)["p"]
        assert (found["fs"], found["class"]) == ("ext4", under["class"])
        assert found["told"] == f"ext4 on {os.path.basename(loop)}"
        assert (not found["why"]) or found["why"].startswith("the file behind")
        table = f"0 65536 linear {loop} 0"
        mapped = subprocess.run(["dmsetup", "create", name, "--table", table], capture_output=True, text=True)
        if mapped.returncode:
            pytest.skip(f"the rest needs a device mapper: {mapped.stderr.strip()[:80]}")
        found = in_mounts(tmp_path, f"mkdir -p mnt; mount /dev/mapper/{name} mnt\n", body)["p"]
        assert found["told"] == f"ext4 on {name} on {os.path.basename(loop)}"
        assert found["class"] == under["class"]
    finally:
        if shutil.which("dmsetup"):
            subprocess.run(["dmsetup", "remove", name], capture_output=True)
        if loop:
            subprocess.run(["losetup", "-d", loop], capture_output=True)


@pytest.mark.parametrize(("source", "kind"), [("corpus", "fuse.gcsfuse"), ("mountpoint-s3", "fuse")])
def test_a_real_fuse_mount_that_shows_a_bucket(tmp_path: Path, source: str, kind: str) -> None:
    """The kernel's FUSE is real; the program behind it is a stand-in with one empty folder."""
    if not ROOT or shutil.which("unshare") is None:
        pytest.skip("mounting FUSE without its helper takes root and unshare")
    server = Path(__file__).parent / "fuse_standin.py"
    said = _run(["unshare", "-m", sys.executable, str(server), str(tmp_path), source, kind])
    if "skip" in said:
        pytest.skip(f"no FUSE here: {said['skip']}")
    assert (said["p"]["class"], said["p"]["fs"], said["p"]["device"]) == ("bucket_fuse", kind, source)
    assert said["free"] == 500, "the mount really answers"


def test_a_place_that_never_answers_costs_what_is_seen_of_it_alone(place: Place, tmp_path: Path) -> None:
    """`TMPDIR` lies on a file system whose program hangs when it is asked what is free."""
    if not ROOT:
        pytest.skip("mounting FUSE without its helper takes root")
    point, link = tmp_path / "silent", tmp_path / "link"
    point.mkdir()
    link.symlink_to(point)
    words = [
        sys.executable,
        str(Path(__file__).parent / "fuse_standin.py"),
        str(point),
        "peer:/x",
        "fuse.sshfs",
    ]
    server = subprocess.Popen([*words, "silent"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        said = server.stdout.readline().strip()
        if said != "mounted":
            pytest.skip(f"no FUSE here: {said}")
        roles = by_role(measured(place, "true", {"data": "d"}, env={"TMPDIR": str(link)})["storage"])
        assert roles["tmp"]["class"]["v"] is None
        assert "no answer within 2 seconds" in roles["tmp"]["class"]["why"]
        assert (roles["tmp"]["fs"]["v"], roles["tmp"]["mount"]["v"]) == ("fuse.sshfs", str(point))
        assert "no answer" in roles["tmp"]["free_bytes_start"]["why"]
        assert "no answer" in roles["tmp"]["free_bytes_end"]["why"]
        for role in ("root", "checkpoints", "data"):
            assert roles[role]["free_bytes_start"]["v"] > 0
            assert roles[role]["free_bytes_end"]["v"] > 0
    finally:
        server.stdin.close()
        server.wait(20)
        subprocess.run(["umount", "-l", str(point)], capture_output=True)
