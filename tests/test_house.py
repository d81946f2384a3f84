"""Holds the house: packages equal folders, the import rule, file sizes, public names, hooks documented."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
ROOTS = {
    "router": "compute_router",
    "backends": "compute_router.backends",
    "policies": "compute_router.policies",
    "workloads": "compute_router.workloads",
    "examples": "compute_router.examples",
}
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())


def sources(*roots: str) -> Iterator[Path]:
    for root in roots:
        yield from sorted(p for p in (TOP / root).rglob("*.py") if "__pycache__" not in p.parts)


def package_of(path: Path) -> str:
    root, *rest = path.relative_to(TOP).parts
    return ".".join([ROOTS[root], *rest[:-1]])


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every absolute module that `path` imports, and whether it does so at module level."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef))
        or (isinstance(function, ast.If) and "TYPE_CHECKING" in ast.unparse(function.test))
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in inside
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, id(node) not in inside
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) not in inside


def test_the_packages_are_the_folders() -> None:
    folders = {package_of(p) for p in sources(*ROOTS) if p.name == "__init__.py"}
    # A folder below examples/ is a project of its own (a plugin to copy), not a package of ours.
    folders = {f for f in folders if not f.startswith("compute_router.examples.")}
    assert folders == set(PROJECT["tool"]["setuptools"]["packages"])
    for path in sources(*(r for r in ROOTS if r != "examples")):
        assert (path.parent / "__init__.py").exists(), f"{path.parent} is no package"


def test_top_level_folders_map_to_one_name() -> None:
    mapped = PROJECT["tool"]["setuptools"]["package-dir"]
    assert mapped == {name: folder for folder, name in ROOTS.items()}


def test_the_installed_metadata_names_every_bundled_plugin() -> None:
    declared = PROJECT["project"]["entry-points"]["route"]
    for module in declared.values():
        importlib.import_module(module)
    for root in ("backends", "policies", "workloads"):
        for path in sources(root):
            hooks = re.findall(r"^def (route_\w+)", path.read_text(), re.M)
            name = f"{ROOTS[root]}.{path.stem}"
            assert bool(hooks) == (name in declared.values()), f"{name}: hooks {hooks}, declared {declared}"


@pytest.mark.parametrize(
    "path", list(sources(*ROOTS, "tests", "benchmarks")), ids=lambda p: str(p.relative_to(TOP))
)
def test_a_file_says_what_it_is_for_and_is_one_room(path: Path) -> None:
    text = path.read_text()
    first = next((line for line in text.splitlines() if not line.startswith("#!")), "")
    assert first.startswith(('"""', "# ")), f"{path}: the first line says nothing"
    assert path.stem not in {"utils", "util", "helpers", "common", "misc"}
    assert len(text.splitlines()) <= (500 if "tests" in path.parts else 400)


LAYERS = [
    {"errors", "entrypoints"},
    {"records"},
    {"workload"},
    {"backend", "beyond", "policy", "hookspecs", "machines.contract"},
]


def test_the_import_rule() -> None:
    """Records know nothing, contracts know records, core never knows the command line or a plugin."""
    allowed: set[str] = set()
    for layer in LAYERS:
        allowed |= layer
        for module in layer:
            path = TOP / "router" / (module.replace(".", "/") + ".py")
            known = {
                name.removeprefix("compute_router.")
                for name, top in imports(path)
                if top and name.startswith("compute_router.")
            }
            modules = {k for k in known if (TOP / "router" / (k.replace(".", "/") + ".py")).exists()}
            assert modules <= allowed, f"{module} imports {modules - allowed}"
    for path in sources("router"):
        inside = path.relative_to(TOP / "router").parts
        for name, _ in imports(path):
            for folder in ("backends", "policies", "workloads"):
                assert not name.startswith(f"compute_router.{folder}"), f"{path} imports a plugin: {name}"
            if inside[0] != "cli":
                assert not name.startswith("compute_router.cli"), f"{path} imports the command line"


def test_bundled_plugins_do_not_import_each_other() -> None:
    plugins = set(PROJECT["project"]["entry-points"]["route"].values())
    for root in ("backends", "policies", "workloads"):
        for path in sources(root):
            own = f"{ROOTS[root]}.{path.stem}"
            for name, _ in imports(path):
                assert name not in plugins - {own}, f"{own} imports {name}"


