"""The hold of a start that waits for its group: let go or given up, once, and heard of by every member."""

from __future__ import annotations

import os
import time

from . import files, group, machine, names, peers, wire
from .group import EXTEND, FACTS, GO, HELD, UNHELD
from .wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any, Dict, List, Optional, Sequence

    from .forking import Told
    from .runs import Attempt, Run

    Json = Dict[str, Any]

PATIENCE = 10.0
"""Seconds that the waiter may take to see what was said to it, and to the state that follows."""
LONGER = 15.0
"""Seconds for which the others go on holding when node 0's own hold is over for certain: by then its link
has answered if it was let go, so that no member gives up while another one starts."""
POLL = 0.01


class Hold:
    """The wait of a start that has its leases until it is let go. Nothing of the work runs meanwhile."""

    def __init__(self, attempt: Attempt, spec: Json, devices: Sequence[str] = ()) -> None:
        self.attempt, self.group, self.devices = attempt, group.of(spec), list(devices)
        self.link: Optional[socket.socket] = None
        self.go: Json = {}
        self.held: Json = {}
        self.asking: Optional[Asking] = None
        self.until = 0.0

    @property
    def first(self) -> bool:
        return bool(self.group["node_rank"] == 0)

    def wait(self, told: Told) -> bool:
        """Whether the start was let go. If not, nothing was started and nothing is left but a note why."""
        attempt = self.attempt
        self.held = {"hold": os.urandom(16).hex(), "since_us": machine.now_us(), "devices": self.devices}
        kept: List[socket.socket] = []
        for name in (GO, UNHELD, EXTEND):
            remove(attempt.at(name))
        try:
            if self.first:
                self.link = group.listener(self.group["address"])
                kept.append(group.free_port())
                self.held["link_port"] = self.link.getsockname()[1]
                self.held["master_port"] = kept[0].getsockname()[1]
                self.held["token"] = os.urandom(32).hex()
            self._keep(0.0)
            told.say("held")
            return self._wait()
        finally:
            for each in kept:
                each.close()
            if self.asking is not None:
                self.asking.close()
            if not self.go and self.link is not None:
                self.link.close()

    def _keep(self, longer: float) -> None:
        """Hold for the whole time from now on, and say so."""
        self.until = time.monotonic() + self.group.get("hold_us", group.HOLD_US) / 1e6 + longer
        files.write_hint(self.attempt.at(HELD), wire.dumps(self.held))

    def _wait(self) -> bool:
        attempt, hold = self.attempt, self.held["hold"]
        while True:
            if attempt.has("cancel.json"):
                attempt.finish("cancelled", "cancel", "cancelled before it started")
                remove(attempt.at(HELD))
                return False
            said = files.hint_json(attempt.at(GO))
            if said and said.get("hold") != hold:
                remove(attempt.at(GO))  # meant for a hold that is over
            elif "over" in said:
                over = {"detail": "never executed; " + str(said["over"])}
                files.write_hint(attempt.at(UNHELD), wire.dumps(over))
                remove(attempt.at(HELD))
                remove(attempt.at(GO))
                return False
            elif said:
                self.go = said
                return True
            elif self._extended() or self._heard():
                continue
            elif time.monotonic() >= self.until:
                limit = self.group.get("hold_us", group.HOLD_US) // 1_000_000
                self._say(over="held for %d s, and not every machine of the group was ready" % limit)
            else:
                time.sleep(POLL)

    def _say(self, **more: Any) -> None:
        files.create_once(self.attempt.at(GO), wire.dumps(dict(more, hold=self.held["hold"])))

    def _extended(self) -> bool:
        """See whether the hold is to last longer, and answer that it does."""
        asked = files.hint_json(self.attempt.at(EXTEND))
        if asked.get("hold") != self.held["hold"] or asked.get("nonce") == self.held.get("extended"):
            return False
        self.held["extended"] = asked.get("nonce")
        told = {k: asked[k] for k in FACTS if k in asked}
        if told and not self.first and self.asking is None:
            self.asking = Asking(self.attempt, self.group, told)
        self._keep(LONGER if self.asking is not None else 0.0)
        return True

    def _heard(self) -> bool:
        """Whether node 0 says that the group was let go, or is over: then so is this hold."""
        if self.asking is None or not self.asking.turn(time.monotonic()):
            return False
        if self.asking.over:
            self._say(over="the group was over before this member was let go")
        else:
            self._say(**self.asking.facts)
        return True


