"""One connection between two members of a group: lines of JSON, each proven to come from the other."""

from __future__ import annotations

import os
import time

from . import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any, Dict, List, Optional

    Json = Dict[str, Any]

MOST_LINE = 1 << 14
MOST_WAITING = 1 << 18


class Conn:
    """One connection: lines of JSON, each with a MAC under a key that only these two ends have."""

    def __init__(self, sock: socket.socket, token: str, server: bool) -> None:
        self.sock, self.token, self.server = sock, token.encode(), server
        self.rank = -1
        self.key = b""
        self.nonce = os.urandom(16).hex()
        self.sent = self.got = 0
        self.inbox, self.outbox = bytearray(), bytearray()
        self.heard = time.monotonic()
        self.peer = ""
        """Of the client's side: the nonce that the server greeted with."""
        self.open = True
        sock.setblocking(False)

    def mac(self, *parts: Any) -> str:
        import hmac

        text = "\0".join(str(part) for part in parts).encode()
        return hmac.new(self.key or self.token, text, "sha256").hexdigest()

    def same(self, told: Any, *parts: Any) -> bool:
        import hmac

        return isinstance(told, str) and hmac.compare_digest(told.encode(), self.mac(*parts).encode())

    def put(self, line: Json) -> None:
        """Hand over a line in the clear, for the greeting alone."""
        self.outbox += wire.dumps(line) + b"\n"

    def say(self, **message: Any) -> None:
        if self.key and self.open and len(self.outbox) < MOST_WAITING:
            text = wire.dumps(message).decode()
            self.put({"m": text, "mac": self.mac("s" if self.server else "c", self.sent, text)})
            self.sent += 1

    def lines(self) -> List[Json]:
        """Whole lines that came; `open` is false once there is no more, or what came is no line."""
        found: List[Json] = []
        try:
            while self.open:
                data = self.sock.recv(1 << 16)
                if not data:
                    self.open = False
                self.inbox += data
                if len(data) < 1 << 16:
                    break
        except BlockingIOError:
            pass
        except OSError:
            self.open = False
        while b"\n" in self.inbox:
            line, _, rest = bytes(self.inbox).partition(b"\n")
            self.inbox = bytearray(rest)
            try:
                value = wire.loads(line)
            except ValueError:
                value = None
            if not isinstance(value, dict):
                self.open = False
                break
            found.append(value)
        if len(self.inbox) > MOST_LINE:
            self.open = False
        return found

    def opened(self, line: Json) -> Optional[Json]:
        """The message in a line of the other side; None, and the connection is over, if it is not its own."""
        text = line.get("m")
        if not isinstance(text, str) or not self.same(
            line.get("mac"), "c" if self.server else "s", self.got, text
        ):
            self.open = False
            return None
        self.got += 1
        self.heard = time.monotonic()
        found = wire.loads(text.encode())
        return found if isinstance(found, dict) else None

    def greeted(self, line: Json, rank: int, *who: Any) -> bool:
        """Answer a line of the server's greeting as member `rank`; true once both know that the other one
        has the token. The connection is over if it has not."""
        theirs = line.get("nonce")
        if not self.peer and isinstance(theirs, str) and len(theirs) == 32:
            self.peer = theirs
            mac = self.mac("client", theirs, self.nonce, rank, *who)
            self.put({"nonce": self.nonce, "rank": rank, "mac": mac})
        elif self.peer and self.same(line.get("proof"), "server", self.peer, self.nonce, rank, *who):
            self.key = self.mac("key", self.peer, self.nonce).encode()
            return True
        else:
            self.open = False
        return False

    def flush(self) -> None:
        try:
            while self.outbox:
                del self.outbox[: self.sock.send(self.outbox)]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as e:
            import errno

            if e.errno != errno.ENOTCONN:
                self.open = False

    def close(self) -> None:
        self.open = False
        self.sock.close()


def dial(address: str, port: int, token: str) -> Optional[Conn]:
    """A connection to node 0's link, under way; None if there is no way to begin one."""
    import socket

    try:
        family, kind, number, _, target = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, number)
        conn = Conn(sock, token, server=False)
        sock.connect_ex(target)
    except (OSError, UnicodeError):
        return None
    conn.rank = 0
    return conn
