"""Proves that every key of any TOML text is found in the line it stands in, and never anything else."""

from __future__ import annotations

import tomllib
from typing import Any, Protocol, TypeVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compute_router.reading.locate import line_of, locate

T = TypeVar("T")


class Draw(Protocol):
    """What `composite` hands over."""

    def __call__(self, strategy: st.SearchStrategy[T]) -> T: ...


BARE = st.text("abcXYZ019_-", min_size=1, max_size=5)
QUOTED = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=5)
SCALARS = st.sampled_from(
    ["1", "-2.5e3", "true", "inf", "1979-05-27T07:32:00Z", "1979-05-27 07:32:00", "07:32:00", "0xff"]
)
COMMENT = st.sampled_from(["", " # x = 1", ' # "]', " # '''"])


def quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@st.composite
def keys(draw: Draw) -> str:
    return draw(st.one_of(BARE, QUOTED.map(quote), QUOTED.filter(lambda t: "'" not in t).map("'{}'".format)))


@st.composite
def values(draw: Draw, depth: int = 2) -> str:
    """One TOML value, which may cover several lines; its own keys are unique."""
    kinds = ["scalar", "basic", "literal", "long", "raw"] + (["array", "inline"] if depth else [])
    kind = draw(st.sampled_from(kinds))
    text = draw(QUOTED)
    if kind == "scalar":
        return draw(SCALARS)
    if kind == "basic":
        return quote(text)
    if kind == "literal":
        return "'" + text.replace("'", "") + "'"
    if kind == "long":
        inner = text.replace("\\", "").replace('"', "")
        return '"""' + draw(st.sampled_from(["", "\n", "a = 1\n", '""', "\\\\"])) + inner + '\n[x]"""'
    if kind == "raw":
        tail = draw(st.sampled_from(["", "'", "''"]))
        return "'''\n" + text.replace("'", "") + "\n# y" + tail + "'''"
    parts = draw(st.lists(values(depth - 1), max_size=3))
    if kind == "array":
        between = draw(st.sampled_from([", ", ",\n", " , # c ]\n\n"]))
        tail = (
            draw(st.sampled_from(["", ",", "\n", ",\n# end\n"]))
            if parts
            else draw(st.sampled_from(["", "\n"]))
        )
        return "[" + draw(st.sampled_from(["", "\n", " # [\n"])) + between.join(parts) + tail + "]"
    one_line = [p for p in parts if "\n" not in p]
    return "{" + ", ".join(f"k{i}.x = {p}" for i, p in enumerate(one_line)) + "}"


@st.composite
def documents(draw: Draw) -> str:
    """Top-level pairs, then tables and arrays of tables."""
    text = []
    for index in range(draw(st.integers(0, 3))):
        text.append(f"{draw(keys())}.p{index} = {draw(values())}{draw(COMMENT)}")
    for index in range(draw(st.integers(0, 3))):
        name = f"t{draw(st.integers(0, 2))}.{draw(keys())}"
        head = f"[[{name}]]" if draw(st.booleans()) else f"[{name} . u{index}]"
        text += ["", head + draw(COMMENT)]
        text += [f"  {draw(keys())} = {draw(values())}" for _ in range(draw(st.integers(0, 2)))]
    return "\n".join(text)


def paths(value: Any, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    found = {path} if path else set()
    if isinstance(value, dict):
        return found.union(*(paths(item, (*path, key)) for key, item in value.items()))
    if isinstance(value, list):
        return found.union(*(paths(item, (*path, i)) for i, item in enumerate(value)))
    return found


@settings(max_examples=700, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
@given(documents())
def test_the_paths_are_those_of_the_values(text: str) -> None:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    lines = locate(text)
    assert set(lines) == paths(values)
    assert all(1 <= n <= text.count("\n") + 1 for n in lines.values())


@settings(max_examples=300, deadline=None, print_blob=True)
@given(st.data())
def test_a_key_is_found_in_its_own_line(data: st.DataObject) -> None:
    """Keys that are planted among arbitrary values are found where they were planted."""
    text, planted = "", {}
    for index in range(data.draw(st.integers(1, 6))):
        text += data.draw(st.sampled_from(["", "\n", "# k0 = 1\n\n"]))
        planted[f"k{index}"] = text.count("\n") + 1
        text += f"k{index} = {data.draw(values())}{data.draw(COMMENT)}\n"
    found = locate(text)
    assert {key: found[(key,)] for key in planted} == planted


@settings(max_examples=700, deadline=None, print_blob=True)
@given(st.text("[]{}=.,#\"'\\ \nab1", max_size=60))
def test_no_text_at_all_makes_it_raise(text: str) -> None:
    found = locate(text)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert set(found) == paths(values)


def test_a_deep_nest_does_not_raise() -> None:
    assert isinstance(locate("a = " + "[" * 5000 + "]" * 5000), dict)


def test_the_nearest_thing_around_has_the_line() -> None:
    lines = locate('\n[stage]\nx = [\n  { from = "a" },\n  { from = "b" },\n]\n')
    assert lines[("stage",)] == 2
    assert lines[("stage", "x", 1, "from")] == 5
    assert line_of(lines, ("stage", "x", 1, "to")) == 5
    assert line_of(lines, ("stage", "y")) == 2
    assert line_of(lines, ("other",)) is None


def test_dotted_keys_tables_and_arrays_of_tables() -> None:
    lines = locate('a.b = 1\na.c = 2\n[[t]]\nx = 1\n[[t]]\n[t.u]\ny = "]"\n["q.r".s]\n')
    assert lines == {
        ("a",): 1,
        ("a", "b"): 1,
        ("a", "c"): 2,
        ("t",): 3,
        ("t", 0): 3,
        ("t", 0, "x"): 4,
        ("t", 1): 5,
        ("t", 1, "u"): 6,
        ("t", 1, "u", "y"): 7,
        ("q.r",): 8,
        ("q.r", "s"): 8,
    }
