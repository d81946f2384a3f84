"""Reads a study.toml: as data, with errors that name the line and the nearest right word."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from compute_router.errors import InputError, NotFound, RouteError
from compute_router.reading import load
from compute_router.reading import values as v
from compute_router.reading.block import read_bytes, to_text
from compute_router.reading.build import build
from compute_router.reading.layers import Layer, parse_toml, shown_path, toml_layer
from compute_router.reading.locate import locate
from compute_router.records import digest, plain
from compute_router.studies.keys import ARM, ARM_NAME, BLOCKS, MOST_ARMS, MOST_RUNS, STUDY
from compute_router.studies.order import blocks, least_blocks, least_p
from compute_router.studies.plan import Arm, StudyPlan, Turn
from compute_router.workload import Kind, Purpose, Workload

if TYPE_CHECKING:
    from compute_router.config import Config

__all__ = ["Read", "code_of", "find", "read", "ready"]

_SECTIONS = {"study": "write [study]", "arms": "write [arms.NAME] for each arm"}
LARGE = 100
"""Runs from which on a study is told to be large."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Read:
    """A study as it was read; `warnings` are one line each."""

    plan: StudyPlan
    warnings: tuple[str, ...] = ()


def ready() -> dict[str, Path]:
    """The ready-made studies: name -> file."""
    from compute_router import examples

    folder = Path(examples.__file__ or "").parent
    return {path.stem.removeprefix("study_"): path for path in sorted(folder.glob("study_*.toml"))}


def find(given: str, cwd: Path | None = None) -> tuple[Path, Path]:
    """The file that `given` means, a path or the name of a ready-made study, and the folder whose
    configuration holds: the file's own, or for a ready-made one where the user stands."""
    stand = Path(os.path.realpath(cwd or Path.cwd()))
    path = stand / given
    if path.is_dir() and (path / "study.toml").is_file():
        path = path / "study.toml"
    if os.path.lexists(path) and not (path.is_dir() and given in ready()):
        real = Path(os.path.realpath(path))
        return real, real.parent
    if given in (made := ready()):
        return Path(os.path.realpath(made[given])), stand
    near = v.near(given, made) if "/" not in given and not given.endswith(".toml") else ""
    raise NotFound(
        f"there is no file {given}" + ("" if "/" in given else ", nor a ready-made study of that name"),
        mend=near or "docs/studies.md shows how one is written; `route study run attention` is ready-made",
    )


def read(
    path: Path,
    *,
    stand: Path,
    kinds: Mapping[str, Kind],
    config: Config | None = None,
    home: Path | None = None,
    keep: bool = True,
) -> Read:
    """The plan that `path` tells. Reads every workload and all the files that ship; runs nothing.

    `home` and `keep` are those of `snapshot.take`. Raises `InputError` and its like, with file and line.
    """
    return _Reader(path, stand, kinds, config).read(home, keep)


def code_of(workload: Workload, without: Path, home: Path | None = None, *, keep: bool = True) -> str:
    """The digest of what ships with `workload`. The file `without`, which only says what is to be
    compared, does not count: a remark in it is not another study."""
    from compute_router.planning import ships

    taken = ships(workload, home, keep=keep)
    root = Path(os.path.realpath(workload.entry.root))
    if not without.is_relative_to(root):
        return taken.tree_sha256
    name = without.relative_to(root).as_posix()
    if all(entry.path != name for entry in taken.entries):
        return taken.tree_sha256
    return digest([plain(entry) for entry in taken.entries if entry.path != name])


