"""Frames are read back as they were written, however the bytes are cut; junk is `Broken`, nothing else."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute_router.errors import Broken
from compute_router.machines import framing
from compute_router.machines.framing import Decoder, Frame, Greeting, encode

heads = st.dictionaries(
    st.text(max_size=8).filter(lambda k: k != "size"), st.integers() | st.text(), max_size=4
)


@settings(max_examples=150, deadline=None)
@given(frames=st.lists(st.tuples(heads, st.binary(max_size=300)), max_size=6), data=st.data())
def test_any_cut_of_the_bytes_gives_the_same_frames(
    frames: list[tuple[dict[str, int | str], bytes]], data: st.DataObject
) -> None:
    sent = b"".join(encode(head, body) for head, body in frames)
    decoder, got = Decoder(), []
    while sent:
        size = data.draw(st.integers(1, max(1, len(sent))))
        decoder.feed(sent[:size])
        sent = sent[size:]
        while (frame := decoder.next()) is not None:
            got.append(frame)
    assert [(({k: v for k, v in f.head.items() if k != "size"}), f.body) for f in got] == frames
    assert not decoder.inside


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_junk_is_broken_or_waits_for_more(data: bytes) -> None:
    decoder = Decoder()
    decoder.feed(data)
    try:
        while (frame := decoder.next()) is not None:
            assert isinstance(frame, Frame)
    except Broken:
        pass


@pytest.mark.parametrize(
    "line",
    [
        b"[]", b"1", b"null", b"{", b"\xff", b'{"size":-1}', b'{"size":1.5}', b'{"size":true}',
        b'{"size":"1"}',
        b'{"size":99999999999}', b"[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_frame_is_broken(line: bytes) -> None:
    decoder = Decoder()
    decoder.feed(line + b"\n")
    with pytest.raises(Broken):
        decoder.next()


def test_a_line_without_end_is_broken_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "MOST_REPLY", 1000)
    decoder = Decoder()
    decoder.feed(b"x" * 1001)
    with pytest.raises(Broken, match="without an end"):
        decoder.next()


def test_what_is_too_large_is_never_sent() -> None:
    with pytest.raises(ValueError, match="larger than"):
        encode({"op": "blob"}, b"x" * (framing.MOST_PAYLOAD + 1))
    with pytest.raises(ValueError, match="larger than"):
        encode({"op": "prepare", "blobs": "x" * framing.MOST_HEADER})
    assert encode({"op": "commit"}, b"x" * (framing.MOST_PAYLOAD + 1))


@pytest.mark.parametrize(
    "banner",
    [
        b"",
        b"Welcome\n",
        b"no line end",
        b"\x00\xff\x1b]0;t\x07\n" * 50,
        b"\n0123456789abcdef0123456789abcdeX {}\n",
    ],
)
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_the_greeting_is_found_behind_any_banner(banner: bytes, step: int) -> None:
    nonce = "0123456789abcdef0123456789abcdef"
    frame = encode({"re": "status"}, b"abc")
    sent = banner + f"\n{nonce} want\n".encode() + f"\n{nonce} {json.dumps({'ok': True})}\n".encode() + frame
    greeting, decoder = Greeting(nonce), Decoder()
    found: list[str] = []
    for start in range(0, len(sent), step):
        if len(found) == 2:
            decoder.feed(sent[start : start + step])
            continue
        text = greeting.feed(sent[start : start + step])
        while text is not None:
            found.append(text)
            text = greeting.feed(b"") if len(found) < 2 else None
        if len(found) == 2:
            decoder.feed(greeting.rest)
    assert found == ["want", '{"ok": true}']
    assert decoder.next() == Frame({"re": "status", "size": 3}, b"abc")
    assert not decoder.inside


def test_an_endless_banner_ends_in_broken(monkeypatch: pytest.MonkeyPatch, seed: random.Random) -> None:
    monkeypatch.setattr(framing, "MOST_BANNER", 5000)
    greeting = Greeting("0" * 32)
    for _ in range(40):
        greeting.feed(seed.randbytes(100))
    with pytest.raises(Broken, match="no answer within"):
        greeting.feed(seed.randbytes(2000))
