"""A run on several machines: what its specification says of the others, and what its work is told of them."""

from __future__ import annotations

import os

from . import files, names, wire
from .wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any, Dict, List, Optional, Sequence

    from .holding import Hold
    from .runs import Attempt, Run

    Json = Dict[str, Any]

HOLD_US = 90_000_000
"""How long a start is held for the other machines: longer than import probes may take on one of them."""
LOST_US = 45_000_000
"""How long a member may be out of reach of the others before they end: see `link`."""
NOTE, HELD, EXTEND, GO, UNHELD = "group.json", "held.json", "extend.json", "go.json", "unheld.json"
LINK = "link.json"
END = "group_end.json"
"""Created once by the link: the group is over, and because of whom."""
FACTS = ("link_port", "master_port", "token")


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


def hold(attempt: Attempt, spec: Json, devices: Sequence[str]) -> Optional[Hold]:
    """What a start waits by until its group is ready; None where it has none."""
    if not of(spec):
        return None
    from . import holding

    return holding.Hold(attempt, spec, devices)


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
