"""One conversation with the supervisor on a machine: open it, ask, read the answers, all with deadlines."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compute_router.errors import Broken, RouteError, Unavailable
from compute_router.machines.contract import Machine
from compute_router.machines.framing import Decoder, Frame, Greeting, encode
from compute_router.machines.refusing import Resend, refusal

__all__ = ["Resend", "Session", "Sessions", "refusal"]

PIECE = 31 << 10
"""Bytes that must be taken within the deadline: small, so that a slow link is never called a dead one; and
a little less than fits one packet of SSH, so that none is followed by one that is nearly empty."""
UNREACHED = 18.0
"""Seconds after which a machine that does not answer at all is called unreachable."""
LEAST = 4.0  # seconds that an opening may take, whatever was spent before
UNSEEN = 1 << 15
"""Bytes that any transport takes without waiting for the other side to read."""


@functools.cache
def _supervisor() -> tuple[str, str, bytes]:
    """BOOT as one line, the digest of the bundle, and the bundle."""
    from compute_router.supervisor.boot import bundle, one_line

    return one_line(), *bundle()


class Session:
    """Asks one supervisor. Used by one thread at a time; `close` may be called from any.

    Opening raises `Unavailable` (nothing can have run) or `Rejected` (this machine will never do).
    Everything else raises `Broken` once the stream is gone or was silent for its deadline: a
    request may then have been carried out.
    """

    patience = 12.0
    """Seconds without a byte from the other side after which the stream counts as broken."""
    opening = 20.0
    """Seconds the opening of a machine may take."""

    def __init__(self, machine: Machine, opening: float | None = None, *, glance: bool = False) -> None:
        """With `glance` no supervisor is sent where there is none yet: then it is of no use but to tell
        that one could be."""
        self.machine = machine
        self.opening = min(opening or self.opening, self.opening)
        self.broken = False
        self.used = 0
        self.clock: tuple[int, int] | None = None
        """Of the quickest answer: its round trip, and the machine's clock minus ours (microseconds)."""
        self._heard: queue.Queue[bytes | Broken | None] = queue.Queue(maxsize=64)
        self._decoder = Decoder()
        self._unseen = 0
        self._writing: float | None = None
        self._watch: threading.Thread | None = None
        self._last_heard = time.monotonic()
        self.acks = 0
        self._expected = 0
        self._pid = os.getpid()
        boot, digest, bundle = _supervisor()
        end = time.monotonic() + self.opening
        try:
            self._stream = machine.open(("python3", "-I", "-S", "-c", boot), deadline=self.opening)
        except Broken as e:
            raise self._unreached(e) from e
        threading.Thread(target=self._listen, name=f"listen {machine.name}", daemon=True).start()
        try:
            self.hello = self._greet(digest, b"" if glance else bundle, end)
        except Broken as e:
            self.close()
            raise self._unreached(e) from e
        except BaseException:
            self.close()
            raise

    def _unreached(self, cause: Broken) -> Unavailable:
        return Unavailable(
            f"the supervisor on {self.machine.name} did not answer: {cause}",
            mend="route doctor tells what is missing there",
        )

    def _greet(self, digest: str, bundle: bytes, end: float) -> dict[str, Any]:
        nonce, asked = os.urandom(16).hex(), time.monotonic_ns()
        hello = {"route": 1, "nonce": nonce, "root": self.machine.root, "digest": digest}
        self.write(json.dumps(hello).encode() + b"\n")
        greeting = Greeting(nonce)
        text = self._answer(greeting, end)
        if text == "want" and not bundle:
            return {}
        if text == "want":
            asked = time.monotonic_ns()
            self.write(json.dumps({"size": len(bundle)}).encode() + b"\n" + bundle)
            text = self._answer(greeting, end)
        try:
            answer = json.loads(text)
            if not answer["ok"]:
                raise refusal(self.machine.name, "hello", answer["error"])
        except (ValueError, TypeError, KeyError) as e:
            raise Broken(f"its greeting cannot be read: {text[:80]!r}") from e
        self._decoder.feed(greeting.rest)
        self._time(asked, answer)
        return dict(answer)

    def _time(self, asked: int, answer: Mapping[str, Any]) -> None:
        """Compare the clocks: `answer` was given at its `now_us`, at some time since `asked`."""
        then, rtt = answer.get("now_us"), (time.monotonic_ns() - asked) // 1000
        if type(then) is int and abs(then) < 2**53 and (self.clock is None or rtt < self.clock[0]):
            self.clock = (rtt, then - (time.time_ns() // 1000 - rtt // 2))

    def _answer(self, greeting: Greeting, end: float) -> str:
        text = greeting.feed(b"")
        while text is None:
            try:
                data = self._hear(max(0.0, end - time.monotonic()))
            except Broken as e:
                banner = greeting.banner.decode("utf-8", "replace").strip()
                raise Broken(f"{e} (it said {banner[:200]!r})" if banner else str(e)) from e
            text = greeting.feed(data)
        return text

    # Bytes

    def _listen(self) -> None:
        last: bytes | Broken | None = None
        while not self.broken:
            try:
                last = self._stream.read(1 << 16) or None
            except Broken as e:
                last = e
            self._last_heard = time.monotonic()
            # A queue that stays full means that whoever asked is gone or slow: hold the other side up.
            while not self.broken:
                with contextlib.suppress(queue.Full):
                    self._heard.put(last, timeout=0.5)
                    break
            if not isinstance(last, bytes):
                return

    def _hear(self, deadline: float) -> bytes:
        if self.broken and self._heard.empty():
            raise Broken(f"the connection to {self.machine.name} is closed")
        try:
            heard = self._heard.get(timeout=deadline)
        except queue.Empty:
            self.close()
            waited = f"for {deadline:.0f} s" if deadline >= 1 else "until its time was up"
            raise Broken(f"{self.machine.name} was silent {waited}") from None
        if isinstance(heard, bytes):
            self._unseen = 0
            return heard
        self.close()
        raise heard or Broken(f"{self.machine.name} closed the connection")

    def write(self, data: bytes, *, expect: Sequence[str] = (), deadline: float | None = None) -> None:
        """Hand over `data`, whose requests will be answered by `expect`; each piece within `deadline`
        seconds. Raises `Broken`."""
        self._expected += len(expect)
        view = memoryview(data)
        for start in range(0, len(data), PIECE):
            piece = bytes(view[start : start + PIECE]) if len(data) > PIECE else data
            self._unseen += len(piece)
            if self._unseen <= UNSEEN:
                self._hand_over(piece)
                continue
            self._writing = time.monotonic() + (deadline or self.patience)
            if self._watch is None or not self._watch.is_alive():
                self._watch = threading.Thread(
                    target=self._guard, name=f"guard {self.machine.name}", daemon=True
                )
                self._watch.start()
            try:
                self._hand_over(piece)
            finally:
                self._writing = None

    def _guard(self) -> None:
        """End a write that nobody takes and during which nothing is heard either. One thread watches all
        writes of a session while there are some: a timer for each would cost more than the write."""
        pause = min(0.25, self.patience / 4)
        for _ in range(40):
            while not self.broken and (until := self._writing) is not None:
                if time.monotonic() > max(until, self._last_heard + self.patience):
                    self._stream.close()
                    return
                time.sleep(pause)
            if self.broken:
                return
            time.sleep(pause)

    def _hand_over(self, piece: bytes) -> None:
        if self.broken:
            raise Broken(f"the connection to {self.machine.name} is closed")
        try:
            self._stream.write(piece)
        except Broken:
            self.close()
            raise

    # Frames

    def send(self, op: str, body: bytes = b"", **fields: Any) -> None:
        """Send one request without waiting for its answer."""
        self.write(encode({"op": op, **fields}, body), expect=(op,))

    def frame(self, *, deadline: float | None = None, acked: bool = False) -> Frame:
        """The next frame. `deadline` counts from the last byte that came. With `acked` also one that only
        says that pieces of blobs were taken; else those are counted in `acks`."""
        while True:
            try:
                frame = self._decoder.next()
            except Broken:
                self.close()
                raise
            if frame is not None:
                # The other side says so while a request takes it long; of a follow it means more.
                if frame.head.get("beat") is True and frame.head.get("re") != "follow":
                    continue
                if frame.head.get("ack") is True:
                    self.acks += 1
                    if acked:
                        return frame
                    continue
                return frame
            self._decoder.feed(self._hear(self.patience if deadline is None else deadline))

    def reply(self, op: str, *, deadline: float | None = None) -> Frame:
        """The answer to the request `op` that was sent. Raises what its error stands for."""
        frame = self.frame(deadline=deadline)
        if frame.head.get("re") != op:
            self.close()
            raise Broken(f"{self.machine.name} answered {frame.head.get('re')!r} to {op!r}")
        self.answered()
        if frame.head.get("ok") is False:
            raise refusal(self.machine.name, op, frame.head.get("error"))
        return frame

    def follow(self, *, deadline: float | None = None) -> Frame:
        """The next frame of a `follow` that was sent. Raises what its error stands for."""
        frame = self.frame(deadline=deadline)
        if frame.head.get("re") != "follow":
            self.close()
            raise Broken(f"{self.machine.name} answered {frame.head.get('re')!r} to 'follow'")
        if frame.head.get("ok") is False:
            self.answered()
            raise refusal(self.machine.name, "follow", frame.head.get("error"))
        return frame

    def torn(self) -> Frame | None:
        """The frame that the connection broke in, with what came of its payload."""
        return self._decoder.torn()

    def answered(self) -> None:
        """One request has had its answer. `reply` says so by itself."""
        self._expected -= 1

    def ask(self, op: str, body: bytes = b"", *, deadline: float | None = None, **fields: Any) -> Frame:
        """Send one request and return its answer."""
        asked = time.monotonic_ns()
        self.send(op, body, **fields)
        frame = self.reply(op, deadline=deadline)
        self._time(asked, frame.head)
        return frame

    def close(self) -> None:
        """Let go of it. What was started goes on. May be repeated, from any thread."""
        self.broken = True
        self._stream.close()
        with contextlib.suppress(queue.Full):
            self._heard.put_nowait(None)  # wakes whoever waits for an answer

    @property
    def usable(self) -> bool:
        """Whether another request may be sent: open, ours, and nothing unread on it."""
        whole = self._expected == 0 and not self._decoder.inside
        return whole and not self.broken and self._pid == os.getpid()


class Sessions:
    """The sessions with one machine in this process: an idle one is used again, by one thread at a time."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._idle: list[Session] = []
        self._lock = threading.Lock()
        self._dialing: threading.Thread | None = None
        self.clock: tuple[int, int] | None = None
        """The best of what its sessions saw of the machine's clock: see `Session.clock`."""

    def dial(self) -> None:
        """Open a session in the background, for the next one who needs one. Never raises."""
        with self._lock:
            if self._idle or self._dialing is not None:
                return
            self._dialing = threading.Thread(target=self._dial, name=f"dial {self.machine.name}", daemon=True)
            self._dialing.start()

    def _dial(self) -> None:
        # Whoever needs the session opens one himself if this fails, and is told why.
        with contextlib.suppress(RouteError, Broken):
            self._keep(Session(self.machine))

    @contextlib.contextmanager
    def use(self, *, fresh: bool = False, opening: float | None = None) -> Iterator[Session]:
        """A session for the length of the block, kept for the next one; opened within `opening` seconds."""
        session = None if fresh else self._take()
        session = session or Session(self.machine, opening)
        session.used += 1
        try:
            yield session
        except RouteError:
            self._keep(session)
            raise
        except BaseException:
            session.close()
            raise
        self._keep(session)

    def _take(self) -> Session | None:
        dialing, self._dialing = self._dialing, None
        if dialing is not None:
            dialing.join(Session.opening)
        with self._lock:
            while self._idle:
                session = self._idle.pop()
                if session.usable:
                    return session
                self._drop(session)
        return None

    def _keep(self, session: Session) -> None:
        with self._lock:
            if session.clock is not None and (self.clock is None or session.clock < self.clock):
                self.clock = session.clock
            if session.usable and len(self._idle) < 2:
                self._idle.append(session)
                return
        self._drop(session)

    def _drop(self, session: Session) -> None:
        # In a forked child the stream is the parent's: closing it there would end it here.
        if session._pid == os.getpid():
            session.close()

    def ask(self, op: str, body: bytes = b"", **fields: Any) -> Frame:
        """Ask something that may be asked twice. Raises `Unavailable` when no answer can be had."""
        until = time.monotonic() + UNREACHED
        for _ in range(2):
            again = False
            try:
                # An idle connection that had died unseen is no reason to take twice as long.
                with self.use(opening=max(LEAST, until - time.monotonic())) as session:
                    again = session.used > 1  # an idle stream may have died unseen
                    return session.ask(op, body, **fields)
            except Broken as e:
                if not again:
                    raise Unavailable(
                        f"the connection to {self.machine.name} broke: {e}", mend="try again"
                    ) from e
        raise Unavailable(f"{self.machine.name} cannot be reached", mend="try again")

    def close(self) -> None:
        """Close what is idle."""
        with self._lock:
            idle, self._idle = self._idle, []
        for session in idle:
            self._drop(session)

    def __del__(self) -> None:
        self.close()
