"""Proves `route report` from the outside: what it writes and where, and what it never overwrites."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

from conftest import Route


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<[^>]*>", " ", page.split("</style>")[1]).split())


def test_a_report_of_two_real_runs(route: Route, folder: Path, home: Path, two: list[Path]) -> None:
    done = route("report", "latest~1", "latest", "--vary", "arguments", "--title", "Ten and <twenty>")
    assert done.returncode == 0, done.stdout + done.stderr
    page = (folder / "report.html").read_text()
    assert done.stdout.splitlines()[-1] == str(folder / "report.html")
    text = text_of(page)
    assert "<h1><bdi>Ten and &lt;twenty&gt;</bdi></h1>" in page
    assert "TOO_FEW_RUNS" in text
    for path in two:
        assert json.loads(path.read_text())["receipt_id"] in page
    ids = [path.parent.name for path in two]
    assert f"route compare {ids[0]} {ids[1]} --vary arguments" in text
    assert str(home) not in page
    # The same again takes the place of the first; nothing else is left beside it.
    again = route("report", "latest~1", "latest", "--vary", "arguments", "--title", "Ten and <twenty>")
    assert again.returncode == 0
    assert (folder / "report.html").read_text() == page
    assert sorted(p.name for p in folder.iterdir()) == ["report.html", "work.py"]


def test_a_refusal_has_a_report_too(route: Route, folder: Path, two: list[Path]) -> None:
    done = route("report", *map(str, two), "-o", "why.html")
    assert done.returncode == 65
    text = text_of((folder / "why.html").read_text())
    assert "✕ refused" in text
    assert "Mend" in text
    data = json.loads(route("report", *map(str, two), "--json").stdout)
    assert data["error"]["code"] in text
    assert data["data"]["refused"] is True
    assert data["data"]["path"] == str(folder / "report.html")


def test_stdout_takes_the_page_alone(route: Route, folder: Path, two: list[Path]) -> None:
    done = route("report", *map(str, two), "--vary", "arguments", "-o", "-")
    assert done.returncode == 0
    assert done.stdout.startswith("<!doctype html>\n<html")
    assert done.stdout.endswith("</html>\n")
    assert not (folder / "report.html").exists()
    assert route("report", *map(str, two), "-o", "-", "--json").returncode == 64


def test_nothing_but_a_report_is_overwritten(route: Route, folder: Path, two: list[Path]) -> None:
    """`-o receipts/*.json` names a receipt as the place for the page."""
    before = two[0].read_bytes()
    done = route("report", "-o", str(two[0]), str(two[1]), "latest")
    assert done.returncode == 64
    assert "is no report" in done.stderr
    assert two[0].read_bytes() == before
    refs = [*map(str, two), "--vary", "arguments"]
    assert route("report", *refs, "-o", "/dev/null").returncode == 64
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert route("report", *refs, "-o", "no/such/folder.html").returncode == 64
    assert route("report", *refs, "-o", ".").returncode == 64
    (folder / "empty.html").touch()
    (folder / "link.html").symlink_to("empty.html")
    assert route("report", *refs, "-o", "link.html").returncode == 0
    assert (folder / "link.html").is_symlink()
    assert (folder / "empty.html").read_text().startswith("<!doctype html>")


def test_the_page_is_as_readable_as_any_new_file(route: Route, folder: Path, two: list[Path]) -> None:
    (folder / "mine").touch()
    assert route("report", *map(str, two), "--vary", "arguments").returncode == 0
    assert (folder / "report.html").stat().st_mode == (folder / "mine").stat().st_mode


def test_nothing_is_written_for_what_cannot_be_read(route: Route, folder: Path, two: list[Path]) -> None:
    done = route("report", "nothing.json", str(two[0]))
    assert done.returncode == 64
    assert not (folder / "report.html").exists()
