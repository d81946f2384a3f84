"""What no policy does, as data: the rules that refuse an offer, in the order they are told."""

from __future__ import annotations

from compute_router.policies.conditions import Effect, Rule

__all__ = ["NEVER", "WARM"]

_ADD = 'if that would do, list it: substitutes = ["{has}"]'

WARM = "warm-claim"
"""The rule that a place may be mended of by warming it."""

NEVER: tuple[Rule, ...] = (
    Rule(
        id="pin",
        effect=Effect.REFUSE,
        enough=True,
        when={"pinned": True, "pin": "other"},
        sentence="the run is pinned to {pin_name}",
        mend="leave out --backend {pin_name}",
    ),
    Rule(
        id="hardware",
        effect=Effect.REFUSE,
        enough=True,
        when={"fits": "no"},
        sentence="it has {has}, which is neither what is asked for ({asked}) nor a listed substitute",
        mend=_ADD,
    ),
    Rule(
        id="nodes",
        effect=Effect.REFUSE,
        when={"nodes": {"min": 2}, "enough_nodes": False},
        sentence="it has {place_nodes} of the {nodes} nodes asked for",
        mend="ask for fewer nodes, or give the backend more",
    ),
    Rule(
        id="xla-on-cuda",
        effect=Effect.REFUSE,
        when={"framework": "xla", "path": "other"},
        sentence="work on the XLA path does not run on {has} there",
        mend="use a place on the XLA path, or set the framework the work is really on",
    ),
    Rule(
        id="cuda-on-xla",
        effect=Effect.REFUSE,
        when={"framework": "torch", "path": "other"},
        sentence="torch work that is not on the XLA path does not run on {has} there",
        mend='set framework = "xla" if the work is on torch_xla or JAX, or "any" if it runs on both',
    ),
    Rule(
        id="framework",
        effect=Effect.REFUSE,
        when={"framework": "any", "path": "other"},
        sentence="no framework that the work could use runs there",
        mend='set framework = "none" if the work needs none',
    ),
    Rule(
        id="powers",
        effect=Effect.REFUSE,
        when={"needs_powers": True, "lacking": True},
        sentence="the work needs what this backend cannot do: {lack}",
        mend="use a backend that can (route backends --json lists powers), or leave it out of the workload",
    ),
    Rule(
        id="fabric",
        effect=Effect.REFUSE,
        when={"across_nodes": True, "fabric": False},
        sentence="tightly coupled work over several nodes needs a fabric between them, "
        "and this {surface} place has none of its own",
        mend='use a surface with a fabric, or fit the work on one node (coupling = "single-node")',
    ),
    Rule(
        id="price-limit",
        effect=Effect.REFUSE,
        when={"price_limited": True, "price_check": "unreadable"},
        sentence="the price limit {limit} is no plain decimal",
        mend='write it as price_limit = "4.50" (USD an hour)',
    ),
    Rule(
        id="price",
        effect=Effect.REFUSE,
        when={"price_limited": True, "price_check": "over"},
        sentence="at {hourly} it is over the limit of {limit}",
        mend="raise price_limit, or list cheaper substitutes",
    ),
    Rule(
        id="price-unknown",
        effect=Effect.REFUSE,
        when={"price_limited": True, "price_check": "unknown", "surface": ["serverless", "slice"]},
        sentence="it is billed by time and has no price in USD an hour to hold against the limit of {limit}",
        mend="give the price in the backend's settings, or leave out price_limit",
    ),
    Rule(
        id="unwritable",
        effect=Effect.REFUSE,
        when={"keeps_volumes": True, "unwritable": True},
        sentence="the volume {roles} cannot be written there",
        mend="route doctor says what is wrong with {backend}",
    ),
    Rule(
        id="cold-claim",
        effect=Effect.REFUSE,
        when={"warmth": "cold", "cache": ["warm", "mixed"], "clean": False},
        sentence="the claim is a cold start, and its compile cache is not empty",
        mend="use a place that starts clean, or rename the workload: its volumes follow its name",
    ),
    Rule(
        id="cold-unknown",
        effect=Effect.REFUSE,
        when={"warmth": "cold", "cache": "unknown", "clean": False},
        sentence="the claim is a cold start, and whether its compile cache is empty cannot be told",
        mend='declare the cache, volumes = {{ compile-cache = "/cache" }}, so that its state is known',
    ),
    Rule(
        id="warm-unknown",
        effect=Effect.REFUSE,
        when={"warmth": "warm", "keeps_cache": False, "cache": {"not": "warm"}},
        sentence="the claim is a warm start, and the workload keeps no compile cache that could be warm",
        mend='declare the cache, volumes = {{ compile-cache = "/cache" }}',
    ),
    Rule(
        id=WARM,
        effect=Effect.REFUSE,
        when={"warmth": "warm", "keeps_cache": True, "cache": {"not": "warm"}},
        sentence="the claim is a warm start, and its compile cache for this key is {cache}",
        mend="seed it first: route warm {target} --backend {backend}",
    ),
    Rule(
        id="busy",
        effect=Effect.REFUSE,
        when={"may_wait": False, "busy": True},
        sentence="it is busy (queue: {queue}) and may not be waited for",
        mend="{wait_flag} allows it",
    ),
    Rule(
        id="queue",
        effect=Effect.REFUSE,
        when={"may_wait": True, "waiting": "too long"},
        sentence="its queue of {queue} is longer than the {wait} that may be waited",
        mend="{wait_flag} allows it",
    ),
)
"""In order: the first that applies is told. The later it stands, the nearer the place came."""
