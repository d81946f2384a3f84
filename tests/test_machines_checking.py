"""Proves that what is wrong with a machine is named within its deadline, each thing with its mend."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from boards import element, lost, printed, process, tool, uuid

from compute_router.backend import HealthCheck
from compute_router.errors import CredentialsError, Unavailable
from compute_router.machines.checking import check, check_all
from compute_router.machines.contract import Stream
from compute_router.machines.entry import MachineEntry
from compute_router.machines.judging import clock, facts
from compute_router.machines.local import LocalMachine, open_command
from compute_router.supervisor import checkup
from compute_router.supervisor.wire import Fault

CPU = MachineEntry(address="me@h1", accelerator="cpu")
GOOD = ["reachable", "python3", "login shell", "clock", "root", "leases", "logout"]


class Behind(LocalMachine):
    """This machine behind a login of the test's choosing: a line of sh that ends in `exec "$@"`."""

    def __init__(self, root: Path, line: str = 'exec "$@"', **environ: str) -> None:
        super().__init__(root, name="h1")
        self.line, self.environ = line, environ

    def open(self, argv: Sequence[str], *, deadline: float) -> Stream:  # type: ignore[override]
        program = [sys.executable if argv[0] == "python3" else argv[0], *argv[1:]]
        environ = {**os.environ, **self.environ}
        return open_command(["sh", "-c", self.line, "sh", *program], environ=environ)


@pytest.fixture(autouse=True)
def _leases_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROUTE_LEASE_DIR", str(tmp_path / "leases"))


def named(checks: Sequence[HealthCheck]) -> dict[str, HealthCheck]:
    return {each.name: each for each in checks}


def one(machine: LocalMachine, name: str, entry: MachineEntry = CPU) -> HealthCheck:
    checks = check(machine, entry)
    found = named(checks)
    assert name in found, checks
    assert found[name].mend, found[name]
    assert "\n" not in found[name].seen
    return found[name]


def test_a_machine_that_is_well_says_so_in_eight_lines(tmp_path: Path) -> None:
    checks = check(Behind(tmp_path / "root"), CPU)
    assert [each.name for each in checks if each.name not in ("room", "files", "memory")] == GOOD
    assert all(each.ok for each in checks), checks
    assert list((tmp_path / "root" / "stage").iterdir()) == []


def test_a_quick_look_opens_and_greets(tmp_path: Path) -> None:
    [only] = check(Behind(tmp_path / "root"), CPU, quick=True)
    assert (only.name, only.ok) == ("reachable", True)
    assert only.seen.startswith("new here"), "no supervisor is sent for a glance"
    check(Behind(tmp_path / "root"), CPU)
    [only] = check(Behind(tmp_path / "root"), CPU, quick=True)
    assert only.seen.startswith("Python 3.")
    machine = Behind(tmp_path)
    machine.root = "no/where"
    [only] = check(machine, CPU, quick=True)
    assert (only.name, only.ok) == ("root", False)


# The login


class Refusing(LocalMachine):
    def __init__(self, root: Path, error: Exception) -> None:
        super().__init__(root, name="h1")
        self.error = error

    def open(self, argv: Sequence[str], *, deadline: float) -> Stream:  # type: ignore[override]
        raise self.error


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize(
    ("error", "name"),
    [
        (Unavailable("h1: the name h1 cannot be looked up: no such name", mend="correct it"), "reachable"),
        (CredentialsError("h1: THE KEY OF me@h1 HAS CHANGED: it shows x", mend="ask"), "key"),
        (CredentialsError("h1: me@h1 lets nobody in: no key is taken", mend="ssh-copy-id"), "login"),
    ],
)
def test_what_keeps_us_out_is_the_only_finding(
    tmp_path: Path, error: Exception, name: str, quick: bool
) -> None:
    [only] = check(Refusing(tmp_path, error), CPU, quick=quick)
    assert (only.name, only.ok) == (name, False)
    assert only.seen == str(error).removeprefix("h1: ")
    assert only.mend


