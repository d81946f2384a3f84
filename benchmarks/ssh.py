"""Measures machines reached by SSH beside ssh, rsync, scp and tar: over loopback, and with 20 ms added.

python benchmarks/ssh.py [--runs 7] [--files 2000] [--bytes 10000] [--delays 0,20] [--only sync,...] [--rc]
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from measuring import ROUTE, Measured, machine, process, table
from server import (
    BIG,
    MACHINES,
    Bench,
    Counted,
    Once,
    arrive,
    behind,
    close,
    offered,
    submission,
    until_over,
    workload,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from ssh_machines import write_machines
from sshd import Sshd

from compute_router.backend import Offer
from compute_router.hashes import SETTLED
from compute_router.machines.contract import Interpreter
from compute_router.machines.reaching import reach
from compute_router.machines.session import Session, Sessions
from compute_router.machines.shipping import finish, ship
from compute_router.machines.specification import specification
from compute_router.snapshot import Snapshot, take
from compute_router.workload import Workload


def start(bench: Bench) -> None:
    """A command on a new connection, and a detached submit on one."""
    tree = bench.folder / "small"
    tree.mkdir()
    (tree / "work.py").write_text("print('hello')\n")
    work, snapshot = workload(tree), take(tree)
    offer = offered(bench, work)

    def execute() -> None:
        with bench.machine() as there:
            stream = there.open(("echo", "here"), deadline=20)
            while stream.read(1 << 16):
                pass

    def submit() -> float:
        backend = bench.backend()
        made = submission(offer, work, snapshot)
        begin = time.perf_counter()
        handle = backend.submit(made)
        spent = (time.perf_counter() - begin) * 1e3
        until_over(backend, handle)
        close(backend)
        return spent

    config = bench.folder / "config.toml"
    write_machines(config, {"h1": bench.entry()})
    environ = {"ROUTE_CONFIG": str(config), "ROUTE_HOME": str(bench.home)}
    # The pins stand beside the configuration in use.
    shutil.copy(Path(os.environ["ROUTE_CONFIG"]).with_name("known_hosts"), config.with_name("known_hosts"))
    whole = process([*ROUTE, "run", "--backend", "ssh", "--detach", "work.py"], cwd=tree, env=environ)
    floor = "ssh host true"
    bench.table(
        "Start",
        {
            floor: bench.run(bench.ssh("true")),
            "route: connect and exec": execute,
            "route: submit, new connection": submit,
            "route run --detach, whole process": whole,
        },
        floor,
        {"route: connect and exec": (floor, 1.0), "route: submit, new connection": (floor, 2.0)},
    )
    print(f"  round trips of a submit after authentication: {turns(bench, work, snapshot, offer)}")


def turns(bench: Bench, work: Workload, snapshot: Snapshot, offer: Offer) -> int:
    """How many round trips one submit on a new connection takes once it is logged in."""
    backend, counts = bench.backend(), [0]
    there = backend.machine("h1")
    opened = there.open
    there.open = lambda argv, *, deadline: Counted(opened(argv, deadline=deadline), counts)  # type: ignore[method-assign,assignment]
    handle = backend.submit(submission(offer, work, snapshot))
    found = counts[0]
    until_over(backend, handle)
    close(backend)
    return found


def sync(bench: Bench, files: int, size: int) -> None:
    """A tree of many small files: all new, one changed, none changed. New connections throughout."""
    tree, root = bench.folder / "tree", bench.folder / "there"
    for n in range(files):
        path = tree / f"package{n % 40}" / f"module{n}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size // 2).hex().encode())
    (tree / "work.py").write_text("print('hello')\n")
    time.sleep(SETTLED / 1e9 + 0.1)
    work = workload(tree)
    offer = offered(bench, work)
    changing = tree / "package0" / "module0.py"

    def gone(path: Path) -> None:
        """Move a folder out of the way. Nothing is removed before the end: for seconds after a removal ext4
        makes new files many times slower, whoever makes them, and that is nobody's doing who is measured."""
        if path.exists():
            path.rename(bench.folder / f"gone-{time.monotonic_ns()}")

    def rested() -> None:
        """Wait until the machine has made a spare of what was committed last: a second or so after it."""
        end = time.monotonic() + 30
        while time.monotonic() < end and not [*root.glob("spares/*")]:
            time.sleep(0.05)

    def ours(*, at_once: bool = False) -> float:
        if at_once:
            gone(root / "spares")
        else:
            rested()
        begin = time.perf_counter()
        with bench.machine() as there:
            sessions = Sessions(there)
            sessions.dial()  # as `route run` does: it looks at the files while the connection is made
            snapshot = take(tree, home=bench.home)
            made = submission(offer, work, snapshot)
            spec = specification(made, Interpreter(python="python3"), ())
            with sessions.use() as session:
                finish(session, ship(session, made, spec))
                spent = (time.perf_counter() - begin) * 1e3
            sessions.close()
        return spent

    def changed(once: Once) -> float | None:
        changing.write_bytes(os.urandom(size // 2).hex().encode())
        return once()

    copy, there = bench.folder / "copy", f"{bench.login}:{bench.folder / 'copy'}"
    theirs = bench.rsync(f"{tree}/", there)

    def timed() -> float:
        begin = time.perf_counter()
        subprocess.run(theirs, check=True, capture_output=True)
        return (time.perf_counter() - begin) * 1e3

    def tar(then: str = "") -> float:
        target = bench.folder / "untarred"
        gone(target)
        target.mkdir()
        begin = time.perf_counter()
        packing = subprocess.Popen(["tar", "-C", str(tree), "-cf", "-", "."], stdout=subprocess.PIPE)
        subprocess.run(bench.ssh(f"tar -C {target} -xf -{then}"), stdin=packing.stdout, check=True)
        packing.wait()
        return (time.perf_counter() - begin) * 1e3

    def cold_theirs() -> float:
        gone(copy)
        return timed()

    def cold_ours() -> float:
        rested()
        for name in ("blobs", "packs", "stage", "spares"):
            gone(root / name)
        return ours(at_once=True)

    things: dict[str, Once] = {
        "tar, all": tar,
        "tar, all, synced": lambda: tar(f" && sync -f {bench.folder}"),
        "rsync, all": cold_theirs,
        "route, all": cold_ours,
        "rsync, one changed": lambda: changed(timed),
        "rsync, nothing changed": timed,
        "route, one changed": lambda: changed(ours),
        "route, nothing changed": ours,
        "route, nothing changed, no spare": lambda: ours(at_once=True),
    }
    goals = {
        "route, all": ("rsync, all", 1.2),
        "route, one changed": ("rsync, one changed", 1.0),
        "route, nothing changed": ("rsync, nothing changed", 0.5),
    }
    bench.table(f"Sync of {files:,} files, {files * size / 1e6:.0f} MB", things, "rsync, all", goals)


def big(bench: Bench) -> None:
    """One file of 50 MB, up and down, on new connections."""
    path, back = bench.folder / "big", bench.folder / "back"
    path.write_bytes(os.urandom(BIG))
    target = bench.folder / "arrived"
    remote = f"{bench.login}:{target}"

    def gone(words: list[str]) -> Once:
        def once() -> float:
            for left in (target, back):
                left.unlink(missing_ok=True)
            begin = time.perf_counter()
            subprocess.run(words, check=True, capture_output=True)
            return (time.perf_counter() - begin) * 1e3

        return once

    def piped() -> float:
        target.unlink(missing_ok=True)
        begin = time.perf_counter()
        with open(path, "rb") as source:
            subprocess.run(bench.ssh(f"cat > {target}"), stdin=source, check=True)
        return (time.perf_counter() - begin) * 1e3

    # Its old way, which needs nothing of the server but scp itself.
    scp = ["scp", "-O", *bench.options]
    up: dict[str, Once] = {
        "ssh cat > file": piped,
        "scp": gone([*scp, str(path), remote]),
        "rsync": gone(bench.rsync(str(path), remote)),
        "route (verified, synced)": lambda: arrive(bench, path),
    }
    bench.table("50 MB up", up, "ssh cat > file", {"route (verified, synced)": ("rsync", 1.2)})
    tree = bench.folder / "maker"
    tree.mkdir()
    (tree / "work.py").write_text(
        f"import os\nopen(os.environ['ROUTE_OUTPUTS'] + '/big', 'wb').write(os.urandom({BIG}))\n"
    )
    work = workload(tree)
    backend = bench.backend()
    handle = backend.submit(submission(offered(bench, work), work, take(tree)))
    until_over(backend, handle)
    close(backend)

    def fetch() -> float:
        into = bench.folder / "into"
        shutil.rmtree(into, ignore_errors=True)
        fresh = bench.backend()
        begin = time.perf_counter()
        fresh.fetch(handle, into)
        spent = (time.perf_counter() - begin) * 1e3
        assert (into / "outputs" / "big").stat().st_size == BIG
        close(fresh)
        return spent

    shutil.copy(path, target)
    source = bench.folder / "source"
    shutil.copy(path, source)
    there = f"{bench.login}:{source}"
    down: dict[str, Once] = {
        "scp": gone([*scp, there, str(back)]),
        "rsync": gone(bench.rsync(there, str(back))),
        "route (verified, synced)": fetch,
    }
    bench.table("50 MB down", down, "scp", {"route (verified, synced)": ("rsync", 1.2)})


def follow(bench: Bench) -> None:
    """How long after it was written a remote line is seen."""
    lines = 60
    path = bench.folder / "followed"
    path.write_text("")
    program = (
        "import sys, time\n"
        f"for n in range({lines}):\n    time.sleep(0.05)\n"
        "    print(time.monotonic_ns(), flush=True)\n"
    )
    peer = subprocess.Popen(bench.ssh(f"exec tail -n 0 -F {path}"), stdout=subprocess.PIPE, text=True)
    time.sleep(2)
    with open(path, "a") as written:
        writer = subprocess.Popen([sys.executable, "-c", program], stdout=written)
    theirs = []
    assert peer.stdout is not None
    for _ in range(lines):
        theirs.append((int(peer.stdout.readline()), time.monotonic_ns()))
    writer.wait()
    peer.terminate()
    peer.wait()
    tree = bench.folder / "talker"
    tree.mkdir()
    (tree / "work.py").write_text("import time\ntime.sleep(1)\n" + program)
    work = workload(tree)
    backend = bench.backend()
    handle = backend.submit(submission(offered(bench, work), work, take(tree)))
    ours, rest = [], b""
    for item in backend.attached(handle):
        now = time.monotonic_ns()
        if isinstance(item, bytes):
            *whole, rest = (rest + item).split(b"\n")
            ours += [(int(line), now) for line in whole]
    close(backend)
    measured = {
        "ssh tail -F": Measured("ssh tail -F", tuple((seen - at) / 1e6 for at, seen in theirs[5:])),
        "route logs --follow": Measured("route", tuple((seen - at) / 1e6 for at, seen in ours[5:])),
    }
    table(
        f"A remote line, written to seen ({bench.about}, {len(ours)} lines)",
        measured,
        floor="ssh tail -F",
        goals={"route logs --follow": ("ssh tail -F", 3.0)},
    )


def fan(bench: Bench) -> None:
    """The same question to one machine and to eight: on new connections, and on open ones."""
    names = [f"m{n}" for n in range(MACHINES)]
    for name in names:
        with bench.machine(name, f"root-{name}") as there:
            Session(there).close()
    pool = ThreadPoolExecutor(MACHINES)

    def fresh(name: str) -> None:
        with bench.machine(name, f"root-{name}") as there:
            session = Session(there)
            session.ask("status", run_ids=[])
            session.close()

    def ask(session: Session) -> None:
        session.ask("status", run_ids=[])

    open_ones = [reach(name, bench.entry(name, f"root-{name}")) for name in names]
    sessions = [Session(there) for there in open_ones]
    true = bench.run(bench.ssh("true"))
    things: dict[str, Once] = {
        "ssh host true": true,
        "eight of ssh host true": lambda: _none(list(pool.map(lambda _: true(), names))),
        "one, new connection": lambda: fresh(names[0]),
        "eight, new connections": lambda: _none(list(pool.map(fresh, names))),
        "one, open": lambda: ask(sessions[0]),
        "eight, open": lambda: _none(list(pool.map(ask, sessions))),
    }
    goals = {
        "eight, new connections": ("one, new connection", 1.5),
        "eight, open": ("one, open", 1.5),
    }
    bench.table("A question to one machine and to eight", things, "one, new connection", goals)
    for session, there in zip(sessions, open_ones, strict=True):
        session.close()
        there.close()
    pool.shutdown()


def _none(_: object) -> None:
    """Forget a result: the benchmark takes a returned number for a duration."""


PARTS = ("start", "sync", "big", "follow", "fan")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--bytes", type=int, default=10_000, help="in each file")
    parser.add_argument("--delays", default="0,20", help="added to a round trip, in ms")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--rc", action="store_true", help="with what the login's .bashrc does, for all alike")
    given = parser.parse_args()
    print(machine())
    for delay in map(int, given.delays.split(",")):
        folder = Path(tempfile.mkdtemp(prefix="route-bench-"))
        os.environ["ROUTE_CONFIG"] = str(folder / "config" / "config.toml")
        (folder / "config").mkdir()
        # Below another shell bash reads no .bashrc, which may cost more than all that is measured.
        server = Sshd(folder / "sshd", extra="" if given.rc else "SetEnv SHLVL=1").start()
        try:
            with behind(server, delay) as port:
                about = f"{delay} ms added" if delay else "loopback"
                bench = Bench(folder, server, port, given.runs, about)
                parts: dict[str, Callable[[], None]] = {
                    "start": functools.partial(start, bench),
                    "sync": functools.partial(sync, bench, given.files, given.bytes),
                    "big": functools.partial(big, bench),
                    "follow": functools.partial(follow, bench),
                    "fan": functools.partial(fan, bench),
                }
                for name in given.only.split(","):
                    parts[name]()
        finally:
            server.kill()
            shutil.rmtree(folder, ignore_errors=True)
    print(f"\nload at the end {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
