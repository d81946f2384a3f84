"""The TCP connection below a connection by SSH: nothing held back, and its death seen."""

from __future__ import annotations

import contextlib
import socket
import sys

__all__ = ["DEAD", "Prompt"]

DEAD = 12.0
"""Seconds without an acknowledgement after which the kernel gives a connection up: with a keepalive
each 5 s a dead link is seen within 17."""
OPENING = 64
"""Reads that opening a connection takes at most, with its first command."""


class Prompt(socket.socket):
    """Takes over a connected socket; sends at once, and acknowledges at once while it is being opened.

    Until its first command runs, sshd holds a small packet back while the one before it is not
    acknowledged, and a kernel waits 40 ms with an acknowledgement for something to send it along with:
    each new connection took that much longer.
    """

    def __init__(self, sock: socket.socket) -> None:
        timeout = sock.gettimeout()
        super().__init__(fileno=sock.detach())
        self.settimeout(timeout)
        self._reads = OPENING if hasattr(socket, "TCP_QUICKACK") else 0
        self.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if sys.platform == "linux":
            self.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(DEAD * 1000))

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes:
        data = super().recv(bufsize, flags)
        if self._reads > 0:
            # It holds for what has come by now alone.
            self._reads -= 1
            with contextlib.suppress(OSError):
                self.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return data
