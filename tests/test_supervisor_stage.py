"""Proves that what comes in and what goes out cannot leave its folder, and that uploads resume by digest."""

from __future__ import annotations

import hashlib
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from supervisor_driver import Fault, Link, Place, shell, spec

from compute_router.records import canonical

SEED = int(os.environ.get("ROUTE_SEED", "1234"))
EMPTY = hashlib.sha256(b"").hexdigest()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


def prepare(link: Link, made: dict[str, Any], blobs: list[tuple[str, int]]) -> dict[str, Any]:
    digest = hashlib.sha256(canonical(made)).hexdigest()
    return link.ask("prepare", run_id=made["run_id"], spec_sha256=digest, blobs=[list(b) for b in blobs])


def test_an_upload_goes_on_where_it_broke_off(place: Place) -> None:
    data = random.Random(SEED).randbytes(1_500_000)
    digest = hashlib.sha256(data).hexdigest()
    made = shell("sha256sum big | cut -c 1-64", tree=spec(["x"], files={"big": data})["tree"])
    with place.link() as first:
        assert prepare(first, made, [(digest, len(data))])["want"] == [[digest, 0]]
        for offset in (0, 500_000):
            first.send("blob", data[offset : offset + 500_000], sha256=digest, offset=offset, last=False)
        with pytest.raises(Fault, match="BLOBS_MISSING"):
            first.ask("commit", canonical(made), run_id=made["run_id"])
    link = place.link()
    assert prepare(link, made, [(digest, len(data))])["want"] == [[digest, 1_000_000]]
    link.blob(digest, data, 1_000_000)
    assert link.ask("commit", canonical(made), run_id=made["run_id"])["already"] is False
    link.start(made["run_id"])
    assert link.follow(made["run_id"])[1].decode().strip() == digest
    again = shell("true", tree=made["tree"])
    assert prepare(link, again, [(digest, len(data))])["want"] == [], "what is here is not asked for again"


def test_damaged_blobs_never_get_their_name(place: Place) -> None:
    data = b"good" * 1000
    digest = hashlib.sha256(data).hexdigest()
    made = shell("true", tree=spec(["x"], files={"f": data})["tree"])
    link = place.link()
    for bad in (data[:-1] + b"!", data[:-1], data + b"x", b""):
        prepare(link, made, [(digest, len(data))])
        link.send("blob", bad, sha256=digest, offset=0, last=True)
        with pytest.raises(Fault, match=r"BLOBS_MISSING|BAD_REQUEST"):
            link.ask("commit", canonical(made), run_id=made["run_id"])
        assert not list((place.root / "blobs").rglob(digest))
        link.close()
        link = place.link()
    prepare(link, made, [(digest, len(data))])
    link.blob(digest, data)
    assert link.ask("commit", canonical(made), run_id=made["run_id"])["already"] is False


def test_two_uploads_of_one_blob_at_once(place: Place) -> None:
    data = random.Random(SEED).randbytes(300_000)
    digest = hashlib.sha256(data).hexdigest()
    links = [place.link() for _ in range(3)]
    specs = [shell("true", tree=spec(["x"], files={"f": data})["tree"]) for _ in links]
    wants = [
        prepare(link, made, [(digest, len(data))])["want"] for link, made in zip(links, specs, strict=True)
    ]
    assert wants == [[[digest, 0]]] * 3
    for offset in range(0, len(data), 100_000):
        for link in links:
            body = data[offset : offset + 100_000]
            link.send("blob", body, sha256=digest, offset=offset, last=offset + len(body) == len(data))
    for link, made in zip(links, specs, strict=True):
        assert link.ask("commit", canonical(made), run_id=made["run_id"])["already"] is False
    (stored,) = (place.root / "blobs").rglob(digest)
    assert stored.read_bytes() == data


