"""What is installed beside an interpreter: read from the names of folders, nothing imported.

Only the version of an interpreter itself is asked for by starting it, once for each binary.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import sys

from .. import files, wire
from . import apart

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional, Tuple

    Json = Dict[str, Any]

_NAMES = """
torch torchvision torchaudio torchao torchtitan torch_xla torch_tpu triton pytorch_triton
pytorch_triton_rocm jax jaxlib jax_cuda12_plugin jax_cuda12_pjrt jax_cuda13_plugin jax_cuda13_pjrt
libtpu libtpu_nightly flax optax tensorflow keras numpy scipy cupy_cuda12x cupy_cuda13x
flash_attn flash_attn_3 flash_attn_4 transformer_engine transformer_engine_torch
transformer_engine_cu12 transformer_engine_cu13 xformers apex deepspeed megatron_core vllm sglang
bitsandbytes liger_kernel cut_cross_entropy grouped_gemm deep_gemm deep_ep mamba_ssm causal_conv1d
fla_core quack_kernels kernels nvidia_cutlass_dsl nvidia_cutlass tilelang flashinfer_python
tensorrt tensorrt_llm onnxruntime onnxruntime_gpu lightning pytorch_lightning accelerate
transformers peft trl diffusers tokenizers datasets safetensors
nvidia_cuda_runtime nvidia_cuda_nvrtc nvidia_cublas nvidia_cudnn nvidia_cudnn_frontend nvidia_nccl
nvidia_cusparselt nvidia_nvshmem nvidia_nvjitlink intel_extension_for_pytorch mkl
"""
MATTER = frozenset(_NAMES.split())
"""Distributions whose version moves numerics or speed, as `_normal` writes them."""
_CUDA = re.compile(r"(nvidia_.*)_cu\d+$")
_VERSION_LINE = re.compile(r"^(cuda|hip|xpu|git_version)\b[^=]*=\s*['\"]([^'\"]{1,100})['\"]", re.MULTILINE)
MOST = 20_000


def _normal(name: str) -> str:
    name = re.sub(r"[-_.]+", "_", name).lower()
    found = _CUDA.match(name)
    return found.group(1) if found and found.group(1) in MATTER else name


def version(python: str, root: str) -> Optional[str]:
    """The full version of an interpreter, `3.11.7`; None if it does not tell. Kept below `root` by what
    the file is, so that it is started once."""
    real = os.path.realpath(python)
    if real == os.path.realpath(sys.executable or ""):
        return "%d.%d.%d" % sys.version_info[:3]
    try:
        at = os.stat(real)
    except OSError:
        return None
    identity = "%s %d %d %d %d" % (real, at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns)
    name = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    kept = os.path.join(root, "interpreters", name + ".json")
    known = files.hint_json(kept).get("version")
    if isinstance(known, str):
        return known
    code = "import sys; print('%d.%d.%d' % sys.version_info[:3])"
    try:
        ended, said = apart.output([real, "-I", "-S", "-c", code], 5.0)
    except (OSError, apart.Failed):
        return None
    if ended:
        return None
    found = said.decode("ascii", "replace").strip()
    if not re.match(r"^\d+\.\d+\.\d+$", found):
        return None
    try:
        os.makedirs(os.path.dirname(kept), 0o700, exist_ok=True)
        files.write_hint(kept, wire.dumps({"version": found, "path": real}))
    except OSError:
        pass
    return found


def folders(python: str, minor: str, env: Dict[str, str]) -> List[str]:
    """Where this interpreter looks for distributions, in order: PYTHONPATH, the environment, the user's own,
    what it was made from, and what `.pth` files add. `minor` is `3.11`."""
    prefix = os.path.dirname(os.path.dirname(os.path.abspath(python)))
    settings = _settings(os.path.join(prefix, "pyvenv.cfg"))
    found = [p for p in env.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(p)]
    sites: List[str] = []
    shared = settings is None or settings.get("include-system-site-packages", "").lower() == "true"
    # As site.py has it: the environment comes before what the user has, and that before the system's.
    bases = [prefix] if settings is not None else []
    if shared and not env.get("PYTHONNOUSERSITE"):
        home = env.get("PYTHONUSERBASE") or (env.get("HOME") and os.path.join(env["HOME"], ".local"))
        bases += [home] if home else []
    if shared:
        bases.append(os.path.dirname(os.path.dirname(os.path.realpath(python))))
    for base in bases:
        for lib in ("lib", "lib64"):
            sites.append(os.path.join(base, lib, "python" + minor, "site-packages"))
        if base == "/usr":
            # Debian's own; what pip installs goes below /usr/local.
            sites.append("/usr/local/lib/python%s/dist-packages" % minor)
            sites.append("/usr/lib/python3/dist-packages")
    for site in sites:
        found.append(site)
        found += _added(site)
    seen: Dict[str, str] = {}
    for folder in found:
        seen.setdefault(os.path.realpath(folder), folder)
    return list(seen.values())


def _text(path: str, most: int = 1 << 20) -> str:
    """The first bytes of a file; links are followed, and what is no file is not waited for."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is no file", path)
        return os.read(fd, most).decode("utf-8", "replace")
    finally:
        os.close(fd)


