"""Dials a machine by SSH: hop by hop, each key compared before a login, each login by key or agent."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from compute_router.errors import CredentialsError, Rejected, RouteError, Unavailable
from compute_router.gather import side_by_side
from compute_router.machines.hops import Hop, Way, resolve
from compute_router.machines.pins import HostKey, alias, changed, pinned, told, trust
from compute_router.machines.sockets import Prompt
from compute_router.machines.userkeys import first_line, keys_of, load

if TYPE_CHECKING:
    import paramiko

    from compute_router.machines.entry import MachineEntry

__all__ = ["Connection", "dial", "load"]

TRY = 3.0
"""Seconds of one try to connect. A lost first packet is sent again ever later, up to minutes: many short
tries find a healed network sooner."""
KEEPALIVE = 5
DEAF = 6.0
"""Seconds of tries to connect to one that was not reached before: some packets may be lost, not all."""
AUTH = 15.0
RSA = ("rsa-sha2-512", "rsa-sha2-256")


class Connection:
    """One connection to a machine, with those it goes through. Many streams at once, from any thread."""

    def __init__(self, transport: paramiko.Transport, below: Connection | None, sock: Any) -> None:
        self.transport, self._below, self._sock = transport, below, sock
        self.retired = False
        """No new stream is to be opened on it: it is suspected to be dead, or it is full."""
        self.streams = 0
        self.pid = os.getpid()

    @property
    def alive(self) -> bool:
        return self.pid == os.getpid() and self.transport.is_active()

    def abandon(self) -> None:
        """Cut it at once, and whatever waits on it. May be repeated, from any thread; never raises."""
        self.retired = True
        if self.pid != os.getpid():
            return  # the parent's, after a fork
        with contextlib.suppress(Exception):
            self._sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(Exception):
            self._sock.close()
        # It joins the connection's own thread, which may take a while.
        threading.Thread(target=self._finish, daemon=True).start()

    def _finish(self) -> None:
        with contextlib.suppress(Exception):
            self.transport.close()
        if self._below is not None:
            self._below.abandon()


def dial(
    name: str,
    entry: MachineEntry,
    *,
    deadline: float,
    patient: bool = False,
    accept: Callable[[HostKey], bool] | None = None,
) -> Connection | None:
    """A connection on which somebody is logged in, within `deadline` seconds.

    Where nothing at all comes back from the first computer on the way that is given up on after some
    seconds, unless `patient`: it was reached before, and a network that is away for a moment may heal.
    Each key on the way must be pinned, or of a jump that the user's own ssh knows. With `accept` it is
    asked about each key instead: at the first False the way ends and None is returned. Raises
    `Unavailable` (try again), `CredentialsError` (a key or a login is not right), `Rejected`,
    `ConfigError`; nothing ran in any case.
    """
    end = time.monotonic() + deadline
    way = resolve(entry.address, entry.identity)
    load()
    made: Connection | None = None
    try:
        for index, hop in enumerate(way.hops):
            target = index == len(way.hops) - 1
            reach = _Reach(name, hop, target, end, DEAF if index == 0 and not patient else deadline)
            made = reach.connect(way, made)
            if not reach.known(made, accept):
                made.abandon()
                return None
            reach.log_in(made)
    except BaseException:
        if made is not None:
            made.abandon()
        raise
    return made


_Address = tuple[socket.AddressFamily, tuple[Any, ...]]


class _Reach:
    """One hop of one dial."""

    def __init__(self, name: str, hop: Hop, target: bool, end: float, deaf: float) -> None:
        self.name, self.hop, self.target, self.end = name, hop, target, end
        self.deaf = time.monotonic() + deaf
        self.who = name if target else f"{name}, on the way at {hop.name}"

    def left(self) -> float:
        left = self.end - time.monotonic()
        if left <= 0:
            raise self.unreached(f"{self.hop.shown} did not answer in time")
        return left

    def unreached(self, what: str, mend: str = "") -> Unavailable:
        return Unavailable(f"{self.who}: {what}", mend=mend or f"route machine check {self.name}")

    # Connect

    def connect(self, way: Way, below: Connection | None) -> Connection:
        paramiko = load()
        while True:
            sock = self._through(below) if below is not None else self._socket(way)
            transport = paramiko.Transport(sock)
            transport.daemon = True
            transport.banner_timeout = transport.handshake_timeout = min(10.0, self.left())
            transport.auth_timeout = AUTH
            made = Connection(transport, below, sock)
            self._prefer(transport)
            try:
                transport.start_client(timeout=self.left())
                if not transport.is_active() or transport.get_remote_server_key() is None:
                    raise paramiko.SSHException("no answer to the key exchange")
            except paramiko.ssh_exception.IncompatiblePeer as e:
                self._drop(made)
                raise self._incompatible(e) from e
            except (paramiko.SSHException, EOFError, OSError) as e:
                self._drop(made)
                # A server that is asked by many at once hangs up on some: they come again.
                hung_up = isinstance(e, (EOFError, ConnectionResetError)) or "banner" in str(e)
                if hung_up and self.end - time.monotonic() > 1.0:
                    time.sleep(0.2 + int.from_bytes(os.urandom(1), "big") / 400)
                    continue
                raise self.unreached(
                    f"{self.hop.shown} does not speak SSH as it should: {first_line(e)}"
                ) from e
            except BaseException:
                self._drop(made)
                raise
            transport.set_keepalive(KEEPALIVE)
            return made

    @staticmethod
    def _drop(made: Connection) -> None:
        made._below = None  # it is gone on with
        made.abandon()

    def _socket(self, way: Way) -> Any:
        if way.proxy is not None:
            return _proxied(way.proxy, self)
        try:
            addresses = self._looked_up()
        except (OSError, UnicodeError) as e:
            raise self.unreached(
                f"the name {self.hop.address} cannot be looked up: {getattr(e, 'strerror', None) or e}",
                "correct its address, or look at the network",
            ) from e
        while True:
            try:
                sock = self._connected(addresses)
            except TimeoutError as e:
                self.left()
                if time.monotonic() >= self.deaf:
                    raise self.unreached(
                        f"nothing comes back from {self.hop.shown}", "is it up, and is its address right?"
                    ) from e
                continue
            except ConnectionRefusedError as e:
                raise self.unreached(
                    f"{self.hop.shown} refuses the connection", "is sshd running there, on that port?"
                ) from e
            except OSError as e:
                raise self.unreached(
                    f"{self.hop.shown} cannot be reached: {e.strerror or e}", "look at the network"
                ) from e
            return Prompt(sock)

    def _connected(self, addresses: Sequence[_Address]) -> socket.socket:
        """A connection to the first of `addresses` that takes one. Raises what the last of them does."""
        for number, address in enumerate(addresses[:-1]):
            with contextlib.suppress(OSError):
                return self._one(address, len(addresses) - number)
        return self._one(addresses[-1], 1)

    def _one(self, address: _Address, still: int) -> socket.socket:
        """A connection to `address`, in its share of the time that `still` addresses may take."""
        left = min(self.left(), self.deaf - time.monotonic()) / still
        family, where = address
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(max(0.1, min(TRY, left)))
            sock.connect(where)
        except BaseException:
            sock.close()
            raise
        return sock

    def _looked_up(self) -> Sequence[_Address]:
        """The addresses of its name, whole: one of a single link means nothing without that link. In a
        thread: a resolver that is silent would hold us up for minutes. Raises `OSError`, `UnicodeError`."""
        name, port = self.hop.address, self.hop.port
        ask = functools.partial(socket.getaddrinfo, name, port, type=socket.SOCK_STREAM)
        found = side_by_side({name: ask}, self.left()).get(name)
        if found is None:
            raise self.unreached(
                f"the name {name} is not looked up in time", "look at the resolver of this computer"
            )
        if isinstance(found, BaseException):
            raise found
        return list(dict.fromkeys((each[0], each[4]) for each in found))

    def _through(self, below: Connection) -> Any:
        paramiko = load()
        try:
            return below.transport.open_channel(
                "direct-tcpip",
                (self.hop.address, self.hop.port),
                ("127.0.0.1", 0),
                timeout=min(10.0, self.left()),
            )
        except paramiko.ChannelException as e:
            raise self.unreached(
                f"the jump before it does not lead to {self.hop.shown}: {e.text}",
                "is its address right as the jump sees it, and forwarding allowed there?",
            ) from e
        except (paramiko.SSHException, EOFError, OSError) as e:
            raise self.unreached(f"the jump before it broke off: {first_line(e)}") from e

    def _prefer(self, transport: Any) -> None:
        """Ask for a key of the kind that is pinned: a machine has several, and another proves nothing."""
        kinds = [t for type_, _ in self._pinned() for t in (RSA if type_ == "ssh-rsa" else (type_,))]
        options = transport.get_security_options()
        kinds = [kind for kind in kinds if kind in options.key_types]
        if kinds:
            options.key_types = tuple(kinds)

    def _pinned(self) -> list[tuple[str, str]]:
        return pinned(alias(self.name) if self.target else self.hop.place)

    def _incompatible(self, e: Exception) -> RouteError:
        if self._pinned() and "key" in str(e).lower():
            kinds = ", ".join(type_ for type_, _ in self._pinned())
            jump = None if self.target else self.hop.place
            return changed(self.name, self.hop.shown, f"it no longer has one of kind {kinds}", jump=jump)
        return Rejected(
            f"{self.who}: no way of speaking is common to both: {first_line(e)}",
            mend='transport = "openssh" may know one',
        )

    def known(self, made: Connection, accept: Callable[[HostKey], bool] | None) -> bool:
        key = made.transport.get_remote_server_key()
        shown = told(self.name, self.hop, self.target, key.get_name(), key.get_base64())
        if accept is not None:
            return accept(shown)
        trust(shown, self.name)
        return True

    # Log in

    def log_in(self, made: Connection) -> None:
        paramiko = load()
        tried: list[str] = []
        for what, source in keys_of(self.hop, tried):
            try:
                more = made.transport.auth_publickey(self.hop.user, source)
            except paramiko.BadAuthenticationType as e:
                raise self._refused(f"it takes no keys, but {', '.join(e.allowed_types)}") from e
            except paramiko.AuthenticationException:
                tried.append(what)
                if made.transport.is_active():
                    continue
                raise self._refused(f"it hung up after {len(tried)} keys", tried) from None
            except (paramiko.SSHException, EOFError, OSError) as e:
                raise self.unreached(f"the login at {self.hop.shown} broke off: {first_line(e)}") from e
            if more:
                raise self._refused(f"it also wants {', '.join(more)}")
            return
        raise self._refused("no key is taken", tried)

    def _refused(self, why: str, tried: list[str] | None = None) -> CredentialsError:
        listed = f" (tried: {'; '.join(tried[:6])})" if tried else " (there is none to try)"
        hint = next((said for said in tried or () if ": " in said), "")
        mend = f"put your public key into its ~/.ssh/authorized_keys; does it work with: {self.hop.command}"
        if "passphrase" in hint:
            mend = f"ssh-add {hint.split(':')[0]}"
        elif "hardware" in hint or tried is None:
            mend = f'transport = "openssh" in [machines.{self.name}] asks the real ssh'
        return CredentialsError(
            f"{self.who}: {self.hop.shown} lets nobody in: {why}{listed if tried is not None else ''}",
            mend=mend,
        )


def _proxied(command: str, reach: _Reach) -> socket.socket:
    """The user's own ProxyCommand, run as ssh runs it."""
    ours, theirs = socket.socketpair()
    try:
        subprocess.Popen(
            ["/bin/sh", "-c", f"exec {command}"],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as e:
        ours.close()
        raise reach.unreached(f"its ProxyCommand cannot be started: {e.strerror}") from e
    finally:
        theirs.close()
    return ours