@pytest.mark.parametrize("lives", [True, False], ids=["still sending", "gone"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "half"])
def test_an_upload_sent_without_asking_needs_nothing_of_what_another_left(
    place: Place, lives: bool, whole: bool
) -> None:
    """Small trees are sent along with `prepare`, from their first byte, before its answer is read."""
    data = b"print('hello')\n" * 20
    digest = hashlib.sha256(data).hexdigest()
    first, link = place.link(), place.link()
    left = shell("true", tree=spec(["x"], files={"f": data})["tree"])
    prepare(first, left, [(digest, len(data))])
    first.send("blob", data if whole else data[:100], sha256=digest, offset=0, last=whole and lives)
    first.ask("status", run_ids=[])  # it has arrived
    if not lives:
        first.close()
    made = shell("true", tree=left["tree"])
    about = hashlib.sha256(canonical(made)).hexdigest()
    link.send("prepare", run_id=made["run_id"], spec_sha256=about, blobs=[[digest, len(data)]])
    link.send("blob", data, sha256=digest, offset=0, last=True)
    link.send("commit", canonical(made), run_id=made["run_id"])
    link.receive()
    assert link.receive()[0]["ok"] is True
    (stored,) = (place.root / "blobs").rglob(digest)
    assert stored.read_bytes() == data


def test_many_small_files_with_modes_and_links(place: Place) -> None:
    files = {f"pkg{i % 7}/mod{i}.py": b"x = %d\n" % i for i in range(500)}
    made = shell("ls -R | md5sum; ./run.sh; cat via; readlink deep/up", files=files)
    tree = spec(["x"], files=files)["tree"]
    script = b"#!/bin/sh\necho ran\n"
    tree.append(
        {"path": "run.sh", "sha256": hashlib.sha256(script).hexdigest(), "bytes": len(script), "mode": 0o755}
    )
    tree += [{"path": "via", "link": "pkg1/mod1.py"}, {"path": "deep/up", "link": "../pkg2"}]
    made["tree"] = tree
    made.pop("files", None)
    link = place.link()
    run_id = place.submit(link, made, files={**files, "run.sh": script})
    link.start(run_id)
    status, log, _ = link.follow(run_id)
    assert status["state"] == "succeeded"
    assert log.decode().splitlines()[1:] == ["ran", "x = 1", "../pkg2"]


def test_the_work_cannot_spoil_the_blobs(place: Place) -> None:
    files = {"data": b"original"}
    link = place.link()
    run_id = place.submit(
        link, shell("echo changed > data", tree=spec(["x"], files=files)["tree"]), files=files
    )
    link.start(run_id)
    link.follow(run_id)
    other = place.submit(link, shell("cat data", tree=spec(["x"], files=files)["tree"]), files=files)
    link.start(other)
    assert link.follow(other)[1] == b"original"


BAD_PATHS = [
    "../up", "a/../../up", "/etc/passwd", "", ".", "..", "a\0b", "x" * 256, "a/" * 600 + "b", "./..", "a/..",
    7, None,
]  # fmt: skip


@pytest.mark.parametrize("path", BAD_PATHS, ids=lambda path: repr(path)[:20])
def test_a_tree_stays_below_its_folder(place: Place, path: Any) -> None:
    link = place.link()
    for entry in ({"path": path, "sha256": EMPTY, "bytes": 0, "mode": 0o644}, {"path": path, "link": "x"}):
        with pytest.raises(Fault, match="BAD_SPEC"):
            commit(link, {**shell("true"), "tree": [entry]})


def canonical_of(made: dict[str, Any]) -> bytes:
    import json

    return json.dumps(made).encode()


def commit(link: Link, made: dict[str, Any]) -> dict[str, Any]:
    return link.ask("commit", canonical_of(made), run_id=made["run_id"])


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "../x", "a/../../x", "", "..", "../../runs", "sub/../../../x"], ids=repr
)
def test_links_stay_below_it_too(place: Place, target: str) -> None:
    with place.link() as link, pytest.raises(Fault, match="BAD_SPEC"):
        commit(link, {**shell("true"), "tree": [{"path": "link", "link": target}]})


def entry(path: str) -> dict[str, Any]:
    return {"path": path, "sha256": EMPTY, "bytes": 0, "mode": 0o644}


def test_no_file_is_written_through_a_link(place: Place, tmp_path: Path) -> None:
    """A link that is also a folder of the tree, or named twice, is refused; setuid bits do not arrive."""
    with place.link() as link:
        for tree in (
            [{"path": "a", "link": "b"}, entry("a/x")],
            [entry("a/x"), {"path": "a", "link": "b"}],
            [entry("a"), entry("a")],
            [entry("a"), entry("./a")],
            [entry("a//b"), entry("a/b")],
        ):
            with pytest.raises(Fault, match="BAD_SPEC"):
                commit(link, {**shell("true"), "tree": tree})
        made = shell("stat -c %a f")
        made["tree"] = [{**entry("f"), "mode": 0o6755}]
        link.blob(EMPTY, b"")
        commit(link, made)
        link.start(made["run_id"])
        assert link.follow(made["run_id"])[1] == b"755\n"