def _settings(path: str) -> Optional[Dict[str, str]]:
    """What pyvenv.cfg says; None where there is none."""
    try:
        text = _text(path)
    except OSError:
        return None
    pairs = (line.partition("=") for line in text.splitlines())
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _added(site: str) -> List[str]:
    """The folders that `.pth` files of a site-packages folder add."""
    found: List[str] = []
    try:
        names = sorted(name for name in os.listdir(site) if name.endswith(".pth"))
    except OSError:
        return found
    for name in names[:200]:
        try:
            text = _text(os.path.join(site, name))
        except OSError:
            continue
        for line in text.splitlines():
            line = line.strip()
            if line and not line.startswith(("#", "import ", "import\t")):
                folder = os.path.join(site, line)
                if os.path.isdir(folder):
                    found.append(folder)
    return found


def distributions(places: List[str]) -> Dict[str, Tuple[str, str]]:
    """Every distribution there: its name to its version and the folder it was found in; the first counts."""
    found: Dict[str, Tuple[str, str]] = {}
    for folder in places:
        try:
            names = os.listdir(folder)
        except OSError:
            continue
        here: Dict[str, List[str]] = {}
        for name in names:
            if name.endswith(".dist-info"):
                distribution, _, version = name[: -len(".dist-info")].partition("-")
            elif name.endswith(".egg-info"):
                distribution, _, version = name[: -len(".egg-info")].partition("-")
                version = re.sub(r"-py\d.*$", "", version)
            else:
                continue
            if distribution and len(name) < 300:
                # Two of one name are what a broken upgrade leaves: both are said.
                here.setdefault(_normal(distribution), []).append(version)
        for distribution, versions in here.items():
            if len(found) < MOST:
                found.setdefault(distribution, (" | ".join(sorted(versions)), folder))
    return found


def torch_build(folder: str) -> Dict[str, str]:
    """What torch/version.py says, read as text: `cuda` or `hip`, and the `torch_git` commit."""
    try:
        text = _text(os.path.join(folder, "torch", "version.py"))
    except OSError:
        return {}
    found = dict(_VERSION_LINE.findall(text))
    if "git_version" in found:
        found["torch_git"] = found.pop("git_version")
    return found


def look(python: str, root: str, env: Dict[str, str]) -> Json:
    """`stack`: what matters and is installed for `python`; `dists_sha256` and `dists`: all of it."""
    full = version(python, root)
    if full is None:
        return {"why": "%s did not tell its version" % python[:200]}
    minor = ".".join(full.split(".")[:2])
    found = distributions(folders(python, minor, env))
    stack = {name: v for name, (v, _) in found.items() if name in MATTER and v}
    if "torch" in found:
        stack.update(torch_build(found["torch"][1]))
    stack["python"] = full
    listed = "\n".join("%s %s" % (name, v) for name, (v, _) in sorted(found.items()))
    digest = hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest()
    return {"stack": stack, "dists": len(found), "dists_sha256": digest}


def interpreter(argv: List[str], cwd: str, env: Dict[str, str]) -> Optional[str]:
    """The Python that a command line starts: its first word, or what the first line of that file names.
    None if that is no Python."""
    program = resolved(argv[0] if argv else "", cwd, env)
    if program is None:
        return None
    if _is_python(program):
        return program
    try:
        first = _text(program, 512).split("\n", 1)[0]
    except OSError:
        return None
    if not first.startswith("#!"):
        return None
    words = first[2:].split()
    if words and os.path.basename(words[0]) == "env":
        words = [word for word in words[1:] if not word.startswith("-")]
    named = resolved(words[0], cwd, env) if words else None
    return named if named is not None and _is_python(named) else None


def _is_python(path: str) -> bool:
    return re.match(r"^python(3(\.\d+)?)?$", os.path.basename(path)) is not None


def resolved(program: str, cwd: str, env: Dict[str, str]) -> Optional[str]:
    """The path a program's name stands for, as a shell would look; None if nothing on PATH is it."""
    if not program:
        return None
    if "/" in program:
        return os.path.normpath(os.path.join(cwd, program))
    for folder in env.get("PATH", os.defpath).split(os.pathsep):
        place = os.path.join(cwd, folder or ".", program)
        if os.path.isfile(place) and os.access(place, os.X_OK):
            return place
    return None
