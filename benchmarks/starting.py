"""How long `route` takes to start, beside bare Python and a minimal click program, in interleaved runs."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from measuring import ROUTE, interleaved, machine, process, table

CLICK = """
import click
@click.group()
def main(): pass
@main.command()
def ps(): "List."
main()
"""
CLICK_SQLITE = """
import click, sqlite3, sys
@click.group()
def main(): pass
@main.command()
def ps():
    c = sqlite3.connect(sys.argv.pop())
    for row in c.execute("SELECT * FROM runs ORDER BY created_us DESC LIMIT 50"):
        click.echo(" ".join(str(cell) for cell in row[:5]))
main(sys.argv[1:2])
"""


def fill(home: Path, runs: int) -> None:
    """Put rows of final runs into the index of a fresh store: `ps` reads nothing else."""
    from compute_router.rows import Row
    from compute_router.store import Store

    def row(number: int) -> Row:
        return Row(
            id=f"01{number:024d}",
            created_us=number,
            updated_us=number,
            name=f"name{number % 1000}",
            kind="train",
            purpose="smoke",
            backend="local",
            surface="local",
            state="succeeded",
            attempt=1,
            exit_code=0,
            policy="auto",
            accelerator="H200:8",
            key="k" * 26,
            receipt_id="ab" * 32,
            collected=True,
            ended_us=number,
        )

    store = Store(home)
    store.writable()
    store.index._rows = lambda: map(row, range(runs))  # type: ignore[method-assign]
    store.index.rebuild()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--runs", type=int, default=20, help="counted rounds")
    options.add_argument("--store", type=int, default=100_000, help="runs in the store that `ps` lists")
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="route-starting-") as folder:
        at = Path(folder)
        home = at / "home"
        home.mkdir()
        fill(home, given.store)
        script, listing = at / "minimal.py", at / "listing.py"
        script.write_text(CLICK)
        listing.write_text(CLICK_SQLITE)
        env = {"ROUTE_HOME": str(home), "XDG_CONFIG_HOME": str(at / "config")}
        python = sys.executable
        index = os.path.realpath(home / "index.sqlite")
        commands = {
            "python -c pass": [python, "-c", "pass"],
            "python -I -S -c pass": [python, "-I", "-S", "-c", "pass"],
            "minimal click --help": [python, str(script), "--help"],
            "minimal click + sqlite3": [python, str(listing), "ps", index],
            "route --version": [*ROUTE, "--version"],
            "route --help": [*ROUTE, "--help"],
            "route ps": [*ROUTE, "ps"],
        }
        things = {name: process(argv, cwd=at, env=env) for name, argv in commands.items()}
        print(machine())
        table(
            f"Starting, whole process, {given.runs} interleaved rounds; {given.store:,} runs in the store",
            interleaved(things, runs=given.runs, warm_up=2),
            floor="python -c pass",
            goals={
                "route --version": ("python -c pass", 1.3),
                "route --help": ("minimal click --help", 1.3),
                "route ps": ("minimal click + sqlite3", 1.3),
            },
        )


if __name__ == "__main__":
    main()
