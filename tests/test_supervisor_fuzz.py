"""Proves that nothing anybody sends or writes ends in a traceback or a hang: frames, hellos, metrics."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from supervisor_driver import BUNDLE, DIGEST, Place, shell, spec

from compute_router.supervisor import manifest, names, wire
from compute_router.supervisor import spec as specs
from compute_router.supervisor.boot import BOOT
from compute_router.supervisor.observing import metrics

SEED = int(os.environ.get("ROUTE_SEED", "31337"))
OPS = ["prepare", "blob", "commit", "start", "status", "follow", "stop", "log", "manifest", "fetch"]
OPS += ["collected", "cancel", "cleanup", "probe", "list", "gc", "keep", "kept", "input", "window"]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.close()


def some(rng: random.Random, known: list[str], depth: int = 0) -> Any:
    """A value of any JSON type: right, nearly right, or absurd."""
    pick = rng.randrange(14 if depth < 3 else 11)
    if pick < 3:
        return rng.choice(known)
    if pick == 3:
        return rng.choice([0, 1, -1, 2**31, 2**53, 2**63, -(2**64), rng.randrange(1 << 20)])
    if pick == 4:
        return rng.choice([None, True, False])
    if pick == 5:
        return "".join(rng.choice("ab/.\0\n\"'$;é\U0001f600\ud800") for _ in range(rng.randrange(12)))
    if pick == 6:
        return rng.choice(
            ["..", "../..", "/etc/passwd", "", ".", "x" * 5000, "0" * 26, "f" * 64, "outputs/x"]
        )
    if pick < 11:
        return rng.choice([10**30, "NaN", [], {}, [[]], [["f" * 64, 1]], [["outputs/x", 0]], [known[0]]])
    if pick < 13:
        return [some(rng, known, depth + 1) for _ in range(rng.randrange(4))]
    return {str(some(rng, known, depth + 1)): some(rng, known, depth + 1) for _ in range(rng.randrange(4))}


FIELDS = ["run_id", "run_ids", "attempt", "wait_us", "spec_sha256", "blobs", "sha256", "offset", "last"]
FIELDS += ["limit", "files", "receipt_id", "keys", "before_us", "keep_us", "by", "about"]


def test_ten_thousand_requests(place: Place) -> None:
    """Every one is answered within a second, none with a fault of ours, and the server stays whole."""
    rng = random.Random(SEED)
    print(f"seed {SEED}")
    link = place.link()
    ended = place.submit(link, shell("echo x > $ROUTE_OUTPUTS/x"))
    link.start(ended)
    link.follow(ended)
    link.ask("manifest", run_id=ended)
    bare = place.submit(link, shell("true", leases=["one"]))
    known = [ended, bare, "0" * 26]
    faults: dict[str, int] = {}
    slowest, answered = 0.0, 0
    for number in range(10_000):
        op = rng.choice([*OPS, "nonsense"])
        fields = {name: some(rng, known) for name in rng.sample(FIELDS, rng.randrange(6))}
        if rng.random() < 0.6:
            fields["run_id"] = rng.choice(known)
        fields.pop("size", None)
        if op in ("start", "gc"):
            # These two do what they are asked: a start would run, a removal would remove.
            fields["run_id"] = ended
            fields["dry_run"] = True
        if op in ("cancel", "cleanup"):
            fields["run_id"] = rng.choice([ended, "0" * 26, 7])
        body = rng.randbytes(rng.randrange(1, 200)) if rng.random() < 0.2 else b""
        began = time.monotonic()
        link.send(op, body, **fields)
        if op in ("blob", "stop", "keep", "input", "window"):
            continue
        answered += 1
        while True:
            head, _ = link.receive()
            if head.get("beat") or ("status" in head and head["re"] == "follow" and "end" not in head):
                if head.get("beat") or head["status"]["state"] == "committed":
                    link.send("stop")
                continue
            if head["re"] == "follow" and head.get("log"):
                continue
            if head["re"] == "fetch" and "end" not in head and "ok" not in head:
                continue
            break
        slowest = max(slowest, time.monotonic() - began)
        if head.get("ok") is False:
            code = head["error"]["code"]
            faults[code] = faults.get(code, 0) + 1
            assert code != "INTERNAL", (number, op, fields, head)
            assert "Traceback" not in head["error"]["what"]
    print(answered, "answered, slowest", slowest, faults)
    assert slowest < 5
    assert link.status(ended)["state"] == "succeeded"
    assert link.status(bare)["state"] == "committed"
    link.close()
    assert link.process.returncode == 0


def test_bytes_that_are_no_frames(place: Place) -> None:
    """Whatever arrives instead of a frame ends the connection by an answer, without a word on stderr."""
    rng = random.Random(SEED)
    with place.link():
        pass
    hello = (
        json.dumps({"route": 1, "nonce": "e" * 32, "root": str(place.root), "digest": DIGEST}).encode()
        + b"\n"
    )
    tails = [
        b"", b"\n\n\n", b"{", b"{}\n", b"[]\n", b'{"op":1}\n', b"\xff\xfe\n", b'{"op":"list"',
        b"\0" * 100 + b"\n",
        b'{"op":"list","size":-1}\n', b'{"op":"list","size":1e3}\n', b'{"op":"list","size":"9"}\n',
        b'{"op":"list","size":99999999}\n', b'{"op":"blob","size":10}\nabc', b"[" * 100_000 + b"\n",
        b'{"op":"status","run_ids":[' + b"9" * 100_000 + b"]}\n", b"x" * 1_100_000,
        b'{"op":"list","a":NaN}\n',
        *(rng.randbytes(rng.randrange(1, 400)) for _ in range(25)),
    ]  # fmt: skip
    for tail in tails:
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", BOOT], input=hello + tail, capture_output=True, timeout=20
        )
        assert (done.returncode, done.stderr) == (0, b""), (tail[:80], done.stderr)
        assert time.monotonic() - began < 10
        lines = done.stdout.split(b"\n")[2:]
        assert all(json.loads(line) for line in lines if line.strip()), tail[:80]


def test_a_thousand_hellos(tmp_path: Path) -> None:
    """In process, as the start of one costs more than it shows: BOOT ends cleanly on any first line."""
    rng = random.Random(SEED)
    base = {"route": 1, "nonce": "e" * 32, "root": str(tmp_path / "r"), "digest": DIGEST}
    known = [str(v) for v in base.values()]
    program = (
        "import os, sys, json\n"
        "boot = sys.argv[1]\n"
        "for line in open(sys.argv[2], 'rb').read().split(b'\\n--\\n'):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        r, w = os.pipe(); os.write(w, line[:60000]); os.close(w); os.dup2(r, 0)\n"
        "        out = os.open(os.devnull, os.O_WRONLY); os.dup2(out, 1)\n"
        "        try: exec(compile(boot, 'boot', 'exec'), {})\n"
        "        except SystemExit as e: os._exit(e.code if isinstance(e.code, int) else 0)\n"
        "        except BaseException as e: os.write(2, repr((e, line[:200])).encode()); os._exit(99)\n"
        "        os._exit(0)\n"
        "    code = os.waitpid(pid, 0)[1] >> 8\n"
        "    if code not in (0, 64): sys.exit(str((code, line[:200])))\n"
    )
    cases = []
    for _ in range(1000):
        hello = {**base, **{k: some(rng, known) for k in rng.sample(list(base), rng.randrange(3))}}
        # Any root that is not ours to fill is kept out of the way.
        hello["root"] = rng.choice(
            [str(tmp_path / "r"), "relative", "", 7, None, "a\0b", "/proc/nope", "~nobody-here/x"]
        )
        line = json.dumps(hello).encode() + b"\n"
        if rng.random() < 0.3:
            line += rng.choice([b'{"size": 5}\nabcde', b'{"size": -1}\n', b"junk\n", b'{"size": 99}\nshort'])
        if rng.random() < 0.2:
            cut = rng.randrange(len(line))
            line = line[:cut] + rng.randbytes(3) + line[cut + 3 :]
        cases.append(line)
    (tmp_path / "cases").write_bytes(b"\n--\n".join(cases))
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, BOOT, str(tmp_path / "cases")],
        capture_output=True, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b""), done.stderr[-500:]
    assert len(BUNDLE) < 1 << 20


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=800, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(sorted(spec(["x"]))), anything, max_size=4))
def test_any_specification_is_read_or_refused(changes: dict[str, Any]) -> None:
    made = {**spec(["true"]), **changes}
    try:
        found = specs.check(json.dumps(made).encode(), made["run_id"])
    except wire.Fault as told:
        found = {"argv": told.code == "BAD_SPEC"}
    assert found["argv"]


@settings(max_examples=1500, deadline=None)
@given(st.text(max_size=80))
def test_any_path_stays_below(path: str) -> None:
    try:
        parts = names.parts(path)
    except wire.Fault:
        return
    assert os.path.normpath("/base/" + "/".join(parts)) == "/" + "/".join(["base", *parts])
    assert ".." not in parts


@settings(max_examples=2000, deadline=None)
@given(st.binary(max_size=300) | anything.map(lambda v: json.dumps(v).encode()))
def test_any_metrics_line_is_taken_or_passed_by(line: bytes) -> None:
    summary = metrics.Summary(1)
    summary.add(line)
    summary.add(b'{"step": 1, "tokens": 5, "mono_us": 10}')
    summary.add(line)
    canonical_check({"notes": summary.notes, "values": summary.values, "rate": summary.tok_s()})


def canonical_check(value: Any) -> None:
    from compute_router.records import canonical

    canonical(value)


GARBAGE = r"""
import json, os, time
path = os.environ["ROUTE_METRICS"]
now = time.monotonic_ns() // 1000
with open(path, "ab") as f:
    f.write(b"not json\n\xff\xfe\n\n\x00\x00\n[1,2]\n\"text\"\n7\n{}\n")
    for i in range(6):
        line = {"step": i, "tokens": 1000, "mono_us": now + 100 * i, "loss": 2.0 - i / 10}
        f.write(json.dumps(line).encode() + b"\n")
        f.write(b'{"step": %d, "tokens": ' % i + b"9" * 70000 + b"}\n")
    f.write(b'{"step": 6, "loss": NaN, "mono_us": %d, "tokens": 1000}\n' % (now + 600))
    f.write(b'{"event": "cache", "kind": "inductor", "hits": 3, "misses": 1e400}\n')
    f.write(b'{"event": "kernel", "requested": "fa4", "observed": "triton", "t_us": 5}\n')
    f.write(b'{"a": ' * 5000 + b"\n")
    f.write(b'{"x": "\\ud800", "k\\u00e9y": 1, "event": "odd"}\n')
    f.write(b"y" * 3000000)
    f.write(b'\n{"event": "verdict", "status": "accept", "criteria": [["close", true]], "ready": true}\n')
    f.write(b'{"step": 7, "tokens": 10')
