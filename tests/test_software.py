"""A receipt tells what was installed and what was loaded, which variables moved the work, and never a secret.

Real interpreters, environments made by venv, and runs under the real supervisor.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from peers import submission
from peers import workload as a_script

from compute_router.backends.local import LocalBackend, LocalSettings
from compute_router.supervisor.observing import installed, variables
from compute_router.workload import Entry, Workload

SITE = f"lib/python3.{sys.version_info.minor}/site-packages"
FULL = ".".join(map(str, sys.version_info[:3]))


def venv(folder: Path, *names: str, shared: bool = False) -> Path:
    """An environment with the names of distributions in it; its interpreter."""
    options = ["--system-site-packages"] if shared else []
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", *options, str(folder)], check=True)
    for name in names:
        (folder / SITE / f"{name}.dist-info").mkdir()
    return folder / "bin" / "python"


def measured(backend: LocalBackend, work: Workload) -> tuple[dict[str, Any], Path]:
    """Run `work` to its end; its measured block and the folder of its attempt."""
    handle = backend.submit(submission(backend, work))
    b"".join(backend.logs(handle, follow=True))
    into = backend.home / "fetched" / handle.run_id
    backend.fetch(handle, into)
    return json.loads((into / "measured.json").read_bytes()), into


@pytest.fixture
def backend(home: Path) -> LocalBackend:
    return LocalBackend(LocalSettings(), home)


def test_an_environment_tells_what_is_installed(tmp_path: Path) -> None:
    names = (
        "torch-2.13.0+cpu",
        "Flash.Attn-2.7.4",
        "nvidia_nccl_cu12-2.27.3",
        "nvidia_nccl_extra-1",
        "other-1.0",
    )
    python = venv(tmp_path / "e", *names)
    folder = tmp_path / "e" / SITE
    (folder / "torch").mkdir()
    (folder / "torch" / "version.py").write_text(
        "__version__ = '2.13.0'\ncuda: Optional[str] = '12.8'\nhip: str = None\ngit_version = 'abc12'\n"
    )
    (folder / "old-0.3-py3.9.egg-info").mkdir()
    found = installed.look(str(python), str(tmp_path), {})
    assert found["stack"] == {
        "python": FULL, "torch": "2.13.0+cpu", "cuda": "12.8", "torch_git": "abc12",
        "flash_attn": "2.7.4", "nvidia_nccl": "2.27.3",
    }  # fmt: skip
    assert found["dists"] == 6
    before = found["dists_sha256"]
    (folder / "other-1.0.dist-info").rename(folder / "other-1.1.dist-info")
    again = installed.look(str(python), str(tmp_path), {})
    assert again["stack"] == found["stack"]
    assert again["dists_sha256"] != before


def test_every_place_an_interpreter_looks_in_counts_once_and_in_order(tmp_path: Path) -> None:
    base = venv(tmp_path / "own", "numpy-1.0")
    (tmp_path / "own" / SITE / "more.pth").write_text("# a comment\nimport os\n../extra\nabsent\n")
    (tmp_path / "own" / SITE / "../extra").mkdir()
    (tmp_path / "own" / SITE / "../extra" / "scipy-3.0.dist-info").mkdir()
    on_path = tmp_path / "on_path"
    (on_path / "numpy-9.0.dist-info").mkdir(parents=True)
    user = tmp_path / "home" / ".local" / SITE
    (user / "triton-4.0.dist-info").mkdir(parents=True)
    env = {"HOME": str(tmp_path / "home")}
    assert installed.look(str(base), str(tmp_path), env)["stack"] == {
        "python": FULL, "numpy": "1.0", "scipy": "3.0",
    }  # fmt: skip
    first = installed.look(str(base), str(tmp_path), {**env, "PYTHONPATH": f"relative:{on_path}"})
    assert first["stack"]["numpy"] == "9.0"
    shared = venv(tmp_path / "shared", shared=True)
    assert installed.look(str(shared), str(tmp_path), env)["stack"]["triton"] == "4.0"
    (user / "numpy-2.0.dist-info").mkdir()
    both = venv(tmp_path / "both", "numpy-1.0", shared=True)
    assert installed.look(str(both), str(tmp_path), env)["stack"]["numpy"] == "1.0", "its own comes first"
    elsewhere = {"PYTHONUSERBASE": str(tmp_path / "home" / ".local")}
    assert installed.look(str(shared), str(tmp_path), elsewhere)["stack"]["triton"] == "4.0"
    without = installed.look(str(shared), str(tmp_path), {**env, "PYTHONNOUSERSITE": "1"})
    assert "triton" not in without["stack"]


def test_what_is_installed_is_what_the_interpreter_says(tmp_path: Path) -> None:
    code = (
        "import importlib.metadata as m, json, sys;"
        "print(json.dumps({d.metadata['Name']: d.version for d in reversed(list(m.distributions()))}))"
    )
    env = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env, cwd="/"
    )
    theirs = {installed._normal(name): version for name, version in json.loads(said.stdout).items()}
    minor = f"3.{sys.version_info.minor}"
    ours = installed.distributions(installed.folders(sys.executable, minor, env))
    assert set(ours) == set(theirs)
    assert {name: version for name, (version, _) in ours.items()} == theirs


def test_another_interpreter_is_started_once_for_its_version(tmp_path: Path) -> None:
    fake = tmp_path / "python3"
    fake.write_text(f"#!/bin/sh\necho x >> {tmp_path}/calls\necho 3.9.1\n")
    fake.chmod(0o755)
    assert [installed.version(str(fake), str(tmp_path)) for _ in range(3)] == ["3.9.1"] * 3
    assert (tmp_path / "calls").read_text() == "x\n"
    fake.write_text("#!/bin/sh\necho 3.10.2\n")
    assert installed.version(str(fake), str(tmp_path)) == "3.10.2"
    fake.write_text("#!/bin/sh\necho no version\n")
    assert installed.version(str(fake), str(tmp_path)) is None
    assert installed.version("/no/such/python", str(tmp_path)) is None


def test_which_python_a_command_line_starts(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python3.11"
    python.parent.mkdir()
    for name, text in (
        ("python3.11", ""),
        ("torchrun", f"#!{python}\n"),
        ("tool", "#!/usr/bin/env python3.11\n"),
    ):
        (python.parent / name).write_text(text)
        (python.parent / name).chmod(0o755)
    (python.parent / "run.sh").write_text("#!/bin/bash\n")
    (python.parent / "run.sh").chmod(0o755)
    env = {"PATH": str(python.parent)}
    for word in ("python3.11", "torchrun", "tool", str(python), "bin/torchrun"):
        assert installed.interpreter([word, "x"], str(tmp_path), env) == str(python), word
    for word in ("run.sh", "absent", "", "/bin/true"):
        assert installed.interpreter([word], str(tmp_path), env) is None


def test_variables_are_shown_by_an_allow_list_and_the_rest_is_a_fingerprint(tmp_path: Path) -> None:
    env = {
        "NCCL_DEBUG": "INFO", "XLA_FLAGS": "--x=1", "CUDA_VISIBLE_DEVICES": "GPU-aa,GPU-bb",
        "LD_LIBRARY_PATH": f"{tmp_path}/run/lib:/opt", "TORCHINDUCTOR_CACHE_DIR": "/somewhere",
        "TORCH_URL": "https://u:canary@h/", "TOKEN": "canary", "ROUTE_RUN_ID": "r", "SHLVL": "3",
        "LANG": "C", "OTHER": "canary", "NCCL_SECRET": "canary",
    }  # fmt: skip
    hidden = [(f"{tmp_path}/run", "{run}"), (str(tmp_path), "{root}"), ("", "~")]

    def look(root: Path, **more: str) -> dict[str, dict[str, str]]:
        given = {**env, **more}
        return variables.look(given, secrets=("TOKEN", "NCCL_SECRET"), hidden=hidden, root=str(root))

    found = look(tmp_path)
    assert found["allow"] == {
        "NCCL_DEBUG": "INFO", "XLA_FLAGS": "--x=1", "CUDA_VISIBLE_DEVICES": "2 visible",
        "LD_LIBRARY_PATH": "{run}/lib:/opt",
    }  # fmt: skip
    assert set(found["fp"]) == {"LANG", "OTHER", "TORCHINDUCTOR_CACHE_DIR", "TORCH_URL"}
    assert "canary" not in json.dumps(found)
    assert look(tmp_path) == found
    other = look(tmp_path, OTHER="changed")["fp"]
    assert {name for name in other if other[name] != found["fp"][name]} == {"OTHER"}
    assert (tmp_path / variables.KEY).stat().st_mode & 0o777 == 0o600
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert look(elsewhere)["fp"]["OTHER"] != found["fp"]["OTHER"], "the key is another one"
    assert look(tmp_path, CUDA_VISIBLE_DEVICES="")["allow"]["CUDA_VISIBLE_DEVICES"] == "none"


def test_variables_of_other_programs_of_the_same_prefix_make_no_two_runs_differ(tmp_path: Path) -> None:
    """Terraform's variables begin like TensorFlow's, and hold tokens."""
    given = {
        "TF_CLI_CONFIG_FILE": "~/.rc",
        "TF_TOKEN_app_x_io": "t0p",
        "TF_LOG": "1",
        "TF_XLA_FLAGS": "-a",
        "TF_CUDNN_DETERMINISTIC": "1",
    }
    found = variables.look(given, secrets=(), hidden=(), root=str(tmp_path))
    assert found["allow"] == {"TF_XLA_FLAGS": "-a", "TF_CUDNN_DETERMINISTIC": "1"}
    assert set(found["fp"]) == {"TF_CLI_CONFIG_FILE", "TF_TOKEN_app_x_io", "TF_LOG"}


def test_a_cut_off_key_is_made_again(tmp_path: Path) -> None:
    (tmp_path / variables.KEY).write_bytes(b"short")
    found = variables.look({"A": "1"}, secrets=(), hidden=(), root=str(tmp_path))
    assert found == variables.look({"A": "1"}, secrets=(), hidden=(), root=str(tmp_path))


def test_a_run_tells_its_software_and_two_alike_are_equal(tmp_path: Path, backend: LocalBackend) -> None:
    python = venv(tmp_path / "e", "numpy-1.5")
    made = [
        measured(
            backend,
            a_script(tmp_path / f"w{n}", "print(1)\n", python=str(python), env={"NCCL_DEBUG": "WARN"}),
        )[0]["env"]
        for n in range(2)
    ]
    assert made[0]["stack"]["v"] == {"python": FULL, "numpy": "1.5"}
    assert made[0]["source"]["v"] == "path"
    assert made[0]["allow"]["v"]["NCCL_DEBUG"] == "WARN"
    assert made[0]["lock_sha256"]["v"] is None
    for name in ("stack", "allow", "fp", "dists_sha256"):
        assert made[0][name]["v"] == made[1][name]["v"], name


def test_what_was_loaded_overrules_what_is_installed(tmp_path: Path, backend: LocalBackend) -> None:
    python = venv(tmp_path / "e", "numpy-1.5")
    source = "import numpy\nprint(numpy.__version__)\n"
    work = a_script(tmp_path / "w", source, python=str(python))
    Path(work.entry.root, "numpy.py").write_text("__version__ = '7.0'\n")
    told = measured(backend, work)[0]["env"]
    assert told["stack"]["v"]["numpy"] == "7.0"
    assert told["differs"]["v"] == ["numpy: 1.5 is installed, 7.0 was loaded"]


def test_a_plain_command_has_no_stack_and_a_python_in_it_has(tmp_path: Path, backend: LocalBackend) -> None:
    folder = tmp_path / "w"
    folder.mkdir()
    python = venv(tmp_path / "e", "numpy-1.5")

    def told(*argv: str) -> dict[str, Any]:
        work = Workload(name="w", entry=Entry(root=str(folder), argv=argv))
        return dict(measured(backend, work)[0]["env"])

    assert told("true")["stack"]["v"] is None
    assert told(str(python), "-c", "pass")["stack"]["v"] == {"python": FULL, "numpy": "1.5"}


def test_import_probes_are_told_and_stop_nothing(tmp_path: Path, backend: LocalBackend) -> None:
    source = "import os, sys\nprint('ran', 'good' in sys.modules)\n"
    probes = ("good", "absent_one", "needs", "raises", "dies", "package.part", "package.gone", "loud")
    work = a_script(tmp_path / "w", source, import_probes=probes)
    files = {
        "good.py": "__version__ = '2.7.4'\nopen('probed', 'w').close()\n",
        "needs.py": "import absent_two\n",
        "raises.py": "raise ImportError('undefined symbol: _ZN3c10\\n in x.so')\n",
        "dies.py": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n",
        "package/__init__.py": "__version__ = '1.2'\n",
        "package/part.py": "",
        "loud.py": "print('< ok 9.9')\nimport sys\nsys.exit(3)\n",
    }
    for name, text in files.items():
        path = Path(work.entry.root, name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    told, into = measured(backend, work)
    assert told["env"]["probes"]["v"] == [
        "good: ok 2.7.4",
        "absent_one: missing ModuleNotFoundError No module named 'absent_one'",
        "needs: broken ModuleNotFoundError No module named 'absent_two'",
        "raises: broken ImportError undefined symbol: _ZN3c10 in x.so",
        "dies: broken ended by signal 11",
        "package.part: ok 1.2",
        "package.gone: missing ModuleNotFoundError No module named 'package.gone'",
        "loud: broken SystemExit 3",
    ]
    assert told["env"]["probes_us"]["v"] > 0
    assert told["outcome"]["state"] == "succeeded"
    assert (into / "log").read_text() == "ran False\n"


def test_a_run_is_cancelled_while_a_probe_hangs(
    tmp_path: Path, backend: LocalBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = a_script(tmp_path / "w", "print('ran')\n", import_probes=("hangs", "after"))
    Path(work.entry.root, "hangs.py").write_text("import time\ntime.sleep(600)\n")
    sent = submission(backend, work)
    handle = backend.submit(sent)
    assert not backend.status(handle).state.final
    backend.cancel(handle)
    b"".join(backend.logs(handle, follow=True))
    assert backend.status(handle).state.value == "cancelled"


def test_the_files_that_the_work_imported_make_one_digest(tmp_path: Path, backend: LocalBackend) -> None:
    source = "import sys, pack.one\nsys.path.insert(0, 'more')\n__import__('by' + '_name')\nimport json\n"
    files = {
        "pack/__init__.py": "", "pack/one.py": "from . import two\n", "pack/two.py": "x = 1\n",
        "pack/unused.py": "y = 1\n", "more/by_name.py": "", "README.md": "one",
    }  # fmt: skip

    def told(name: str, **changed: str) -> dict[str, Any]:
        work = a_script(tmp_path / name, changed.pop("work", source))
        for path, text in {**files, **changed}.items():
            (tmp_path / name / path).parent.mkdir(exist_ok=True)
            (tmp_path / name / path).write_text(text)
        return dict(measured(backend, work)[0]["workload"])

    first = told("a")
    assert first["imported"]["v"] == [
        "more/by_name.py",
        "pack/__init__.py",
        "pack/one.py",
        "pack/two.py",
    ]
    same = told("b", **{"README.md": "two", "pack/unused.py": "y = 2\n"})
    assert same["imported_sha256"]["v"] == first["imported_sha256"]["v"]
    other = told("c", **{"pack/two.py": "x = 2\n"})
    assert other["imported_sha256"]["v"] != first["imported_sha256"]["v"]
    killed = told("d", work=source + "import os\nos._exit(0)\n")
    assert killed["imported_sha256"]["v"] is None
    assert "without telling" in killed["imported_sha256"]["why"]


def test_a_fifo_where_a_file_should_be_is_not_waited_for(tmp_path: Path) -> None:
    base = venv(tmp_path / "own", "numpy-1.0", "torch-2.0")
    site = tmp_path / "own" / SITE
    (site / "torch").mkdir()
    os.mkfifo(site / "torch" / "version.py")
    os.mkfifo(site / "more.pth")
    os.mkfifo(tmp_path / "program")
    code = (
        "import json; from compute_router.supervisor.observing import building, installed;"
        f"print(json.dumps([installed.look({str(base)!r}, {str(tmp_path)!r}, {{}}),"
        f" installed.interpreter([{str(tmp_path / 'program')!r}], '/', {{}}),"
        f" building.logs({str(tmp_path / 'built')!r})]))"
    )
    (tmp_path / "built" / "mine").mkdir(parents=True)
    os.mkfifo(tmp_path / "built" / "mine" / ".ninja_log")
    got = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    found, program, logs = json.loads(got.stdout)
    assert (found["stack"]["torch"], found["stack"]["numpy"]) == ("2.0", "1.0")
    assert (program, logs) == (None, {"mine": []})
