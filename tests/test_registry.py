"""Proves that plugins are found through real dist-info folders, the good kept and the broken named."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from compute_router.entrypoints import installed
from compute_router.registry import Registry

GOOD = """
from compute_router import Backend, NoOffer, Power, Record, Surface, hookimpl

class Nowhere(Backend):
    name = "nowhere"
    surface = Surface.CLUSTER
    powers = frozenset({Power.DETACH})
    class Settings(Record, frozen=True, kw_only=True):
        region: str = "here"
    def health(self): ...
    def offers(self, workload):
        return [NoOffer(backend="nowhere", code="none", reason="it is nowhere")]
    def submit(self, submission): ...
    def find(self, key): ...
    def status(self, handle): ...
    def logs(self, handle, offset=0, follow=False): ...
    def fetch(self, handle, into): ...
    def cancel(self, handle): ...
    def cleanup(self, handle): ...

@hookimpl
def route_backends():
    return [Nowhere]
"""


def install(folder: Path, name: str, source: str, *, version: str = "1.2", entry: str | None = None) -> None:
    """Lay down a distribution as an installer does: a module and a dist-info with its entry points."""
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(textwrap.dedent(source))
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(
        f"[console_scripts]\nx = y:z\n\n[route]\n{entry or f'{module} = {module}'}\n"
    )


def look(folder: Path, **options: Any) -> dict[str, Any]:
    """What a fresh process with `folder` on its path sees."""
    code = f"""
import json
from compute_router.registry import Registry
r = Registry(**{options!r})
print(json.dumps({{"backends": sorted(r.backends()), "policies": sorted(r.policies()),
  "kinds": sorted(r.kinds()), "warnings": r.warnings,
  "origin": [r.origin("backend", n).distribution for n in r.backends()],
  "digest": [r.origin("backend", n).digest for n in r.backends()]}}))
"""
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(folder)}
    )
    assert out.returncode == 0, out.stderr
    return dict(json.loads(out.stdout))


def test_the_bundled_plugins_come_in_by_the_same_door() -> None:
    registry = Registry()
    assert "local" in registry.backends()
    assert {"auto", "cheapest", "fastest", "pinned"} <= set(registry.policies())
    assert {"train", "bench", "validate"} <= set(registry.kinds())
    assert registry.warnings == []
    assert registry.origin("policy", "auto").distribution == "compute-router"


def test_a_third_partys_backend_is_found_and_its_source_known(tmp_path: Path) -> None:
    install(tmp_path, "acme-route", GOOD)
    seen = look(tmp_path)
    assert "nowhere" in seen["backends"]
    assert "acme-route" in seen["origin"]
    assert all(d and len(d) == 64 for d in seen["digest"])
    assert seen["warnings"] == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("raise RuntimeError('no driver')", "cannot be loaded (RuntimeError: no driver)"),
        ("import no_such_module_at_all", "ModuleNotFoundError"),
        ("def (", "SyntaxError"),
        ("import sys; sys.exit(3)", "SystemExit"),
        (
            "from compute_router import hookimpl\n@hookimpl\ndef route_backend():\n    return []",
            "hooks that do not exist: route_backend",
        ),
        (
            "from compute_router import hookimpl\n@hookimpl\ndef route_backends():\n    return [int]",
            "is no Backend class",
        ),
        (
            "from compute_router import hookimpl\n@hookimpl\ndef route_backends():\n    return 1 / 0",
            "failed in route_backends (ZeroDivisionError",
        ),
        (
            "from compute_router import hookimpl\n@hookimpl\ndef route_policies():\n    return ['auto']",
            "is no Policy",
        ),
    ],
)
def test_a_broken_plugin_is_named_and_everything_else_works(
    tmp_path: Path, source: str, expected: str
) -> None:
    install(tmp_path, "broken-route", source, version="0.9")
    install(tmp_path, "acme-route", GOOD)
    seen = look(tmp_path)
    assert {"local", "nowhere"} <= set(seen["backends"])
    assert "auto" in seen["policies"]
    [warning] = seen["warnings"]
    assert expected in warning
    assert "broken-route 0.9" in warning


def test_a_missing_method_or_trait_is_told(tmp_path: Path) -> None:
    install(tmp_path, "half-route", GOOD.replace("def cleanup(self, handle): ...", ""))
    install(tmp_path, "traitless-route", GOOD.replace("surface = Surface.CLUSTER", ""))
    warnings = " ".join(look(tmp_path)["warnings"])
    assert "leaves cleanup undone" in warnings
    assert "surface is missing" in warnings


def test_two_plugins_of_one_name_do_not_hide_each_other(tmp_path: Path) -> None:
    install(tmp_path, "bold-route", GOOD.replace('"nowhere"', '"local"'))
    seen = look(tmp_path)
    assert set(seen["origin"]) == {"compute-router"}
    assert "which compute-router has already" in seen["warnings"][0]


def test_plugins_can_be_kept_out(tmp_path: Path) -> None:
    install(tmp_path, "acme-route", GOOD)
    assert "nowhere" not in look(tmp_path, disabled=["acme_route"])["backends"]
    assert "nowhere" not in look(tmp_path, enabled=False)["backends"]
    assert "local" in look(tmp_path, enabled=False)["backends"]


def test_listing_imports_nothing(tmp_path: Path) -> None:
    install(tmp_path, "loud-route", f"open({str(tmp_path / 'imported')!r}, 'w')")
    code = (
        "from compute_router.registry import Registry;"
        "print([(e.name, e.value, e.distribution, e.version) for e, used in Registry().listing() if used])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}
    )
    assert "('loud_route', 'loud_route', 'loud-route', '1.2')" in out.stdout, out.stderr
    assert not (tmp_path / "imported").exists()


def test_the_first_distribution_on_the_path_hides_later_ones(tmp_path: Path) -> None:
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        install(folder, "acme-route", GOOD, version=f"{number}.0")
    found = [e for e in installed([str(tmp_path / "1"), str(tmp_path / "2")]) if e.name == "acme_route"]
    assert [e.version for e in found] == ["1.0"]


def test_damaged_metadata_is_passed_over(tmp_path: Path) -> None:
    info = tmp_path / "odd-1.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_bytes(b"[route]\n\xff\xfe = junk\n")
    broken = tmp_path / "odd2-1.dist-info"
    broken.mkdir()
    (broken / "entry_points.txt").write_text("[route]\nno equals sign\n= nothing\ngood = mod:attr [extra]\n")
    assert [(e.name, e.value) for e in installed([str(tmp_path), "/no/such/folder"])] == [
        ("good", "mod:attr")
    ]
