"""The same for several runs: one that cannot be served does not keep the others from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from compute_router.cli.call import Cli
from compute_router.errors import RouteError

__all__ = ["each"]


def each(cli: Cli, refs: Sequence[str], serve: Callable[[str], dict[str, Any]]) -> int:
    """Serve every ref; the data is a list of what `serve` returned. Exits with the first failure's code."""
    if len(refs) == 1:
        cli.out.done([serve(refs[0])])
        return 0
    served: list[dict[str, Any]] = []
    first: RouteError | None = None
    for ref in refs:
        try:
            served.append(serve(ref))
        except RouteError as e:
            served.append({"ref": ref, "error": {"code": e.code, "what": e.what, "mend": e.mend}})
            if first is not None:
                cli.out.note(f"route: {e.what}")
            first = first or e
    if first is None:
        cli.out.done(served)
        return 0
    cli.out.failed(first.code, first.what, mend=first.mend, file=first.file, line=first.line, data=served)
    return int(first.exit_code)
