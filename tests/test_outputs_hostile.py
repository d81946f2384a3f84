"""Proves that all that a run leaves is collected or named as skipped, and that nothing lands outside."""

from __future__ import annotations

import os
import random
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compute_router import Router, run
from compute_router.receipt import verify
from compute_router.receipt.facts import value
from compute_router.workload import Entry, Workload

SEED = int(os.environ.get("ROUTE_SEED", "4321"))

HOSTILE = r"""
import os, random, socket, stat
out = os.fsencode(os.environ["ROUTE_OUTPUTS"])
outside = os.fsencode(os.environ["OUTSIDE"])
at = lambda name: os.path.join(out, name)
os.mkfifo(at(b"pipe"))
sock = socket.socket(socket.AF_UNIX); os.chdir(out); sock.bind("sock")
os.symlink(outside + b"/canary", at(b"outward"))
os.symlink(outside, at(b"outward-folder"))
os.symlink(b"../../../../../../../../etc/passwd", at(b"climbing"))
os.symlink(b"ring-b", at(b"ring-a")); os.symlink(b"ring-a", at(b"ring-b"))
os.symlink(b".", at(b"self"))
os.mkdir(at(b"deep")); os.symlink(b"..", at(b"deep/up"))
open(at(b"real"), "w").write("real")
os.link(at(b"real"), at(b"twin"))
os.mkdir(at(b"secret"), 0o700); open(at(b"secret/x"), "w").write("x"); os.chmod(at(b"secret/x"), 0)
with open(at(b"sparse"), "wb") as f: f.truncate(1 << 20)
try:
    os.mknod(at(b"null"), 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(at(b"disk"), 0o600 | stat.S_IFBLK, os.makedev(7, 99))
except OSError:
    pass
rng = random.Random(int(os.environ["SEED"]))
pool = [bytes([b]) for b in range(1, 256) if b != 47]
pool += [b"..", b"-", b"~", b"$(x)", b"`y`", b";", b"\xe2\x80\xae", b"\xf0\x9f\x98\x80", b"\r\n", b"CON"]
made = 0
for name in (b"...", b"..a", b"-rf", b"~", b"*", b"a" * 255, b"receipt.json", b"A", b"a", b"\\..\\x"):
    open(at(name), "w").close(); made += 1
while made < 10000:
    name = b"".join(rng.choice(pool) for _ in range(rng.randrange(1, 40)))[:255]
    if name in (b".", b"..") or os.path.lexists(at(name)): continue
    try: os.close(os.open(at(name), os.O_CREAT | os.O_WRONLY | os.O_EXCL))
    except OSError: continue
    made += 1
print("entries", len(os.listdir(out)))
"""


def tree(folder: Path) -> Iterator[tuple[str, int]]:
    """Every entry below `folder` with its mode, no link followed."""
    for at, folders, names in os.walk(os.fsencode(folder)):
        for name in (*folders, *names):
            path = os.path.join(at, name)
            yield os.fsdecode(os.path.relpath(path, os.fsencode(folder))), os.lstat(path).st_mode


@pytest.mark.slow
def test_ten_thousand_hostile_names_are_collected_or_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"seed {SEED}")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "canary").write_text("must never be read")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "work.py").write_text(HOSTILE)
    entry = Entry(root=str(tmp_path / "src"), script="work.py")
    env = {"OUTSIDE": str(outside), "SEED": str(random.Random(SEED).randrange(1 << 30))}
    router = Router(tmp_path / "home", plugins=False)
    before = {path for path, _ in tree(tmp_path) if not path.startswith("home")}
    workload = Workload(name="hostile", entry=entry, kind="train", python=sys.executable, env=env)
    receipt: dict[str, Any] = run(workload, router=router)
    folder = router.store.open("latest").path
    assert value(receipt["context"], "outcome.state") == "succeeded", (folder / "log").read_text()[-2000:]
    assert verify(folder) == []

    listed = receipt["measured"]["artifacts"]
    skipped = {s["path"]: s["why"] for s in receipt["measured"]["skipped"]}
    count = int((folder / "log").read_text().split()[-1])
    top = [a["path"] for a in listed if a["path"].count("/") == 1]
    named = [path for path in skipped if "/" not in path.removeprefix("outputs/")]
    folders = 2  # `deep` and `secret` are listed by what is in them
    assert len(top) + len(named) == count - folders, "each is collected or named, none twice"
    for name in ("outward", "outward-folder", "climbing", "ring-a", "ring-b", "self", "deep/up"):
        assert skipped[f"outputs/{name}"].startswith("a link to "), name
    assert (skipped["outputs/pipe"], skipped["outputs/sock"]) == ("a pipe", "a socket")
    if os.geteuid() == 0 and "outputs/null" in skipped:
        assert (skipped["outputs/null"], skipped["outputs/disk"]) == ("a device", "a device")
    if os.geteuid() != 0:
        assert skipped["outputs/secret/x"] == "Permission denied"

    after = dict(tree(folder / "outputs"))
    assert {a["path"] for a in listed} == {f"outputs/{p}" for p, m in after.items() if stat.S_ISREG(m)}
    assert all(stat.S_ISREG(mode) or stat.S_ISDIR(mode) for mode in after.values()), "no link, pipe or device"
    twins = [folder / "outputs" / name for name in ("real", "twin")]
    assert [path.read_text() for path in twins] == ["real", "real"]
    assert twins[0].stat().st_ino != twins[1].stat().st_ino, "a copy of each: one cannot change the other"
    assert {path for path, _ in tree(tmp_path) if not path.startswith("home")} == before
    assert (outside / "canary").read_text() == "must never be read"
    text = b"".join(p.read_bytes() for p in (folder / "receipt.json", folder / "log"))
    assert b"must never be read" not in text
