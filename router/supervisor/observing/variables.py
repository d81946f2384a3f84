"""The variables of the work: what moves numerics or speed by its value, the others as fingerprints."""

from __future__ import annotations

import fnmatch
import os

from .. import files, work

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, Iterable, Tuple

ALLOWED = (
    *("NCCL_*", "TORCH*", "CUDA_*", "CUBLAS_*", "CUDNN_*", "XLA_*", "JAX_*", "TRITON_*", "OMP_*", "GOMP_*"),
    *("KMP_*", "PYTORCH_*", "PJRT_*", "TPU_*", "LIBTPU_*", "MKL_*", "OPENBLAS_*", "NVTE_*", "NVSHMEM_*"),
    *("FLASH_ATTENTION_*", "HSA_*", "HIP_*", "ROCM_*", "LD_LIBRARY_PATH", "LD_PRELOAD", "MALLOC_*"),
    *("PYTHONHASHSEED", "PYTHONOPTIMIZE", "UCX_*", "GLOO_*"),
    # Not TF_*: Terraform's variables begin so too, its tokens among them.
    *("TF_AUTOTUNE_*", "TF_CPP_*", "TF_CUD*", "TF_DETERMINISTIC_*", "TF_DISABLE_*", "TF_ENABLE_*"),
    *("TF_FORCE_*", "TF_FP16_*", "TF_GPU_*", "TF_NUM_*", "TF_USE_*", "TF_XLA_*"),
)
"""The one list of variables whose values stand in receipts."""
# Where a cache lies or a trace is written: the state of caches is observed, their place is no input.
_WHERE = ("TORCH_TRACE", "TORCH_LOGS_OUT", "TORCH_HOME", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
PLACES = frozenset([*(name for name, _ in work.CACHES), *_WHERE])
# Other at each login, without a bearing on the work.
_IDLE = """
_ PWD OLDPWD SHLVL SSH_CLIENT SSH_CONNECTION SSH_TTY SSH_AUTH_SOCK TERM TERM_PROGRAM COLUMNS LINES
WINDOWID DISPLAY XDG_SESSION_ID XDG_RUNTIME_DIR DBUS_SESSION_BUS_ADDRESS TMUX TMUX_PANE STY INVOCATION_ID
JOURNAL_STREAM PYTEST_CURRENT_TEST PYTHONPATH HOSTNAME MASTER_PORT
"""
IDLE = frozenset(_IDLE.split())
MOST = 500
MOST_VALUE = 2000
KEY = "fingerprint.key"


def look(
    env: Dict[str, str], *, secrets: Iterable[str], hidden: Iterable[Tuple[str, str]], root: str
) -> Dict[str, Dict[str, str]]:
    """`allow` and `fp` of the variables `env`.

    `hidden` are pairs of a path and the word that stands for it, since it is another for each run or user.
    A secret's name stands in neither.
    """
    hidden = sorted(((p, w) for p, w in hidden if len(p) > 1), key=lambda pair: -len(pair[0]))
    left_out = {*secrets, *IDLE}
    allow: Dict[str, str] = {}
    others: Dict[str, str] = {}
    for name, value in sorted(env.items()):
        if name in left_out or name.startswith("ROUTE_") or not name.isascii() or len(name) > 100:
            continue
        for path, word in hidden:
            value = value.replace(path, word)
        if name == "CUDA_VISIBLE_DEVICES":
            allow[name] = _devices(value)
        elif name not in PLACES and _allowed(name) and _shown(value) and len(allow) < MOST:
            allow[name] = value
        elif len(others) < MOST:
            others[name] = value
    return {"allow": allow, "fp": _fingerprints(others, root)}


def _allowed(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in ALLOWED)


def _shown(value: str) -> bool:
    """Whether a value may be shown: short text, and no address, which may hold a password or a signature."""
    return len(value) <= MOST_VALUE and value.isprintable() and "://" not in value


def _devices(value: str) -> str:
    """How many devices are visible; which of several alike is no input."""
    found = [word for word in value.split(",") if word.strip()]
    return "none" if not found or found[0].strip().startswith("-") else "%d visible" % len(found)


def _fingerprints(values: Dict[str, str], root: str) -> Dict[str, str]:
    """name -> HMAC-SHA256 under the key of this root, 16 hex digits: equal ones show, none can be guessed."""
    if not values:
        return {}
    import hashlib
    import hmac

    key = _key(root)
    return {
        name: hmac.new(
            key, ("%s=%s" % (name, value)).encode("utf-8", "surrogateescape"), hashlib.sha256
        ).hexdigest()[:16]
        for name, value in values.items()
    }


def _key(root: str) -> bytes:
    """The key of this root: made once, readable by its owner only."""
    path = os.path.join(root, KEY)
    found = files.read(path)
    if found is None or len(found) != 32:
        if found is not None:
            os.unlink(path)
        files.create_once(path, os.urandom(32))
        found = files.read(path)
        if found is None or len(found) != 32:
            raise OSError(0, "the key cannot be kept", path)
    return found
