"""``postbus passwd``: what it asks, what it writes, what it says."""

from __future__ import annotations

import getpass
import stat
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from postbus.cli import passwd
from postbus.cli.main import CLI
from postbus.server import users

RUNNER = CliRunner()


def ran(*arguments: str, typed: str = "") -> Result:
    """Run ``postbus passwd`` with *typed* on standard input."""
    return RUNNER.invoke(CLI, ["passwd", *arguments], input=typed)


def test_a_line_of_standard_input(tmp_path: Path) -> None:
    """Added, then changed; the file is the owner's alone."""
    file = tmp_path / "users"
    assert f"{file}: added tim\n" == ran(str(file), "tim", typed="secret\n").stdout
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "tim" == users.read(file).verify(b"tim", b"secret")
    assert f"{file}: changed the password of tim\n" == ran(str(file), "tim", typed="other word\nnot this\n").stdout
    assert "tim" == users.read(file).verify(b"tim", b"other word")
    assert "tim\n" == ran(str(file), "--list").stdout
    assert f"{file}: removed tim\n" == ran(str(file), "tim", "--delete").stdout
    assert "" == ran(str(file), "--list").stdout


class Terminal:
    """A standard input that is one."""

    def isatty(self) -> bool:
        """It is."""
        return True


@pytest.mark.parametrize(("again", "done"), [("secret", True), ("secrets", False)])
def test_on_a_terminal(again: str, done: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for twice without echo; two that differ change nothing."""
    asked: list[str] = []
    answers = iter(["secret", again])

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return next(answers)

    def fail(what: str, remedy: str) -> None:
        raise LookupError(what)

    monkeypatch.setattr(getpass, "getpass", ask)
    monkeypatch.setattr(sys, "stdin", Terminal())
    file = tmp_path / "users"
    if done:
        passwd.change(file, "tim", fail)  # type: ignore[arg-type]
        assert "tim" == users.read(file).verify(b"tim", b"secret")
    else:
        with pytest.raises(LookupError, match="the two are not the same"):
            passwd.change(file, "tim", fail)  # type: ignore[arg-type]
        assert not file.exists()
    assert ["Password for tim: ", "The same again: "] == asked


@pytest.mark.parametrize(
    ("arguments", "typed", "expected", "code"),
    [
        pytest.param(["users"], "", "name a user, or say --list", 2, id="nobody"),
        pytest.param(["users", "tim", "--list"], "", "name a user, or say --list", 2, id="both"),
        pytest.param(["users", "--delete", "--list"], "", "name a user, or say --list", 2, id="delete whom"),
        pytest.param(["users", "a:b"], "x\n", "no user can have that name", 1, id="a colon"),
        pytest.param(["users", "tim"], "\n", "that is no password", 1, id="an empty password"),
        pytest.param(["users", "tim"], "", "that is no password", 1, id="no password"),
        pytest.param(["users", "tim", "--delete"], "", "there is no user tim in", 1, id="no file"),
        pytest.param(["damaged", "tim", "--delete"], "", "line 1: no colon behind the name", 1, id="a damaged file"),
        pytest.param(["damaged", "--list"], "", "line 1: no colon behind the name", 1, id="a damaged list"),
        pytest.param(["damaged/users", "tim"], "x\n", "cannot be written: not a directory", 1, id="no folder"),
    ],
)
def test_what_cannot_be_done(
    arguments: list[str], typed: str, expected: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said in one line, with what would help; nothing is changed."""
    monkeypatch.chdir(tmp_path)
    Path("damaged").write_text("what\n")
    result = ran(*arguments, typed=typed)
    assert code == result.exit_code
    assert expected in result.stderr
    assert ["damaged"] == [path.name for path in tmp_path.iterdir()]
    assert "what\n" == Path("damaged").read_text()
