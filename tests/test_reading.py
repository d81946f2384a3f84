"""Proves how a workload is put together: what wins, where each value is said to come from, what ships."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from compute_router.config import Config, load_config
from compute_router.errors import InputError, NotFound, PluginError, RouteError, WorkloadError
from compute_router.reading import Loaded, load, load_command, load_ready, load_script
from compute_router.reading.keys import KEYS
from compute_router.workload import Accelerator, Entry, Kind, Purpose, Role, Workload
from compute_router.workloads.bench import Bench
from compute_router.workloads.train import Train
from compute_router.workloads.validate import Validate

KINDS: Mapping[str, Kind] = {"train": Train(), "bench": Bench(), "validate": Validate()}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A work tree of its own and no configuration of the user."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "own"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ROUTE_CONFIG", raising=False)
    (tmp_path / "repo" / "sub").mkdir(parents=True)
    (tmp_path / "repo" / ".git").mkdir()
    monkeypatch.chdir(tmp_path / "repo")


def write(name: str, table: str = "", body: str = "print(1)\n", top: str = "") -> Path:
    path = Path(name)
    text = "".join(f"# {line}\n" for line in f"{top}[tool.route]\n{table}".splitlines())
    path.write_text(f"# /// script\n{text}# ///\n{body}" if table or top else body)
    return path


def read(
    *sets: str, name: str = "train.py", profile: str | None = None, args: tuple[str, ...] = ()
) -> Loaded:
    return load(name, sets=sets, profile=profile, args=args, kinds=KINDS)


def fails(*sets: str, name: str = "train.py", error: type[RouteError] = WorkloadError) -> RouteError:
    with pytest.raises(error) as e:
        read(*sets, name=name)
    assert e.value.mend, "an error says how to mend it"
    assert "\n" not in str(e.value) + e.value.mend
    return e.value


def test_a_plain_script_is_a_workload_with_defaults() -> None:
    write("train.py")
    loaded = read()
    w = loaded.workload
    assert (w.name, w.kind, w.purpose, str(w.needs.accelerator)) == ("train", "train", Purpose.SMOKE, "cpu")
    assert w.metrics.primary == "tok_s_global"
    assert set(loaded.origins.values()) == {"default"}
    assert loaded.warnings == ()
    assert w.entry.sha256 is not None
    assert w.entry == Entry(root=os.getcwd(), script="train.py", sha256=w.entry.sha256)


def test_everything_of_the_design_is_read() -> None:
    table = "\n".join(
        f"{key.name} = {key.example}" for key in KEYS.values() if key.name not in ("backend", "kind")
    )
    table += '\nkind = "train"\n[tool.route.backend.local]\nexclusive = true'
    write("train.py", table, top='requires-python = ">=3.11"\ndependencies = ["torch"]\n')
    # The examples stand each for itself; together two of them need a third.
    w = read('coupling="multi-node"', 'python="/usr/bin/python3"').workload
    assert w.dependencies == ("torch",)
    assert w.requires_python == ">=3.11"
    assert w.needs.accelerator == Accelerator(family="gpu", sku="H200", count=8)
    assert w.timeout_us == 5_400_000_000
    assert w.volumes[Role.COMPILE_CACHE] == "/cache"
    assert w.backend == {"local": {"exclusive": True}}
    assert w.stage[0].source == "/datasets/000*"
    assert w.digest == read('coupling="multi-node"', 'python="/usr/bin/python3"').workload.digest


def test_what_wins_and_where_it_comes_from(tmp_path: Path) -> None:
    own = tmp_path / "own" / "route" / "config.toml"
    own.parent.mkdir(parents=True)
    own.write_text(
        'timeout = "1h"\ntags = ["own"]\nshapes = "own"\nwarmth = "cold"\n[profiles.big]\nname = "own"\n'
    )
    Path("route.toml").write_text(
        'timeout = "2h"\ntags = ["repo"]\nshapes = "repo"\n\n[env]\nA = "repo"\nB = "repo"\n'
        '[profiles.big]\naccelerator = "H200:8"\ntimeout = "5h"\n'
    )
    write("train.py", 'timeout = "3h"\ntags = ["file"]\n[tool.route.env]\nB = "file"\nC = "file"')
    os.chdir("sub")
    loaded = load("../train.py", sets=["timeout=4h"], kinds=KINDS)
    assert loaded.workload.timeout_us == 4 * 3_600_000_000
    assert loaded.workload.tags == ("file",)
    assert loaded.workload.shapes == "repo"
    assert loaded.workload.env == {"A": "repo", "B": "file", "C": "file"}
    wanted = {
        "timeout": "--set",
        "tags": "../train.py:4",
        "shapes": "../route.toml:3",
        "warmth": f"{os.path.relpath(own)}:4",
        "env.A": "../route.toml:6",
        "env.B": "../train.py:6",
        "name": "default",
        "metrics.discard_steps": "default",
    }
    assert {key: loaded.origins[key] for key in wanted} == wanted
    # A profile is asked for by a flag, so it wins over the file, and --set wins over it.
    loaded = load("../train.py", profile="big", kinds=KINDS)
    assert loaded.workload.timeout_us == 5 * 3_600_000_000
    assert loaded.origins["accelerator"] == "../route.toml:9 [profiles.big]"
    assert loaded.workload.name == "own", "the user's profile of the same name is below the project's"
    assert (
        load("../train.py", profile="big", sets=["timeout=1s"], kinds=KINDS).workload.timeout_us == 1_000_000
    )
    with pytest.raises(NotFound, match="bgi") as e:
        load("../train.py", profile="bgi", kinds=KINDS)
    assert "'big'" in e.value.mend


def test_every_key_has_an_origin() -> None:
    write("train.py", 'kind = "bench"\n[tool.route.backend.local]\nnested = { a = 1 }')
    origins = read().origins
    for key in KEYS:
        assert any(o == key or o.startswith(f"{key}.") for o in origins), key
    assert origins["kind"] == "train.py:3"
    assert origins["backend.local.nested"] == "train.py:5"


def test_set_takes_toml_or_a_bare_string() -> None:
    write("train.py")
    loaded = read(
        "env.X=1", 'env."A"=q', "price_limit=4.5", "nodes=1", 'tags=["a", "b"]', "metrics.discard_steps=3",
        "backend.local.n=2", "backend.local.s=two words", "shapes=1e5", "accelerator=H200:8", "fields.seed=7",
        "name=a=b", "timeout=90s", "timeout=91s",
    )  # fmt: skip
    w = loaded.workload
    assert w.env == {"X": "1", "A": "q"}
    assert (w.price_limit, w.tags, w.metrics.discard_steps, w.shapes) == ("4.5", ("a", "b"), 3, "1e5")
    assert w.backend == {"local": {"n": 2, "s": "two words"}}
    assert (w.fields, w.name, w.timeout_us) == ({"seed": 7}, "a=b", 91_000_000)
    assert loaded.origins["metrics.discard_steps"] == "--set"


def test_arguments_behind_the_dashes_take_the_place_of_the_files() -> None:
    write("train.py", 'args = ["--steps", "3"]')
    assert read().workload.entry.args == ("--steps", "3")
    loaded = read(args=("--steps", "5", "--", "x"))
    assert loaded.workload.entry.args == ("--steps", "5", "--", "x")
    assert loaded.origins["args"] == "after --"


def test_what_ships_and_where_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(Path.cwd())
    Path("sub/deep").mkdir()
    write("sub/train.py")
    entry = load("sub/train.py", kinds=KINDS).workload.entry
    assert (entry.root, entry.script, entry.cwd) == (root, "sub/train.py", ".")
    monkeypatch.chdir("sub/deep")
    entry = load("../train.py", kinds=KINDS).workload.entry
    assert (entry.root, entry.script, entry.cwd) == (root, "sub/train.py", "sub/deep")
    monkeypatch.chdir(tmp_path)
    entry = load("repo/sub/train.py", kinds=KINDS).workload.entry
    assert (entry.root, entry.script, entry.cwd) == (root, "sub/train.py", ".")
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "link.py").symlink_to("../repo/sub/train.py")
    entry = load("loose/link.py", kinds=KINDS).workload.entry
    assert (entry.root, entry.script) == (root, "sub/train.py"), "a link that leads out is followed"
    Path(root, "link.py").symlink_to("sub/train.py")
    assert load(f"{root}/link.py", kinds=KINDS).workload.entry.script == "link.py"
    (tmp_path / "loose" / "x.py").write_text("1")
    entry = load("loose/x.py", kinds=KINDS).workload.entry
    assert (entry.root, entry.script, entry.cwd) == (str(tmp_path / "loose"), "x.py", ".")


def test_a_home_that_is_a_work_tree_does_not_ship_whole(tmp_path: Path) -> None:
    (tmp_path / "home" / ".git").mkdir(parents=True)
    (tmp_path / "home" / "x").mkdir()
    (tmp_path / "home" / "x" / "a.py").write_text("1")
    entry = load_script(tmp_path / "home" / "x" / "a.py", kinds=KINDS).workload.entry
    assert entry.root == str(tmp_path / "home" / "x")


def test_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(Path.cwd())
    Path("sub/tool").write_bytes(b"#!/bin/sh\n")
    Path("sub/tool").chmod(0o755)
    Path("sub/plain").write_bytes(b"x")
    monkeypatch.chdir("sub")
    loaded = load(None, args=["./tool", "a b"], kinds=KINDS)
    entry = loaded.workload.entry
    assert (entry.root, entry.cwd, entry.argv, entry.script) == (root, "sub", ("./tool", "a b"), None)
    assert loaded.workload.name == "tool"
    assert entry.sha256
    assert load_command([f"{root}/sub/tool"], kinds=KINDS).workload.entry.argv == ("./tool",)
    assert load_command(["/bin/sh", "-c", "x"], kinds=KINDS).workload.entry.argv == ("/bin/sh", "-c", "x")
    assert load_command(["true"], kinds=KINDS).workload.entry.argv == ("true",)
    bad = [
        ([], "nothing to run"),
        ([""], "nothing"),
        (["./none"], "no file"),
        (["./plain"], "executable"),
        (["../sub"], "folder"),
        (["../../x"], "no file"),
        (["a\0b"], "NUL"),
    ]
    for argv, says in bad:
        with pytest.raises(InputError, match=says):
            load_command(argv, kinds=KINDS)


def test_ready_made_ones_run_by_name(tmp_path: Path) -> None:
    (tmp_path / "matmul.py").write_text('# /// script\n# [tool.route]\n# kind = "bench"\n# ///\n')

    class Mine(Bench):
        ready = {"matmul": str(tmp_path / "matmul.py")}

    kinds = {**KINDS, "bench": Mine()}
    loaded = load("bench:matmul", args=["--small"], sets=["timeout=1m"], kinds=kinds)
    entry = loaded.workload.entry
    assert (entry.root, entry.script, entry.cwd, entry.ready) == (
        str(tmp_path),
        "matmul.py",
        ".",
        "bench:matmul",
    )
    assert (loaded.workload.name, entry.args) == ("bench:matmul", ("--small",))
    for target, near in [("bench:matmull", "bench:matmul"), ("bnch:matmul", "bench:matmul")]:
        with pytest.raises(NotFound, match=target) as e:
            load(target, kinds=kinds)
        assert near in e.value.mend
    Path("bench:matmul").write_text("#!/usr/bin/env python3\nprint(1)\n")
    assert load("bench:matmul", kinds=kinds).workload.entry.ready is None, "a file that is there is meant"
    with pytest.raises(NotFound):
        load_ready("bench:", kinds=kinds)


def test_targets_that_are_none(tmp_path: Path) -> None:
    write("train.py")
    Path("run.sh").write_text("#!/bin/sh\n")
    Path("gone.py").symlink_to("nowhere")
    os.mkfifo("fifo.py")
    Path("secret.py").write_text("1")
    Path("secret.py").chmod(0)
    Path("locked").mkdir()
    Path("locked/a.py").write_text("1")
    Path("locked").chmod(0)
    denied = [] if os.access("secret.py", os.R_OK) else ["secret.py", "locked/a.py"]
    for name, says, mend in [
        ("trian.py", "no file", "'train.py'"),
        ("sub/x.py", "no file", "check the path"),
        ("bench-matmul", "no file", "'bench:matmul'"),
        ("sub", "folder", "name a file"),
        ("run.sh", "no Python script", "route run -- ./run.sh"),
        ("gone.py", "link to nothing", "readlink"),
        ("fifo.py", "not a regular file", "script"),
        ("a\0b.py", "no file", ""),
        ("x" * 5000, "no file", ""),
        ("train.py/x", "no file", ""),
        *((name, "may not be read", "chmod") for name in denied),
    ]:
        error = fails(name=name, error=InputError)
        assert says in str(error), (name, error)
        assert mend in error.mend, (name, error.mend)
    Path("locked").chmod(0o700)


def test_a_kind_that_raises_is_named() -> None:
    class Bad(Train):
        def problems(self, workload: Workload) -> list[str]:
            raise RuntimeError("boom")

    write("train.py")
    with pytest.raises(PluginError, match=r"'train' raised RuntimeError: boom"):
        load("train.py", kinds={"train": Bad()}, config=Config())


def test_the_folder_the_user_stands_in_may_be_gone(tmp_path: Path) -> None:
    code = (
        "import os; os.mkdir('x'); os.chdir('x'); os.rmdir('../x')\n"
        "from compute_router.reading import load; from compute_router.errors import InputError\n"
        "try: load('a.py', kinds={})\nexcept InputError as e: print('said:', e)"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert out.stdout.startswith("said: the current folder"), out.stderr


def test_reading_imports_little() -> None:
    code = (
        "import sys, compute_router.reading, compute_router.config; from pathlib import Path;"
        "compute_router.config.load_config(Path.cwd());"
        "print([m for m in ('rich','pluggy','click','platformdirs','difflib','uv','sqlite3','subprocess')"
        " if m in sys.modules])"
    )
    run = [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"]
    out = subprocess.run(run, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == ("[]" if sys.platform != "darwin" else "['platformdirs']")


def test_the_configuration_can_be_handed_over(tmp_path: Path) -> None:
    write("train.py")
    Path("route.toml").write_text('timeout = "9s"\n')
    assert load("train.py", config=Config(), kinds=KINDS).origins["timeout"] == "default"
    assert load("train.py", config=load_config(Path.cwd()), kinds=KINDS).workload.timeout_us == 9_000_000
