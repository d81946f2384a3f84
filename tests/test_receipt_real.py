"""Proves on real runs of this machine that a receipt holds what the supervisor saw, whatever the end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from compute_router import Router, run
from compute_router.receipt import verify
from compute_router.receipt.facts import at_path, missing, value
from compute_router.receipt.summary import lines
from compute_router.records import encode
from compute_router.supervisor.observing.mounted import Places
from compute_router.workload import Entry, Role, Workload

WORK = """
import os, sys, time
import route_report
for step in range(5):
    time.sleep(0.01)
    route_report.step(step, tokens=1000, loss=2.0 - step / 10)
route_report.cache("inductor", hits=3, misses=1, verdict="hit")
open(os.path.join(os.environ["ROUTE_OUTPUTS"], "result.txt"), "w").write("42")
print("the end")
{end}
"""


@pytest.mark.parametrize(
    ("end", "state", "code", "number"),
    [
        ("", "succeeded", 0, None),
        ("sys.exit(3)", "failed", 3, None),
        ("os.kill(os.getpid(), 9)", "failed", None, 9),
    ],
)
def test_a_run_ends_in_a_whole_receipt(
    tmp_path: Path, end: str, state: str, code: int | None, number: int | None
) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "work.py").write_text(WORK.replace("{end}", end))
    entry = Entry(root=str(tmp_path / "src"), script="work.py", args=("--password=canary",))
    router = Router(tmp_path / "home", plugins=False)
    receipt = run(Workload(name="real", entry=entry, kind="train", python=sys.executable), router=router)
    folder = router.store.open("latest")
    assert verify(folder.path) == verify(encode(receipt)) == []
    context = receipt["context"]
    assert [value(context, f"outcome.{n}") for n in ("state", "exit_code", "signal")] == [state, code, number]
    assert receipt["measured"]["run_id"] == folder.id
    for path in (
        "hw.observed.sku",
        "timing.run_us",
        "mem.host_rss_peak",
        "clock.boot_id",
        "outcome.log_tail_sha256",
    ):
        assert not missing(at_path(context, path)), (path, at_path(context, path))
        assert at_path(context, f"{path}.src").startswith("observed")
    assert value(context, "steady.n_steps") == 4
    assert float(value(context, "metrics.tok_s_global")) > 0
    assert at_path(context, "metrics.tok_s_global.src") == "workload"
    assert value(context, "cache")[0]["hits"] == 3
    assert {item["role"] for item in value(context, "storage")} >= {"root"}
    assert [item["path"] for item in value(context, "artifacts")] == ["outputs/result.txt"]
    assert value(context, "hw.match") == "exact"
    assert {p["thing"] for p in value(context, "plugins")} == {"kind", "policy", "backend"}
    assert receipt["evidence_class"] == ("exploratory" if state == "succeeded" else "invalid")
    assert value(context, "workload.args_redacted") == ["--password=***"]
    assert dict(lines(receipt))["state"].startswith(state)
    assert router.store.check_chain() == []
    (folder.path / "outputs" / "result.txt").write_text("43")
    assert [p.code for p in verify(folder.path)] == ["ARTIFACT"]


def test_two_runs_that_share_volumes_tell_where_they_lay_and_what_became_of_them(tmp_path: Path) -> None:
    """Through the client: the classes are those of the disks here, and the listings join up."""
    (tmp_path / "src").mkdir()
    work = "import os\nopen(os.environ['ROUTE_VOLUME_DATA'] + '/' + str(os.getpid()), 'w').write('x')\n"
    (tmp_path / "src" / "work.py").write_text(work)
    entry = Entry(root=str(tmp_path / "src"), script="work.py")
    router = Router(tmp_path / "home", plugins=False)
    volumes = {Role.DATA: "/data", Role.COMPILE_CACHE: "/cache"}
    made = Workload(name="shares", entry=entry, kind="train", python=sys.executable, volumes=volumes)
    first, second = (run(made, router=router) for _ in range(2))
    here = Places().of(str(tmp_path / "home"))
    told = [{i["role"]: i for i in value(receipt["context"], "volumes")} for receipt in (first, second)]
    assert [t["data"]["event"] for t in told] == [["created"], ["reused"]]
    assert told[0]["data"]["manifest_after"] == told[1]["data"]["manifest_before"]
    assert told[1]["data"]["manifest_after"] != told[1]["data"]["manifest_before"], "it has grown"
    assert [t["data"]["committed"] for t in told] == [True, True]
    storage = {i["role"]: i for i in value(second["context"], "storage")}
    assert set(storage) == {"root", "checkpoints", "data", "compile-cache", "tmp"}
    for role in ("root", "data", "compile-cache"):
        assert (storage[role]["class"], storage[role]["fs"]) == (here["class"], here["fs"])
        assert storage[role]["told"] == (here["why"] or here["told"])
        assert storage[role]["free_bytes_start"] > 0
    keys = [receipt["comparability"]["fields"]["storage"] for receipt in (first, second)]
    if here["class"] is None:
        assert keys[0] == keys[1], "its class hides, but it is one device of one boot"
        assert all(name.startswith("unobserved, one device") for _, name in keys[0])
    else:
        assert keys[0] == keys[1] == [["compile-cache", here["class"]], ["data", here["class"]]]
    assert router.store.check_chain() == []
    assert [verify(encode(receipt)) for receipt in (first, second)] == [[], []]
