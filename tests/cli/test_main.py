"""The commands, as far as nobody else is needed: words, exit codes, help."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from postbus import __version__
from postbus.cli.main import CLI, EXAMPLES, LETTERS
from postbus.testing import Smtpd

RUNNER = CliRunner()
COMMANDS = ["run", "check", "smtpd", "schema", "passwd", "send", "status", "healthcheck", "reload", "selftest"]
LETTER_COMMANDS = ["list", "replay", "drop"]

BAD = "listeners:\n  smtp: {addres: ':25'}\n"
FINE = "source: //mx.example.org/postbus\nroutes: [{name: all, match: [a@example.org, postmaster, postmaster@*], sinks: stdout}]\n"
POSTMASTER = (
    "postbus.yaml:1: routes: no route takes postmaster, postmaster@example.org; mail to postmaster must be taken "
    "(RFC 5321 s4.5.1): add a route with match: [postmaster, postmaster@*] (warning)"
)
WARNED = "routes: [{name: all, match: a@example.org, sinks: stdout}]\n"


@pytest.fixture(autouse=True)
def away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Work in a folder of one's own, without anything of the environment's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POSTBUS_HTTP", raising=False)
    for group in (CLI, LETTERS):  # as where it is piped, wherever the tests are run
        monkeypatch.setattr(group, "rich_markup_mode", None)


def ran(*arguments: str) -> Result:
    """Run the command line."""
    return RUNNER.invoke(CLI, list(arguments))


def nobody() -> str:
    """Return a port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        return str(holder.getsockname()[1])


@pytest.mark.parametrize("command", [*([name] for name in COMMANDS), *(["dead-letters", name] for name in LETTER_COMMANDS)], ids=" ".join)
def test_every_command_teaches_by_examples(command: list[str]) -> None:
    """Its help has examples that start with the command itself, each on a line of its own."""
    result = ran(*command, "--help")
    assert 0 == result.exit_code
    examples = result.stdout.partition("Examples:\n")[2].partition("\n\n")[0].splitlines()
    assert examples
    assert all(f"postbus {' '.join(command)}" in example for example in examples)


def test_every_command_has_examples() -> None:
    """No entry of the table is left over; what stands under smtpd is the library's own."""
    assert {*COMMANDS, *LETTER_COMMANDS} == {*EXAMPLES, "smtpd"}


def test_no_command_shows_what_there_is() -> None:
    """With one line each, none of them cut."""
    result = ran()
    listed = result.output.partition("Commands:\n")[2]
    assert all(f"\n  {name} " in f"\n{listed}" for name in [*COMMANDS, "dead-letters"])
    assert "..." not in listed


def test_the_version() -> None:
    """On one line."""
    assert (0, f"postbus {__version__}\n") == (ran("--version").exit_code, ran("--version").stdout)


def test_the_package_is_a_program_too() -> None:
    """For those who have an interpreter at hand, not its folder of programs."""
    done = subprocess.run([sys.executable, "-m", "postbus", "--version"], capture_output=True, text=True, timeout=60, check=False)
    assert (0, f"postbus {__version__}\n", "") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("text", "code", "expected"),
    [
        pytest.param(FINE, 0, ["postbus.yaml: fine, 1 listener, 1 route, 1 sink"], id="fine"),
        pytest.param(
            WARNED,
            0,
            [
                POSTMASTER,
                "postbus.yaml: fine, 1 listener, 1 route, 1 sink; 1 warning",
            ],
            id="warned",
        ),
        pytest.param(
            BAD,
            2,
            [
                'postbus.yaml:2: listeners.smtp.addres: there is no key "addres" here; did you mean address?',
                "postbus.yaml: 1 error, not usable",
            ],
            id="wrong",
        ),
    ],
)
def test_check(text: str, code: int, expected: list[str]) -> None:
    """A line for each finding, then the sum; plain where it is piped."""
    Path("postbus.yaml").write_text(text)
    result = ran("check", "--config", "postbus.yaml")
    assert (code, expected) == (result.exit_code, result.stdout.splitlines())


def test_check_without_a_file() -> None:
    """The embedded defaults are fine."""
    assert (0, "embedded defaults: fine, 1 listener, 1 route, 1 sink\n") == (ran("check").exit_code, ran("check").stdout)


