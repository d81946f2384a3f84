"""Proves the prose: what README and docs name exists, links lead somewhere, the shown Python runs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

TOP = Path(__file__).resolve().parent.parent
PAGES = [
    *sorted(TOP.glob("*.md")),
    *sorted((TOP / "docs").glob("*.md")),
    TOP / "examples" / "README.md",
    TOP / "benchmarks" / "README.md",
]
PAGES = [page for page in PAGES if page.is_file()]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def name_of(page: Path) -> str:
    return str(page.relative_to(TOP))


def without_fences(text: str) -> str:
    return FENCE.sub("", text)


def spoken(page: Path) -> list[str]:
    """Every `route ...` a reader might type: in shell blocks and in spans of code."""
    text = page.read_text()
    found = []
    for language, body in FENCE.findall(text):
        if language in ("sh", "bash"):
            joined = body.replace("\\\n", " ")
            found += [part.strip() for line in joined.splitlines() for part in line.split("&&")]
    found += re.findall(r"`([^`\n]+)`", without_fences(text))
    found = [re.sub(r"^(\S*/)?route(?= )", "route", line) for line in found]
    return [line for line in found if line.startswith("route ")]


def verbs() -> dict[str, click.Command]:
    from compute_router.cli.app import group

    with click.Context(group) as context:
        found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


COMMANDS = [(page, line) for page in PAGES for line in spoken(page)]


def test_the_docs_speak_of_route() -> None:
    """Guards the tests below: they would pass over nothing."""
    assert len(COMMANDS) > 30
    assert {name_of(page) for page, _ in COMMANDS} >= {"README.md", "docs/commands.md", "examples/README.md"}


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[f"{name_of(p)}:{t[:60]}" for p, t in COMMANDS])
def test_every_verb_and_option_that_is_named_is_there(page: Path, line: str) -> None:
    words = shlex.split(line.replace("...", ""), comments=True)[1:]
    if "--" in words:
        words = words[: words.index("--")]
    known = verbs()
    if words and words[0].startswith("-"):
        assert words[0] in ("--version", "--help", "--json", "--no-plugins", "--debug", "-V", "-h"), line
        return
    if not words or not re.fullmatch(r"[a-z-]+", words[0]):
        return  # `route VERB --help` and the like
    assert words[0] in known, f"{name_of(page)} names the verb {words[0]!r}, which is not there"
    command = known[words[0]]
    if isinstance(command, click.Group) and len(words) > 1 and not words[1].startswith("-"):
        assert words[1] in command.commands, f"{name_of(page)}: route {words[0]} has no {words[1]!r}"
        command = command.commands[words[1]]
    options = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    options |= {"--help", "-h"}
    for word in words[1:]:
        if word.startswith("-"):
            assert word.split("=")[0] in options, f"{name_of(page)}: route {words[0]} has no option {word}"


def test_the_page_of_commands_lists_the_verbs_that_there_are() -> None:
    text = (TOP / "docs" / "commands.md").read_text()
    listed = {match.split()[0] for match in re.findall(r"^\| `([a-z][^`]*)`", text, re.M)}
    assert listed - {"succeeded", "failed", "cancelled", "timed_out", "preempted", "lost"} == set(verbs())


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_fences(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name_of(page)} links to {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", without_fences(there.read_text()), re.M)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, f"{name_of(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_are_there(page: Path) -> None:
    roots = "router|backends|policies|workloads|tests|examples|benchmarks|docs"
    for path in re.findall(rf"(?<![\w/.<>$-])((?:{roots})/[\w./-]*\w(?:/|\b))", page.read_text()):
        if "<" not in path:
            assert (TOP / path.rstrip(".")).exists(), f"{name_of(page)} names {path}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_begins_with_its_title_and_is_readable_as_text(page: Path) -> None:
    text = page.read_text()
    assert text.startswith("# "), f"{name_of(page)} has no title"
    assert text.endswith("\n")
    assert text.count("\n```") % 2 == 0, f"{name_of(page)} has a fence that is not closed"


def block_below(heading: str) -> tuple[str, str]:
    """The first fenced block below a heading of README: its language and its text."""
    text = (TOP / "README.md").read_text()
    start = text.index(f"\n{heading}\n") + len(heading) + 2
    below = text[start:].split("\n## ", 1)[0]
    found = FENCE.search(below)
    assert found, f"README has no block below {heading}"
    return found[1], found[2]


def test_the_first_command_needs_nothing_before_it() -> None:
    language, command = block_below("## Run it")
    assert language == "sh"
    assert len(command.strip().splitlines()) == 1
    assert command.startswith("python3 -m venv "), "it makes its own environment"
    assert "examples/train_char_gpt.py" in command


def test_the_second_command_is_what_the_checks_are() -> None:
    assert block_below("## Test it") == ("sh", "bash .ci/test\n")
    assert (TOP / ".ci" / "test").is_file()
    assert "bash .ci/test" in (TOP / ".ci" / "run").read_text()


def test_the_python_of_readme_runs(folder: Path) -> None:
    """A real run: it is planned, started under the supervisor, collected, and has its receipt."""
    language, code = block_below("## From Python")
    assert language == "python"
    (folder / "hello.py").write_text('print("hello")\n')
    out = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60)
    assert out.returncode == 0, out.stderr
    assert re.fullmatch(r"[0-9a-z]{26} succeeded\n", out.stdout)


def test_the_block_of_readme_is_a_workload(folder: Path) -> None:
    import compute_router

    _, text = block_below("## A workload")
    (folder / "train.py").write_text(text)
    workload = compute_router.load(str(folder / "train.py"))
    assert str(workload.needs.accelerator) == "H200:8"
    assert workload.kind == "train"


def test_the_changelog_has_a_place_for_what_comes() -> None:
    text = (TOP / "CHANGELOG.md").read_text()
    assert re.search(r"^## Unreleased$", text, re.M)
