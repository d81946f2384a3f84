"""The receipt's schema as data: every field, its type, unit, origin, class, block and legal sources.

A receipt is one JSON object. Fields of the block `receipt` stand at its top as plain values; all
others stand below `context`, at their path, as a *fact*:

    {"v": value, "src": source, "at": epoch microseconds}
    {"v": null, "why": "unobserved: reason"}        nobody saw it; never equal to anything, itself included
    {"v": null, "why": "not_applicable: reason"}    set by kind and hardware class; equal to itself

A field is never missing. Inside the elements of a list, null (or the word `unobserved`, where the
enumeration has it) means that this part was not seen. Fields of the block `measured` are read by
rule from the measured block, which the supervisor wrote; `verify` reads them again and compares.
"""

from __future__ import annotations

from typing import NamedTuple

from compute_router.receipt.fields import FIELDS, ITEMS

__all__ = [
    "BLOCKS",
    "BY_PATH",
    "CLASSES",
    "ENUMS",
    "ITEMS",
    "MEASURED",
    "ORIGINS",
    "RULES",
    "SCHEMA",
    "SOURCES",
    "TABLE",
    "SchemaField",
    "table",
]

SCHEMA = "route.receipt/1"
MEASURED = "route.measured/1"
RULES = 4
"""The version of the rules by which derived and observed fields are made from the rest."""

CLASSES = {
    "K": "key: must be equal for two receipts to be compared",
    "W": "warn: a difference is listed",
    "V": "may vary: the variable under test, unless a study fixes it",
    "I": "information: never compared",
}
ORIGINS = {
    "decl": "declared by the user",
    "obs": "observed on the machine or by the client",
    "der": "derived by rule from other fields",
}
BLOCKS = {
    "receipt": "a plain value at the top",
    "context": "a fact that the client adds",
    "measured": "a fact read by rule from the measured block",
}
SOURCES = {
    "requested": "the workload, its flags or the configuration say so",
    "observed": "seen on the machine, or by the client where it is the client's to see",
    "quoted": "a price or promise of the backend",
    "estimated": "the backend's estimate",
    "workload": "the work says so of itself",
    "derived": "computed from other fields of this receipt",
}
ENUMS: dict[str, tuple[str, ...]] = {
    "purpose": ("benchmark", "smoke", "bringup", "repeatable", "scale", "cold-start"),
    "started": ("routed", "recorded"),
    "surface": ("local", "reserved", "serverless", "slice", "cluster"),
    "coupling": ("independent", "single-node", "multi-node"),
    "warmth": ("any", "warm", "cold"),
    "match": (
        *("exact", "declared", "upgraded", "downgraded", "variant", "count_mismatch", "cpu_fallback"),
        *("shared", "unobserved"),
    ),
    "startup": (
        *("cold_image", "cold_container_cached_image", "warm_container", "warm_machine_fresh_process"),
        *("warm_machine_after_reboot", "snapshot_restore", "resumed_checkpoint", "unobserved"),
    ),
    "cache_state": (
        *("empty", "partial", "warm_same_key", "warm_other_image", "warm_other_world", "baked_image"),
        *("seeded_tarball", "disabled", "unwritable", "unobserved"),
    ),
    "cache_kind": (
        *("inductor", "triton", "autotune", "cuda", "ccache", "torch_extensions", "xla_hlo", "jax_pcc"),
        *("hf_hub", "dataset", "pip", "page_cache"),
    ),
    "cache_verdict": ("hit", "partial", "miss", "failed_load", "disabled", "unobserved"),
    "seed_source": ("previous_run", "bucket", "image", "api_blobs", "none", "unobserved"),
    "storage_class": (
        *("container_ephemeral", "image_baked", "modal_volume_v1", "modal_volume_v2", "bucket_fuse"),
        *("object_direct", "local_nvme", "local_disk", "network_block", "network_fs", "tmpfs", "unobserved"),
    ),
    "volume_event": (
        *("created", "staged", "reused", "refreshed", "reloaded", "committed", "commit_failed", "evicted"),
        *("deleted", "unobserved"),
    ),
    "posture": ("eager", "regional", "whole_graph", "xla_step", "aot", "mixed", "unobserved"),
    "stage": (
        *("plan", "resolve", "lease", "image_build", "schedule", "stage_in", "bootstrap", "launch"),
        *("compile_warmup", "first_collective", "steady", "eval", "checkpoint", "stage_out", "commit"),
        *("collect", "receipt", "persist"),
    ),
    "state": ("succeeded", "failed", "cancelled", "timed_out", "preempted", "lost"),
    "outcome": ("run", "wait", "warm", "refused"),
    "evidence": ("claim", "exploratory", "anecdote", "invalid"),
}


class SchemaField(NamedTuple):
    """One field. `type` is one of the types below; `of` is its path in the measured block.

    `text`, `int` (0 <= n < 2^53), `signed`, `bool`, `hex` (lower case), `decimal` (a string),
    `texts`, `numbers`, `map` (of text), `json` (anything canonical), `enum:NAME`, `open:NAME` (other
    words are allowed too), `list:NAME` (of the items of that name).
    `since` is the minor step of the schema it came with; receipts of step n have `rules` n + 1.
    """

    path: str
    type: str
    origin: str
    cls: str
    block: str
    sources: tuple[str, ...]
    unit: str
    about: str
    of: str
    since: int = 1


def _parse(text: str) -> tuple[SchemaField, ...]:
    """The fields of `FIELDS`: one line each, columns parted by `|`, a trailing `@path` names `of`."""
    found = []
    for line in text.strip().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        path, type_, origin, cls, block, sources, unit, about = (part.strip() for part in line.split("|"))
        about, _, since = about.partition(" ~")
        about, _, of = about.partition(" @")
        legal = {"o": "observed", "w": "workload", "r": "requested", "d": "derived", "q": "quoted"}
        legal["e"] = "estimated"
        named = tuple(legal[letter] for letter in sources)
        found.append(
            SchemaField(path, type_, origin, cls, block, named, unit, about, of or path, int(since or 1))
        )
    return tuple(found)


TABLE: tuple[SchemaField, ...] = _parse(FIELDS)
BY_PATH = {field.path: field for field in TABLE}


def table() -> str:
    """The schema as the Markdown of `docs/receipts.md`."""
    lines = ["| Field | Type | Unit | Origin | Class | Block | Sources | Since | Meaning |", "|---" * 9 + "|"]
    for f in TABLE:
        cells = (
            f"`{f.path}`",
            f.type,
            f.unit,
            f.origin,
            f.cls,
            f.block,
            ", ".join(f.sources),
            f"1.{f.since}",
        )
        lines.append(f"| {' | '.join((*cells, f.about))} |")
    lines += ["", "Items of lists:", "", "| List | Fields |", "|---|---|"]
    for name, items in ITEMS.items():
        lines.append(f"| `{name}` | {', '.join(f'`{key}` {kind}' for key, kind in items.items())} |")
    lines += ["", "Enumerations:", "", "| Name | Words |", "|---|---|"]
    lines += [f"| `{name}` | {', '.join(words)} |" for name, words in ENUMS.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
