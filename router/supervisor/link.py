"""Holds the members of a group together without a client: when one fails or is gone, the others end.

Node 0 listens, the others connect to it, over the network that the work itself meets on. Both sides
prove that they know the run's token, and every line carries a MAC. A member that ended well is waited
for by nobody. A connection that breaks proves nothing: it is made again, and only a member that was
not heard of for `lost_us` (45 s) ends the others. By then the work's own connections, which lead over
the same network, are as dead, and ranks that wait in a collective for one that is gone hold every GPU
of every machine until a timeout of many minutes. Who wants to outlast longer cuts says `lost_us: null`.
"""

from __future__ import annotations

import os
import select
import signal
import time

from . import files, group, machine, truth, watcher, wire
from .peers import Conn, dial

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any, Dict, List, Optional

    from .runs import Attempt

    Json = Dict[str, Any]

BEAT = 3.0
SILENT = 15.0
"""Seconds without a line after which a connection is made anew."""
JOIN = 60.0
"""Seconds from this member's start in which the others have to have come."""
LINGER = 60.0
"""Seconds for which a member that is over goes on telling so."""
LATER = 8.0
"""Seconds left to the others to end by themselves where what is told is only that a peer was gone: the
one that went first is about to say so, and is the one to be named."""
LOOK = 0.5


