"""GPUs of this machine by UUID, as nvidia-smi tells; a tool that hangs or lies is an error with a mend."""

from __future__ import annotations

from .wire import Fault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List

    Json = Dict[str, Any]

DEADLINE = 5.0
PREFIX = "device."
_UUID = frozenset("0123456789abcdefABCDEFGPUMIGgpumig-/_")


def ask(*arguments: str) -> List[List[str]]:
    """The rows that nvidia-smi prints as CSV. Raises `Fault` PREFLIGHT within five seconds."""
    import subprocess

    try:
        done = subprocess.run(
            ["nvidia-smi", *arguments, "--format=csv,noheader,nounits"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=DEADLINE,
        )
    except FileNotFoundError:
        raise Fault("PREFLIGHT", "there is no nvidia-smi here", "install the driver, or ask for `cpu`")
    except subprocess.TimeoutExpired:
        raise Fault(
            "PREFLIGHT", "nvidia-smi hangs for %d seconds" % DEADLINE, "look at `dmesg` for Xid errors"
        )
    except OSError as e:
        raise Fault("PREFLIGHT", "nvidia-smi cannot be run: %s" % e.strerror, "mend the driver")
    text = done.stdout.decode("utf-8", "replace")
    if done.returncode:
        raise Fault(
            "PREFLIGHT", "nvidia-smi fails: %s" % text.strip()[:200], "mend the driver, then run nvidia-smi"
        )
    return [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]


def listing() -> List[Json]:
    """`uuid`, `name` and memory of every GPU, in the tool's order."""
    found = []
    for row in ask("--query-gpu=uuid,name,memory.total"):
        good = (
            len(row) == 3
            and row[0].startswith(("GPU-", "MIG-"))
            and _UUID.issuperset(row[0])
            and row[2].isdigit()
        )
        if not good:
            raise Fault(
                "PREFLIGHT", "nvidia-smi prints what we cannot read: %.80r" % ",".join(row), "mend the driver"
            )
        found.append({"uuid": row[0], "name": row[1], "memory_bytes": int(row[2]) * 1024 * 1024})
    return found


def _is(name: str, sku: str) -> bool:
    """Whether the tool's name (`NVIDIA H200`, `NVIDIA A100-SXM4-80GB`) is of this SKU."""
    import re

    words = [word for word in re.split(r"[^A-Za-z0-9]+", name.upper()) if word]
    return all(part in words for part in re.split(r"[^A-Za-z0-9]+", sku.upper()) if part)


def choices(asked: Json) -> List[str]:
    """Lease names of the devices that would do. Raises `Fault` PREFLIGHT if there are too few."""
    count, sku = int(asked.get("count") or 0), str(asked.get("sku") or "")
    found = listing()
    wanted = asked.get("uuids")
    if wanted:
        here = {gpu["uuid"] for gpu in found}
        for uuid in wanted:
            if uuid not in here:
                raise Fault("PREFLIGHT", "there is no device %s here" % uuid, "run nvidia-smi -L")
        good = list(wanted)
    else:
        skus = [sku, *(asked.get("substitutes") or [])] if sku else []
        good = []
        for one in skus or [""]:
            good = [gpu["uuid"] for gpu in found if not one or _is(gpu["name"], one)]
            if len(good) >= max(1, count):
                break
    if len(good) < count:
        names = ", ".join(sorted({gpu["name"] for gpu in found})) or "none"
        raise Fault(
            "PREFLIGHT",
            "asked for %d x %s, here are %d (%s)" % (count, sku or "any GPU", len(good), names),
            "ask for what is here, or name a substitute",
        )
    return [PREFIX + uuid.replace("/", "_") for uuid in good]


def uuid_of(name: str) -> str:
    return name[len(PREFIX) :]


def foreign(uuids: List[str]) -> List[int]:
    """Processes that compute on these devices: we hold their leases, so they are none of ours."""
    if not uuids:
        return []
    found = []
    for row in ask("--query-compute-apps=gpu_uuid,pid"):
        if len(row) == 2 and row[0] in uuids and row[1].isdigit():
            found.append(int(row[1]))
    return found
