"""The policy `auto`: chooses the surface by kind, purpose, warmth and coupling, the place by time."""

from __future__ import annotations

from collections.abc import Sequence

from compute_router.backend import NoOffer, Offer, Surface
from compute_router.hookspecs import hookimpl
from compute_router.policies.conditions import Effect, Rule
from compute_router.policies.deciding import by_time, choose, version
from compute_router.policy import Decision, History, Limits, Policy
from compute_router.workload import Workload

__all__ = ["OTHERWISE", "PREFER", "Auto", "route_policies"]

PREFER: tuple[Rule, ...] = (
    Rule(
        id="no-accelerator",
        effect=Effect.PREFER,
        when={"family": "cpu", "nodes": {"max": 1}},
        order=(Surface.LOCAL,),
        sentence="work that asks for no accelerator stays on this machine",
    ),
    Rule(
        id="xla-scale",
        effect=Effect.PREFER,
        when={"framework": "xla", "purpose": "scale"},
        order=(Surface.SLICE,),
        sentence="the work is on the XLA path and the question is scale or economics: slices first",
    ),
    Rule(
        id="coupled",
        effect=Effect.PREFER,
        when={"tight": True, "multi_gpu": True},
        order=(Surface.RESERVED, Surface.CLUSTER, Surface.LOCAL),
        sentence="{accelerators} GPUs that must move in lockstep: reserved machines first",
    ),
    Rule(
        id="bring-up",
        effect=Effect.PREFER,
        when={"purpose": "bringup", "cache_sensitive": True},
        order=(Surface.RESERVED,),
        sentence="a bring-up that lives on its compile cache: reserved machines first, their state stays",
    ),
    Rule(
        id="repeatable",
        effect=Effect.PREFER,
        when={"purpose": "repeatable"},
        order=(Surface.RESERVED,),
        sentence="the run must look the same from day to day: reserved machines first",
    ),
    Rule(
        id="validation-batch",
        effect=Effect.PREFER,
        when={"kind": "validate", "detached": True},
        order=(Surface.SERVERLESS,),
        sentence="batch validation: serverless first, a clean container now beats a warm machine later",
    ),
    Rule(
        id="benchmark-wave",
        effect=Effect.PREFER,
        when={"purpose": "benchmark", "detached": True},
        order=(Surface.SERVERLESS,),
        sentence="a detached benchmark wave: serverless first, a clean container now beats "
        "a warm machine later",
    ),
    Rule(
        id="independent-cases",
        effect=Effect.PREFER,
        when={"cases": {"min": 2}, "tight": False},
        order=(Surface.SERVERLESS,),
        sentence="{cases} independent cases: serverless first, they run side by side",
    ),
    Rule(
        id="single-gpu-smoke",
        effect=Effect.PREFER,
        when={"purpose": "smoke", "family": ["gpu", "any"], "accelerators": {"max": 1}},
        order=(Surface.SERVERLESS,),
        sentence="a smoke run on one GPU: serverless first, a clean container now beats a warm machine later",
    ),
)
"""Which surface is tried first, in order: the first rule that applies to the work counts."""

OTHERWISE = Rule(
    id="time",
    effect=Effect.PREFER,
    sentence="no rule prefers a surface for this work: the first trustworthy result decides",
)


class Auto(Policy):
    """See docs/policies.md, which lists every rule with its sentence."""

    name = "auto"
    version = version((*PREFER, OTHERWISE))
    about = "by kind, purpose, warmth and coupling; then the least time to the first trustworthy result"

    def decide(
        self,
        workload: Workload,
        offers: Sequence[Offer | NoOffer],
        history: History,
        *,
        asked_at: int,
        limits: Limits,
    ) -> Decision:
        return choose(
            self,
            workload,
            offers,
            history,
            asked_at=asked_at,
            limits=limits,
            rules=PREFER,
            otherwise=OTHERWISE,
            order=by_time,
        )


@hookimpl
def route_policies() -> Sequence[Policy]:
    """The policy this module brings."""
    return [Auto()]
