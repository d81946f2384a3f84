"""Proves what a recorded command's words tell of its code and its ranks, and no more than that."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from compute_router.recording.command import code_of, ranks_of


@pytest.mark.parametrize(
    "words",
    [
        ["sh", "-c", "python train.py"],
        ["/bin/bash", "-c", "exit 7"],
        ["bash", "-e", "-c", "true"],
        ["python3", "-c", "print(1)"],
        ["python3.12", "-X", "dev", "-c", "print(2)"],
    ],
)
def test_code_in_the_words_has_no_digest(tmp_path: Path, words: list[str]) -> None:
    """The interpreter's own would be equal for any two commands, and so would say that they are the same."""
    code = code_of(words, tmp_path)
    assert (code.name, code.sha256) == (words[0], None)
    assert "in the words" in code.why


def test_a_script_or_a_program_is_told_by_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_bytes(b"print(1)\n")
    (tmp_path / "tool").write_bytes(b"#!/bin/sh\n")
    digest = hashlib.sha256(b"print(1)\n").hexdigest()
    for words in (["python3", "train.py"], ["uv", "run", "train.py", "-c", "x"], ["./train.py"]):
        assert code_of(words, tmp_path).sha256 == digest, words
    assert code_of(["./tool", "-c", "x"], tmp_path).sha256 == hashlib.sha256(b"#!/bin/sh\n").hexdigest()
    assert code_of(["python3", "-m", "pkg"], tmp_path).sha256 is None


@pytest.mark.parametrize(
    ("words", "above", "told"),
    [
        (["torchrun", "--nproc-per-node=8", "train.py"], None, ("torchrun", 8)),
        (["torchrun", "--nnodes", "2", "--nproc_per_node", "4", "t.py"], None, ("torchrun", 8)),
        (["torchrun", "--nproc-per-node=gpu", "t.py"], None, ("torchrun", None)),
        (["torchrun", "--nnodes=1:4", "t.py"], None, ("torchrun", None)),
        (["torchrun", "t.py", "--nproc-per-node=8"], None, ("torchrun", 1)),
        (["python", "-m", "torch.distributed.run", "--nproc-per-node=2", "t.py"], None, ("torchrun", 2)),
        (["python", "-m", "torch.distributed.launch", "--nproc_per_node=8", "t.py"], 1, ("torchrun", 8)),
        (["python", "t.py"], 16, ("python", 16)),
        (["python", "t.py"], None, ("python", 1)),
        (["mpirun", "-n", "4", "t.py"], None, ("mpirun", None)),
        (["bash", "t.sh"], None, (None, None)),
    ],
)
def test_ranks_are_those_the_launcher_is_asked_for(
    words: list[str], above: int | None, told: tuple[str | None, int | None]
) -> None:
    assert ranks_of(words, above) == told
