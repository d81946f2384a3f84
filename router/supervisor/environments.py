"""Builds an environment of packages on this machine: beside, under a lock, renamed once it is whole."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time

from . import arriving, files, machine, names, using, wire
from .wire import Fault, Gone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any, Dict, List, Optional, Sequence

    from .arriving import Arriving
    from .wire import Wire

    Json = Dict[str, Any]

STALE = 24 * 3600.0
DEADLINE = 1800.0
_CREDENTIALS = re.compile(r"://[^/@\s]+@")


def answer(root: str, bring: Arriving, stream: Wire, head: Json, body: bytes) -> Json:
    """Without `lock_sha256` what this machine is; with it the environment of that lock, built if a payload
    says how and it is not there."""
    if head.get("lock_sha256") is None:
        return facts(head)
    digest = names.digest(head["lock_sha256"])
    found = whole(root, digest)
    if found is not None and not using.environment(_folder(root, digest)):
        found = None  # it was tidied away just now
    if found is not None or not body:
        tool = head.get("uv")
        there = tool is not None and os.path.exists(_tool(root, names.digest(tool)))
        return {"python": found, "built": False, "uv": there}
    return build(root, bring, stream, digest, head, body)


def facts(head: Json) -> Json:
    """What an environment has to fit: the processor, the C library, the Pythons that are here."""
    system = os.uname()
    library = ""
    try:
        library = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):
        pass  # not GNU's
    own = os.path.abspath(sys.executable or shutil.which("python3") or "python3")
    pythons = [[own, "%d.%d.%d" % sys.version_info[:3]]]
    if head.get("all") is True:
        pythons += [[path, version] for path, version in _others() if path != own]
    return {
        "system": system.sysname,
        "arch": system.machine,
        "libc": library,
        "pythons": pythons,
        "uv": shutil.which("uv", path=_path()),
    }


def _path() -> str:
    home = os.path.expanduser("~")
    more = [os.path.join(home, ".local", "bin"), os.path.join(home, ".cargo", "bin")]
    return os.pathsep.join([os.environ.get("PATH") or os.defpath, *more])


def _others() -> List[Any]:
    found: Dict[str, str] = {}
    for folder in [*_path().split(os.pathsep), "/usr/local/bin", "/usr/bin", "/opt/python/bin"]:
        try:
            listed = sorted(name for name in os.listdir(folder or ".") if re.match(r"python3\.\d+$", name))
        except OSError:
            continue
        for name in listed:
            path = os.path.join(folder, name)
            if path not in found and os.access(path, os.X_OK) and len(found) < 32:
                found[path] = machine.said(
                    [path, "-I", "-S", "-c", "import platform as p;print(p.python_version())"]
                )
    return [(path, version) for path, version in found.items() if version]


def _folder(root: str, digest: str) -> str:
    return os.path.join(root, "envs", digest)


def whole(root: str, digest: str) -> Optional[str]:
    """The interpreter of the environment of a lock; None if it is not built."""
    python = os.path.join(_folder(root, digest), "bin", "python")
    return python if os.path.exists(python) else None


def build(root: str, bring: Arriving, stream: Wire, digest: str, head: Json, body: bytes) -> Json:
    """Build it with uv. One at a time for a lock: who comes second waits, and finds it built."""
    began = machine.mono_us()
    try:
        asked = wire.loads(body)
        text, python = names.text(asked["lock"], "the lock"), names.text(asked["python"], "python")
        environ = {str(k): names.text(v, "a variable") for k, v in dict(asked.get("environ") or {}).items()}
        wheels = {names.parts(n)[-1]: names.digest(d) for n, d in dict(asked.get("wheels") or {}).items()}
    except (ValueError, KeyError, TypeError, Fault) as e:
        raise Fault("BAD_REQUEST", "how to build it cannot be read: %.80s" % e, "see docs/protocol.md")
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise Fault("BAD_REQUEST", "the lock is not the one that was named", "see docs/protocol.md")
    bring.settle()
    envs = os.path.join(root, "envs")
    os.makedirs(envs, 0o700, exist_ok=True)
    fd, cache, lock = -1, using.lock_of(root, "uv"), os.path.join(root, "stage", "env.%s.lock" % digest)
    while fd < 0:
        fd = files.lock(lock, patience=1.0)
        if fd < 0 and not stream.listening():
            raise Gone("while it waited")
        if fd >= 0 and not files.still(lock, fd):
            os.close(fd)
            fd = -1
    try:
        while not using.use(cache, patience=1.0):
            if not stream.listening():
                raise Gone("while it waited")
            using.made(cache)
        found = whole(root, digest)
        if found is not None and using.environment(_folder(root, digest)):
            return {"python": found, "built": False, "build_us": machine.mono_us() - began}
        _sweep(envs)
        beside = os.path.join(envs, ".%s.%s" % (digest[:16], bring.nonce))
        try:
            uv = _uv(root, bring, head.get("uv"))
            folder = _wheels(bring, beside + ".wheels", wheels)
            held = (fd, using.descriptor(cache))
            _make(stream, uv, python, text, beside, _environ(root, environ, folder), held)
            final = _folder(root, digest)
            if os.path.lexists(final):  # its interpreter is gone: it cannot be used, nor can it be mended
                os.rename(final, "%s.%s.gone" % (beside, machine.mono_us()))
            os.rename(beside, final)
            files.sync_folder(envs)
            using.environment(final)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
            shutil.rmtree(beside + ".wheels", ignore_errors=True)
        return {"python": whole(root, digest), "built": True, "build_us": machine.mono_us() - began}
    finally:
        using.leave(cache)
        os.close(fd)


def _sweep(envs: str) -> None:
    """Remove what builders left who were killed. Nobody uses it: it has no name that is looked for."""
    for name in os.listdir(envs):
        path = os.path.join(envs, name)
        if name.startswith(".") and (name.endswith(".gone") or time.time() - os.lstat(path).st_mtime > STALE):
            shutil.rmtree(path, ignore_errors=True)


def _tool(root: str, digest: str) -> str:
    return os.path.join(root, "bin", "uv-" + digest, "uv")


def _uv(root: str, bring: Arriving, sent: Any) -> str:
    """The uv that was sent, by its digest; else the one that is here."""
    if sent is None:
        found = shutil.which("uv", path=_path())
        if found is None:
            raise Fault("PREFLIGHT", "there is no uv here", 'set python = "/path", or install uv there')
        return found
    path = _tool(root, names.digest(sent))
    if not using.use(path):
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        part = "%s.%s" % (path, bring.nonce)
        _copy(bring, sent, part, 0o700)
        os.rename(part, path)
        using.use(path)
    return path


def _copy(bring: Arriving, digest: str, path: str, mode: int) -> None:
    sink = os.open(path, files.NEW, mode)
    try:
        data = bring.read(digest)
        if data is not None:
            files.write_all(sink, data)
        else:
            try:
                source = os.open(arriving.blob_path(bring.root, digest), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise Fault("BLOBS_MISSING", "what the environment needs is not here", "send it")
            try:
                files.copy(source, sink)
            finally:
                os.close(source)
        os.fsync(sink)
    finally:
        os.close(sink)


def _wheels(bring: Arriving, folder: str, wheels: Dict[str, str]) -> Optional[str]:
    if not wheels:
        return None
    os.mkdir(folder, 0o700)
    for name, digest in wheels.items():
        _copy(bring, digest, os.path.join(folder, name), 0o600)
    return folder


def _environ(root: str, given: Dict[str, str], wheels: Optional[str]) -> Dict[str, str]:
    """The environment for uv: the client's settings as far as they mean something here."""
    environ = {n: v for n, v in os.environ.items() if n not in ("VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH")}
    environ.update(given)
    for name in ("UV_INDEX", "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL", "UV_INDEX_URL"):
        _keep(environ, name, " ", lambda at: not at.partition("=")[2].startswith("file:") and _there(at))
    _keep(environ, "UV_FIND_LINKS", ",", _there)
    _keep(environ, "SSL_CERT_FILE", "\0", os.path.exists)
    if wheels is not None:
        environ["UV_FIND_LINKS"] = ",".join(filter(None, (wheels, environ.get("UV_FIND_LINKS"))))
    environ.setdefault("UV_CACHE_DIR", os.path.join(root, "cache", "uv"))
    environ.update(UV_NO_PROGRESS="1", NO_COLOR="1", UV_NO_CONFIG="1")
    return environ


