"""Proves where a secret is looked up, that it is refused where it would show, and what a receipt removes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keyring
import keyring.backend
import keyring.errors
import pytest
from conftest import Route

from compute_router import scrubbing
from compute_router.errors import CredentialsError, InputError, WorkloadError
from compute_router.receipt.redacting import Redactor
from compute_router.receipt.shapes import OURS, shapes
from compute_router.records import canonical
from compute_router.secrets import SERVICE, check, read_env_file, recall, resolve
from compute_router.workload import Entry, Workload


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test's process knows is nothing for the next test."""
    monkeypatch.setattr(scrubbing, "_values", {})
    monkeypatch.setattr(scrubbing, "_names", set())
    monkeypatch.setattr(scrubbing, "_scrubber", None)


class StandInKeyring(keyring.backend.KeyringBackend):
    """Stands in for the desktop's keyring, which a test machine has not: the real package's own
    interface, its passwords in memory."""

    priority = 1

    def __init__(self, fails: Exception | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept: dict[tuple[str, str], str] = {}
        self.fails = fails

    def get_password(self, service: str, username: str) -> str | None:
        if self.fails is not None:
            raise self.fails
        return self.kept.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.kept[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        del self.kept[service, username]


@pytest.fixture
def ring() -> object:
    before = keyring.get_keyring()
    ring = StandInKeyring()
    keyring.set_keyring(ring)
    yield ring
    keyring.set_keyring(before)


def test_the_file_wins_over_the_environment_and_that_over_the_keyring(tmp_path: Path, ring: object) -> None:
    for name in ("A", "B", "C"):
        keyring.set_password(SERVICE, name, f"{name} of the keyring")
    file = tmp_path / "secrets"
    file.write_text("export A='of the file'\n")
    environ = {"A": "of the environment", "B": "b of the environment", "C": ""}
    found = resolve(["A", "B", "C"], env_file=file, environ=environ)
    assert found == {"A": "of the file", "B": "b of the environment", "C": "C of the keyring"}
    assert recall(["C", "D"], keyring=True) == {"C": "C of the keyring"}


def test_all_that_are_missing_are_named_with_the_three_ways(ring: object) -> None:
    with pytest.raises(CredentialsError) as error:
        resolve(["HF_TOKEN", "WANDB_API_KEY"], environ={"WANDB_API_KEY": ""})
    assert "HF_TOKEN, WANDB_API_KEY" in error.value.what
    for way in ("export HF_TOKEN=", "--env-file", f"keyring set {SERVICE} HF_TOKEN"):
        assert way in error.value.mend


def test_a_keyring_that_fails_is_a_sentence() -> None:
    before = keyring.get_keyring()
    try:
        keyring.set_keyring(StandInKeyring(keyring.errors.KeyringLocked("it is locked")))
        with pytest.raises(CredentialsError, match=r"missing secret: A \(the keyring .*KeyringLocked: it is"):
            resolve(["A"], environ={})
        keyring.set_keyring(StandInKeyring(keyring.errors.NoKeyringError("none")))
        with pytest.raises(CredentialsError, match=r"missing secret: A$"):
            resolve(["A"], environ={})
    finally:
        keyring.set_keyring(before)


def test_without_the_extra_the_mend_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CredentialsError) as error:
        resolve(["A"], environ={})
    assert "compute-router[secrets]" in error.value.mend


def test_an_env_file_is_read_as_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("# one\nA=$HOME/${B}\nexport B=\"two words\" # note\nC='a\nb'\n\nD=\nE=x#y\n")
    assert read_env_file(file) == {"A": "$HOME/${B}", "B": "two words", "C": "a\nb", "D": "", "E": "x#y"}


@pytest.mark.parametrize("text", ["hf_secretvalue\n", "A B=hf_secretvalue\n", '="hf_secretvalue"\n',
                                  'A="hf_secretvalue\n', "1A=hf_secretvalue\n"])  # fmt: skip
def test_what_is_no_assignment_is_named_by_its_line_and_not_shown(tmp_path: Path, text: str) -> None:
    file = tmp_path / "env"
    file.write_text("GOOD=1\n" + text)
    with pytest.raises(InputError) as error:
        read_env_file(file)
    assert (error.value.file, error.value.line) == (str(file), 2)
    assert "secretvalue" not in f"{error.value}{error.value.mend}"


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"entry": Entry(root="/x", script="a.py", args=("--token=s3cret%2Fvalue",))}, "args"),
        ({"env": {"OTHER": "x s3cret/value"}}, "env.OTHER"),
        ({"env": {"s3cret/value": "x"}}, "env"),
        ({"name": "s3cret/value"}, "name"),
        ({"tags": ("a", "s3cret/value")}, "tags"),
        ({"backend": {"local": {"deep": ["czNjcmV0L3ZhbHVl"]}}}, "backend.local.deep"),
    ],
)
def test_a_value_in_the_workload_is_refused_by_field(more: dict[str, object], field: str) -> None:
    base = {"name": "w", "entry": Entry(root="/x", script="a.py"), "secrets": ("TOKEN",)}
    workload = Workload(**{**base, **more})  # type: ignore[arg-type]
    with pytest.raises(WorkloadError) as error:
        check(workload, None, {"TOKEN": "s3cret/value"})
    assert f"secret TOKEN stands in {field}," in error.value.what
    assert "s3cret" not in f"{error.value}{error.value.mend}"
    check(workload, None, {"TOKEN": "another"})


