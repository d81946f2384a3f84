"""The command line: `main` is what `route` calls. It imports nothing before it has to."""

from __future__ import annotations

# What type checkers read as typing's own; importing that would cost 3 ms.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run `route` with `argv` (default: the process's arguments) and end the process.

    Raises nothing but `SystemExit`: whatever goes wrong is one line on stderr and a code of
    `docs/commands.md`.
    """
    import os
    import sys

    # A closed one leaves its number free for the next file that is opened, which must not be ours.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    code = 0
    try:
        code = _call(sys.argv[1:] if argv is None else list(argv))
    except BrokenPipeError:
        # Whoever read our output has seen enough; Python would complain again while closing it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 141
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _call(args: list[str]) -> int:
    import os
    import sys

    if args in (["--version"], ["-V"]):
        from compute_router import __version__

        sys.stdout.write(f"route {__version__}\n")
        sys.stdout.flush()
        return 0
    if os.environ.get("_ROUTE_COMPLETE"):
        from compute_router.cli.completing import complete

        return complete(os.environ["_ROUTE_COMPLETE"])
    from compute_router.cli.app import start

    return start(args)
