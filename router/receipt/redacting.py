"""Removes what looks like a secret from arguments and sentences before they stand in a receipt."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from compute_router import scrubbing
from compute_router.receipt.shapes import shapes

__all__ = ["Redactor"]

_NAME = re.compile(r"(?i)(key|token|secret|pass|cred|auth)")
_VARIABLE = re.compile(
    r"(?i)(?:^|_)(?:api_?key|\w*key|token|secret|pass|passwd|password|passphrase|creds?|credentials?|auth)(?:_|$)"
)
LEAST_VALUE = 8
_RULES: tuple[tuple[str, re.Pattern[str], str], ...] = (
    ("url_userinfo", re.compile(r"(?<=://)[^/@\s]+@"), "***@"),
    (
        "url_signature",
        re.compile(
            r"(?i)(?<=[?&])((?:x-amz-|x-goog-)?(?:signature|credential|security-token)|sig|token)=[^&\s]+"
        ),
        r"\1=***",
    ),
)


def ambient(environ: Mapping[str, str]) -> dict[str, str]:
    """Variables whose name speaks of a secret and whose value may be one: no path, no number, no word."""
    found = {}
    for name, value in environ.items():
        odd = "/" not in value[:1] and any(c.isdigit() for c in value) and any(c.isalpha() for c in value)
        if _VARIABLE.search(name) and len(value) >= LEAST_VALUE and odd:
            found[name] = value
    return found


class Redactor:
    """Counts what it removed, by rule and field; never keeps what it was."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._look = scrubbing.scrubber(ambient(os.environ))

    def text(self, text: str, field: str) -> str:
        """`text` without secrets this process knows or has in its environment, without addresses'
        passwords and signatures, and without tokens of known form."""
        text = self.value(text, field)
        for rule, pattern, instead in _RULES:
            text, count = pattern.subn(instead, text)
            self._count(rule, field, count)
        for shape in shapes(text):
            text, count = shape.removed(text)
            self._count("known_token", field, count)
        return text

    def value(self, text: str, field: str) -> str:
        """`text` without the values of secrets alone, in whatever form they stand there."""
        if self._look is not None:
            text, counts = self._look.replaced(text)
            self._count("declared_secret", field, sum(counts.values()))
        return text

    def data(self, data: Any, field: str) -> Any:
        """Plain data with `value` done to every text in it."""
        if self._look is None:
            return data
        if isinstance(data, str):
            return self.value(data, field)
        if isinstance(data, Mapping):
            return {name: self.data(item, field) for name, item in data.items()}
        return [self.data(item, field) for item in data] if isinstance(data, (list, tuple)) else data

    def args(self, args: Sequence[str], field: str) -> list[str]:
        """Arguments without the values of options whose name speaks of a secret."""
        kept: list[str] = []
        hide = False
        for arg in args:
            name, eq, _ = arg.partition("=")
            if hide and not arg.startswith("-"):
                kept.append("***")
                self._count("secret_option", field, 1)
                hide = False
                continue
            hide = arg.startswith("-") and not eq and bool(_NAME.search(arg))
            if eq and _NAME.search(name):
                kept.append(f"{name}=***")
                self._count("secret_option", field, 1)
            else:
                kept.append(self.text(arg, field))
        return kept

    def _count(self, rule: str, field: str, count: int) -> None:
        if count:
            self._counts[rule, field] = self._counts.get((rule, field), 0) + count

    def told(self) -> list[dict[str, Any]]:
        """What was removed: rule, field, how often."""
        return [{"rule": r, "field": f, "count": n} for (r, f), n in sorted(self._counts.items())]
