"""NVIDIA's management library by ctypes: the few calls we need, each of which may be missing or refuse."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List, Tuple

LIBRARIES = (
    "libnvidia-ml.so.1",
    "/usr/lib/wsl/lib/libnvidia-ml.so.1",
    "/run/opengl-driver/lib/libnvidia-ml.so.1",
    "/usr/local/nvidia/lib64/libnvidia-ml.so.1",
    "/home/kubernetes/bin/nvidia/lib64/libnvidia-ml.so.1",
)
"""By the loader's path first, then where WSL, NixOS, device plugins and COS keep it."""
CHOICE = "ROUTE_NVML"
"""A variable: the library's path where it lies elsewhere, or `none` to leave it alone."""
TEXT = 96
"""NVML_DEVICE_NAME_V2_BUFFER_SIZE and NVML_DEVICE_UUID_V2_BUFFER_SIZE, the longest texts asked for."""

# Each call with its parameters as nvml.h has them; a star is written by the library. Enumerations
# are `uint`. Versioned names are spelled out: the plain ones are an older layout.
CALLS = """
nvmlInit_v2
nvmlShutdown
nvmlSystemGetDriverVersion text
nvmlSystemGetCudaDriverVersion_v2 int*
nvmlDeviceGetCount_v2 uint*
nvmlDeviceGetHandleByIndex_v2 uint device*
nvmlDeviceGetUUID device text
nvmlDeviceGetName device text
nvmlDeviceGetPciInfo_v3 device pci*
nvmlDeviceGetMinorNumber device uint*
nvmlDeviceGetMemoryInfo device memory*
nvmlDeviceGetCudaComputeCapability device int* int*
nvmlDeviceGetEnforcedPowerLimit device uint*
nvmlDeviceGetMigMode device uint* uint*
nvmlDeviceGetMaxMigDeviceCount device uint*
nvmlDeviceGetMigDeviceHandleByIndex device uint device*
nvmlDeviceGetPersistenceMode device uint*
nvmlDeviceGetEccMode device uint* uint*
nvmlDeviceGetTotalEccErrors device uint uint ulong*
nvmlDeviceGetRemappedRows device uint* uint* uint* uint*
nvmlDeviceGetRetiredPagesPendingStatus device uint*
nvmlDeviceGetNvLinkState device uint uint*
nvmlDeviceGetNvLinkVersion device uint uint*
nvmlDeviceGetNvLinkRemoteDeviceType device uint uint*
nvmlDeviceGetNvLinkRemotePciInfo_v2 device uint pci*
nvmlDeviceGetTopologyCommonAncestor device device uint*
nvmlDeviceGetCurrPcieLinkGeneration device uint*
nvmlDeviceGetCurrPcieLinkWidth device uint*
nvmlDeviceGetMaxPcieLinkGeneration device uint*
nvmlDeviceGetMaxPcieLinkWidth device uint*
nvmlDeviceGetClockInfo device uint uint*
nvmlDeviceGetMaxClockInfo device uint uint*
nvmlDeviceGetCurrentClocksEventReasons device ulong*
nvmlDeviceGetCurrentClocksThrottleReasons device ulong*
nvmlDeviceGetTemperature device uint uint*
nvmlDeviceGetPowerUsage device uint*
nvmlDeviceGetUtilizationRates device utilization*
nvmlDeviceGetComputeRunningProcesses_v2 device uint* processes
nvmlDeviceGetComputeRunningProcesses device uint* processes1
nvmlDeviceGetGraphicsRunningProcesses_v2 device uint* processes
nvmlDeviceGetGraphicsRunningProcesses device uint* processes1
nvmlEventSetCreate set*
nvmlDeviceRegisterEvents device ulong set
nvmlEventSetWait_v2 set event* uint
"""
SIGNATURES = {row.split()[0]: tuple(row.split()[1:]) for row in CALLS.strip().splitlines()}

NOT_SUPPORTED, INSUFFICIENT_SIZE, TIMEOUT, MISSING, LOST, RESET = 3, 7, 10, 13, 15, 16
CLOCK_SM = 1
XID = 0x8
"""nvmlEventTypeXidCriticalError."""
REASONS = (
    (0x1, "gpu_idle"),
    (0x2, "applications_clocks_setting"),
    (0x4, "sw_power_cap"),
    (0x8, "hw_slowdown"),
    (0x10, "sync_boost"),
    (0x20, "sw_thermal_slowdown"),
    (0x40, "hw_thermal_slowdown"),
    (0x80, "hw_power_brake_slowdown"),
    (0x100, "display_clock_setting"),
)
"""Bits of nvmlClocksEventReason*, formerly nvmlClocksThrottleReason*."""


