"""Proves that two connections which bring the same file at the same moment spoil nothing of each other's."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compute_router.supervisor import shards
from compute_router.supervisor.arriving import Arriving, blob_path

DATA = b"weights" * 40_000
DIGEST = hashlib.sha256(DATA).hexdigest()
HEAD = {"sha256": DIGEST, "offset": 0}


@pytest.fixture
def root(tmp_path: Path) -> str:
    for name in ("stage", "blobs"):
        (tmp_path / name).mkdir()
    return str(tmp_path)


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let something happen just before this process calls `module.name` for the next time."""

    def once(module: Any, name: str, act: Callable[[], object]) -> None:
        real = getattr(module, name)

        def call(*args: Any, **named: Any) -> Any:
            monkeypatch.setattr(module, name, real)
            act()
            return real(*args, **named)

        monkeypatch.setattr(module, name, call)

    return once


def want(arriving: Arriving) -> list[list[Any]]:
    return arriving.want({"blobs": [[DIGEST, len(DATA)]]})


def live(root: str) -> bytes:
    return Path(blob_path(root, DIGEST)).read_bytes()


def test_a_part_that_became_live_after_it_was_opened_is_not_written_to(
    root: str, before: Callable[..., None]
) -> None:
    first, second = Arriving(root, "1" * 32), Arriving(root, "2" * 32)
    first.blob({**HEAD, "last": True}, DATA)
    before(fcntl, "flock", first.settle)
    second.blob({**HEAD, "last": False}, DATA[:1000])
    assert live(root) == DATA, "it was open as a part and has been a blob since"
    second.blob({"sha256": DIGEST, "offset": 1000, "last": True}, DATA[1000:])
    second.settle()
    assert live(root) == DATA
    assert os.listdir(os.path.join(root, "stage")) == []


def test_a_part_that_became_live_is_not_gone_on_with(root: str, before: Callable[..., None]) -> None:
    first, second = Arriving(root, "1" * 32), Arriving(root, "2" * 32)
    first.blob({**HEAD, "last": True}, DATA)
    before(fcntl, "flock", first.settle)
    assert want(second) == [[DIGEST, 0]], "it looked before it was there, and begins a part of its own"
    second.blob({**HEAD, "last": True}, DATA)
    second.settle()
    assert live(root) == DATA


