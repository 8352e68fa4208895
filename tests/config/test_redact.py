"""Nothing secret is shown, whoever asks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from postbus.config import check, load, redacted
from postbus.config.redact import FORMS, MASK, PLAIN, bare_pattern, bare_url
from postbus.config.shape import choices, places, shape_of
from postbus.config.tree import Settings

CANARY = "canary-7f3a"

WITH_SECRETS = """
sinks:
  hook:
    kind: webhook
    url: https://hooks.example.org/canary-7f3a?token=canary-7f3a
    authorization: {env: HOOK_AUTHORIZATION}
    signing_secrets: [{file: SECRET_FILE}]
    headers: {X-Api-Key: canary-7f3a, name: canary-7f3a, path: canary-7f3a}
  queue:
    kind: kafka
    bootstrap: ["kafka:9092"]
    topic: mail
    sasl: {mechanism: PLAIN, username: canary-7f3a, password: {env: KAFKA_PASSWORD}}
  other: {kind: another_package, path: canary-7f3a, nested: {url: [canary-7f3a]}}
  third: {kind: webhook, url: https://third.example.org/, authorization: {env: canary-7f3a}}
routes:
- {name: one, match: [canary-7f3a@example.org, canary-7f3a+*@*, '/canary-7f3a@.+/'], sinks: [third]}
- {name: all, match: '*', sinks: [hook, queue]}
telemetry: {otlp_endpoint: "https://canary-7f3a:canary-7f3a@otlp.example.org/v1?key=canary-7f3a"}
sidecar: {token_file: SECRET_FILE}
"""


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a configuration file every secret of which is the canary."""
    secret = tmp_path / "secret"
    secret.write_text(f"whsec_{CANARY}")
    monkeypatch.setenv("HOOK_AUTHORIZATION", f"Bearer {CANARY}")
    monkeypatch.setenv("KAFKA_PASSWORD", CANARY)
    file = tmp_path / "postbus.yaml"
    file.write_text(WITH_SECRETS.replace("SECRET_FILE", str(secret)))
    return file


def test_no_canary_is_shown(secrets: Path) -> None:
    """Neither the configuration as shown, nor what is said about it, holds a secret."""
    known = load(secrets, {})
    shown = json.dumps(redacted(known))
    assert CANARY not in shown
    assert CANARY not in "\n".join(map(str, check(known)))
    for visible in ("hooks.example.org", "otlp.example.org", "kafka:9092", "KAFKA_PASSWORD", "X-Api-Key", str(secrets.parent / "secret")):
        assert visible in shown


def test_origins_are_shown(secrets: Path) -> None:
    """Each leaf says where it came from, under the path people know."""
    shown = redacted(load(secrets, {"POSTBUS__SINKS__QUEUE__TOPIC": "other"}))
    assert "other" == shown["settings"]["sinks"]["queue"]["topic"]
    origins = shown["origins"]
    paths = ("sinks.queue.topic", "sinks.hook.url", "hostname", "routes[0].match[0]")
    assert ["environment", "file", "default", "file"] == [origins[path] for path in paths]


def test_what_is_not_known_to_be_harmless_is_masked() -> None:
    """Every text of the tree is a fixed word, on the list, a URL, or masked: the rows that are masked are named here."""
    masked = {
        f"{model.__name__}.{path[-1]}"
        for path, model, field in places(Settings)
        if (place := shape_of(field.annotation))
        and any(leaf is str or leaf is Path for leaf in place)
        and not choices(place)
        and path[-1] not in PLAIN | FORMS.keys()
    }
    assert {"Sasl.username"} == masked


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        pytest.param("https://host/", "https://host/", id="plain"),
        pytest.param("https://host:8443", "https://host:8443", id="port"),
        pytest.param("http://[::1]:80/", "http://[::1]:80/", id="IPv6"),
        pytest.param("https://user@host/", f"https://host/{MASK}", id="user"),
        pytest.param("https://user:pa55@host/", f"https://host/{MASK}", id="password"),
        pytest.param("https://host/?token=x", f"https://host/{MASK}", id="query"),
        pytest.param("https://host/#x", "https://host/", id="fragment"),
        pytest.param("https://host/0b8b4f1c", f"https://host/{MASK}", id="a token is the path"),
        pytest.param("https://host/services/T000/B000/XXXX", f"https://host/{MASK}", id="long path"),
        pytest.param("https://host:port/", MASK, id="bad port"),
        pytest.param("secret", MASK, id="no URL"),
    ],
)
def test_bare_url(url: str, expected: str) -> None:
    """A URL is shown without the places where secrets travel."""
    assert expected == bare_url(url)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        pytest.param("*", "*", id="everyone"),
        pytest.param("*@example.org", "*@example.org", id="a domain"),
        pytest.param("postmaster", "postmaster", id="postmaster"),
        pytest.param("Postmaster@*", "Postmaster@*", id="every postmaster"),
        pytest.param("ann@example.org", f"{MASK}@example.org", id="an address"),
        pytest.param('"a@b"@example.org', f"{MASK}@example.org", id="a quoted local part"),
        pytest.param("ann-*@*.example.org", f"{MASK}@*.example.org", id="part of an address"),
        pytest.param("/ann@.+/", f"/{MASK}/", id="a regular expression"),
        pytest.param("ann", MASK, id="no pattern"),
    ],
)
def test_bare_pattern(pattern: str, expected: str) -> None:
    """A pattern is shown without whom it names."""
    assert expected == bare_pattern(pattern)
