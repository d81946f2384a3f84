"""Proves the rules of caches: verdicts from counters, torch's trace as recorded, states from stamps."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from compute_router.supervisor import stamps
from compute_router.supervisor.observing import building, caches, compiling, torchtrace, verdicts

# Verdicts


@pytest.mark.parametrize(
    ("hits", "misses", "passed", "failed", "off", "verdict"),
    [
        (3, 0, 0, 0, False, "hit"),
        (3, 0, 0, 0, True, "hit"),
        (3, 1, 0, 0, False, "partial"),
        (3, 0, 1, 0, False, "partial"),
        (0, 2, 0, 0, False, "miss"),
        (0, 2, 1, 0, False, "miss"),
        (5, 0, 0, 1, False, "failed_load"),
        (0, 0, 2, 0, False, "disabled"),
        (0, 0, 0, 0, True, "disabled"),
        (0, 0, 0, 0, False, "unobserved"),
    ],
)
def test_a_verdict_is_made_of_counters(
    hits: int, misses: int, passed: int, failed: int, off: bool, verdict: str
) -> None:
    assert verdicts.judge(hits, misses, passed, failed, off) == verdict


# As torch_xla 2.6 and 2.9 counted them: the tables of metrics of a first and a second run.
XLA: dict[str, tuple[dict[str, int], Any]] = {
    "2.6 cold": ({"PersistentCacheMiss": 2, "UncachedCompile": 2, "compiles": 2}, "miss"),
    "2.6 warm": ({"PersistentCacheHit": 2, "CachedCompile": 40, "compiles": 0}, "hit"),
    "2.9 warm": (
        {"PersistentCacheDeserializeFailure": 2, "UncachedCompile": 2, "compiles": 2},
        "failed_load",
    ),
    "one new": ({"PersistentCacheHit": 2, "PersistentCacheMiss": 1, "UncachedCompile": 1}, "partial"),
    "no cache": ({"UncachedCompile": 2, "CachedCompile": 40, "compiles": 2}, "disabled"),
    "nothing": ({"CachedCompile": 0, "compiles": 0}, None),
    "within the process alone": ({"CachedCompile": 9}, None),
    "unreadable": ({"UncachedCompile": 2, "bad": 1}, "unobserved"),
}


@pytest.mark.parametrize("name", XLA)
def test_xla_is_judged_by_its_counters_and_never_by_reuse_within_the_process(name: str) -> None:
    counted, verdict = XLA[name]
    found = verdicts.xla(counted)
    assert (found and found["verdict"]) == verdict


@pytest.mark.parametrize(
    ("counted", "off", "verdict"),
    [
        ({"requests": 5, "misses": 2, "us": 9}, "", "miss"),
        ({"requests": 5, "hits": 5, "us": 9}, "", "hit"),
        ({"requests": 5, "hits": 2, "misses": 1, "us": 9}, "", "partial"),
        ({"us": 9}, "", "disabled"),
        ({"us": 9}, "JAX_ENABLE_COMPILATION_CACHE", "disabled"),
        ({"requests": 0}, "", None),
        ({"bad": 1}, "", "unobserved"),
    ],
)
def test_jax_is_judged_by_what_it_tells_its_listeners(
    counted: dict[str, int], off: str, verdict: Any
) -> None:
    found = verdicts.jax(counted, off)
    assert (found and found["verdict"]) == verdict


def test_code_without_a_cache_event_went_past_a_cache_that_is_off() -> None:
    def verdict(caches: dict[str, int], *, compiled: bool, complete: bool, off: str = "") -> Any:
        found = verdicts.inductor(caches, compiled, complete, off)
        return found and found["verdict"]

    assert verdict({}, compiled=True, complete=True) == "disabled"
    assert verdict({}, compiled=True, complete=False) == "unobserved"
    assert verdict({}, compiled=True, complete=False, off="TORCHINDUCTOR_FORCE_DISABLE_CACHES") == "disabled"
    assert verdict({}, compiled=False, complete=True) is None
    assert verdict({"hit": 2, "above": 1}, compiled=True, complete=True) == "partial"
    assert verdict({"miss": 2, "above": 1}, compiled=True, complete=True) == "miss"


@pytest.mark.parametrize(
    ("kind", "env", "off"),
    [
        ("inductor", {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}, True),
        ("inductor", {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "0"}, False),
        ("inductor", {"TORCHINDUCTOR_FX_GRAPH_CACHE": "0"}, True),
        ("inductor", {"TORCHINDUCTOR_FX_GRAPH_CACHE": "1"}, False),
        ("inductor", {"TORCH_COMPILE_DISABLE": "1"}, True),
        ("triton", {"TRITON_ALWAYS_COMPILE": "1"}, True),
        ("jax_pcc", {"JAX_ENABLE_COMPILATION_CACHE": "False"}, True),
        ("jax_pcc", {"JAX_ENABLE_COMPILATION_CACHE": "true"}, False),
        ("ccache", {"CCACHE_DISABLE": "1"}, True),
        ("ccache", {"CCACHE_DISABLE": ""}, False),
        ("xla_hlo", {}, False),
    ],
)
def test_what_turns_a_cache_off(kind: str, env: dict[str, str], off: bool) -> None:
    assert bool(verdicts.turned_off(kind, env)) is off


# torch's trace


def head(rest: str, prefix: str = "") -> str:
    return f"{prefix}V1124 16:37:40.149000 15216 torch/_inductor/compile_fx.py:1149] {rest}"


def artifact(name: str) -> str:
    said = {
        "artifact": {"name": name, "encoding": "json"},
        "frame_id": 0,
        "frame_compile_id": 0,
        "attempt": 0,
    }
    payload = '\n\t{\n\t"name": "fx_graph_cache_miss"\n\t}'
    return head(json.dumps({**said, "has_payload": "5e5435068c9394e1c435d2073e707482"}) + payload)


def metrics(compile_id: str, start: float, spent: float | None, calls: int | None, key: str = "") -> str:
    stack = ["Line: 6, Name: <module>, Filename: /t.py"] + [
        "Line: 1778, Name: _wrapped_call_impl, Filename: /torch/nn/modules/module.py"
    ] * (calls or 0)
    said: dict[str, Any] = {
        "compile_id": compile_id,
        "co_name": "inner",
        "start_time": start,
        "entire_frame_compile_time_s": None if key else spent,
        "inductor_compile_time_s": spent if key else 0.5,
        "fail_type": None,
    }
    if calls is not None:
        said["stack_trace"] = stack
    return head(json.dumps({f"{key}compilation_metrics": said, "frame_id": 0, "frame_compile_id": 0}))


OUTPUT = head(
    '{"inductor_output_code": {"filename": "/c/fx/cf.py"}, "frame_id": 0}\n\timport torch\n\tprint(1)'
)
GRAPH = head('{"dynamo_output_graph": {"sizes": {}}, "frame_id": 0}\n\tclass GraphModule')
COLD = [
    *(GRAPH, artifact("aotautograd_cache_miss"), OUTPUT, artifact("fx_graph_cache_miss"), OUTPUT),
    *(artifact("fx_graph_cache_miss"), metrics("0/0", 1795538246.93941, 13.346662, 1)),
    metrics("0/0", 1795538260.295428, 1.854931, None, "bwd_"),
]
WARM = [
    *(GRAPH, OUTPUT, artifact("fx_graph_cache_hit"), OUTPUT, artifact("fx_graph_cache_hit")),
    *(artifact("aotautograd_cache_hit"), metrics("0/0", 1795538270.531263, 1.277098, 1)),
]
BYPASS = [GRAPH, artifact("aotautograd_cache_bypass"), OUTPUT, metrics("0/0", 1795538839.3, 1.48, 0)]


def traced(folder: Path, lines: list[str], name: str = "fx5vnoui") -> torchtrace.Traces:
    folder.mkdir(exist_ok=True)
    (folder / f"dedicated_log_torch_trace_{name}.log").write_text("\n".join(lines) + "\n")
    return torchtrace.read(str(folder))


@pytest.mark.parametrize(
    ("lines", "hits", "misses", "passed", "us"),
    [(COLD, 0, 2, 0, 15_201_593), (WARM, 2, 0, 0, 1_277_098), (BYPASS, 0, 0, 1, 1_480_000)],
    ids=["cold", "warm", "bypass"],
)
def test_a_trace_as_torch_wrote_it(
    tmp_path: Path, lines: list[str], hits: int, misses: int, passed: int, us: int
) -> None:
    found = traced(tmp_path / "t", lines)
    assert [found.total(word) for word in ("hit", "miss", "bypass")] == [hits, misses, passed]
    assert (found.us, found.cut, found.each[0].pid, found.each[0].graphs) == (us, False, 15216, 1)


def test_ranks_are_counted_together_and_their_time_is_that_of_the_slowest(tmp_path: Path) -> None:
    traced(tmp_path / "t", COLD, "rank_0_abc")
    found = traced(tmp_path / "t", [f"[rank1]:{line}" for line in WARM], "rank_1_def")
    assert [trace.rank for trace in found.each] == [0, 1]
    assert (found.total("hit"), found.total("miss"), found.us) == (2, 2, 15_201_593)


def test_recompiles_and_breaks_are_counted(tmp_path: Path) -> None:
    again = [
        artifact("recompile_reasons"),
        artifact("dynamo_graph_break_reason"),
        metrics("0/1", 1795538299.0, 2.0, 1),
    ]
    (trace,) = traced(tmp_path / "t", [*COLD, *again]).each
    assert (trace.recompiles, trace.breaks) == (1, 1)
    assert [each["again"] for each in trace.compiles] == [False, False, True]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "garbage",
        "] {",
        head("{"),
        head('{"compilation_metrics": null}'),
        head('{"compilation_metrics": {"start_time": "soon", "entire_frame_compile_time_s": 1}}'),
        head('{"compilation_metrics": {"start_time": 1, "entire_frame_compile_time_s": 1e400}}'),
        head('{"compilation_metrics": {"start_time": 1, "entire_frame_compile_time_s": -1}}'),
        head('{"compilation_metrics": ' + "[" * 100_000),
        "\x00\xff" * 10,
        "\t" + artifact("fx_graph_cache_hit"),
    ],
)
def test_a_line_that_is_none_counts_nothing(tmp_path: Path, line: str) -> None:
    (trace,) = traced(tmp_path / "t", [line]).each
    assert (trace.caches, trace.compiles, trace.graphs) == ({}, [], 0)


def test_a_trace_that_ends_in_the_middle_and_one_of_long_lines(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    traced(folder, [*WARM, "\t" + "x" * (5 << 20), artifact("fx_graph_cache_hit"), "y" * (5 << 20), OUTPUT])
    path = next(folder.iterdir())
    path.write_bytes(path.read_bytes() + artifact("fx_graph_cache_miss").encode()[:60])
    found = torchtrace.read(str(folder))
    assert (found.total("hit"), found.total("miss"), found.generated) == (3, 0, 3)


def test_what_is_no_trace_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    (folder / "other.log").write_text("\n".join(COLD))
    (folder / "dedicated_log_torch_trace_link.log").symlink_to(folder / "other.log")
    os.mkfifo(folder / "dedicated_log_torch_trace_pipe.log")
    assert torchtrace.read(str(folder)).total("miss") == 0
    assert torchtrace.read(str(tmp_path / "none")).each == []


def compiled(outer: int | None, frame: str = "0", backward: bool = False) -> dict[str, Any]:
    return {"outer": outer, "frame": frame, "backward": backward}


@pytest.mark.parametrize(
    ("compiles", "breaks", "posture"),
    [
        ([compiled(1), compiled(None, backward=True)], 0, "whole_graph"),
        ([compiled(0)], 0, "whole_graph"),
        ([compiled(2), compiled(2, "1")], 0, "regional"),
        ([compiled(1), compiled(3, "1")], 0, "mixed"),
        ([compiled(1), compiled(1, "1")], 1, "regional"),
        ([compiled(None)], 0, None),
    ],
)
def test_the_posture_is_told_by_what_ran_above_and_between(
    compiles: list[dict[str, Any]], breaks: int, posture: str | None
) -> None:
    assert compiling.posture(compiles, breaks) == posture


# Stamps


def volume(top: Path, *leaves: str) -> Path:
    for leaf in leaves:
        (top / leaf).mkdir(parents=True)
        (top / leaf / "x").write_text("compiled")
    (top / ".route").mkdir(parents=True, exist_ok=True)
    return top


def test_a_stamp_speaks_for_the_kinds_it_names(tmp_path: Path) -> None:
    top, key = volume(tmp_path / "v", "inductor", "triton"), "a" * 64
    (top / "ccache").mkdir()

    def states() -> list[str]:
        kinds = ("inductor", "triton", "ccache")
        return [stamps.of_kind(str(top), key, {}, kind, str(top / kind)) for kind in kinds]

    assert states() == ["partial", "partial", "empty"], "files without a stamp prove nothing"
    stamps.write(str(top), key, {"key": key, "caches": {"inductor": "miss"}, "verdicts": ["miss"]})
    assert states() == ["warm_same_key", "partial", "empty"]
    stamps.write(
        str(top), key, {"key": key, "caches": {"inductor": "failed_load"}, "verdicts": ["failed_load"]}
    )
    assert states()[0] == "partial"
    stamps.drop(str(top), key)
    assert states()[0] == "partial"
    shutil.rmtree(top / "inductor")
    shutil.rmtree(top / "triton")
    assert stamps.state(str(top), key) == "empty"


# Builders

PRINTED = (
    b"autoconf_test\t0\ncache_miss\t7\ndirect_cache_hit\t4\npreprocessed_cache_hit\t1\nfiles_in_cache\t20\n"
)


def test_ccache_is_read_as_it_prints_for_machines() -> None:
    assert building.parse(PRINTED) == {"hits": 5, "misses": 7}
    assert building.parse(b"cache hit (direct)   4\n") is None
    assert building.parse(b"\xff\tx\n") is None


@pytest.mark.skipif(
    shutil.which("ccache") is None or shutil.which("gcc") is None, reason="ccache or gcc is not installed"
)
def test_the_real_ccache_counts_into_its_folder(tmp_path: Path) -> None:
    source = tmp_path / "a.c"
    source.write_text("int one(void) { return 1; }\n")
    env = {**os.environ, "CCACHE_DIR": str(tmp_path / "cache")}
    program = shutil.which("ccache") or ""
    seen = []
    for _ in range(3):
        seen.append(building.counts(program, str(tmp_path / "cache")))
        subprocess.run(["ccache", "gcc", "-c", "a.c", "-o", "a.o"], cwd=tmp_path, env=env, check=True)
    assert [row and (row["hits"], row["misses"]) for row in seen] == [(0, 0), (0, 1), (1, 1)]


def test_what_ninja_built_is_in_its_log(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    log = tmp_path / "mine" / ".ninja_log"
    log.write_text("# ninja log v5\n0\t120\t17\tmine.o\tabc\n121\t150\t18\tmine.so\tdef\nhalf a li")
    assert building.logs(str(tmp_path)) == {"mine": [(0, 120), (121, 150)]}


# Before user code


def test_the_size_of_a_cache_is_information_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume(tmp_path / "v", "inductor/aa", "inductor/bb")
    assert caches.sized(str(tmp_path / "v")) == {"bytes": 16, "entries": 2}
    assert caches.sized(str(tmp_path / "none")) == {"bytes": 0, "entries": 0}
    monkeypatch.setattr(caches, "MOST_FILES", 1)
    assert caches.sized(str(tmp_path / "v")) == {"bytes": None, "entries": None}
