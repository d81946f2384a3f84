"""Proves that a secret is found in every form wherever the bytes are cut, and masked in a log that grows."""

from __future__ import annotations

import base64
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compute_router.supervisor import logcap, masking, notice
from compute_router.supervisor.runs import Attempt, Run
from compute_router.supervisor.scrub import Scrubber

VALUE = "p@ss/wörd +\"q'\\7\U0001f600end"


def encoded(value: str) -> Iterator[bytes]:
    """The value as this machine writes it: raw, base64, for a URL, in JSON, for a shell, in Python."""
    data = value.encode()
    yield data
    for before in range(3):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(b"x" * before + data)
            yield encode(b"x" * before + data + b"yz")
    texts = [quote(value), quote(value, safe=""), quote_plus(value), json.dumps(value)]
    texts += [json.dumps(value, ensure_ascii=False), json.dumps(json.dumps(value)), shlex.quote(value)]
    texts += [repr(value), ascii(value), repr(data), json.dumps(shlex.quote(value)), quote(value).lower()]
    yield from (text.encode() for text in texts)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=6, max_size=50))
@settings(max_examples=300, deadline=None)
def test_every_form_of_any_value_is_found(value: str) -> None:
    if len(value.strip().encode()) < 6:
        return
    look = Scrubber({"A": value})
    for form in encoded(value):
        if form.lower() == form and value.lower() != value:
            continue  # lower-casing changed the value itself
        masked = look.masked(b"before " + form + b" after")
        assert len(masked) == len(form) + 13
        assert look.spans(b"before " + form + b" after"), form
        assert not look.spans(masked), form


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_what_a_shell_quotes_is_found(locale: str) -> None:
    for value in (VALUE, "a\nb\tc\x1bdefg", "~~ab#c!d e$f`g", "it's 'quoted'"):
        made = subprocess.run(
            ["bash", "-c", 'printf %q "$1"', "x", value], capture_output=True, env={"LC_ALL": locale}
        ).stdout
        assert Scrubber({"A": value}).spans(b"x=" + made), made


def test_lines_of_a_value_are_found_each_and_wrapped_base64() -> None:
    key = (
        "-----BEGIN KEY-----\n" + "\n".join(os.urandom(40).hex() for _ in range(9)) + "\n-----END KEY-----\n"
    )
    look = Scrubber({"KEY": key})
    for line in key.splitlines():
        assert look.holds(b"> " + line.encode()) == "KEY"
    wrapped = base64.encodebytes(key.encode())
    # The last character of all may be made of what stands behind the value too.
    assert max(len(line.strip(b"*=")) for line in look.masked(wrapped).split(b"\n")) < 2


def test_a_value_that_stands_everywhere_by_chance_is_named_and_not_looked_for() -> None:
    look = Scrubber({"PIN": "123", "LONG": "1234", "NONE": "   "})
    assert look.short == ["NONE", "PIN"]
    assert look.masked(b"123 1234 123") == b"123 **** 123"


def test_a_value_of_nothing_but_special_characters_and_runs_of_them() -> None:
    for value in ("@#$%^&*()!", "\\" * 30 + "x", "''''''''", '\\"' * 20):
        look = Scrubber({"A": value})
        for form in encoded(value):
            assert look.spans(b"-" + form + b"-"), form
        assert not look.spans(b"\\" * 29 + b"\"'" * 500)


def attempt(folder: Path) -> Attempt:
    made = Attempt(Run(str(folder), "0" * 26), 1)
    os.makedirs(made.path)
    return made


def test_a_log_is_masked_wherever_it_is_cut(tmp_path: Path) -> None:
    """Each form, written in two pieces at every position with a look between them."""
    look = Scrubber({"A": VALUE})
    for number, form in enumerate(encoded(VALUE)):
        for cut in range(1, len(form)):
            here = attempt(tmp_path / f"{number}.{cut}")
            masking.begin(here, {"A": VALUE})
            log = Path(here.at("log"))
            with log.open("ab", 0) as file:
                masker = masking.Masker(here, look)
                file.write(b"start \xc3" + form[:cut])
                masker.step()
                mark = masking.read(here)
                assert mark is not None
                # Nothing of it may be read yet, but what is no longer than chance.
                shown = log.read_bytes()[:mark]
                assert cut < 5 or not shown.endswith(form[3:cut])
                file.write(form[cut:] + b" end")
                while masker.step(end=True):
                    pass
            assert not look.spans(log.read_bytes()), (form, cut)
            assert log.read_bytes().startswith(b"start \xc3")
            assert log.read_bytes().endswith(b" end")
            assert masking.read(here) == log.stat().st_size


