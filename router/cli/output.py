"""The one module that prints: text or tables for people, one JSON document for programs.

What a verb found goes to stdout, everything else to stderr. With `--json` stdout carries nothing
but `route.cli/1` documents. Colours and drawn tables appear on a terminal only.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TextIO

from compute_router.cli.words import one_line, visible
from compute_router.errors import InputError
from compute_router.scrubbing import clean, clean_bytes, cleaned

__all__ = ["SCHEMA", "Output", "problem", "written"]

SCHEMA = "route.cli/1"

_STYLES = {
    "succeeded": "green",
    "running": "cyan",
    "starting": "cyan",
    "staging": "cyan",
    "waiting": "yellow",
    "unknown": "yellow",
    "orphaned": "yellow",
    "failed": "red",
    "lost": "red",
    "timed_out": "red",
    "preempted": "yellow",
    "cancelled": "yellow",
    "yes": "green",
    "ok": "green",
    "no": "red",
    "offer": "green",
    "chosen": "green",
    "no offer": "yellow",
}


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):
        return False


def problem(
    code: str, what: str, mend: str = "", file: str | None = None, line: int | None = None
) -> dict[str, Any]:
    """The `error` of a document."""
    return {"code": code, "what": what, "mend": mend, "file": file, "line": line}


class Stops(Protocol):
    """What shows on the terminal that something is under way."""

    def stop(self) -> None: ...


class Output:
    """Where one call of `route` writes. `command` is the verb, once it is known."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.command = ""
        self.warnings: list[str] = []
        self.finished = False
        self.holding = False
        """Whether a good result is kept in `held` for the verb, which has still to judge it."""
        self.held: Any = None
        self._busy: Stops | None = None
        self.before_done: Callable[[], None] = lambda: None
        """Called before the result is printed: the last moment for a warning to stand in it."""
        # Names and messages may hold characters that the terminal's encoding does not have.
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")

    @property
    def terminal(self) -> bool:
        """Whether a person reads stdout as it comes."""
        return not self.as_json and _is_terminal(sys.stdout)

    @property
    def terminal_err(self) -> bool:
        """Whether a person reads stderr as it comes."""
        return _is_terminal(sys.stderr)

    @property
    def columns(self) -> int:
        """How many characters fit on a line of the terminal."""
        return _columns()

    def styled(self, text: str, style: str, *, err: bool = False) -> str:
        """`text` in a colour or weight where a terminal reads it and NO_COLOR is not set."""
        terminal = self.terminal_err if err else self.terminal
        if not terminal or os.environ.get("NO_COLOR"):
            return text
        import click

        return click.style(text, bold=True) if style == "bold" else click.style(text, fg=style)

    # What the verb found

    def line(self, text: str = "", *, style: str = "") -> None:
        """One line for people on stdout; nothing with `--json`."""
        if not self.as_json:
            shown = visible(text)
            self._put((self.styled(shown, style) if style else shown) + "\n")

    def paragraph(self, text: str) -> None:
        """A sentence for people on stdout, folded on a terminal."""
        if not self.as_json:
            self._put(self._folded(one_line(text), 0) + "\n")

    def marked(self, good: bool, text: str, *, warns: bool = False) -> None:
        """A line on stdout that says first whether something is good, or (!!) good with a warning; folded
        on a terminal."""
        mark = self.styled("no", "red")
        if good:
            mark = self.styled("!!", "yellow") if warns else self.styled("ok", "green")
        if not self.as_json:
            self._put(f"  {mark}  {self._folded(one_line(text), 6)}\n")

    def below(self, text: str) -> None:
        """A line that belongs to the marked one above it."""
        if not self.as_json:
            self._put(f"      {self._folded(one_line(text), 6)}\n")

    def _folded(self, text: str, indent: int, *, err: bool = False) -> str:
        """`text` in as many lines as a terminal needs, all but the first indented."""
        if not (self.terminal_err if err else self.terminal):
            return text
        import textwrap

        # The first line has something in front of it already, so it is no wider than the rest.
        room = max(_columns() - indent, 20)
        # A command is kept on one line, so that it can be taken whole.
        whole = "`".join(
            part.replace(" ", "\xa0") if i % 2 else part for i, part in enumerate(text.split("`"))
        )
        lines = textwrap.wrap(whole, room, break_on_hyphens=False, break_long_words=False)
        return ("\n" + " " * indent).join(lines or [""]).replace("\xa0", " ")

    def pairs(self, rows: Sequence[tuple[str, str]]) -> None:
        """Labelled values under each other; a long value is folded under itself on a terminal."""
        if self.as_json or not rows:
            return
        rows = [(one_line(label), value) for label, value in rows]
        left = max(len(label) for label, _ in rows) + 2
        for label, value in rows:
            shown = self._folded(one_line(value), left)
            if shown in _STYLES:
                shown = self.styled(shown, _STYLES[shown])
            self._put(f"{self.styled(label, 'bold')}{' ' * (left - len(label))}{shown}".rstrip() + "\n")

    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[str]], *, fold: Sequence[str] = ()
    ) -> None:
        """A table on stdout; the last column, and those called `fold`, are folded on a terminal and left
        long off it."""
        if self.as_json:
            return
        cells = [[one_line(cell) for cell in row] for row in rows]
        if self.terminal:
            self._put(_drawn(header, cells, fold))
            return
        widths = [max(len(row[i]) for row in [list(header), *cells]) for i in range(len(header))]
        for row in [list(header), *cells]:
            parts = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            self._put("  ".join(parts).rstrip() + "\n")

    # The streams themselves

    def _put(self, text: str) -> None:
        self.calm()
        with written():
            sys.stdout.write(clean(text))

    def bytes(self, data: bytes) -> None:
        """Bytes to stdout as they are, at once."""
        self.calm()
        with written():
            sys.stdout.flush()
            sys.stdout.buffer.write(clean_bytes(data))
            sys.stdout.buffer.flush()

    def text(self, text: str) -> None:
        """Text to stdout as it is, at once."""
        self._put(text)
        self.flush()

    def flush(self) -> None:
        """Bring to stdout what was held back. Raises `InputError` if it cannot be written."""
        with written():
            sys.stdout.flush()

    def _say(self, text: str) -> None:
        self.calm()
        try:
            sys.stderr.write(clean(text))
            sys.stderr.flush()
        except OSError:
            # The terminal is gone: nobody is left to tell.
            return

    def busy(self, text: str) -> None:
        """On a terminal: show that `text` is under way, until anything else is printed."""
        self.calm()
        if self.terminal_err and not self.as_json:
            from compute_router.cli.busy import Busy

            self._busy = Busy(one_line(text))

    def showing(self, shown: Stops) -> None:
        """`shown` is on the terminal until anything else is printed; then it is told to stop."""
        self._busy = shown

    def calm(self) -> None:
        """Nothing is under way any more."""
        if self._busy is not None:
            busy, self._busy = self._busy, None
            busy.stop()

    # Lines of a stream

    def event(self, event: Mapping[str, Any]) -> None:
        """With `--json`: one line of a stream, at once. The result's document comes last."""
        if self.as_json:
            self._document({"schema": SCHEMA, "command": self.command, **event})

    # What surrounds it

    def note(self, text: str, *, style: str = "") -> None:
        """One line for people on stderr; folded on a terminal."""
        shown = self._folded(visible(text), 4, err=True)
        self._say((self.styled(shown, style, err=True) if style else shown) + "\n")

    def stage(self, name: str, text: str) -> None:
        """One line of progress on stderr, its stage in a column of its own."""
        label = self.styled(f"{name:<10}", _STYLES.get(name, "bold"), err=True)
        self._say(f"{label} {self._folded(one_line(text), 11, err=True)}".rstrip() + "\n")

    def _headed(self, head: str, style: str, text: str) -> None:
        """A line on stderr that begins with `head` in a colour."""
        shown = self._folded(f"{head} {one_line(text)}", 2, err=True)
        self._say(self.styled(head, style, err=True) + shown.removeprefix(head) + "\n")

    def warn(self, text: str) -> None:
        """A warning: a line on stderr, and an entry of the document."""
        if text not in self.warnings:
            self.warnings.append(text)
            self._headed("route: warning:", "yellow", text)

    # The end

    def done(self, data: Any = None, *, error: Mapping[str, Any] | None = None) -> None:
        """The result. With `--json` this is the document on stdout, else nothing is printed here."""
        if self.holding and error is None:
            self.held = data
            return
        self.before_done()
        self.finished = True
        if self.as_json:
            self._document(
                {
                    "schema": SCHEMA,
                    "command": self.command,
                    "ok": error is None,
                    "data": data,
                    "warnings": self.warnings,
                    "error": error,
                }
            )

    def failed(
        self, code: str, what: str, *, mend: str = "", file: str | None = None, line: int | None = None,
        data: Any = None,
    ) -> None:  # fmt: skip
        """An error: two lines on stderr, and the document with `--json`."""
        if not self.finished:
            self.before_done()
        where = "" if file is None else f"{file}: " if line is None else f"{file}:{line}: "
        self._headed("route:", "red", where + what)
        if mend:
            self._say("  " + self._folded(f"mend: {one_line(mend)}", 2, err=True) + "\n")
        if not self.finished:
            self.done(data, error=problem(code, what, mend, file, line))

    def _document(self, data: Mapping[str, Any]) -> None:
        import json

        # ASCII escapes: a consumer's encoding cannot spoil it, nor a name reach its terminal raw.
        self._put(json.dumps(cleaned(data), default=str, separators=(",", ":")) + "\n")
        self.flush()


@contextlib.contextmanager
def written() -> Iterator[None]:
    """Around a write to stdout: a full disk becomes one line; a closed pipe is for `main` to deal with."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as e:
        # What is held back could not be written at the end either, and would be told a second time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise InputError(
            f"stdout cannot be written: {e.strerror}", mend="make room, or send the output elsewhere"
        ) from e


def _columns() -> int:
    import shutil

    return shutil.get_terminal_size().columns


def _drawn(header: Sequence[str], rows: Sequence[Sequence[str]], fold: Sequence[str]) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for i, name in enumerate(header):
        last = i == len(header) - 1
        ratio = 1 if last and not fold else None
        table.add_column(name, overflow="fold", no_wrap=not last and name not in fold, ratio=ratio)
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell.partition(" ")[0], "")) for cell in row))
    console = Console(highlight=False)
    with console.capture() as drawn:
        console.print(table)
    return "".join(line.rstrip() + "\n" for line in drawn.get().splitlines())
