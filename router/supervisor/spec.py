"""Reads spec.json: every field checked once, before anything of it is used."""

from __future__ import annotations

from . import group, inplace, names, shards, wire
from .wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Set

MOST_FILES = 200_000
FAMILIES = ("cpu", "gpu", "tpu")
FRAMEWORKS = ("torch", "xla", "any", "none")
_NAMES = """schema run_id key workload_digest kind purpose argv python cwd tree env secrets timeout_us
grace_us log_cap_bytes outputs volumes cache_key cache_parts framework launcher devices leases metrics
observe in_place environment import_probes group stage"""
_KEYS = frozenset(_NAMES.split())


def _need(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Fault("BAD_SPEC", "%s cannot be %.60r" % (what, value))
    return value


def variable(name: Any) -> str:
    """The name of an environment variable."""
    if not isinstance(name, str) or not name or "=" in name or "\0" in name or not name.isascii():
        raise Fault("BAD_SPEC", "%.60r cannot name a variable" % (name,))
    return name


def _tree(tree: Any) -> None:
    seen: Set[str] = set()
    folders: Set[str] = set()
    if len(_need(tree, list, "tree")) > MOST_FILES:
        raise Fault("BAD_SPEC", "the tree has more than %d files" % MOST_FILES)
    for entry in tree:
        _need(entry, dict, "an entry of the tree")
        found = names.parts(entry.get("path"), "a path of the tree")
        path = "/".join(found)
        if not found or path in seen or path in folders:
            raise Fault("BAD_SPEC", "the tree names %.80r twice" % entry.get("path"))
        folder = path.rpartition("/")[0]
        # Those above one that is known are known.
        while folder and folder not in folders:
            if folder in seen:
                raise Fault("BAD_SPEC", "%.80r of the tree is both a file and a folder" % folder)
            folders.add(folder)
            folder = folder.rpartition("/")[0]
        seen.add(path)
        if "link" in entry:
            names.text(entry["link"], "a link of the tree")
            if not inside(found, entry["link"]):
                raise Fault("BAD_SPEC", "the link %.80r points outside of the work" % path)
        else:
            names.digest(entry.get("sha256"))
            names.whole(entry.get("bytes"), "bytes of %.80r" % path)
            names.whole(entry.get("mode"), "mode of %.80r" % path, 0, 0o7777)


def inside(found: Any, target: str) -> bool:
    """Whether a link at `found` (parts) to `target` stays below the work, by its text alone."""
    if not target or target.startswith("/"):
        return False
    depth = len(found) - 1
    for part in target.split("/"):
        if part == "..":
            depth -= 1
            if depth < 0:
                return False
        elif part not in ("", "."):
            depth += 1
    return True


def check(data: bytes, run_id: str) -> Dict[str, Any]:
    """The specification in `data`. Raises `Fault` BAD_SPEC that names the first thing wrong."""
    try:
        spec = wire.loads(data)
        _check(spec, run_id)
    except ValueError as e:
        raise Fault("BAD_SPEC", "spec.json is no JSON that we read: %s" % str(e)[:80])
    except Fault as fault:
        raise Fault("BAD_SPEC", fault.what, fault.mend or "the client made a specification we cannot use")
    return spec  # type: ignore[no-any-return]


def _check(spec: Any, run_id: str) -> None:
    _need(spec, dict, "the specification")
    if spec.get("schema") != "route.spec/1":
        raise Fault("BAD_SPEC", "schema %.40r is not route.spec/1" % (spec.get("schema"),))
    unknown = sorted(set(spec) - _KEYS)
    if unknown:
        raise Fault("BAD_SPEC", "unknown field %.60r" % unknown[0])
    if names.run_id(spec.get("run_id")) != run_id:
        raise Fault("BAD_SPEC", "it belongs to run %s" % spec["run_id"])
    argv = _need(spec.get("argv"), list, "argv")
    if not argv or not all(names.text(a, "an argument") or True for a in argv) or not argv[0]:
        raise Fault("BAD_SPEC", "argv is empty")
    names.text(spec.get("python", "python3"), "python")
    names.parts(spec.get("cwd", "."), "cwd")
    _tree(spec.get("tree", []))
    for name, value in _need(spec.get("env", {}), dict, "env").items():
        names.text(value, "variable %s" % variable(name))
    for name in _need(spec.get("secrets", []), list, "secrets"):
        variable(name)
    for field in ("timeout_us", "grace_us", "log_cap_bytes"):
        if spec.get(field) is not None:
            names.whole(spec[field], field)
    for path in _need(spec.get("outputs", []), list, "outputs"):
        names.parts(path, "an output")
    for role, name in _need(spec.get("volumes", {}), dict, "volumes").items():
        if role not in names.ROLES:
            raise Fault("BAD_SPEC", "%.40r is no role of a volume" % (role,))
        names.word(name, "the name of volume %s" % role)
    shards.check(_need(spec.get("stage", []), list, "stage"), spec.get("volumes", {}))
    if spec.get("cache_key") is not None:
        names.word(spec["cache_key"], "cache_key")
    _need(spec.get("cache_parts") or {}, dict, "cache_parts")
    if spec.get("framework", "any") not in FRAMEWORKS:
        raise Fault("BAD_SPEC", "no framework is called %.40r" % (spec["framework"],))
    launcher = _need(spec.get("launcher", {"name": "python"}), dict, "launcher")
    if launcher.get("name") not in ("python", "torchrun"):
        raise Fault("BAD_SPEC", "no launcher is called %.40r" % (launcher.get("name"),))
    names.whole(launcher.get("ranks", 1), "ranks", 1, 4096)
    devices = _need(spec.get("devices", {"family": "cpu"}), dict, "devices")
    if devices.get("family") not in FAMILIES:
        raise Fault("BAD_SPEC", "devices of family %.40r are not known here" % (devices.get("family"),))
    names.whole(devices.get("count", 0), "devices.count", 0, 4096)
    names.text(devices.get("sku", ""), "devices.sku")
    for sku in _need(devices.get("substitutes") or [], list, "devices.substitutes"):
        _need(sku, str, "a substitute")
    for uuid in _need(devices.get("uuids") or [], list, "devices.uuids"):
        names.word(uuid, "a device")
    for name in _need(spec.get("leases", []), list, "leases"):
        names.word(name, "a lease")
    metrics = _need(spec.get("metrics", {}), dict, "metrics")
    names.whole(metrics.get("discard_steps", 1), "metrics.discard_steps", 0, 10**9)
    inplace.check(spec)
    group.check(spec)
    for name in _need(spec.get("import_probes", []), list, "import_probes"):
        if not all(part.isidentifier() for part in names.text(name, "an import probe").split(".")):
            raise Fault("BAD_SPEC", "%.60r is no name of a module" % name)
    environment = _need(spec.get("environment", {}), dict, "environment")
    names.text(environment.get("source", "machine"), "environment.source")
    if environment.get("lock_sha256") is not None:
        names.digest(environment["lock_sha256"])
    observe = _need(spec.get("observe", {}), dict, "observe")
    names.whole(observe.get("sample_us", 10_000_000), "observe.sample_us", 100_000, 10**12)
    if observe.get("cache_free_bytes") is not None:
        names.whole(observe["cache_free_bytes"], "observe.cache_free_bytes")
    _need(observe.get("torch_trace", False), bool, "observe.torch_trace")
