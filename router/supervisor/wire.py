"""Frames over stdin and stdout: one JSON line and, where it has a size, that many raw bytes."""

from __future__ import annotations

import json
import os
import select
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional, Tuple

MOST_HEADER = 1 << 20
MOST_PAYLOAD = 1 << 20
MOST_SPEC = 16 << 20
CHUNK = 1 << 18


class Fault(Exception):
    """What goes back to the client as `{"code", "what", "mend"}`, with further facts in `more`."""

    def __init__(self, code: str, what: str, mend: str = "", **more: Any) -> None:
        super().__init__(what)
        self.code, self.what, self.mend, self.more = code, what, mend, more

    def told(self) -> Dict[str, Any]:
        return {"code": self.code, "what": self.what, "mend": self.mend, **self.more}


class Gone(Exception):
    """The other side has left, or said what cannot be read on from."""


def _integer(text: str) -> int:
    # Python before 3.11 takes seconds over an integer of a million digits.
    if len(text) > 20:
        raise ValueError("an integer of more than 20 digits")
    return int(text)


def _cut(text: str) -> int:
    return int(text[:21])


def _none(text: str) -> Any:
    raise ValueError("%s is not allowed" % text)


# Made once: `json.loads` makes one each time, which a header of each small file would wait for.
_STRICT = json.JSONDecoder(parse_int=_integer, parse_float=_none, parse_constant=_none).decode
_HEADER = json.JSONDecoder(parse_int=_cut).decode


def loads(data: bytes) -> Any:
    """JSON without floats and without huge integers. Raises `ValueError` alone."""
    try:
        return _STRICT(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply")


def header(data: bytes) -> Any:
    """The line of a frame: what `loads` refuses stands in it as a number that no field accepts, so that
    the request is refused and not the connection. Raises `ValueError` alone."""
    try:
        return _HEADER(data.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply")


def dumps(value: Any) -> bytes:
    """Compact JSON in ASCII: whatever a file name holds passes any terminal and any log."""
    return json.dumps(value, separators=(",", ":")).encode()


class Wire:
    """Both ends of the connection. Reads only what it was asked for; writes wait for the reader."""

    def __init__(self, source: int, sink: int, rest: bytes = b"") -> None:
        self.source, self.sink = source, sink
        self._buffer = bytearray(rest)
        self._lock = threading.Lock()
        self.torn: Optional[Dict[str, Any]] = None
        """The line of a frame whose payload has not come whole."""

    def ready(self, timeout: float) -> bool:
        """Whether something (or the end) can be read within `timeout` seconds."""
        return bool(self._buffer) or bool(select.select([self.source], [], [], timeout)[0])

    @property
    def buffered(self) -> bool:
        return bool(self._buffer)

    def _more(self) -> None:
        try:
            got = os.read(self.source, CHUNK)
        except OSError as e:
            raise Gone(str(e))
        if not got:
            raise Gone("end of input")
        self._buffer += got

    def listening(self) -> bool:
        """Whether the other side is still there; what it has said meanwhile is kept."""
        try:
            while len(self._buffer) <= MOST_HEADER and select.select([self.source], [], [], 0)[0]:
                self._more()
        except Gone:
            return False
        return True

    def line(self) -> bytes:
        """The next line without its end. Raises `Gone` at the end of the input."""
        start = 0
        while True:
            end = self._buffer.find(b"\n", start)
            if end >= 0:
                break
            start = len(self._buffer)
            if start > MOST_HEADER:
                break
            self._more()
        if end < 0 or end > MOST_HEADER:
            raise Fault("BAD_REQUEST", "a header of more than %d bytes" % MOST_HEADER, "split the request")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._more()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def request(self) -> Optional[Tuple[Dict[str, Any], bytes]]:
        """The next frame; None for an empty line. A `Fault` from here cannot be read on from."""
        line = self.line()
        if not line.strip():
            return None
        try:
            head = header(line)
        except ValueError as e:
            raise Fault("BAD_REQUEST", "a line that is no JSON: %s" % str(e)[:80], "see docs/protocol.md")
        if not isinstance(head, dict) or not isinstance(head.get("op"), str):
            raise Fault("BAD_REQUEST", "a line without an `op`", "see docs/protocol.md")
        size = head.get("size", 0)
        most = MOST_SPEC if head["op"] == "commit" else MOST_PAYLOAD
        if type(size) is not int or not 0 <= size <= most:
            raise Fault("BAD_REQUEST", "a payload of %s bytes" % str(size)[:30], "at most %d" % most)
        self.torn = head
        body = self.exactly(size)
        self.torn = None
        return head, body

    def rest(self) -> bytes:
        """What came of a payload whose rest never did."""
        return bytes(self._buffer)

    def send(self, head: Dict[str, Any], body: bytes = b"") -> None:
        if body:
            head = dict(head, size=len(body))
        self.put(dumps(head) + b"\n" + body)

    def put(self, data: bytes) -> None:
        with self._lock:
            self._put(data)

    def _put(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self.sink, view) :]
            except BlockingIOError:
                select.select([], [self.sink], [])
            except OSError as e:
                raise Gone(str(e))
