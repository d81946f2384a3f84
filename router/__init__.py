"""Route one workload to the compute you own, and keep a receipt of what it really got.

The names below are the public interface; everything else may change. Nothing is imported
before it is used, so that `import compute_router` stays cheap.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing `typing` for it would cost a quarter of a bare interpreter's start
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Accelerator": "workload",
    "Backend": "backend",
    "Broken": "errors",
    "CacheState": "backend",
    "Check": "workload",
    "Cost": "backend",
    "Coupling": "workload",
    "CredentialsError": "errors",
    "Decision": "policy",
    "Entry": "workload",
    "Estimate": "backend",
    "Estimates": "backend",
    "ExitCode": "errors",
    "Field": "workload",
    "Framework": "workload",
    "Handle": "backend",
    "HandleLost": "errors",
    "Hardware": "backend",
    "Health": "backend",
    "HealthCheck": "backend",
    "History": "policy",
    "InputError": "errors",
    "Kind": "workload",
    "Limits": "policy",
    "Machine": "machines.contract",
    "MachineBackend": "machines.contract",
    "Needs": "workload",
    "NoOffer": "backend",
    "Offer": "backend",
    "Outcome": "policy",
    "Past": "policy",
    "PluginError": "errors",
    "Policy": "policy",
    "Power": "backend",
    "Purpose": "workload",
    "Quote": "backend",
    "Ranked": "policy",
    "Record": "records",
    "Refused": "errors",
    "Rejected": "errors",
    "Rejection": "policy",
    "Role": "workload",
    "RoleState": "backend",
    "RouteError": "errors",
    "Router": "router",
    "Source": "backend",
    "StartClass": "backend",
    "State": "backend",
    "Status": "backend",
    "Stream": "machines.contract",
    "Submission": "backend",
    "SubmitUnknown": "errors",
    "Surface": "backend",
    "Unavailable": "errors",
    "Warmth": "workload",
    "Workload": "workload",
    "hookimpl": "hookspecs",
    "load": "api",
    "open_command": "machines.local",
    "run": "api",
}

__all__ = sorted([*_HOME, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'compute_router' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(f"compute_router.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)


if TYPE_CHECKING:
    from compute_router.api import load as load
    from compute_router.api import run as run
    from compute_router.backend import Backend as Backend
    from compute_router.backend import CacheState as CacheState
    from compute_router.backend import Cost as Cost
    from compute_router.backend import Estimate as Estimate
    from compute_router.backend import Estimates as Estimates
    from compute_router.backend import Handle as Handle
    from compute_router.backend import Hardware as Hardware
    from compute_router.backend import Health as Health
    from compute_router.backend import HealthCheck as HealthCheck
    from compute_router.backend import NoOffer as NoOffer
    from compute_router.backend import Offer as Offer
    from compute_router.backend import Power as Power
    from compute_router.backend import Quote as Quote
    from compute_router.backend import RoleState as RoleState
    from compute_router.backend import Source as Source
    from compute_router.backend import StartClass as StartClass
    from compute_router.backend import State as State
    from compute_router.backend import Status as Status
    from compute_router.backend import Submission as Submission
    from compute_router.backend import Surface as Surface
    from compute_router.errors import Broken as Broken
    from compute_router.errors import CredentialsError as CredentialsError
    from compute_router.errors import ExitCode as ExitCode
    from compute_router.errors import HandleLost as HandleLost
    from compute_router.errors import InputError as InputError
    from compute_router.errors import PluginError as PluginError
    from compute_router.errors import Refused as Refused
    from compute_router.errors import Rejected as Rejected
    from compute_router.errors import RouteError as RouteError
    from compute_router.errors import SubmitUnknown as SubmitUnknown
    from compute_router.errors import Unavailable as Unavailable
    from compute_router.hookspecs import hookimpl as hookimpl
    from compute_router.machines.contract import Machine as Machine
    from compute_router.machines.contract import MachineBackend as MachineBackend
    from compute_router.machines.contract import Stream as Stream
    from compute_router.machines.local import open_command as open_command
    from compute_router.policy import Decision as Decision
    from compute_router.policy import History as History
    from compute_router.policy import Limits as Limits
    from compute_router.policy import Outcome as Outcome
    from compute_router.policy import Past as Past
    from compute_router.policy import Policy as Policy
    from compute_router.policy import Ranked as Ranked
    from compute_router.policy import Rejection as Rejection
    from compute_router.records import Record as Record
    from compute_router.router import Router as Router
    from compute_router.workload import Accelerator as Accelerator
    from compute_router.workload import Check as Check
    from compute_router.workload import Coupling as Coupling
    from compute_router.workload import Entry as Entry
    from compute_router.workload import Field as Field
    from compute_router.workload import Framework as Framework
    from compute_router.workload import Kind as Kind
    from compute_router.workload import Needs as Needs
    from compute_router.workload import Purpose as Purpose
    from compute_router.workload import Role as Role
    from compute_router.workload import Warmth as Warmth
    from compute_router.workload import Workload as Workload
