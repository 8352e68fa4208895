"""The webhook sink against a real HTTP server, well behaved and not."""

from __future__ import annotations

import asyncio
import base64
import gc
import resource
import socket
import ssl
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
import standardwebhooks
import trustme

from postbus.event.cloudevents import HTTP_STRUCTURED_TYPE, structured
from postbus.event.model import Event
from postbus.sinks import Outcome, Rejected, Retry, Sent
from postbus.sinks.settings import WebhookSettings
from postbus.sinks.webhook import WebhookSink, make
from postbus.sinks.webhook.answers import FAMILIES, STATUSES, outcome_of, seconds_of
from postbus.sinks.webhook.request import Headers, request_of
from postbus.sinks.webhook.transport import Octets
from tests.sinks import receivers
from tests.sinks.receivers import Behaviour, receiving, status
from tests.sinks.samples import raw_sample, sample

KEY = base64.b64encode(b"k" * 32).decode()
NEW_KEY = base64.b64encode(b"n" * 32).decode()
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
NOW = datetime(2026, 11, 23, 1, 2, 3, tzinfo=UTC)


@asynccontextmanager
async def posting(url: str, **settings: Any) -> AsyncIterator[WebhookSink]:
    """A started sink that posts to *url*."""
    sink = make("hook", WebhookSettings.model_validate({"kind": "webhook", "url": url, "timeout_s": 2, **settings}))
    await sink.start()
    try:
        yield sink
    finally:
        await sink.stop(1)


# --- what arrives


async def test_an_event_arrives_in_structured_mode() -> None:
    """One POST: the event as one JSON object, its id as webhook-id, and no ce- headers."""
    event = sample()
    async with receiving(status(204)) as receiver, posting(receiver.url, headers={"X-Tenant": "a"}) as sink:
        assert await sink.send(event) == Sent("204")
    (request,) = receiver.requests
    assert request.line == "POST /hook HTTP/1.1"
    assert request.body == structured(event)
    assert request.headers["content-type"] == HTTP_STRUCTURED_TYPE
    assert request.headers["webhook-id"] == event.id
    assert request.headers["x-tenant"] == "a"
    assert request.headers["host"] == f"localhost:{receiver.port}"
    assert not [name for name in request.headers if name.startswith("ce-") or name in ("cookie", "accept-encoding", "authorization")]


async def test_an_event_arrives_in_binary_mode() -> None:
    """Attributes as ce- headers, the data alone as the body."""
    event = sample()
    async with receiving(status(200)) as receiver, posting(receiver.url, mode="binary") as sink:
        assert await sink.send(event) == Sent("200")
    (request,) = receiver.requests
    assert request.body == event.data
    assert request.headers["content-type"] == "application/json"
    assert request.headers["ce-id"] == event.id
    assert request.headers["ce-specversion"] == "1.0"


async def test_raw_mail_is_text_on_the_wire() -> None:
    """Octets that are no text go as base64, since receivers verify signatures over text."""
    event = raw_sample()
    async with receiving(status(200)) as receiver, posting(receiver.url) as sink:
        await sink.send(event)
    assert base64.b64decode(orjson.loads(receiver.requests[0].body)["data_base64"]) == event.data


async def test_the_reference_library_verifies_with_every_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """While secrets are rotated, receivers with the old and with the new one both verify the body as it was sent."""
    monkeypatch.setenv("OLD", f"whsec_{KEY}")
    new = tmp_path / "new"
    new.write_text(f"whsec_{NEW_KEY}\n")
    secrets = [{"env": "OLD"}, {"file": str(new)}]
    async with receiving(status(200)) as receiver, posting(receiver.url, signing_secrets=secrets) as sink:
        await sink.send(sample())
    (request,) = receiver.requests
    for key in (KEY, NEW_KEY):
        assert standardwebhooks.Webhook(f"whsec_{key}").verify(request.body, dict(request.headers))["specversion"] == "1.0"
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        standardwebhooks.Webhook(f"whsec_{base64.b64encode(b'x' * 32).decode()}").verify(request.body, dict(request.headers))


async def test_the_id_stays_and_the_time_moves() -> None:
    """Another attempt has the same webhook-id and its own time: receivers dedupe by the one and refuse old ones by the other."""
    times = iter((1_700_000_000.9, 1_700_000_060.0))
    event = sample()
    async with receiving(status(503)) as receiver:
        settings = WebhookSettings(kind="webhook", url=receiver.url)
        sink = WebhookSink("hook", settings, clock=lambda: next(times))
        await sink.start()
        await sink.send(event)
        await sink.send(event)
        await sink.stop(1)
    assert [request.headers["webhook-id"] for request in receiver.requests] == [event.id, event.id]
    assert [request.headers["webhook-timestamp"] for request in receiver.requests] == ["1700000000", "1700000060"]


