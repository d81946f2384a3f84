"""Looking at a run: its states, its log, and what a cut connection may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from compute_router.backend import Backend, Handle, Power, State, Status
from compute_router.errors import SubmitUnknown, Unavailable
from compute_router.testing import works
from compute_router.testing.kit import Kit, needs
from compute_router.workload import Entry

__all__ = ["Watching"]


class Watching(Kit):
    """Status, logs, attached."""

    def test_a_final_state_never_changes(self, backend: Backend, folder: Path) -> None:
        """States only go forward, and a final status is the same for everybody from then on."""
        handle = self.started(backend, self.workload(folder, works.HELLO))
        status = self.final(backend, handle)
        for other in (backend, backend, self.fresh(backend)):
            assert other.status(handle) == status
        assert (status.state, status.exit_code, status.signal) == (State.SUCCEEDED, 0, None)
        assert status.attempt == 1
        if status.started_us is not None and status.ended_us is not None:
            assert status.ended_us >= status.started_us

    def test_the_exit_code_is_the_works_own(self, backend: Backend, folder: Path) -> None:
        """A work that ends with 7, or with 124 as a timeout would, failed with just that code."""
        for code in (7, 124):
            _, status, _ = self.ran(backend, self.workload(folder, f"raise SystemExit({code})\n"))
            assert (status.state, status.exit_code, status.signal) == (State.FAILED, code, None), status

    def test_a_signal_is_told_as_one(self, backend: Backend, folder: Path) -> None:
        """A work killed by SIGKILL failed with signal 9 and no exit code."""
        if not self.signals:
            pytest.skip("signals = False: the place does not tell a signal from an exit")
        _, status, _ = self.ran(backend, self.workload(folder, "import os\nos.kill(os.getpid(), 9)\n"))
        assert (status.state, status.exit_code, status.signal) == (State.FAILED, None, 9), status

    def test_a_command_that_is_not_there_has_failed(self, backend: Backend, folder: Path) -> None:
        """What cannot be executed is `failed` with a reason: it is neither lost nor still starting."""
        entry = Entry(root=str(folder), argv=("./no-such-command",))
        _, status, _ = self.ran(backend, self.workload(folder, works.HELLO, entry=entry))
        assert status.state is State.FAILED, status
        assert status.reason or status.exit_code in (126, 127), "no reason is given"

    def test_a_log_is_byte_for_byte(self, backend: Backend, folder: Path) -> None:
        """All 256 bytes arrive unchanged, from any offset, and `follow` ends with the run."""
        data = bytes(range(256)) * 300
        handle = self.started(backend, self.workload(folder, works.BYTES))
        self.same(b"".join(backend.logs(handle, follow=True)), data)
        self.final(backend, handle)
        for offset in (0, 1, 255, 70_001, len(data) - 1, len(data), len(data) + 1):
            self.same(b"".join(backend.logs(handle, offset)), data[offset:])
        self.same(b"".join(self.fresh(backend).logs(handle, 5, follow=True)), data[5:])

    def test_attached_ends_with_a_final_status(self, backend: Backend, folder: Path) -> None:
        """`attached` gives every byte of the log once, and a final status as its last item."""
        handle = self.started(backend, self.workload(folder, works.BYTES))
        for offset in (0, 100):
            items = list(backend.attached(handle, offset))
            text = b"".join(item for item in items if isinstance(item, bytes))
            self.same(text, (bytes(range(256)) * 300)[offset:])
            states = [item.state.final for item in items if isinstance(item, Status)]
            assert isinstance(items[-1], Status)
            assert states.index(True) == len(states) - 1
            assert items[-1] == backend.status(handle)

    @needs(Power.FOLLOW, here="the work waits for a file of this computer")
    def test_a_line_arrives_while_the_work_runs(self, backend: Backend, folder: Path, tmp_path: Path) -> None:
        """With `follow` a line is here before the work has ended."""
        go = tmp_path / "go"
        work = self.workload(folder, works.UNTIL, str(go), str(self.patience))
        handle = self.started(backend, work)
        chunks = backend.logs(handle, follow=True)
        text = next(chunks)
        assert text.startswith(b"f"), text
        assert not backend.status(handle).state.final, "the line came only when the work was over"
        go.write_text("")
        assert text + b"".join(chunks) == b"first\nlast\n"

    def test_unreachable_is_unknown_and_not_failed(self, backend: Backend, folder: Path) -> None:
        """While a place cannot be reached the state is `unknown`, `find` raises, and nothing is started."""
        cut = self.cut(backend)
        if cut is None:
            pytest.skip("`cut` gives no way to make the place unreachable")
        submission = self.submission(backend, self.workload(folder, works.HELLO))
        handle = backend.submit(submission)
        status = self.final(backend, handle)
        assert cut.status(handle).state is State.UNKNOWN
        assert cut.health().backend == backend.name
        with pytest.raises(Unavailable):
            cut.find(submission.key)
        with pytest.raises(Unavailable):
            list(cut.logs(handle))
        other = self.submission(backend, self.workload(folder, works.HELLO))
        with pytest.raises((Unavailable, SubmitUnknown)):
            cut.submit(other)
        assert backend.find(other.key) is None
        assert backend.status(handle) == status

    def test_a_cost_is_a_decimal_or_not_known(self, backend: Backend, folder: Path) -> None:
        """`cost` of a final run is None, or a decimal with its currency and source."""
        handle, _, _ = self.ran(backend, self.workload(folder, works.HELLO))
        cost = backend.cost(handle)
        if cost is None:
            assert Power.COST not in backend.powers, "Power.COST is claimed and no cost is known"
            return
        self.keeps(cost)
        assert float(cost.amount) >= 0
        assert cost.source

    def test_a_handle_of_a_run_that_never_was_is_never_a_success(
        self, backend: Backend, folder: Path
    ) -> None:
        """A handle that names nothing raises `HandleLost`, or is `unknown` or `lost`; never another run."""
        import msgspec

        from compute_router.errors import HandleLost
        from compute_router.records import new_run_id

        handle, _, _ = self.ran(backend, self.workload(folder, works.HELLO))
        run_id = new_run_id()
        stray: Handle = msgspec.structs.replace(
            handle, run_id=run_id, key=run_id, data=_without(handle, run_id)
        )
        try:
            state = backend.status(stray).state
        except HandleLost:
            return
        assert state in (State.UNKNOWN, State.LOST), f"a run that never was is {state}"


def _without(handle: Handle, run_id: str) -> dict[str, object]:
    """The backend's own data, with the other run's id wherever this one's stands."""
    return {
        name: value.replace(handle.run_id, run_id).replace(handle.key, run_id)
        if isinstance(value, str)
        else value
        for name, value in handle.data.items()
    }
