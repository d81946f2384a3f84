"""Answers one connection: reads requests from stdin, replies on stdout, ends when the input ends."""

from __future__ import annotations

import os
import sys
import threading

from . import machine, names, runs, using, wire
from .wire import Fault, Gone, Wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Optional

    from .stage import Stage

    Json = Dict[str, Any]

SCARCE = 20
"""With less than 1 / SCARCE of the disk free, outputs that others have collected give way to new work."""
SILENT = ("blob", "keep", "input", "window")
"""Requests without an answer, whatever becomes of them."""
FOLDERS = ("blobs", "stage", "volumes", "runs")


SLOW = ("prepare", "want", "blob", "commit", "manifest", "environment", "gc")
"""Operations that may take long, of which the client hears meanwhile that they are going on."""
BEAT = 5.0
"""Seconds between two beats."""


class Beats:
    """Tells the client every few seconds that a request is still worked on, so that a silent machine is a
    dead one however large the files are."""

    def __init__(self, stream: Wire) -> None:
        self.wire, self.op, self._over = stream, "", threading.Event()
        self._thread = threading.Thread(target=self._go, daemon=True)
        self._thread.start()

    def _go(self) -> None:
        try:
            while not self._over.wait(BEAT):
                if self.op:
                    self.wire.send({"re": self.op, "beat": True})
        except Gone:
            pass

    def end(self) -> None:
        self._over.set()
        self._thread.join()


