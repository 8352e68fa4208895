"""What a person at the terminal is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from postbus import __version__
from postbus.app import guide, rooms
from postbus.config import load
from postbus.sinks.settings import FileSettings, KafkaSettings, PluginSettings, WebhookSettings

TLS = '{"mode": "%s", "certificate": "/c"}'
HERE = "127.0.0.1:2525"


@pytest.mark.parametrize(
    ("variables", "address", "http", "expected"),
    [
        pytest.param({}, HERE, "127.0.0.1:8080", "postbus send you@example.org", id="defaults"),
        pytest.param({}, "127.0.0.1:25", "", "postbus send you@example.org --host 127.0.0.1 --port 25", id="another port"),
        pytest.param({}, "[::]:25", "", "postbus send you@example.org --host ::1 --port 25", id="all interfaces"),
        pytest.param({}, "0.0.0.0:2525", "", "postbus send you@example.org", id="all interfaces, IPv4"),
        pytest.param({}, HERE, "[::]:9090", "postbus send you@example.org --http http://[::1]:9090", id="another sidecar"),
        pytest.param({"TLS": TLS % "starttls"}, HERE, "", "postbus send you@example.org", id="STARTTLS offered"),
        pytest.param({"TLS": TLS % "require"}, HERE, "", "postbus send you@example.org --starttls --insecure", id="STARTTLS required"),
        pytest.param({"TLS": TLS % "implicit"}, HERE, "", "postbus send you@example.org --tls --insecure", id="implicit TLS"),
        pytest.param(
            {"TLS": TLS % "starttls", "AUTH": "{required: true, users: u}"},
            HERE,
            "",
            "postbus send you@example.org --starttls --insecure --user NAME",
            id="a login",
        ),
        pytest.param({"PROTOCOL": "lmtp"}, HERE, "", "postbus send you@example.org --lmtp", id="LMTP"),
        pytest.param({"PROTOCOL": "lmtp"}, "/run/a b", "", "postbus send you@example.org --socket '/run/a b'", id="LMTP on a socket"),
        pytest.param({}, "/run/a", "", "", id="SMTP on a socket, which smtplib cannot reach"),
        pytest.param({"PROTOCOL": "lmtp", "TLS": TLS % "implicit"}, HERE, "", "", id="LMTP over TLS, which smtplib does not speak"),
    ],
)
def test_the_next_step(variables: dict[str, str], address: str, http: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that can be pasted, and leads here."""
    monkeypatch.setattr("sys.argv", ["/somewhere/pytest"])
    environ = {f"POSTBUS__LISTENERS__SMTP__{name}": value for name, value in variables.items()}
    assert expected == guide.next_step(load(None, environ).settings, {"smtp": [address]}, http)


def test_the_command_is_the_one_that_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """A newcomer has no postbus on the path."""
    monkeypatch.setattr("sys.argv", [".venv/bin/postbus"])
    assert ".venv/bin/postbus send you@example.org" == guide.next_step(load(None, {}).settings, {"smtp": [HERE]})


def test_the_welcome(monkeypatch: pytest.MonkeyPatch) -> None:
    """What listens where, what leads where, what to do next."""
    monkeypatch.setattr("sys.argv", ["postbus"])
    settings = load(None, {}).settings
    expected = f"""\
postbus {__version__} takes mail.
  smtp in  127.0.0.1:2525  (smtp, TLS none)
  route    *  ->  stdout  (everyone: parsed, spool)
  sink     stdout: JSON lines on standard output
  http     http://127.0.0.1:8080/  (try /readyz?verbose, /statusz, /metrics, /config)
  spool    /var/spool/postbus
  next     postbus send you@example.org    in a second terminal; Ctrl-C ends this one
"""
    assert expected == guide.welcome(settings, {"smtp": [HERE]}, "127.0.0.1:8080", rooms.told(settings), Path("/var/spool/postbus"))


def test_the_welcome_without_sidecar_and_spool() -> None:
    """Nothing is said of what is not there."""
    settings = load(None, {}).settings
    said = guide.welcome(settings, {}, "", rooms.told(settings), None)
    assert not {"http", "spool", "next"} & {line.split()[0] for line in said.splitlines()}


@pytest.mark.parametrize(
    ("sink", "expected"),
    [
        pytest.param(FileSettings(kind="file"), "JSON lines on standard output", id="standard output"),
        pytest.param(FileSettings(kind="file", path="/e"), "JSON lines in /e", id="file"),
        pytest.param(
            KafkaSettings(kind="kafka", bootstrap=("k:1",), topic="a", topics={"x": "b", "y": "a"}), "records of topic a, b", id="kafka"
        ),
        pytest.param(WebhookSettings(kind="webhook", url="https://h.example/a?token=x"), "POST to https://h.example/***", id="webhook"),
        pytest.param(PluginSettings.model_validate({"kind": "other", "path": "x"}), "a sink of kind other", id="another package's"),
    ],
)
def test_places(sink: FileSettings | KafkaSettings | WebhookSettings | PluginSettings, expected: str) -> None:
    """Where a sink's events are seen, without secrets."""
    assert expected == guide.place(sink)


def test_the_farewell() -> None:
    """Only where there is something to wait for."""
    assert "" == guide.farewell(0, 120)
    assert (
        "postbus drains: 1 session may finish, for 120 s at most. Ctrl-C again ends at once; what is in the spool stays.\n"
        == guide.farewell(1, 120)
    )
