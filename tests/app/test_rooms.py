"""What a reload replaces, and what it says needs a restart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from postbus.app import rooms
from postbus.config import Settings, load
from postbus.config.shape import places

BASE = {"POSTBUS__LISTENERS__SMTP__ADDRESS": "127.0.0.1:2525"}
KAFKA = '{"kind": "kafka", "bootstrap": ["k:9092"], "topic": "t"}'
KAFKA_TLS = KAFKA[:-1] + ', "tls": {}}'
HTTP, HTTPS = (f'{{"kind": "webhook", "url": "{scheme}://w.test/"}}' for scheme in ("http", "https"))
FILE = '{"kind": "file", "path": "events.jsonl"}'
TLS = '{"mode": "starttls", "certificate": "/c"}'


def settings(**variables: str) -> Settings:
    """Return the embedded defaults with some variables of the environment."""
    return load(None, {**BASE, **{f"POSTBUS__{name}": value for name, value in variables.items()}}).settings


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param({}, {}, [], id="nothing"),
        pytest.param({}, {"HOSTNAME": "mx"}, [], id="hostname"),
        pytest.param({}, {"SOURCE": "/x"}, ["source"], id="source"),
        pytest.param({}, {"ROUTES__0__MODE": "raw"}, [], id="routes"),
        pytest.param({}, {"SINKS__STDOUT__CONCURRENCY": "1"}, [], id="sinks"),
        pytest.param({}, {"SINKS__MORE": '{"kind": "file"}'}, [], id="another sink"),
        pytest.param({}, {"RETRY__JITTER": "0"}, [], id="retry"),
        pytest.param({}, {"REQUIRE_SINK": "stdout"}, [], id="require_sink"),
        pytest.param({}, {"SPOOL__MAX_OCTETS": "2000000"}, ["spool.max_octets"], id="spool"),
        pytest.param({}, {"DISPATCH__WINDOW_MAX_EVENTS": "1"}, ["dispatch.window_max_events"], id="dispatch"),
        pytest.param({}, {"HOLD__TIMEOUT_S": "1"}, ["hold.timeout_s"], id="hold"),
        pytest.param({}, {"SIDECAR__ADDRESS": ":1"}, ["sidecar.address"], id="sidecar"),
        pytest.param({}, {"SIDECAR__LOOP_LAG_MAX_S": "1"}, [], id="what the sidecar asks for each time"),
        pytest.param({}, {"TELEMETRY__LOG_LEVEL": "debug"}, [], id="log"),
        pytest.param({}, {"TELEMETRY__TRACE_RATIO": "1"}, ["telemetry.trace_ratio"], id="traces"),
        pytest.param({}, {"LISTENERS__SMTP__ADDRESS": ":25"}, ["listeners.smtp.address"], id="address"),
        pytest.param({}, {"LISTENERS__SMTP__LIMITS__ERRORS_MAX": "1"}, [], id="limits"),
        pytest.param({}, {"LISTENERS__SMTP__ANNOUNCE": "[DSN]"}, [], id="what EHLO says"),
        pytest.param({}, {"LISTENERS__SMTP__PARAMETERS__UNREGISTERED": "record"}, [], id="parameters"),
        pytest.param({}, {"LISTENERS__SMTP__PROXY": '{"header": true, "trusted": ["10.0.0.0/8"]}'}, [], id="proxy"),
        pytest.param({}, {"LISTENERS__SMTP__TIMEOUTS__COMMAND_TIMEOUT_S": "1"}, [], id="timers"),
        pytest.param({}, {"LISTENERS__LMTP__ADDRESS": ":24"}, ["listeners.lmtp (new: restart to listen there)"], id="a new listener"),
        pytest.param(
            {"LISTENERS__LMTP__ADDRESS": ":24"}, {}, ["listeners.lmtp (removed: it listens until the restart)"], id="a listener removed"
        ),
        pytest.param({}, {"LISTENERS__SMTP__TLS": TLS}, [], id="STARTTLS from now on"),
        pytest.param({"LISTENERS__SMTP__TLS": TLS}, {"LISTENERS__SMTP__TLS": TLS.replace("/c", "/d")}, [], id="another certificate"),
        pytest.param({"LISTENERS__SMTP__TLS": TLS}, {}, ["listeners.smtp.tls.mode"], id="no TLS any more"),
        pytest.param({}, {"LISTENERS__SMTP__TLS": TLS.replace("starttls", "implicit")}, ["listeners.smtp.tls.mode"], id="implicit TLS"),
    ],
)
def test_what_needs_a_restart(before: dict[str, str], after: dict[str, str], expected: list[str]) -> None:
    """By path; everything else is in force when the reload has ended."""
    assert expected == rooms.needs_restart(settings(**before), settings(**after))


def test_tls_that_a_reload_has_brought_is_in_force() -> None:
    """To be rid of it takes a restart, though the process was started without."""
    without, starttls, require = (
        settings(),
        settings(LISTENERS__SMTP__TLS=TLS),
        settings(LISTENERS__SMTP__TLS=TLS.replace("starttls", "require")),
    )
    assert ["listeners.smtp.tls.mode"] == rooms.needs_restart(rooms.upgraded(without, starttls), without)
    assert [] == rooms.needs_restart(rooms.upgraded(without, starttls), require)
    assert without == rooms.upgraded(without, settings(LISTENERS__SMTP__TLS=TLS.replace("starttls", "implicit")))
    assert without == rooms.upgraded(without, settings(LISTENERS='{"other": {}}'))


def test_every_pattern_is_of_a_path_that_exists() -> None:
    """The table names nothing that has gone."""
    paths = [".".join("name" if part == "<name>" else str(part) for part in path).replace(".0", "[0]") for path, _, _ in places(Settings)]
    assert [] == [pattern.pattern for pattern in rooms.LIVE if not any(pattern.fullmatch(path) for path in paths)]


def test_a_sink_that_is_the_same_stays() -> None:
    """So do its connections; one whose settings differ is made anew, one that has gone is left out."""
    before = settings(SINKS__A='{"kind": "file"}', SINKS__B='{"kind": "file"}', SINKS__C='{"kind": "file"}')
    after = settings(SINKS__A='{"kind": "file"}', SINKS__B='{"kind": "file", "fsync": false}', SINKS__D='{"kind": "file"}')
    old = rooms.build(before, rooms.marks(before))
    new = rooms.build(after, rooms.marks(after), before, old)
    assert old.sinks["a"] is new.sinks["a"]
    assert old.sinks["b"] is not new.sinks["b"]
    assert {"stdout", "a", "b", "d"} == set(new.sinks)


def test_a_sink_whose_secret_was_rotated_is_made_anew(tmp_path: Path) -> None:
    """The settings are the same; what they refer to is not."""
    secret = tmp_path / "secret"
    secret.write_text("whsec_" + "QUFB" * 8)
    said = settings(
        SINKS=f'{{"hook": {{"kind": "webhook", "url": "https://x.example/", "signing_secrets": [{{"file": "{secret}"}}]}}}}',
        ROUTES__0__SINKS="hook",
    )
    old = rooms.build(said, rooms.marks(said))
    assert old.sinks["hook"] is rooms.build(said, rooms.marks(said), said, old).sinks["hook"]
    secret.write_text("whsec_" + "QkJC" * 9)
    assert old.sinks["hook"] is not rooms.build(said, rooms.marks(said), said, old).sinks["hook"]


@pytest.mark.parametrize(
    ("top", "route", "spool", "all_spool"),
    [("spool", None, True, True), ("hold", None, False, False), ("hold", "spool", True, True), ("spool", "hold", False, False)],
)
def test_whether_the_spool_is_needed(top: str, route: str | None, spool: bool, all_spool: bool) -> None:
    """A route's own word wins."""
    said = settings(ACCEPTANCE=top, **({"ROUTES__0__ACCEPTANCE": route} if route else {}))
    assert (spool, all_spool) == (rooms.needs_spool(said), rooms.build(said, {}).all_spool)


