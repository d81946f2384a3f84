"""A machine behind SSH: one kept connection, a channel for each command, bytes with deadlines above."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from compute_router.errors import Broken, Unavailable
from compute_router.machines.contract import Machine
from compute_router.machines.dialing import Connection, dial, load

if TYPE_CHECKING:
    from compute_router.machines.entry import MachineEntry

__all__ = ["SSHMachine", "SSHStream"]

SIDE_BY_SIDE = 8
"""Commands on one connection: sshd allows ten unless it is told otherwise."""
OPENING = 5.0
"""Seconds that a kept connection may take to open a channel before another one is made."""
SILENT = 8.0
"""Seconds of silence after which a connection on which a stream was given up is not used again."""
COMPLAINT = 4096


class SSHMachine(Machine):
    """One machine of the configuration, by paramiko. Nothing is sent before the first `open`."""

    def __init__(self, name: str, entry: MachineEntry) -> None:
        self.name, self.root, self.entry = name, entry.root, entry
        self._connections: list[Connection] = []
        self._lock = threading.Lock()
        self._dialing = threading.Lock()
        self._reached = False

    def open(self, argv: Sequence[str], *, deadline: float) -> SSHStream:
        end = time.monotonic() + deadline
        command = "exec " + shlex.join(argv)
        while (kept := self._take()) is not None:
            try:
                return self._on(kept, command, min(OPENING, end - time.monotonic()))
            except _Full:
                kept.retired = True
            except Unavailable:
                # It may have died unseen: what is kept is no reason not to be reached.
                kept.abandon()
        # One at a time: whoever waits meanwhile uses what the first one made.
        if not self._dialing.acquire(timeout=max(0.0, end - time.monotonic())):
            raise Unavailable(f"{self.name}: not connected in time", mend=f"route machine check {self.name}")
        try:
            kept = self._take()
            if kept is None:
                left = max(1.0, end - time.monotonic())
                kept = dial(self.name, self.entry, deadline=left, patient=self._reached)
                assert kept is not None, "it ends early only where it is asked about keys"
                self._reached = True
                with self._lock:
                    self._connections.append(kept)
                    kept.streams += 1
        finally:
            self._dialing.release()
        try:
            return self._on(kept, command, max(1.0, end - time.monotonic()))
        except _Full as e:
            raise Unavailable(f"{self.name}: sshd opens no session: {e}", mend="see MaxSessions there") from e

    def _take(self) -> Connection | None:
        """A connection with room for one more stream, which is counted on it already."""
        with self._lock:
            self._connections = [c for c in self._connections if c.alive]
            for connection in self._connections:
                if not connection.retired and connection.streams < SIDE_BY_SIDE:
                    connection.streams += 1
                    return connection
                if connection.retired and not connection.streams:
                    connection.abandon()
            return None

    def _on(self, connection: Connection, command: str, timeout: float) -> SSHStream:
        paramiko = load()
        try:
            channel = connection.transport.open_session(timeout=max(0.1, timeout))
        except paramiko.ChannelException as e:
            self._leave(connection)
            raise _Full(e.text or "no reason given") from e
        except (paramiko.SSHException, EOFError, OSError) as e:
            self._leave(connection)
            raise Unavailable(
                f"{self.name}: the connection broke: {str(e) or type(e).__name__}", mend="try again"
            ) from e
        stream = SSHStream(self, connection, channel)
        try:
            # No answer is waited for: a refusal closes the channel, and what is written next
            # travels with the request. paramiko has no public way to that.
            send = getattr(connection.transport, "_send_user_message", None)
            if send is None:
                channel.exec_command(command)
            else:
                message = paramiko.Message()
                message.add_byte(paramiko.common.cMSG_CHANNEL_REQUEST)
                message.add_int(channel.remote_chanid)
                message.add_string("exec")
                message.add_boolean(False)
                message.add_string(command)
                send(message)
        except (paramiko.SSHException, EOFError, OSError) as e:
            stream.close()
            raise Broken(f"the connection to {self.name} broke: {e}") from e
        return stream

    def _leave(self, connection: Connection) -> None:
        with self._lock:
            connection.streams -= 1
            last = connection.retired and connection.streams <= 0
        if last:
            connection.abandon()

    def close(self) -> None:
        with self._lock:
            connections, self._connections = self._connections, []
        for connection in connections:
            connection.abandon()


class _Full(Exception):
    """The connection carries as many sessions as the other side allows."""


class SSHStream:
    """Both ends of one command on the machine; see `Stream`."""

    def __init__(self, machine: SSHMachine, connection: Connection, channel: Any) -> None:
        self._machine, self._connection, self._channel = machine, connection, channel
        self._complaint = bytearray()
        self._closed = self._left = self._ended = False
        self._silent, self._writing = True, False
        self._heard = time.monotonic()
        self._once = threading.Lock()
        channel.settimeout(None)

    def read(self, limit: int) -> bytes:
        try:
            data: bytes = self._channel.recv(limit)
        except (OSError, EOFError) as e:
            raise Broken(f"reading: {e}") from e
        self._heard = time.monotonic()
        self._listen()
        if self._closed:
            raise Broken("the stream was closed")
        if data:
            self._silent = False
            return data
        if not self._connection.transport.is_active():
            raise Broken(f"the connection to {self._machine.name} was lost{self._cause()}")
        self._ended = True
        status = self.exit_status(1.0)
        self._listen()
        if status == 0 and not self._silent:
            return b""
        lines = self._complaint.decode("utf-8", "replace").strip().splitlines()
        if lines or self._silent or status is None:
            said = f": {lines[-1][:300]}" if lines else ""
            raise Broken(f"it ended with status {'unknown' if status is None else status}{said}")
        return b""

    def _cause(self) -> str:
        cause = getattr(self._connection.transport, "saved_exception", None)
        text = str(cause).splitlines()[0] if cause is not None and str(cause) else ""
        return f": {text}" if text else ""

    def _listen(self) -> None:
        """Take what it complains of; left unread, that would hold up everything else."""
        with contextlib.suppress(OSError, EOFError):
            while self._channel.recv_stderr_ready():
                self._complaint += self._channel.recv_stderr(1 << 16)
                del self._complaint[:-COMPLAINT]

    def write(self, data: bytes) -> None:
        self._writing = True
        try:
            self._channel.sendall(data)
        except (OSError, EOFError) as e:
            raise Broken(f"writing: {e or 'the connection was lost'}") from e
        except Exception as e:  # paramiko raises its own where the connection has just ended
            raise Broken(f"writing: {e}") from e
        finally:
            self._writing = False

    def close_write(self) -> None:
        with contextlib.suppress(Exception):
            self._channel.shutdown_write()

    def exit_status(self, timeout: float) -> int | None:
        if not self._channel.status_event.wait(timeout) or not self._channel.exit_status_ready():
            return None
        status: int = self._channel.recv_exit_status()
        return None if status < 0 else status

    def close(self) -> None:
        self._closed = True
        with self._once:
            if self._left:
                return
            self._left = True
        if self._connection.pid != os.getpid():
            return
        if self._writing:
            # What it waits for is the connection: everything else on it is held up as well.
            self._connection.abandon()
        elif not self._ended and time.monotonic() - self._heard > SILENT:
            self._connection.retired = True
        if sys.is_finalizing():
            return  # no thread starts any more, and the connection ends with the process
        # Saying goodbye waits for a connection that takes nothing any more.
        threading.Thread(target=self._say_goodbye, daemon=True).start()

    def _say_goodbye(self) -> None:
        with contextlib.suppress(Exception):
            self._channel.close()
        self._machine._leave(self._connection)
