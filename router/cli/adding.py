"""`route machine add`: shows a machine's key and asks, logs in, looks what is missing, writes it down."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compute_router.cli.app import verb
from compute_router.cli.call import Cli
from compute_router.cli.machinenames import as_data, own_table, show
from compute_router.errors import InputError, Refused

if TYPE_CHECKING:
    from compute_router.backend import HealthCheck
    from compute_router.machines.entry import MachineEntry
    from compute_router.machines.pins import HostKey

__all__ = ["add"]

KNOWN = {
    "pinned": "pinned",
    "known": "the one that your own ssh knows",
    "new": "never seen before",
    "changed": "NOT the one that is pinned",
    "differs": "NOT the one that your own ssh knows",
}
MOST_HOPS = 10


@verb()
@click.argument("name")
@click.argument("address", metavar="USER@ADDRESS[:PORT]")
@click.option("--identity", "-i", metavar="FILE", help="The private key (else what ssh would try).")
@click.option("--root", metavar="DIR", help="Where all is kept there, on a disk of its own (~/.route).")
@click.option("--accelerator", metavar="NAME:COUNT", help="What it has: H200:8, cpu (else what is found).")
@click.option("--group", metavar="NAME", help="Machines that one run may be spread over.")
@click.option("--fabric", metavar="NAME", help="What joins the group: infiniband, roce, ethernet.")
@click.option("--price-per-hour", metavar="AMOUNT", help='The price of the whole machine: "31.60".')
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A word for people and rules.")
@click.option("--peer-address", metavar="ADDRESS", help="Where the others of the group reach it.")
@click.option("--interface", metavar="NAME", help="The network interface that leads to them.")
@click.option("--exclusive", is_flag=True, help="One run at a time on the whole machine.")
@click.option(
    "--transport", metavar="NAME", help="openssh for hardware keys and what else needs the real ssh."
)
@click.option("--trust-first-use", is_flag=True, help="Take a key that is new for right, without asking.")
@click.option("--no-check", is_flag=True, help="Do not log in: pin the key and write it down alone.")
@click.pass_obj
def add(
    cli: Cli,
    /,
    name: str,
    address: str,
    labels: tuple[str, ...],
    exclusive: bool,
    trust_first_use: bool,
    no_check: bool,
    **said: str | None,
) -> int:
    """Add a machine: show its key and ask, log in, look whether runs can be had, write it down.

    A login that fails keeps nothing. Called again with other options it changes those.
    """
    given: dict[str, Any] = {"address": address, **{k: v for k, v in said.items() if v is not None}}
    given |= {"exclusive": True} if exclusive else {}
    given |= {"labels": dict(_label(label) for label in labels)} if labels else {}
    if said["identity"] is not None:
        given["identity"] = _identity(said["identity"])
    there = own_table(cli, name)
    _writable(name, address)
    entry = _entry(name, {**(there or {}), **given}, cli.router.config.origins if there else {})
    twins = [n for n, t in cli.router.config.machines.items() if n != name and t.get("address") == address]
    if twins:
        cli.out.warn(f"{twins[0]} has the same address: one machine would be offered as two")
    keys, fresh = _agreed_keys(cli, name, entry, trust=trust_first_use)
    checks: tuple[HealthCheck, ...] = ()
    try:
        if not no_check:
            checks = _logged_in(cli, name, entry)
        path, changed = _written(name, given)
    except BaseException:
        if fresh:
            from compute_router.machines.pins import unpin

            unpin(name)
        raise
    from compute_router.reading.layers import shown_path

    shown = shown_path(path)
    if there is None:
        cli.out.line(f"added {name} to {shown}")
    elif changed:
        cli.out.line(f"{name} is there already; changed in {shown}: {', '.join(changed)}")
    else:
        cli.out.line(f"{name} is there already, with the same address and key")
    missing = [each for each in checks if not each.ok]
    if missing:
        things = "one thing is" if len(missing) == 1 else f"{len(missing)} things are"
        cli.out.warn(f"{things} missing on {name}: what needs it is not offered there")
    cli.out.done(
        {
            "machine": name,
            "file": str(path),
            "added": there is None,
            "changed": changed if there is not None else [],
            "keys": [{f: getattr(key, f) for f in ("hop", "type", "fingerprint", "known")} for key in keys],
            "checks": [as_data(each) for each in checks],
        }
    )
    return 0


def _label(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise InputError(f"--label {text} has no value", mend="write --label KEY=VALUE")
    return key, value


def _identity(file: str) -> str:
    path = os.path.expanduser(file)
    if not os.path.isfile(path):
        raise InputError(f"there is no file {file}", mend="name the file of a private key: --identity FILE")
    if path.endswith(".pub"):
        raise InputError(
            f"{file} is the public half of a key", mend=f"--identity {file.removesuffix('.pub')}"
        )
    return file if file.startswith("~/") else os.path.abspath(path)


def _entry(name: str, table: Mapping[str, Any], origins: Mapping[str, str]) -> MachineEntry:
    from compute_router.machines.entry import read_entries
    from compute_router.machines.hops import Address

    entry = read_entries({name: table}, origins)[name]
    Address.parse(entry.address)
    return entry


def _same_place(name: str, there: Mapping[str, Any] | None, address: str) -> None:
    if there is not None and there.get("address") != address:
        raise Refused(
            f"{name} is another machine already: {there.get('address')}",
            mend=f"give another name, or first: route machine remove {name}",
        )


def _writable(name: str, address: str) -> None:
    """Raise what will keep the machine from being written down, before anything is asked or pinned."""
    from compute_router.machines.editing import put

    put(name, lambda table: _same_place(name, table, address))


def _agreed_keys(
    cli: Cli, name: str, entry: MachineEntry, *, trust: bool
) -> tuple[tuple[HostKey, ...], bool]:
    """The keys on the way, all pinned or known, and whether the machine's own was pinned just now."""
    from compute_router.machines.pins import pin
    from compute_router.machines.pins import trust as check_trust
    from compute_router.machines.scanning import scan

    for _ in range(MOST_HOPS):
        cli.out.busy(f"asking {entry.address} for its key")
        keys = scan(name, entry)
        cli.out.calm()
        last = keys[-1]
        if last.known == "pinned":
            return keys, False
        if last.known in ("changed", "differs"):
            check_trust(last, name)
        _agree(cli, name, last, trust=trust)
        pin([last])
        if last.target:
            return keys, True
    raise Refused(f"the way to {name} has too many jumps", mend="look for a circle in ~/.ssh/config")


