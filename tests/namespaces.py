"""Computers as network namespaces of this one: each with an address of its own, on one bridge."""

from __future__ import annotations

import itertools
import os
import subprocess

import pytest

__all__ = ["Network"]

_ONCE = itertools.count()


class Network:
    """`names[i]` is a namespace whose `eth0` has the address `addresses[i]`; this computer reaches all."""

    def __init__(self, count: int) -> None:
        if os.getuid() != 0:
            pytest.skip("network namespaces need root")
        number = os.getpid() % 60_000
        # A namespace that was removed lets go of its cable some time later: no name is used twice.
        self.tag = f"rt{number:x}{next(_ONCE):x}"
        self.bridge = f"{self.tag}br"
        self.names = [f"{self.tag}-{index}" for index in range(count)]
        network = f"10.{100 + number % 100}.{number // 256 % 256}"
        self.addresses = [f"{network}.{10 + index}" for index in range(count)]
        try:
            self._ip("link", "add", self.bridge, "type", "bridge")
            self._ip("addr", "add", f"{network}.1/24", "dev", self.bridge)
            self._ip("link", "set", self.bridge, "up")
            for index, name in enumerate(self.names):
                self._ip("netns", "add", name)
                peer = ("peer", "name", "eth0", "netns", name)
                self._ip("link", "add", self._cable(index), "type", "veth", *peer)
                self._ip("link", "set", self._cable(index), "master", self.bridge, "up")
                self._ip("-n", name, "addr", "add", f"{self.addresses[index]}/24", "dev", "eth0")
                self._ip("-n", name, "link", "set", "eth0", "up")
                self._ip("-n", name, "link", "set", "lo", "up")
        except (subprocess.CalledProcessError, FileNotFoundError) as e:
            self.close()
            pytest.skip(f"no network namespaces here: {e}")

    def _cable(self, index: int) -> str:
        return f"{self.tag}v{index}"

    def _ip(self, *words: str, check: bool = True) -> None:
        subprocess.run(["ip", *words], check=check, capture_output=True, timeout=20)

    def cut(self, index: int) -> None:
        """Nothing reaches this computer any more, and nothing comes from it; nobody is told."""
        self._ip("link", "set", self._cable(index), "down")

    def heal(self, index: int) -> None:
        self._ip("link", "set", self._cable(index), "up")

    def close(self) -> None:
        for name in self.names:
            self._ip("netns", "del", name, check=False)
        self._ip("link", "del", self.bridge, check=False)
