"""Proves what is seen from inside the work's processes, and that looking costs them nothing they notice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from compute_router.supervisor.observing import inside
from compute_router.supervisor.report import route_report

REPORT = str(Path(route_report.__file__).resolve().parent)


def call(
    folder: Path, *command: str, code: int = 0, path: tuple[str | Path, ...] = (), **more: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with `command` in `folder` as the work of a run would be; its exit code must be `code`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ROUTE_", "PYTHON"))}
    ways = os.pathsep.join(map(str, (REPORT, *path)))
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**kept, "PYTHONPATH": ways, "ROUTE_INSIDE": str(folder / "inside.jsonl"), **more},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def seen(folder: Path) -> inside.Inside:
    return inside.read(str(folder / "inside.jsonl"))


def package(folder: Path, name: str, text: str = "") -> Path:
    """A package called `name` below `folder`/lib, to be put on the path."""
    made = folder / "lib" / name
    made.mkdir(parents=True)
    (made / "__init__.py").write_text(text)
    return folder / "lib"


def test_a_process_its_imports_and_its_end_are_seen(tmp_path: Path) -> None:
    lib = package(tmp_path, "jaxlib", "__version__ = '0.1'\nimport time\ntime.sleep(0.01)\n")
    code = "import sys, json, jaxlib; print(jaxlib.__spec__.loader.__dict__.keys(), jaxlib.__loader__)"
    assert "exec_module" not in call(tmp_path, "-c", code, path=(lib,), RANK="3").stdout
    (process,) = seen(tmp_path).processes.values()
    (spell,) = process.imports
    assert (spell["name"], spell["ok"]) == ("jaxlib", True)
    assert process.mono_us <= spell["begin_us"] < spell["end_us"] <= (process.ended_us or 0)
    assert spell["end_us"] - spell["begin_us"] >= 10_000
    assert process.rank == 3
    assert seen(tmp_path).versions() == {"jaxlib": "0.1"}


def test_what_is_not_imported_is_not_imported_by_looking(tmp_path: Path) -> None:
    code = (
        "import sys, importlib.util; before = set(sys.modules); importlib.util.find_spec('numpy');"
        "print(sorted(m for m in before if m in ('json', 'numpy', 'torch', 'route_inside_counts')))"
    )
    assert call(tmp_path, "-c", code).stdout == "[]\n"
    (process,) = seen(tmp_path).processes.values()
    assert (process.imports, process.ended_us) == ([], None)


def test_an_import_that_fails_fails_as_it_would(tmp_path: Path) -> None:
    lib = package(tmp_path, "triton", "raise RuntimeError('no driver')")
    code = "import importlib\nfor _ in range(2):\n try: import triton\n except RuntimeError as e: print(e)"
    assert call(tmp_path, "-c", code, path=(lib,)).stdout == "no driver\n" * 2
    (process,) = seen(tmp_path).processes.values()
    assert [row["ok"] for row in process.imports] == [False, False]
    assert seen(tmp_path).loaded("triton") == [], "what failed was loaded by nobody"


def test_an_import_that_fails_first_and_works_then_has_loaded(tmp_path: Path) -> None:
    lib = package(tmp_path, "triton", "import os\nos.environ['DRIVER']\n__version__ = '3.9'")
    code = "import os\ntry: import triton\nexcept KeyError: os.environ['DRIVER'] = 'up'\nimport triton"
    call(tmp_path, "-c", code, path=(lib,))
    (process,) = seen(tmp_path).loaded("triton")
    assert [row["ok"] for row in process.imports] == [False, True]
    assert seen(tmp_path).versions() == {"triton": "3.9"}


@pytest.mark.parametrize(
    ("ending", "code", "ended"),
    [
        ("", 0, True),
        ("raise SystemExit(3)", 3, True),
        ("raise ValueError('x')", 1, True),
        ("import sys; sys.excepthook = lambda *_: None; raise ValueError", 1, True),
        ("import os; os._exit(5)", 5, False),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, False),
    ],
    ids=["end", "exit", "raise", "hook", "_exit", "kill"],
)
def test_every_way_to_end_keeps_its_code(tmp_path: Path, ending: str, code: int, ended: bool) -> None:
    lib = package(tmp_path, "flax")
    call(tmp_path, "-c", f"import flax\n{ending}", code=code, path=(lib,))
    (process,) = seen(tmp_path).processes.values()
    assert [row["name"] for row in process.imports] == ["flax"], "known though nobody may tell of the end"
    assert (process.ended_us is not None) is ended


def test_forks_do_not_speak_for_the_process_and_spawned_ones_do(tmp_path: Path) -> None:
    lib = package(tmp_path, "flax", "__version__ = '1'")
    script = tmp_path / "many.py"
    script.write_text(
        "import multiprocessing, os, sys, flax\n"
        "def child(): sys.exit(0)\n"
        "if __name__ == '__main__':\n"
        "    for way in ('fork', 'spawn', 'forkserver'):\n"
        "        p = multiprocessing.get_context(way).Process(target=child)\n"
        "        p.start(); p.join(); assert p.exitcode == 0\n"
        "    if os.fork() == 0: sys.exit(0)\n"
        "    assert os.wait()[1] == 0\n"
    )
    call(tmp_path, str(script), path=(lib,))
    found = list(seen(tmp_path).processes.values())
    mine = found[0]
    assert len({p.pid for p in found}) == len(found) >= 3, "this one, the spawned one, the server at least"
    assert (mine.ended_us is not None, len(mine.imports)) == (True, 1)
    lines = [json.loads(x) for x in (tmp_path / "inside.jsonl").read_text().splitlines() if x]
    ends = [line["pid"] for line in lines if line["e"] == "end"]
    assert len(ends) == len(set(ends)), "each speaks once"
    assert mine.pid in ends


def test_the_sitecustomize_behind_ours_is_the_one_that_is_there(tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    (one / "sitecustomize.py").write_text("WHOSE = 'theirs'\nimport sys\nsys.theirs = __spec__.origin\n")
    code = "import sys, sitecustomize as s; print(s.WHOSE, sys.theirs == s.__file__, s.__name__)"
    assert call(tmp_path, "-c", code, path=(one,)).stdout == "theirs True sitecustomize\n"
    assert seen(tmp_path).seen
    # In a run inside a run there are two of ours; neither may be the end of the line.
    twin = tmp_path / "twin"
    twin.mkdir()
    for name in os.listdir(REPORT):
        if name.endswith(".py"):
            (twin / name).write_bytes(Path(REPORT, name).read_bytes())
    assert call(tmp_path, "-c", code, path=(twin, one)).stdout == "theirs True sitecustomize\n"
    assert len(seen(tmp_path).processes) == 2


def test_a_sitecustomize_that_fails_is_told_of_as_ever(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "sitecustomize.py").write_text("raise RuntimeError('theirs')")
    done = call(tmp_path, "-c", "print('on')", path=(bad,))
    assert (done.stdout, "RuntimeError: theirs" in done.stderr) == ("on\n", True)
    plain = call(tmp_path, "-c", "print('on')", path=(bad,), PYTHONPATH=str(bad))
    assert plain.stderr == done.stderr, "the very same words as without ours"


@pytest.mark.parametrize("flag", ["-I", "-S", "-E"])
def test_a_python_that_was_told_not_to_look_is_not_seen(tmp_path: Path, flag: str) -> None:
    assert call(tmp_path, flag, "-c", "print('on')").stdout == "on\n"
    assert not seen(tmp_path).seen


def test_outside_of_a_run_and_where_it_is_switched_off_nothing_is_done(tmp_path: Path) -> None:
    code = "import sys; print('route_inside' in sys.modules, len(sys.meta_path))"
    bare = call(tmp_path, "-c", code, PYTHONPATH="").stdout
    assert call(tmp_path, "-c", code, ROUTE_INSIDE="").stdout == bare
    assert call(tmp_path, "-c", code, ROUTE_OBSERVE="0").stdout == bare
    assert not seen(tmp_path).seen


def test_a_place_that_cannot_be_written_costs_the_work_nothing(tmp_path: Path) -> None:
    lib = package(tmp_path, "flax")
    for path in (tmp_path / "no" / "folder", tmp_path):
        done = call(tmp_path, "-c", "import flax; print('on')", path=(lib,), ROUTE_INSIDE=str(path))
        assert (done.stdout, done.stderr) == ("on\n", "")


def test_two_hundred_processes_at_once_are_all_seen(tmp_path: Path) -> None:
    script = tmp_path / "crowd.py"
    script.write_text(
        "import subprocess, sys\n"
        "for _ in range(10):\n"
        "    crowd = [subprocess.Popen([sys.executable, '-c', 'import flax']) for _ in range(20)]\n"
        "    assert not any(p.wait() for p in crowd)\n"
    )
    call(tmp_path, str(script), path=(package(tmp_path, "flax", "__version__ = '1'"),))
    found = seen(tmp_path)
    assert len(found.processes) == 201
    assert len(found.loaded("flax")) == sum(p.ended_us is not None for p in found.processes.values()) == 200


def test_a_file_that_has_grown_too_large_takes_no_more(tmp_path: Path) -> None:
    (tmp_path / "inside.jsonl").write_bytes(b"\n" * (8 << 20))
    call(tmp_path, "-c", "pass")
    assert (tmp_path / "inside.jsonl").stat().st_size == 8 << 20


HOSTILE: list[Any] = [
    b"not json",
    b"[1,2]",
    b'{"e":"start","id":"a","pid":-1,"parent":1,"mono_us":1}',
    b'{"e":"start","id":"b","pid":1,"parent":1,"mono_us":1e300}',
    b'{"e":"start","id":{"x":1},"pid":1,"parent":1,"mono_us":1}',
    b'{"e":"import","id":"none","name":"torch","begin_us":1,"end_us":2}',
    b'{"e":"end","id":"good","versions":["torch"],"dynamo":{"fxgraph_cache_hit":"many"}}',
    b'{"e":"import","id":"good","name":"torch","begin_us":5,"end_us":2}',
    b'{"e":"triton","hit":"yes","us":"long"}',
    b"\xff" * 100,
    b"x" * (1 << 17),
]


def test_whatever_stands_in_the_file_is_read_without_harm(tmp_path: Path) -> None:
    good = b'{"e":"start","id":"good","pid":7,"parent":1,"mono_us":1}'
    (tmp_path / "inside.jsonl").write_bytes(b"\n".join([good, *HOSTILE, good]))
    found = seen(tmp_path)
    (process,) = found.processes.values()
    assert (process.pid, process.imports, found.versions()) == (7, [], {})
    assert found.counted("dynamo") == {"processes": 1, "bad": 0}
    assert found.triton == {"hits": 0, "misses": 1, "us": 0}
