"""Network namespaces as machines of a test: each with its own address, cut off by real packet filters."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

__all__ = ["Network", "need_namespaces"]


def need_namespaces() -> None:
    """Skips the test where namespaces cannot be made."""
    if os.getuid() != 0:
        pytest.skip("only root makes network namespaces")
    for program in ("ip", "iptables"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")


def run(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, check=check, capture_output=True, text=True, timeout=20)


class Network:
    """`count` namespaces on one bridge; the test itself stands on the bridge, at `.1`.

    `addresses[i]` is that of the namespace `names[i]`. Names and addresses follow from the process,
    so that tests side by side do not meet.
    """

    def __init__(self, count: int) -> None:
        need_namespaces()
        number = os.getpid() % 16_000
        net = f"10.{192 + number // 250}.{number % 250}"
        self.bridge = f"rt{number}"
        self.names = [f"rt{number}n{index}" for index in range(count)]
        self.addresses = [f"{net}.{index + 2}" for index in range(count)]
        self.gateway = f"{net}.1"
        self.close()
        made = run("ip", "link", "add", self.bridge, "type", "bridge", check=False)
        if made.returncode:
            pytest.skip(f"no bridge can be made here: {made.stderr.strip()}")
        try:
            run("ip", "addr", "add", f"{net}.1/24", "dev", self.bridge)
            run("ip", "link", "set", self.bridge, "up")
            for index, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
                outer, inner = f"{self.bridge}v{index}", "eth0"
                run("ip", "netns", "add", name)
                run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", name)
                run("ip", "link", "set", outer, "master", self.bridge, "up")
                run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", inner)
                run("ip", "-n", name, "link", "set", inner, "up")
                run("ip", "-n", name, "link", "set", "lo", "up")
        except BaseException:
            self.close()
            raise

    def drop(self, index: int, *, into: bool = True, out: bool = True) -> None:
        """Lose every packet that goes to (`into`) or comes from (`out`) a namespace, in silence."""
        for chain, wanted in (("INPUT", into), ("OUTPUT", out)):
            if wanted:
                self._filter(index, "-I", chain)

    def heal(self, index: int) -> None:
        for chain in ("INPUT", "OUTPUT"):
            while not self._filter(index, "-D", chain, check=False):
                pass

    def _filter(self, index: int, what: str, chain: str, check: bool = True) -> int:
        words = ["ip", "netns", "exec", self.names[index], "iptables", "-w", what, chain, "-j", "DROP"]
        return run(*words, check=check).returncode

    def close(self) -> None:
        for index, name in enumerate(self.names):
            run("ip", "netns", "del", name, check=False)
            run("ip", "link", "del", f"{self.bridge}v{index}", check=False)
        run("ip", "link", "del", self.bridge, check=False)
