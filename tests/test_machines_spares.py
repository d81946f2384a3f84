"""A commit that takes a spare work tree leaves exactly the tree that was committed, whatever was spare."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from supervisor_driver import Place, shell, spec

TREES = int(os.environ.get("ROUTE_TREES", "25"))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def committed(place: Place, files: dict[str, bytes], more: list[dict[str, Any]] | None = None) -> Path:
    """Commit a tree over a connection of its own, wait for its end, and return where the tree lies."""
    tree = spec(["x"], files=files)["tree"]
    link = place.link()
    run_id = place.submit(link, shell("true", tree=[*tree, *(more or [])]), files=files)
    link.close()
    link.process.wait(30)
    return place.root / "runs" / run_id / "work"


def seen(work: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for folder, below, names in os.walk(work):
        for name in [*names, *below]:
            path = Path(folder, name)
            shown = str(path.relative_to(work))
            if path.is_symlink():
                found[shown] = f"-> {os.readlink(path)}"
            elif path.is_file():
                found[shown] = (path.stat().st_mode & 0o777, hashlib.sha256(path.read_bytes()).hexdigest())
            else:
                found[shown] = "folder"
    return found


def wanted(files: dict[str, bytes], more: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in [*spec(["x"], files=files)["tree"], *more]:
        at = Path(entry["path"])
        for above in at.parents:
            if str(above) != ".":
                found[str(above)] = "folder"
        found[str(at)] = (
            f"-> {entry['link']}" if "link" in entry else (entry["mode"] | 0o600, entry["sha256"])
        )
    return found


def spares(place: Place) -> list[Path]:
    return [*(place.root / "spares").iterdir()] if (place.root / "spares").exists() else []


def test_any_tree_after_any_other_is_as_it_was_committed(place: Place, seed: random.Random) -> None:
    files = {f"d{n % 9}/e{n % 4}/f{n}": seed.randbytes(200) for n in range(150)}
    taken = 0
    for _ in range(TREES):
        for _ in range(seed.randrange(12)):
            name = seed.choice(sorted(files))
            change = seed.randrange(4)
            if change == 0:
                files[name] = seed.randbytes(300)
            elif change == 1:
                del files[name]
            elif change == 2:
                files[f"new{seed.randrange(5)}/{seed.randrange(10**6)}"] = seed.randbytes(100)
            else:  # what was a file is a folder now
                del files[name]
                files[f"{name}/below"] = b"x"
        folders = {str(above) for path in files for above in Path(path).parents}
        files = {path: data for path, data in files.items() if path not in folders}
        more = [{"path": f"link{n}", "link": seed.choice(sorted(files))} for n in range(seed.randrange(3))]
        before = {path.name for path in spares(place)}
        work = committed(place, files, more)
        assert seen(work) == wanted(files, more)
        taken += bool(before - {path.name for path in spares(place)})
        if seed.randrange(3) == 0:  # what a work does to its own tree is nobody else's
            for path in seed.sample([*work.rglob("f*")], 10):
                if path.is_file():
                    path.write_bytes(b"spoilt")
    print(f"{taken} of {TREES} took a spare")
    assert taken > TREES // 3
    assert len(spares(place)) <= 2
    place.close()


FILES = {f"d{n % 3}/f{n:03}": b"%d" % n for n in range(120)}


def test_a_spare_that_cannot_be_read_is_as_none(place: Place) -> None:
    committed(place, FILES)
    for spoil in ("note", "boot", "file", "folder", "all"):
        [spare] = spares(place)
        note = spare / "spare.json"
        if spoil == "note":
            note.write_bytes(note.read_bytes()[:-9])
        elif spoil == "boot":
            note.write_text(json.dumps({**json.loads(note.read_text()), "boot_id": "another"}))
        elif spoil == "file":
            note.write_text(note.read_text().replace('"d1/f001"', '"d1/gone"'))
        elif spoil == "folder":
            shutil.rmtree(spare / "work")
        else:
            shutil.rmtree(spare)
            spare.mkdir()
        assert seen(committed(place, FILES)) == wanted(FILES, [])
    place.close()


def test_a_small_tree_has_none_and_gc_removes_all(place: Place) -> None:
    committed(place, {f"f{n}": b"%d" % n for n in range(20)})
    assert spares(place) == []
    committed(place, FILES)
    assert len(spares(place)) == 1
    place.link().ask("gc", before_us=time.time_ns() // 1000, dry_run=False)
    assert spares(place) == []
    place.close()