def _keep(environ: Dict[str, str], name: str, separator: str, good: Any) -> None:
    kept = [one for one in environ.get(name, "").split(separator) if one and good(one)]
    if kept:
        environ[name] = separator.join(kept)
    else:
        environ.pop(name, None)


def _there(address: str) -> bool:
    """Whether an address can mean something here: a folder of the client's may not exist."""
    path = address[7:] if address.startswith("file://") else address
    return not path.startswith("/") or os.path.isdir(path)


def _make(
    stream: Wire, uv: str, python: str, lock: str, beside: str, environ: Dict[str, str], held: Sequence[int]
) -> None:
    what = "the environment cannot be made"
    _run(stream, [uv, "venv", "--relocatable", "--python", python, beside], environ, what, "", held)
    if lock.partition("\n")[2].strip():
        what, inside = "the dependencies cannot be installed there", os.path.join(beside, "bin", "python")
        words = [uv, "pip", "install", "--python", inside, "-r", "-"]
        _run(stream, words, environ, what, lock, held)
    files.write(os.path.join(beside, "route-lock.txt"), lock.encode(), folder=False)
    # Its files have names that are looked for from here on, so their bytes have to be there first.
    _sync(beside)


def _sync(folder: str) -> None:
    try:
        import ctypes

        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if ctypes.CDLL(None).syncfs(fd) == 0:
                return
        finally:
            os.close(fd)
    except (ImportError, AttributeError, OSError):
        pass
    os.sync()


