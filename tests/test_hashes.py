"""A file that a snapshot knows is not read again, and what changed is seen whatever became of its notes.

Real files. Whether one was read is seen by which files the process opens.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest

from compute_router import hashes as module
from compute_router.hashes import Hashes
from compute_router.snapshot import take


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "lib").mkdir(parents=True)
    for n in range(20):
        (folder / "lib" / f"{n}.py").write_text(f"n = {n}\n")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


def settle(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the files count as left alone (their real times are those of a moment ago)."""
    monkeypatch.setattr(module, "SETTLED", -1)
    time.sleep(0.02)


def hits(root: Path, store: Path) -> int:
    """How many of the files below `root` need not be read."""
    known = Hashes(store, Path(os.path.realpath(root)))
    paths = [p for p in root.rglob("*") if p.is_file()]
    return sum(known.of(p.relative_to(root).as_posix(), p.lstat()) is not None for p in paths)


def notes(store: Path) -> Path:
    [path] = (store / "snapshots").glob("*.hashes")
    return path


def test_unchanged_files_are_not_read_again(root: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(root, monkeypatch)
    first = take(root, home=store)
    assert hits(root, store) == 20
    opened: list[str] = []
    real = os.open

    def noting(path: str | bytes | os.PathLike[str], *args: int, **more: int) -> int:
        opened.append(os.fsdecode(path))
        return real(path, *args, **more)

    monkeypatch.setattr(os, "open", noting)
    again = take(root, home=store)
    assert not [path for path in opened if path.endswith(".py")]
    (root / "lib" / "3.py").write_text("n = 33\n")
    changed = take(root, home=store)
    assert [path for path in opened if path.endswith(".py")] == [f"{root}/lib/3.py"]
    monkeypatch.undo()
    assert again == first
    assert changed == take(root)
    assert changed.tree_sha256 != first.tree_sha256


def test_a_file_written_a_moment_ago_is_read_again(root: Path, store: Path) -> None:
    take(root, home=store)
    assert hits(root, store) == 0


@pytest.mark.parametrize("edit", ["same size and time", "another file in its place", "mode", "swapped"])
def test_every_edit_is_seen(root: Path, store: Path, edit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(root, monkeypatch)
    take(root, home=store)
    path = root / "lib" / "3.py"
    times = path.stat()
    if edit == "same size and time":
        path.write_text("n = 4\n")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif edit == "another file in its place":
        (root / "new").write_text("n = 5\n")
        os.utime(root / "new", ns=(times.st_atime_ns, times.st_mtime_ns))
        (root / "new").rename(path)
    elif edit == "mode":
        path.chmod(0o755)
    else:
        path.rename(root / "x")
        (root / "lib" / "4.py").rename(path)
        (root / "x").rename(root / "lib" / "4.py")
    assert take(root, home=store) == take(root)


@pytest.mark.parametrize(
    "damage", ["cut", "flipped", "empty", "no JSON", "folder", "writable", "another root"]
)
def test_damaged_or_foreign_notes_cost_a_reading(
    root: Path, store: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(root, monkeypatch)
    good = take(root, home=store)
    path = notes(store)
    data = path.read_bytes()
    if damage == "flipped":
        digest = good.entries[0].sha256.encode()  # type: ignore[union-attr]
        path.write_bytes(data.replace(digest, b"0" * 64))
    elif damage == "no JSON":
        path.write_bytes(hashlib.sha256(b"{").hexdigest().encode() + b"\n{")
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage == "writable":
        path.chmod(0o666)
    elif damage == "another root":
        body = data.partition(b"\n")[2].replace(os.fsencode(root), b"/elsewhere")
        path.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
    assert hits(root, store) == 0
    assert take(root, home=store) == good
    if damage != "folder":
        assert hits(root, store) == 20


def test_many_writers_leave_whole_notes(root: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(root, monkeypatch)
    taken: list[str] = []

    def work() -> None:
        for _ in range(5):
            notes_there = store / "snapshots"
            for path in notes_there.glob("*.hashes"):
                path.unlink(missing_ok=True)
            taken.append(take(root, home=store).tree_sha256)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(taken) == {take(root).tree_sha256}
    assert len(taken) == 40
    take(root, home=store)
    assert hits(root, store) == 20
    assert [p.name for p in (store / "snapshots").iterdir()] == [notes(store).name]


def test_notes_are_bounded_and_private(
    root: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(root, monkeypatch)
    monkeypatch.setattr(module, "MOST_ROOTS", 3)
    for n in range(5):
        (tmp_path / f"r{n}").mkdir()
        (tmp_path / f"r{n}" / "f").write_text("x")
        time.sleep(0.01)
        take(tmp_path / f"r{n}", home=store)
    left = list((store / "snapshots").iterdir())
    assert len(left) == 3
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in left)
    take(root, home=store, keep=False)
    assert hits(root, store) == 0
    monkeypatch.setattr(module, "MOST_BYTES", 200)
    take(root, home=store)
    assert hits(root, store) == 0


def test_a_store_that_cannot_be_written_costs_nothing(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert take(root, home=tmp_path / "file") == take(root, home=tmp_path / "absent") == take(root)
