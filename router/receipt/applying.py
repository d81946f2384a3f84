"""Which fields do not apply to a run: rules over kind and hardware class, as data."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

from compute_router.receipt.schema import TABLE

__all__ = ["ABSENT", "Absent", "absent"]


class Absent(NamedTuple):
    """Fields (patterns of paths) that do not apply where every trait has one of the values given."""

    fields: tuple[str, ...]
    where: Mapping[str, tuple[str, ...]]
    sentence: str
    declared_wins: bool = False


NO_IMAGE = {"surface": ("local", "reserved", "slice")}
ABSENT: tuple[Absent, ...] = (
    Absent(("study.*",), {}, "the run belongs to no study", True),
    Absent(("nodes",), {"spread": ("no",)}, "it ran on one machine"),
    Absent(("frontier.*",), {}, "none was declared", True),
    Absent(("hw.requested.mem_gib", "hw.requested.topology"), {}, "not asked for", True),
    Absent(
        (
            *("hw.observed.uuid", "hw.observed.cc", "hw.observed.driver", "hw.observed.topology"),
            *("hw.observed.power_limit_w", "hw.observed.clock_sm_mhz", "hw.observed.throttle_reasons"),
            *("hw.observed.mig", "hw.observed.ecc", "hw.observed.temp_c_max", "hw.observed.cotenants"),
            *("hw.observed.form_factor", "hw.observed.cuda_driver", "hw.observed.errors"),
            *("mem.peak_alloc_bytes", "mem.peak_reserved"),
        ),
        {"family": ("cpu",)},
        "no accelerator was asked for",
    ),
    Absent(
        (
            *("hw.observed.cc", "hw.observed.mig", "hw.observed.ecc", "hw.observed.throttle_reasons"),
            *("hw.observed.form_factor", "hw.observed.cuda_driver"),
        ),
        {"family": ("tpu",)},
        "this hardware has none",
    ),
    Absent(("numerics.fp8_recipe",), {"family": ("cpu",)}, "no 8-bit floats on a CPU", True),
    Absent(("kernel.*",), {"family": ("cpu",)}, "no kernel is chosen on a CPU", True),
    Absent(("kernel.*",), {"framework": ("none",)}, "the work uses no framework", True),
    Absent(("compile.*",), {"framework": ("none",)}, "the work uses no framework", True),
    Absent(("cache",), {"framework": ("none",)}, "the work uses no framework", True),
    Absent(("data.*",), {"kind": ("bench", "validate")}, "a run of this kind reads no data set", True),
    Absent(
        ("steady.*", "metrics.tok_s_global", "metrics.primary", "metrics.values"),
        {"kind": ("validate",)},
        "a validation is judged by its verdict",
        True,
    ),
    Absent(("metrics.tok_s_global",), {"kind": ("bench",)}, "the rate of training"),
    Absent(("promotion.*",), {"promotes": ("no",)}, "a run of this kind promotes nothing"),
    Absent(("image.digest", "timing.boot_us"), NO_IMAGE, "this surface starts no image"),
    Absent(("timing.image_us",), {"mode": ("recorded",)}, "it ran in the environment that was there"),
    Absent(("timing.compile_us",), {"framework": ("none",)}, "the work uses no framework", True),
    Absent(("lock_sha256",), {"dependencies": ("no",)}, "no dependencies are listed"),
    Absent(
        ("env.stack", "env.dists_sha256", "env.differs"), {"entry": ("command",)}, "a plain command", True
    ),
    Absent(("workload.entry_sha256",), {"entry": ("command",)}, "a plain command"),
    Absent(("workload.imported_sha256",), {"entry": ("command", "program")}, "a plain command"),
    Absent(("workload.tree_sha256",), {"mode": ("recorded",)}, "nothing ships: it ran where it stood"),
    Absent(("offer.*",), {"mode": ("recorded",)}, "no place was offered: its launcher had chosen it"),
    Absent(("started_by.ids",), {"mode": ("routed",)}, "route started it"),
    Absent(("cost.*",), {"surface": ("local",)}, "nothing bills on this machine", True),
    Absent(
        ("outcome.exit_code",), {"ended_by": ("signal", "other")}, "the work did not exit by itself", True
    ),
    Absent(("outcome.signal",), {"ended_by": ("exit", "other")}, "no signal ended the work", True),
    Absent(("code.diff_sha256",), {"dirty": ("no",)}, "the tree is as committed"),
    Absent(("offer.quote",), {"surface": ("local",)}, "nothing bills on this machine", True),
)


@functools.cache
def _paths(rule: int) -> tuple[str, ...]:
    patterns = ABSENT[rule].fields
    return tuple(f.path for f in TABLE if any(fnmatchcase(f.path, p) for p in patterns))


def absent(traits: Mapping[str, str]) -> dict[str, tuple[str, bool]]:
    """For every field that does not apply: the sentence, and whether a declared value wins over it."""
    found: dict[str, tuple[str, bool]] = {}
    for number, rule in enumerate(ABSENT):
        if all(traits.get(name) in values for name, values in rule.where.items()):
            for path in _paths(number):
                found.setdefault(path, (rule.sentence, rule.declared_wins))
    return found