def test_schema() -> None:
    """Both are JSON; another is not known."""
    assert "properties" in json.loads(ran("schema").stdout)
    assert "listeners" in json.loads(ran("schema", "config").stdout)["properties"]
    result = ran("schema", "mail")
    assert (2, "postbus: there is no schema called mail; ask for event or config\n") == (result.exit_code, result.stderr)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        pytest.param(["--raw", "none.eml"], 2, "none.eml cannot be read: no such file or directory; check the path", id="no file"),
        pytest.param(["--attach", "."], 2, ". cannot be read: is a directory; check the path", id="a folder"),
        pytest.param(["--subject", "a\nb"], 2, "no mail can be made of that: Header values may not contain", id="a line break"),
        pytest.param(["--tls", "--lmtp"], 2, "--tls is for SMTP from the first octet; leave", id="TLS and LMTP"),
        pytest.param(["--socket", "/nowhere"], 1, "there is no socket /nowhere; start postbus, or check --socket", id="no socket"),
    ],
)
def test_a_mail_that_cannot_be_sent(arguments: list[str], code: int, said: str) -> None:
    """One line on standard error: what, and what would help."""
    result = ran("send", *arguments)
    assert code == result.exit_code
    assert result.stderr.startswith(f"postbus: {said}"), result.stderr
    assert "" == result.stdout


def test_a_mail_of_somebody_who_logs_in() -> None:
    """The password is a line of standard input; without --user the answer says what is wanted."""
    with Smtpd(users={"tim": "secret"}) as smtpd:
        port = str(smtpd.port)
        refused = ran("send", "you@example.org", "--port", port)
        assert (1, True) == (refused.exit_code, "--user NAME to log in" in refused.stdout)
        arguments = ["send", "you@example.org", "--port", port, "--user", "tim", "--http", f"http://127.0.0.1:{nobody()}", "--wait", "0"]
        assert 0 == RUNNER.invoke(CLI, arguments, input="secret\n").exit_code
        assert ["tim"] == [mail.login for mail in smtpd.messages]


def test_nobody_listens() -> None:
    """The first thing that goes wrong for everybody."""
    port = nobody()
    result = ran("send", "--port", port)
    assert 1 == result.exit_code
    assert result.stderr.startswith(f"postbus: nobody listens at 127.0.0.1:{port}; start postbus with `postbus run`")


@pytest.mark.parametrize(
    "command", [["status"], ["healthcheck"], ["reload"], ["dead-letters", "list"], ["dead-letters", "replay"]], ids=" ".join
)
def test_nobody_to_ask(command: list[str]) -> None:
    """Every command that asks the sidecar says so in the same words."""
    http = f"http://127.0.0.1:{nobody()}"
    result = ran(*command, "--http", http)
    assert 1 == result.exit_code
    assert f"postbus: nobody answers at {http}: connection refused; start postbus, or name its sidecar with --http\n" == result.stderr


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(None, "the token file token cannot be read: no such file or directory; check --token-file", id="missing"),
        pytest.param(b" \n", "the token file token is empty; check --token-file", id="empty"),
        pytest.param(b"\xff\xfe", "the token file token cannot be read: not text; check --token-file", id="binary"),
    ],
)
def test_a_token_that_cannot_be_read(make: bytes | None, said: str) -> None:
    """The file is to blame, not the sidecar."""
    if make is not None:
        Path("token").write_bytes(make)
    result = ran("reload", "--token-file", "token")
    assert (1, f"postbus: {said}\n") == (result.exit_code, result.stderr)


def test_an_address_that_is_none() -> None:
    """A host and port is no URL."""
    result = ran("status", "--http", "127.0.0.1:8080")
    assert result.stderr.startswith("postbus: 127.0.0.1:8080 gave no answer of a postbus: '127.0.0.1:8080' is no http address; name")


def test_not_every_letter_is_dropped_by_accident() -> None:
    """Which ones has to be said."""
    result = ran("dead-letters", "drop")
    assert (2, "postbus: dropping every dead letter at once is not offered; name --event ID or --sink NAME\n") == (
        result.exit_code,
        result.stderr,
    )


def test_smtpd_takes_the_librarys_options() -> None:
    """Its parser is that of ``python -m postbus.server``, under its own name; what it does not know is said the same way."""
    for asked in ("-h", "--help"):
        result = ran("smtpd", asked)
        assert 0 == result.exit_code
        assert "usage: postbus smtpd [-h] [-v] [-n] [-c CLASSPATH]" in result.stdout
    wrong = ran("smtpd", "-c", "no.such.Handler")
    assert 2 == wrong.exit_code
    assert "no class 'no.such.Handler'" in wrong.stderr