def test_what_the_login_shell_says_of_a_missing_python_comes_through(tmp_path: Path) -> None:
    line = 'case "$1" in *python*) exec dash -c "exec no-such-python3";; esac; exec "$@"'
    found = one(Behind(tmp_path / "root", line.replace("dash", shutil.which("dash") or "sh")), "python3")
    assert not found.ok
    assert "no-such-python3: not found" in found.seen


def test_an_old_python_is_told_by_its_version(tmp_path: Path) -> None:
    code = "import sys; sys.version_info = (3, 6, 9); exec(sys.argv[1])"
    line = (
        f'case "$1" in *python*) shift 4; exec {sys.executable} -I -S -c {shlex.quote(code)} "$@"'
        ';; esac; exec "$@"'
    )
    found = one(Behind(tmp_path / "root", line), "python3")
    assert (found.ok, found.seen) == (False, "python3 here is 3.6")


def test_a_login_that_runs_nothing_is_told_with_its_own_words(tmp_path: Path) -> None:
    found = one(
        Behind(tmp_path / "root", "echo This account is currently not available. >&2; exit 1"), "login shell"
    )
    assert not found.ok
    assert "status 1: This account is currently not available." in found.seen


def test_noise_before_the_answer_is_a_warning_with_its_size_and_beginning(tmp_path: Path) -> None:
    found = one(Behind(tmp_path / "root", 'echo "Welcome to h1"; exec "$@"'), "banner")
    assert (found.ok, found.warns) == (True, True)
    assert "14 bytes" in found.seen
    assert "Welcome to h1" in found.seen


def test_a_slow_login_shell_is_a_warning(tmp_path: Path) -> None:
    found = one(Behind(tmp_path / "root", 'sleep 0.5; exec "$@"'), "login shell")
    assert (found.ok, found.warns) == (True, True)
    assert int(found.seen.split()[-2]) >= 500


def test_a_login_that_hangs_is_told_at_the_deadline_and_holds_up_no_other(tmp_path: Path) -> None:
    machines: dict[str, tuple[LocalMachine, MachineEntry]] = {
        "hangs": (Behind(tmp_path / "a", "sleep 20"), CPU),
        "well": (Behind(tmp_path / "b"), CPU),
    }
    found = check_all(machines, 4.0)
    assert all(each.ok for each in found["well"]), found["well"]
    assert not found["hangs"][-1].ok
    assert found["hangs"][-1].mend


# The root


@pytest.mark.parametrize(("root", "said"), [("route", "not absolute"), ("/proc/no", "cannot be used")])
def test_a_root_that_cannot_be_is_told(tmp_path: Path, root: str, said: str) -> None:
    machine = Behind(tmp_path)
    machine.root = root
    found = one(machine, "root")
    assert not found.ok
    assert said in found.seen