class Asking:
    """A held member's question to node 0 whether the group was let go: node 0's link, which proves itself by
    the token, runs only once it was. So a client that is gone in the middle leaves no member behind."""

    def __init__(self, attempt: Attempt, of: Json, facts: Json) -> None:
        self.attempt, self.group, self.facts = attempt, of, facts
        self.conn: Optional[peers.Conn] = None
        self.dial_at, self.pause = 0.0, 0.5
        self.over = False

    def turn(self, now: float) -> bool:
        """One look; true once there is an answer."""
        if self.conn is None:
            if now < self.dial_at:
                return False
            self.conn = peers.dial(self.group["address"], self.facts["link_port"], self.facts["token"])
            self.pause = min(self.pause * 1.5, 3.0) if self.conn is None else 0.5
            self.dial_at = time.monotonic() + self.pause
            if self.conn is None:
                return False
        conn, known = self.conn, False
        for line in conn.lines():
            if not conn.key:
                who = self.attempt.run.id, self.attempt.number
                known = conn.greeted(line, self.group["node_rank"], *who)
            else:
                self.over = self.over or (conn.opened(line) or {}).get("t") == "end"
        conn.flush()
        if known or not conn.open:
            self.close()
        return known

    def close(self) -> None:
        if self.conn is not None:
            self.conn.close()
            self.conn = None


def remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


# What the client asks


def facts(attempt: Attempt) -> Json:
    """Of node 0: what the others are to be told when they are let go. Empty of the others."""
    found = files.hint_json(attempt.at(GO)) or files.hint_json(attempt.at(HELD))
    return {k: found[k] for k in FACTS if k in found}


def current(attempt: Attempt) -> Json:
    """The record of the hold that is on; empty if none is."""
    return files.hint_json(attempt.at(HELD)) if files.held(attempt.at("sup.lock")) else {}


def extend(run: Run, attempt: Attempt, body: bytes) -> None:
    """See that the hold that is on lasts its whole time from now on. Silent about a start that was let go.
    May be repeated. Raises `Fault` NOT_HELD if nothing of it is held or begun."""
    asked = {"nonce": os.urandom(16).hex(), **_given(run, body, needed=False)}
    until = time.monotonic() + PATIENCE
    while not attempt.has("started.json") and not attempt.has("exit.json"):
        held = current(attempt)
        said = files.hint_json(attempt.at(GO))
        if held and held.get("extended") == asked["nonce"]:
            return
        if held and said.get("hold") == held["hold"] and "over" not in said:
            return  # it is about to begin
        if not held or time.monotonic() >= until:
            raise _not_held(run, attempt)
        if files.hint_json(attempt.at(EXTEND)).get("nonce") != asked["nonce"]:
            files.write_hint(attempt.at(EXTEND), wire.dumps(dict(asked, hold=held["hold"])))
        time.sleep(POLL / 2)