HEAVY = ("torch", "torch_xla", "modal", "paramiko", "google", "rich", "uv", "numpy", "pytest")


@pytest.mark.parametrize("root", ["router", "backends", "policies", "workloads"])
def test_heavy_packages_are_imported_late(root: str) -> None:
    for path in sources(root):
        # The kit for plugin authors is what pytest runs; nothing else of ours imports it.
        late = set(HEAVY) - ({"pytest"} if "testing" in path.parts else set())
        for name, top in imports(path):
            assert not (top and name.split(".")[0] in late), f"{path} imports {name} at module level"
            if "testing" not in path.parts:
                assert not name.startswith("compute_router.testing"), f"{path} imports the kit"


def test_the_supervisor_is_standard_library_alone() -> None:
    for path in sources("router/supervisor"):
        for name, _ in imports(path):
            first = name.split(".")[0]
            assert first in sys.stdlib_module_names, f"{path} imports {name}"


def test_no_backend_is_named_in_core() -> None:
    names = re.compile(r"\b(modal|paramiko|tpu_v2|google\.cloud|H200 host)\b", re.I)
    for path in sources("router"):
        inside = path.relative_to(TOP / "router").parts
        if inside[0] == "machines":
            continue
        assert not (found := names.search(path.read_text())), f"{path} names {found and found[0]!r}"


def test_public_names_are_what_is_shown() -> None:
    import compute_router

    assert compute_router.__all__ == sorted(compute_router.__all__)
    for name in compute_router.__all__:
        assert getattr(compute_router, name) is not None
        # Importing a module sets its name on the package, and would hide what is public there.
        assert not (TOP / "router" / name).exists()
        assert not (TOP / "router" / f"{name}.py").exists()
    assert set(dir(compute_router)) == set(compute_router.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = compute_router.no_such_name


def test_the_error_tree_is_the_one_in_its_docstring() -> None:
    from compute_router import errors

    drawn = re.findall(r"\|- (\w+)", errors.__doc__ or "")
    shown = [n for n in errors.__all__ if n not in {"Broken", "ExitCode", "RouteError"}]
    assert sorted(drawn) == sorted(shown)
    for name in shown:
        assert issubclass(getattr(errors, name), errors.RouteError)
    for name, code in re.findall(r"\|- (\w+) +(\d+) ", errors.__doc__ or ""):
        assert int(getattr(errors, name).exit_code) == int(code)


def test_every_hook_is_documented() -> None:
    from compute_router import hookspecs

    hooks = [n for n, f in inspect.getmembers(hookspecs, inspect.isfunction) if n.startswith("route_")]
    assert sorted(hooks) == [
        "route_backends",
        "route_commands",
        "route_event",
        "route_kinds",
        "route_policies",
    ]
    text = (TOP / "docs" / "plugins.md").read_text()
    for hook in hooks:
        assert inspect.getdoc(getattr(hookspecs, hook)), f"{hook} has no docstring"
        assert f"`{hook}" in text, f"docs/plugins.md does not tell of {hook}"


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, compute_router; "
        "print([m for m in ('msgspec', 'click', 'pluggy', 'rich', 'sqlite3', 'torch') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_users_router_module_does_not_clash(tmp_path: Path) -> None:
    """Every MoE code base has a router.py; ours is `compute_router`, and installs no generic name."""
    for name in ("router", "backends", "policies", "workloads", "examples"):
        (tmp_path / f"{name}.py").write_text(f"WHOSE = 'the user, {name}'\n")
    code = (
        "import router, backends, policies, workloads, examples, compute_router.router, compute_router.cli;"
        "from compute_router.registry import Registry; r = Registry();"
        "assert 'local' in r.backends() and 'auto' in r.policies() and 'train' in r.kinds(), r.warnings;"
        "print(router.WHOSE, '|', workloads.WHOSE)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert (out.returncode, out.stdout.strip()) == (0, "the user, router | the user, workloads"), out.stderr


def test_no_file_holds_the_path_of_the_checkout() -> None:
    out = subprocess.run(["git", "ls-files"], cwd=TOP, capture_output=True, text=True)
    if out.returncode:
        pytest.skip("not in a git checkout, so there is no list of the project's own files")
    names = [name for name in out.stdout.splitlines() if (TOP / name).is_file()]
    assert names
    for name in names:
        assert str(TOP) not in (TOP / name).read_text(errors="replace"), f"{name} holds a machine's path"