def mounted(root: Path, options: str, then: str = "") -> str:
    """A login whose mount namespace has a file system of its own at `root`; skips where none may be made."""
    line = f"mount -t tmpfs -o {options} tmpfs {root}"
    root.mkdir(exist_ok=True)
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    own = "-m" if os.geteuid() == 0 else "-rm"
    tried = subprocess.run(["unshare", own, "sh", "-c", line], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no mount namespace of our own here: {tried.stderr[:100]}")
    inner = f'{line} && {then or "true"} && exec "$@"'
    return f'exec unshare {own} sh -c {shlex.quote(inner)} sh "$@"'


def test_a_root_where_nothing_may_be_executed_is_missing(tmp_path: Path) -> None:
    root = tmp_path / "root"
    found = one(Behind(root, mounted(root, "noexec,size=2g")), "root")
    assert not found.ok
    assert "nothing can be executed" in found.seen
    assert "Permission denied" in found.seen
    assert "noexec" in found.mend


@pytest.mark.parametrize(
    ("options", "then", "said"),
    [
        ("size=8m", "true", "free"),
        ("size=1m", "head -c 2m /dev/zero > {root}/full 2>/dev/null; true", "No space left"),
        ("size=2g,nr_inodes=2000", "true", "more files"),
    ],
)
def test_a_root_without_room_is_missing(tmp_path: Path, options: str, then: str, said: str) -> None:
    root = tmp_path / "root"
    found = one(Behind(root, mounted(root, options, then.format(root=root))), "root")
    assert not found.ok
    assert said in found.seen


def test_a_root_in_memory_warns(tmp_path: Path) -> None:
    root = tmp_path / "root"
    machine = Behind(root, mounted(root, "size=2g"))
    found = one(machine, "memory")
    assert (found.ok, found.warns) == (True, True)
    assert one(machine, "room").warns


def test_a_root_on_a_network_is_missing(tmp_path: Path) -> None:
    (tmp_path / "mountinfo").write_text("1 0 0:40 / / rw - nfs4 server:/ rw\n")
    root = tmp_path / "root"
    line = mounted(root, "size=2g", f"mount --bind {tmp_path}/mountinfo /proc/$$/mountinfo")
    found = one(Behind(root, line), "root")
    assert not found.ok
    assert "network file system (nfs4)" in found.seen


def test_a_lease_folder_that_keeps_others_out_warns(tmp_path: Path) -> None:
    (tmp_path / "leases").mkdir(mode=0o700)
    found = one(Behind(tmp_path / "root"), "leases")
    assert (found.ok, found.warns) == (True, True)
    assert found.mend == f"chmod 1777 {tmp_path}/leases"
    missing = one(Behind(tmp_path / "root", ROUTE_LEASE_DIR="/proc/no/leases"), "leases")
    assert not missing.ok


# The clock and logind


@pytest.mark.parametrize(
    ("told", "warns", "said"),
    [
        ((2000, 900_000), False, "right to"),
        ((3_000_000, 2_000_000), False, "right to"),  # so slow an answer tells of no more
        ((2000, 1_500_000), True, "1.5 s ahead of ours"),
        ((2000, -3 * 3_600_000_000), True, "3 h 00 min behind ours"),
        ((2000, 600_000_000), True, "10 min ahead"),
        (None, True, "not told"),
    ],
)
def test_a_clock_that_is_off_warns_with_its_figure(told: Any, warns: bool, said: str) -> None:
    found = clock(told)
    assert (found.ok, found.warns) == (True, warns)
    assert said in found.seen


def test_a_machine_whose_clock_is_hours_ahead(tmp_path: Path) -> None:
    code = "import sys, time; f = time.time_ns; time.time_ns = lambda: f() + 10800 * 10**9; exec(sys.argv[1])"
    line = (
        f'case "$1" in *python*) shift 4; exec {sys.executable} -I -S -c {shlex.quote(code)} "$@"'
        ';; esac; exec "$@"'
    )
    found = one(Behind(tmp_path / "root", line), "clock")
    assert (found.ok, found.warns, found.seen) == (True, True, "it is 3 h 00 min ahead of ours")


@pytest.mark.parametrize(
    ("files", "user", "kills"),
    [
        ({}, "me", False),
        ({"logind.conf": "[Login]\n#KillUserProcesses=yes\n"}, "me", False),
        ({"logind.conf": "[Login]\nKillUserProcesses=yes\n"}, "me", True),
        ({"logind.conf": "[Login]\nKillUserProcesses=yes\n"}, "root", False),
        ({"logind.conf": "KillUserProcesses=yes\nKillExcludeUsers=root me\n"}, "me", False),
        ({"logind.conf": "KillUserProcesses=yes\nKillOnlyUsers=you\n"}, "me", False),
        (
            {"logind.conf": "KillUserProcesses=yes\n", "logind.conf.d/9.conf": "KillUserProcesses=no\n"},
            "me",
            False,
        ),
        (
            {"logind.conf.d/1.conf": "KillUserProcesses=no\n", "logind.conf.d/2.conf": "KillUserProcesses=1"},
            "me",
            True,
        ),
    ],
)
def test_whether_logind_ends_what_a_login_leaves(
    tmp_path: Path, files: Mapping[str, str], user: str, kills: bool
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert checkup._kills(user, (str(tmp_path / "none"), str(tmp_path))) == kills


def test_a_login_whose_processes_are_ended_with_it_is_missing() -> None:
    told = {"login": {"user": "me", "session_scope": True, "kills": True, "linger": True}}
    found = named(list(facts(told, CPU)))["logout"]
    assert not found.ok
    assert "KillUserProcesses" in found.seen


def test_facts_that_could_not_be_had_are_findings_and_no_errors() -> None:
    for told in ({}, {name: {"why": "no answer"} for name in ("root", "leases", "login", "gpus")}):
        found = named(list(facts(told, MachineEntry(address="x"))))
        assert not found["root"].ok
        assert not found["gpus"].ok
        assert found["logout"].warns


# GPUs, by stand-ins for the driver's tool

H200 = MachineEntry(address="me@h1", accelerator="H200:2")


def with_gpus(
    tmp_path: Path, *elements: str, entry: MachineEntry = H200, **more: Any
) -> dict[str, HealthCheck]:
    environ = tool(
        tmp_path, more.pop("text", "") + printed(*elements) if elements else more.pop("text"), **more
    )
    return named(check(Behind(tmp_path / "root", **environ), entry))


def two(**over: Any) -> list[str]:
    return [element("H200-SXM", 0), element("H200-SXM", 1, **over)]


def test_gpus_that_are_well_are_counted(tmp_path: Path) -> None:
    found = with_gpus(tmp_path, *two())
    assert all(each.ok for each in found.values())
    assert found["gpus"].seen == "2 x H200, driver 535.129.03"


@pytest.mark.parametrize(
    ("elements", "name", "said"),
    [
        ([element("H200-SXM", 0)], "gpus", "1 x H200, where the configuration says 2 x H200"),
        (
            [element("H100-SXM-80GB", n) for n in (0, 1)],
            "gpus",
            "2 x H100, where the configuration says 2 x H200",
        ),
        (two(ecc_uncorrected="3"), "sick gpu", "3 uncorrectable"),
        (two(pending="Yes"), "sick gpu", "row of memory"),
        (two(failure="Yes"), "sick gpu", "could not replace"),
    ],
)
def test_fewer_other_or_sick_gpus_are_missing(
    tmp_path: Path, elements: list[str], name: str, said: str
) -> None:
    found = with_gpus(tmp_path, *elements)
    assert not found[name].ok
    assert said in found[name].seen
    assert found[name].mend


def test_a_gpu_that_is_lost_is_missing(tmp_path: Path) -> None:
    found = with_gpus(tmp_path, element("H200-SXM", 0), text=lost(1))
    assert not found["sick gpu"].ok
    assert "GPU is lost" in found["sick gpu"].seen
    assert not found["gpus"].ok


def test_a_sick_gpu_beside_enough_that_are_well_warns(tmp_path: Path) -> None:
    found = with_gpus(tmp_path, *two(), element("H200-SXM", 2, ecc_uncorrected="1"))
    assert (found["sick gpu"].ok, found["sick gpu"].warns, found["gpus"].ok) == (True, True, True)


def test_somebody_on_all_gpus_is_missing_and_on_one_of_them_a_warning(tmp_path: Path) -> None:
    ours = process(os.getpid())
    found = with_gpus(tmp_path, *two(processes=ours, used="518 MiB"))["foreign"]
    assert (found.ok, found.warns) == (True, True)
    assert f"GPU 1 ({uuid(1)}) is used by process {os.getpid()} (" in found.seen
    both = [element("H200-SXM", n, used="70000 MiB") for n in (0, 1)]
    found = with_gpus(tmp_path, *both)["foreign"]
    assert not found.ok
    assert "somebody whom we cannot see, 73 GB of its memory are taken" in found.seen


def test_a_gpu_of_a_run_of_ours_is_nobody_elses(tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "leases").mkdir()
    os.chmod(tmp_path / "leases", 0o1777)
    with open(tmp_path / "leases" / f"device.{uuid(1)}.lock", "w") as lease:
        fcntl.flock(lease, fcntl.LOCK_EX)
        assert "foreign" not in with_gpus(tmp_path, *two(processes=process(os.getpid())))
    assert "foreign" in with_gpus(tmp_path, *two(processes=process(os.getpid())))


@pytest.mark.parametrize(
    ("more", "said", "mend"),
    [
        (
            {"text": "Failed to initialize NVML: Driver/library version mismatch\n", "code": 18},
            "its library and its module differ",
            "restart the machine",
        ),
        ({"text": "NVIDIA-SMI has failed because it couldn't", "code": 9}, "NVIDIA-SMI has failed", "driver"),
        ({"text": "", "hang": True}, "hangs", "dmesg"),
    ],
)
def test_a_driver_that_is_broken_is_missing(
    tmp_path: Path, more: dict[str, Any], said: str, mend: str
) -> None:
    found = with_gpus(tmp_path, **more)["driver"]
    assert not found.ok
    assert said in found.seen
    assert mend in found.mend


def test_no_driver_where_gpus_are_plugged_in(tmp_path: Path) -> None:
    error = {"what": "there is no nvidia-smi here", "mend": "install the driver, or ask for `cpu`"}
    entry = MachineEntry(address="x")
    told = {"gpus": {"boards": 8, "error": error, "list": []}}
    found = named(list(facts(told, entry)))["driver"]
    assert not found.ok
    assert "8 GPUs are plugged in" in found.seen
    told["gpus"]["boards"] = 0
    assert named(list(facts(told, entry)))["gpus"].seen == "none here"
    assert not named(list(facts(told, H200)))["driver"].ok


def test_boards_are_counted_on_the_bus_of_a_whole_machine(tmp_path: Path) -> None:
    for number, (vendor, kind) in enumerate(
        [("0x10de", "0x030200"), ("0x10de", "0x040300"), ("0x8086", "0x030000")]
    ):
        device = tmp_path / "sys/bus/pci/devices" / f"0000:0{number}:00.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text(vendor + "\n")
        (device / "class").write_text(kind + "\n")
    assert checkup.plugged(str(tmp_path)) is None  # as a container sees it
    (tmp_path / "proc/self/ns").mkdir(parents=True)
    (tmp_path / "proc/self/ns/pid").symlink_to("pid:[4026531836]")
    assert checkup.plugged(str(tmp_path)) == 1


KMSG = """\
6,1000,5000000,-;usb 1-1: new device
 SUBSYSTEM=usb
4,1001,9000000,-;NVRM: Xid (PCI:0000:19:00): 13, pid=811, name=python, Graphics Exception
4,1002,9500000,-;NVRM: Xid (PCI:0000:1a:00): 79, pid='<unknown>', GPU has fallen off the bus.
4,1003,9600000,-;NVRM: Xid (PCI:0000:1a:00): 79, pid='<unknown>', GPU has fallen off the bus.
"""


def test_errors_of_the_hardware_in_the_kernels_log_warn(tmp_path: Path) -> None:
    (tmp_path / "kmsg").write_text(KMSG)
    told = checkup.xids(str(tmp_path / "kmsg"))
    assert [(row["bus"], row["xid"], row["count"]) for row in told["list"]] == [
        ("0000:19:00", 13, 1),  # a program's own
        ("0000:1a:00", 79, 2),
    ]
    assert "why" in checkup.xids(str(tmp_path / "none"))
    found = [each for each in facts({"xids": told}, H200) if each.name == "xid"]
    assert [(each.ok, each.warns) for each in found] == [(True, True)]
    assert found[0].seen.startswith("the GPU at 0000:1a:00 reported Xid 79 2 times, last ")


def test_the_facts_are_json_without_floats(tmp_path: Path) -> None:
    (tmp_path / "stage").mkdir()
    told = checkup.checkup(str(tmp_path), {"within_us": 3_000_000})

    def no_float(text: str) -> None:
        raise AssertionError(text)

    assert set(json.loads(json.dumps(told), parse_float=no_float)) == {
        "root",
        "leases",
        "login",
        "gpus",
        "xids",
    }
    assert "gpus" not in checkup.checkup(str(tmp_path), {"gpus": False})
    with pytest.raises(Fault, match="within_us"):
        checkup.checkup(str(tmp_path), {"within_us": "soon"})
    # A folder that is gone is a fact that could not be had.
    assert "why" in checkup.checkup(str(tmp_path / "no"), {"gpus": False})["root"]