class _Reader:
    def __init__(self, path: Path, stand: Path, kinds: Mapping[str, Kind], config: Config | None) -> None:
        self.path, self.stand, self.kinds, self.config = path, stand, kinds, config
        self.shown = shown_path(path)
        text = to_text(read_bytes(path, self.shown, what="study"), self.shown)
        self.lines = locate(text)
        self.values = parse_toml(text, self.shown, error=InputError)
        self.whole = Layer(self.shown, self.values, self.lines, error=InputError, first=1)
        self.warnings: list[str] = []

    def read(self, home: Path | None, keep: bool) -> Read:
        for key in self.values:
            if key not in _SECTIONS:
                mend = v.near(key, _SECTIONS)
                if key in STUDY:
                    mend = f"{key!r} belongs below [study]"
                raise self.whole.fault((key,), f"there is no section {key!r}", mend)
        study = self.table(("study",), STUDY)
        names = self.arms()
        tables = {name: self.table(("arms", name), ARM) for name in names}
        workloads = {name: self.workload(name, study, tables[name]) for name in names}
        arms = tuple(
            Arm(
                name=name,
                workload=workload,
                workload_sha256=workload.digest,
                code_sha256=code_of(workload, self.path, home, keep=keep),
                policy=tables[name].get("policy") or study.get("policy"),
                backend=tables[name].get("backend") or study.get("backend"),
            )
            for name, workload in workloads.items()
        )
        n, seed = study.get("n", BLOCKS), study.get("seed", 0)
        turns = [
            Turn(index=index, block=block, arm=names[arm])
            for index, (block, arm) in enumerate(
                ((b, arm) for b, order in enumerate(blocks(len(names), n, seed), 1) for arm in order), 1
            )
        ]
        self.together(study, arms, n)
        made = StudyPlan(
            id="",
            sha256="",
            name=study.get("name") or self.own_name(),
            file=str(self.path),
            stand=str(self.stand),
            created_us=time.time_ns() // 1000,
            n=n,
            margin=study.get("margin", "0.02"),
            seed=seed,
            vary=self.vary(study.get("vary", ())),
            metric=arms[0].workload.metrics.primary,
            warm=study.get("warm", False),
            aa=study.get("aa", False),
            stop_after=study.get("stop_after", 3),
            arms=arms,
            turns=tuple(turns),
        )
        sha256 = made.digest_of_all()
        made = msgspec.structs.replace(made, sha256=sha256, id=f"{made.name}-{sha256[:10]}")
        return Read(plan=made, warnings=tuple(dict.fromkeys(self.warnings)))

    def own_name(self) -> str:
        stem = self.path.stem.removeprefix("study_")
        return str(STUDY["name"].read(stem.lower() if stem != "study" else self.path.parent.name.lower()))

    def table(self, path: tuple[str, ...], keys: Mapping[str, Any]) -> dict[str, Any]:
        found: Any = self.values
        for part in path:
            found = found.get(part, {})
        title = f"[{'.'.join(path)}]"
        if not isinstance(found, dict):
            raise self.whole.fault(path, f"{'.'.join(path)} must be a table", f"write {title}")
        checked: dict[str, Any] = {}
        for key, value in found.items():
            if key not in keys:
                mend = f"{key!r} belongs to [study]" if key in STUDY else v.near(key, keys)
                raise self.whole.fault((*path, key), f"{title} has no key {key!r}", mend)
            try:
                checked[key] = keys[key].read(value)
            except v.Wrong as e:
                raise self.whole.fault((*path, key, *e.path), v.join(key, e.what), e.mend) from None
        return checked

    def arms(self) -> list[str]:
        arms = self.values.get("arms", {})
        if not isinstance(arms, dict):
            raise self.whole.fault(("arms",), "arms must be tables", "write [arms.NAME] for each arm")
        for name in arms:
            if not ARM_NAME.fullmatch(name):
                mend = "use up to 40 letters, digits and . _ -"
                raise self.whole.fault(("arms", name), f"{name!r} is no name of an arm", mend)
        if len(arms) < 2:
            what = "a study compares at least two arms" + (", and it has one" if arms else "")
            raise self.whole.fault(("arms",), what, "write [arms.NAME] for each; the first is the base")
        if len(arms) > MOST_ARMS:
            raise self.whole.fault(
                ("arms",), f"it has {len(arms)} arms; the most is {MOST_ARMS}", "split the study"
            )
        return list(arms)

    def workload(self, name: str, study: Mapping[str, Any], arm: Mapping[str, Any]) -> Workload:
        target = arm.get("workload") or study.get("workload")
        where = ("arms", name, "workload") if "workload" in arm else ("study", "workload")
        if not target:
            raise self.whole.fault(
                ("arms", name), f"arm {name!r} has no workload", 'write workload = "train.py" below [study]'
            )
        args = [*study.get("args", ()), *arm.get("args", ())]
        try:
            loaded = load(
                target,
                args=args,
                profile=arm.get("profile") or study.get("profile"),
                kinds=self.kinds,
                config=self.config,
                cwd=self.stand,
            )
        except RouteError as e:
            # What names no place of its own is about the line that named the workload.
            if e.file is None:
                e.file, e.line = self.shown, self.whole.line(where)
            raise
        assert loaded.recipe is not None
        found = build(loaded.recipe, *self.layers(name, study, arm))
        self.warnings += found.warnings
        return found.workload

    def layers(self, name: str, study: Mapping[str, Any], arm: Mapping[str, Any]) -> Iterator[Layer]:
        at = toml_layer
        for path, table in ((("study",), study), (("arms", name), arm)):
            if table.get("set"):
                yield at(
                    table["set"], self.lines, self.shown, below=(*path, "set"), error=InputError
                ).checked()
            if table.get("env"):
                env = {"env": table["env"]}
                yield at(env, self.lines, self.shown, below=path, error=InputError).checked()
        if study.get("metric"):
            metric = {"metrics": {"primary": study["metric"]}}
            yield at(metric, self.lines, self.shown, below=("study", "metric"), error=InputError)
        if study.get("warm"):
            warm = {"warmth": "warm"}
            yield at(warm, self.lines, self.shown, below=("study", "warm"), error=InputError)

    # What must hold among the arms

    def together(self, study: Mapping[str, Any], arms: tuple[Arm, ...], n: int) -> None:
        base = arms[0]
        for arm in arms[1:]:
            for what, mend, get in _EQUAL:
                ours, theirs = get(base.workload), get(arm.workload)
                if ours != theirs:
                    raise self.whole.fault(
                        ("arms", arm.name), f"{what}: {base.name!r} has {ours}, {arm.name!r} {theirs}", mend
                    )
        same = self.same(arms)
        if same and not study.get("aa"):
            raise self.whole.fault(
                ("arms", same[1]),
                f"arms {same[0]!r} and {same[1]!r} are the same work",
                "let them differ, or write aa = true below [study] to test the noise",
            )
        if study.get("aa") and not same:
            raise self.whole.fault(
                ("study", "aa"), "aa is true, and no two arms are the same work", "take aa out"
            )
        if n * len(arms) > MOST_RUNS:
            raise self.whole.fault(
                ("study", "n"), f"that is {n * len(arms)} runs; the most is {MOST_RUNS}", "lower n"
            )
        said = self.warnings.append
        least = least_blocks(len(arms))
        if n < least:
            at = self.whole.origin(("study", "n"))
            said(
                f"{at}: {n} block{'s' * (n > 1)} can reach p = {least_p(n, len(arms)):.3g} at best, so there "
                f"will be figures and no verdict; n = {least} or more allows one"
            )
        elif n * len(arms) > LARGE:
            said(f"{self.whole.origin(('study', 'n'))}: that is {n * len(arms)} runs, one after another")
        purpose = base.workload.purpose
        if purpose in (Purpose.SMOKE, Purpose.BRINGUP):
            said(
                f"{self.shown}: runs made for {purpose} carry no claim, so a verdict is exploratory at "
                'best; write set = { purpose = "benchmark" } below [study]'
            )
        if not study.get("vary") and not same:
            said(
                f"{self.shown}: vary names nothing, so that a difference which should be equal is refused; "
                'write vary = ["kernel"] or what it is'
            )

    def same(self, arms: tuple[Arm, ...]) -> tuple[str, str] | None:
        """Two arms that do the same at the same place, if there are any."""
        seen: dict[tuple[Any, ...], str] = {}
        for arm in arms:
            what = (arm.workload_sha256, arm.code_sha256, arm.policy, arm.backend)
            if what in seen:
                return seen[what], arm.name
            seen[what] = arm.name
        return None

    def vary(self, given: tuple[str, ...]) -> tuple[str, ...]:
        from compute_router.compare.varying import paths_of

        for index, word in enumerate(given):
            try:
                paths_of([word])
            except InputError as e:
                raise self.whole.fault(("study", "vary", index), f"vary: {e.what}", e.mend) from None
        return given


_EQUAL: tuple[tuple[str, str, Callable[[Workload], object]], ...] = (
    (
        "the arms are of different kinds",
        "kinds answer different questions: compare within one",
        lambda w: w.kind,
    ),
    (
        "the arms have different purposes",
        "write the purpose once, in set below [study]",
        lambda w: w.purpose.value,
    ),
    ("the arms are judged by different metrics", "write metric = below [study]", lambda w: w.metrics.primary),
    (
        "the arms disagree which way of the metric is better",
        "write set = { metrics = { higher_is_better = true } } below [study]",
        lambda w: w.metrics.higher_is_better,
    ),
)
