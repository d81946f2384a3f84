"""A run on several machines: its start is held here until every machine is ready, then let go by all."""

from __future__ import annotations

import os
import time

from . import files, machine, names, wire
from .wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any, Dict, List, Optional

    from .forking import Told
    from .runs import Attempt, Run

    Json = Dict[str, Any]

HOLD_US = 90_000_000
"""How long a start is held for the other machines: longer than import probes may take on one of them."""
LOST_US = 45_000_000
"""How long a member may be out of reach of the others before they end: see `link`."""
PATIENCE = 10.0
"""Seconds that the waiter may take from being let go to the state that follows."""
NOTE, HELD, GO, UNHELD = "group.json", "held.json", "go.json", "unheld.json"
LINK = "link.json"
END = "group_end.json"
"""Created once by the link: the group is over, and because of whom."""
FACTS = ("link_port", "master_port", "token")
POLL = 0.02


def of(spec: Json) -> Json:
    """What the specification says of the other machines; empty for a run on one."""
    found = spec.get("group")
    return found if isinstance(found, dict) else {}


def check(spec: Json) -> None:
    """Raises `Fault` for a group that cannot be."""
    if spec.get("group") is None:
        return
    group = spec["group"]
    if not isinstance(group, dict):
        raise Fault("BAD_SPEC", "group cannot be %.60r" % (group,))
    unknown = sorted(
        set(group) - {"nodes", "node_rank", "members", "address", "interface", "hold_us", "lost_us"}
    )
    if unknown:
        raise Fault("BAD_SPEC", "unknown field %.60r of group" % unknown[0])
    nodes = names.whole(group.get("nodes"), "group.nodes", 2, 4096)
    names.whole(group.get("node_rank"), "group.node_rank", 0, nodes - 1)
    members = group.get("members")
    if not isinstance(members, list) or len(members) != nodes:
        raise Fault("BAD_SPEC", "group.members does not name %d machines" % nodes)
    for member in members:
        names.text(member, "a member of the group")
    if not names.text(group.get("address"), "group.address"):
        raise Fault("BAD_SPEC", "group.address is empty")
    if group.get("interface") is not None:
        names.word(group["interface"], "group.interface")
    names.whole(group.get("hold_us", HOLD_US), "group.hold_us", 1)
    if group.get("lost_us", LOST_US) is not None:
        names.whole(group.get("lost_us", LOST_US), "group.lost_us", 1)
    if spec.get("in_place") is not None:
        raise Fault("BAD_SPEC", "a command in place has no group")


def why_ended(attempt: Attempt) -> str:
    """Because of whom the link ended the work; nothing if it did not."""
    if not attempt.has(END):
        return ""
    found = files.hint_json(attempt.at(END)).get("detail")
    return found if isinstance(found, str) else "ended because another member of the group did"


def called(group: Json, rank: int) -> str:
    """How a member is named to people."""
    return "node %d (%s)" % (rank, group["members"][rank])


def note(run: Run, spec: Json) -> None:
    """Keep beside the specification what every status is to tell of the group."""
    group, path = of(spec), os.path.join(run.path, NOTE)
    if group:
        files.write(path, wire.dumps({"nodes": group["nodes"], "node_rank": group["node_rank"]}))
    elif os.path.exists(path):
        os.unlink(path)


def noted(run: Run) -> Optional[Json]:
    """`nodes` and `node_rank` of a run on several machines, None of any other."""
    path = os.path.join(run.path, NOTE)
    return (files.hint_json(path) or None) if os.path.exists(path) else None


def devices(attempt: Attempt) -> List[str]:
    """Those that the attempt has leased, held or started."""
    for name in ("started.json", HELD):
        found = files.hint_json(attempt.at(name)).get("devices")
        if isinstance(found, list):
            return [str(each) for each in found]
    return []


# Ports: node 0 gives them, when its start is held


def free_port() -> socket.socket:
    """A socket that holds a port nobody has, below those that outgoing connections get."""
    import socket

    low = 32768
    try:
        low = int((files.read("/proc/sys/net/ipv4/ip_local_port_range") or b"").split()[0])
    except (OSError, ValueError, IndexError):
        pass
    low = max(10_100, low)
    for _ in range(200):
        port = 10_000 + int.from_bytes(os.urandom(4), "big") % (low - 10_000)
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind(("", port))
            # Listening once tells ports apart that two with SO_REUSEADDR could both be bound to.
            made.listen(1)
            return made
        except OSError:
            made.close()
    raise Fault("PREFLIGHT", "no free port was found for the rendezvous", "end what listens there")


