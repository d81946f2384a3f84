"""Proves what configuration files may say, which of them holds, and that a mistake is named by line."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
import pytest

from compute_router.config import Config, load_config
from compute_router.errors import ConfigError, NotFound
from compute_router.reading.layers import merge


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "own"))
    monkeypatch.delenv("ROUTE_CONFIG", raising=False)
    (tmp_path / "repo" / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "repo" / ".git").mkdir()
    monkeypatch.chdir(tmp_path / "repo")


def own(text: str) -> Path:
    path = Path(platformdirs.user_config_dir("route")) / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_nothing_written_is_nothing_said() -> None:
    assert load_config(Path.cwd()) == Config()
    assert (Config().backend("x"), Config().workload, Config().policy) == ({}, {}, None)


@pytest.mark.parametrize("set_", [True, False])
def test_the_users_file_is_where_platformdirs_has_it(set_: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not set_:
        monkeypatch.delenv("XDG_CONFIG_HOME")
        monkeypatch.setenv("HOME", str(Path.cwd().parent / "home"))
    path = own('policy = "fastest"\n')
    config = load_config(Path.cwd())
    assert config.files == (path,)
    assert config.policy == "fastest"


def test_layers_are_merged_table_by_table() -> None:
    own(
        'policy = "fastest"\ntimeout = "1h"\n[env]\nA = "own"\nB = "own"\n'
        '[backends.local]\nroot = "/a"\nslots = 2\n[machines.h1]\naddress = "h1"\n'
        '[plugins]\ndisable = ["x"]\n[profiles.big]\nnodes = 1\n[profiles.mine]\n'
    )
    Path("route.toml").write_text(
        'policy = "cheapest"\n[workload]\nshapes = "s"\n[env]\nB = "repo"\n[backends.local]\nslots = 3\n'
        '[machines.h2]\naddress = "h2"\n[plugins]\ndisable = ["y", "x2"]\n[profiles.big]\nname = "b"\n'
        '[[rules]]\nif = { kind = "bench" }\nuse = "local"\n'
    )
    config = load_config(Path("sub/deep").absolute())
    assert config.policy == "cheapest"
    assert config.origins["policy"] == "../../route.toml:1"
    assert config.workload == {"timeout": "1h", "shapes": "s", "env": {"A": "own", "B": "repo"}}
    assert config.backend("local") == {"root": "/a", "slots": 3}
    assert config.machines == {"h1": {"address": "h1"}, "h2": {"address": "h2"}}
    assert config.plugins_disable == ("x", "y", "x2")
    assert merge(config.profile("big")).values == {"nodes": 1, "name": "b"}
    assert config.rules == ({"if": {"kind": "bench"}, "use": "local"},)
    assert list(config.profiles) == ["big", "mine"]


def test_the_nearest_file_holds_up_to_the_git_root(tmp_path: Path) -> None:
    (tmp_path / "route.toml").write_text('policy = "outside"\n')
    assert load_config(Path("sub/deep").absolute()).files == ()
    Path("route.toml").write_text('policy = "root"\n')
    assert load_config(Path("sub/deep").absolute()).policy == "root"
    Path("sub/route.toml").write_text("")
    assert load_config(Path("sub/deep").absolute()).policy is None, "the nearest one, whatever it says"
    assert load_config(tmp_path).policy == "outside", "outside a work tree, the folder itself"


def test_another_file_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    own('policy = "own"\n')
    Path("other.toml").write_text('policy = "other"\n')
    monkeypatch.setenv("ROUTE_CONFIG", "other.toml")
    assert load_config(Path.cwd()).policy == "other"
    monkeypatch.setenv("ROUTE_CONFIG", "")
    assert load_config(Path.cwd()).policy == "own"
    monkeypatch.setenv("ROUTE_CONFIG", "none.toml")
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(Path.cwd())
    monkeypatch.setenv("ROUTE_CONFIG", "route.toml")
    Path("route.toml").write_text('[plugins]\ndisable = ["a"]\n')
    assert load_config(Path.cwd()).files == (Path("route.toml").absolute(),)


def test_no_home_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.delenv("HOME")
    assert isinstance(load_config(Path.cwd()), Config)


@pytest.mark.parametrize(
    ("text", "line", "says", "mend"),
    [
        ("\npolcy = 'auto'", 2, "'polcy'", "'policy'"),
        ("policy = 3", 1, "policy must be a string", "policy ="),
        ("[workloads]", 1, "'workloads'", "'workload'"),
        ("[tool.route]\nkind = 'x'", 1, "'tool'", "top of the file"),
        ("timeout = 'soon'", 1, "no duration", "90s"),
        ("timeout = '1h'\n[workload]\ntimeout = '2h'", 3, "already", "once"),
        ("[workload]\nkidn = 'x'", 2, "'kidn'", "'kind'"),
        ("[profiles]\nbig = 3", 2, "profiles.big must be a table", "[profiles.big]"),
        ("[profiles.big]\nacelerator = 'cpu'", 2, "acelerator", "'accelerator'"),
        ("[profiles.big.env]\nX = 1", 2, "env.X must be a string", "quotes"),
        ("backends = 3", 1, "backends must be a table", "[backends]"),
        ("[backends]\nlocal = 3", 2, "backends.local must be a table", "[backends.local]"),
        ("[backends.local]\nx = 1.5", 2, "decimal", '"1.5"'),
        ("[machines.h]\nsince = 1979-05-27", 2, "date", "string"),
        ("[plugins]\ndisabled = []", 2, "'disabled'", "'disable'"),
        ("[plugins]\ndisable = 'x'", 2, "must be a list", '["x"]'),
        ("[plugins]\ndisable = [\n'a',\n3]", 4, "string", "quotes"),
        ("plugins = 1", 1, "plugins must be a table", "[plugins]"),
        ("rules = 1", 1, "rules must be tables", "[[rules]]"),
        ("[[rules]]\nx = 1.5", 2, "decimal", "strings"),
        ("policy = auto", 1, "TOML", '"auto"'),
        ("a = 1\na = 2", 2, "TOML", "toml.io"),
        ("x = 'open", 1, "TOML", "toml.io"),
        ("a = " + "[" * 5000, 1, "TOML", ""),
        ("a = " + "1" * 5000, 1, "TOML", ""),
    ],
)
def test_a_mistake_is_named_with_its_line(text: str, line: int, says: str, mend: str) -> None:
    Path("route.toml").write_text(text)
    with pytest.raises(ConfigError) as e:
        load_config(Path.cwd())
    assert (e.value.file, e.value.line) == ("route.toml", line)
    assert says in e.value.what
    assert mend in e.value.mend
    assert "\n" not in e.value.what + e.value.mend


def test_files_that_cannot_be_read() -> None:
    Path("route.toml").write_bytes(b"a = 1\nb = '\xff'\n")
    with pytest.raises(ConfigError, match="UTF-8") as e:
        load_config(Path.cwd())
    assert e.value.line == 2
    Path("route.toml").write_bytes(b"\xef\xbb\xbfpolicy = 'auto'\r\n")
    assert load_config(Path.cwd()).policy == "auto"
    Path("route.toml").unlink()
    Path("route.toml").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(Path.cwd())
    Path("route.toml").unlink()
    Path("route.toml").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(Path.cwd())
    Path("route.toml").rmdir()
    os.mkfifo("route.toml")
    with pytest.raises(ConfigError, match="not a regular file"):
        load_config(Path.cwd())


def test_a_profile_that_is_not_there() -> None:
    with pytest.raises(NotFound, match="'big'") as e:
        Config().profile("big")
    assert "[profiles.NAME]" in e.value.mend


def test_a_path_is_shown_the_way_that_is_no_detour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compute_router.reading.layers import shown_path

    monkeypatch.setenv("HOME", str(tmp_path))
    work = tmp_path / "work"
    assert shown_path(work / "a.toml", work) == "a.toml"
    assert shown_path(tmp_path / "work" / "a.toml", work / "exp") == "../a.toml"
    assert shown_path(tmp_path / ".config" / "route" / "config.toml", work) == "~/.config/route/config.toml"
