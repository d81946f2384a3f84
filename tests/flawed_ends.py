"""Flawed backends once more: those that end and collect runs in a way that breaks a promise."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from flawed import Flawed

from compute_router.backend import Handle, Submission
from compute_router.errors import Unavailable
from compute_router.records import new_run_id


class CancelRaisesWhenOver(Flawed):
    """Nothing to cancel, so it complains."""

    caught, says = "test_cancel_is_silent_when_it_is_over", "nothing runs"

    def cancel(self, handle: Handle) -> None:
        if self.status(handle).state.final:
            raise Unavailable("nothing runs")
        super().cancel(handle)


class CancelDoesNothing(Flawed):
    """Says yes."""

    caught, says = "test_cancel_ends_a_run_and_may_be_repeated", "not final"
    patience = 6.0

    def submit(self, submission: Submission) -> Handle:
        self.handle = super().submit(submission)
        return self.handle

    def cancel(self, handle: Handle) -> None:
        pass


class DiesWithItsClient(Flawed):
    """Claims to detach and holds the run by a pipe."""

    caught, says = "test_a_run_outlives_its_client", ""

    def submit(self, submission: Submission) -> Handle:
        handle = super().submit(submission)
        code = (
            "import sys\nfrom pathlib import Path\nfrom compute_router.backend import Handle\n"
            "from compute_router.backends.local import LocalBackend, LocalSettings\n"
            "from compute_router.records import decode\nprint(flush=True)\nsys.stdin.read()\n"
            "local = LocalBackend(LocalSettings(), Path(sys.argv[1]))\n"
            "local.cancel(decode(Handle, sys.argv[2].encode()))\n"
        )
        argv = [sys.executable, "-c", code, str(self.home), msgspec.json.encode(handle).decode()]
        pipe = subprocess.PIPE
        self.holder = subprocess.Popen(argv, stdin=pipe, stdout=pipe)
        assert self.holder.stdout
        self.holder.stdout.readline()
        return handle


class Truncates(Flawed):
    """Loses the end of a file."""

    caught, says = "test_outputs_come_back_whole", "deep.bin"

    def fetch(self, handle: Handle, into: Path) -> Sequence[Path]:
        paths = super().fetch(handle, into)
        for path in paths:
            if path.name == "deep.bin":
                os.truncate(path, 100)
        return paths


class ForgetsEmptyFiles(Flawed):
    """What holds nothing is nothing."""

    caught, says = "test_outputs_come_back_whole", "empty"

    def fetch(self, handle: Handle, into: Path) -> Sequence[Path]:
        paths = super().fetch(handle, into)
        for path in paths:
            if not path.stat().st_size:
                path.unlink()
        return [path for path in paths if path.exists()]


class BelievesWhatIsThere(Flawed):
    """A file of that name is that file."""

    caught, says = "test_fetching_again_gives_the_same", "was believed"

    def fetch(self, handle: Handle, into: Path) -> Sequence[Path]:
        aside = into.with_name(into.name + "-aside")
        found = []
        for path in super().fetch(handle, aside):
            to = into / path.relative_to(aside)
            to.parent.mkdir(parents=True, exist_ok=True)
            if not to.exists():
                shutil.copyfile(path, to)
            found.append(to)
        return found


class WritesInPlace(Flawed):
    """Half a file under its final name, for as long as it takes."""

    caught, says = "test_a_killed_fetch_leaves_nothing_half", "half under its final name"

    def fetch(self, handle: Handle, into: Path) -> Sequence[Path]:
        aside = into.with_name(into.name + "-aside")
        found = []
        for path in sorted(super().fetch(handle, aside)):
            to = into / path.relative_to(aside)
            to.parent.mkdir(parents=True, exist_ok=True)
            data = path.read_bytes()
            with open(to, "wb", buffering=0) as file:
                for at in range(0, len(data), 1 << 20):
                    file.write(data[at : at + (1 << 20)])
                    time.sleep(0.1)
            found.append(to)
        return found


class MeasuresAnother(Flawed):
    """Brings the block of some other run."""

    caught, says = "test_what_was_measured_is_of_this_run", "run_id"

    def fetch(self, handle: Handle, into: Path) -> Sequence[Path]:
        paths = super().fetch(handle, into)
        file = into / "measured.json"
        file.write_bytes(file.read_bytes().replace(handle.run_id.encode(), new_run_id().encode()))
        return paths


class ForgetsAfterCleanup(Flawed):
    """Cleans so well that nothing is known any more, and the key starts it again."""

    caught, says = "test_cleanup_may_be_repeated_and_loses_no_state", ""

    def cleanup(self, handle: Handle) -> None:
        shutil.rmtree(self.root / "runs" / handle.run_id, ignore_errors=True)


class CleansOnce(Flawed):
    """The second time there is nothing to clean."""

    caught, says = "test_cleanup_may_be_repeated_and_loses_no_state", "cleaned already"

    def cleanup(self, handle: Handle) -> None:
        if getattr(self, "cleaned", False):
            raise Unavailable("cleaned already")
        self.cleaned = True
        super().cleanup(handle)