async def test_a_large_event_arrives_whole() -> None:
    """Written in pieces, with a length, and the same octets."""
    event = sample(octets=5_000_000)
    async with receiving(status(200)) as receiver, posting(receiver.url) as sink:
        assert await sink.send(event) == Sent("200")
    assert receiver.requests[0].body == structured(event)


async def test_authorization_is_read_from_its_place(tmp_path: Path) -> None:
    """The Authorization header comes from a file."""
    token = tmp_path / "token"
    token.write_text("Bearer s3cret\n")
    async with receiving(status(200)) as receiver, posting(receiver.url, authorization={"file": str(token)}) as sink:
        await sink.send(sample())
    assert receiver.requests[0].headers["authorization"] == "Bearer s3cret"


async def test_a_missing_secret_waits_for_its_file(tmp_path: Path) -> None:
    """Without its secret nothing is posted unsigned; the event is a retry until the secret is there."""
    secret = tmp_path / "secret"
    async with receiving(status(200)) as receiver, posting(receiver.url, signing_secrets=[{"file": str(secret)}]) as sink:
        assert await sink.send(sample()) == Retry("a secret is missing or none")
        assert not sink.health().ok
        secret.write_text(f"whsec_{KEY}")
        assert await sink.send(sample()) == Sent("200")
        assert sink.health().ok
    assert len(receiver.requests) == 1


async def test_connections_are_used_again() -> None:
    """Twenty events one after another take one connection."""
    async with receiving(receivers.answering(OK)) as receiver, posting(receiver.url) as sink:
        for _ in range(20):
            assert await sink.send(sample()) == Sent("200")
    assert receiver.connections == 1


async def test_a_connection_that_had_been_closed_is_not_the_events_fault() -> None:
    """A receiver that closes idle connections sees the event on a new one, at once."""
    behave = receivers.once_then_close(OK)
    async with receiving(behave) as receiver, posting(receiver.url) as sink:
        assert [await sink.send(sample()) for _ in range(5)] == [Sent("200")] * 5
    assert len(receiver.requests) == 5


# --- TLS


