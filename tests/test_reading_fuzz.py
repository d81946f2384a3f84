"""Proves that 10,000 generated or hostile texts never give anything but a workload or an error of ours."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from compute_router.config import Config, load_config
from compute_router.errors import ConfigError, RouteError
from compute_router.reading import Loaded, load_cases, load_script
from compute_router.reading.keys import KEYS
from compute_router.records import decode, encode
from compute_router.workload import Kind, Workload
from compute_router.workloads.bench import Bench
from compute_router.workloads.train import Train
from compute_router.workloads.validate import Validate

KINDS: dict[str, Kind] = {"train": Train(), "bench": Bench(), "validate": Validate()}
SEED = int(os.environ.get("ROUTE_SEED", "20"))
COUNT = int(os.environ.get("ROUTE_FUZZ", "10000"))

NASTY = [
    '""',
    "''",
    "[]",
    "{}",
    "true",
    "-1",
    "0",
    "1e400",
    "nan",
    "9007199254740993",
    "1979-05-27",
    "07:32:00",
    '"\\u0000"',
    '"\\U0001F600"',
    '"../../etc"',
    '"/"',
    '"/proc/self"',
    '"~"',
    '"$(touch x)"',
    '"; rm -rf ."',
    '"a\\nb"',
    '"\\u202e"',
    '"latest"',
    '"H200:99999"',
    '"v6e-0"',
    '"cpu:3"',
    '"any:0"',
    '"99999999999d"',
    '"s3://"',
    '"https://u:p@h"',
    "[[]]",
    "[[[[1]]]]",
    "[1, 'a']",
    "{ a = { b = { c = 1 } } }",
    '{ "" = "" }',
    '{ "\u00e9" = 1 }',
    '["a", "a"]',
    '"' + "x" * 5000 + '"',
    "'''\n'''",
    '{ from = "/a", to = "data" }',
    "[{ from = 1 }]",
    "0x10",
    "+0",
    "1_000",
    '"ROUTE_X"',
    '{ ROUTE_X = "1" }',
    '{ "A=B" = "1" }',
    '"train"',
    '"bench"',
    '"multi-node"',
    "8",
]
SHAPES = [
    "# /// script",
    "# ///",
    "# [tool.route]",
    "# [tool.route.metrics]",
    "# [[tool.route.stage]]",
    "# [tool.route.env]",
    "# [tool]",
    "#",
    "# ",
    "#x",
    "",
    "x = 1",
    "\r",
    "\x0c",
    "\ufeff",
    "# dependencies = [",
    "# ]",
    "\x00",
    "\udcff",
    "# [tool.route.backend.local]",
    "# [tool.route.fields]",
    '"""',
    "# /// pyproject",
    "# requires-python = '>=3.11'",
    "def f(",
    "# coding: utf-8",
    "# coding: utf-7",
    "# coding: rot13",
    "# -*- coding: big5 -*-",
    "\\",
    "\u2028",
]


def line(rng: random.Random) -> str:
    key = rng.choice(
        [*KEYS, "primary", "discard_steps", "x", '"a b"', "a.b", "kidn", "env.A", "backend.local.x"]
    )
    value = rng.choice(NASTY) if rng.random() < 0.6 else rng.choice(list(KEYS.values())).example
    return f"# {key} = {value}"


def text(rng: random.Random) -> str:
    """A script: nearly right, or noise; then with a few characters changed."""
    how = rng.random()
    if how < 0.5:
        lines = [
            "# /// script",
            "# [tool.route]",
            *(line(rng) for _ in range(rng.randrange(6))),
            "# ///",
            "print(1)",
        ]
    else:
        lines = [rng.choice(SHAPES) if rng.random() < 0.6 else line(rng) for _ in range(rng.randrange(12))]
    if how > 0.3:
        for _ in range(rng.randrange(3)):
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(SHAPES))
    made = rng.choice(["\n", "\n", "\n", "\r\n", "\r"]).join(lines)
    for _ in range(rng.choice([0, 0, 1, 3])):
        at = rng.randrange(len(made) + 1)
        made = (
            made[:at]
            + chr(rng.choice([0, 9, 10, 34, 35, 39, 61, 91, 93, 123, 0x85, 0x2028]))
            + made[at + 1 :]
        )
    return made


def judge(found: Loaded) -> None:
    """A workload that was read can be written, read again and named by its digest."""
    workload = found.workload
    assert len(workload.digest) == 64
    assert decode(Workload, encode(workload)) == workload
    assert all(isinstance(origin, str) for origin in found.origins.values())


def clear(error: RouteError) -> None:
    for said in (str(error), error.mend):
        assert len(said) < 2000
        assert "\n" not in said
        assert "Traceback" not in said
    assert error.line is None or error.line >= 1


@pytest.mark.parametrize("part", range(4))
def test_scripts(part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.py"
    rng = random.Random(SEED * 4 + part)
    print(f"seed {SEED}, part {part}")
    good = 0
    for _ in range(COUNT // 4):
        made = text(rng)
        path.write_bytes(made.encode("utf-8", "surrogateescape"))
        sets = [f"{rng.choice([*KEYS, 'a.b'])}={rng.choice(NASTY)}"] if rng.random() < 0.1 else []
        try:
            judge(load_script("x.py", sets=sets, kinds=KINDS, config=Config()))
            good += 1
        except RouteError as e:
            clear(e)
    assert COUNT // 40 < good < COUNT // 4, "both outcomes are tried"
    assert [p.name for p in tmp_path.iterdir()] == ["x.py"]


def test_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "own"))
    monkeypatch.delenv("ROUTE_CONFIG", raising=False)
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    heads = [
        "[profiles.a]",
        "[backends.x]",
        "[machines.y]",
        "[plugins]",
        "[[rules]]",
        "[workload]",
        "disable = []",
    ]
    for _ in range(COUNT // 10):
        lines = [rng.choice(heads) if rng.random() < 0.3 else line(rng)[2:] for _ in range(rng.randrange(6))]
        (tmp_path / "route.toml").write_text("\n".join(lines))
        try:
            config = load_config(tmp_path)
            assert isinstance(config.workload, dict)
        except ConfigError as e:
            clear(e)


def test_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    (tmp_path / "x.py").write_text("print(1)\n")
    base = load_script("x.py", kinds=KINDS, config=Config())
    values = [
        "1",
        "null",
        '"x"',
        "[]",
        "{}",
        "[1]",
        '{"A": "1"}',
        "1e999",
        "NaN",
        '"\\ud800"',
        '{"a": {"b": [1.5]}}',
    ]
    for _ in range(COUNT // 10):
        pairs = (
            f'"{rng.choice([*KEYS, "a.b", "env.A"])}": {rng.choice(values)}' for _ in range(rng.randrange(3))
        )
        made = "{" + ", ".join(pairs) + "}"
        (tmp_path / "c.jsonl").write_text(made if rng.random() < 0.9 else made[: rng.randrange(len(made))])
        try:
            for workload in load_cases("c.jsonl", base):
                assert workload.digest
        except RouteError as e:
            clear(e)
