"""Proves the plan of a study: a balanced, seeded order; a digest of what matters alone; errors with lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compute_router.errors import InputError, RouteError, StoreError
from compute_router.registry import Registry
from compute_router.studies.folder import StudyFolder
from compute_router.studies.order import blocks, least_blocks, least_p
from compute_router.studies.reading import Read, read

KINDS = Registry().kinds()
WORK = """\
# /// script
# [tool.route]
# kind = "train"
# purpose = "benchmark"
# ///
"""
GOOD = """\
[study]
name = "s"
workload = "work.py"
n = 6
seed = 7
vary = ["kernel"]
set = { tags = ["x"] }
args = ["--seed", "{block}"]

[arms.flash]
args = ["--kernel", "flash"]

[arms.math]
args = ["--kernel", "math"]
env = { SIDE = "{index}" }
"""


# The order


@given(st.integers(2, 6), st.integers(1, 40), st.integers(0, 2**53 - 1))
def test_every_block_holds_every_arm_once_and_every_pair_is_mirrored(arms: int, n: int, seed: int) -> None:
    order = blocks(arms, n, seed)
    assert len(order) == n
    assert all(sorted(block) == list(range(arms)) for block in order)
    assert all(second == first[::-1] for first, second in zip(order[::2], order[1::2], strict=False))
    if n % 2 == 0:
        where = Counter[int]()
        for at, arm in enumerate(arm for block in order for arm in block):
            where[arm] += at
        assert len(set(where.values())) == 1, "the mean position of every arm is the same"


def test_every_order_is_drawn_about_as_often_as_another() -> None:
    drawn = Counter(blocks(3, 1, seed)[0] for seed in range(6000))
    assert len(drawn) == 6
    # 1000 each; five standard deviations are 144.
    assert all(abs(count - 1000) < 145 for count in drawn.values()), drawn
    two = Counter(blocks(2, 2, seed)[0] for seed in range(2000))
    assert abs(two[0, 1] - 1000) < 112


def test_the_order_of_a_seed_is_the_same_for_ever() -> None:
    """Whoever reads a receipt later must be able to draw the order again."""
    shown = ["".join("AB"[arm] for block in blocks(2, 6, seed) for arm in block) for seed in range(4)]
    assert shown == ["BAABBAABABBA", "ABBABAABABBA", "ABBAABBAABBA", "ABBAABBABAAB"]
    assert blocks(4, 2, 7) == ((0, 2, 3, 1), (1, 3, 2, 0))


def test_how_many_blocks_allow_a_verdict() -> None:
    assert least_blocks(2) == 6
    assert (least_p(6), least_p(5)) == (0.03125, 0.0625)
    assert least_blocks(3) == 7


# Reading


@pytest.fixture
def project(folder: Path) -> Path:
    (folder / "work.py").write_text(WORK)
    return folder


def planned(project: Path, text: str, name: str = "study.toml") -> Read:
    (project / name).write_text(text)
    return read(project / name, stand=project, kinds=KINDS, home=project.parent / "home")


def test_a_good_one(project: Path) -> None:
    found = planned(project, GOOD)
    plan = found.plan
    assert found.warnings == ()
    assert plan.id == f"s-{plan.sha256[:10]}"
    assert [arm.name for arm in plan.arms] == ["flash", "math"]
    assert plan.arms[0].workload.entry.args == ("--seed", "{block}", "--kernel", "flash")
    assert plan.arms[1].workload.tags == ("x",)
    assert [turn.index for turn in plan.turns] == list(range(1, 13))
    last = plan.turns[-1]
    made = plan.workload(next(t for t in plan.turns if t.arm == "math" and t.block == last.block))
    assert made.entry.args == ("--seed", "6", "--kernel", "math")
    assert made.env["SIDE"] in ("11", "12")
    label = json.loads(plan.label(last))
    assert label["index"] == label["n_planned"] == 12
    assert (label["margin"], label["vary"], label["arms"]) == ("0.02", ["kernel"], ["flash", "math"])


BAD: list[tuple[str, str, int | None, str, str]] = [
    ("marign = 0.02", "no key 'marign'", 2, "'margin'", "n = 6"),
    ("n = 0", "n is 0", 2, "from 1 to 1000", "n = 6"),
    ("n = 5000000", "n is 5000000", 2, "from 1 to 1000", "n = 6"),
    ('n = "6"', "n must be an integer", 2, "from 1", "n = 6"),
    ("margin = 2", "margin must be a fraction", 2, "0.02", "n = 6"),
    ("margin = 0.9", "margin is 0.9", 2, "0.5", "n = 6"),
    ('vary = ["kernle"]', "'kernle' is no field", 2, "'kernel'", 'vary = ["kernel"]'),
    ('set = { purpos = "smoke" }', "no key 'purpos'", 2, "purpose", 'set = { tags = ["x"] }'),
    ('set = { purpose = "benchmarc" }', "benchmarc", 2, "benchmark", 'set = { tags = ["x"] }'),
    ('workload = "wrok.py"', "wrok.py", 2, "", 'workload = "work.py"'),
    ('workload = "train:chargpt"', "train:chargpt", 2, "char-gpt", 'workload = "work.py"'),
    ("warm = true", "needs a compile cache", 2, "compile-cache", "n = 6"),
    ('name = "A b"', "label", 2, "", 'name = "s"'),
    ('name = "Attention"', "folder", 2, '"attention"', 'name = "s"'),
    ("aa = true", "no two arms are the same", 2, "take aa out", "n = 6"),
    ('vary = ["purpose"]', "cannot be the variable", 2, "agree in it", 'vary = ["kernel"]'),
    ("seed = -1", "seed is -1", 2, "from 0", "seed = 7"),
]


@pytest.mark.parametrize(("line", "what", "at", "mend", "instead"), BAD, ids=[b[0] for b in BAD])
def test_what_is_wrong_is_named_with_its_line_and_the_right_word(
    project: Path, line: str, what: str, at: int | None, mend: str, instead: str
) -> None:
    text = "[study]\n" + line + GOOD.replace(instead + "\n", "\n").removeprefix("[study]")
    with pytest.raises(RouteError) as caught:
        planned(project, text)
    error = caught.value
    assert what in error.what
    assert mend in error.mend
    assert error.line == at
    assert (error.file or "").endswith("study.toml")
    assert int(error.exit_code) == 64


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        (GOOD.replace("[arms.flash]", "[arm.flash]"), "no section 'arm'", 10),
        (GOOD.split("[arms.math]")[0], "it has one", 10),
        ("[study]\nworkload = 'work.py'\n", "at least two arms", 1),
        (GOOD.replace("--kernel", "-k").replace('"math"]', '"flash"]').split("env =")[0], "same work", 13),
        (GOOD + "n = 3\n", "[arms.math] has no key 'n'", 16),
        (GOOD + 'set = { kind = "bench" }\n', "different kinds", 13),
        (GOOD + 'set = { purpose = "scale" }\n', "different purposes", 13),
        (GOOD + 'set = { metrics = { primary = "x" } }\n', "different metrics", 13),
        (GOOD.replace("[arms.math]", '[arms."../x"]'), "no name of an arm", 13),
        (GOOD.replace("n = 6", "n = six"), "TOML", 4),
        ("n = 6\n" + GOOD, "no section 'n'", 1),
    ],
)
def test_what_cannot_be_among_arms(project: Path, text: str, what: str, line: int) -> None:
    with pytest.raises(RouteError) as caught:
        planned(project, text)
    assert what in caught.value.what
    assert caught.value.line == line
    assert caught.value.mend


def test_a_file_that_is_no_text(project: Path) -> None:
    (project / "study.toml").write_bytes(b"\xff\x00\x00")
    with pytest.raises(InputError):
        read(project / "study.toml", stand=project, kinds=KINDS)


def test_what_is_only_warned_of(project: Path) -> None:
    few = planned(project, GOOD.replace("n = 6", "n = 5")).warnings
    assert len(few) == 1
    assert "study.toml:4" in few[0]
    assert "p = 0.0625" in few[0]
    assert "n = 6 or more" in few[0]
    smoke = planned(project, GOOD.replace("{ tags =", '{ purpose = "smoke", tags =')).warnings
    assert any("exploratory" in warning for warning in smoke)
    none = planned(project, GOOD.replace('vary = ["kernel"]\n', "")).warnings
    assert any("vary names nothing" in warning for warning in none)
    many = planned(project, GOOD.replace("n = 6", "n = 60")).warnings
    assert any("120 runs" in warning for warning in many)


def test_an_aa_study_says_so(project: Path) -> None:
    text = "[study]\nworkload = 'work.py'\naa = true\n[arms.a]\n[arms.b]\n"
    found = planned(project, text)
    assert found.warnings == ()
    assert found.plan.name == "project", "a study without a name has that of its folder"


# The digest

CHANGES: dict[str, tuple[str, str]] = {
    "name": ('name = "s"', 'name = "t"'),
    "n": ("n = 6", "n = 8"),
    "seed": ("seed = 7", "seed = 8"),
    "vary": ('["kernel"]', '["kernel", "compile"]'),
    "args": ('"flash"]', '"efficient"]'),
    "set": ('["x"]', '["y"]'),
    "env": ("SIDE", "OTHER"),
    "margin": ("n = 6", "n = 6\nmargin = 0.03"),
    "metric": ("n = 6", 'n = 6\nmetric = "loss"'),
    "stop rule": ("n = 6", "n = 6\nstop_after = 1"),
    "place": ("n = 6", 'n = 6\nbackend = "local"'),
    "policy": ("n = 6", 'n = 6\npolicy = "cheapest"'),
    "base": ("[arms.flash]", "[arms.zero]\nargs = []\n[arms.flash]"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_digest_follows_everything_that_matters(project: Path, name: str) -> None:
    before = planned(project, GOOD).plan
    old, new = CHANGES[name]
    assert old in GOOD
    assert planned(project, GOOD.replace(old, new)).plan.sha256 != before.sha256


def test_the_digest_follows_the_code_and_not_a_remark(project: Path) -> None:
    before = planned(project, GOOD).plan
    assert planned(project, "# a remark\n" + GOOD).plan.sha256 == before.sha256
    assert planned(project, GOOD.replace("n = 6", "n = 6\nmargin = 0.020")).plan.sha256 == before.sha256
    (project / "module.py").write_text("x = 1\n")
    assert planned(project, GOOD).plan.sha256 != before.sha256
    (project / "module.py").unlink()
    assert planned(project, GOOD).plan.sha256 == before.sha256


def test_the_digest_is_the_same_in_every_process_and_folder(project: Path, tmp_path: Path) -> None:
    before = planned(project, GOOD).plan
    code = (
        "import sys; from pathlib import Path; from compute_router.registry import Registry;"
        "from compute_router.studies.reading import read; p = Path(sys.argv[1]);"
        "print(read(p / 'study.toml', stand=p, kinds=Registry().kinds()).plan.sha256)"
    )
    there = tmp_path / "elsewhere"
    there.mkdir()
    for name in ("work.py", "study.toml"):
        (there / name).write_bytes((project / name).read_bytes())
    for folder, seed in ((project, "1"), (there, "2")):
        out = subprocess.run(
            [sys.executable, "-c", code, str(folder)],
            capture_output=True,
            text=True,
            env={"PYTHONHASHSEED": seed, "HOME": str(tmp_path)},
            check=True,
        )
        assert out.stdout.strip() == before.sha256


# On the disk


def stored(project: Path, home: Path) -> StudyFolder:
    plan = planned(project, GOOD).plan
    home.mkdir(exist_ok=True)
    folder = StudyFolder(home, plan.id)
    assert folder.create(plan) is True
    assert folder.create(plan) is False
    return folder


def test_a_plan_is_read_as_it_was_written(project: Path, home: Path) -> None:
    folder = stored(project, home)
    again = StudyFolder.open(home, folder.id[:6]).plan
    assert again == folder.plan
    assert [turn.arm for turn in again.turns] == [turn.arm for turn in planned(project, GOOD).plan.turns]
    assert StudyFolder.open(home, "s").id == StudyFolder.open(home, "latest").id == folder.id


@pytest.mark.parametrize("change", ["seed", "order", "arm"])
def test_a_plan_that_was_changed_is_not_believed(project: Path, home: Path, change: str) -> None:
    folder = stored(project, home)
    data: dict[str, Any] = json.loads(folder.file.read_bytes())
    if change == "seed":
        data["seed"] = 8
    elif change == "order":
        data["turns"][0]["arm"], data["turns"][1]["arm"] = data["turns"][1]["arm"], data["turns"][0]["arm"]
    else:
        data["arms"][0]["code_sha256"] = "0" * 64
    folder.file.write_text(json.dumps(data))
    with pytest.raises(StoreError, match="not the one it was begun with"):
        _ = StudyFolder(home, folder.id).plan


def test_the_one_lock(project: Path, home: Path) -> None:
    folder = stored(project, home)
    assert folder.driven is False
    lock = folder.take()
    assert lock is not None
    assert StudyFolder(home, folder.id).driven is True
    assert StudyFolder(home, folder.id).take(patience=0) is None
    assert folder.driver is None, "whoever holds it has not said who drives"
    os.write(lock, f"{os.getpid()}\n".encode())
    assert folder.driver == os.getpid()
    os.close(lock)
    assert folder.driven is False
    assert folder.driver is None
    lock = folder.take()
    assert lock is not None
    assert folder.driver is None, "the number of the one before is gone"
    os.close(lock)
