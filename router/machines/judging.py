"""What the facts of a checkup mean for runs: pure functions from what a machine told to findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compute_router.backend import HealthCheck
from compute_router.machines.entry import MachineEntry
from compute_router.supervisor.observing import skus
from compute_router.workload import Accelerator

__all__ = ["clock", "facts", "looks_at_gpus"]

Facts = Mapping[str, Any]
LEAST_BYTES, FEW_BYTES = 256 << 20, 20 << 30
"""With less no run is begun; few is what an environment with torch, and its files, may need."""
LEAST_FILES, FEW_FILES = 10_000, 200_000
OFF_US = 1_000_000
XIDS = {
    48: "an error of two bits in its memory",
    62: "a halt of its controller",
    64: "a row of memory that could not be replaced",
    74: "an error of NVLink",
    79: "it had fallen off the bus",
    94: "an uncorrectable error of its memory, contained",
    95: "an uncorrectable error of its memory, not contained",
    119: "its system processor gave no answer",
    120: "an error of its system processor",
    140: "an uncorrectable error of its memory",
}
"""Errors of the hardware among the codes of NVIDIA's "XID Errors"; most of the others are a program's own."""


def clock(told: tuple[int, int] | None) -> HealthCheck:
    """The machine's clock against ours: `told` is a round trip and the difference, in microseconds."""
    if told is None:
        return HealthCheck(name="clock", ok=True, seen="it was not told", warns=True)
    rtt, offset = told
    sure = max(0, abs(offset) - rtt // 2)
    side = "ahead of" if offset > 0 else "behind"
    if sure <= OFF_US:
        return HealthCheck(name="clock", ok=True, seen=f"right to {(abs(offset) + rtt // 2) // 1000 + 1} ms")
    return HealthCheck(
        name="clock",
        ok=True,
        warns=True,
        seen=f"it is {_length(abs(offset))} {side} ours",
        mend="timedatectl set-ntp true (there, or here if this clock is the wrong one)",
    )


def _length(us: int) -> str:
    seconds = us // 1_000_000
    if seconds < 120:
        return f"{us / 1e6:.1f} s"
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def facts(told: Facts, entry: MachineEntry) -> Iterator[HealthCheck]:
    """The findings in the reply to `checkup` (docs/protocol.md), for what `entry` says of the machine."""
    yield from _root(_table(told, "root"), entry)
    yield from _leases(_table(told, "leases"))
    yield from _login(_table(told, "login"))
    if looks_at_gpus(entry):
        yield from _gpus(_table(told, "gpus"), entry.has)
        yield from _xids(_table(told, "xids"))


def looks_at_gpus(entry: MachineEntry) -> bool:
    """Whether GPUs are any matter of what the configuration says of a machine."""
    return entry.has is None or entry.has.family in ("gpu", "any")


def _table(told: Facts, name: str) -> Facts:
    found = told.get(name)
    return found if isinstance(found, Mapping) else {"why": "it told nothing of it"}


def _good(name: str, seen: str) -> HealthCheck:
    return HealthCheck(name=name, ok=True, seen=seen)


def _warns(name: str, seen: str, mend: str) -> HealthCheck:
    return HealthCheck(name=name, ok=True, seen=seen, mend=mend, warns=True)


def _missing(name: str, seen: str, mend: str) -> HealthCheck:
    return HealthCheck(name=name, ok=False, seen=seen, mend=mend)


def _either(others: bool, name: str, seen: str, mend: str) -> HealthCheck:
    """Missing, but a warning where `others` do."""
    return _warns(name, seen, mend) if others else _missing(name, seen, mend)


# The root


def _root(root: Facts, entry: MachineEntry) -> Iterator[HealthCheck]:
    if "why" in root:
        yield _missing("root", f"nothing can be told of {entry.root}: {root['why']}", "look at that disk")
        return
    path, lies = root["path"], " ".join(filter(None, (root.get("class"), root.get("fs")))).replace("_", " ")
    another = "name another folder: root = in [machines.NAME]"
    if root["free_bytes"] < LEAST_BYTES or root["written"] is False:
        why = f", and a file cannot be written there: {root['why_not']}" if root["written"] is False else ""
        yield _missing(
            "root", f"{path} has {_size(root['free_bytes'])} free{why}", f"make room, or {another}"
        )
        return
    if root["executed"] is False:
        why = root.get("why_not") or "a program there fails"
        yield _missing(
            "root",
            f"nothing can be executed below {path} ({why}): environments of workloads live there",
            f"mount it without noexec, or {another}",
        )
        return
    files = root["free_inodes"]
    if files is not None and files < LEAST_FILES:
        yield _missing("root", f"{path} has room for {files} more files", f"remove some, or {another}")
        return
    yield _good("root", f"{path} on {lies or 'a disk that cannot be told'}, {_size(root['free_bytes'])} free")
    if root["free_bytes"] < FEW_BYTES:
        yield _warns(
            "room",
            f"{_size(root['free_bytes'])} are little for environments and data",
            f"make room, or {another}",
        )
    if files is not None and files < FEW_FILES:
        yield _warns("files", f"room for {files} more files is little", f"remove some, or {another}")
    if root.get("class") == "tmpfs":
        yield _warns("memory", f"{path} lies in memory: it is gone with a restart", another)
    if root.get("mode", 0) & 0o022:
        yield _warns("rights", f"others may write in {path}", f"chmod go-w {path}")


def _size(count: int) -> str:
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 999.5 or unit == "TB":
            break
        amount /= 1000
    return f"{amount:.1f} {unit}" if 0 < amount < 9.95 and unit != "B" else f"{amount:.0f} {unit}"


# Leases and logins


def _leases(told: Facts) -> Iterator[HealthCheck]:
    if "why" in told:
        yield _missing("leases", f"nothing can be told of their folder: {told['why']}", "look at /run/lock")
    elif told.get("folder") is None:
        yield _missing("leases", str(told["error"].get("what")), str(told["error"].get("mend")))
    elif not told["shared"]:
        yield _warns(
            "leases",
            f"{told['folder']} (mode {told['mode']:o}) keeps others out: other users would not see our runs",
            f"chmod 1777 {told['folder']}",
        )
    else:
        yield _good("leases", f"{told['folder']}, shared by all users")


def _login(told: Facts) -> Iterator[HealthCheck]:
    if "why" in told:
        yield _warns("logout", f"it cannot be told whether runs outlive it: {told['why']}", "")
    elif told.get("kills"):
        yield _missing(
            "logout",
            f"logind ends what {told['user']} leaves behind (KillUserProcesses=yes): runs would end with the "
            "connection, and lingering does not change that",
            "KillUserProcesses=no, or the user in KillExcludeUsers=, in /etc/systemd/logind.conf",
        )
    else:
        yield _good("logout", f"what {told['user']} starts goes on after it")


# GPUs


def _gpus(told: Facts, has: Accelerator | None) -> Iterator[HealthCheck]:
    if "why" in told:
        yield _missing("gpus", f"nothing can be told of them: {told['why']}", "nvidia-smi there")
        return
    plugged, error = told.get("boards"), told.get("error")
    if error is not None:
        if has is None and not plugged and "no nvidia-smi" in error["what"]:
            yield _good("gpus", "none here")
            return
        yield _missing("driver", *_no_driver(error, plugged))
        return
    rows: Sequence[Facts] = told["list"]
    sick = [row for row in rows if row["sick"]]
    lost = [bus for bus in told.get("missing", ()) if all(bus not in str(row["called"]) for row in rows)]
    well = [row for row in rows if not row["sick"] and row["uuid"]]
    fitting = [
        row for row in well if has is None or not has.sku or skus.same(has.sku, row["full"]) == "exact"
    ]
    wanted = 1 if has is None else max(1, has.count)
    enough = len(fitting) >= wanted
    for row in sick:
        yield _either(enough, "sick gpu", row["sick"], row["mend"] or "")
    for bus in lost:
        yield _either(enough, "sick gpu", f"the GPU at {bus} does not answer", "restart the machine")
    if not enough:
        here = _counted(well) or "none that is well"
        asked = f"{wanted} x {has.sku or 'GPU'}" if has is not None else "any GPU"
        yield _missing(
            "gpus",
            f"here are {here}, where the configuration says {asked}",
            "mend those that are missing, or say what is here: accelerator = in [machines.NAME]",
        )
    else:
        driver = told.get("driver") or "of a version that is not told"
        yield _good("gpus", f"{_counted(rows)}, driver {driver}")
    yield from _foreign(fitting)


def _counted(rows: Sequence[Facts]) -> str:
    counts = Counter(str(row["sku"] or "GPU of a kind that is not told") for row in rows)
    return ", ".join(f"{count} x {sku}" for sku, count in sorted(counts.items()))


def _no_driver(error: Facts, plugged: int | None) -> tuple[str, str]:
    what = str(error["what"])
    if "mismatch" in what.lower():
        return (
            f"its library and its module differ: {what}",
            "restart the machine: the driver was updated under it",
        )
    mend = str(error.get("mend") or "")
    if "no nvidia-smi" in what:
        mend = 'install the driver; if it has no GPU: accelerator = "cpu" in [machines.NAME]'
    return f"{plugged} GPUs are plugged in, and {what}" if plugged else what, mend


def _xids(told: Facts) -> Iterator[HealthCheck]:
    """What the driver told the kernel's log of; it may be mended since, so it stops nothing."""
    for row in told.get("list", ()):
        if row["xid"] in XIDS:
            times = "once" if row["count"] == 1 else f"{row['count']} times"
            last = f", last {_length(row['ago_us'])} ago" if "ago_us" in row else ""
            yield _warns(
                "xid",
                f"the GPU at {row['bus']} reported Xid {row['xid']} {times}{last}: {XIDS[row['xid']]}",
                "reset that GPU, or restart the machine, unless that was done since",
            )


def _foreign(rows: Sequence[Facts]) -> Iterator[HealthCheck]:
    """Who is on GPUs without a lease; it stops runs only where nothing is left for them."""
    taken = [row for row in rows if row["foreign"] is not None]
    for row in taken:
        who = ", ".join(_user(user) for user in row["foreign"])
        used = row.get("memory_used_bytes")
        seen = f"{row['called']} is used by {who or 'somebody whom we cannot see'}"
        yield _either(
            len(taken) < len(rows),
            "foreign",
            seen + (f", {_size(used)} of its memory are taken" if used else ""),
            "ask them to end it; runs go to the others meanwhile",
        )


def _user(user: Facts) -> str:
    name, owner = user.get("name"), user.get("user")
    about = " of ".join(part for part in (name, owner) if part)
    return f"process {user['pid']}" + (f" ({about})" if about else "")
