"""At most one start for one key, whoever dies and however often it is asked."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import msgspec
import pytest

from compute_router.backend import Backend, Handle, State
from compute_router.errors import (
    Conflict,
    CredentialsError,
    InputError,
    Rejected,
    RouteError,
    SubmitUnknown,
    Unavailable,
)
from compute_router.records import canonical, key_run_id, new_run_id, plain
from compute_router.testing import works
from compute_router.testing.kit import Kit

__all__ = ["Once"]


class Once(Kit):
    """Submitting, and finding again."""

    def test_a_handle_finds_the_run_from_another_process(self, backend: Backend, folder: Path) -> None:
        """A handle is JSON that names the run; a new process sees the same state and log with it."""
        key = "a key of mine"
        submission = self.submission(backend, self.workload(folder, works.HELLO), id=key_run_id(key), key=key)
        handle = backend.submit(submission)
        assert isinstance(handle, Handle)
        self.keeps(handle)
        assert handle.backend == backend.name
        assert (handle.run_id, handle.key, handle.attempt) == (submission.id, submission.key, 1)
        status = self.final(backend, handle)
        assert (status.state, status.exit_code) == (State.SUCCEEDED, 0), status
        seen = self.elsewhere(backend, "look", handle=canonical(handle).decode())
        assert seen == {"status": plain(status), "log": "hello\n", "found": plain(handle)}

    def test_submitting_twice_starts_once(self, backend: Backend, folder: Path) -> None:
        """The same key again, at once and after the end, from this instance and others: one execution."""
        witness = self.witness(backend, folder)
        submission = self.submission(backend, witness.workload(7), id=key_run_id("twice"), key="twice")
        handles = [backend.submit(submission), self.fresh(backend).submit(submission)]
        assert self.final(backend, handles[0]).exit_code == 7
        handles += [backend.submit(submission), self.fresh(backend).submit(submission)]
        assert all(handle == handles[0] for handle in handles)
        found = self.fresh(backend).find("twice")
        assert found == handles[0]
        assert witness.count(*handles) == 1

    def test_submitting_from_threads_starts_once(self, backend: Backend, folder: Path) -> None:
        """Eight at once, half of them on one instance: one execution, one handle."""
        witness = self.witness(backend, folder)
        submission = self.submission(backend, witness.workload(7), id=key_run_id("many"), key="many")
        handles: list[Handle] = []
        failures: list[Exception] = []

        def submit(one: Backend) -> None:
            try:
                handles.append(one.submit(submission))
            except SubmitUnknown:
                pass  # an honest answer: whoever asks next is told
            except Exception as e:
                failures.append(e)

        instances = [backend] * 4 + [self.fresh(backend) for _ in range(4)]
        threads = [threading.Thread(target=submit, args=(one,)) for one in instances]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        assert handles
        assert all(handle == handles[0] for handle in handles)
        assert self.final(backend, handles[0]).exit_code == 7
        assert witness.count(handles[0]) == 1

    def test_the_same_key_for_other_work_is_refused(self, backend: Backend, folder: Path) -> None:
        """Another workload under a key that is taken raises `Conflict` (or `Rejected`) and never runs."""
        handle = self.started(backend, self.workload(folder, works.HELLO), id=key_run_id("k"), key="k")
        witness = self.witness(backend, folder)
        other = self.submission(backend, witness.workload(), id=key_run_id("k"), key="k")
        with pytest.raises((Conflict, Rejected)):
            backend.submit(other)
        assert self.final(backend, handle).state is State.SUCCEEDED
        assert b"".join(backend.logs(handle)) == b"hello\n"
        assert witness.count(handle) == 0

    def test_a_second_attempt_of_what_ran_is_refused(self, backend: Backend, folder: Path) -> None:
        """Attempt 2 may only follow one that surely never executed or was preempted."""
        witness = self.witness(backend, folder)
        submission = self.submission(backend, witness.workload())
        handle = backend.submit(submission)
        self.final(backend, handle)
        import dataclasses

        with pytest.raises(RouteError) as refused:
            backend.submit(dataclasses.replace(submission, attempt=2))
        assert not isinstance(refused.value, SubmitUnknown)
        assert witness.count(handle) == 1
        assert self.final(backend, handle).attempt == 1

    def test_a_missing_secret_starts_nothing(self, backend: Backend, folder: Path) -> None:
        """A secret that is named and not given is a `CredentialsError`, or no place is offered at all."""
        witness = self.witness(backend, folder)
        plain_work = witness.workload()
        work = msgspec.structs.replace(plain_work, secrets=("NOT_GIVEN",))
        submission = self.submission(backend, work, offer=self.offer(backend, plain_work))
        with pytest.raises((CredentialsError, Rejected)):
            backend.submit(submission)
        assert backend.find(submission.key) is None
        assert witness.count() == 0

    def test_what_changed_since_it_was_looked_at_never_runs(self, backend: Backend, folder: Path) -> None:
        """What ships is what was digested: a file that changed since is an `InputError`, not another run."""
        witness = self.witness(backend, folder)
        submission = self.submission(backend, witness.workload())
        with open(folder / "work.py", "a") as file:
            file.write("# another work\n")
        with pytest.raises(InputError):
            backend.submit(submission)
        assert backend.find(submission.key) is None
        assert witness.count() == 0

    def test_what_was_never_started_is_not_found(self, backend: Backend) -> None:
        """`find` is None for a key and for a run id that nobody used, however often it is asked."""
        for key in (new_run_id(), "never used", "../etc/passwd", "ünï\n"):
            assert backend.find(key) is None
            assert self.fresh(backend).find(key) is None

    def test_a_killed_client_leaves_one_execution(
        self, backend: Backend, folder: Path, chance: random.Random
    ) -> None:
        """A client killed at any moment of a submit, then the same key again: exactly one execution."""
        began = time.monotonic()
        self.started(backend, self.workload(folder, works.HELLO))
        whole = time.monotonic() - began
        for number in range(self.kills):
            key = f"point {number}"
            witness = self.witness(backend, folder)
            submission = self.submission(backend, witness.workload(7), id=key_run_id(key), key=key)
            order = self.order(
                backend, "submit", id=submission.id, key=key,
                workload=plain(submission.workload), offer=plain(submission.offer),
            )  # fmt: skip
            printed = self.killed(order, chance.uniform(0, 1.5 * whole))
            try:
                found = backend.find(key)
            except Unavailable:
                found = None
            assert found is not None or not printed, "submit returned and find says that nothing started"
            handle = self.fresh(backend).submit(submission)
            assert found is None or found == handle
            assert self.final(backend, handle).exit_code == 7
            assert backend.submit(submission) == handle
            assert witness.count(handle) == 1
