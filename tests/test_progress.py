"""Proves that whoever looks on is told of a transfer's beginning, course and end, and nobody else pays."""

from __future__ import annotations

import threading

import pytest

from compute_router import progress
from compute_router.progress import Step, transfer, watched


def test_beginning_course_and_end_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    seen: list[Step] = []
    with watched(seen.append), transfer("send", "h1", 100, done=10) as add:
        add(40)
        add(50)
    assert seen == [
        Step("send", "h1", 10, 100),
        Step("send", "h1", 50, 100),
        Step("send", "h1", 100, 100),
        Step("send", "h1", 100, 100, True),
    ]


def test_a_transfer_that_breaks_off_is_over_and_says_how_far_it_came() -> None:
    seen: list[Step] = []

    def move() -> None:
        with watched(seen.append), transfer("fetch", "h1", 100) as add:
            add(30)
            raise ConnectionError

    with pytest.raises(ConnectionError):
        move()
    assert seen[-1] == Step("fetch", "h1", 30, 100, True)


def test_many_small_pieces_are_not_told_one_by_one() -> None:
    seen: list[Step] = []
    with watched(seen.append), transfer("send", "h1", 100_000) as add:
        for _ in range(100_000):
            add(1)
    assert len(seen) < 1000
    assert seen[-1] == Step("send", "h1", 100_000, 100_000, True)


def test_nobody_is_told_outside_the_block_and_in_other_threads() -> None:
    seen: list[Step] = []

    def move() -> None:
        with transfer("send", "h1", 1) as add:
            add(1)

    with watched(seen.append):
        other = threading.Thread(target=move)
        other.start()
        other.join()
    move()
    with watched(seen.append), transfer("send", "h1", 0) as add:
        add(0)
    assert seen == []
