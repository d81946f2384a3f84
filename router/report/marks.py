"""What a run looks like in a plot: its shape and colour say how it started, its filling whose it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from compute_router.compare.outcome import Comparison, Point
from compute_router.report.elements import Child, Element, cut, el

__all__ = ["STARTS", "Looks", "at", "cross", "mark", "words"]

SHAPES = {
    "circle": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z",
    "square": "M-4.5 -4.5h9v9h-9z",
    "up": "M0 -5.8L5.8 4.6H-5.8z",
    "diamond": "M0 -6.2L6.2 0L0 6.2L-6.2 0z",
    "down": "M0 5.8L5.8 -4.6H-5.8z",
    "house": "M0 -6L5.5 -1.2V5H-5.5V-1.2z",
    "bar": "M-6.5 -3h13v6h-13z",
    "star": "M0 -6.5L1.9 -2.4L6.3 -2L3 1L3.9 5.4L0 3.1L-3.9 5.4L-3 1L-6.3 -2L-1.9 -2.4z",
}
STARTS = {
    "warm_machine_fresh_process": ("circle", "1"),
    "warm_container": ("square", "2"),
    "cold_image": ("up", "3"),
    "cold_container_cached_image": ("diamond", "4"),
    "warm_machine_after_reboot": ("down", "5"),
    "snapshot_restore": ("house", "6"),
    "resumed_checkpoint": ("bar", "7"),
    "unobserved": ("star", "8"),
}
"""Start class -> shape and number of its colour. One that is not listed looks like `unobserved`."""

FILLINGS = ("filled", "hollow", "dotted", "halved")
_CROSS = "M-5 -5L5 5M-5 5L5 -5"


def words(name: str, most: int = 60) -> str:
    """The name of a class as words."""
    return cut(name.replace("_", " "), most)


def at(share: float) -> str:
    """A place along an axis, 0 to 1, as SVG takes it."""
    return f"{share * 100:.2f}%".replace(".00%", "%")


class Looks:
    """How the arms and start classes of one comparison are told apart."""

    def __init__(self, comparison: Comparison) -> None:
        named = [arm.name for arm in comparison.arms]
        self.arms = list(dict.fromkeys([*named, *(p.arm for p in comparison.points)]))
        found = {p.startup if p.startup in STARTS else "unobserved" for p in comparison.points}
        self.small = "small-" if len(comparison.points) > 80 else ""
        """What the names of marks in plots begin with: small ones where runs are many."""
        self.starts = [name for name in STARTS if name in found]

    def filling(self, arm: str) -> str:
        """The base is filled, every candidate is not; from the fifth arm on a letter is added."""
        place = self.arms.index(arm)
        return FILLINGS[0] if place == 0 else FILLINGS[1 + (place - 1) % 3]

    def letter(self, arm: str) -> str:
        """What stands beside the marks of an arm whose filling is another's, too."""
        place = self.arms.index(arm)
        return "" if place < len(FILLINGS) else chr(97 + place % 26)

    def of(self, point: Point) -> tuple[str, str]:
        """The mark of a run, and the class of its colour."""
        shape, colour = STARTS.get(point.startup, STARTS["unobserved"])
        return f"m-{shape}-{self.filling(point.arm)}", f"c{colour}"

    def definitions(self, points: Iterable[Point]) -> Element:
        """The drawings of the marks of `points` and of the legends."""
        legend = ["m-diamond-filled", "m-circle-hollow"]
        legend += [f"m-{STARTS[start][0]}-filled" for start in self.starts]
        legend += [f"m-circle-{self.filling(arm)}" for arm in self.arms]
        mine = list(dict.fromkeys(self.of(p)[0] for p in points))
        return _definitions(list(dict.fromkeys([*legend, *mine])), mine if self.small else [])


def _definitions(names: Sequence[str], small: Sequence[str]) -> Element:
    """The drawings of the marks, once for the page; of those in `small` a small one, too."""
    return el(
        "svg",
        el(
            "defs",
            *(el("g", *_drawing(name), id=name) for name in names),
            *(el("g", *_drawing(name), id=f"small-{name}", transform="scale(.62)") for name in small),
            el("path", id="m-cross", d=_CROSS, class_="cross"),
            el("path", id="small-m-cross", d="M-3 -3L3 3M-3 3L3 -3", class_="cross"),
        ),
        class_="nowhere",
        width="0",
        height="0",
        aria_hidden="true",
        focusable="false",
    )


def _drawing(name: str) -> list[Element]:
    _, shape, filling = name.split("-")
    drawn = [el("path", d=SHAPES[shape], class_="full" if filling == "filled" else "open")]
    if filling == "dotted":
        drawn.append(el("circle", r="1.8", class_="full"))
    if filling == "halved":
        drawn.append(el("path", d="M-4 0h8", class_="stroke"))
    return drawn


def mark(name: str, colour: str, x: str, y: float, *inside: Child, dx: int = 0) -> Element:
    """A defined mark `dx` pixels from `x`, at `y`; a `title` among `inside` is its tooltip."""
    moved = f"translate({dx} 0)" if dx else None
    return el("use", *inside, href=f"#{name}", class_=colour, x=x, y=y, transform=moved)


def cross(x: str, y: float, *inside: Child, small: str = "") -> Element:
    """The mark of a run that does not count."""
    return el("use", *inside, href=f"#{small}m-cross", class_="bad", x=x, y=y)
