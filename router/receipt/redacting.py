"""Removes what looks like a secret from arguments and sentences before they stand in a receipt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

__all__ = ["Redactor"]

_NAME = re.compile(r"(?i)(key|token|secret|pass|cred|auth)")
_RULES: tuple[tuple[str, re.Pattern[str], str], ...] = (
    ("url_userinfo", re.compile(r"(?<=://)[^/@\s]+@"), "***@"),
    ("url_signature", re.compile(r"(?i)(?<=[?&])(x-amz-signature|sig|token|signature)=[^&\s]+"), r"\1=***"),
    (
        "known_token",
        re.compile(
            r"\b(AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|AIza[\w-]{30,}|xox[abpr]-[\w-]{10,}"
            r"|hf_[A-Za-z0-9]{20,}|sk-[\w-]{20,}|a[ks]-[A-Za-z0-9]{20,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,})"
        ),
        "***",
    ),
)


class Redactor:
    """Counts what it removed, by rule and field; never keeps what it was."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}

    def text(self, text: str, field: str) -> str:
        """`text` without addresses' passwords, signatures and tokens of known form."""
        for rule, pattern, instead in _RULES:
            text, count = pattern.subn(instead, text)
            self._count(rule, field, count)
        return text

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