"""


def test_garbage_among_the_metrics(place: Place) -> None:
    files = {"g.py": GARBAGE.encode()}
    link = place.link()
    run_id = place.submit(link, spec(["{python}", "g.py"], files=files), files=files)
    link.start(run_id)
    status, log, _ = link.follow(run_id)
    assert status["state"] == "succeeded", log
    link.ask("manifest", run_id=run_id)
    measured = place.read(run_id, "measured.json")
    assert "fault" not in measured
    canonical_check(measured)
    assert measured["metrics"]["read"]["v"]["steps"] == 7
    assert measured["metrics"]["read"]["v"]["unreadable"] >= 10
    assert measured["steady"]["n_steps"]["v"] == 6
    assert measured["metrics"]["tok_s_global"]["v"] == "10000000", "1000 tokens in each 100 us"
    assert measured["checks"]["finite"]["v"] is False
    assert [measured["kernel"][n]["v"] for n in ("requested", "observed")] == ["fa4", "triton"]
    assert measured["cache"]["v"][0]["v"]["hits"] == 3
    assert measured["promotion"]["v"]["status"] == "accept"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"), (0.1, "0.1"), (1e-7, "0"), (-2.5, "-2.5"), (1e16, "10000000000000000"),
        (float("nan"), None),
        (float("inf"), None), (True, None), ("1e999999999", None), ("12.3456789", "12.345679"), ("x", None),
        ("1/0", None), (-0.0, "0"), (123456789012345678, "123456789012345678"), (None, None), ([], None),
        ("0.0000005", "0"), ("0.0000015", "0.000002"), ("9" * 41, None),
    ],
)  # fmt: skip
def test_decimals(value: Any, text: str | None) -> None:
    assert metrics.decimal(value) == text


def test_metrics_lines_have_a_bounded_length(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"a" * 5_000_000 + b'\n{"step": 1}\n' + b"b" * 70_000 + b'\n{"step": 2}')
    fd = os.open(path, os.O_RDONLY)
    try:
        lines = [line for line in metrics.lines(fd) if line]
    finally:
        os.close(fd)
    assert max(map(len, lines)) <= metrics.MOST_LINE + 1
    assert [line for line in lines if line.startswith(b"{")] == [b'{"step": 1}', b'{"step": 2}']


def test_names_are_shown_in_any_encoding() -> None:
    assert manifest.shown("a\udcff") == "a\\udcff" or "\\xff" in manifest.shown("a\udcff")
    assert manifest.shown("plain ünï") == "plain ünï"