def test_what_is_told_of_routes() -> None:
    """Each in one row, best-effort sinks marked."""
    said = settings(SINKS__MORE='{"kind": "file"}', ROUTES__0__BEST_EFFORT="more", ROUTES__0__MATCH='["a@x.example", "*"]')
    assert [("everyone", "a@x.example *", "spool", "parsed", "stdout more (best effort)")] == list(rooms.told(said))


@pytest.mark.parametrize(
    ("sinks", "routes", "expected"),
    [
        pytest.param({"K": KAFKA_TLS, "W": HTTPS, "F": FILE}, ["k", "w", "f"], True, id="all over TLS, or to this machine's disk"),
        pytest.param({"K": KAFKA_TLS, "W": HTTP}, ["k", "w"], False, id="one in plain text"),
        pytest.param({"K": KAFKA_TLS, "W": HTTP}, ["k"], True, id="one in plain text that no route leads to"),
        pytest.param({"K": KAFKA}, ["k"], False, id="Kafka in plain text"),
        pytest.param({"S": '{"kind": "file"}'}, ["s"], False, id="standard output"),
    ],
)
def test_whether_mail_travels_on_by_tls_alone(sinks: dict[str, str], routes: list[str], expected: bool) -> None:
    """Which decides over REQUIRETLS: every sink that any route leads to counts, best-effort ones too."""
    route = {"name": "r", "match": "*", "sinks": routes[:1], "best_effort": routes[1:]}
    said = settings(**{f"SINKS__{name}": text for name, text in sinks.items()}, ROUTES__0=json.dumps(route))
    assert expected == rooms.build(said, {}).all_tls
