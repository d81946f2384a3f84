"""Every key of `[tool.route]`: type, default, meaning, example. `docs/workloads.md` shows this table."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from compute_router.reading import values as v
from compute_router.workload import Coupling, Framework, Launcher, OnInterrupt, Purpose, Role, Warmth

__all__ = ["HINTS", "KEYS", "METRICS", "TABLES", "Key", "check"]


class Key(NamedTuple):
    """One key: `read` checks a value as TOML has it and returns it as `Workload` has it."""

    name: str
    type: str
    default: str
    example: str
    about: str
    read: Callable[[Any], Any]


def _anything(value: Any) -> str:
    return v.is_text(value, mend="put it in quotes")


def _backend_name(value: Any) -> str:
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or not value:
        raise v.Wrong(f"{value!r} is no name of a backend", "write [tool.route.backend.NAME]")
    return value


def _settings(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise v.Wrong("must be a table", "write [tool.route.backend.NAME] and its keys below")
    found = v.plain_json(value)
    assert isinstance(found, dict)
    return found


def _metrics(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise v.Wrong("must be a table", "write [tool.route.metrics] and its keys below")
    found = {}
    for name, item in value.items():
        if name not in METRICS:
            raise v.Wrong(f"has no key {name!r}", v.near(name, METRICS), (name,))
        try:
            found[name] = METRICS[name].read(item)
        except v.Wrong as e:
            raise v.Wrong(v.join(f".{name}", e.what), e.mend, (name, *e.path)) from None
    return found


def _fields(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise v.Wrong("must be a table", "write [tool.route.fields] and its keys below")
    found = v.plain_json(value)
    assert isinstance(found, dict)
    return found


_decimal = functools.partial(v.decimal, positive=True)
_index = functools.partial(v.url, what="https://index.example/simple", schemes=("https", "http", "file"))

_METRIC_KEYS = (
    Key("primary", "string", "the kind's", '"tok_s_global"', "the metric this run is made for", v.label),
    Key(
        "higher_is_better", "boolean", "true", "false", "which way of the primary metric is better", v.boolean
    ),
    Key(
        "discard_steps",
        "integer",
        "1",
        "3",
        "first steps that never count, those that compile",
        v.count(0, 10**6),
    ),
)
METRICS = {key.name: key for key in _METRIC_KEYS}

_ALL = (
    Key("name", "string", "the script's name", '"gpt-small"', "what the run is called in lists", v.label),
    Key("tags", "list of strings", "[]", '["nightly"]', "words to find runs by", v.items(v.label)),
    Key("kind", "string", '"train"', '"bench"', "the lane: train, bench, validate or a plugin's", v.label),
    Key(
        "purpose",
        "string",
        "the kind's",
        '"benchmark"',
        "why this run: benchmark, smoke, bringup, repeatable, scale or cold-start",
        v.choice(Purpose),
    ),
    Key(
        "args",
        "list of strings",
        "[]",
        '["--steps", "100"]',
        "arguments of the script; those after `--` take their place",
        v.items(_anything, unique=False),
    ),
    Key(
        "accelerator",
        "string",
        '"cpu"',
        '"H200:8"',
        "what each node must have: cpu, any, a GPU and its count, or a TPU slice (v6e-8)",
        v.accelerator,
    ),
    Key(
        "substitutes",
        "list of strings",
        "[]",
        '["H100:8"]',
        "what else would do; empty = exact or refuse",
        v.items(v.accelerator),
    ),
    Key(
        "coupling",
        "string",
        '"independent"',
        '"single-node"',
        "how tightly its processes move together: independent, single-node or multi-node",
        v.choice(Coupling),
    ),
    Key("nodes", "integer", "1", "2", "nodes, each with the accelerator", v.count(1, 4096)),
    Key(
        "launcher",
        "string",
        '"auto"',
        '"torchrun"',
        "what starts the processes: auto (torchrun when coupled or on several GPUs), python or torchrun",
        v.choice(Launcher),
    ),
    Key(
        "warmth",
        "string",
        '"any"',
        '"warm"',
        "the start state the claim needs: any, warm or cold",
        v.choice(Warmth),
    ),
    Key(
        "framework",
        "string",
        '"any"',
        '"torch"',
        "whose compiler path it is on: torch, xla, any or none",
        v.choice(Framework),
    ),
    Key(
        "shapes",
        "string",
        "none",
        '"gpt-small/bs8/seq1024"',
        "names the compiled shapes; part of the cache key",
        v.text,
    ),
    Key(
        "timeout", "duration", '"4h"', '"1h30m"', "most time one attempt may take: d, h, m and s", v.duration
    ),
    Key(
        "on_interrupt",
        "string",
        '"stop"',
        '"resume"',
        "what a preempted start may do: resume from its checkpoint, or stop",
        v.choice(OnInterrupt),
    ),
    Key(
        "secrets",
        "list of strings",
        "[]",
        '["HF_TOKEN"]',
        "names of environment variables whose values are secret",
        v.items(v.secret_name),
    ),
    Key(
        "env",
        "table of strings",
        "{}",
        '{ TORCH_LOGS = "recompiles" }',
        "environment variables of the work",
        v.table(v.variable, _anything, like='env = { NAME = "value" }'),
    ),
    Key(
        "outputs",
        "list of strings",
        "[]",
        '["results/"]',
        "files and folders to bring back, besides $ROUTE_OUTPUTS",
        v.items(v.relative),
    ),
    Key(
        "volumes",
        "table of strings",
        "{}",
        '{ compile-cache = "/cache", data = "/data" }',
        "state that outlives the run, by role (compile-cache, checkpoints, data, home), and where to see it",
        v.table(v.choice(Role), v.mount, like='volumes = { data = "/data" }'),
    ),
    Key(
        "buckets",
        "table of strings",
        "{}",
        '{ "/datasets" = "s3://corpus/tokens" }',
        "bulk data that is mostly read, and the path to see it at",
        v.table(v.mount, v.url, like='buckets = { "/datasets" = "s3://bucket/prefix" }'),
    ),
    Key(
        "stage",
        "list of tables",
        "[]",
        '[{ from = "/datasets/000*", to = "data" }]',
        "files copied once from a bucket or URL into the volume of a role",
        v.items(v.stage),
    ),
    Key(
        "metrics",
        "table",
        "below",
        '{ primary = "tok_s_global" }',
        "which metric counts, and from which step",
        _metrics,
    ),
    Key(
        "fields",
        "table",
        "{}",
        '{ preset = "small" }',
        "record fields of the kind, kept in the receipt",
        _fields,
    ),
    Key(
        "backend",
        "table of tables",
        "{}",
        "{ local = { exclusive = true } }",
        "a backend's own keys, checked by it; written [tool.route.backend.NAME]",
        v.table(_backend_name, _settings, like="[tool.route.backend.NAME]"),
    ),
    Key(
        "python",
        "string",
        "an environment if dependencies are listed, else the one that is there",
        '"current"',
        '"current", or the absolute path of an interpreter',
        v.python,
    ),
    Key(
        "import_probes",
        "list of strings",
        "[]",
        '["flash_attn", "apex"]',
        "modules that are imported before the work starts, to record whether and in which version they load",
        v.items(v.module),
    ),
    Key(
        "image",
        "string",
        "none",
        '"ghcr.io/me/train@sha256:..."',
        "container image, where the backend has them",
        v.text,
    ),
    Key(
        "package_index",
        "string",
        "uv's",
        '"https://index.example/simple"',
        "where dependencies come from",
        _index,
    ),
    Key(
        "price_limit",
        "decimal in a string",
        "none",
        '"4.50"',
        "most it may cost for each hour, in US dollars",
        _decimal,
    ),
)

KEYS = {key.name: key for key in _ALL}

TABLES = {"env": 1, "volumes": 1, "buckets": 1, "metrics": 1, "fields": 1, "backend": 2}
"""Keys whose tables are merged key by key, and how deep; everything else is replaced as a whole."""

HINTS = {
    "dependencies": "it stands above [tool.route], at the top of the script block",
    "requires-python": "it stands above [tool.route], at the top of the script block",
    "policy": "it is a flag (--policy) or a key of route.toml",
    "plugins": "it is a table of route.toml",
    "machines": "it is a table of route.toml",
    "profiles": "it is a table of route.toml",
    "profile": "it is a flag: --profile NAME",
    "backends": "settings of a backend for one workload are written [tool.route.backend.NAME]",
    "gpu": 'write accelerator = "H200:1"',
    "gpus": 'write accelerator = "H200:8"',
    "tpu": 'write accelerator = "v6e-8"',
    "command": "to run a command: route run -- ./PROGRAM ARGUMENTS",
    "workdir": "the work starts in the folder you stand in",
    "cwd": "the work starts in the folder you stand in",
}
"""Words people write that are no keys, and what to write."""


def check(key: str, value: Any) -> Any:
    """The value of `key` as `Workload` has it. Raises `Wrong`; its path begins with the key."""
    if key not in KEYS:
        raise v.Wrong(f"there is no key {key!r}", HINTS.get(key) or v.near(key, KEYS), (key,))
    try:
        return KEYS[key].read(value)
    except v.Wrong as e:
        raise v.Wrong(v.join(key, e.what), e.mend, (key, *e.path)) from None
    except RecursionError:
        raise v.Wrong(f"{key} is nested too deeply", "make it flatter", (key,)) from None