class Link:
    """One member's end of the link, until its own part and, on node 0, everybody's is over."""

    def __init__(self, attempt: Attempt, spec: Json, go: Json, listener: Optional[socket.socket]) -> None:
        self.attempt, self.go, self.listener = attempt, go, listener
        self.group = group.of(spec)
        self.rank, self.nodes = int(self.group["node_rank"]), int(self.group["nodes"])
        lost = self.group.get("lost_us", group.LOST_US)
        self.lost = None if lost is None else lost / 1e6
        self.began = time.monotonic()
        self.conns: List[Conn] = []
        self.keeper = os.getppid()
        self.own: Json = {}
        self.own_at = 0.0
        self.verdict: Json = {}
        self.verdict_at = 0.0
        self.acted = False
        self.told = False
        self.look_at = self.dial_at = self.beat_at = 0.0
        self.heard: Dict[int, float] = {}
        """When each member was last heard of; of those that have come."""
        self.ended: Dict[int, Json] = {}
        before = files.hint_json(attempt.at(group.LINK))
        # A link that is brought back knows who had ended: those will not come again.
        for rank, told in (before.get("ended") or {}).items():
            self.ended[int(rank)] = told
        for rank in before.get("joined") or ():
            self.heard[int(rank)] = self.began
        self.keep()

    @property
    def hub(self) -> bool:
        return self.rank == 0

    @property
    def others(self) -> List[int]:
        return [r for r in range(self.nodes) if r != self.rank] if self.hub else [0]

    def keep(self) -> None:
        me = machine.process(os.getpid())
        note = {
            "pid": os.getpid(),
            "start": me.start if me else 0,
            "ended": {str(rank): told for rank, told in self.ended.items()},
            "joined": sorted(self.heard),
        }
        try:
            files.write_hint(self.attempt.at(group.LINK), wire.dumps(note))
        except OSError:
            pass

    def run(self) -> None:
        while not self.turn():
            poll = select.poll()
            if self.listener is not None:
                poll.register(self.listener, select.POLLIN)
            for conn in self.conns:
                poll.register(conn.sock, select.POLLIN | (select.POLLOUT if conn.outbox else 0))
            poll.poll(int(LOOK * 1000))

    def turn(self) -> bool:
        """One round; true once this end has nothing more to do."""
        now = time.monotonic()
        self.outcome(now)
        self.meet(now)
        for conn in list(self.conns):
            for line in conn.lines():
                self.take(conn, line, now)
            if now - conn.heard > SILENT:
                conn.open = False
        if now >= self.beat_at:
            self.beat_at = now + BEAT
            for conn in self.conns:
                conn.say(t="beat")
        self.judge(now)
        self.act(now)
        for conn in list(self.conns):
            conn.flush()
            if not conn.open:
                conn.close()
                self.conns.remove(conn)
        return self.over(now)

    # What became of this member

    def outcome(self, now: float) -> None:
        if self.own or now < self.look_at:
            return
        # With the waiter gone it is only found out by looking at everything.
        orphaned = os.getppid() != self.keeper
        self.look_at = now + (2.0 if orphaned else LOOK)
        try:
            if not orphaned and not self.attempt.has("exit.json"):
                return
            found = truth.of(self.attempt)
        except (wire.Fault, OSError):
            return
        if truth.final(found):
            first = found.get("first") or {}
            self.own = {
                "ok": found["state"] == "succeeded",
                "detail": ("%s: %s" % (found["reason"], found["detail"]))[:400],
                "later": bool(first.get("follows")) or found["reason"] == "group",
            }
            self.own_at = now
            for conn in self.conns:
                conn.say(t="ended", **self.own)
            if self.hub and not self.own["ok"]:
                self.decide(0, self.own["detail"], self.own["later"], now)

    # Connections

    def meet(self, now: float) -> None:
        if self.hub and self.listener is not None:
            while True:
                try:
                    sock, _ = self.listener.accept()
                except OSError:
                    break
                strangers = [conn for conn in self.conns if not conn.key]
                if len(strangers) > self.nodes + 64:
                    strangers[0].open = False
                conn = Conn(sock, self.go["token"], server=True)
                conn.put({"route": 1, "nonce": conn.nonce})
                self.conns.append(conn)
        elif not self.hub and not self.conns and now >= self.dial_at and not self.told:
            self.dial_at = now + 1.0
            made = dial(self.group["address"], self.go["link_port"], self.go["token"])
            if made is not None:
                self.conns.append(made)

    def take(self, conn: Conn, line: Json, now: float) -> None:
        if not conn.key:
            return self.greet(conn, line, now)
        message = conn.opened(line)
        if message is None:
            return None
        self.heard[conn.rank] = now
        what = message.get("t")
        if what == "ended" and self.hub:
            self.ended.setdefault(conn.rank, {k: message.get(k) for k in ("ok", "detail", "later")})
            self.keep()
            conn.say(t="ack")
            if not message.get("ok"):
                self.decide(conn.rank, str(message.get("detail")), bool(message.get("later")), now)
        elif what == "end" and not self.hub:
            rank = message.get("rank")
            self.decide(rank if type(rank) is int else 0, str(message.get("detail")), False, now)
            self.ended.setdefault(0, {"ok": None})
        elif what == "ended":
            # Node 0 is over but stays for the others, and says itself what that means for them.
            self.ended.setdefault(0, {"ok": message.get("ok")})
            if not message.get("ok"):
                # Should it be gone before it has said so, nobody else would.
                self.decide(0, str(message.get("detail")), True, now + LATER)
        elif what == "ack":
            self.told = True
        return None

    def greet(self, conn: Conn, line: Json, now: float) -> None:
        """Prove to each other that both know the token; whoever cannot is hung up on."""
        who = self.attempt.run.id, self.attempt.number
        theirs, rank = line.get("nonce"), line.get("rank")
        if conn.server:
            good = (
                type(rank) is int and 0 < rank < self.nodes and isinstance(theirs, str) and len(theirs) == 32
            )
            if not good or not conn.same(line.get("mac"), "client", conn.nonce, theirs, rank, *who):
                conn.open = False
                return
            for old in self.conns:
                if old.rank == rank:
                    old.open = False
            conn.put({"proof": conn.mac("server", conn.nonce, theirs, rank, *who)})
            conn.key, conn.rank = conn.mac("key", conn.nonce, theirs).encode(), int(rank)  # type: ignore[arg-type]
            self.come(conn, now)
        elif conn.greeted(line, self.rank, *who):
            self.come(conn, now)

    def come(self, conn: Conn, now: float) -> None:
        first = conn.rank not in self.heard
        self.heard[conn.rank] = conn.heard = now
        if first:
            self.keep()
        if self.own:
            conn.say(t="ended", **self.own)
        if self.hub and self.verdict and self.acted:
            conn.say(t="end", rank=self.verdict["rank"], detail=self.verdict["detail"])

    # What that means

    def decide(self, rank: int, detail: str, later: bool, now: float) -> None:
        """The group is over because of `rank`. One that says that it only followed gives way to the first
        that does not."""
        if self.verdict and (self.acted or later or not self.verdict["later"]):
            return
        self.verdict = {"rank": rank, "detail": detail[:400], "later": later}
        self.verdict_at = now + (LATER if later else 0.0)

    def judge(self, now: float) -> None:
        """Whether a member that says nothing any more has to be taken for gone."""
        if self.verdict:
            return
        for rank in self.others:
            if rank in self.ended:
                continue
            heard = self.heard.get(rank)
            if heard is None and now - self.began > JOIN:
                self.decide(rank, "it never came to the others within %d s" % JOIN, False, now)
            elif heard is not None and self.lost is not None and now - heard > self.lost:
                self.decide(rank, "it was not heard of for %d s" % self.lost, False, now)

    def act(self, now: float) -> None:
        """Tell everybody, and have this member's own work ended by its watcher."""
        if not self.verdict or self.acted or now < self.verdict_at:
            return
        self.acted = True
        rank, detail = self.verdict["rank"], self.verdict["detail"]
        if self.hub:
            for conn in self.conns:
                conn.say(t="end", rank=rank, detail=detail)
        if not self.own:
            why = "ended because of %s: %s" % (group.called(self.group, rank), detail)
            try:
                files.create_once(self.attempt.at(group.END), wire.dumps({"rank": rank, "detail": why}))
            except OSError:
                files.mark_once(self.attempt.at(group.END))
            watcher.nudge(self.attempt)

    def over(self, now: float) -> bool:
        if not self.own:
            return False
        if not self.hub:
            return self.told or now - self.own_at > LINGER
        waits = [rank for rank in self.others if rank not in self.ended]
        if not waits and not any(conn.outbox for conn in self.conns):
            return True
        # Those that were told of the end have nothing to hear any more but that.
        return self.acted and now - max(self.own_at, self.verdict_at) > LINGER / 3


class Keeper:
    """The link's process, as its waiter knows it: `pid`, 0 where there is none."""

    def __init__(self, attempt: Attempt, spec: Json, go: Json, listener: Optional[socket.socket]) -> None:
        self.attempt, self.spec, self.go, self.listener = attempt, spec, go, listener
        self.pid = 0

    def start(self) -> None:
        """See that it runs."""
        if self.pid:
            return
        pid = os.fork()
        if pid:
            self.pid = pid
            return
        try:
            from .forking import close_others

            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            if self.listener is not None:
                self.listener.setblocking(False)
            close_others({0, 1, 2, self.listener.fileno() if self.listener is not None else 0})
            try:
                import ctypes

                ctypes.CDLL(None).prctl(15, b"route-link", 0, 0, 0)
            except (ImportError, OSError, AttributeError):
                pass
            Link(self.attempt, self.spec, self.go, self.listener).run()
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(0)