def test_a_part_that_is_gone_when_it_would_be_copied_is_no_failure(
    root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Arriving(root, "1" * 32), Arriving(root, "2" * 32)
    first.blob({**HEAD, "last": True}, DATA)
    real = fcntl.flock

    def flock(fd: int, how: int) -> None:
        try:
            real(fd, how)
        except OSError:
            first.settle()
            raise

    monkeypatch.setattr(fcntl, "flock", flock)
    assert want(second) == [[DIGEST, 0]]
    assert live(root) == DATA


SMALL = {hashlib.sha256(b"%d" % n).hexdigest(): b"%d" % n for n in range(40)}


def small(root: str, nonce: str) -> Arriving:
    """A connection that has been sent many small files, which stand in a part of its own."""
    arriving = Arriving(root, nonce)
    arriving.want({"blobs": [[digest, len(data)] for digest, data in SMALL.items()]})
    for digest, data in SMALL.items():
        arriving.blob({"sha256": digest, "offset": 0, "last": True}, data)
    return arriving


def test_a_pack_that_became_live_after_its_part_was_opened_is_read_and_left(
    root: str, before: Callable[..., None]
) -> None:
    first, second = small(root, "1" * 32), Arriving(root, "2" * 32)

    def settled() -> None:
        first.settle()
        more = b"of the next part"
        first.packs.add(hashlib.sha256(more).hexdigest(), more)

    before(fcntl, "flock", settled)
    asked = [[digest, len(data)] for digest, data in SMALL.items()]
    assert second.want({"blobs": asked}) == [], "it was all there to be copied"
    first.settle()
    second.settle()
    third = Arriving(root, "3" * 32)
    assert third.want({"blobs": asked}) == []
    assert {digest: third.read(digest) for digest in SMALL} == SMALL
    for arriving in (first, second, third):
        arriving.close()
    assert os.listdir(os.path.join(root, "stage")) == []


def test_nobody_takes_over_a_part_before_its_writer_has_locked_it(
    root: str, before: Callable[..., None]
) -> None:
    others = Arriving(root, "2" * 32)
    asked = {"blobs": [[digest, len(data)] for digest, data in SMALL.items()]}
    before(fcntl, "flock", lambda: others.want(asked))
    first = small(root, "1" * 32)
    first.settle()
    assert {digest: first.read(digest) for digest in SMALL} == SMALL


def test_what_a_disk_failed_to_take_is_wanted_again(root: str, before: Callable[..., None]) -> None:
    """Of a sync that failed nothing is kept: the next one would succeed, whatever was written."""
    first = small(root, "1" * 32)
    first.blob({**HEAD, "last": True}, DATA)
    asked = {"blobs": [[digest, len(data)] for digest, data in (*SMALL.items(), (DIGEST, DATA))]}
    assert first.want(asked) == []

    def fails() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    laid: list[Any] = []
    before(os, "fsync", fails)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        first.settle(lambda: laid.extend(first.read(digest) for digest in SMALL))
    assert laid == [*SMALL.values()], "it was laid out while the disk was waited for"
    assert os.listdir(os.path.join(root, "stage")) == []
    assert not os.path.exists(os.path.join(root, "packs"))
    assert first.want(asked) == [[digest, 0] for digest in (*SMALL, DIGEST)]
    for digest, data in (*SMALL.items(), (DIGEST, DATA)):
        first.blob({"sha256": digest, "offset": 0, "last": True}, data)
    first.settle()
    assert Arriving(root, "2" * 32).want(asked) == []
    assert live(root) == DATA


def test_what_a_failed_commit_left_unsettled_is_settled_with_what_comes_after_it(root: str) -> None:
    first = small(root, "1" * 32)

    def fails() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        first.settle(fails)
    assert not os.path.exists(os.path.join(root, "packs")), "nothing is live"
    more = b"sent after that"
    first.packs.add(hashlib.sha256(more).hexdigest(), more)
    first.settle()
    second = Arriving(root, "2" * 32)
    wanted = {**SMALL, hashlib.sha256(more).hexdigest(): more}
    assert {digest: second.read(digest) for digest in wanted} == wanted


def test_two_volumes_that_take_one_shard_at_once_do_not_share_its_file(
    root: str, tmp_path: Path, before: Callable[..., None]
) -> None:
    arriving = Arriving(root, "1" * 32)
    arriving.want({"shards": [[DIGEST, len(DATA)]]})
    arriving.blob({**HEAD, "last": True}, DATA)
    arriving.settle()

    def place(role: str, name: str) -> Path:
        entry = {"role": role, "path": "f", "sha256": DIGEST, "bytes": len(DATA)}
        shards.place(root, {"volumes": {role: name}, "stage": [entry]})
        return tmp_path / "volumes" / role / name / "f"

    made: list[Path] = []
    before(os, "link", lambda: made.append(place("data", "one")))
    made.append(place("home", "two"))
    made[1].write_bytes(b"written by the work of one volume")
    assert made[0].read_bytes() == DATA


def test_a_root_that_is_gone_does_not_come_back(root: str, tmp_path: Path) -> None:
    first = small(root, "1" * 32)
    shutil.rmtree(tmp_path)
    first.close()
    assert not tmp_path.exists()


def test_many_connections_bring_the_same_file(root: str) -> None:
    """Whoever settles has it live; every other one, too, and nothing stays behind."""
    failures: list[BaseException] = []
    start = threading.Barrier(8)

    def bring(n: int) -> None:
        try:
            for turn in range(40):
                start.wait()
                arriving = Arriving(root, f"{n:016x}{turn:016x}")
                asked: list[list[Any]] = want(arriving) if (n + turn) % 2 else [[DIGEST, 0]]
                for _, offset in asked:
                    for at in range(offset, len(DATA) + 1, 100_000):
                        last = at + 100_000 >= len(DATA)
                        piece = {"sha256": DIGEST, "offset": at, "last": last}
                        arriving.blob(piece, DATA[at : at + 100_000])
                arriving.settle()
                assert live(root) == DATA
                arriving.close()
                if start.wait() == 0:
                    assert os.listdir(os.path.join(root, "stage")) == []
                    os.unlink(blob_path(root, DIGEST))
                start.wait()
        except BaseException as e:
            failures.append(e)
            start.abort()

    threads = [threading.Thread(target=bring, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [e for e in failures if not isinstance(e, threading.BrokenBarrierError)] == []
