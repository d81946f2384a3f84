"""The kind `train`: whole-model training, judged by tokens of the global batch per second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from compute_router import checks, examples, hookimpl
from compute_router.workload import Check, Field, Kind, OnInterrupt, Purpose, Workload

__all__ = ["Train", "route_kinds"]

_PARALLEL = (("dp", "data"), ("tp", "tensor"), ("pp", "pipeline"), ("cp", "context"), ("ep", "expert"))
_COUNTS = (
    "tokens_per_step",
    "seq_len",
    "global_batch",
    "micro_batch",
    "grad_accum",
    "dp",
    "tp",
    "pp",
    "cp",
    "ep",
)


class Train(Kind):
    """Training succeeded if it ended well, its steps count and its losses stayed finite."""

    name = "train"
    about = "whole-model training; judged by tokens of the global batch per second"
    purposes = tuple(Purpose)
    default_purpose = Purpose.SMOKE
    primary = "tok_s_global"
    ready: ClassVar[Mapping[str, str]] = {
        "char-gpt": str(Path(examples.__file__).parent / "train_char_gpt.py")
    }
    fields = (
        Field(name="family", about="family of models, e.g. gpt"),
        Field(name="preset", about="which of the family, e.g. small"),
        Field(name="features", about="what is mixed in, e.g. moe8+mla"),
        Field(name="data", about="id of the data set"),
        Field(name="tokens_per_step", type="integer", about="tokens of the global batch in one step"),
        Field(name="seq_len", type="integer", about="tokens in one sequence"),
        Field(name="global_batch", type="integer", about="sequences of all ranks in one step"),
        Field(name="micro_batch", type="integer", about="sequences of one rank in one pass"),
        Field(name="grad_accum", type="integer", about="passes in one step"),
        Field(name="dtype", about="numbers it computes in, e.g. bf16"),
        Field(name="fp8_recipe", about="how fp8 is scaled, where it is used"),
        Field(name="seed", type="integer", about="seed of this run; replicas differ in it"),
        Field(name="deterministic", type="boolean", about="whether equal seeds give equal bytes"),
        Field(name="mode", about="single, ddp, fsdp2, tensor_parallel, ..."),
        *(Field(name=name, type="integer", about=f"ranks of {what} parallelism") for name, what in _PARALLEL),
        Field(name="compile", about="eager, regional, whole_graph, xla_step, aot or mixed"),
        Field(name="kernel", about="the kernel asked for, e.g. fa4; the receipt says which one ran"),
    )

    def problems(self, workload: Workload) -> Sequence[str]:
        """A benchmark that counts its compiling step, and parts of a batch that do not make the whole."""
        found = []
        if workload.purpose is Purpose.BENCHMARK and workload.metrics.discard_steps < 1:
            found.append(
                "a training benchmark cannot count step 0, which holds the compiling: discard_steps >= 1"
            )
        if workload.on_interrupt is OnInterrupt.RESUME and workload.purpose is Purpose.COLD_START:
            found.append("a cold start that resumes is none: on_interrupt must be stop")
        batch, length = workload.fields.get("global_batch"), workload.fields.get("seq_len")
        tokens = workload.fields.get("tokens_per_step")
        if isinstance(batch, int) and isinstance(length, int) and tokens not in (None, batch * length):
            found.append(f"fields: global_batch {batch} x seq_len {length} is not tokens_per_step {tokens}")
        found += [
            f"fields.{name} must be more than 0"
            for name in _COUNTS
            if isinstance(size := workload.fields.get(name), int) and size <= 0
        ]
        return found

    def checks(self, measured: Mapping[str, Any]) -> Sequence[Check]:
        """The checks that bear on training; speed is none of them."""
        return (
            checks.exit_zero(measured),
            checks.no_oom(measured),
            checks.finite(measured),
            checks.steps_present(measured),
            checks.end_marker(measured),
            checks.eval_off(measured),
            checks.observed_hw(measured),
            checks.kernel_truth(measured),
            checks.peak_memory(measured),
        )

    def success(self, measured: Mapping[str, Any]) -> Check:
        """Ended well with finite losses over at least one step that counts. Not known (`ok` None) for
        work that ended well and reported no step: exit code 0 alone shows no training."""
        for check in (checks.exit_zero(measured), checks.no_oom(measured), checks.finite(measured)):
            if check.ok is False:
                return Check(name="success", ok=False, why=check.why)
        ended = checks.exit_zero(measured)
        if ended.ok is None:
            return Check(name="success", ok=None, why=ended.why)
        count = checks.steps_present(measured, least=1)
        return Check(name="success", ok=True if count.ok else None, why="" if count.ok else count.why)


@hookimpl
def route_kinds() -> Sequence[Kind]:
    return [Train()]
