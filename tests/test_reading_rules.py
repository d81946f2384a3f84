"""Proves that bad values and keys that contradict each other are refused, by line and with a mend."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from compute_router.config import load_config
from compute_router.errors import ConfigError, NotFound, RouteError, WorkloadError
from compute_router.reading import Loaded, load, load_command, verify
from compute_router.workload import Entry, Kind, Needs, Role, Workload
from compute_router.workloads.bench import Bench
from compute_router.workloads.train import Train
from compute_router.workloads.validate import Validate

KINDS: Mapping[str, Kind] = {"train": Train(), "bench": Bench(), "validate": Validate()}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "own"))
    monkeypatch.delenv("ROUTE_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)


def write(name: str, table: str = "") -> None:
    text = "".join(f"# {line}\n" for line in f"[tool.route]\n{table}".splitlines())
    Path(name).write_text(f"# /// script\n{text}# ///\nprint(1)\n")


def read(*sets: str, args: tuple[str, ...] = ()) -> Loaded:
    return load("train.py", sets=sets, args=args, kinds=KINDS, config=load_config(Path.cwd()))


def fails(*sets: str, error: type[RouteError] = WorkloadError) -> RouteError:
    with pytest.raises(error) as e:
        read(*sets)
    assert e.value.mend, "an error says how to mend it"
    assert "\n" not in str(e.value) + e.value.mend
    return e.value


@pytest.mark.parametrize(
    ("given", "says", "mend"),
    [
        ("acelerator=cpu", "acelerator", "accelerator"),
        ("nodes", "no =", "key=value"),
        ("=1", "no key", "key=value"),
        ("a b=1", "no key", "key=value"),
        ("kind=1\nname='x'", "no label", "letters"),
        ("tags=a", "must be a list", '["a"]'),
        ("metrics=3", "must be a table", "metrics"),
        ("metrics.primay=x", "primay", "primary"),
        ("env.ROUTE_X=1", "set by the router", "ROUTE_"),
        ('env.X="a\\u0000"', "NUL", "take it out"),
        ("nodes=true", "must be an integer", "1 to 4096"),
        ("nodes=0", "out of range", "1 to 4096"),
        ("backend.local.x=1.5", "decimal", '"1.5"'),
        ("backend.local.x=1979-05-27", "date", "string"),
        ("backend.local.x=9007199254740993", "too large", "string"),
        ("secrets=['A=b']", "a value", "'A'"),
        ("outputs=['../x']", "..", ".."),
        ("outputs=['/x']", "no relative", "relative"),
        ("outputs=['.']", "whole folder", "folder"),
        ("volumes.data=cache", "absolute", "/data"),
        ("volumes.data=/proc/x", "system", "/data"),
        ("package_index=https://u:p@h/simple", "password", "secrets"),
        ("package_index=h", "no URL", "https://"),
        ("python=3.12", "no interpreter", "current"),
        ("fields.presett=1", "presett", "'preset'"),
        ("fields.seed=x", "integer", "number"),
        ("stage=[{from='/a'}]", "lacks 'to'", "from"),
        ("timeout=1000001d", "1000 days", "90s"),
        ("name=latest", "newest", "another"),
        ("name=a b", "no label", "letters"),
    ],
)
def test_a_bad_set_says_what_and_how(given: str, says: str, mend: str) -> None:
    write("train.py")
    error = fails(given)
    assert says in str(error)
    assert mend in error.mend


@pytest.mark.parametrize(
    ("table", "line", "says"),
    [
        ('coupling = "multi-node"', 3, "nodes = 1"),
        ("nodes = 2", 3, "independent"),
        ('coupling = "single-node"\nnodes = 2', 4, "single-node"),
        ('warmth = "warm"', 3, "compile cache"),
        ('purpose = "cold-start"\nwarmth = "warm"\nvolumes = { compile-cache = "/c" }', 4, "cold-start"),
        ('framework = "xla"\naccelerator = "H200:8"', 4, "CUDA"),
        ('framework = "torch"\naccelerator = "v6e-8"', 4, "XLA"),
        ('accelerator = "v6e-8"\nframework = "xla"\nsubstitutes = [\n"v5p-8",\n"H100"]', 7, "CUDA"),
        ('substitutes = ["cpu"]', 3, "itself"),
        ('secrets = ["A"]\n[tool.route.env]\nA = "x"', 5, "both"),
        ('volumes = { data = "/a" }\n[tool.route.buckets]\n"/a/b" = "s3://x"', 5, "overlaps"),
        ('volumes = { data = "/a", home = "/a/" }', 3, "is also"),
        ('stage = [{ from = "s3://x/y", to = "data" }]', 3, "not declared"),
        ('kind = "bench"\n[tool.route.metrics]\nprimary = "tok_s_global"', 3, "metric of training"),
        ('kind = "validate"\npurpose = "cold-start"', 4, "no purpose"),
        ('purpose = "benchmark"\nmetrics = { discard_steps = 0 }', None, "step 0"),
        ("fields = { global_batch = 8, seq_len = 4, tokens_per_step = 33 }", None, "tokens_per_step 33"),
        ('fields = { seed = "x" }', 3, "integer"),
    ],
)
def test_what_cannot_be_together(table: str, line: int | None, says: str) -> None:
    write("train.py", table)
    error = fails()
    assert says in str(error)
    assert error.line == line
    assert error.file == ("train.py" if line else None)


def test_commands_and_torchrun_do_not_go_together() -> None:
    with pytest.raises(WorkloadError, match="torchrun"):
        load_command(["true"], sets=["launcher=torchrun"], kinds=KINDS)


def test_an_error_in_another_layer_names_that_layer() -> None:
    write("train.py", "nodes = 1")
    Path("route.toml").write_text('\nwarmth = "warm"\n')
    error = fails(error=ConfigError)
    assert (error.file, error.line) == ("route.toml", 2)
    write("train.py", 'kind = "trian"')
    error = fails(error=NotFound)
    assert (error.file, error.line, error.mend) == ("train.py", 3, "did you mean 'train'?")


def test_secrets_in_sight_are_warned_of_and_not_repeated() -> None:
    write(
        "train.py",
        'accelerator = "H200:8"\n[tool.route.env]\nHF_TOKEN = "abcdefghij"\nX = "hf_' + "a" * 30 + '"',
    )
    warned = " ".join(read(args=("--key=sk-" + "b" * 30,)).warnings)
    assert all(name in warned for name in ("env.HF_TOKEN", "env.X", "argument 1", "train.py:5", "lockstep"))
    assert "abcdefghij" not in warned
    assert "bbbb" not in warned


def test_what_is_staged_from_a_path_is_warned_of() -> None:
    write("train.py", 'volumes = { data = "/a" }\nstage = [\n{ from = "/q/x", to = "data" }]')
    assert ["no bucket" in warning and "train.py:5" in warning for warning in read().warnings] == [True]


def test_a_workload_made_in_python_is_held_to_the_same_rules() -> None:
    good = Workload(name="x", entry=Entry(root="/", script="x.py"), volumes={Role.DATA: "/data"})
    verify(good, KINDS)
    write("train.py", 'accelerator = "H200:8"\nsecrets = ["A"]')
    verify(read().workload, KINDS)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"name": "a b"}, "no label"),
        ({"secrets": ("A=1",)}, "a value"),
        ({"env": {"A": "x"}, "secrets": ("A",)}, "both"),
        ({"timeout_us": 0}, "timeout_us"),
        ({"needs": Needs(nodes=2)}, "independent"),
        ({"needs": Needs(nodes=0)}, "out of range"),
        ({"fields": {"presett": "x"}}, "presett"),
        ({"backend": {"x": {"y": 1.5}}}, "decimal"),
        ({"entry": Entry(root="/")}, "script or a command"),
        ({"entry": Entry(root="/", script="x", argv=("x",))}, "script or a command"),
        ({"outputs": ("/x",)}, "no relative"),
    ]
    for changes, says in bad:
        with pytest.raises(WorkloadError, match=says):
            verify(msgspec.structs.replace(good, **changes), KINDS)
    with pytest.raises(NotFound, match="trian"):
        verify(msgspec.structs.replace(good, kind="trian"), KINDS)