def test_a_refused_one_leaves_nothing_behind(route: Route, folder: Path, home: Path) -> None:
    (folder / "work.py").write_text("# /// script\n# [tool.route]\n# secrets = ['TOKEN']\n# ///\nprint(1)\n")
    for args in (
        ("--", "--token", "s3cret-value"),
        ("--key", "s3cret-value"),
        ("--set", "tags=['s3cret-value']"),
    ):
        at = ("work.py", *args) if args[0] == "--" else (*args, "work.py")
        out = route("run", *at, env={"TOKEN": "s3cret-value"})
        assert out.returncode == 64, out.stderr
        assert "s3cret-value" not in out.stderr + out.stdout
        assert not list((home / "runs").glob("*")) if (home / "runs").exists() else True


def test_an_env_file_is_never_sent(route: Route, folder: Path, home: Path) -> None:
    (folder / "work.py").write_text(
        "# /// script\n# [tool.route]\n# secrets = ['TOKEN']\n# ///\n"
        "import os; print(sorted(os.listdir('.')))\n"
    )
    (folder / ".env").write_text("TOKEN=s3cret-value\n")
    (folder / "mine.env").write_text("TOKEN=s3cret-value\n")
    out = route("run", "--env-file", "mine.env", "work.py")
    assert out.returncode == 64
    assert "mine.env would be sent" in out.stderr
    (folder / "mine.env").unlink()
    out = route("run", "--env-file", ".env", "work.py")
    assert (out.returncode, out.stdout) == (0, "['work.py']\n"), out.stderr


def test_an_output_that_holds_a_secret_is_named_and_left_there(
    route: Route, folder: Path, home: Path
) -> None:
    (folder / "work.py").write_text(
        "# /// script\n# [tool.route]\n# secrets = ['TOKEN']\n# ///\nimport os\n"
        "for name in ('a', 'b'):\n"
        "    with open(os.environ['ROUTE_OUTPUTS'] + '/' + name, 'w') as f:\n"
        "        f.write(os.environ['TOKEN'] if name == 'a' else 'fine')\n"
    )
    out = route("run", "work.py", env={"TOKEN": "s3cret-value"})
    assert out.returncode == 0, out.stderr
    assert "left out" in out.stderr
    assert "outputs/a: holds the value of secret TOKEN" in out.stderr
    assert [path.name for path in home.glob("runs/*/outputs/*")] == ["b"]
    assert "outputs/a: holds" in route("receipt", "show").stdout


def test_a_short_secret_is_told_of_once(route: Route, folder: Path) -> None:
    (folder / "work.py").write_text(
        "# /// script\n# [tool.route]\n# secrets = ['PIN']\n# ///\nprint('12345')\n"
    )
    out = route("run", "work.py", env={"PIN": "123"})
    assert (out.returncode, out.stdout) == (0, "12345\n")
    assert out.stderr.count("secret PIN is too short") == 1


def test_a_traceback_and_the_document_of_a_plugin_hold_no_secret(route: Route, folder: Path) -> None:
    """An error of ours that is made of foreign text, with --debug and as JSON."""
    (folder / "work.py").write_text(
        "# /// script\n# [tool.route]\n# secrets = ['TOKEN']\n# ///\n"
        "import os; raise SystemExit(os.environ['TOKEN'])\n"
    )
    for flags in (("--debug",), ("--json", "--debug")):
        out = route(*flags, "run", "work.py", env={"TOKEN": 'a"b/c d+s3cret'})
        assert out.returncode == 1
        assert "s3cret" not in out.stdout + out.stderr