class Server:
    """One connection. Holds nothing that its end would lose but half-sent blobs, which stay."""

    def __init__(self, root: str, nonce: str, stream: Wire) -> None:
        self.root, self.nonce, self.wire = root, nonce, stream
        self._stage: Optional[Stage] = None
        self._starts = 0
        self._beats: Optional[Beats] = None
        self._deaf = False
        self._brings = False

    @property
    def stage(self) -> Stage:
        if self._stage is None:
            from .stage import Stage

            self._stage = Stage(self.root, self.nonce)
        return self._stage

    def serve(self) -> None:
        while True:
            try:
                request = self.wire.request()
            except Fault as fault:
                # Where a frame ends cannot be told any more, so nothing after it can be read.
                self.wire.send({"re": None, "ok": False, "error": fault.told()})
                return
            if request is not None:
                self.answer(*request)

    def started(self) -> None:
        """With the second start of a connection: load what waiters load each for themselves."""
        self._starts += 1
        if self._starts == 2:
            from . import manifest, measured, notice, watcher

            notice.libc()
            del manifest, measured, watcher

    def answer(self, head: Json, body: bytes) -> None:
        op = head["op"]
        try:
            method = OPS.get(op)
            if method is None:
                raise Fault("BAD_REQUEST", "no operation is called %.40r" % op, "see docs/protocol.md")
            if op in SLOW and self._beats is None:
                self._beats = Beats(self.wire)
            elif op not in SLOW and self._beats is not None:
                # What follows may fork, which no other thread is to see.
                self._beats.end()
                self._beats = None
            if self._beats is not None:
                self._beats.op = op
            try:
                reply = method(self, head, body)
            finally:
                if self._beats is not None:
                    self._beats.op = ""
        except Fault as fault:
            error = fault.told()
        except Gone:
            raise
        except OSError as e:
            from .forking import refusal

            error = refusal(e).told()
        except Exception as e:
            where = e.__traceback__
            while where is not None and where.tb_next is not None:
                where = where.tb_next
            line = (
                "%s:%d" % (os.path.basename(where.tb_frame.f_code.co_filename), where.tb_lineno)
                if where
                else ""
            )
            what = "%s at %s: %.200s" % (type(e).__name__, line, e)
            error = Fault(
                "INTERNAL", what, "a fault of the supervisor, or a request it does not foresee"
            ).told()
        else:
            if reply is not None:
                data = reply.pop("", b"")
                self.wire.send({"re": op, "ok": True, "now_us": machine.now_us(), **reply}, data)
            if op == "start":
                self.started()
            return
        if op not in SILENT:
            self.wire.send({"re": op, "ok": False, "error": error})

    # Each operation returns the facts of its reply (a payload under the empty name), or None for none.

    def prepare(self, head: Json, body: bytes) -> Json:
        disk = os.statvfs(self.root)
        if disk.f_bavail * SCARCE < disk.f_blocks:
            from . import retaining

            # What somebody has collected already makes room for what is new.
            retaining.sweep(self.root, scarce=True)
        self._bring(True)
        return self.stage.prepare(head)

    def want(self, head: Json, body: bytes) -> Json:
        self._bring(True)
        return {"want": self.stage.arriving.want(head)}

    def _bring(self, brings: bool) -> None:
        """See that no blob is tidied away from here on until what needs it is committed, or built."""
        if brings != self._brings:
            lock = using.lock_of(self.root, "bring")
            if not brings:
                using.leave(lock)
            elif not using.use(lock):
                raise Fault("BLOBS_MISSING", "somebody is tidying up here", "try again")
            self._brings = brings

    def environment(self, head: Json, body: bytes) -> Json:
        from . import environments

        found = environments.answer(self.root, self.stage.arriving, self.wire, head, body)
        self._bring(False)
        return found

    def blob(self, head: Json, body: bytes) -> None:
        if not self._brings:
            self._bring(True)
        self.stage.arriving.blob(head, body)
        if head.get("ack") is True and not self._deaf:
            try:
                self.wire.send({"re": "blob", "ok": True, "ack": True})
            except Gone:
                # What was sent before it broke is still to be read: it need not be sent again.
                self._deaf = True

    def commit(self, head: Json, body: bytes) -> Json:
        found = self.stage.commit(head, body)
        self._bring(False)
        return found

    def keep(self, head: Json, body: bytes) -> None:
        from . import keeping

        keeping.keep(self.root, head, body)

    def kept(self, head: Json, body: bytes) -> Json:
        from . import keeping

        return keeping.kept(self.root, head)

    def start(self, head: Json, body: bytes) -> Json:
        from . import starting

        return {"status": starting.start(runs.run(self.root, head), head, body)}

    def go(self, head: Json, body: bytes) -> Json:
        from . import holding

        return holding.answer_go(runs.run(self.root, head).need(), head, body)

    def extend(self, head: Json, body: bytes) -> Json:
        from . import holding

        return holding.answer_extend(runs.run(self.root, head).need(), head, body)

    def release(self, head: Json, body: bytes) -> Json:
        from . import holding

        return holding.answer_release(runs.run(self.root, head).need(), head)

    def status(self, head: Json, body: bytes) -> Json:
        from . import follow

        asked = head.get("run_ids")
        if not isinstance(asked, list):
            raise Fault("BAD_REQUEST", "`run_ids` is a list", "see docs/protocol.md")
        return {"statuses": {names.run_id(r): follow.look(runs.Run(self.root, r)) for r in asked[:10_000]}}

    def follow(self, head: Json, body: bytes) -> None:
        from . import follow

        run = runs.run(self.root, head).need()
        follow.Follower(run, self.wire, names.whole(head.get("offset", 0), "offset")).go()

    def stop(self, head: Json, body: bytes) -> None:
        """Ends a `follow` that is under way, by being a line; does nothing else and has no reply."""

    def shell(self, head: Json, body: bytes) -> None:
        from . import shelling

        shelling.shell(runs.run(self.root, head).need(), self.wire, head)

    def input(self, head: Json, body: bytes) -> None:
        """Bytes for a `shell`, which reads them itself; what still comes after its end is nobody's."""

    def window(self, head: Json, body: bytes) -> None:
        """The size of the terminal of a `shell`, as `input`."""

    def log(self, head: Json, body: bytes) -> Json:
        from . import follow

        run = runs.run(self.root, head).need()
        limit = names.whole(head.get("limit", wire.MOST_PAYLOAD), "limit", 0)
        offset = names.whole(head.get("offset", 0), "offset")
        where, data, end = follow.read_log(run.newest(), offset, min(limit, wire.MOST_PAYLOAD))
        return {"offset": where, "end": end, "": data}

    def cancel(self, head: Json, body: bytes) -> Json:
        from . import starting

        return {"status": starting.cancel(runs.run(self.root, head).need())}

    def manifest(self, head: Json, body: bytes) -> Json:
        from . import collecting

        return collecting.manifest(runs.run(self.root, head).need(), self.wire, head, body)

    def fetch(self, head: Json, body: bytes) -> None:
        from . import collecting

        collecting.fetch(runs.run(self.root, head).need(), self.wire, head)

    def collected(self, head: Json, body: bytes) -> Json:
        from . import collecting

        return collecting.collected(runs.run(self.root, head).need(), head)

    def cleanup(self, head: Json, body: bytes) -> Json:
        from . import collecting

        return collecting.cleanup(runs.run(self.root, head).need(), self.wire, head)

    def probe(self, head: Json, body: bytes) -> Json:
        from . import probing

        return probing.probe(self.root, head)

    def checkup(self, head: Json, body: bytes) -> Json:
        from . import checkup

        return checkup.checkup(self.root, head)

    def list(self, head: Json, body: bytes) -> Json:
        from . import collecting

        return collecting.everything(self.root, head)

    def gc(self, head: Json, body: bytes) -> Json:
        from . import tidying

        return tidying.gc(self.root, head)


