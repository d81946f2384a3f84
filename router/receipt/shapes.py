"""The forms of known tokens: the rules of gitleaks as data, and what they lack.

`shapes.json` beside this is made from gitleaks' own `config/gitleaks.toml` (MIT licence, its text
in `shapes.LICENSE`) by `python -m compute_router.receipt.shapes gitleaks.toml COMMIT`; run that
on a newer one to renew it.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from pathlib import Path
from typing import Any

__all__ = ["OURS", "Shape", "convert", "shapes"]

FILE = Path(__file__).with_name("shapes.json")
OMITTED = {"generic-api-key"}
"""Judges by entropy alone, which a digest has as well."""
OURS: tuple[tuple[str, str], ...] = (
    ("huggingface", r"\bhf_[A-Za-z0-9]{20,}"),
    ("ak_as", r"\ba[ks]-[A-Za-z0-9]{20,}"),
    ("github", r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}"),
    ("openai", r"\bsk-[\w-]{20,}"),
    ("google", r"\bAIza[\w-]{30,}|\bya29\.[\w-]{20,}"),
    ("slack", r"\bxox[abeoprs]-[\w-]{10,}"),
    ("aws", r"\b(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}\b"),
    ("jwt", r"\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,}"),
    ("wandb", r"(?i)(?<=wandb)\W{1,3}(?:api[_-]?key)?\W{0,3}([0-9a-f]{40})\b"),
    ("pem", r"-----BEGIN[ A-Z0-9_-]{0,100}PRIVATE KEY[\s\S]*?(?:-----END[ A-Z0-9_-]{0,100}-----|\Z)"),
)


class Shape:
    """One rule: its name, the words of which one must stand in a text, and where the token is."""

    def __init__(self, name: str, pattern: str, words: tuple[str, ...] = (), group: int = 0) -> None:
        self.name, self.words, self._pattern, self._group = name, words, pattern, group

    @functools.cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(self._pattern)

    def removed(self, text: str, lower: str) -> tuple[str, int]:
        """`text` (`lower` in lower case) with `***` for every token of this form, and how many."""
        if self.words and not any(word in lower for word in self.words):
            return text, 0
        made, at, count = [], 0, 0
        for match in self.pattern.finditer(text):
            groups = [i for i, part in enumerate(match.groups(), 1) if part]
            start, end = match.span(self._group or (groups[0] if groups else 0))
            if start >= at and end > start and match.string[start:end].strip("*"):
                made.append(text[at:start] + "***")
                at, count = end, count + 1
        return ("".join([*made, text[at:]]), count) if count else (text, 0)


@functools.cache
def shapes() -> tuple[Shape, ...]:
    """Every rule, ours first. Read once; a pattern is compiled when a text has one of its words."""
    rules: list[Any] = json.loads(FILE.read_bytes())["rules"]
    ours = [Shape(name, pattern) for name, pattern in OURS]
    return (*ours, *(Shape(r["id"], r["regex"], tuple(r["words"]), r["group"]) for r in rules))


def convert(pattern: str) -> str:
    """A pattern of RE2 as Python has it: a flag in the middle becomes a group to the end of its own."""
    pattern = pattern.replace(r"\z", r"\Z")
    out, ends, at, inside = [], [0], 0, False
    while at < len(pattern):
        if pattern[at] == "\\":
            out.append(pattern[at : at + 2])
            at += 2
            continue
        char = pattern[at]
        if inside:
            # A bracket in a class is none; Python warns that it may become one.
            out.append("\\[" if char == "[" else char)
            inside = char != "]" or pattern[at - 1] == "["
        elif char == "[":
            inside = True
            out.append(char)
        elif pattern.startswith("(?i)", at) and at:
            out.append("(?i:")
            ends[-1] += 1
            at += 4
            continue
        else:
            if char == "(":
                ends.append(0)
            if char == ")":
                out.append(")" * ends.pop())
            out.append(char)
        at += 1
    return "".join([*out, ")" * ends.pop()])


def main(config: str, commit: str) -> None:
    """Write `shapes.json` from a `gitleaks.toml`; what cannot be taken over is told."""
    import tomllib

    rules = []
    for rule in tomllib.loads(Path(config).read_text("utf-8"))["rules"]:
        if rule["id"] in OMITTED or "regex" not in rule:
            continue
        try:
            re.compile(pattern := convert(rule["regex"]))
        except re.error as e:
            print(f"{rule['id']}: left out: {e}", file=sys.stderr)
            continue
        words = [word.lower() for word in rule.get("keywords", ())]
        rules.append(
            {"id": rule["id"], "regex": pattern, "words": words, "group": rule.get("secretGroup", 0)}
        )
    source = {"source": "https://github.com/gitleaks/gitleaks", "commit": commit, "licence": "MIT"}
    FILE.write_text(json.dumps({**source, "rules": rules}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
