"""Measures a snapshot of 2,000 files: all read, nothing changed, one file changed; beside git and hashing.

python benchmarks/snapshot.py [--files 2000] [--bytes 10000] [--runs 15]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from measuring import interleaved, machine, table

from compute_router.hashes import SETTLED
from compute_router.snapshot import take


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--bytes", type=int, default=10_000, help="in each file")
    parser.add_argument("--runs", type=int, default=15)
    given = parser.parse_args()
    print(machine())
    folder = Path(tempfile.mkdtemp(prefix="route-bench-"))
    try:
        measure(folder, given.files, given.bytes, given.runs)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path, files: int, size: int, runs: int) -> None:
    """Print the table: without git, then the same tree as a git work tree."""
    root, home = folder / "tree", folder / "home"
    home.mkdir()
    for n in range(files):
        path = root / f"package{n % 40}" / f"module{n}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size // 2).hex().encode())
    time.sleep(SETTLED / 1e9 + 0.1)  # what was just written is always read again
    changing = root / "package0" / "module0.py"

    def hashed() -> None:
        for path in root.rglob("*.py"):
            hashlib.sha256(path.read_bytes()).digest()

    def changed() -> float:
        changing.write_bytes(os.urandom(size // 2).hex().encode())
        begin = time.perf_counter()
        take(root, home=home)
        return (time.perf_counter() - begin) * 1e3

    def status() -> None:
        subprocess.run(["git", "status", "--porcelain"], cwd=root, check=True, capture_output=True)

    things = {
        "read and hash every file (floor)": hashed,
        "snapshot, every file read": lambda: _as_none(take(root)),
        "snapshot, nothing changed": lambda: _as_none(take(root, home=home)),
        "snapshot, one file changed": changed,
    }
    floor = "read and hash every file (floor)"
    table(f"{files:,} files of {size:,} bytes, no git", interleaved(things, runs=runs), floor=floor)
    for words in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "x"],
    ):
        subprocess.run(["git", *words], cwd=root, check=True)
    in_git = {**things, "git status": status}
    table("the same as a git work tree", interleaved(in_git, runs=runs), floor=floor)


def _as_none(_: object) -> None:
    """Forget a result: the benchmark takes a returned number for a duration."""


if __name__ == "__main__":
    main()
