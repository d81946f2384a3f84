"""A TCP relay for tests: forwards bytes, adds delay, loses everything in silence, or cuts connections.

For a process of its own (benchmarks): `python tests/relay.py PORT [DELAY_MS]` prints the port it listens on.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
import time

__all__ = ["Relay"]

CHUNK = 1 << 16


class _Way:
    """One direction of one connection: what is read on one side is written on the other, `delay` later."""

    def __init__(self, relay: Relay, source: socket.socket, sink: socket.socket, name: str) -> None:
        self.relay, self.source, self.sink, self.name = relay, source, sink, name
        self.waiting: queue.Queue[tuple[float, bytes]] = queue.Queue(maxsize=2048)
        for part in (self._read, self._write):
            threading.Thread(target=part, name=f"relay {name}", daemon=True).start()

    def _read(self) -> None:
        while True:
            data = b""
            # What is not read stays with its sender, as what a network drops does.
            self.relay.open[self.name].wait()
            with contextlib.suppress(OSError):
                data = self.source.recv(CHUNK)
            self.waiting.put((time.monotonic() + self.relay.delay, data))
            if not data:
                return

    def _write(self) -> None:
        while True:
            due, data = self.waiting.get()
            time.sleep(max(0.0, due - time.monotonic()))
            self.relay.open[self.name].wait()
            try:
                if not data:
                    self.sink.shutdown(socket.SHUT_WR)
                    return
                self.sink.sendall(data)
            except OSError:
                return
            self.relay.bytes[self.name] += len(data)
            if self.relay.rate:
                time.sleep(len(data) / self.relay.rate)


class Relay:
    """Listens on `port` of 127.0.0.1 and forwards to `target` (a port there, or an address).

    `delay` (seconds, each way) and `rate` (bytes per second of each connection and way) may be changed at
    any time; `bytes` counts what passed, by direction:
    `up` is towards the target. Nothing of it needs root.
    """

    def __init__(
        self, target: int | tuple[str, int], *, delay: float = 0.0, rate: float | None = None
    ) -> None:
        self.target = ("127.0.0.1", target) if isinstance(target, int) else target
        self.delay, self.rate = delay, rate
        self.bytes = {"up": 0, "down": 0}
        self.open = {"up": threading.Event(), "down": threading.Event()}
        self.port = 0
        self._listener: socket.socket | None = None
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._fillers: list[socket.socket] = []
        self._accepting = threading.Event()
        self._lock = threading.Lock()

    def start(self) -> Relay:
        self._listen()
        self.heal()
        return self

    def __enter__(self) -> Relay:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(0)
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), name="relay", daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            self._accepting.wait()
            try:
                client, _ = listener.accept()
            except OSError:
                return
            if not self._accepting.is_set():
                # It came while the network was already gone: its first bytes find nobody.
                self._fillers.append(client)
                continue
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self.target, timeout=5)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._pairs.append((client, server))
        _Way(self, client, server, "up")
        _Way(self, server, client, "down")

    # Faults

    def drop(self, *, up: bool = True, down: bool = True) -> None:
        """Lose everything that way in silence, until `heal`. With both ways new connections are not
        answered either: the queue of the listener is filled, so that the kernel drops their SYN."""
        if up:
            self.open["up"].clear()
        if down:
            self.open["down"].clear()
        if not (up and down):
            return
        self._accepting.clear()
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)
            with contextlib.suppress(OSError):
                filler.connect(("127.0.0.1", self.port))
            self._fillers.append(filler)

    def cut(self) -> None:
        """End every connection with a reset; new ones are taken."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    end.shutdown(socket.SHUT_RD)  # wakes the thread that reads, and says nothing
                end.close()

    def refuse(self) -> None:
        """End every connection and refuse new ones, until `heal`."""
        if self._listener is not None:
            # A thread in `accept` would keep the port: it is woken by the shutdown.
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.cut()

    def heal(self) -> None:
        """Forward again: what was held up arrives now, as what TCP sends again would."""
        for filler in self._fillers:
            filler.close()
        self._fillers.clear()
        if self._listener is None:
            self._listen()
        for way in self.open.values():
            way.set()
        self._accepting.set()

    def stop(self) -> None:
        self.refuse()
        for way in self.open.values():
            way.set()
        self._accepting.set()
        for filler in self._fillers:
            filler.close()


if __name__ == "__main__":
    import sys

    made = Relay(int(sys.argv[1]), delay=float(sys.argv[2]) / 1000 if len(sys.argv) > 2 else 0.0).start()
    print(made.port, flush=True)
    sys.stdin.read()
