"""The kind `validate`: a check that accepts or rejects something, e.g. a kernel that is to be promoted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from compute_router import checks, examples, hookimpl
from compute_router.workload import Check, Field, Kind, Purpose, Workload

__all__ = ["Validate", "route_kinds"]


class Validate(Kind):
    """A validation succeeded if it reached a verdict; to reject is as good a result as to accept."""

    name = "validate"
    about = "accepts or rejects something by criteria; a verdict either way is its result"
    purposes = (Purpose.SMOKE, Purpose.BRINGUP, Purpose.REPEATABLE, Purpose.SCALE, Purpose.BENCHMARK)
    default_purpose = Purpose.SMOKE
    ready: ClassVar[Mapping[str, str]] = {
        "attention": str(Path(examples.__file__).parent / "validate_attention.py")
    }
    fields = (
        Field(name="family", about="family of what is judged, e.g. attention"),
        Field(name="preset", about="which of the family"),
        Field(name="subject", about="what is accepted or rejected"),
        Field(name="reference", about="what it is held against"),
        Field(name="tolerance", type="decimal", about="largest error that is accepted"),
        Field(name="cases", type="integer", about="cases it is tried on"),
        Field(name="dtype", about="numbers it computes in, e.g. bf16"),
        Field(name="seed", type="integer", about="seed of this run"),
        Field(name="kernel", about="the kernel asked for; the receipt says which one ran"),
    )

    def problems(self, workload: Workload) -> Sequence[str]:
        """A metric of another kind, and a tolerance or number of cases that cannot be."""
        found = []
        if workload.metrics.primary == "tok_s_global":
            found.append("tok_s_global is the metric of training; a validation is judged by its verdict")
        if isinstance(cases := workload.fields.get("cases"), int) and cases <= 0:
            found.append("fields.cases must be more than 0")
        if str(workload.fields.get("tolerance", "")).startswith("-"):
            found.append("fields.tolerance must not be negative")
        return found

    def checks(self, measured: Mapping[str, Any]) -> Sequence[Check]:
        """A verdict stands, the exit code agrees with it, and kernel and hardware are known."""
        return (
            self._verdict(measured),
            self._exit(measured),
            checks.no_oom(measured),
            checks.end_marker(measured),
            checks.observed_hw(measured),
            checks.kernel_truth(measured),
        )

    def success(self, measured: Mapping[str, Any]) -> Check:
        """`accept` with exit code 0, or `reject` with 0 or 1 (both are customary). Anything else, and
        above all an exit code 0 without a verdict, is no success."""
        for check in (self._verdict(measured), self._exit(measured), checks.kernel_truth(measured)):
            if check.ok is False:
                return Check(name="success", ok=False, why=check.why)
        ended = self._exit(measured)
        return Check(name="success", ok=ended.ok, why=ended.why)

    def promotion(self, measured: Mapping[str, Any]) -> Mapping[str, Any]:
        """`{"status", "criteria", "ready"}`; `status` is `none` without a verdict. `ready` needs the success
        of the run besides an `accept` that every criterion bears out."""
        found = checks.verdict(measured) or {"status": "none", "criteria": [], "ready": False}
        return {**found, "ready": found["ready"] and self.success(measured).ok is True}

    def _verdict(self, measured: Mapping[str, Any]) -> Check:
        name, found = "verdict", checks.verdict(measured)
        if found is None:
            return Check(name=name, ok=False, why="the work reported no verdict (see route_report)")
        if found["status"] not in ("accept", "reject"):
            return Check(name=name, ok=False, why=f"the verdict is {found['status']!r}, not accept or reject")
        failed = [c["name"] for c in found["criteria"] if c["ok"] is False]
        if found["status"] == "accept" and failed:
            return Check(name=name, ok=False, why=f"accepted, but not met: {', '.join(failed)}")
        return Check(name=name, ok=True)

    def _exit(self, measured: Mapping[str, Any]) -> Check:
        name, found, zero = "exit_agrees", checks.verdict(measured), checks.exit_zero(measured)
        code, _ = checks.look(measured, "outcome", "exit_code")
        signal, _ = checks.look(measured, "outcome", "signal")
        rejected = found is not None and found["status"] == "reject"
        if rejected and signal in (None, checks.NOT_APPLICABLE) and code == 1 and not isinstance(code, bool):
            return Check(name=name, ok=True)
        return Check(name=name, ok=zero.ok, why=zero.why)


@hookimpl
def route_kinds() -> Sequence[Kind]:
    return [Validate()]
