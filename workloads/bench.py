"""The kind `bench`: a detached microbenchmark of an operation or kernel, judged by its own metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from compute_router import checks, examples, hookimpl
from compute_router.workload import Check, Field, Kind, Purpose, Workload

__all__ = ["Bench", "route_kinds"]


class Bench(Kind):
    """A benchmark succeeded if it ended well and reported the metric it was made for."""

    name = "bench"
    about = "a microbenchmark of an operation or kernel; judged by the metric it names"
    purposes = (
        Purpose.BENCHMARK,
        Purpose.SMOKE,
        Purpose.BRINGUP,
        Purpose.REPEATABLE,
        Purpose.SCALE,
        Purpose.COLD_START,
    )
    default_purpose = Purpose.BENCHMARK
    ready: ClassVar[Mapping[str, str]] = {"matmul": str(Path(examples.__file__).parent / "bench_matmul.py")}
    fields = (
        Field(name="family", about="family of operations, e.g. gemm"),
        Field(name="preset", about="which of the family, e.g. 8192-cubed"),
        Field(name="operation", about="what is timed, e.g. matmul"),
        Field(name="sizes", about="sizes it is timed at, e.g. 1024,2048,4096"),
        Field(name="dtype", about="numbers it computes in, e.g. bf16"),
        Field(name="repeats", type="integer", about="times each size is run"),
        Field(name="seed", type="integer", about="seed of this run"),
        Field(name="deterministic", type="boolean", about="whether equal seeds give equal bytes"),
        Field(name="compile", about="eager, regional, whole_graph, xla_step, aot or mixed"),
        Field(name="kernel", about="the kernel asked for; the receipt says which one ran"),
    )

    def problems(self, workload: Workload) -> Sequence[str]:
        """A metric of another kind, and repeats that are none."""
        found = []
        if workload.metrics.primary == "tok_s_global":
            found.append("tok_s_global is the metric of training; a bench names its own, or none")
        if isinstance(repeats := workload.fields.get("repeats"), int) and repeats <= 0:
            found.append("fields.repeats must be more than 0")
        return found

    def checks(self, measured: Mapping[str, Any]) -> Sequence[Check]:
        """The checks that bear on a benchmark: it has no loss and no evaluation, but it has a kernel."""
        return (
            checks.exit_zero(measured),
            checks.no_oom(measured),
            checks.finite(measured),
            checks.steps_present(measured),
            checks.end_marker(measured),
            checks.observed_hw(measured),
            checks.kernel_truth(measured),
            checks.peak_memory(measured),
        )

    def success(self, measured: Mapping[str, Any]) -> Check:
        """Ended well, reported something finite, and the kernel it ran is not another than asked for."""
        for check in (
            checks.exit_zero(measured),
            checks.no_oom(measured),
            checks.finite(measured),
            checks.kernel_truth(measured),
        ):
            if check.ok is False:
                return Check(name="success", ok=False, why=check.why)
        ended = checks.exit_zero(measured)
        if ended.ok is None:
            return Check(name="success", ok=None, why=ended.why)
        if not checks.reported(measured):
            return Check(name="success", ok=None, why="the work reported no figure (see route_report)")
        primary, _ = checks.look(measured, "metrics", "primary")
        if isinstance(primary, str) and primary not in checks.figures(measured):
            return Check(name="success", ok=None, why=f"the metric {primary} was not reported")
        return Check(name="success", ok=True)


@hookimpl
def route_kinds() -> Sequence[Kind]:
    return [Bench()]
