"""Samples for tests of receipts: a measured block as the supervisor writes it, a kind, a receipt of both."""

from __future__ import annotations

from typing import Any

from compute_router.backend import Hardware, NoOffer, Offer, State, Status, Surface
from compute_router.policy import Decision, Outcome, Ranked, Rejection
from compute_router.receipt import build
from compute_router.records import key_run_id
from compute_router.workload import Accelerator, Check, Entry, Kind, MetricRule, Needs, Purpose, Workload

RUN = key_run_id("a run")
AT = 1_800_000_000_000_000
HEX = "ab" * 32


def seen(v: Any, src: str = "supervisor") -> dict[str, Any]:
    return {"v": v, "src": src, "at": AT - 5} if v is not None else {"v": None, "why": "not observed yet"}


def measurements(**more: Any) -> dict[str, Any]:
    """A measured block of a training on a CPU, as the supervisor writes it."""
    none = seen("not_applicable")
    return {
        "schema": "route.measured/1",
        "run_id": RUN,
        "attempt": 1,
        "kind": "train",
        "outcome": {"state": "succeeded", "stage": "collect", "exit_code": 0, "log_tail_sha256": HEX},
        "timing": {"run_us": seen(9_000_000), "queue_us": seen(20_000), "compile_us": seen(None)},
        "hw": {
            "requested": {"family": "cpu"},
            "observed": {
                "sku": seen("cpu"),
                "count": seen(0),
                "cpu_model": seen("Intel(R) Xeon(R)"),
                "cpus": seen(2),
                "mem_bytes": seen(8 << 30),
                "topology": none,
            },
        },
        "launch": {"argv": seen(["python3", "train.py"]), "launcher": "python", "ranks": 1},
        "storage": [
            {"role": "root", "class": seen(None), "fs": seen("ext4"), "mount": seen("/")},
            {"role": "data", "class": seen("local_nvme"), "fs": seen("xfs")},
        ],
        "volumes": [
            {"name": "c", "role": "compile-cache", "event": [seen("created")], "committed": seen(True)}
        ],
        "cache": [seen({"kind": "inductor", "hits": 3, "misses": 0, "verdict": "hit"}, "workload")],
        "kernel": seen(None),
        "env": {
            "stack": {"python": seen("3.11.7"), "torch": seen("2.13.0")},
            "allow": seen({"NCCL_DEBUG": "INFO"}),
        },
        "steady": {
            "warmup_steps_discarded": seen(1, "workload"),
            "n_steps": seen(9, "workload"),
            "step_us": seen({"p50": 100, "max": 200}, "workload"),
        },
        "metrics": {
            "primary": "tok_s_global",
            "tok_s_global": seen("5242.88", "workload"),
            "loss_last": seen("2.1", "workload"),
            "last": seen({"loss": "2.1", "grad_norm": "0.5"}, "workload"),
        },
        "mem": {"host_rss_peak": seen(700 << 20)},
        "checks": {"finite": seen(True, "workload"), "no_oom": seen(True), "end_marker": seen(True)},
        "lifecycle": [{"seq": 1, "event": "committed", "t_us": AT, "mono_us": 5, "actor": "supervisor"}],
        "clock": {"boot_id": seen("b-1")},
        "artifacts": [{"path": "outputs/a.txt", "bytes": 2, "sha256": HEX, "role": "output"}],
        **more,
    }


class Training(Kind):
    """A kind with checks of its own."""

    name = "train"
    about = "training"
    purposes = tuple(Purpose)
    default_purpose = Purpose.SMOKE
    primary = "tok_s_global"

    def checks(self, measured: Any) -> list[Check]:
        return [
            Check(name="exit_zero", ok=measured["outcome"]["exit_code"]["v"] == 0),
            Check(name="finite", ok=measured["checks"]["finite"]["v"]),
            Check(name="observed_hw", ok=measured["hw"]["match"]["v"] == "exact"),
            Check(name="kernel_truth", ok=True, why="not_applicable"),
            Check(name="end_marker", ok=None, why="was not reported"),
        ]

    def success(self, measured: Any) -> Check:
        return Check(name="success", ok=True)


def workload(accelerator: str = "cpu", **more: Any) -> Workload:
    return Workload(
        name="char-gpt",
        entry=Entry(
            root="/src", script="train.py", args=("--steps", "3", "--api-token", "hunter2"), sha256=HEX
        ),
        **{
            "needs": Needs(accelerator=Accelerator.parse(accelerator)),
            "metrics": MetricRule(primary="tok_s_global"),
            **more,
        },
    )


def made(
    measured: Any = None, *, state: State = State.SUCCEEDED, work: Workload | None = None, **more: Any
) -> dict[str, Any]:
    work = work or workload()
    offer = Offer(
        backend="local",
        id="here",
        surface=Surface.LOCAL,
        hardware=Hardware(family=work.needs.accelerator.family, sku="", count=0),
    )
    decision = Decision(
        policy="auto",
        policy_version="1",
        workload_digest=work.digest,
        asked_at_us=AT,
        outcome=Outcome.RUN,
        sentence="local for work that asks for no accelerator",
        ranked=(Ranked(backend="local", offer_id="here", rank=1, rule="r", sentence="s"),),
        rejections=(Rejection(backend="far", offer_id=None, rule="no_offer", sentence="not logged in"),),
    )
    given: dict[str, Any] = {
        "run_id": RUN,
        "key": "a run",
        "workload": work,
        "status": Status(
            state=state,
            exit_code=0 if state is State.SUCCEEDED else 1 if state is State.FAILED else None,
            started_us=AT,
            ended_us=AT + 9_000_000,
        ),
        "created_us": AT + 10_000_000,
        "chain": {"store_id": "cd" * 16, "prev": None, "seq": 1},
        "snapshot_facts": {
            "tree_sha256": HEX,
            "git": {
                "commit": "ef" * 20,
                "branch": "main",
                "dirty": False,
                "diff_sha256": None,
                "message": "m",
            },
        },
        "offers": (offer, NoOffer(backend="far", code="login", reason="not logged in")),
        "decision": decision,
        "intent": {"backend": "local", "offer_id": "here", "attempt": 1, "tries": []},
        "kind": Training(),
        "measured": measured,
        **more,
    }
    return build(**given)
