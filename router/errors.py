"""Every error the router raises on purpose, and the exit codes they end in.

::

    RouteError                     one line what, one line how to mend it
     |- InputError           64    something the user wrote cannot be used
     |   |- WorkloadError          a workload file: unknown key, bad value, syntax error
     |   |- ConfigError            route.toml or config.toml
     |   |- NotFound               no such run, profile, backend, policy, kind
     |- Refused              65    the answer is no, with the reason; nothing started
     |   |- NoPlace                the policy found no offer that may be used
     |   |- PreflightFailed        something the workload needs is missing
     |   |- Conflict               the same key already names a different workload
     |- BackendError
     |   |- Rejected         65    permanent, nothing started
     |   |- Unavailable      69    transient, nothing started: the next offer may be tried
     |   |- SubmitUnknown    75    may have started: `find` before anything else
     |   |- HandleLost       75    the handle names nothing the backend knows
     |- PluginError          70    a plugin broke its contract; names plugin and distribution
     |- StoreError           73    the store cannot be read or written
     |   |- NewerStore             written by a newer version: read-only
     |- CredentialsError     77    a secret or a login is missing

`Broken` stands apart: it is raised by a `Stream` and says that the request may have been
carried out. Core turns it into `SubmitUnknown` or into the state `unknown`.
"""

from __future__ import annotations

import enum
from typing import ClassVar

__all__ = [
    "BackendError",
    "Broken",
    "ConfigError",
    "Conflict",
    "CredentialsError",
    "ExitCode",
    "HandleLost",
    "InputError",
    "NewerStore",
    "NoPlace",
    "NotFound",
    "PluginError",
    "PreflightFailed",
    "Refused",
    "Rejected",
    "RouteError",
    "StoreError",
    "SubmitUnknown",
    "Unavailable",
    "WorkloadError",
]


class ExitCode(enum.IntEnum):
    """What `route` itself exits with. `run` and `wait` pass the work's own code, 128+n for a signal."""

    OK = 0
    VERDICT = 1
    BAD_INPUT = 64
    REFUSED = 65
    UNAVAILABLE = 69
    INTERNAL = 70
    STORE = 73
    UNKNOWN = 75
    CREDENTIALS = 77
    TIMEOUT = 124
    DETACHED = 130


class RouteError(Exception):
    """Base of every error raised on purpose.

    `what` says in one line what is wrong; `mend` says in one line how to mend it, and is empty
    only where nothing can be done. `file` and `line` point at the place, lines counted from 1.
    `told` is the code that a machine gave (docs/protocol.md), where it was one that refused, `position`
    the place in line that was to be had there.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.INTERNAL
    told: str = ""
    position: int | None = None

    def __init__(
        self, what: str, *, mend: str = "", file: str | None = None, line: int | None = None
    ) -> None:
        super().__init__(what)
        self.what = what
        self.mend = mend
        self.file = file
        self.line = line

    @property
    def code(self) -> str:
        """The error's name in `--json` output, e.g. `WORKLOAD_ERROR`."""
        name = type(self).__name__
        return "".join("_" + c if c.isupper() and i else c for i, c in enumerate(name)).upper()

    @property
    def where(self) -> str:
        """`file:line`, or as much of it as is known."""
        return "" if self.file is None else self.file if self.line is None else f"{self.file}:{self.line}"

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.where else self.what


class InputError(RouteError):
    """Something the user wrote cannot be used."""

    exit_code = ExitCode.BAD_INPUT


class WorkloadError(InputError):
    """A workload file cannot be read: names the line and, for a typo, the nearest right word."""


class ConfigError(InputError):
    """A `route.toml` or `config.toml` cannot be read."""


class NotFound(InputError):
    """A name the user gave stands for nothing: a run, a profile, a backend, a policy, a kind."""


class Refused(RouteError):
    """The answer is no. Nothing was started, and the reason is the result."""

    exit_code = ExitCode.REFUSED


class NoPlace(Refused):
    """The policy found no offer that may be used for this workload."""


class PreflightFailed(Refused):
    """Something the workload needs is missing at the place it would run."""


class Conflict(Refused):
    """The same run id or key is already taken by a different workload."""


class BackendError(RouteError):
    """Raised by a backend. Which subclass says what became of the world."""


class Rejected(BackendError):
    """Permanent: this backend will never run this submission. Nothing was started."""

    exit_code = ExitCode.REFUSED


class Unavailable(BackendError):
    """Transient: the backend could not be reached or had no room. Nothing was started."""

    exit_code = ExitCode.UNAVAILABLE


class SubmitUnknown(BackendError):
    """The submission may have been carried out. Ask `find(key)` before anything else."""

    exit_code = ExitCode.UNKNOWN


class HandleLost(BackendError):
    """The handle names nothing the backend still knows. What became of the run cannot be told."""

    exit_code = ExitCode.UNKNOWN


class PluginError(RouteError):
    """A plugin raised what its contract does not allow, or could not be loaded."""

    exit_code = ExitCode.INTERNAL


class StoreError(RouteError):
    """The store cannot be read or written (full disk, no permission, damaged file)."""

    exit_code = ExitCode.STORE


class NewerStore(StoreError):
    """The store or a record in it was written by a newer version. It is left as it is."""


class CredentialsError(RouteError):
    """A secret or a login that is needed is missing. `names` are those of the secrets, where known."""

    exit_code = ExitCode.CREDENTIALS
    names: tuple[str, ...] = ()


class Broken(Exception):
    """A stream ended before its answer: the request may have been carried out."""