_NAMES = """prepare want blob environment commit keep kept start extend go release status follow stop log
manifest fetch collected cancel cleanup probe checkup list gc shell
input window"""
OPS: Dict[str, Callable[[Server, Json, bytes], Optional[Json]]] = {
    name: getattr(Server, name) for name in _NAMES.split()
}


def ready(root: str) -> Json:
    """See that the root can be used, and make its folders. Raises `Fault` and `OSError`."""
    os.makedirs(root, 0o700, exist_ok=True)
    mount = machine.mount_of(root)
    if mount is not None and machine.is_network(mount.fs):
        raise Fault(
            "NETWORK_ROOT",
            "root %s lies on a network file system (%s), where locks and renames cannot be trusted"
            % (root, mount.fs),
            "set the root to a folder on a disk of the machine itself, such as /var/tmp/route",
        )
    for name in FOLDERS:
        os.makedirs(os.path.join(root, name), 0o700, exist_ok=True)
    if not os.access(root, os.W_OK | os.X_OK):
        raise Fault(
            "BAD_ROOT", "root %s cannot be written" % root, "give another root, or the right to write there"
        )
    return {
        "ok": True,
        "python": "%d.%d.%d" % sys.version_info[:3],
        "boot_id": machine.boot_id(),
        "machine_id": machine.machine_id(),
        "now_us": machine.now_us(),
        "mono_us": machine.mono_us(),
    }


def main(hello: Json, rest: bytes = b"") -> None:
    """Serve the connection on stdin and stdout that `hello` opened; `rest` was read behind it."""
    stream = Wire(0, 1, rest)
    nonce, root = str(hello["nonce"]), os.path.normpath(str(hello["root"]))
    try:
        greeting = ready(root)
    except Fault as fault:
        greeting = {"ok": False, "error": fault.told()}
    except (OSError, ValueError) as e:
        from .forking import refusal

        told = (refusal(e) if isinstance(e, OSError) else Fault("BAD_ROOT", str(e))).told()
        greeting = {"ok": False, "error": dict(told, code=told["code"].replace("PREFLIGHT", "BAD_ROOT"))}
    if not using.use(using.own(), lasting=True):
        return  # it was tidied away just now, and nothing more of it could be loaded
    server = Server(root, nonce, stream)
    try:
        stream.put(b"\n" + nonce.encode() + b" " + wire.dumps(greeting) + b"\n")
        if greeting["ok"]:
            server.serve()
    except (Gone, KeyboardInterrupt):
        torn = stream.torn
        if torn is not None and torn["op"] == "blob":
            server.stage.arriving.torn(torn, stream.rest())
    if server._stage is not None:
        server._stage.close()
