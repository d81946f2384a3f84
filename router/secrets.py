"""Resolve secrets by name; their values live in memory only and go to the work alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from compute_router.errors import CredentialsError

__all__ = ["resolve"]


def resolve(names: Sequence[str], *, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The values of `names`, from the environment.

    Raises `CredentialsError` that names all that are missing; an empty value counts as missing.
    """
    environ = os.environ if environ is None else environ
    missing = [name for name in names if not environ.get(name)]
    if missing:
        what = "secret" if len(missing) == 1 else "secrets"
        raise CredentialsError(
            f"missing {what}: {', '.join(missing)}", mend=f"export {missing[0]}=... and run it again"
        )
    return {name: environ[name] for name in names}
