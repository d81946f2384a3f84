"""HTML and SVG as a tree of elements that escapes whatever it is given; nothing else here makes markup."""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Callable, Iterable
from typing import TypeAlias

__all__ = ["Child", "Element", "Sheet", "cut", "el", "rendered", "spelled"]

# Controls and the marks that turn the direction of writing round or take up no room: each can make a
# page show something other than what stands there. Surrogates and noncharacters have no place in HTML.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff\U000e0000-\U000e0fff]"
)
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*")
_VOID = frozenset({"meta"})
_TAGS = frozenset(
    (
        *("html", "head", "meta", "title", "body", "header", "nav", "main", "footer", "section", "figure"),
        *("figcaption", "div", "p", "span", "a", "h1", "h2", "h3", "ul", "li", "dl", "dt", "dd", "table"),
        *(
            "caption",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "details",
            "summary",
            "code",
            "strong",
            "bdi",
            "time",
        ),
        *("svg", "g", "defs", "use", "path", "line", "rect", "circle", "text", "desc", "pattern"),
    )
)


class Sheet:
    """A style sheet of ours: the one text that is written as it is."""

    def __init__(self, text: str) -> None:
        if "<" in text:
            raise ValueError("a style sheet holds no markup")
        self.text = text


class Element:
    """One element with its attributes and children. Made by `el`."""

    __slots__ = ("attributes", "children", "tag")

    def __init__(self, tag: str, attributes: tuple[tuple[str, str], ...], children: list[Kept]) -> None:
        self.tag = tag
        self.attributes = attributes
        self.children = children


Child: TypeAlias = "Element | Sheet | str | int | Iterable[Child] | None"
Kept: TypeAlias = "Element | Sheet | str"


def spelled(text: str) -> str:
    """`text` with every character spelled out that would not show itself: `^[`, `\\x9b`, `\\u202e`."""
    return text if text.isascii() and text.isprintable() else _UNSAFE.sub(_spell, text)


def _spell(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 32:
        return "^" + chr(code + 64)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def cut(text: str, most: int) -> str:
    """`text` spelled out on one line, of `most` characters at most; what is left out shows as `…`."""
    line = spelled(" ".join(text.split()))
    return line if len(line) <= most else line[: most - 1] + "…"


def el(tag: str, *children: Child, **attributes: str | float | bool | None) -> Element:
    """An element. `class_` is `class`, `aria_label` is `aria-label`; None and False leave one out.

    Raises `ValueError` for what could run or load anything: unknown elements, handlers, styles,
    addresses other than places of the same page.
    """
    if tag not in _TAGS:
        raise ValueError(f"there is no element {tag!r} here")
    given = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        name = _named(key)
        text = "" if value is True else f"{value:g}" if isinstance(value, float) else str(value)
        if name == "href" and not re.fullmatch(r"#[A-Za-z0-9-]+", text):
            raise ValueError(f"an address leads out of the page: {text!r}")
        given.append((name, text))
    return Element(tag, tuple(given), list(_kept(children)))


@functools.cache
def _named(key: str) -> str:
    name = key.rstrip("_").replace("_", "-")
    if not _NAME.fullmatch(name) or name.lower().startswith("on") or name in ("style", "src"):
        raise ValueError(f"an element takes no attribute {name!r}")
    return name


def _kept(children: Iterable[Child]) -> Iterable[Kept]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, (str, int)):
            yield str(child)
        elif isinstance(child, (Element, Sheet)):
            yield child
        else:
            yield from _kept(child)


def rendered(root: Element) -> str:
    """The page of which `root` is the whole."""
    parts = ["<!doctype html>\n"]
    _write(root, parts.append)
    parts.append("\n")
    return "".join(parts)


def _write(element: Element, put: Callable[[str], object]) -> None:
    put(f"<{element.tag}")
    for name, value in element.attributes:
        put(f' {name}="{_escaped(value)}"' if value else f" {name}" if name in _FLAGS else f' {name}=""')
    put(">")
    if element.tag in _VOID:
        return
    for child in element.children:
        if isinstance(child, Element):
            _write(child, put)
        elif isinstance(child, Sheet):
            put(f"<style>{child.text}</style>")
        else:
            put(_escaped(child))
    put(f"</{element.tag}>")


_FLAGS = frozenset({"open", "hidden"})


def _escaped(text: str) -> str:
    return html.escape(spelled(text), quote=True)