BAD_SPECS: list[dict[str, Any]] = [
    {"schema": "route.spec/2"}, {"run_id": "0" * 26}, {"argv": []}, {"argv": ["a\0b"]}, {"argv": "ls"},
    {"argv": [""]}, {"env": {"A=B": "x"}}, {"env": {"": "x"}}, {"env": {"A": "x\0"}}, {"env": {"A": 1}},
    {"cwd": "/etc"}, {"cwd": "../.."}, {"outputs": ["../.."]}, {"outputs": ["/etc"]}, {"timeout_us": -1},
    {"timeout_us": "1h"}, {"timeout_us": 2**60}, {"volumes": {"data": "../../x"}}, {"volumes": {"tmp": "x"}},
    {"volumes": {"data": ".."}}, {"volumes": {"data": "a/b"}}, {"leases": ["../x"]}, {"leases": ["a b"]},
    {"leases": [".hidden"]}, {"cache_key": "../../x"}, {"launcher": {"name": "mpirun"}},
    {"launcher": {"name": "torchrun", "ranks": 0}}, {"devices": {"family": "fpga"}}, {"secrets": ["A=B"]},
    {"devices": {"family": "gpu", "count": -1}}, {"metrics": {"discard_steps": -1}}, {"surprise": 1},
    {"observe": {"sample_us": 0}}, {"tree": {}}, {"tree": [{"path": "a"}]}, {"python": "a\0"},
    {"tree": [{"path": "a", "sha256": "zz", "bytes": 0, "mode": 0}]},
]  # fmt: skip


def test_bad_specifications_name_what_is_wrong(place: Place) -> None:
    link = place.link()
    for wrong in BAD_SPECS:
        made = {**shell("true"), **wrong}
        with pytest.raises(Fault, match="BAD_SPEC") as told:
            link.ask(
                "commit",
                canonical_of(made),
                run_id=shell("x")["run_id"] if "run_id" in wrong else made["run_id"],
            )
        assert told.value.error["mend"]
        assert "Traceback" not in told.value.error["what"]
    for body in (
        b"",
        b"[]",
        b"{",
        b"\xff",
        b"[" * 50_000,
        b'{"timeout_us": 1.5}',
        b'{"a": ' + b"9" * 5000 + b"}",
    ):
        with pytest.raises(Fault, match="BAD_SPEC"):
            link.ask("commit", body, run_id="0" * 26)
    assert list((place.root / "runs").iterdir()) == []
    assert list((place.root / "stage").iterdir()) == []


def hostile_outputs(folder: Path, canary: Path) -> None:
    """Everything a work may leave that a careless collector would follow, block on, or choke on."""
    os.mkfifo(folder / "pipe")
    (folder / "secret").symlink_to(canary)
    (folder / "etc").symlink_to("/etc")
    (folder / "loop").symlink_to("loop")
    (folder / "self").symlink_to(folder)
    sock = socket.socket(socket.AF_UNIX)
    os.chdir(folder)
    sock.bind("sock")
    sock.close()
    (folder / "fine.txt").write_text("fine")
    (folder / "-rf").write_text("dash")
    (folder / "new\nline").write_text("x")
    (folder / "esc\x1b[31m").write_text("x")
    (folder / "ünï☃").write_text("unicode")
    (folder / "a;b $(touch x) `y`").write_text("shell")
    with open(os.fsencode(str(folder)) + b"/bad\xff\xfe", "wb") as f:
        f.write(b"x")
    deep = folder
    for _ in range(120):
        deep = deep / "d"
    os.makedirs(deep)


