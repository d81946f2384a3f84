"""What a command line says of itself: the file that holds its code, and how many ranks it starts."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

__all__ = ["Code", "code_of", "digest_of", "ranks_of"]

MOST_BYTES = 64 << 20
_PYTHON = re.compile(r"(?:python|pypy)[\d.]*(?:t|w)?")
_STARTERS = ("torchrun", "accelerate", "deepspeed", "mpirun", "mpiexec", "horovodrun", "srun", "jsrun")
_TORCHRUN = ("torch.distributed.run", "torch.distributed.launch")
_SHELL = re.compile(r"(?:ba|da|z|k|fi|mk|a)?sh")
_SCRIPT = (".py", ".sh", ".bash", ".pl", ".rb", ".jl", ".r", ".R")


class Code(NamedTuple):
    """The file that tells what a command does: its name as given, its digest, or why there is none."""

    name: str
    sha256: str | None
    python: bool
    why: str = ""


def code_of(argv: Sequence[str], cwd: Path) -> Code:
    """The first word that names a script; else the program itself where its words are all there is to
    know of it. A module named by `-m` is no file that can be told from the words alone."""
    for word in argv:
        if word.endswith(_SCRIPT) and not word.startswith("-"):
            sha256 = _hashed(cwd / word)
            if sha256:
                return Code(word, sha256, word.endswith(".py"))
    program = os.path.basename(argv[0])
    python = bool(_PYTHON.fullmatch(program))
    if "-c" in argv[1:] and (python or _SHELL.fullmatch(program)):
        # Its digest would be that of any other command given to the same interpreter.
        return Code(argv[0], None, False, "the code is in the words of the command, and no file")
    if "-m" in argv[1:] or program in _STARTERS:
        return Code(argv[0], None, False, "the words of the command name no script")
    if python:
        return Code(argv[0], None, False, "the words of the command name no script")
    found = argv[0] if "/" in argv[0] else shutil.which(argv[0])
    sha256 = _hashed(cwd / found) if found else None
    return Code(argv[0], sha256, False, "" if sha256 else "the program cannot be read")


def _hashed(path: Path) -> str | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        return digest_of(fd, MOST_BYTES)
    except OSError:
        return None
    finally:
        os.close(fd)


def digest_of(fd: int, most: int) -> str | None:
    """The sha256 of the regular file that is open as `fd`, of its whole; None if it is no such file, has
    more than `most` bytes, or changes while it is read. Raises `OSError`."""
    first = os.fstat(fd)
    if not stat.S_ISREG(first.st_mode) or first.st_size > most:
        return None
    made, read = hashlib.sha256(), 0
    # A byte more than it has is asked for: who grows is told by it, and never read on.
    while data := os.read(fd, min(1 << 20, first.st_size - read + 1)):
        read += len(data)
        if read > first.st_size:
            return None
        made.update(data)
    last = os.fstat(fd)
    same = (first.st_size, first.st_mtime_ns) == (last.st_size, last.st_mtime_ns)
    return made.hexdigest() if same and read == first.st_size else None


def ranks_of(argv: Sequence[str], above: int | None) -> tuple[str | None, int | None]:
    """What starts the processes of the command, and how many there are in all; None = not told.

    `above` is how many a launcher around it has started. A shell script may start anything.
    """
    program = os.path.basename(argv[0])
    words = list(argv)
    if program == "torchrun" or set(_TORCHRUN) & set(words[:4]):
        each, nodes = _option(words, "nproc"), _option(words, "nnodes") or "1"
        if (each or "1").isdigit() and nodes.isdigit():
            return "torchrun", int(each or 1) * int(nodes)
        return "torchrun", None
    if program in _STARTERS:
        return program, None
    if _PYTHON.fullmatch(program) or words[0].endswith(".py"):
        return "python", above or 1
    return None, above


def _option(words: Sequence[str], name: str) -> str | None:
    """The value of torchrun's option, in any of its spellings."""
    spelled = {"nproc": ("--nproc-per-node", "--nproc_per_node"), "nnodes": ("--nnodes",)}[name]
    for at, word in enumerate(words):
        option, equals, value = word.partition("=")
        if option in spelled:
            return value if equals else words[at + 1] if at + 1 < len(words) else None
        if not equals and word.endswith(_SCRIPT):
            break
    return None
