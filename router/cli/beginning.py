"""`route init`: a starter workload and a route.toml, with comments."""

from __future__ import annotations

from pathlib import Path

import click

from compute_router.cli.app import verb
from compute_router.cli.call import Cli
from compute_router.errors import InputError, Refused

__all__ = ["init"]

WORKLOAD = '''\
"""A starter workload: it counts, and reports every step. Try it: route run {name}"""
# /// script
# requires-python = ">=3.11"
# dependencies = []                 # packages the work needs; uv makes an environment of them
# [tool.route]
# kind = "train"                    # train | bench | validate: the lane; lanes are never compared
# purpose = "smoke"                 # benchmark | smoke | bringup | repeatable | scale | cold-start
# accelerator = "cpu"               # cpu, any, or exactly what it needs: "H200:8", "v6e-8"
# # substitutes = ["H100:8"]        # what else would do; none listed = exact or refuse
# # coupling = "single-node"        # independent | single-node | multi-node
# # warmth = "warm"                 # any | warm | cold: the start state the claim needs
# timeout = "10m"                   # of one attempt
# outputs = ["results/"]            # brought back when it is over
# # secrets = ["HF_TOKEN"]          # names only; values come from the environment
# [tool.route.metrics]
# primary = "tok_s_global"
# discard_steps = 1                 # step 0 holds the compiling and never counts
# ///

import os
import pathlib
import time

try:
    from route_report import step  # put there by route; appends to $ROUTE_METRICS
except ImportError:

    def step(n, **facts):  # so that the script runs without route as well
        print(n, facts)


for n in range(5):
    time.sleep(0.05)
    step(n, tokens=1000, loss=4.0 / (n + 1))
    print(f"step {{n}}")

results = pathlib.Path("results")
results.mkdir(exist_ok=True)
(results / "summary.txt").write_text(f"done in run {{os.environ.get('ROUTE_RUN_ID', '(none)')}}\\n")
'''

CONFIG = """\
# Settings of route for this folder and those below it. Flags win over the workload's own table,
# that wins over this file, and this over ~/.config/route/config.toml.
# `route plan WORKLOAD --values` shows every value and where it comes from.

# policy = "auto"                   # who decides: auto, cheapest, fastest, pinned, rules

# timeout = "1h"                    # a default for every workload here; any key of [tool.route]

# [profiles.quick]                  # route run --profile quick
# purpose = "smoke"
# timeout = "5m"

# [backends.local]                  # settings of one backend; `route backends` lists them

# [plugins]
# disable = []                      # names of plugins not to load; route plugins lists them
"""


@verb()
@click.argument("folder", default=".", type=click.Path(file_okay=False))
@click.option("--name", default="workload.py", metavar="FILE", help="Name of the script (workload.py).")
@click.option("--force", is_flag=True, help="Overwrite what is there.")
@click.pass_obj
def init(cli: Cli, folder: str, name: str, force: bool) -> int:
    """Write a starter workload and a route.toml, with comments. Overwrites nothing without --force."""
    if Path(name).name != name or not name.endswith(".py"):
        raise InputError(f"{name!r} is no name of a script", mend="give --name a file name that ends in .py")
    top = Path(folder)
    files = {top / name: WORKLOAD.format(name=name), top / "route.toml": CONFIG}
    there = [path for path in files if path.exists() or path.is_symlink()]
    if there and not force:
        raise Refused(
            f"{' and '.join(map(str, there))} {'is' if len(there) == 1 else 'are'} there already",
            mend="give another folder or --name, or --force to overwrite",
        )
    try:
        top.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.write_text(text, encoding="utf-8")
    except OSError as e:
        raise InputError(f"{e.filename} cannot be written: {e.strerror}", mend="give another folder") from e
    for path in files:
        cli.out.line(f"wrote {path}")
    cli.out.note(f"try it: route run {top / name}")
    cli.out.done({"wrote": [str(path) for path in files]})
    return 0
