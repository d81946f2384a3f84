"""The work's own process: what it sees, and the step from our child to its program."""

from __future__ import annotations

import errno
import os
import signal

from . import files, group, inplace, machine, wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Mapping, Optional, Tuple

    from .runs import Attempt

    Json = Dict[str, Any]

CACHES = (
    ("TORCHINDUCTOR_CACHE_DIR", "inductor"),
    ("TRITON_CACHE_DIR", "triton"),
    ("CUDA_CACHE_PATH", "cuda"),
    ("XLA_PERSISTENT_CACHE_PATH", "xla"),
    ("XLA_COMPILATION_CACHE_DIR", "xla_compilation"),
    ("JAX_COMPILATION_CACHE_DIR", "jax"),
    ("CCACHE_DIR", "ccache"),
    ("TORCH_EXTENSIONS_DIR", "torch_extensions"),
)
TRACES = "trace"
"""The folder of an attempt that torch writes its traces to."""
SWITCHES = (("TORCHINDUCTOR_FX_GRAPH_CACHE", "1"), ("TORCHINDUCTOR_AUTOGRAD_CACHE", "1"))
_OURS = "HOME RUN_ID ATTEMPT METRICS INSIDE OUTPUTS CHECKPOINTS NODE_RANK NODES SHELL"
OURS = tuple("ROUTE_" + name for name in _OURS.split())
RANKS = "ranks"
"""The folder of an attempt for what each rank leaves when it fails."""
FABRIC = ("NCCL_NET", "NCCL_NET_PLUGIN", "NCCL_IB_", "NCCL_TUNER_")
"""Variables (a trailing `_`: all that begin so) by which NCCL is tied to the network of many machines."""


def report_folder() -> str:
    """Where `route_report` stands, to be put on the work's path."""
    above = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return os.path.join(above, "report")


def volume(root: str, role: str, name: str) -> str:
    return os.path.join(root, "volumes", role, name)


def checkpoints(attempt: Attempt, spec: Json) -> str:
    """Shared by all attempts of a run, so that the next one can go on from them."""
    name = spec.get("volumes", {}).get("checkpoints")
    if name:
        return volume(attempt.run.root, "checkpoints", name)
    return os.path.join(attempt.run.path, "checkpoints")


def make_folders(attempt: Attempt, spec: Json) -> None:
    """Make the folders that the work is told of, but for its volumes."""
    # torch's flight recorder makes no folder for what it writes.
    ranks = [attempt.at(RANKS)] if coupled(spec) else []
    for folder in (attempt.at("outputs"), checkpoints(attempt, spec), *ranks):
        os.makedirs(folder, 0o700, exist_ok=True)


def coupled(spec: Json) -> bool:
    """Whether several ranks are started here, or on several machines, that move together."""
    launcher = spec.get("launcher", {})
    several = launcher.get("name") == "torchrun" and launcher.get("ranks", 1) > 1
    return bool(several or group.of(spec)) and not inplace.of(spec)


def leaked(spec: Json, environ: Mapping[str, str]) -> List[str]:
    """What a machine sets for work over its fabric, which must not reach ranks of one machine: there it
    sends what should go by NVLink over a network card, or finds none and fails."""
    if not coupled(spec) or group.of(spec):
        return []
    return sorted(n for n in environ if any(n == f or (f[-1] == "_" and n.startswith(f)) for f in FABRIC))


def environment(
    attempt: Attempt, spec: Json, secrets: Dict[str, str], devices: List[str], go: Optional[Json] = None
) -> Dict[str, str]:
    """What the work sees: what the machine gives, under what the workload asks for, under what is ours.

    `go` is what the start was let go with, of a run on several machines.
    """
    place = inplace.of(spec)
    # A command in place keeps the store that its user named: what it records itself belongs there too.
    hidden = {*OURS, inplace.STDIN, inplace.OUTCOME, *leaked(spec, os.environ)} - (
        {"ROUTE_HOME"} if place else set()
    )
    env = {k: v for k, v in os.environ.items() if k not in hidden and not k.startswith("ROUTE_VOLUME_")}
    env.setdefault("PYTHONUNBUFFERED", "1")
    volumes = spec.get("volumes", {})
    if "compile-cache" in volumes:
        cache = volume(attempt.run.root, "compile-cache", volumes["compile-cache"])
        env.update((name, os.path.join(cache, leaf)) for name, leaf in CACHES)
        env.update(SWITCHES)
    if coupled(spec):
        _couple(attempt, spec, env)
    env.update(spec.get("env", {}))
    env.update(secrets)
    env.update(group.variables(spec, go or {}))
    env["PYTHONPATH"] = os.pathsep.join(p for p in (report_folder(), env.get("PYTHONPATH", "")) if p)
    env["ROUTE_RUN_ID"] = attempt.run.id
    env["ROUTE_ATTEMPT"] = str(attempt.number)
    env["ROUTE_METRICS"] = attempt.at("metrics.jsonl")
    if env.get("ROUTE_OBSERVE") != "0":
        env["ROUTE_INSIDE"] = attempt.at("inside.jsonl")
        if spec.get("observe", {}).get("torch_trace"):
            # What the workload itself has asked for is left to it.
            env.setdefault("TORCH_TRACE", attempt.at(TRACES))
    env["ROUTE_OUTPUTS"] = attempt.at("outputs")
    env["ROUTE_CHECKPOINTS"] = checkpoints(attempt, spec)
    for role, name in volumes.items():
        env["ROUTE_VOLUME_" + role.upper().replace("-", "_")] = volume(attempt.run.root, role, name)
    if spec.get("devices", {}).get("family") == "gpu" and not place:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    return env