class Unseen(Exception):
    """One call told nothing; `code` is NVML's own."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


def reasons(bits: int) -> List[str]:
    """Why clocks are lowered, as words. An idle GPU is not throttled; a bit nobody named is told as such."""
    found = [word for bit, word in REASONS if bits & bit and word != "gpu_idle"]
    rest = bits & ~sum(bit for bit, _ in REASONS)
    return found + (["0x%x" % rest] if rest else [])


def layouts() -> Dict[str, Any]:
    """The ctypes type behind each word of `CALLS`."""
    import ctypes as c

    class Pci(c.Structure):
        _fields_ = [
            ("legacy", c.c_char * 16),
            ("domain", c.c_uint),
            ("bus", c.c_uint),
            ("device", c.c_uint),
            ("id", c.c_uint),
            ("subsystem", c.c_uint),
            ("bus_id", c.c_char * 32),
        ]

    class Memory(c.Structure):
        _fields_ = [("total", c.c_ulonglong), ("free", c.c_ulonglong), ("used", c.c_ulonglong)]

    class Utilization(c.Structure):
        _fields_ = [("gpu", c.c_uint), ("memory", c.c_uint)]

    class Process1(c.Structure):
        _fields_ = [("pid", c.c_uint), ("used", c.c_ulonglong)]

    class Process(c.Structure):
        _fields_ = [*Process1._fields_, ("gpu_instance", c.c_uint), ("compute_instance", c.c_uint)]

    class Event(c.Structure):
        _fields_ = [
            ("device", c.c_void_p),
            ("type", c.c_ulonglong),
            ("data", c.c_ulonglong),
            ("gpu_instance", c.c_uint),
            ("compute_instance", c.c_uint),
        ]

    return {
        "device": c.c_void_p,
        "set": c.c_void_p,
        "uint": c.c_uint,
        "int": c.c_int,
        "ulong": c.c_ulonglong,
        "pci": Pci,
        "memory": Memory,
        "utilization": Utilization,
        "processes": Process,
        "processes1": Process1,
        "event": Event,
    }


class Library:
    """The library, loaded and begun. Raises `Unseen` if there is none or it will not begin."""

    def __init__(self) -> None:
        import ctypes

        self.types = layouts()
        chosen = os.environ.get(CHOICE)
        if chosen == "none":
            raise Unseen(0, "it is not to be loaded (%s)" % CHOICE)
        tried: List[str] = []
        self._lib: Any = None
        for path in (chosen,) if chosen else LIBRARIES:
            try:
                self._lib = ctypes.CDLL(path)
                break
            except OSError as e:
                tried.append(str(e))
        if self._lib is None:
            raise Unseen(0, tried[0][:200])
        self._calls: Dict[str, Tuple[Any, Tuple[str, ...]]] = {}
        self.get("nvmlInit_v2")

    def _call(self, name: str) -> Tuple[Any, Tuple[str, ...]]:
        import ctypes as c

        known = self._calls.get(name)
        if known is None:
            try:
                made = getattr(self._lib, name)
            except AttributeError:
                raise Unseen(MISSING, "this driver's library has no %s" % name)
            kinds = SIGNATURES[name]
            types: List[Any] = []
            for kind in kinds:
                if kind == "text":
                    types += [c.c_char_p, c.c_uint]
                elif kind[-1] == "*" or kind.startswith("processes"):
                    types.append(c.POINTER(self.types[kind.rstrip("*")]))
                else:
                    types.append(self.types[kind])
            made.argtypes, made.restype = types, c.c_int
            known = self._calls[name] = (made, kinds)
        return known

    def get(self, name: str, *given: Any) -> Any:
        """What the call writes: nothing, one value, or a tuple. Raises `Unseen` with NVML's reason."""
        import ctypes as c

        made, kinds = self._call(name)
        arguments: List[Any] = []
        written: List[Any] = []
        rest: Iterator[Any] = iter(given)
        for kind in kinds:
            if kind == "text":
                room = c.create_string_buffer(TEXT)
                written.append(room)
                arguments += [room, TEXT]
            elif kind[-1] == "*":
                written.append(self.types[kind[:-1]]())
                arguments.append(c.byref(written[-1]))
            else:
                arguments.append(next(rest))
        self._good(made(*arguments))
        values = [
            item.value.decode("utf-8", "replace")
            if isinstance(item, c.Array)
            else getattr(item, "value", item)
            for item in written
        ]
        return values[0] if len(values) == 1 else tuple(values)

    def _good(self, code: int) -> None:
        if code:
            raise Unseen(code, self.reason(code))

    def reason(self, code: int) -> str:
        """NVML's own word for an error."""
        import ctypes

        try:
            told = self._lib.nvmlErrorString
        except AttributeError:
            return "NVML error %d" % code
        told.argtypes, told.restype = [ctypes.c_int], ctypes.c_char_p
        said = told(code) or b""
        return "NVML says: %s (%d)" % (said.decode("utf-8", "replace")[:80] or "nothing", code)

    def processes(self, device: Any, what: str = "Compute") -> List[int]:
        """The pids that compute on a device (or draw: `Graphics`), as far as NVML shows them."""
        import ctypes as c

        # Not _v3: drivers of 2023 wrote it with records of another size than their header said.
        for number, version in enumerate(("_v2", "")):
            name = "nvmlDeviceGet%sRunningProcesses%s" % (what, version)
            try:
                made, kinds = self._call(name)
            except Unseen:
                if number:
                    raise
                continue
            for room in (32, 256, 4096):
                rows = (self.types[kinds[-1]] * room)()
                count = c.c_uint(room)
                code = made(device, c.byref(count), rows)
                if code != INSUFFICIENT_SIZE:
                    break
            self._good(code)
            return sorted({int(rows[i].pid) for i in range(min(count.value, room))})
        return []
