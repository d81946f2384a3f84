"""How a run is ended from outside: its timeout, a cancel, and that nothing of it goes on."""

from __future__ import annotations

import time
from pathlib import Path

from compute_router.backend import Backend, Power, State
from compute_router.testing import works
from compute_router.testing.kit import Kit, needs

__all__ = ["Ending"]


class Ending(Kit):
    """Timeouts and cancels."""

    def test_a_timeout_is_told_as_one(self, backend: Backend, folder: Path) -> None:
        """A work that runs into its timeout is `timed_out`, whatever it exited with."""
        _, status, _ = self.ran(backend, self.workload(folder, works.SLEEPS, timeout_us=self.timeout_us))
        assert status.state is State.TIMED_OUT, status

    @needs(here="its processes are looked at")
    def test_nothing_lives_after_a_timeout(self, backend: Backend, folder: Path, tmp_path: Path) -> None:
        """The work and the child it started are gone."""
        # Longer than the work needs until it has written who it is, however loaded this computer is.
        work = self.workload(
            folder, works.TREE, str(tmp_path / "pids"), timeout_us=self.timeout_us + 3_000_000
        )
        handle = self.started(backend, work)
        pids = self.running(backend, handle, tmp_path / "pids")
        assert self.final(backend, handle).state is State.TIMED_OUT
        self.gone(pids)

    @needs(Power.CANCEL)
    def test_cancel_ends_a_run_and_may_be_repeated(self, backend: Backend, folder: Path) -> None:
        """Asked while it runs, twice, and by another instance: `cancelled`, and it stays so."""
        handle = self.started(backend, self.workload(folder, works.SLEEPS))
        self.until(lambda: backend.status(handle).state is State.RUNNING, "running")
        backend.cancel(handle)
        self.fresh(backend).cancel(handle)
        status = self.final(backend, handle)
        assert status.state is State.CANCELLED, status
        backend.cancel(handle)
        assert backend.status(handle) == status

    @needs(Power.CANCEL)
    def test_cancel_may_come_at_once(self, backend: Backend, folder: Path) -> None:
        """Asked before the work had a moment to start: it ends `cancelled`, never runs on."""
        handle = self.started(backend, self.workload(folder, works.SLEEPS))
        backend.cancel(handle)
        assert self.final(backend, handle).state is State.CANCELLED

    @needs(Power.CANCEL)
    def test_cancel_is_silent_when_it_is_over(self, backend: Backend, folder: Path) -> None:
        """A cancel that comes too late raises nothing and changes nothing."""
        handle, status, _ = self.ran(backend, self.workload(folder, works.HELLO))
        backend.cancel(handle)
        backend.cancel(handle)
        self.fresh(backend).cancel(handle)
        assert backend.status(handle) == status
        assert status.state is State.SUCCEEDED

    @needs(Power.CANCEL, here="its processes are looked at")
    def test_nothing_lives_after_a_cancel(self, backend: Backend, folder: Path, tmp_path: Path) -> None:
        """The work and the child it started are gone."""
        handle = self.started(backend, self.workload(folder, works.TREE, str(tmp_path / "pids")))
        pids = self.running(backend, handle, tmp_path / "pids")
        backend.cancel(handle)
        assert self.final(backend, handle).state is State.CANCELLED
        self.gone(pids)

    @needs(Power.DETACH, here="the work waits for a file of this computer")
    def test_a_run_outlives_its_client(self, backend: Backend, folder: Path, tmp_path: Path) -> None:
        """The process that submitted is killed, its whole group too; the work goes on and ends well."""
        from compute_router.records import new_run_id, plain

        go, run_id = tmp_path / "go", new_run_id()
        submission = self.submission(backend, self.workload(folder, works.UNTIL, str(go), str(self.patience)))
        order = self.order(
            backend, "submit", id=run_id, key=run_id, workload=plain(submission.workload),
            offer=plain(submission.offer),
        )  # fmt: skip
        with self.client(order) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write("go\n")
            client.stdin.flush()
            assert client.stdout.readline() == "ready\n"
            assert run_id in client.stdout.readline()
            client.kill()
        handle = backend.find(run_id)
        assert handle is not None, "the run is gone with the client that started it"
        for _ in range(20):  # one that is held by its client may take a moment to notice
            assert not backend.status(handle).state.final, "the run ended with the client that started it"
            time.sleep(0.05)
        go.write_text("")
        status = self.final(backend, handle)
        assert (status.state, status.exit_code) == (State.SUCCEEDED, 0), status
        assert b"".join(backend.logs(handle)) == b"first\nlast\n"
