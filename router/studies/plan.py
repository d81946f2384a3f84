"""The plan of a study as it is written down, once: arms, order, digest; and the workload of each run."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from compute_router.errors import StoreError
from compute_router.records import Record, digest, plain
from compute_router.workload import SEEDING, Purpose, Role, Warmth, Workload

__all__ = ["Arm", "StudyPlan", "Turn"]


class Arm(Record, frozen=True, kw_only=True):
    """One thing that is compared. `workload` may hold `{block}` and `{index}` in its arguments and
    variables; `code_sha256` is the digest of what ships with it, without the study's own file."""

    name: str
    workload: Workload
    workload_sha256: str
    code_sha256: str
    policy: str | None = None
    backend: str | None = None


class Turn(Record, frozen=True, kw_only=True):
    """One run in the planned order, counted from 1."""

    index: int
    block: int
    arm: str


class StudyPlan(Record, frozen=True, kw_only=True):
    """What is run, in which order, and what it is to decide. The first arm is the base.

    `sha256` is the digest of all of it that bears on the result: not of where the files lay, when it was
    made or what the file was called. `margin` is a decimal text.
    """

    schema: str = "route.study/1"
    id: str
    sha256: str
    name: str
    file: str
    """The study.toml, absolute."""
    stand: str
    """The folder whose route.toml holds, absolute."""
    created_us: int
    n: int
    margin: str
    seed: int
    vary: tuple[str, ...]
    metric: str | None
    warm: bool = False
    aa: bool = False
    stop_after: int = 3
    arms: tuple[Arm, ...]
    turns: tuple[Turn, ...]

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def order(self) -> str:
        """`ABBA BAAB`, letters in the order of the arms."""
        names = [arm.name for arm in self.arms]
        letters = "".join(chr(65 + names.index(turn.arm)) for turn in self.turns)
        step = 2 * len(names)
        return " ".join(letters[i : i + step] for i in range(0, len(letters), step))

    def digest_of_all(self) -> str:
        """What `sha256` must be."""
        arms = [{name: item for name, item in plain(arm).items() if name != "workload"} for arm in self.arms]
        return digest(
            {
                "schema": self.schema,
                "name": self.name,
                "n": self.n,
                "margin": self.margin,
                "seed": self.seed,
                "vary": sorted(self.vary),
                "metric": self.metric,
                "warm": self.warm,
                "stop_after": self.stop_after,
                "arms": arms,
                "turns": [[turn.index, turn.block, turn.arm] for turn in self.turns],
            }
        )

    def check(self) -> StudyPlan:
        """Itself. Raises `StoreError` if it is not what its digest stands for."""
        if self.digest_of_all() != self.sha256:
            raise StoreError(
                f"the plan of study {self.id} is not the one it was begun with",
                mend="put its study.json back, or begin another study",
            )
        return self

    # One run

    def key(self, index: int, number: int = 1) -> str:
        """The key of try `number` of run `index`."""
        return f"{self.sha256}/{index}" + (f"/{number}" if number > 1 else "")

    def seeding_key(self, arm: str, number: int) -> str:
        return f"{self.sha256}/warm/{arm}/{number}"

    def label(self, turn: Turn) -> str:
        """The values of the receipt's `study.*`, as JSON."""
        return json.dumps(
            {
                "id": self.id,
                "sha256": self.sha256,
                "index": turn.index,
                "n_planned": len(self.turns),
                "arm": turn.arm,
                "arms": [arm.name for arm in self.arms],
                "block": turn.block,
                "order_seed": self.seed,
                "vary": list(self.vary),
                "margin": self.margin,
            },
            sort_keys=True,
        )

    def workload(self, turn: Turn) -> Workload:
        """What run `turn` runs. A cold start has volumes of its own, so that it finds none of another's."""
        found = _filled(self.arm(turn.arm).workload, turn.block, turn.index)
        if is_cold(found):
            return msgspec.structs.replace(found, name=f"{found.name}-{self.sha256[:10]}-{turn.index}")
        return found

    def seeding(self, arm: str) -> Workload:
        """What fills the compile cache of `arm`: its work, taking the cache as it is, never evidence."""
        found = _filled(self.arm(arm).workload, 0, 0)
        return msgspec.structs.replace(
            found,
            needs=msgspec.structs.replace(found.needs, warmth=Warmth.ANY),
            tags=tuple(dict.fromkeys((*found.tags, SEEDING))),
        )


def is_cold(workload: Workload) -> bool:
    """Whether each run must find a compile cache that nobody has used."""
    cold = workload.purpose is Purpose.COLD_START or workload.needs.warmth is Warmth.COLD
    return cold and Role.COMPILE_CACHE in workload.volumes


def _filled(workload: Workload, block: int, index: int) -> Workload:
    def fill(text: str) -> str:
        return text.replace("{block}", str(block)).replace("{index}", str(index))

    entry = msgspec.structs.replace(workload.entry, args=tuple(map(fill, workload.entry.args)))
    env: dict[str, Any] = {name: fill(value) for name, value in workload.env.items()}
    return msgspec.structs.replace(workload, entry=entry, env=env)
