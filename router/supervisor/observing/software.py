"""The software of a run: versions, variables, the environment it was given, the files it imported."""

from __future__ import annotations

import hashlib
import os

from .. import files, inplace
from . import installed, variables

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional

    from .facts import Look, Observed

    Json = Dict[str, Any]

LOCK = "route-lock.txt"


def before(look: Look) -> Json:
    """What is seen before user code: the installed stack, the variables; the lock's text is kept."""
    attempt, spec, env = look.attempt, look.spec, look.env
    place = inplace.of(spec)
    hidden = [(attempt.run.path, "{run}"), (attempt.run.root, "{root}"), (env.get("HOME", ""), "~")]
    seen: Json = variables.look(env, secrets=spec.get("secrets", ()), hidden=hidden, root=attempt.run.root)
    cwd = place["cwd"] if place else os.path.join(attempt.run.work, spec.get("cwd") or ".")
    argv = list(spec.get("argv", ()))
    if argv[:1] == ["{python}"]:
        argv[0] = str(spec.get("python") or "python3")
    python = installed.interpreter(argv, cwd, env)
    if python is None and spec.get("argv", ())[:1] == ["{python}"]:
        python = argv[0]  # whatever it is called
    if python is not None:
        seen["installed"] = installed.look(python, attempt.run.root, env)
        _keep_lock(look, python)
    return seen


def _keep_lock(look: Look, python: str) -> None:
    """Keep the lock that fixes the environment with the run, so that it can be built again."""
    wanted = look.spec.get("environment", {}).get("lock_sha256")
    if not wanted:
        return
    text = files.read(os.path.join(os.path.dirname(os.path.dirname(python)), LOCK), 1 << 22)
    if text is not None and hashlib.sha256(text).hexdigest() == wanted:
        files.write_hint(look.attempt.at(LOCK), text)


def block(o: Observed, look: Look) -> Json:
    seen = look.before.get("software") or {}
    why = str(seen.get("error") or "nothing looked before it started")
    spec = look.spec.get("environment") or {}
    there = seen.get("installed") or {}
    return {
        **stack(o, look, seen, why),
        "allow": o.seen(seen.get("allow"), why),
        "fp": o.seen(seen.get("fp"), why),
        "dists": o.seen(there.get("dists"), there.get("why") or why),
        "dists_sha256": o.seen(there.get("dists_sha256"), there.get("why") or why),
        **_probes(o, look),
        "source": o.seen(_source(look, spec), "the client did not say"),
        "lock_sha256": o.seen(_lock(look, spec), _unlocked(spec)),
    }


def stack(o: Observed, look: Look, seen: Json, why: str) -> Json:
    """What is installed for the work, overruled by what its processes were seen to have loaded.

    `differs` says where the two disagree.
    """
    there = seen.get("installed")
    found: Dict[str, str] = dict((there or {}).get("stack") or {})
    loaded = look.inside.versions()
    differs = [
        "%s: %s is installed, %s was loaded" % (name, found[name], version)
        for name, version in sorted(loaded.items())
        if name in found and found[name] != version
    ]
    if there is None and "software" in look.before and "error" not in seen and not loaded:
        why = "the command is no Python, and none was seen in it"
    found.update(loaded)
    return {
        "stack": o.seen(found or None, (there or {}).get("why") or why),
        "loaded": o.seen(loaded or None, "no process of the work told what it had loaded"),
        "differs": o.seen(differs),
    }


def imported(o: Observed, look: Look) -> Json:
    """The digest of the shipped files that the work imported, without its script.

    A file that the work made itself has no digest that shipped, and counts by its name.
    """
    found = look.inside.imported
    if found is None:
        why = "a Python process of the work ended without telling what it had imported"
        return {"imported_sha256": o.seen(None, why if look.inside.seen else "no Python was seen inside")}
    shipped = {entry["path"]: entry.get("sha256") for entry in look.spec.get("tree", ()) if "sha256" in entry}
    listed = "\n".join("%s %s" % (shipped.get(path), path) for path in found)
    digest = hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest()
    return {"imported_sha256": o.seen(digest, src="inside"), "imported": o.seen(found[:200], src="inside")}


def _probes(o: Observed, look: Look) -> Json:
    if not look.spec.get("import_probes"):
        return {"probes": o.seen(None, "no import probes are asked for")}
    said = files.hint_json(look.attempt.at("probes.json"))
    never = "the probes were not run to their end"
    return {
        "probes": o.seen(said.get("probes"), never, at=said.get("at_us")),
        "probes_us": o.seen(said.get("spent_us"), never),
    }


def _source(look: Look, spec: Json) -> Optional[str]:
    source = spec.get("source")
    if source != "uv":
        return source
    built = ((look.started.get("asked") or {}).get("environment") or {}).get("built")
    return "uv" if built is None else "built" if built else "reused"


def _lock(look: Look, spec: Json) -> Optional[str]:
    """The digest of the lock, if the lock of that digest stood beside the interpreter."""
    return spec.get("lock_sha256") if look.attempt.has(LOCK) else None


def _unlocked(spec: Json) -> str:
    if spec.get("lock_sha256"):
        return "the lock did not stand beside the interpreter"
    return "no environment was built from a lock"
