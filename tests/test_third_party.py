"""Proves that a stranger's plugin works: built and installed in an environment of its own, it runs work."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytestmark = pytest.mark.timeout(1800)  # whole suites of real runs, on machines that may be slow

TOP = Path(__file__).resolve().parent.parent
EXAMPLES = {"metered": "third_party_backend", "queue": "third_party_queue", "relay": "third_party_machine"}
WRITTEN = {"queue": "backend", "relay": "machine"}
WORK = (
    "# /// script\n# [tool.route]\n# outputs = ['results/']\n# ///\n"
    "import os, pathlib, sys\n"
    "pathlib.Path('results').mkdir(exist_ok=True)\n"
    "pathlib.Path('results/out').write_text('made')\n"
    "print('ran as', os.environ['ROUTE_RUN_ID'])\n"
    "sys.exit(int(sys.argv[1]))\n"
)


class Place(NamedTuple):
    """An environment of its own, and where it was made."""

    folder: Path

    def python(self, *args: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        home = {"ROUTE_HOME": str(self.folder / "home"), "XDG_CONFIG_HOME": str(self.folder / "config")}
        return subprocess.run(
            [str(self.folder / "env" / "bin" / "python"), *args],
            cwd=cwd or self.folder,
            env={**os.environ, **home, **env},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )

    def route(self, *args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return self.python("-c", "from compute_router.cli import main; main()", *args, cwd=cwd)

    def told(self, *args: str, cwd: Path | None = None) -> Any:
        """The data of a verb's JSON."""
        done = self.route(*args, "--json", cwd=cwd)
        document = json.loads(done.stdout)
        assert document["ok"], document
        return document["data"]


def environment(folder: Path, project: Path) -> Place:
    """A new environment in which `project` is installed by pip, offline: everything else is on its path
    from the environment of the tests."""
    venv.create(folder / "env", symlinks=True, with_pip=False)
    [site] = (folder / "env" / "lib").glob("python*/site-packages")
    own = os.path.realpath(os.path.dirname(os.__file__))  # the standard library, which the new one has
    paths = [os.path.realpath(entry) for entry in sys.path if entry and not entry.endswith(".zip")]
    shared = [path for path in paths if "site-packages" in path or not path.startswith(own)]
    (site / "shared.pth").write_text("".join(f"{path}\n" for path in shared if path != str(TOP / "tests")))
    copy = folder / "project"
    shutil.copytree(project, copy, ignore=shutil.ignore_patterns("__pycache__", ".pytest_cache"))
    place = Place(folder)
    if place.python("-c", "import pip, setuptools").returncode:
        pytest.skip("pip and setuptools are not in this environment")
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    done = place.python("-m", "pip", "install", "-q", *offline, str(copy))
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Place]:
    """Where an example is installed; made once for this file."""
    made: dict[str, Place] = {}

    def get(name: str) -> Place:
        if name not in made:
            made[name] = environment(tmp_path_factory.mktemp(name), TOP / "examples" / EXAMPLES[name])
        return made[name]

    return get


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_installed_plugin_is_listed_and_well(name: str, installed: Callable[[str], Place]) -> None:
    place = installed(name)
    [plugin] = [p for p in place.told("plugins", "--check") if p["distribution"] == f"route-{name}"]
    assert (plugin["name"], plugin["used"], plugin["broken"]) == (name, True, None)
    [backend] = [b for b in place.told("backends") if b["name"] == name]
    assert backend["health"]["ok"]
    assert backend["origin"]["distribution"] == f"route-{name}"
    assert name not in [b["name"] for b in place.told("backends", "--no-plugins")]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_installed_plugin_runs_work(name: str, installed: Callable[[str], Place], folder: Path) -> None:
    place = installed(name)
    (folder / "work.py").write_text(WORK)
    done = place.route("run", "--backend", name, "work.py", "--", "0", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "ran as" in done.stdout + done.stderr
    failed = place.route("run", "--backend", name, "--json", "work.py", "--", "5", cwd=folder)
    assert failed.returncode == 5
    data = json.loads(failed.stdout.splitlines()[-1])["data"]
    assert (data["measured"] is None) == (name == "queue")
    run_id = place.route(
        "run", "--backend", name, "--detach", "work.py", "--", "0", cwd=folder
    ).stdout.strip()
    assert place.route("wait", run_id, cwd=folder).returncode == 0
    [out] = (place.folder / "home").glob(f"runs/{run_id}/outputs/results/out")
    assert out.read_text() == "made"


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_installed_plugin_passes_its_own_conformance(name: str, installed: Callable[[str], Place]) -> None:
    place = installed(name)
    test = place.folder / "project" / f"test_route_{name}.py"
    done = place.python("-m", "pytest", "-q", "-p", "no:cacheprovider", str(test), cwd=test.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.rpartition(" passed")[0].split()[-1]) > 40, done.stdout


def test_a_machine_behind_a_shell_runs_work(installed: Callable[[str], Place], folder: Path) -> None:
    """`sh -c LINE` takes the command as ssh does: as one line that a shell on the other side reads."""
    place = installed("relay")
    (folder / "work.py").write_text(WORK)
    (folder / "route.toml").write_text(
        f'[backends.relay]\ncommand = ["sh", "-c"]\nshell = true\nroot = "{folder.parent}/there"\n'
    )
    done = place.route("run", "--backend", "relay", "work.py", "--", "3", cwd=folder)
    assert done.returncode == 3, done.stderr
    assert (folder.parent / "there" / "runs").is_dir()


@pytest.mark.parametrize("name", WRITTEN)
def test_an_example_is_what_the_skeleton_is(name: str) -> None:
    """`route plugins new queue --kind backend` writes the example, byte for byte."""
    from compute_router.cli.plugging import written

    folder = TOP / "examples" / EXAMPLES[name]
    there = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
    assert there == written(name, WRITTEN[name])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["backend", "machine", "policy"])
