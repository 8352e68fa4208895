"""``postbus selftest``: lines, report, exit codes, and whom it refuses to attack."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from postbus.cli import selftest
from postbus.cli.main import CLI
from postbus.server import Controller
from tests.server.test_attacks import Keeper

RUNNER = CliRunner()


def ran(*arguments: str, **options: Any) -> Result:
    """Run the command."""
    return RUNNER.invoke(CLI, ["selftest", *arguments], **options)


@pytest.fixture
def server() -> Iterator[str]:
    """A server of ours; its address."""
    controller = Controller(Keeper(("nobody@mx.test",)), hostname="127.0.0.1", port=0)
    controller.start()
    yield f"127.0.0.1:{controller.port}"
    controller.stop()


def test_one_line_for_each_case_and_a_summary(server: str) -> None:
    """Verdict, case, sent, expected, got, and at the end how many of each; piped, without colour."""
    result = ran(server, "--only", "eod-split-*")
    lines = result.stdout.splitlines()
    assert 0 == result.exit_code
    assert [f"eod-split-{number}" for number in range(1, 5)] == [line.split()[1] for line in lines[:-1]]
    assert r"pass     eod-split-2                       sent text\r\n.\r\n  expected 250 2.0.0  got 250 2.0.0" == lines[1]
    assert f"{server}: 4 pass, 0 safe, 0 lenient, 0 FAIL, 0 skipped" == lines[-1]


def test_a_skipped_case_says_why(server: str) -> None:
    """And nothing tested is no success."""
    result = ran(server, "--only", "all-refused")
    assert 1 == result.exit_code
    assert "say --refused" in result.stdout
    assert "nothing was tested" in result.stdout.splitlines()[-1]
    assert 0 == ran(server, "--only", "all-refused", "--refused", "nobody@mx.test").exit_code


def test_a_report_for_programs(server: str, tmp_path: Path) -> None:
    """In a file beside the lines, or alone on standard output."""
    file = tmp_path / "report.json"
    assert 0 == ran(server, "--only", "unknown", "--json", str(file)).exit_code
    alone = json.loads(ran(server, "--only", "unknown", "--json", "-").stdout)
    written = json.loads(file.read_text())
    assert ["pass"] == [row["verdict"] for row in written["rows"]]
    assert alone["rows"][0]["exchanges"] == written["rows"][0]["exchanges"]
    assert 2 == ran(server, "--only", "unknown", "--json", str(tmp_path)).exit_code


def test_a_failure_is_exit_code_1(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is for a server that cannot be tested."""
    monkeypatch.setattr(selftest, "passed", lambda _found: False)
    assert 1 == ran(server, "--only", "unknown").exit_code
    assert 1 == ran("127.0.0.1:1").exit_code


def test_a_server_that_cannot_be_tested_is_said_in_words_for_people(server: str) -> None:
    """What is the matter and what would help, on one line."""
    said = "postbus: 127.0.0.1:1 cannot be reached: connection refused; is it running, and is that its port?\n"
    assert said == ran("127.0.0.1:1").stderr
    said = f"postbus: {server} does not announce STARTTLS; leave --starttls away, or give the server a certificate\n"
    assert said == ran(server, "--starttls").stderr


def test_the_cases_can_be_listed() -> None:
    """Without a server."""
    result = ran("--list", "--only", "http-*")
    assert 0 == result.exit_code
    assert "http-get" in result.stdout
    assert "eod-" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param([], "say HOST:PORT", id="no server"),
        pytest.param(["localhost"], "is no address", id="no port"),
        pytest.param(["localhost:0"], "is no address", id="port 0"),
        pytest.param(["::1:25"], "is no address", id="IPv6 without brackets"),
        pytest.param(["127.0.0.1:25", "--only", "nothing*"], "see --list", id="no case"),
        pytest.param(["127.0.0.1:25", "--tls", "--starttls"], "exclude each other", id="two kinds of TLS"),
        pytest.param(["127.0.0.1:25", "--ca", "/nonexistent"], "name a PEM file", id="no authorities"),
        pytest.param(["192.0.2.1:25"], "say --yes-this-is-mine", id="somebody else's server"),
        pytest.param(["name.invalid:25"], "cannot be resolved", id="no such name"),
        pytest.param(["127.0.0.1:25", "--json", "/nonexistent/report.json"], "/nonexistent/report.json cannot be written", id="no folder"),
        pytest.param(["127.0.0.1:25", "--json", "/"], "/ cannot be written", id="a folder"),
    ],
)
def test_a_wrong_command_line(arguments: list[str], said: str) -> None:
    """Exit code 2, and one line that says what would be right; nobody is connected to."""
    result = ran(*arguments)
    assert 2 == result.exit_code
    assert said in result.stderr


def test_help_says_whom_to_attack() -> None:
    """Only servers one runs oneself."""
    assert "Only for servers you run yourself" in ran("--help").stdout