def listener(address: str) -> socket.socket:
    """What the other members connect to: at `address` where that is one of this machine, else at all."""
    import socket

    try:
        found = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        found = []
    for family, kind, number, _, where in found:
        made = socket.socket(family, kind, number)
        try:
            made.bind(where)
            made.listen(128)
            return made
        except OSError:
            made.close()
    made = socket.socket()
    made.bind(("", 0))
    made.listen(128)
    return made


class Hold:
    """The wait of a start that has its leases until it is let go. Nothing of the work runs meanwhile."""

    def __init__(self, attempt: Attempt, spec: Json) -> None:
        self.attempt, self.group = attempt, of(spec)
        self.link: Optional[socket.socket] = None
        self.go: Json = {}

    @property
    def first(self) -> bool:
        return bool(self.group["node_rank"] == 0)

    def wait(self, told: Told) -> bool:
        """Whether the start was let go. If not, nothing was started and nothing is left but a note why."""
        attempt, hold = self.attempt, os.urandom(16).hex()
        facts: Json = {"hold": hold, "since_us": machine.now_us()}
        kept: List[socket.socket] = []
        for name in (GO, UNHELD):
            remove(attempt.at(name))
        try:
            if self.first:
                self.link = listener(self.group["address"])
                kept.append(free_port())
                facts["link_port"] = self.link.getsockname()[1]
                facts["master_port"] = kept[0].getsockname()[1]
                facts["token"] = os.urandom(32).hex()
            files.write_hint(attempt.at(HELD), wire.dumps(facts))
            told.say("held")
            return self._wait(hold)
        finally:
            for each in kept:
                each.close()
            if not self.go and self.link is not None:
                self.link.close()

    def _wait(self, hold: str) -> bool:
        attempt, limit = self.attempt, self.group.get("hold_us", HOLD_US)
        until = time.monotonic() + limit / 1e6
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
            elif time.monotonic() >= until:
                why = "held for %d s, and not every machine of the group was ready" % (limit // 1_000_000)
                files.create_once(attempt.at(GO), wire.dumps({"hold": hold, "over": why}))
            else:
                time.sleep(POLL)


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


def holding(attempt: Attempt) -> Json:
    """The record of the hold that is on; empty if none is."""
    return files.hint_json(attempt.at(HELD)) if files.held(attempt.at("sup.lock")) else {}


def settle(attempt: Attempt, more: Json) -> bool:
    """Say once what becomes of the hold that is on: `more` is what it is let go with, or why it is over.
    False if nothing is held, or something else was said first."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        held = holding(attempt)
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
    given: Any = {}
    try:
        given = wire.loads(body) if body else {}
    except ValueError:
        pass
    spec = run.spec()
    if not attempt.has("started.json") and not attempt.has("exit.json"):
        if of(spec) and of(spec)["node_rank"] != 0:
            if not isinstance(given, dict) or not _whole(given):
                raise Fault("BAD_REQUEST", "node 0's ports and token are to be given", "see docs/protocol.md")
            given = {k: given[k] for k in FACTS}
        else:
            given = {}
        settle(attempt, given)
    until = time.monotonic() + PATIENCE
    while not attempt.has("exec.json") and not attempt.has("exit.json"):
        if not files.held(attempt.at("sup.lock")) or time.monotonic() >= until:
            if attempt.has("started.json"):
                return  # whatever became of it, it was let go
            why = files.hint_json(attempt.at(UNHELD)).get("detail") or "its start is not held there"
            raise Fault("NOT_HELD", "run %s cannot be let go: %s" % (run.id, why), "start it again")
        time.sleep(0.005)


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


# What the work is told


def variables(spec: Json, go: Json) -> Dict[str, str]:
    """What the work reads of its place in the group; the interface only where the work names none."""
    group = of(spec)
    if not group:
        return {}
    return {
        "ROUTE_NODE_RANK": str(group["node_rank"]),
        "ROUTE_NODES": str(group["nodes"]),
        "MASTER_ADDR": str(group["address"]),
        "MASTER_PORT": str(go.get("master_port", 0)),
    }


def rendezvous(spec: Json, go: Json) -> List[str]:
    """The words that tell torchrun how its machines meet."""
    group = of(spec)
    if not group:
        return ["--standalone"]
    return [
        "--nnodes=%d" % group["nodes"],
        "--node-rank=%d" % group["node_rank"],
        "--master-addr=%s" % group["address"],
        "--master-port=%d" % go.get("master_port", 0),
    ]
