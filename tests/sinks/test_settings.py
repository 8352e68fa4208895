"""What an operator may say about sinks, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from postbus.sinks.settings import FileSettings, KafkaSettings, Secret, SecretMissingError, WebhookSettings

KAFKA: dict[str, Any] = {"kind": "kafka", "bootstrap": ["k:9092"], "topic": "mail"}
WEBHOOK: dict[str, Any] = {"kind": "webhook", "url": "https://hooks.example.org/x"}


@pytest.mark.parametrize("said", [pytest.param({}, id="neither"), pytest.param({"file": "/x", "env": "X"}, id="both")])
def test_a_secret_is_in_one_place(said: dict[str, str]) -> None:
    """Either a file or a variable."""
    with pytest.raises(ValidationError, match="either `file` or `env`"):
        Secret.model_validate(said)


def test_a_secret_is_read_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotated file counts at once; white space at the ends does not."""
    path = tmp_path / "secret"
    path.write_text(" old\n")
    secret = Secret(file=path)
    assert secret.read() == "old"
    path.write_text("new")
    assert secret.read() == "new"
    monkeypatch.setenv("POSTBUS_TEST_SECRET", "from there")
    assert Secret(env="POSTBUS_TEST_SECRET").read() == "from there"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(None, "cannot be read", id="no file"),
        pytest.param(b" \n", "no secret in", id="nothing in it"),
        pytest.param(b"\xff", "cannot be read", id="no text"),
    ],
)
def test_a_missing_secret_names_its_place(tmp_path: Path, content: bytes | None, expected: str) -> None:
    """The place, never the content."""
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SecretMissingError, match=expected) as caught:
        Secret(file=path).read()
    assert str(path) in str(caught.value)


def test_a_variable_that_is_not_set_is_named() -> None:
    """By its name."""
    with pytest.raises(SecretMissingError, match="POSTBUS_NO_SUCH"):
        Secret(env="POSTBUS_NO_SUCH").read()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"topic": "a b"}, "pattern", id="topic with a space"),
        pytest.param({"topics": {"sales": "x" * 250}}, "249", id="topic too long"),
        pytest.param({"bootstrap": []}, "at least 1", id="no broker"),
        pytest.param({"send_timeout_s": 10}, "more than twice", id="deadline below a batch's life"),
        pytest.param({"max_request_octets": 64 * 1024 * 1024}, "must hold one event", id="budget below one record"),
        pytest.param({"tls": {"key": "/k"}}, "without `certificate`", id="key alone"),
        pytest.param({"sasl": {"mechanism": "PLAIN", "username": "u", "password": "p"}}, "password", id="password in the clear"),
        pytest.param({"acks": 1}, "Extra inputs", id="acks are not for sale"),
    ],
)
def test_kafka_settings_refuse(change: dict[str, Any], expected: str) -> None:
    """What would not work, or not be safe."""
    KafkaSettings.model_validate(KAFKA)
    with pytest.raises(ValidationError, match=expected):
        KafkaSettings.model_validate({**KAFKA, **change})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"url": "ftp://x/"}, "expected http", id="other scheme"),
        pytest.param({"url": "https:///x"}, "expected http", id="no host"),
        pytest.param({"url": "https://u:p@x/"}, "would end up in logs", id="password in the URL"),
        pytest.param({"url": "https://x/#f"}, "fragment", id="fragment"),
        pytest.param({"url": "https://x:99999/"}, "Port out of range", id="port"),
        pytest.param({"headers": {"Webhook-Id": "x"}}, "not a header that can be set", id="our own header"),
        pytest.param({"headers": {"ce-id": "x"}}, "not a header that can be set", id="an attribute"),
        pytest.param({"headers": {"Content-Length": "1"}}, "not a header that can be set", id="framing"),
        pytest.param({"headers": {"a b": "x"}}, "not a header that can be set", id="no token"),
        pytest.param({"headers": {"X-A": "a\r\nX-B: b"}}, "printable ASCII", id="header injection"),
        pytest.param({"allow": ["10.0.0.1/8"]}, "not a valid IPv4 or IPv6 network", id="no network"),
        pytest.param({"event_max_octets": 100 * 1024 * 1024}, "must hold one event", id="budget below one event"),
    ],
)
def test_webhook_settings_refuse(change: dict[str, Any], expected: str) -> None:
    """What would not work, or not be safe."""
    WebhookSettings.model_validate(WEBHOOK)
    with pytest.raises(ValidationError, match=expected):
        WebhookSettings.model_validate({**WEBHOOK, **change})


def test_file_settings_refuse() -> None:
    """A budget below one event."""
    assert FileSettings(kind="file").path == "-"
    with pytest.raises(ValidationError, match="must hold one event"):
        FileSettings(kind="file", event_max_octets=200 * 1024 * 1024)