TOKENS = [
    "AKIA" + "IOSFODNN7EXAMPLE", "ghp_" + "a1B2" * 9, "github_pat_" + "a1B2" * 20, "AIza" + "Sy1a-" * 7,
    "xoxb-" + "1234567890-1234567890-abcDEF", "hf_" + "aB3d" * 9, "sk-" + "proj-abcDEF123" * 3,
    "ak-" + "abcDEF123456" * 2, "as-" + "abcDEF123456" * 2,
    "eyJ" + "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.c2lnbmF0dXJlMTIz",
    "glpat-" + "abcDEF12345-_abcDEF1", "npm_" + "a1B2" * 9, "sk_live_" + "a1B2" * 6, "dop_v1_" + "a1" * 32,
    "pypi-AgEIcHlwaS5vcmc" + "a1B2-" * 12, "SG." + "a1B2c3D4e5F" * 2 + "." + "a1B2c3D4e5-" * 4,
    "sk-ant-api03-" + "a1-" * 31 + "AA",
]  # fmt: skip


def test_without_the_extra_the_tokens_of_ml_work_go_all_the_same() -> None:
    code = (
        "import sys; sys.modules['detect_secrets'] = None\n"
        "from compute_router.receipt.redacting import Redactor\n"
        "for token in sys.stdin.read().split(): print(Redactor().text(token, 'f'))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], input="\n".join(TOKENS), capture_output=True, text=True
    )
    assert out.stdout.split() == ["***"] * len(TOKENS), out.stderr


@pytest.mark.parametrize("token", TOKENS, ids=lambda token: token[:8])
def test_tokens_of_known_form_are_removed_and_counted(token: str) -> None:
    redactor = Redactor()
    text = redactor.text(f'before "{token}" after', "outcome.detail")
    assert token[12:] not in text
    assert text.startswith('before "')
    told = [row for row in redactor.told() if row["rule"] == "known_token"]
    assert [(row["field"], row["count"]) for row in told] == [("outcome.detail", 1)]
    assert token.encode() not in canonical(redactor.told())


def test_every_rule_compiles_and_a_private_key_goes_whole() -> None:
    names = [shape.name for shape in shapes("AKCp5aBcD3fGh1")]
    assert names[: len(OURS)] == [name for name, _ in OURS]
    assert {"artifactory", "telegram_token", "twilio"} <= set(names), "the rules of detect-secrets"
    ours = [shape.name for shape in shapes("exit code 1 after Linux 6.18.44-fc on 2 x AMD EPYC")]
    assert ours == [name for name, _ in OURS], "and they are not loaded for nothing"
    key = (
        "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEabcdef0123456789+/\n" * 9 + "-----END RSA PRIVATE KEY-----"
    )
    assert Redactor().text(f"x {key} y", "f") == "x *** y"


def test_what_is_no_secret_stays() -> None:
    for text in (
        "exit code 1", "sha256 " + "ab12" * 16, "NVIDIA H200 141 GiB", "task-abcdefghijkl",
        "keyed by token ids", "/home/me/project/train.py:12: loss is 1.25e-3",
        "https://example.org/a?b=c", "run 01m87823mbx0j2vc4gxw3sc01c",
    ):  # fmt: skip
        assert Redactor().text(text, "f") == text


def test_addresses_and_signatures() -> None:
    redactor = Redactor()
    assert redactor.text("https://me:pw@h/x", "f") == "https://***@h/x"
    signed = "https://b/x?X-Amz-Credential=AB%2F2026&X-Amz-Signature=abc&sig=d&n=1"
    assert redactor.text(signed, "f") == "https://b/x?X-Amz-Credential=***&X-Amz-Signature=***&sig=***&n=1"


def test_variables_that_speak_of_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "quite-s3cret")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/tmp/ssh-1/agent.2")
    monkeypatch.setenv("KEYBOARD_LAYOUT", "qwertz-105-de")
    text = Redactor().text("quite-s3cret /tmp/ssh-1/agent.2 qwertz-105-de", "f")
    assert text == "*** /tmp/ssh-1/agent.2 qwertz-105-de"


def test_programs_of_this_process_do_not_inherit_a_declared_name() -> None:
    scrubbing.declare(["HF_TOKEN"])
    assert scrubbing.hidden({"HF_TOKEN": "x", "PATH": os.defpath}) == {"PATH": os.defpath}
