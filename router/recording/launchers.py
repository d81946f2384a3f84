"""Which launcher started this command, by the variables it leaves: data, and how they are read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from compute_router.backend import Surface

__all__ = ["LAUNCHERS", "Found", "Launcher", "find"]

MOST_TEXT = 300


class Launcher(NamedTuple):
    """One launcher: the variables that prove it (all of them), and those that tell which start it was.

    `surface` is None where the launcher does not say what sort of place it has chosen.
    """

    name: str
    proof: tuple[str, ...]
    ids: tuple[str, ...]
    surface: Surface | None = None


_C = Surface.CLUSTER
# The first one proven is the one that started the command; those after it are around that one.
LAUNCHERS: tuple[Launcher, ...] = (
    Launcher("route", ("ROUTE_RUN_ID",), ("ROUTE_RUN_ID", "ROUTE_ATTEMPT")),
    Launcher(
        "skypilot",
        ("SKYPILOT_TASK_ID",),
        ("SKYPILOT_TASK_ID", "SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES", "SKYPILOT_NUM_GPUS_PER_NODE"),
    ),
    Launcher("torchx", ("TORCHX_JOB_ID",), ("TORCHX_JOB_ID", "TORCHX_TRACKERS"), _C),
    Launcher("ray", ("RAY_JOB_ID",), ("RAY_JOB_ID", "RAY_NODE_ID", "RAY_WORKER_ID"), _C),
    Launcher(
        "slurm",
        ("SLURM_JOB_ID",),
        (
            *("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"),
            *("SLURM_JOB_NUM_NODES", "SLURM_NTASKS", "SLURM_NODEID", "SLURM_PROCID", "SLURM_LOCALID"),
            *("SLURMD_NODENAME", "SLURM_JOB_PARTITION", "SLURM_RESTART_COUNT", "SLURM_JOB_END_TIME"),
        ),
        _C,
    ),
    Launcher(
        "lsf", ("LSB_JOBID",), ("LSB_JOBID", "LSB_JOBINDEX", "LSB_QUEUE", "LSB_DJOB_NUMPROC", "LS_SUBCWD"), _C
    ),
    Launcher(
        "pbs", ("PBS_JOBID",), ("PBS_JOBID", "PBS_ARRAY_INDEX", "PBS_QUEUE", "PBS_NODENUM", "PBS_TASKNUM"), _C
    ),
    Launcher("sge", ("SGE_O_HOST", "JOB_ID"), ("JOB_ID", "SGE_TASK_ID", "QUEUE", "NHOSTS", "NSLOTS"), _C),
    Launcher("flux", ("FLUX_JOB_ID",), ("FLUX_JOB_ID", "FLUX_TASK_RANK", "FLUX_JOB_NNODES"), _C),
    Launcher("htcondor", ("_CONDOR_SCRATCH_DIR",), ("_CONDOR_SLOT", "_CONDOR_NPROCS"), _C),
    Launcher(
        "kubernetes",
        ("KUBERNETES_SERVICE_HOST",),
        ("HOSTNAME", "JOB_COMPLETION_INDEX", "POD_NAME", "POD_NAMESPACE", "POD_UID", "NODE_NAME"),
        _C,
    ),
    Launcher("container", (), ()),
    Launcher("tmux", ("TMUX",), ("TMUX_PANE",), Surface.LOCAL),
    Launcher("screen", ("STY",), ("STY", "WINDOW"), Surface.LOCAL),
    # Where somebody came from is nobody's business, so no id is kept of an SSH login.
    Launcher("ssh", ("SSH_CONNECTION",), ()),
    Launcher("shell", ("TERM",), (), Surface.LOCAL),
)
RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "TORCHELASTIC_RUN_ID")
"""Which of several processes of one start this is, whoever started them."""
_NODES = ("SKYPILOT_NUM_NODES", "SLURM_JOB_NUM_NODES", "SLURM_NNODES", "FLUX_JOB_NNODES", "NHOSTS")
CONTAINER = ("/.dockerenv", "/run/.containerenv")


class Found(NamedTuple):
    """What the environment tells: the launcher's name, its ids, the surface, or why that is not known."""

    name: str
    ids: dict[str, str]
    surface: Surface | None
    why: str
    nodes: int
    ranks: int | None


def find(environ: Mapping[str, str], *, container: bool | None = None) -> Found:
    """Read the launcher from `environ`. Pure but for the marks of a container in the file system."""
    if container is None:
        container = any(os.path.exists(path) for path in CONTAINER)
    chain = [
        launcher
        for launcher in LAUNCHERS
        if (container if launcher.name == "container" else all(environ.get(name) for name in launcher.proof))
    ]
    first = chain[0] if chain else Launcher("unknown", (), ())
    names = [*first.ids, *RANKS]
    ids = {name: environ[name][:MOST_TEXT] for name in names if environ.get(name)}
    if around := [launcher.name for launcher in chain[1:] if launcher.name not in ("shell", "ssh")]:
        ids["around"] = ", ".join(around)
    surface, why = _surface(chain)
    nodes = next((_whole(environ.get(name)) for name in _NODES if _whole(environ.get(name))), None) or 1
    return Found(first.name, ids, surface, why, nodes, _ranks(environ, first.name))


def _surface(chain: list[Launcher]) -> tuple[Surface | None, str]:
    if chain and chain[0].name == "route":
        # A run around this one says itself where it is; only a cluster around both is beyond doubt.
        cluster = next((launcher for launcher in chain[1:] if launcher.surface is _C), None)
        return (_C, "") if cluster else (None, "the receipt of the run around it tells")
    # Somebody came here from another machine: this may be a workstation as well as a reserved host.
    remote = chain and chain[0].surface is Surface.LOCAL and any(one.name == "ssh" for one in chain)
    if chain and chain[0].surface is not None and not remote:
        return chain[0].surface, ""
    name = "ssh" if remote else chain[0].name if chain else "nothing"
    return None, f"{name} does not tell what sort of place this is; --surface does"


def _ranks(environ: Mapping[str, str], name: str) -> int | None:
    """How many processes this start has, where somebody above has started several."""
    told = _whole(environ.get("WORLD_SIZE"))
    if told is None and name == "slurm" and environ.get("SLURM_STEP_ID"):
        told = _whole(environ.get("SLURM_NTASKS") or environ.get("SLURM_STEP_NUM_TASKS"))
    return told


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and 0 < int(text) < 1 << 20 else None