def test_half_a_secret_at_the_very_end_is_masked(tmp_path: Path) -> None:
    here = attempt(tmp_path)
    masking.begin(here, {"A": "abcdefghijkl"})
    Path(here.at("log")).write_bytes(b"killed while writing abcdefgh")
    masking.finish(here, {"secrets": ["A"]}, {"A": "abcdefghijkl"})
    assert Path(here.at("log")).read_bytes() == b"killed while writing ********"
    assert masking.read(here) == masking.DONE


def test_what_a_cap_cuts_out_leaves_no_half_of_a_secret(tmp_path: Path) -> None:
    """The hole comes before anybody has looked: a secret that lies across its edges is masked in part."""
    here, value = attempt(tmp_path), "s3cret" * 6
    masking.begin(here, {"A": value})
    log = Path(here.at("log"))
    log.write_bytes((b"." * 7 + value.encode()) * 20_000)
    size = log.stat().st_size
    if logcap.cap(here, 1 << 18, size) < 0:
        pytest.skip("no holes can be punched into files here")
    begin, end = logcap.hole(here)
    assert 0 < begin < end < size
    masking.finish(here, {"secrets": ["A"]}, {"A": value})
    data = log.read_bytes()
    assert len(data) == size
    for kept in (data[:begin], data[end:]):
        assert b"s3cret" not in kept
        assert kept.count(b"......." + b"*" * len(value)) > 700
    assert masking.read(here) == masking.DONE


def test_a_metrics_file_and_the_error_files_of_ranks_are_masked_and_links_are_not_followed(
    tmp_path: Path,
) -> None:
    here, other = attempt(tmp_path), tmp_path / "not ours"
    other.write_bytes(b"s3cret-value")
    masking.begin(here, {"A": "s3cret-value"})
    os.makedirs(here.at("ranks/0"))
    for name in ("metrics.jsonl", "ranks/0/error.json", "log"):
        Path(here.at(name)).write_bytes(b'{"x": "s3cret-value"}')
    os.symlink(other, here.at("ranks/link"))
    masking.finish(here, {"secrets": ["A"]}, {"A": "s3cret-value"})
    for name in ("metrics.jsonl", "ranks/0/error.json", "log"):
        assert Path(here.at(name)).read_bytes() == b'{"x": "************"}'
    assert other.read_bytes() == b"s3cret-value"


WRITER = """
import os, random, sys
random.seed(int(sys.argv[2]))
forms = [bytes.fromhex(word) for word in sys.argv[3:]]
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
kept = b""
for _ in range(3000):
    data = random.choice([b"line of text\\n", b"no end ", random.choice(forms), b"\\xff\\x00"])
    while data:
        n = random.randint(1, len(data))
        os.write(fd, data[:n])
        data = data[n:]
"""


def test_a_log_is_masked_while_its_writer_goes_on(tmp_path: Path) -> None:
    seed = int(os.environ.get("ROUTE_SEED") or int.from_bytes(os.urandom(4), "big"))
    print("ROUTE_SEED", seed)
    look, here = Scrubber({"A": VALUE}), attempt(tmp_path)
    masking.begin(here, {"A": VALUE})
    Path(here.at("log")).touch()
    words = [form.hex() for form in encoded(VALUE)]
    masker, seen = masking.Masker(here, look), b""
    with subprocess.Popen([sys.executable, "-c", WRITER, here.at("log"), str(seed), *words]) as writer:
        events = notice.watch([])
        while writer.poll() is None:
            masker.go(events)
            mark = masking.read(here)
            assert mark is not None
            seen += Path(here.at("log")).read_bytes()[len(seen) : mark]
        events.close()
    assert writer.returncode == 0
    while masker.step(end=True):
        pass
    whole = Path(here.at("log")).read_bytes()
    assert not look.spans(whole)
    assert whole.startswith(seen), "what a reader was shown is what stands there"
    assert whole.count(b"line of text\n") > 100