def _run(
    stream: Wire, words: List[str], environ: Dict[str, str], what: str, text: str, held: Sequence[int]
) -> None:
    """Run uv and tell the client each line it says. It ends with the client; and while it lives the locks
    are held, whatever becomes of us."""
    try:
        process = subprocess.Popen(
            words,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
            pass_fds=[fd for fd in held if fd >= 0],
        )
    except OSError as e:
        mend = 'set python = "/path/on/the/machine", or install a uv there that fits it'
        raise Fault("PREFLIGHT", "%s: uv does not run here: %s" % (what, e.strerror), mend)
    lines: List[str] = []
    try:
        assert process.stdin is not None
        assert process.stderr is not None
        try:
            process.stdin.write(text.encode())
            process.stdin.close()
        except OSError:
            pass  # it ended before it read all of it, and says why
        _listen(stream, process.stderr, lines)
        code = process.wait()
    finally:
        if process.poll() is None:
            # With it goes whatever it builds packages by.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code:
        raise Fault("PREFLIGHT", "%s: %s" % (what, _last(lines)), _mend(lines))


def _listen(stream: Wire, said: IO[bytes], lines: List[str]) -> None:
    import select

    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if not select.select([said], [], [], 1.0)[0]:
            if not stream.listening():
                raise Gone("while it was built")
            continue
        line = said.readline()
        if not line:
            return
        shown = _CREDENTIALS.sub("://***@", line.decode("utf-8", "replace")).strip()[:400]
        if shown:
            lines.append(shown)
            del lines[:-50]
            stream.send({"re": "environment", "beat": True, "said": shown})
    raise Fault("PREFLIGHT", "uv took more than %d s" % DEADLINE, "try again")


def _last(lines: List[str]) -> str:
    kept = [line.strip(" \t│├╰▶─▸×·") for line in lines if not line.startswith("hint:")]
    return " ".join(kept[-3:])[-400:] or "uv gave no reason"


def _mend(lines: List[str]) -> str:
    text = " ".join(lines).lower()
    if any(word in text for word in ("dns error", "failed to fetch", "connect", "timed out", "offline")):
        return (
            "give that machine a route to the index, or put the wheels into a folder here and name it in "
            "UV_FIND_LINKS: then they are sent"
        )
    return 'correct `dependencies`, or set python = "/path/on/the/machine"'