def _agree(cli: Cli, name: str, key: HostKey, *, trust: bool) -> None:
    """Have a person take a key for right. Raises `Refused` if not, `InputError` if nobody is there."""
    who = name if key.target else f"{key.hop}, on the way to {name},"
    told = f"{key.type} {key.fingerprint}"
    if trust:
        cli.out.note(f"{who} has the key {told}, {KNOWN[key.known]}: trusted as asked")
        return
    if cli.out.as_json or not cli.out.terminal_err or not (sys.stdin and sys.stdin.isatty()):
        raise InputError(
            f"nobody has looked at the key of {who.rstrip(',')}: {told}, {KNOWN[key.known]}",
            mend="compare it with what its owner says, then add --trust-first-use",
        )
    cli.out.note(f"{who} at {key.hop} shows this key, {KNOWN[key.known]}:", style="bold")
    cli.out.note(f"  {told}")
    kind = next((kind for kind in ("ed25519", "ecdsa", "rsa") if kind in key.type), "*")
    cli.out.note(f"Its owner sees the same with: ssh-keygen -lf /etc/ssh/ssh_host_{kind}_key.pub")
    while True:
        answer = click.prompt("Is it right? yes, no, or paste what its owner told you", err=True).strip()
        # The whole line of ssh-keygen will do as well.
        shown = [word for word in answer.split() if word.startswith("SHA256:")]
        if answer.lower() == "yes" or shown == [key.fingerprint]:
            return
        if answer.lower() == "no" or shown:
            same = "it is another one" if answer.lower() != "no" else "you said no"
            raise Refused(
                f"the key of {who.rstrip(',')} was not taken: {same}", mend="ask its owner for the right one"
            )


def _logged_in(cli: Cli, name: str, entry: MachineEntry) -> tuple[HealthCheck, ...]:
    from compute_router.machines.checking import check
    from compute_router.machines.reaching import reach

    there = reach(name, entry)
    cli.out.busy(f"logging in at {entry.address}")
    # Raises what a failing login is; nothing is judged of a machine that lets nobody in.
    there.open(("true",), deadline=20.0).close()
    cli.out.busy(f"looking at {name}")
    checks = check(there, entry)
    cli.out.calm()
    show(cli, checks)
    there.close()
    return checks


def _written(name: str, given: Mapping[str, Any]) -> tuple[Path, list[str]]:
    """Write what was `given`; the file, and the keys that are other ones now."""
    from compute_router.machines.editing import put

    changed: list[str] = []

    def change(table: Mapping[str, Any] | None) -> Mapping[str, Any]:
        _same_place(name, table, str(given["address"]))
        changed[:] = [key for key, value in given.items() if table is None or table.get(key) != value]
        return given

    return put(name, change), changed