def test_hostile_outputs_are_listed_and_never_followed(place: Place, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("must never be read")
    link = place.link()
    run_id = place.submit(
        link, shell("while [ ! -e go ]; do sleep 0.02; done", outputs=["out", "via/x", "via"])
    )
    link.start(run_id)
    work = place.root / "runs" / run_id / "work"
    (work / "via").symlink_to(tmp_path)
    before = os.getcwd()
    try:
        hostile_outputs(place.attempt(run_id) / "outputs", canary)
    finally:
        os.chdir(before)
    (work / "out").symlink_to("/etc")
    (work / "go").touch()
    link.follow(run_id)
    listed = link.ask("manifest", run_id=run_id)
    paths = {f["path"] for f in listed["files"]}
    why = {s["path"]: s["why"] for s in listed["skipped"]}
    assert {"outputs/fine.txt", "outputs/-rf", "outputs/ünï☃", "outputs/a;b $(touch x) `y`"} <= paths
    assert why["outputs/pipe"] == "a pipe"
    assert why["outputs/sock"] == "a socket"
    for name in ("outputs/secret", "outputs/etc", "outputs/loop", "outputs/self"):
        assert why[name].startswith("a link to ")
    assert "work/out" in why
    assert "work/via" in why
    assert "work/via/x" in why
    assert any("folders deep" in reason for reason in why.values())
    assert any("\\xff" in path for path in why), "a name that is no UTF-8 is named by escapes"
    assert not any("canary" in path or path.startswith("work/via") for path in paths)
    measured = place.read(run_id, "measured.json")
    assert {a["path"] for a in measured["artifacts"]} <= paths
    fetched = link.fetch(
        run_id,
        ["outputs/fine.txt", "outputs/secret", "outputs/pipe", "outputs/../../../spec.json",
         "outputs/etc/passwd", "/etc/passwd", "work/via/canary", "spec.json", "exit.json", "", "outputs",
         "work/../spec.json"],
    )  # fmt: skip
    assert fetched.pop("outputs/fine.txt") == b"fine"
    assert set(fetched.values()) == {"NO_FILE", "BAD_REQUEST"}
    assert b"must never be read" not in b"".join(v for v in fetched.values() if isinstance(v, bytes))
    link.ask("cleanup", run_id=run_id)
    assert canary.read_text() == "must never be read"
    assert Path("/etc/passwd").exists()


def test_ten_thousand_names(place: Place) -> None:
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    made = (
        f"import os, random\nrng = random.Random({rng.randrange(1 << 30)})\n"
        "out = os.fsencode(os.environ['ROUTE_OUTPUTS'])\n"
        "pool = [bytes([b]) for b in range(1, 256) if b != 47]\n"
        "pool += [b'..', b'-', b'\\xf0\\x9f\\x98\\x80', b'\\n']\n"
        "made = 0\n"
        "while made < 10000:\n"
        "    name = b''.join(rng.choice(pool) for _ in range(rng.randrange(1, 40)))[:255]\n"
        "    if name in (b'.', b'..'): continue\n"
        "    try:\n"
        "        os.close(os.open(out + b'/' + name, os.O_CREAT | os.O_WRONLY))\n"
        "    except OSError: continue\n"
        "    made += 1\n"
    )
    link = place.link()
    run_id = place.submit(link, spec(["{python}", "-c", made]))
    link.start(run_id)
    assert link.follow(run_id)[0]["state"] == "succeeded"
    listed = link.ask("manifest", run_id=run_id)
    outputs = os.listdir(os.fsencode(str(place.attempt(run_id) / "outputs")))
    named = [f for f in listed["files"] if f["role"] == "output"] + listed["skipped"]
    assert len(named) == len(outputs)
    assert all(p["path"].startswith("outputs/") and "\n" not in f for p in named for f in [p["path"][:8]])
    some = [f["path"] for f in listed["files"] if f["role"] == "output"][:50]
    assert all(data == b"" for data in link.fetch(run_id, some).values())


def test_fetch_goes_on_from_an_offset(place: Place) -> None:
    link = place.link()
    run_id = place.submit(link, shell("seq 100000 > $ROUTE_OUTPUTS/n"))
    link.start(run_id)
    link.follow(run_id)
    whole = link.fetch(run_id, ["outputs/n"])["outputs/n"]
    assert isinstance(whole, bytes)
    link.send("fetch", run_id=run_id, files=[["outputs/n", 300_000], ["outputs/n", len(whole)]])
    data, offset, lasts = b"", 300_000, 0
    while True:
        head, body = link.receive()
        if head.get("end"):
            break
        assert head["offset"] == offset or head["offset"] == len(whole)
        data, offset, lasts = data + body, offset + len(body), lasts + head["last"]
    assert whole[300_000:] == data
    assert lasts == 2