def _server_context(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.mark.parametrize(
    ("name", "trusted", "expected"),
    [
        pytest.param("localhost", True, Sent("200"), id="good"),
        pytest.param("localhost", False, Retry("the receiver's certificate is not trusted"), id="unknown authority"),
        pytest.param("elsewhere.example", True, Retry("the receiver's certificate is not trusted"), id="another's name"),
    ],
)
async def test_certificates_are_checked(tmp_path: Path, name: str, trusted: bool, expected: Outcome) -> None:
    """Authority and name must be right."""
    authority = trustme.CA()
    ca = tmp_path / "ca.pem"
    (authority if trusted else trustme.CA()).cert_pem.write_to_path(ca)
    async with receiving(status(200), tls=_server_context(authority, name)) as receiver, posting(receiver.url, tls={"ca": str(ca)}) as sink:
        assert sink.secure
        assert await sink.send(sample()) == expected


async def test_plain_http_behind_https_is_a_retry() -> None:
    """A receiver that speaks no TLS where TLS is expected."""
    behave = receivers.blurting(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    async with receiving(behave) as receiver, posting(receiver.url.replace("http:", "https:")) as sink:
        assert await sink.send(sample()) == Retry("TLS with the receiver failed")


async def test_our_own_certificate_is_shown(tmp_path: Path) -> None:
    """Where a receiver asks for a client certificate it gets ours."""
    authority = trustme.CA()
    ca, pem = tmp_path / "ca.pem", tmp_path / "client.pem"
    authority.cert_pem.write_to_path(ca)
    authority.issue_cert("postbus.example").private_key_and_cert_chain_pem.write_to_path(pem)
    context = _server_context(authority, "localhost")
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    tls = {"ca": str(ca), "certificate": str(pem)}
    async with receiving(status(200), tls=context) as receiver, posting(receiver.url, tls=tls) as sink:
        assert await sink.send(sample()) == Sent("200")


# --- every way to fail

TIMED_OUT = Retry("the receiver did not answer in time")
NOT_HTTP = Retry("the receiver's answer is not HTTP")
NO_ANSWER = Retry("the receiver closed the connection without an answer")
BROKEN = Retry("the receiver broke the connection")
ENDLESS = b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n"

MISBEHAVIOURS: tuple[tuple[str, Behaviour, Outcome], ...] = (
    ("closes before the answer", receivers.closing(b""), NO_ANSWER),
    ("closes inside the status line", receivers.closing(b"HTTP/1.1 20"), NO_ANSWER),
    ("closes inside the headers", receivers.closing(b"HTTP/1.1 200 OK\r\nContent-"), NO_ANSWER),
    ("closes inside the body", receivers.closing(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab"), Sent("200")),
    ("resets before the answer", receivers.resetting(b""), BROKEN),
    ("resets inside the headers", receivers.resetting(b"HTTP/1.1 200 OK\r\nContent-"), BROKEN),
    ("never answers", receivers.silent, TIMED_OUT),
    ("dribbles its headers", receivers.repeating(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n", 0.1), TIMED_OUT),
    ("sends headers without end", receivers.repeating(b"HTTP/1.1 200 OK\r\n", b"X-A: bbbbbbbbbbbbbb\r\n" * 500), NOT_HTTP),
    ("sends one header without end", receivers.repeating(b"HTTP/1.1 200 OK\r\nX: ", b"a" * 9000), NOT_HTTP),
    ("dribbles its body", receivers.repeating(ENDLESS, b"a", 0.1), Sent("200")),
    ("sends a body without end", receivers.repeating(ENDLESS, b"a" * 60_000), Sent("200")),
    ("sends a gzip bomb", receivers.status(200, "Content-Encoding: gzip", body=receivers.BOMB), Sent("200")),
    (
        "refuses with a body without end",
        receivers.repeating(ENDLESS.replace(b"200", b"503"), b"a" * 60_000),
        Retry("the receiver is unavailable (503)"),
    ),
    ("speaks another protocol", receivers.closing(b"220 mx.example.org ESMTP\r\n"), NOT_HTTP),
    ("gives no status", receivers.closing(b"HTTP/1.1 xyz OK\r\n\r\n"), NOT_HTTP),
    ("has two lengths", receivers.closing(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\na"), NOT_HTTP),
    ("says 100 Continue for ever", receivers.repeating(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01), TIMED_OUT),
    (
        "switches protocols",
        receivers.closing(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"),
        Retry("the receiver changed the protocol (101)"),
    ),
    (
        "redirects",
        receivers.status(302, "Location: http://127.0.0.1:1/"),
        Retry("the receiver redirects, which is not followed: configure the URL it leads to (302)"),
    ),
    ("asks for a pause", receivers.status(429, "Retry-After: 7"), Retry("the receiver is asked too often (429)", after_s=7.0)),
    ("finds it too large", receivers.status(413), Rejected("the receiver finds the event too large (413)")),
)


@pytest.mark.parametrize(("behave", "expected"), [pytest.param(behave, expected, id=name) for name, behave, expected in MISBEHAVIOURS])
async def test_a_misbehaving_receiver_has_its_outcome(behave: Behaviour, expected: Outcome) -> None:
    """Each way to fail has its own words, ends within the deadline, and its connection is given up."""
    started = asyncio.get_running_loop().time()
    async with receiving(behave) as receiver, posting(receiver.url, timeout_s=1.5) as sink:
        assert await sink.send(sample()) == expected
        assert asyncio.get_running_loop().time() - started < 2
        await sink.stop(1)
        async with asyncio.timeout(5):
            await receiver.closed.wait()


async def test_an_upload_to_a_receiver_that_does_not_read_ends() -> None:
    """A large event nobody takes is given up with the deadline."""
    async with receiving(receivers.not_reading) as receiver, posting(receiver.url, timeout_s=1) as sink:
        assert await sink.send(sample(octets=20_000_000)) == TIMED_OUT


@pytest.mark.parametrize(
    ("behave", "why"),
    [
        pytest.param("127.0.0.1", "the receiver cannot be connected to", id="refused"),
        pytest.param("localhost", "the receiver cannot be connected to", id="refused, by a name"),
        pytest.param(receivers.closing(b""), "the receiver closed the connection without an answer", id="dropped"),
        pytest.param(receivers.silent, "the receiver did not answer in time", id="silent"),
    ],
)
async def test_a_failure_keeps_no_body(behave: Behaviour | str, why: str) -> None:
    """Nothing waits for the garbage collector: the octets of failed requests are in nobody's budget any more."""
    async with receiving(status(200) if isinstance(behave, str) else behave) as receiver:
        url = f"http://{behave}:1/" if isinstance(behave, str) else receiver.url
        async with posting(url, timeout_s=0.5) as sink:
            gc.collect()
            gc.disable()
            try:
                assert await sink.send(sample()) == Retry(why)
                assert not [one for one in gc.get_objects() if type(one) is Octets and one.octets]
            finally:
                gc.enable()


@pytest.mark.filterwarnings("error::ResourceWarning")
async def test_a_url_that_only_settings_take_is_told_as_such() -> None:
    """It can be none to the client, and nothing is left open then."""
    async with posting("http://h\\x/") as sink:
        assert await sink.send(sample()) == Retry("the URL is not one that can be connected to")
        assert sink.health().detail == "the URL is not one that can be connected to"


async def test_a_refused_connection_is_a_retry() -> None:
    """Nobody listens."""
    async with receiving(status(200)) as receiver:
        url = receiver.url
    async with posting(url) as sink:
        assert await sink.send(sample()) == Retry("the receiver cannot be connected to")
        assert not sink.health().ok


async def test_a_connection_that_never_opens_is_a_retry() -> None:
    """A listener whose queue is full does not answer SYNs; connecting has its own deadline."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = listener.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        async with posting(f"http://localhost:{port}/", connect_timeout_s=0.5) as sink:
            assert await sink.send(sample()) == Retry("the receiver cannot be connected to in time")
        for filler in fillers:
            filler.close()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b.example", f"{'x' * 64}.example"])
async def test_a_name_that_leads_nowhere_is_a_retry(host: str) -> None:
    """No DNS, or no name at all."""
    async with posting(f"http://{host}/") as sink:
        outcome = await sink.send(sample())
    assert isinstance(outcome, Retry)
    assert outcome.why in ("the receiver's name cannot be resolved", "the request failed", "the connection failed")


async def test_bombs_and_endless_bodies_cost_no_memory() -> None:
    """Two hundred of each leave the process as large as it was."""
    async with (
        receiving(receivers.repeating(ENDLESS, b"a" * 60_000)) as endless,
        receiving(receivers.status(200, "Content-Encoding: gzip", body=receivers.BOMB)) as bomb,
        posting(endless.url) as one,
        posting(bomb.url) as other,
    ):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(20):
            await asyncio.gather(*(sink.send(sample()) for sink in (one, other) for _ in range(10)))
        grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 30_000


async def test_the_environment_names_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxy variables of the environment are not obeyed: they would see every event, and no address check."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with receiving(status(200)) as receiver, posting(receiver.url) as sink:
        assert await sink.send(sample()) == Sent("200")


async def test_cookies_are_not_sent_back() -> None:
    """What a receiver sets is forgotten."""
    async with receiving(status(200, "Set-Cookie: a=b; Path=/")) as receiver, posting(receiver.url) as sink:
        await sink.send(sample())
        await sink.send(sample())
    assert "cookie" not in receiver.requests[1].headers


async def test_a_gone_endpoint_is_flagged() -> None:
    """410 pauses the sink, shows in health, and loses nothing."""
    async with receiving(status(410)) as receiver, posting(receiver.url) as sink:
        assert await sink.send(sample()) == Retry("the receiver is gone and wants no more events (410)")
        assert sink.health().detail == "the receiver is gone and wants no more events (410)"


# --- bounds


async def test_stop_is_bounded_by_its_time() -> None:
    """A request that hangs does not hold a stop up; its event is a retry."""
    async with receiving(receivers.silent) as receiver, posting(receiver.url, timeout_s=60) as sink:
        sending = asyncio.create_task(sink.send(sample()))
        while not receiver.requests:
            await asyncio.sleep(0)
        started = asyncio.get_running_loop().time()
        await sink.stop(0.2)
        assert asyncio.get_running_loop().time() - started < 1
        assert isinstance(await sending, Retry)
        assert await sink.send(sample()) == Retry("stopping")


async def test_an_event_larger_than_the_setting_is_rejected() -> None:
    """It is not even posted."""
    async with receiving(status(200)) as receiver, posting(receiver.url, event_max_octets=20_000) as sink:
        assert isinstance(await sink.send(sample(octets=20_000)), Rejected)
    assert receiver.requests == []


async def test_a_limit_of_the_receiver_is_learnt() -> None:
    """A proxy's 413 to a large event is its limit: the sink says at once that it carries less; one to a small event is about the event."""
    async with receiving(status(413)) as receiver, posting(receiver.url) as sink:
        configured = sink.event_max_octets
        assert await sink.send(sample()) == Rejected("the receiver finds the event too large (413)")
        assert configured == sink.event_max_octets
        for _ in range(2):
            assert await sink.send(sample(octets=1_000_000)) == Rejected("the receiver finds the event too large (413)", too_large=True)
        assert 870_000 < sink.event_max_octets < 900_000
        assert sink.health().ok
        assert str(sink.event_max_octets) in sink.health().detail
        sink._unlearn()  # what the timer does an hour later
        assert configured == sink.event_max_octets


async def test_waiting_for_room_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made of an event before there is room for it, and its time begins then: no receiver is in trouble because we are busy."""
    made: list[str] = []

    def spy(event: Event, **terms: Any) -> tuple[Headers, bytes]:
        made.append(event.id)
        return request_of(event, **terms)

    monkeypatch.setattr("postbus.sinks.webhook.sink.request_of", spy)
    limits = {"in_flight_max_octets": 1024 * 1024, "event_max_octets": 1024 * 1024, "timeout_s": 0.5}
    async with receiving(receivers.silent) as receiver, posting(receiver.url, **limits) as sink:
        sending = [asyncio.create_task(sink.send(sample(octets=800_000))) for _ in range(3)]
        while not receiver.requests:
            await asyncio.sleep(0)
        assert 1 == len(made)
        outcomes = await asyncio.gather(*sending)
        assert [Retry("the receiver did not answer in time")] * 3 == outcomes
        assert 3 == len(receiver.requests)
        assert 0 == sink._budget.used_octets


async def test_a_large_body_is_signed_off_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Base64, JSON and HMAC of 25 MiB take a tenth of a second that belongs to everybody's sessions."""
    threads: list[bool] = []

    def spy(event: Event, **terms: Any) -> tuple[Headers, bytes]:
        threads.append(threading.current_thread() is threading.main_thread())
        return request_of(event, **terms)

    monkeypatch.setattr("postbus.sinks.webhook.sink.request_of", spy)
    async with receiving(status(200)) as receiver, posting(receiver.url) as sink:
        assert await sink.send(sample()) == Sent("200")
        assert await sink.send(sample(octets=2_000_000)) == Sent("200")
    assert [True, False] == threads


async def test_a_cancelled_send_gives_everything_back() -> None:
    """Octets in flight are counted down when the waiting is cancelled."""
    async with receiving(receivers.silent) as receiver, posting(receiver.url) as sink:
        sending = asyncio.create_task(sink.send(sample()))
        while not receiver.requests:
            await asyncio.sleep(0)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        assert sink._budget.used_octets == 0
        async with asyncio.timeout(5):
            await receiver.closed.wait()


# --- the tables


def test_every_status_has_an_outcome() -> None:
    """2xx is sent, 413 is rejected, everything else is tried again with the code in its words."""
    for code in range(100, 600):
        outcome = outcome_of(code, None, NOW)
        if 200 <= code <= 299:
            assert outcome == Sent(str(code))
        elif code == 413:
            assert isinstance(outcome, Rejected)
        else:
            words, down = STATUSES.get(code) or FAMILIES[code // 100]
            assert outcome == Retry(f"the receiver {words} ({code})", sink_down=down)


@pytest.mark.parametrize(
    ("code", "down"),
    [
        pytest.param(400, False, id="this event is bad"),
        pytest.param(401, True, id="our credentials are"),
        pytest.param(404, True, id="the path is"),
        pytest.param(422, False, id="this event makes no sense"),
        pytest.param(429, True, id="too often"),
        pytest.param(500, False, id="failed over it"),
        pytest.param(503, True, id="unavailable"),
        pytest.param(599, False, id="unknown"),
    ],
)
def test_whose_trouble_a_status_is(code: int, down: bool) -> None:
    """A deployment gone wrong pauses the sink; what may be about one event lets the others pass."""
    outcome = outcome_of(code, None, NOW)
    assert isinstance(outcome, Retry)
    assert outcome.sink_down is down


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(None, None, id="none"),
        pytest.param("0", 0.0, id="at once"),
        pytest.param(" 120 ", 120.0, id="seconds"),
        pytest.param("99999999999999999999", 3600.0, id="for ever"),
        pytest.param("-5", None, id="negative"),
        pytest.param("1.5", None, id="fraction"),
        pytest.param("Mon, 23 Nov 2026 01:03:03 GMT", 60.0, id="date"),
        pytest.param("Mon, 23 Nov 2026 01:03:03 -0000", 60.0, id="date without a zone"),
        pytest.param("Mon, 23 Nov 2026 01:02:00 GMT", 0.0, id="past"),
        pytest.param("Mon, 23 Nov 2099 01:02:00 GMT", 3600.0, id="far future"),
        pytest.param("soon", None, id="words"),
        pytest.param("", None, id="empty"),
        pytest.param("\u0661\u0662", None, id="other digits"),
    ],
)
def test_retry_after(value: str | None, expected: float | None) -> None:
    """Seconds and dates are understood, nonsense is not there, and nothing asks for more than an hour."""
    assert seconds_of(value, NOW) == expected
