"""A snapshot ships what git or the ignore files say, names what it leaves out, and is what it says it is.

Real folders and real git. Shown: the same tree gives the same digest, nothing outside the root is
ever read, odd names and special files are named and passed over, and a file that changes after it
was hashed is never sent.
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
from pathlib import Path

import pytest

from compute_router import snapshot as module
from compute_router.errors import InputError
from compute_router.records import canonical
from compute_router.snapshot import FileEntry, LinkEntry, Snapshot, take


def git(folder: Path, *argv: str) -> str:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environ |= {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    who = ("-c", "user.name=n", "-c", "user.email=e@x", "-c", "protocol.file.allow=always")
    return subprocess.run(
        ["git", *who, *argv], cwd=folder, env=environ, check=True, capture_output=True, text=True
    ).stdout


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def paths(taken: Snapshot) -> list[str]:
    return [entry.path for entry in taken.entries]


def why(taken: Snapshot) -> dict[str, str]:
    return dict(taken.skipped)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


@pytest.fixture
def repo(root: Path) -> Path:
    git(root, "init", "-q", "-b", "trunk")
    write(root, **{"train.py": "print(1)\n", "lib/a.py": "a = 1\n", ".gitignore": "*.log\n/data/\n"})
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "First line\n\nsecond")
    return root


def test_files_are_named_by_content_and_mode(root: Path) -> None:
    write(root, **{"a.py": "x", "sub/b.sh": "#!/bin/sh\n"})
    (root / "sub/b.sh").chmod(0o700)
    taken = take(root)
    assert taken.entries == (
        FileEntry(path="a.py", sha256=hashlib.sha256(b"x").hexdigest(), bytes=1, mode=0o644),
        FileEntry(path="sub/b.sh", sha256=hashlib.sha256(b"#!/bin/sh\n").hexdigest(), bytes=10, mode=0o755),
    )
    assert (taken.total_bytes, taken.git, taken.note) == (11, None, "")


def test_digest_depends_on_names_content_and_mode_alone(tmp_path: Path) -> None:
    def made(name: str, text: str = "x", mode: int = 0o644) -> str:
        folder = tmp_path / name
        write(folder, f="x", g=text)
        (folder / "g").chmod(mode)
        os.utime(folder / "g", (1, 1))
        return take(folder).tree_sha256

    assert made("one") == made("two", mode=0o600)
    assert len({made("three"), made("four", text="y"), made("five", mode=0o755)}) == 3


def test_git_ships_tracked_and_untracked_but_not_ignored(repo: Path) -> None:
    write(repo, **{"new.py": "n", "x.log": "no", "data/big.bin": "no", "lib/__pycache__/a.pyc": "no"})
    taken = take(repo)
    assert paths(taken) == [".gitignore", "lib/a.py", "new.py", "train.py"]
    assert why(taken) == {
        "x.log": "ignored by git",
        "data": "ignored by git",
        "lib/__pycache__": "left out by default",
    }


def test_git_facts(repo: Path) -> None:
    clean = take(repo).git
    assert clean is not None
    assert clean.commit == git(repo, "rev-parse", "HEAD").strip()
    assert (clean.branch, clean.dirty, clean.diff_sha256) == ("trunk", False, None)
    assert clean.message == "First line"
    write(repo, **{"lib/a.py": "a = 2\n"})
    changed = take(repo).git
    write(repo, **{"new.py": "n"})
    more = take(repo).git
    write(repo, **{"new.py": "m"})
    other = take(repo).git
    (repo / "train.py").unlink()
    removed = take(repo)
    assert "train.py" not in paths(removed)
    kinds = [changed, more, other, removed.git]
    assert all(k is not None and k.dirty and k.commit == clean.commit for k in kinds)
    assert len({k.diff_sha256 for k in kinds if k is not None}) == 4
    # The same difference has the same digest, whatever the configuration says of diffs.
    git(repo, "config", "diff.noprefix", "true")
    git(repo, "config", "status.showUntrackedFiles", "no")
    again = take(repo).git
    assert again == removed.git


def test_a_folder_inside_a_repository_is_a_root_of_its_own(repo: Path) -> None:
    write(repo, **{"lib/new.py": "n", "outside.py": "o", "lib/y.log": ""})
    taken = take(repo / "lib")
    assert paths(taken) == ["a.py", "new.py"]
    assert taken.git is not None
    assert taken.git.dirty
    assert why(taken) == {"y.log": "ignored by git"}
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "x")
    write(repo, **{"outside.py": "changed"})
    clean = take(repo / "lib").git
    assert clean is not None
    assert not clean.dirty


def test_before_the_first_commit_and_detached(root: Path) -> None:
    git(root, "init", "-q", "-b", "trunk")
    write(root, a="1")
    first = take(root).git
    assert first is not None
    assert (first.commit, first.branch, first.dirty, first.message) == (None, "trunk", True, "")
    git(root, "add", ".")
    git(root, "commit", "-qm", "x")
    git(root, "checkout", "-q", "--detach")
    second = take(root).git
    assert second is not None
    assert second.branch is None
    assert second.commit is not None


def test_a_folder_that_git_ignores_ships_all_the_same(repo: Path) -> None:
    write(repo, **{"data/run.py": "r", "data/deep/x": "x"})
    taken = take(repo / "data")
    assert paths(taken) == ["deep/x", "run.py"]
    assert taken.git is None


def test_git_missing_or_broken_is_said_and_does_no_harm(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(repo, **{"x.log": "no"})
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path / "empty"))
        missing = take(repo)
    assert paths(missing) == [".gitignore", "lib/a.py", "train.py"]
    assert missing.git is None
    assert missing.note == "git could not be asked: it is not installed"
    assert why(missing)["x.log"] == "named in .gitignore"
    (repo / ".git/HEAD").write_text("rubbish")
    broken = take(repo)
    assert broken.tree_sha256 == missing.tree_sha256
    assert broken.note.startswith("git could not be asked: fatal: ")


def test_an_outer_git_dir_does_not_lead_astray(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "nothing"))
    taken = take(repo)
    assert taken.note == ""
    assert len(taken.entries) == 3


def test_no_program_of_the_repository_is_started(repo: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {tmp_path}/sprung\n")
    trap.chmod(0o755)
    git(repo, "config", "core.fsmonitor", str(trap))
    write(repo, **{"train.py": "changed"})
    assert take(repo).git is not None
    assert not (tmp_path / "sprung").exists()


def test_submodules_ship_as_they_stand(repo: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    write(other, **{"m.py": "m", ".gitignore": "*.tmp"})
    git(other, "add", ".")
    git(other, "commit", "-qm", "x")
    git(repo, "submodule", "--quiet", "add", str(other), "vendor/other")
    git(repo, "commit", "-qm", "with submodule")
    write(repo, **{"vendor/other/no.tmp": ""})
    taken = take(repo)
    assert "vendor/other/m.py" in paths(taken)
    assert "vendor/other is a git repository of its own" in taken.note
    assert why(taken)["vendor/other/no.tmp"] == "ignored by git"
    assert taken.git is not None
    assert not taken.git.dirty
    write(repo, **{"vendor/other/m.py": "changed"})
    one = take(repo).git
    write(repo, **{"vendor/other/m.py": "changed again"})
    two = take(repo).git
    assert one is not None
    assert two is not None
    assert one.dirty
    assert one.diff_sha256 != two.diff_sha256
    git(repo, "submodule", "--quiet", "deinit", "-f", "vendor/other")
    assert why(take(repo))["vendor/other"] == "a submodule that is not checked out"


def test_ignore_files_outside_git(root: Path) -> None:
    write(
        root,
        **{
            ".gitignore": "*.log\n/build\nkeep/*\n!keep/this\n",
            "a.log": "", "build/x": "", "sub/build/x": "", "keep/this": "", "keep/that": "",
            "sub/.gitignore": "!b.log\n[bad\n", "sub/b.log": "", "sub/c": "",
            "node_modules/x/y.js": "", "pkg.egg-info/PKG-INFO": "", ".venv/bin/python": "",
            "myenv/pyvenv.cfg": "", "myenv/lib/x.py": "",
        },
    )  # fmt: skip
    taken = take(root)
    assert paths(taken) == [
        ".gitignore", "keep/this", "sub/.gitignore", "sub/b.log", "sub/build/x", "sub/c",
    ]  # fmt: skip
    assert why(taken) == {
        ".venv": "left out by default",
        "a.log": "named in .gitignore",
        "build": "named in .gitignore",
        "keep/that": "named in .gitignore",
        "myenv": "a Python environment",
        "node_modules": "left out by default",
        "pkg.egg-info": "left out by default",
    }


@pytest.mark.parametrize("under_git", [False, True])
def test_routeignore_counts_everywhere_and_can_take_back(root: Path, under_git: bool) -> None:
    if under_git:
        git(root, "init", "-q")
    write(
        root,
        **{
            ".gitignore": "*.bin\nweights/\n",
            ".routeignore": "docs/\n*.md\n!weights/\n!venv/\n",
            "docs/x": "", "README.md": "", "a.py": "", "weights/w": "w", "b.bin": "",
            "venv/own.py": "", "sub/.routeignore": "local.txt\n", "sub/local.txt": "", "sub/s.py": "",
        },
    )  # fmt: skip
    taken = take(root)
    assert paths(taken) == [
        ".gitignore", ".routeignore", "a.py", "sub/.routeignore", "sub/s.py", "venv/own.py", "weights/w",
    ]  # fmt: skip
    assert why(taken)["docs"] == "named in .routeignore"
    assert why(taken)["README.md"] == "named in .routeignore"
    assert why(taken)["sub/local.txt"] == "named in sub/.routeignore"
    assert "b.bin" in why(taken)


def test_the_script_ships_whatever_is_ignored(repo: Path) -> None:
    write(repo, **{"data/run.py": "r"})
    assert "data/run.py" in paths(take(repo, only=[Path("data/run.py")]))
    (repo.parent / "elsewhere.py").write_text("e")
    (repo / "linked.py").symlink_to("../elsewhere.py")
    taken = take(repo, only=[Path("linked.py")])
    assert FileEntry(path="linked.py", sha256=hashlib.sha256(b"e").hexdigest(), bytes=1, mode=0o644) in (
        taken.entries
    )


@pytest.mark.parametrize("under_git", [False, True])
def test_links_inside_stay_links_and_outward_ones_are_named(root: Path, under_git: bool) -> None:
    secret = root.parent / "secret"
    secret.write_text("never")
    if under_git:
        git(root, "init", "-q")
    write(root, **{"a": "x", "sub/b": "y"})
    (root / "sub/in").symlink_to("../a")
    (root / "folder").symlink_to("sub")
    (root / "dangling").symlink_to("nowhere")
    (root / "out").symlink_to("../secret")
    (root / "absolute").symlink_to(secret)
    (root / "climbs").symlink_to("sub/../../secret")
    (root / "loop").symlink_to("loop")
    taken = take(root)
    links = {entry.path: entry.link for entry in taken.entries if isinstance(entry, LinkEntry)}
    assert links == {"dangling": "nowhere", "folder": "sub", "loop": "loop", "sub/in": "../a"}
    assert set(why(taken)) == {"out", "absolute", "climbs"}
    assert all("leads outside" in reason for reason in why(taken).values())
    assert hashlib.sha256(b"never").hexdigest() not in taken.sources


def test_a_tracked_folder_that_became_a_link_is_not_followed(repo: Path) -> None:
    outside = repo.parent / "outside"
    write(outside, **{"a.py": "never"})
    (repo / "lib/a.py").unlink()
    (repo / "lib").rmdir()
    (repo / "lib").symlink_to(outside)
    taken = take(repo)
    assert "lib/a.py" not in paths(taken)
    assert hashlib.sha256(b"never").hexdigest() not in taken.sources
    assert "lib" in why(taken)


def test_special_and_unreadable_files_are_named_and_do_not_hang(root: Path) -> None:
    write(root, a="x", locked="y")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(root)  # a socket's address is short
        try:
            listener.bind("sock")
        finally:
            os.chdir(here)
        (root / "locked").chmod(0)
        taken = take(root)
    assert why(taken)["pipe"] == "a FIFO"
    assert why(taken)["sock"] == "a socket"
    if os.geteuid():
        assert why(taken)["locked"] == "cannot be read: Permission denied"
    assert "a" in paths(taken)


@pytest.mark.parametrize("under_git", [False, True])
def test_hostile_names(root: Path, under_git: bool) -> None:
    good = [
        "-rf",
        "a\nb",
        "$(touch x)",
        "; rm",
        "sp ace",
        "\u202egpj",
        "\x1b[31m",
        "q'uo\"te",
        "é",
        "C:\\x",
        "*",
    ]
    for name in good:
        (root / name).write_text(name)
    bad = os.fsencode(root) + b"/odd\xff\xfe"
    with open(bad, "wb") as file:
        file.write(b"x")
    (root / "/".join(["d" * 200] * 6)).mkdir(parents=True)
    (root / "/".join(["d" * 200] * 6) / "deep").write_text("x")
    if under_git:
        git(root, "init", "-q")
    taken = take(root)
    assert sorted(paths(taken)) == sorted(good)
    assert why(taken)["odd\\xff\\xfe"] == "its name is not UTF-8 text"
    assert any("longer than" in reason for reason in why(taken).values())
    assert len(taken.tree_sha256) == 64


def test_homes_and_the_temporary_folder_never_ship_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home" / "me"
    write(home, **{"run.py": "r", "private": "never"})
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    for folder in (home, home.parent, tmp_path / "tmp", Path("/")):
        only = [Path("run.py"), Path("/etc/passwd"), Path("../x"), Path("absent")]
        taken = take(folder, only=only)
        assert paths(taken) == (["run.py"] if folder == home else [])
        assert "ships" in why(taken)["."] or "never ships" in why(taken)["."]
        assert "only" in taken.note


@pytest.mark.parametrize("under_git", [False, True])
def test_too_much_is_refused_with_the_mend(
    root: Path, under_git: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_FILES", 20)
    monkeypatch.setattr(module, "MOST_BYTES", 10_000)
    if under_git:
        git(root, "init", "-q")
    write(root, **{"a.py": "x", **{f"frames/{i}": "f" for i in range(25)}})
    with pytest.raises(InputError, match=r"more than 20 files; most of it is frames") as many:
        take(root)
    assert ".routeignore" in many.value.mend
    write(root, **{".routeignore": "frames/\n"})
    assert paths(take(root)) == [".routeignore", "a.py"]
    write(root, **{"big.bin": "b" * 9000, "bigger.bin": "b" * 9001})
    with pytest.raises(InputError, match="most of it is big"):
        take(root)


def test_no_folder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        take(tmp_path / "absent")


def test_the_routers_own_folder_never_ships(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root, **{"a.py": "", "store/index.sqlite": "", "store/runs/x": "", "home/x": ""})
    monkeypatch.setenv("ROUTE_HOME", str(root / "home"))
    for under_git in (False, True):
        if under_git:
            git(root, "init", "-q")
        taken = take(root)
        assert paths(taken) == ["a.py"]
        assert why(taken) == dict.fromkeys(("home", "store"), "the router's own folder")


def test_what_is_sent_is_what_was_recorded(root: Path) -> None:
    text = "".join(f"{i}\n" for i in range(200_000))
    write(root, big=text, small="s", empty="")
    taken = take(root)
    of = {entry.path: entry.sha256 for entry in taken.files}
    for offset in (0, 1, 262_144, 300_001, len(text)):
        pieces = list(taken.chunks(of["big"], offset))
        assert b"".join(piece for _, piece, _ in pieces) == text[offset:].encode()
        assert [last for _, _, last in pieces] == [False] * (len(pieces) - 1) + [True]
        at = offset
        for place, piece, _ in pieces:
            assert place == at
            at += len(piece)
    assert list(taken.chunks(of["empty"])) == [(0, b"", True)]
    assert list(taken.chunks(of["small"])) == [(0, b"s", True)]
    assert list(taken.chunks(of["small"], 1)) == [(1, b"", True)]
    with pytest.raises(KeyError):
        next(taken.chunks("0" * 64))


@pytest.mark.parametrize("change", ["same size", "grown", "cut", "gone", "fifo"])
def test_a_file_that_changed_is_never_sent_whole(root: Path, change: str) -> None:
    path = root / "f"
    path.write_bytes(b"a" * 600_000)
    taken = take(root)
    if change == "same size":
        path.write_bytes(b"a" * 599_999 + b"b")
    elif change == "grown":
        path.write_bytes(b"a" * 900_000)
    elif change == "cut":
        path.write_bytes(b"a")
    else:
        path.unlink()
        if change == "fifo":
            os.mkfifo(path)
    [entry] = taken.files
    sent: list[tuple[int, bytes, bool]] = []
    with pytest.raises(InputError, match=r"^f (changed|cannot be read any more)"):
        sent.extend(taken.chunks(entry.sha256))
    assert not any(last for _, _, last in sent)


def test_facts_are_plain_and_bounded(repo: Path) -> None:
    write(repo, **{f"{i}.log": "" for i in range(300)})
    facts = take(repo).facts()
    assert facts["files"] == 3
    assert len(facts["skipped"]) == 200
    assert facts["skipped_count"] == 300
    assert facts["git"]["branch"] == "trunk"
    canonical(facts)  # canonical JSON takes it as it is


def test_a_tree_laid_out_is_the_same_tree(root: Path, tmp_path: Path) -> None:
    """Laid out and looked at again it has the same digest; a file that changed since is never whole there."""
    write(root, **{"a/b/c.py": "c", "empty": "", "tool": "#!/bin/sh\n"})
    (root / "tool").chmod(0o755)
    (root / "a" / "link").symlink_to("b/c.py")
    taken = take(root)
    taken.lay_out(tmp_path / "there")
    assert take(tmp_path / "there").tree_sha256 == taken.tree_sha256
    (root / "a" / "b" / "c.py").write_text("d")
    with pytest.raises(InputError, match=r"c\.py changed"):
        taken.lay_out(tmp_path / "again")