def test_a_new_plugin_is_green_as_it_is_written(kind: str, tmp_path: Path) -> None:
    """Made by the verb, installed, and proved by its own test; `new_one` is in no file but those."""
    project = tmp_path / "a new folder"
    code = "from compute_router.cli import main; main()"
    args = [sys.executable, "-c", code, "plugins", "new", "new_one", str(project), "--kind", kind, "--json"]
    wrote = json.loads(subprocess.run(args, capture_output=True, text=True, check=True).stdout)
    assert wrote["command"] == "plugins new"
    assert sorted(Path(path).name for path in wrote["data"]["wrote"]) == sorted(os.listdir(project))
    for word in ("NAME", "CAMEL", "DISTRIBUTION", "queue", "relay"):
        assert all(word not in path.read_text().replace("NAMES", "") for path in project.iterdir()), word
    place = environment(tmp_path, project)
    verb = "policies" if kind == "policy" else "backends"
    [one] = [b for b in place.told(verb) if b["name"] == "new_one"]
    assert one["origin"]["distribution"] == "route-new-one"
    few = [] if kind == "policy" else ["-k", "offers or says or process or whole"]
    test = place.folder / "project" / "test_route_new_one.py"
    done = place.python("-m", "pytest", "-q", "-p", "no:cacheprovider", *few, str(test), cwd=test.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["My-Cloud"], "is no name for a plugin"),
        (["../up"], "is no name for a plugin"),
        (["a__b"], "is no name for a plugin"),
        (["local"], "is installed already"),
        (["auto", "--kind", "policy"], "is installed already"),
        (["fresh", "full"], "is there already and not empty"),
        (["fresh", "file/below"], "cannot be written"),
    ],
)
def test_a_skeleton_that_cannot_be_is_one_line(
    route: Callable[..., Any], folder: Path, args: list[str], what: str
) -> None:
    (folder / "full").mkdir()
    (folder / "full" / "mine.py").write_text("mine")
    (folder / "file").write_text("")
    done = route("plugins", "new", *args)
    assert done.returncode in (64, 65)
    assert what in done.stderr
    assert "mend: " in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2
    assert sorted(path.name for path in folder.rglob("*")) == ["file", "full", "mine.py"]


def test_the_kit_without_pytest_is_one_clear_line() -> None:
    code = "import sys; sys.modules['pytest'] = None; import compute_router.testing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert last == "ImportError: compute_router.testing needs pytest; mend: pip install pytest"
