"""Every key of a study.toml: type, default, meaning, example. `docs/studies.md` shows this table."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Any

from compute_router.reading import values as v
from compute_router.reading.keys import Key

__all__ = ["ARM", "ARM_NAME", "BLOCKS", "MOST_ARMS", "MOST_BLOCKS", "MOST_RUNS", "STUDY"]

BLOCKS = 8
"""Of a study that does not say. At a noise of 2 %, 6 blocks find a true 5 % in 78 % of studies, 7 in 94 %
(docs/statistics.md), and an even number gives every arm the same mean position."""
MOST_BLOCKS, MOST_ARMS, MOST_RUNS = 1000, 26, 10_000
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,59}")
ARM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


def _name(value: Any) -> str:
    said = v.label(value)
    if not _NAME.fullmatch(said):
        near = re.sub(r"[^a-z0-9._-]+", "-", said.lower()).strip("-._")[:60]
        mend = f'write name = "{near}"' if near else "use a-z, 0-9 and . _ -"
        raise v.Wrong(f"{said!r} cannot be part of a folder's name everywhere", mend)
    return said


def _margin(value: Any) -> str:
    """A fraction as a decimal text; a TOML float is what most would write here."""
    mend = "write margin = 0.02 for 2 %"
    if isinstance(value, float) and math.isfinite(value):
        value = repr(value)
    if isinstance(value, bool) or not isinstance(value, str):
        raise v.Wrong("must be a fraction", mend)
    try:
        found = Decimal(value)
    except ArithmeticError:
        raise v.Wrong(f"{value!r} is no fraction", mend) from None
    if not Decimal("0.0001") <= found <= Decimal("0.5"):
        raise v.Wrong(f"is {value}, out of range", "write a fraction from 0.0001 to 0.5")
    return format(found.normalize(), "f")


def _settings(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise v.Wrong("must be a table", 'write set = { purpose = "benchmark" }')
    return value


_ENV = v.table(v.variable, v.is_text, like='env = { OMP_NUM_THREADS = "2" }')

_SHARED = (
    Key(
        "workload",
        "string",
        "",
        '"train.py"',
        "a script (sought from the folder of this file) or a ready-made workload",
        v.text,
    ),
    Key(
        "args",
        "list of strings",
        "[]",
        '["--steps", "40", "--seed", "{block}"]',
        "arguments in place of the workload's own; those of an arm follow those of the study",
        v.items(v.is_text, unique=False),
    ),
    Key(
        "set",
        "table",
        "{}",
        '{ purpose = "benchmark" }',
        "keys of `[tool.route]`, as with `--set`; those of an arm win",
        _settings,
    ),
    Key(
        "env", "table", "{}", '{ OMP_NUM_THREADS = "2" }', "variables of the work; those of an arm win", _ENV
    ),
    Key("profile", "string", "none", '"quiet"', "a profile of route.toml", v.label),
    Key("policy", "string", "the configured one", '"pinned"', "who decides where it runs", v.label),
    Key("backend", "string", "any", '"local"', "only there, or not at all", v.label),
)

_STUDY = (
    Key("name", "string", "the file's name", '"attention"', "what the study is called", _name),
    Key("n", "integer", str(BLOCKS), "12", "blocks: runs of each arm", v.count(1, MOST_BLOCKS)),
    Key("margin", "number", "0.02", "0.05", "the difference that matters, as a fraction", _margin),
    Key("seed", "integer", "0", "7", "of the order of runs", v.count(0, 2**53 - 1)),
    Key(
        "vary",
        "list of strings",
        "[]",
        '["kernel"]',
        "what differs between the arms on purpose: kernel, compile, code, ... or a field of the receipt",
        v.items(v.text),
    ),
    Key(
        "metric",
        "string",
        "the workload's primary",
        '"tok_s_global"',
        "the one figure the verdict is about",
        v.label,
    ),
    Key(
        "warm",
        "boolean",
        "false",
        "true",
        "every run claims a warm start; each arm's compile cache is seeded first, by a run that never counts",
        v.boolean,
    ),
    Key(
        "aa",
        "boolean",
        "false",
        "true",
        "the arms are the same work on purpose: a test of the noise",
        v.boolean,
    ),
    Key(
        "stop_after",
        "integer",
        "3",
        "1",
        "failures of one arm in a row at which the study stops",
        v.count(1, MOST_BLOCKS),
    ),
)

STUDY = {key.name: key for key in (*_STUDY, *_SHARED)}
"""Keys of `[study]`."""
ARM = {key.name: key for key in _SHARED}
"""Keys of `[arms.NAME]`."""
