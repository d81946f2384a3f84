"""How long it takes to read and compare 1,000 receipts, beside reading and hashing them; goal 100 ms."""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from measuring import interleaved, machine, table

TESTS = Path(__file__).resolve().parent.parent / "tests"
SIZE = 36_000
"""Bytes of a receipt of a real run."""


def written(folder: Path, count: int) -> list[Path]:
    """Receipts of one study of two arms, each as long as that of a real run."""
    sys.path.insert(0, str(TESTS))
    import planted  # type: ignore[import-not-found]

    from compute_router.receipt.building import receipt_id
    from compute_router.records import canonical, encode

    paths = []
    for number, spec in enumerate(planted.study(blocks=count // 2)):
        receipt = spec.receipt()
        fact = {"v": 1, "src": "supervisor", "at": spec.at_us}
        lack = SIZE - len(canonical(receipt))
        processes = [{"name": f"rank {n}", "seen": fact} for n in range(max(0, lack) // 75)]
        receipt["measured"]["processes"] = processes
        receipt["measured_sha256"] = hashlib.sha256(canonical(receipt["measured"])).hexdigest()
        receipt["receipt_id"] = receipt_id(receipt)
        paths.append(folder / f"{number}.json")
        paths[-1].write_bytes(encode(receipt))
    return paths


def floor(decode: Callable[[bytes], Any]) -> Callable[[Path], Any]:
    """What nobody who trusts no file can leave out: read it, hash it, decode it. Nothing is checked."""

    def once(path: Path) -> Any:
        data = path.read_bytes()
        return hashlib.sha256(data).digest(), decode(data)

    return once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--receipts", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=15)
    given = parser.parse_args()

    from compute_router.compare import compare, gather, load

    with tempfile.TemporaryDirectory() as name:
        paths = written(Path(name), given.receipts)
        size = sum(path.stat().st_size for path in paths)
        loaded = [load(path) for path in paths]
        gathered = gather(loaded)

        def each(what: Callable[[Path], Any]) -> Callable[[], float | None]:
            def once() -> float | None:
                gc.collect()
                begin = time.perf_counter()
                kept = [what(path) for path in paths]
                spent = (time.perf_counter() - begin) * 1e3
                del kept
                return spent

            return once

        def whole() -> float | None:
            gc.collect()
            begin = time.perf_counter()
            compare(gather([load(path) for path in paths]))
            return (time.perf_counter() - begin) * 1e3

        def answered() -> float | None:
            # The figures of a run are kept with it: a second answer would not make them again.
            fresh = gather(loaded)
            begin = time.perf_counter()
            compare(fresh)
            return (time.perf_counter() - begin) * 1e3

        print(machine())
        print(f"{len(paths)} receipts of {size // len(paths)} bytes")
        found = interleaved(
            {
                "read and hash": each(lambda path: hashlib.sha256(path.read_bytes()).digest()),
                "the same, msgspec.json": each(floor(msgspec.json.decode)),
                "the same, json.loads": each(floor(json.loads)),
                "load": each(load),
                "compare": answered,
                "load and compare": whole,
            },
            runs=given.runs,
        )
        table("all of them", found, floor="read and hash")
        got = found["load and compare"].median * 1000 / len(paths)
        print(f"  load and compare 1,000: {got:.0f} ms (goal 100: {'met' if got <= 100 else 'MISSED'})")
        print(f"  {compare(gathered).contrasts[0].sentence}")


if __name__ == "__main__":
    main()
