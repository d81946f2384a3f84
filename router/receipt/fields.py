"""The rows of the receipt's schema: one line for each field, read by `schema.py`.

Columns: path | type | origin | class | block | sources | unit | meaning, then ` @path` where the
measured block has it under another one, then ` ~n` of a field that came with step n of the schema.
Sources by first letter: observed, workload, requested, derived, quoted, estimated.
"""

from __future__ import annotations

__all__ = ["FIELDS", "ITEMS"]

FIELDS = """
schema              | text | der | K | receipt |  |  | `route.receipt/1`; a later major number is not read
receipt_id          | hex  | der | I | receipt |  |  | sha256 of the canonical bytes without `receipt_id` and `signatures`
rules               | int  | der | I | receipt |  |  | version of the rules that made derived and observed fields
run_id              | text | der | I | receipt |  |  | ULID, 26 characters, lower case
attempt             | int  | der | I | receipt |  |  | from 1
idempotency_key     | text | der | I | receipt |  |  | the key of the run: its id unless the user gave one
created_us          | int  | der | I | receipt |  | us | when this receipt was made, epoch
kind                | text | decl | K | receipt |  |  | the lane; kinds are never compared with each other
purpose             | enum:purpose | decl | K | receipt |  |  | why the run was made
measured            | json | obs | I | receipt |  |  | the supervisor's block as it was written, or null
measured_sha256     | hex  | obs | I | receipt |  |  | sha256 of the canonical bytes of `measured`, or null
context             | json | der | I | receipt |  |  | everything below
comparability       | json | der | I | receipt |  |  | `key`: sha256 of `fields`; `fields`: path to value for every field of class K
evidence_class      | enum:evidence | der | I | receipt |  |  | what this run may be used for; only `claim` gives a verdict
evidence_reasons    | json | der | I | receipt |  |  | `{code, class, sentence}` of every rule that lowers the class
chain               | json | der | I | receipt |  |  | `store_id`, `prev` (receipt id before this one, or null), `seq` from 1; or null
signatures          | json | der | I | receipt |  |  | detached signatures; not part of `receipt_id`

study.id            | text | decl | I | context | r |  | name of the designed comparison
study.sha256        | hex  | decl | K | context | r |  | digest of its plan
study.index         | int  | decl | I | context | r |  | which of its runs this is, from 1 in the planned order
study.n_planned     | int  | decl | I | context | r |  | how many runs it has
study.arm           | text | decl | I | context | r |  | the arm this run belongs to
study.arms          | texts | decl | I | context | r |  | every arm, the base first ~2
study.block         | int  | decl | I | context | r |  | the block this run belongs to, from 1
study.order_seed    | int  | decl | I | context | r |  | seed of the order of runs
study.vary          | texts | decl | I | context | r |  | fields that differ between its arms on purpose ~2
study.margin        | decimal | decl | I | context | r |  | practical margin of its verdict: 0.02 is 2 % ~2

workload.name       | text | decl | I | context | r |  | name of the workload
workload.digest     | hex  | decl | I | context | rd |  | digest of the workload record
workload.entry_sha256 | hex | obs | K | context | od |  | the script that was started
workload.imported_sha256 | hex | obs | K | measured | o |  | the files it imports
workload.tree_sha256 | hex | obs | W | context | od |  | everything that shipped
workload.args_redacted | texts | decl | W | context | r |  | its arguments, secrets removed
workload.family     | text | decl | K | context | rd |  | family of models or operations; the name if none is declared
workload.preset     | text | decl | K | context | rd |  | which of the family; `shapes` or a digest of the arguments if none is declared
workload.launcher   | text | obs | I | measured | o |  | what started the processes @launch.launcher

code.commit         | hex  | obs | V | context | o |  | git commit of the tree
code.branch         | text | obs | I | context | o |  | git branch
code.dirty          | bool | obs | V | context | o |  | whether the tree differs from the commit
code.diff_sha256    | hex  | obs | V | context | o |  | digest of what differs; needed if dirty
code.message        | text | obs | I | context | o |  | first line of the commit's message

data.id             | text | decl | K | context | rw |  | data set
data.manifest_sha256 | hex | obs | K | measured | ow |  | digest of its files
data.tokens_per_step_global | int | decl | K | context | rw | tokens | tokens of the global batch in one step
data.seq_len        | int  | decl | K | context | rw | tokens | tokens in one sequence
data.global_batch   | int  | decl | K | context | rw | sequences | sequences of all ranks in one step
data.micro_batch    | int  | decl | W | context | rw | sequences | sequences of one rank in one pass
data.grad_accum     | int  | decl | W | context | rw |  | passes in one step

numerics.dtype      | text | decl | K | context | rw |  | numbers it computes in
numerics.fp8_recipe | text | decl | K | context | rw |  | scaling recipe where dtype is an 8-bit float
numerics.seed       | signed | decl | W | context | rw |  | seed; replicas must differ in it
numerics.deterministic | bool | decl | K | context | rw |  | whether equal seeds give equal bytes

started_by.mode     | enum:started | obs | K | context | o |  | `routed`, or `recorded`: another launcher started it and chose its place
started_by.launcher | text | obs | W | context | o |  | `route`, or the launcher whose variables the command had
started_by.ids      | map  | obs | I | context | o |  | which start of that launcher, and which of its nodes and ranks

surface             | enum:surface | obs | K | context | ord |  | trait of the place; of a recorded run from its launcher, or as its user says
backend             | text | obs | W | context | o |  | registered name of the backend

hw.requested.class  | text | decl | W | context | r |  | accelerator asked for
hw.requested.count  | int  | decl | W | context | r |  | how many on each node
hw.requested.mem_gib | int | decl | W | context | r | GiB | memory asked for
hw.requested.topology | text | decl | W | context | r |  | wiring asked for
hw.observed.sku     | text | obs | K | measured | o |  | model, form and memory of the accelerator; the model of the CPU where none was asked for
hw.observed.count   | int  | obs | K | measured | o |  | accelerators the work could see on each node; CPUs where none was asked for
hw.observed.uuid    | texts | obs | W | measured | o |  | ids of the accelerators
hw.observed.mem_bytes | int | obs | W | measured | o | bytes | memory of one accelerator; of the machine where none was asked for
hw.observed.cc      | text | obs | W | measured | o |  | compute capability
hw.observed.form_factor | text | obs | I | measured | o |  | SXM, PCIE or NVL; part of the model too
hw.observed.driver  | text | obs | W | measured | o |  | driver version
hw.observed.cuda_driver | text | obs | W | measured | o |  | newest CUDA the driver runs
hw.observed.topology | text | obs | K | measured | o |  | how the accelerators are wired
hw.observed.power_limit_w | int | obs | K | measured | o | W | power limit
hw.observed.clock_sm_mhz | json | obs | W | measured | o | MHz | `p50` and `min` over the steady window
hw.observed.throttle_reasons | texts | obs | W | measured | o |  | why clocks were lowered, if they were
hw.observed.mig     | text | obs | K | measured | o |  | whether and how the accelerator is partitioned
hw.observed.ecc     | text | obs | W | measured | o |  | error correction mode
hw.observed.temp_c_max | int | obs | W | measured | o | C | highest temperature
hw.observed.cotenants | int | obs | W | measured | o |  | processes of others on the same accelerators; > 0 refuses throughput
hw.observed.errors  | texts | obs | W | measured | o |  | what went wrong with the accelerators while the work ran
hw.observed.cpu_milli | int | obs | W | measured | o |  | processor time the work may use, in thousandths of a processor
hw.observed.governor | text | obs | W | measured | o |  | what sets the clocks of the CPU
hw.match            | enum:match | der | W | context | d |  | observed against requested; refused unless `exact` or `declared`

coupling            | enum:coupling | decl | K | context | r |  | how tightly the parts move together
distributed.mode    | text | decl | K | context | rwd |  | single, ddp, fsdp2, tensor_parallel, ...
distributed.world   | int  | obs | K | measured | o |  | ranks on all nodes @launch.ranks
distributed.first_step_us | numbers | obs | I | measured | ow | us | from the work's first instruction to the end of each rank's first step, by rank
distributed.nodes   | int  | decl | K | context | r |  | nodes
distributed.dp      | int  | decl | K | context | rwd |  | data parallel
distributed.tp      | int  | decl | K | context | rwd |  | tensor parallel
distributed.pp      | int  | decl | K | context | rwd |  | pipeline parallel
distributed.cp      | int  | decl | K | context | rwd |  | context parallel
distributed.ep      | int  | decl | K | context | rwd |  | expert parallel

compile.posture     | enum:posture | obs | K | measured | ow |  | what was compiled
compile.warmup      | bool | obs | W | measured | ow |  | whether a warm-up was run
compile.warmup_reason | text | obs | I | measured | ow |  | why not
compile.programs    | int  | obs | I | measured | ow |  | unique programs
compile.recompiles  | int  | obs | W | measured | ow |  | recompiles inside the steady window; > 0 refuses a steady claim
compile.cache_hits  | int  | obs | I | measured | ow |  | programs taken from a cache

kernel.requested    | text | decl | W | context | rw |  | kernel asked for
kernel.observed     | text | obs | K | measured | ow |  | kernel really dispatched
kernel.probe        | texts | obs | I | measured | ow |  | results of import probes @env.probes

startup.requested   | enum:warmth | decl | W | context | r |  | the start state the claim needs
startup.seeding     | bool | decl | I | context | r |  | made to fill a cache (`route warm`): never evidence
startup.class       | enum:startup | obs | K | measured | o |  | the state in which the start found its place
cache               | list:cache | obs | K | measured | ow |  | caches: kind, state before and verdict after make the key
storage             | list:storage | obs | K | measured | o |  | where roles lay: role to class makes the key
volumes             | list:volumes | obs | W | measured | o |  | what became of volumes; uncommitted outputs refuse

env.allow           | map  | obs | K | measured | o |  | variables that move numerics or speed, by an allow-list of names
env.fp              | map  | obs | W | measured | o |  | fingerprints of the other variables
env.stack           | map  | obs | K | measured | o |  | versions: python, torch, cuda, nccl, triton, ...
image.digest        | text | obs | W | measured | o |  | digest of the container image
lock_sha256         | hex  | obs | W | measured | o |  | digest of the locked environment; its text is kept as `route-lock.txt` @env.lock_sha256
env.source          | text | obs | I | measured | o |  | where the Python came from: built or reused by its lock, current, path, machine
env.dists_sha256    | hex  | obs | W | measured | o |  | digest of all distributions installed beside it
env.differs         | texts | obs | W | measured | o |  | where what was loaded is not what is installed

timing.submit_us    | int  | obs | I | context | o | us | client: from the intent to the backend's answer
timing.queue_us     | int  | obs | I | measured | o | us | waiting for the place
timing.image_us     | int  | obs | I | context | o | us | client: making the image or environment ready, or finding that it is
timing.boot_us      | int  | obs | I | measured | o | us | booting a container or machine
timing.stage_in_us  | int  | obs | I | measured | o | us | bringing files in
timing.bootstrap_us | int  | obs | I | measured | o | us | from the work's first instruction until its Python (of rank 0) is up
timing.import_us    | int  | obs | I | measured | ow | us | importing frameworks (on rank 0), each moment once
timing.compile_us   | int  | obs | I | measured | ow | us | compiling
timing.first_step_us | int | obs | I | measured | ow | us | the first step as the work timed it; else from the end of imports to its end
timing.warmup_us    | int  | obs | I | measured | ow | us | steps discarded, the first one included
timing.steady_us    | int  | obs | I | measured | ow | us | steps counted
timing.eval_us      | int  | obs | I | measured | ow | us | evaluation
timing.checkpoint_us | int | obs | I | measured | ow | us | checkpoints
timing.data_wait_us | int  | obs | I | measured | ow | us | waiting for data
timing.idle_us      | int  | obs | I | measured | ow | us | what of the run no other part accounts for
timing.collect_us   | int  | obs | I | measured | o | us | listing and measuring after the end
timing.run_us       | int  | obs | I | measured | o | us | from the work's first instruction to its end
timing.cpu_us       | int  | obs | I | measured | o | us | CPU time of the work

steady.warmup_steps_discarded | int | obs | K | measured | ow | steps | first steps that never count
steady.first_step   | int  | obs | I | measured | ow |  | number of the first step that counts
steady.last_step    | int  | obs | I | measured | ow |  | number of the last one
steady.n_steps      | int  | obs | W | measured | ow | steps | steps that count; compared within 10 %
steady.step_us      | json | obs | I | measured | ow | us | quantiles of step times
steady.inside       | json | obs | W | measured | ow | steps | steps that count with an evaluation or a checkpoint inside, by name
steady.series_ref   | text | obs | I | measured | ow |  | artifact that holds the series

metrics.primary     | text | decl | K | context | r |  | the metric this run is judged by
metrics.tok_s_global | decimal | der | I | measured | ow | tokens/s | tokens of the global batch over step time, sum over sum, steady window
metrics.values      | list:metrics | der | K | measured | ow |  | what was reported; name, unit and definition of the primary one make the key

mem.peak_alloc_bytes | numbers | obs | I | measured | ow | bytes | most memory allocated, by rank
mem.peak_reserved   | numbers | obs | I | measured | ow | bytes | most memory reserved, by rank
mem.host_rss_peak   | int  | obs | I | measured | o | bytes | largest resident set of the work
mem.host_rss_scope  | text | obs | I | measured | o |  | whose that is: `largest_process`, not the sum of all

checks.finite       | bool | der | I | context | d |  | no reported value was NaN or infinite
checks.exit_zero    | bool | der | I | context | d |  | it ended by itself with exit code 0
checks.steps_present | bool | der | I | context | d |  | enough steps count
checks.no_oom       | bool | der | I | context | d |  | nothing was killed for want of memory
checks.end_marker   | bool | der | I | context | d |  | it reached its end
checks.observed_hw  | bool | der | I | context | d |  | the hardware is what was asked for
checks.kernel_truth | bool | der | I | context | d |  | the kernel is what was asked for
checks.eval_off     | bool | der | I | context | d |  | no evaluation inside the window
checks.own          | list:checks | der | I | context | d |  | every check of the kind, with its reason
checks.success      | bool | der | I | context | d |  | whether it did what a run of its kind is for

outcome.state       | enum:state | obs | I | context | o |  | only `succeeded` enters statistics; the others are counted
outcome.stage       | enum:stage | obs | I | context | od |  | how far it came
outcome.reason_code | text | obs | I | context | o |  | stable slug
outcome.detail      | text | obs | I | context | o |  | one sentence
outcome.exit_code   | int  | obs | I | context | o |  | of the work
outcome.signal      | int  | obs | I | context | o |  | that ended the work
outcome.started_us  | int  | obs | I | context | o | us | epoch
outcome.ended_us    | int  | obs | I | context | o | us | epoch
outcome.log_tail_sha256 | hex | obs | I | measured | o |  | digest of the log's last 64 KiB

lifecycle           | list:lifecycle | obs | I | measured | o |  | what happened, in order
clock.offset_us     | signed | obs | W | context | o | us | machine's clock minus client's; over 1 s warns
clock.rtt_us        | int  | obs | I | context | o | us | round trip it was measured over
clock.stepped_us    | signed | obs | W | measured | o | us | by how much the machine's wall clock moved against its monotonic one during the attempt; 0 if by less than 0.1 s
clock.boot_id       | text | obs | I | measured | o |  | boot of the machine

cost.currency       | text | decl | I | context | qeo |  | of the amounts
cost.rate_source    | text | decl | I | context | qeo |  | who quoted or billed, and when
cost.estimate       | decimal | decl | I | context | qe | currency | rate times duration
cost.actual         | decimal | obs | I | context | oe | currency | what the backend says it cost

caveats             | texts | decl | I | context | rd |  | printed in compare
frontier.passing    | text | decl | I | context | r |  | first rung that passes
frontier.failing    | text | decl | I | context | r |  | next rung that fails
nodes               | list:nodes | obs | I | context | o |  | of a run on several machines: each by its rank, with what it measured; node 0's block is `measured` ~3
artifacts           | list:artifacts | obs | I | measured | o |  | what the run left, by digest
promotion.status    | text | der | I | context | d |  | verdict of a validation
promotion.criteria  | list:checks | der | I | context | d |  | what it was judged by
promotion.ready     | bool | der | I | context | d |  | whether it may be promoted

decision.policy     | text | der | I | context | o |  | the policy that chose the place
decision.version    | text | der | I | context | o |  | its version
decision.sentence   | text | der | I | context | o |  | the deciding sentence
decision.sha256     | hex  | der | I | context | d |  | digest of the whole decision
decision.rejections | list:rejections | der | I | context | o |  | places not used, and why
decision.tries      | list:tries | obs | I | context | o |  | places that were tried and did not start it
offer.id            | text | obs | I | context | o |  | the place within its backend
offer.start_class   | enum:startup | obs | I | context | e |  | the start state the backend promised
offer.quote         | json | obs | I | context | q |  | the price frozen at the start
plugins             | list:plugins | obs | I | context | o |  | the plugins that were used
client.version      | text | obs | I | context | o |  | version of the router
client.python       | text | obs | I | context | o |  | Python of the client
client.os           | text | obs | I | context | o |  | system of the client
client.adopted      | bool | obs | I | context | o |  | another client submitted the run; this one found it at its place ~3
redactions          | list:redactions | der | I | context | d |  | what was removed from this receipt
"""  # noqa: E501

