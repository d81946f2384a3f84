"""What the work sees: arguments, environment, files, volumes; and secrets, which nobody else sees."""

from __future__ import annotations

import base64
import os
from pathlib import Path

from compute_router.backend import Backend, Power, State
from compute_router.records import canonical, plain
from compute_router.testing import works
from compute_router.testing.kit import Kit, needs
from compute_router.workload import Entry, Role

__all__ = ["Seeing"]

HOSTILE = (
    "$(touch /tmp/x)",
    "a b",
    "",
    "'",
    '"',
    "\n",
    "`id`",
    "é日本",
    "--",
    "*",
    "\\",
    ";exit 3",
    "${HOME}",
    "\t",
)
"""Arguments that a shell on the way would change."""
SECRET = "hunter2-correct-horse-battery"


class Seeing(Kit):
    """The place of the work, from inside."""

    def test_arguments_and_environment_arrive_byte_for_byte(self, backend: Backend, folder: Path) -> None:
        """Quotes, newlines, `$(...)` and letters beyond ASCII reach the work unchanged."""
        env = {f"MINE_{number}": text for number, text in enumerate(HOSTILE)}
        handle, status, log = self.ran(backend, self.workload(folder, works.SEES, *HOSTILE, env=env))
        assert status.state is State.SUCCEEDED, log[-500:]
        seen = self.told(log, "SEES")
        assert seen["args"] == list(HOSTILE)
        assert {name: seen["env"].get(name) for name in env} == env
        assert seen["env"]["ROUTE_RUN_ID"] == handle.run_id
        assert seen["env"]["ROUTE_ATTEMPT"] == "1"
        for name in ("ROUTE_METRICS", "ROUTE_OUTPUTS"):
            assert os.path.isabs(seen["env"][name]), f"{name} is no absolute path"
        assert "ROUTE_HOME" not in seen["env"], "the router's own folder is none of the work's business"

    def test_the_files_arrive_as_they_were(self, backend: Backend, folder: Path) -> None:
        """Every file of the snapshot with its bytes and its executable bit, and links that stay inside."""
        (folder / "sub" / "deep").mkdir(parents=True)
        (folder / "sub" / "data.bin").write_bytes(bytes(range(256)))
        (folder / "sub" / "deep" / "empty").write_text("")
        (folder / "tool").write_text("#!/bin/sh\n")
        (folder / "tool").chmod(0o755)
        (folder / "link").symlink_to("sub/data.bin")
        _, _, log = self.ran(backend, self.workload(folder, works.SEES))
        tree = self.told(log, "SEES")["tree"]
        wanted = {
            "sub/data.bin": "- " + bytes(range(256)).hex(),
            "sub/deep/empty": "- ",
            "tool": "x " + b"#!/bin/sh\n".hex(),
            "link": "-> sub/data.bin",
            "work.py": "- " + works.SEES.encode().hex(),
        }
        assert {path: tree.get(path) for path in wanted} == wanted

    def test_a_plain_command_runs_where_it_should(self, backend: Backend, folder: Path) -> None:
        """`route run -- COMMAND`: its words one by one, started in the folder the workload names."""
        (folder / "sub").mkdir()
        (folder / "sub" / "file").write_text("there\n")
        entry = Entry(
            root=str(folder), argv=("sh", "-c", 'cat file; printf "%s|" "$@"', "sh", *HOSTILE), cwd="sub"
        )
        _, status, log = self.ran(backend, self.workload(folder, works.HELLO, entry=entry))
        assert status.state is State.SUCCEEDED, (status, log[-500:])
        assert log.decode() == "there\n" + "".join(f"{text}|" for text in HOSTILE)

    @needs(Power.VOLUMES)
    def test_a_volume_outlives_a_run(self, backend: Backend, folder: Path) -> None:
        """What one run writes in a volume the next of that name finds, and one of another name does not."""
        volumes = {Role.DATA: "/data"}
        saw = [
            self.ran(backend, self.workload(folder, works.KEPT, name=name, volumes=volumes))[2]
            for name in ("conformance-a", "conformance-a", "conformance-b")
        ]
        assert saw == [b"nothing\n", b"x\n", b"nothing\n"]

    @needs(Power.SECRETS)
    def test_a_secret_reaches_the_work_alone(self, backend: Backend, folder: Path, tmp_path: Path) -> None:
        """Its value is in no handle, status or log, in no file, and in no process's arguments."""
        source = (
            "import hashlib, os, sys, time\n"
            "print(hashlib.sha256(os.environ['A_SECRET'].encode()).hexdigest(), flush=True)\n"
            "time.sleep(0.5)\n"
        )
        work = self.workload(folder, source, secrets=("A_SECRET",), outputs=("results/",))
        submission = self.submission(backend, work, secrets={"A_SECRET": SECRET, "NOT_ASKED": SECRET + "2"})
        assert SECRET not in repr(submission)
        handle = backend.submit(submission)
        seen: set[bytes] = set()

        def over() -> bool:
            seen.update(_shown() if self.here else ())
            return backend.status(handle).state.final

        self.until(over, "final")
        status = self.final(backend, handle)
        import hashlib

        log = b"".join(backend.logs(handle))
        assert log.decode().strip() == hashlib.sha256(SECRET.encode()).hexdigest()
        backend.fetch(handle, tmp_path / "into")
        forms = [SECRET.encode(), base64.b64encode(SECRET.encode()), SECRET.encode().hex().encode()]
        told = {"the handle": canonical(handle), "the status": canonical(plain(status))}
        for path in [*backend.home.rglob("*"), *(tmp_path / "into").rglob("*"), *folder.rglob("*")]:
            if path.is_file() and not path.is_symlink():
                told[str(path)] = path.read_bytes()
        assert not seen, "the secret stands in the arguments of a process"
        for where, data in told.items():
            assert not any(form in data for form in forms), f"the secret stands in {where}"


def _shown() -> set[bytes]:
    """The arguments of every process of this computer that hold the secret; empty where there is no /proc."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if SECRET.encode() in line:
            found.add(line)
    return found
