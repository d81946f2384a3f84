"""The process that drives a study: started in a session of its own, it outlives the terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from compute_router.errors import StoreError
from compute_router.home import fault

if TYPE_CHECKING:
    from compute_router.studies.folder import StudyFolder

__all__ = ["main", "start"]


def start(
    folder: StudyFolder,
    *,
    secrets: Mapping[str, str],
    wait_us: int | None,
    keep_going: bool,
    plugins: bool = True,
) -> subprocess.Popen[bytes] | None:
    """Start a driver for a study, unless one lives; None then.

    The lock is taken here and handed on, so that there is no moment in which two could start. Secrets
    go through a pipe: not into arguments, nor into a file.
    """
    lock = folder.take()
    if lock is None:
        return None
    try:
        folder.ask_cancel(False)
        folder.end(None)
        given = {
            "home": str(folder.home),
            "id": folder.id,
            "lock": lock,
            "wait_us": wait_us,
            "keep_going": keep_going,
            "plugins": plugins,
            "secrets": dict(secrets),
        }
        with open(folder.path / "log", "ab") as log:
            # -P: what lies where the user stands is not ours to import.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "compute_router.studies.driver"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(lock,),
                cwd=folder.plan.stand if os.path.isdir(folder.plan.stand) else "/",
            )
        assert process.stdin is not None
        try:
            with process.stdin as pipe:
                pipe.write(json.dumps(given).encode())
        except BrokenPipeError:
            code = process.wait()
            raise StoreError(
                f"the driver of study {folder.id} ended at once with {code}",
                mend=f"see {folder.path / 'log'}",
            ) from None
        return process
    except OSError as e:
        raise fault(e, folder.path, folder.home) from e
    finally:
        os.close(lock)


def _leave(number: int, frame: FrameType | None) -> None:
    from compute_router.studies.driving import Leave

    # A second one would break into what the first has begun.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Leave


def main() -> int:
    given = json.loads(sys.stdin.buffer.read() or b"null")
    if given is None:
        return 70  # whoever started us died before saying what for
    lock = int(given["lock"])
    # The programs started from here on must not keep the lock when we are gone.
    os.set_inheritable(lock, False)
    os.write(lock, f"{os.getpid()}\n".encode())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)

    from compute_router.router import Router
    from compute_router.studies.driving import Driver
    from compute_router.studies.folder import StudyFolder

    home = Path(given["home"])
    folder = StudyFolder(home, given["id"])
    router = Router(home, plugins=bool(given["plugins"]), start=Path(folder.plan.stand))
    driver = Driver(
        router,
        folder,
        secrets=given["secrets"],
        wait_us=given["wait_us"],
        keep_going=bool(given["keep_going"]),
    )
    try:
        return driver.drive().exit_code
    except Exception as e:
        from compute_router.studies.folder import Ending

        first = (str(e).splitlines() or [""])[0][:300]
        what = f"the driver failed: {type(e).__name__}: {first}"
        ending = Ending(
            state="stopped",
            at_us=0,
            code="INTERNAL",
            what=what,
            mend=f"{folder.path / 'log'} has more; route study resume {folder.id}",
            exit_code=70,
        )
        folder.end(ending)
        folder.tell("ended", state="stopped", code="INTERNAL", what=what, mend=ending.mend, exit_code=70)
        raise


if __name__ == "__main__":
    sys.exit(main())
