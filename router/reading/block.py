"""The text of a script and the `# /// script` block in it, as PEP 723 has them. Nothing is run."""

from __future__ import annotations

import re
import stat
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

from compute_router.errors import WorkloadError

__all__ = ["Block", "check_syntax", "read_bytes", "script_block", "to_text"]

MOST_BYTES = 16 << 20
_COOKIE = re.compile(rb"^[ \t\f]*#.*?coding[:=]")
_OPENING = re.compile(r"# /// ([a-zA-Z0-9-]+)")
_LOST_TABLE = re.compile(r"[ \t]*#+[ \t]*\[tool\.route(?:\.[\w.-]+)?\][ \t]*(?:#.*)?")


class Block(NamedTuple):
    """The TOML of a block; its line 1 stands in line `first` of the script."""

    toml: str
    first: int


def read_bytes(path: Path, shown: str, *, what: str = "script") -> bytes:
    """The bytes of a regular file. Raises `WorkloadError` in words for everything else."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise WorkloadError(f"{shown} is a folder, not a {what}", mend=f"name a file in it: {shown}/...")
        if not stat.S_ISREG(mode):
            raise WorkloadError(f"{shown} is not a regular file", mend=f"name a {what}")
        if path.stat().st_size > MOST_BYTES:
            raise WorkloadError(f"{shown} is larger than 16 MiB, which no {what} is", mend=f"name a {what}")
        return path.read_bytes()
    except PermissionError:
        raise WorkloadError(
            f"{shown} may not be read", mend=f"chmod u+r {shown}, or run as its owner"
        ) from None
    except (OSError, ValueError) as e:
        why = getattr(e, "strerror", None) or "its name cannot be used"
        raise WorkloadError(f"{shown} cannot be read: {why}", mend="check the path") from None


def to_text(data: bytes, shown: str) -> str:
    """Decode a script as Python would (BOM, encoding cookie, else UTF-8); every line ends in `\\n`.

    Raises `WorkloadError` with the line for bytes that are no text in that encoding.
    """
    if b"\0" in data:
        raise WorkloadError(
            f"{shown} is a binary file, not a Python script",
            mend="to run it as a command: route run -- ./PROGRAM",
        )
    encoding = "utf-8-sig"
    # A cookie is rare, and the standard library's reader of it costs more than the rest.
    if any(_COOKIE.match(line) for line in data.split(b"\n", 2)[:2]):
        encoding = _cookie(data, shown)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise WorkloadError(
            f"the bytes here are not {encoding.removesuffix('-sig')}",
            mend="save the file as UTF-8, or name its encoding in line 1: # -*- coding: latin-1 -*-",
            file=shown,
            line=line,
        ) from None
    except (UnicodeError, LookupError):
        raise _bad_cookie(encoding, shown) from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _cookie(data: bytes, shown: str) -> str:
    import tokenize

    lines = iter(data.split(b"\n", 2)[:2])
    try:
        return tokenize.detect_encoding(lambda: next(lines, b""))[0]
    except (SyntaxError, ValueError) as e:
        raise _bad_cookie(str(e), shown) from None


def _bad_cookie(why: str, shown: str) -> WorkloadError:
    return WorkloadError(
        f"the encoding this file names cannot be used ({why})",
        mend="save the file as UTF-8 and take the line out",
        file=shown,
        line=1,
    )


def script_block(text: str, shown: str) -> Block | None:
    """The one `# /// script` block of a script, or None.

    A block ends at the last `# ///` before its comment lines stop, as in PEP 723. Raises
    `WorkloadError` for two blocks, for one that is never closed, and for a `[tool.route]` that
    stands in comments outside any block, where it would silently mean nothing.
    """
    lines = text.split("\n")
    found: list[Block] = []
    index = 0
    while index < len(lines):
        opening = _OPENING.fullmatch(lines[index])
        index += 1
        if opening is None:
            continue
        start = stop = index
        while stop < len(lines) and (lines[stop] == "#" or lines[stop].startswith("# ")):
            stop += 1
        end = next((i for i in range(stop - 1, start - 1, -1) if lines[i] == "# ///"), None)
        if opening[1] != "script":
            index = index if end is None else end + 1
            continue
        if end is None:
            raise WorkloadError(
                "this script block is never closed",
                mend='end it with a line "# ///", and begin each line in between with "# "',
                file=shown,
                line=start,
            )
        if found:
            raise WorkloadError(
                f"a second script block (the first stands at line {found[0].first - 1})",
                mend="a script has one block: move what is in this one into the first",
                file=shown,
                line=start,
            )
        content = (line[2:] if line.startswith("# ") else line[1:] for line in lines[start:end])
        found.append(Block("\n".join(content), start + 1))
        index = end + 1
    if not found and "[tool.route" in text:
        for number, line in enumerate(lines, 1):
            if _LOST_TABLE.fullmatch(line):
                raise WorkloadError(
                    "[tool.route] stands outside a script block, where it means nothing",
                    mend='put a line "# /// script" above it and a line "# ///" below, at the left margin',
                    file=shown,
                    line=number,
                )
    return found[0] if found else None


def check_syntax(data: bytes, shown: str, requires_python: str | None) -> str | None:
    """Compile the script without running it, as Python would before the first line of it.

    Raises `WorkloadError` with the line. Where the script asks for a later Python than this one,
    an error here proves nothing: then it is returned as a warning.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(data, shown, "exec", dont_inherit=True)
    except SyntaxError as e:
        wanted = re.search(r"(?:>=?|~=|==)\s*3\.(\d+)", requires_python or "")
        here = f"{sys.version_info[0]}.{sys.version_info[1]}"
        what = f"syntax error: {e.msg}"
        if wanted and int(wanted[1]) > sys.version_info[1]:
            return f"{shown}:{e.lineno}: {what}, says Python {here}; the script asks for {requires_python}"
        raise WorkloadError(
            what, mend=f"Python {here} cannot compile this line", file=shown, line=e.lineno or 1
        ) from None
    except (RecursionError, MemoryError, ValueError, OverflowError) as e:
        raise WorkloadError(
            f"Python cannot compile this script ({type(e).__name__})",
            mend="make it less deeply nested",
            file=shown,
        ) from None
    return None
