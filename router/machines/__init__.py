"""Computers we can open a command on, and the backend that runs work on them."""

from __future__ import annotations

from compute_router.machines.contract import Interpreter, Machine, MachineBackend, Stream

__all__ = ["Interpreter", "Machine", "MachineBackend", "Stream"]
