"""Computers we can open a command on, and the backend that runs work on them."""

from __future__ import annotations

from compute_router.machines.contract import Machine, MachineBackend, Stream

__all__ = ["Machine", "MachineBackend", "Stream"]
