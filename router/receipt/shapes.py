"""The forms of known tokens: those that ML work meets, and those of detect-secrets where it is installed.

detect-secrets is the extra `secrets`: it needs `requests` and takes a fifth of a second to import,
so the base install goes without. Its rules are read as they are, from whatever version is there.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterator

__all__ = ["OURS", "Shape", "shapes"]

OURS: tuple[tuple[str, str], ...] = (
    ("huggingface", r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}"),
    ("ak_as", r"\ba[ks]-[A-Za-z0-9]{20,}"),
    ("github", r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}"),
    ("gitlab", r"\bgl(?:pat|dt|rt|ptt|soat|cbt)-[\w-]{20,}"),
    ("openai", r"\bsk-[\w-]{20,}"),
    ("google", r"\bAIza[\w-]{30,}|\bya29\.[\w-]{20,}|\bGOCSPX-[\w-]{20,}"),
    ("slack", r"\bxox[abeoprs]-[\w-]{10,}|\bxapp-\d-[A-Za-z0-9-]{20,}"),
    ("aws", r"\b(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}\b"),
    ("jwt", r"\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,}"),
    ("wandb", r"(?i)(?<=wandb)\W{1,3}(?:api[_-]?key)?\W{0,3}([0-9a-f]{40})\b"),
    ("nvidia", r"\bnvapi-[\w-]{20,}"),
    ("replicate", r"\br8_[A-Za-z0-9]{20,}"),
    ("groq_xai", r"\b(?:gsk_|xai-)[A-Za-z0-9]{20,}"),
    ("databricks", r"\bdapi[0-9a-f]{32}(?:-\d)?\b"),
    ("vault", r"\bhv[sbr]\.[\w-]{20,}"),
    ("package_index", r"\bpypi-[\w-]{40,}|\bnpm_[A-Za-z0-9]{30,}"),
    ("stripe", r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,}"),
    ("sendgrid", r"\bSG\.[\w-]{16,}\.[\w-]{16,}"),
    ("digitalocean", r"\bdo[opr]_v1_[0-9a-f]{64}\b"),
    ("pem", r"-----BEGIN[ A-Z0-9_-]{0,100}PRIVATE KEY[\s\S]*?(?:-----END[ A-Z0-9_-]{0,100}-----|\Z)"),
)

_PLUGINS = """artifactory aws azure_storage_key cloudant discord github_token gitlab_token ibm_cloud_iam
ibm_cos_hmac jwt mailchimp npm openai pypi_token sendgrid slack softlayer square_oauth stripe
telegram_token twilio"""
"""The detectors of detect-secrets that know a form. Those that judge by entropy or by a word alone would
take digests for secrets, which receipts are full of."""


class Shape:
    """One rule: its name, and where in a match the token is (the first group that matched, else all)."""

    def __init__(self, name: str, pattern: re.Pattern[str]) -> None:
        self.name, self.pattern = name, pattern

    def removed(self, text: str) -> tuple[str, int]:
        """`text` with `***` for every token of this form, and how many."""
        made, at, count = [], 0, 0
        for match in self.pattern.finditer(text):
            groups = [number for number, part in enumerate(match.groups(), 1) if part]
            start, end = match.span(groups[0] if groups else 0)
            if start >= at and end > start and text[start:end].strip("*"):
                made.append(text[at:start] + "***")
                at, count = end, count + 1
        return ("".join([*made, text[at:]]), count) if count else (text, 0)


_LIKE = re.compile(r"\b(?![0-9a-f]{12,31}\b)(?=[A-Za-z_/+-]*[0-9])[\w/+-]{12,}|[A-Za-z]{20,}")
"""What stands in every token that a rule of detect-secrets knows, and not in a short digest: without it
they need not be loaded."""


def shapes(text: str) -> tuple[Shape, ...]:
    """The rules that may find something in `text`, ours first."""
    return (*_ours(), *_installed()) if _LIKE.search(text) else _ours()


@functools.cache
def _ours() -> tuple[Shape, ...]:
    return tuple(Shape(name, re.compile(pattern)) for name, pattern in OURS)


@functools.cache
def _installed() -> tuple[Shape, ...]:
    """The rules of detect-secrets; none where it, or one of its detectors, is not there."""
    return tuple(_read())


def _read() -> Iterator[Shape]:
    try:
        base = importlib.import_module("detect_secrets.plugins.base").RegexBasedDetector
    except (ImportError, AttributeError):
        return
    for name in _PLUGINS.split():
        try:
            module = importlib.import_module(f"detect_secrets.plugins.{name}")
        except ImportError:
            continue
        for found in list(vars(module).values()):
            if isinstance(found, type) and issubclass(found, base) and found.__module__ == module.__name__:
                for pattern in found().denylist:
                    yield Shape(name, pattern)