def settle(attempt: Attempt, more: Json) -> bool:
    """Say once what becomes of the hold that is on: `more` is what it is let go with, or why it is over.
    False if nothing is held, or something else was said first."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        held = current(attempt)
        if not held or attempt.has("started.json"):
            return False
        own = {k: held[k] for k in FACTS if k in held}
        said = dict(more, hold=held["hold"], **({} if "over" in more else own))
        if files.create_once(attempt.at(GO), wire.dumps(said)):
            return True
        stands = files.hint_json(attempt.at(GO))
        if stands.get("hold") == held["hold"]:
            return ("over" in stands) == ("over" in more)
        time.sleep(POLL)  # the waiter takes away what was meant for another hold
    return False


def go(run: Run, attempt: Attempt, body: bytes) -> None:
    """Let a held start go, and see it begin. May be repeated. Raises `Fault` NOT_HELD if nothing of it
    is held or begun: nothing was started then."""
    let = False
    if not attempt.has("started.json") and not attempt.has("exit.json"):
        let = settle(attempt, _given(run, body, needed=True))
    until = time.monotonic() + PATIENCE
    while not attempt.has("exec.json") and not attempt.has("exit.json"):
        alive = files.held(attempt.at("sup.lock"))
        if not alive or time.monotonic() >= until:
            # Let go, it begins however long that takes: whoever is told otherwise starts it elsewhere too.
            if attempt.has("started.json") or (alive and let):
                return
            raise _not_held(run, attempt)
        time.sleep(0.005)


def _not_held(run: Run, attempt: Attempt) -> Fault:
    why = files.hint_json(attempt.at(UNHELD)).get("detail") or "its start is not held there"
    return Fault("NOT_HELD", "run %s cannot be let go: %s" % (run.id, why), "start it again")


def _given(run: Run, body: bytes, needed: bool) -> Json:
    """What node 0 gave for the others; nothing for node 0 itself. Raises `Fault` BAD_REQUEST."""
    of = group.of(run.spec())
    if not of or of["node_rank"] == 0 or not (body or needed):
        return {}
    try:
        given = wire.loads(body) if body else None
    except ValueError:
        given = None
    if not isinstance(given, dict) or not _whole(given):
        raise Fault("BAD_REQUEST", "node 0's ports and token are to be given", "see docs/protocol.md")
    return {k: given[k] for k in FACTS}


def _whole(given: Json) -> bool:
    ports = (given.get("link_port"), given.get("master_port"))
    token = given.get("token")
    return (
        all(type(p) is int and 0 < p < 65536 for p in ports) and isinstance(token, str) and len(token) == 64
    )


def release(attempt: Attempt, why: Any) -> None:
    """Give up a held start, so that its leases are free when this returns; nothing if none is held."""
    why = why if isinstance(why, str) and why else "another machine of the group could not start"
    if settle(attempt, {"over": why[:300]}):
        fd = files.lock(attempt.at("sup.lock"), patience=PATIENCE)
        if fd >= 0:
            os.close(fd)


def forgo(attempt: Attempt) -> Json:
    """Make an attempt final that was begun on another machine and never here; its status. One that is
    about to start here after all is left alone."""
    from . import truth

    fd = files.lock(attempt.at("sup.lock"), patience=0.25)
    if fd >= 0:
        try:
            if not attempt.has("started.json"):
                attempt.finish("lost", "never_executed", "never started here, and over elsewhere")
        finally:
            os.close(fd)
    return truth.of(attempt)


# The operations


def answer_go(run: Run, head: Json, body: bytes) -> Json:
    """Let a start go that is held for its group; its status, and of node 0 what the others are to be told."""
    from . import truth

    attempt = _attempt(run, head)
    go(run, attempt, body)
    return dict(facts(attempt), status=truth.of(attempt))


def answer_extend(run: Run, head: Json, body: bytes) -> Json:
    """Hold a start for its whole time once more; its status, and of node 0 what the others are to be told."""
    from . import truth

    attempt = _attempt(run, head)
    extend(run, attempt, body)
    return dict(facts(attempt) if _is_first(run) else {}, status=truth.of(attempt))


def answer_release(run: Run, head: Json) -> Json:
    """Give up a start that is held; its leases are free then. Silent if none is held. May be repeated."""
    from . import truth

    release(_attempt(run, head), head.get("why"))
    return {"status": truth.status(run)}


def _is_first(run: Run) -> bool:
    return group.of(run.spec()).get("node_rank") == 0


def _attempt(run: Run, head: Json) -> Attempt:
    from .runs import Attempt

    return Attempt(run, names.whole(head.get("attempt", 1), "attempt", 1, 10_000))
