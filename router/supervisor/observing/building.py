"""What compilers of C++ and CUDA sources found in their caches: ccache by its statistics, torch's
extensions by the log of ninja and by what was really loaded."""

from __future__ import annotations

import os
import shutil

from .. import files
from . import apart, verdicts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Mapping, Optional, Tuple

    from .facts import Look

    Json = Dict[str, Any]

HITS = ("direct_cache_hit", "preprocessed_cache_hit")
MOST_LOGS = 1000
MOST_FOLDERS = 20_000
MOST_LOG = 4 << 20


def before(env: Mapping[str, str]) -> Json:
    """What the statistics say before the work; only where a compile-cache volume is declared."""
    found: Json = {"ninja": {}}
    program, folder = shutil.which("ccache", path=env.get("PATH")), env.get("CCACHE_DIR")
    if program and folder:
        counted = counts(program, folder)
        if counted is not None:
            found["ccache"] = dict(counted, program=program, folder=folder)
    extensions = env.get("TORCH_EXTENSIONS_DIR")
    if extensions and os.path.isdir(extensions):
        found["ninja"] = {name: len(rows) for name, rows in logs(extensions).items()}
        found["extensions"] = extensions
    return found


def counts(program: str, folder: str) -> Optional[Json]:
    """Hits and misses in the statistics of ccache; None if it does not print them."""
    env = {"CCACHE_DIR": folder, "PATH": os.defpath}
    try:
        code, printed = apart.output([program, "--print-stats"], 10.0, env=env)
    except (OSError, apart.Failed):
        return None
    return parse(printed) if code == 0 else None


def parse(printed: bytes) -> Optional[Json]:
    """`name<TAB>number` lines as ccache 3.7 and later print them."""
    rows: Dict[str, int] = {}
    for line in printed.decode("ascii", "replace").splitlines():
        name, _, value = line.partition("\t")
        if value.strip().isdigit():
            rows[name] = int(value)
    if "cache_miss" not in rows:
        return None
    return {"hits": sum(rows.get(name, 0) for name in HITS), "misses": rows["cache_miss"]}


def ccache(look: Look) -> Optional[Json]:
    """ccache: what its statistics have grown by. Another run with the same volume counts into them."""
    was = look.before.get("caches", {}).get("ccache")
    if not was:
        return None
    now = counts(was["program"], was["folder"])
    if now is None:
        return {"verdict": "unobserved"}
    hits, misses = now["hits"] - was["hits"], now["misses"] - was["misses"]
    if hits < 0 or misses < 0:  # they were zeroed meanwhile
        return {"verdict": "unobserved"}
    return (
        {"verdict": verdicts.judge(hits, misses), "hits": hits, "misses": misses} if hits or misses else None
    )


def logs(folder: str) -> Dict[str, List[Tuple[int, int]]]:
    """For each extension below `folder` the steps in its `.ninja_log`: begin and end in milliseconds."""
    found: Dict[str, List[Tuple[int, int]]] = {}
    for number, (at, folders, names) in enumerate(os.walk(folder)):
        if number >= MOST_FOLDERS:
            break
        if os.path.relpath(at, folder).count(os.sep) >= 2:
            folders.clear()
        if ".ninja_log" in names:
            name = os.path.relpath(at, folder)
            try:
                text = files.read(os.path.join(at, ".ninja_log"), MOST_LOG) or b""
                found[name] = [row for row in map(_step, text.splitlines()) if row]
            except OSError:
                continue
        if len(found) >= MOST_LOGS:
            break
    return found


def _step(line: bytes) -> Optional[Tuple[int, int]]:
    words = line.split(b"\t")
    if len(words) != 5 or not (words[0].isdigit() and words[1].isdigit()):
        return None
    return int(words[0]), int(words[1])


def extensions(look: Look) -> Optional[Json]:
    """Torch extensions: an extension that was built is a miss, one that was loaded without that a hit."""
    kept = look.before.get("caches", {})
    folder = kept.get("extensions")
    if not folder:
        return None
    built, us = set(), 0
    for name, steps in logs(folder).items():
        fresh = steps[kept.get("ninja", {}).get(name, 0) :]
        if fresh:
            built.add(name)
            us += max(0, max(end for _, end in fresh) - min(begin for begin, _ in fresh)) * 1000
    loaded = set()
    for process in look.inside.processes.values():
        listed = process.groups.get("extensions", {}).get("loaded")
        loaded |= {os.path.dirname(path) for path in listed or () if isinstance(path, str)}
    hits = len(loaded - built)
    if not hits and not built:
        return None
    return {"verdict": verdicts.judge(hits, len(built)), "hits": hits, "misses": len(built), "us": us}