ITEMS: dict[str, dict[str, str]] = {
    "cache": {
        "kind": "open:cache_kind",
        "state": "enum:cache_state",
        "verdict": "enum:cache_verdict",
        "key_sha256": "hex",
        "bytes_start": "int",
        "bytes_end": "int",
        "entries_start": "int",
        "entries_end": "int",
        "hits": "int",
        "misses": "int",
        "seconds": "decimal",
        "seed_source": "enum:seed_source",
    },
    "storage": {
        "role": "text",
        "class": "open:storage_class",
        "mount": "text",
        "fs": "text",
        "device": "text",
        "family": "text",
        "backing": "text",
        "told": "text",
        "bytes_read": "int",
        "bytes_written": "int",
        "bytes_scope": "text",
        "counter": "text",
        "free_bytes_start": "int",
        "free_bytes_min": "int",
        "free_bytes_end": "int",
    },
    "volumes": {
        "name": "text",
        "role": "text",
        "event": "texts",
        "manifest_before": "hex",
        "manifest_after": "hex",
        "committed": "bool",
    },
    "metrics": {
        "name": "text",
        "unit": "text",
        "higher_is_better": "bool",
        "value": "decimal",
        "definition_id": "text",
        "n": "int",
        "quantiles": "json",
    },
    "checks": {"name": "text", "ok": "bool", "why": "text"},
    "lifecycle": {"seq": "int", "t_us": "int", "mono_us": "int", "event": "text", "actor": "text"},
    "artifacts": {"path": "text", "bytes": "int", "sha256": "hex", "media": "text", "role": "text"},
    "rejections": {"backend": "text", "offer_id": "text", "rule": "text", "sentence": "text", "mend": "text"},
    "tries": {
        "backend": "text",
        "offer_id": "text",
        "attempt": "int",
        "code": "text",
        "what": "text",
        "at_us": "int",
    },
    "plugins": {
        "thing": "text",
        "name": "text",
        "plugin": "text",
        "distribution": "text",
        "version": "text",
        "digest": "hex",
    },
    "nodes": {"rank": "int", "machine": "text", "measured_sha256": "hex", "measured": "json"},
    "redactions": {"rule": "text", "field": "text", "count": "int"},
}
