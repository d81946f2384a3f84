"""A run's log on its way to stdout: as it is, or with escape sequences spelled out on a terminal."""

from __future__ import annotations

import codecs

from compute_router.cli.output import Output
from compute_router.cli.words import visible

__all__ = ["LogText"]


class LogText:
    """Writes log bytes as they come and counts them.

    On a terminal control characters become visible text, so that no log can move the cursor,
    change the title or answer for the user; `raw`, a pipe and a file get the bytes themselves.
    """

    def __init__(self, out: Output, *, raw: bool = False) -> None:
        self.bytes = 0
        self._out = out
        self._neutral = out.terminal and not raw
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        self._held = ""
        self._at_start = True

    def write(self, data: bytes) -> None:
        """Show `data`, the next bytes of the log, at once."""
        self.bytes += len(data)
        if self._out.as_json:
            if text := self._decoder.decode(data):
                self._out.event({"event": "log", "text": text})
        elif self._neutral:
            self._show(self._decoder.decode(data))
        else:
            self._at_start = data.endswith(b"\n") if data else self._at_start
            self._out.bytes(data)

    def _show(self, text: str) -> None:
        # A carriage return alone would write over what stands there: it becomes a new line. One at
        # the end of a piece waits for the next, for it may be half of a line end.
        text, self._held = self._held + text, ""
        if text.endswith("\r"):
            text, self._held = text[:-1], "\r"
        if text:
            self._at_start = text.endswith(("\n", "\r"))
            self._out.text(visible(text.replace("\r\n", "\n").replace("\r", "\n")))

    def close(self) -> None:
        """On a terminal: end the last line if the work did not, so that what follows begins its own."""
        if self._neutral:
            self._show(self._decoder.decode(b"", final=True))
        if not self._at_start and self._out.terminal:
            self._out.text("\n")
            self._at_start = True