def _couple(attempt: Attempt, spec: Json, env: Dict[str, str]) -> None:
    """What ranks that move together get unless the machine or the workload says otherwise: the interface
    that leads to the other machines, and the flight recorder, written where error files are."""
    interface = group.of(spec).get("interface")
    if interface:
        env.setdefault("NCCL_SOCKET_IFNAME", interface)
        env.setdefault("GLOO_SOCKET_IFNAME", interface)
    if spec.get("devices", {}).get("family") == "gpu":
        env.setdefault("TORCH_NCCL_TRACE_BUFFER_SIZE", "2000")
        env.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
        env.setdefault("TORCH_NCCL_DEBUG_INFO_TEMP_FILE", attempt.at(RANKS + "/nccl_trace_rank_"))


def command(attempt: Attempt, spec: Json, go: Optional[Json] = None) -> List[str]:
    """The argument list that is executed, with the launcher in front where one is asked for."""
    argv, python = list(spec["argv"]), spec.get("python") or "python3"
    if inplace.of(spec):
        return argv
    scripted = argv[0] == "{python}"
    launcher = spec.get("launcher", {})
    if launcher.get("name") != "torchrun":
        return [python, *argv[1:]] if scripted else argv
    front = [python if scripted else "python3", "-m", "torch.distributed.run"]
    front += group.rendezvous(spec, go or {})
    front += ["--nproc-per-node=%d" % launcher.get("ranks", 1), "--log-dir", attempt.at(RANKS)]
    return [*front, *argv[1:]] if scripted else [*front, "--no-python", *argv]


def found(program: str, path: str) -> str:
    """Where `program` is, as a shell would look. Raises `OSError` that says why it cannot be run."""
    if os.path.dirname(program):
        return program
    denied = False
    for folder in path.split(os.pathsep):
        place = os.path.join(folder or ".", program)
        if os.path.isfile(place):
            if os.access(place, os.X_OK):
                return place
            denied = True
    number = errno.EACCES if denied else errno.ENOENT
    raise OSError(number, os.strerror(number), program)


def become(
    attempt: Attempt,
    spec: Json,
    argv: List[str],
    env: Dict[str, str],
    log: int,
    told: int,
    tag: Json,
) -> None:
    """In the forked child: turn into the work. Never returns.

    `sup.lock` is inherited and closed by the kernel at the exec: as long as it is held here, nobody
    can take this attempt for one that was never executed. If the exec fails the child itself writes
    the exit record, for its waiter may be gone; the reason is also told through `told`.
    """
    try:
        os.setsid()
        given = inplace.stdin(spec)
        os.dup2(given if given >= 0 else os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for number in (
            signal.SIGPIPE,
            signal.SIGTERM,
            signal.SIGHUP,
            signal.SIGINT,
            signal.SIGUSR1,
            signal.SIGCHLD,
        ):
            signal.signal(number, signal.SIG_DFL)
        for name in ("SIGXFZ", "SIGXFSZ"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_DFL)
        me = machine.process(os.getpid())
        record = dict(
            tag,
            pid=os.getpid(),
            start=me.start if me else 0,
            at_us=machine.now_us(),
            mono_us=machine.mono_us(),
            boot_id=machine.boot_id(),
        )
        if not files.create_once(attempt.at("exec.json"), wire.dumps(record)):
            os._exit(126)
        try:
            place = inplace.of(spec)
            if place:
                os.chdir(place["cwd"])
            else:
                folder = os.path.join(attempt.run.work, spec.get("cwd") or ".")
                os.makedirs(folder, 0o700, exist_ok=True)  # nothing of it may have shipped
                os.chdir(folder)
                os.umask(0o022)
            _execute(found(argv[0], env.get("PATH") or os.defpath), argv, env, as_shell=bool(place))
        except (OSError, ValueError) as e:
            code, what = _why(e, argv[0], spec.get("cwd") or ".")
            attempt.finish("failed", "cannot_start", what, exit_code=code)
            os.write(told, what.encode("utf-8", "replace")[:2000])
    except BaseException as e:  # nothing of ours may go on in a forked child
        os.write(told, ("the child could not start: %s" % e).encode("utf-8", "replace")[:2000])
    os._exit(127)


def _execute(program: str, argv: List[str], env: Dict[str, str], as_shell: bool) -> None:
    """Become the program. With `as_shell` a script without a first line is given to sh, as shells do."""
    try:
        os.execve(program, argv, env)
    except OSError as e:
        if e.errno != errno.ENOEXEC or not as_shell:
            raise
        os.execve("/bin/sh", ["/bin/sh", program, *argv[1:]], env)


def _why(e: Exception, program: str, cwd: str) -> Tuple[int, str]:
    """The exit code a shell would give, and a sentence."""
    number = getattr(e, "errno", None)
    if number in (errno.EEXIST, errno.ENOTDIR):
        return 127, "cwd %s: no folder of the work" % cwd
    if number == errno.ENOENT and os.path.lexists(program):
        return 127, "%s: no such file as the interpreter in its first line, or its loader" % program
    if number == errno.ENOENT:
        return 127, "%s: not found" % program
    if number == errno.EACCES:
        return 126, "%s: permission denied" % program
    if number == errno.ENOEXEC:
        return 126, "%s: exec format error (no `#!` line, or made for another machine)" % program
    return 126, "%s: %s" % (program, getattr(e, "strerror", None) or e)
