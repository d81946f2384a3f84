"""Computers we can open a command on, and the backend that runs work on them."""

from __future__ import annotations

from compute_router.machines.contract import Interpreter, Machine, MachineBackend, Stream
from compute_router.machines.entry import MachineEntry

__all__ = ["Interpreter", "Machine", "MachineBackend", "MachineEntry", "Stream"]
