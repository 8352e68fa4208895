"""The argument of AUTH, answers to challenges, and what they must never show."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from postbus.smtp import Auth, AuthResponse, Command, Offer, Reply, exchange, replies
from tests.smtp.driver import OFFER, Driver

OFFERED = replace(OFFER, auth=("PLAIN", "LOGIN"), auth_tls=False)
SECRET = "AHRlc3QAMTIzNA=="


@dataclass
class Session:
    """What a parser may know."""

    offer: Offer = OFFERED
    esmtp: bool = True
    tls: bool = False
    authenticated: bool = False
    smtputf8: bool = False
    binarymime: bool = False


@pytest.mark.parametrize(
    ("arg", "session", "expected"),
    [
        pytest.param("PLAIN", Session(), Auth("PLAIN"), id="no response"),
        pytest.param("plain AAAA", Session(), Auth("PLAIN", b"\0\0\0"), id="a response"),
        pytest.param("LOGIN   =", Session(), Auth("LOGIN", b""), id="an empty response"),
        pytest.param("PLAIN ==", Session(), replies.BAD_BASE64, id="too empty"),
        pytest.param("PLAIN AAAA=", Session(), replies.BAD_BASE64, id="surplus padding"),
        pytest.param("PLAIN AAA", Session(), replies.BAD_BASE64, id="too little padding"),
        pytest.param("PLAIN \u00fc", Session(), replies.BAD_BASE64, id="no ASCII"),
        pytest.param(None, Session(), replies.AUTH_SYNTAX, id="nothing"),
        pytest.param("PLAIN = =", Session(), replies.AUTH_SYNTAX, id="too much"),
        pytest.param("CRAM-MD5", Session(), replies.UNKNOWN_MECHANISM, id="another mechanism"),
        pytest.param("PLAIN", Session(OFFER), replies.NO_AUTH, id="not offered"),
        pytest.param("PLAIN", Session(esmtp=False), replies.HELO_IS_NOT_EHLO, id="after HELO"),
        pytest.param("PLAIN", Session(replace(OFFERED, auth_tls=True)), replies.ENCRYPT_FIRST, id="in plain text"),
        pytest.param("PLAIN", Session(replace(OFFERED, auth_tls=True), tls=True), Auth("PLAIN"), id="under TLS"),
        pytest.param("PLAIN", Session(authenticated=True), replies.AUTHENTICATED_ALREADY, id="twice"),
    ],
)
def test_the_argument(arg: str | None, session: Session, expected: Auth | Reply) -> None:
    """Mechanism and initial response, or why not now."""
    assert expected == exchange.parse(arg, session)


@pytest.mark.parametrize(
    ("line", "length", "expected"),
    [
        pytest.param(b"AAAA", 6, b"\0\0\0", id="a response"),
        pytest.param(b" AAAA  ", 9, b"\0\0\0", id="spaces around it"),
        pytest.param(b"", 2, b"", id="an empty response"),
        pytest.param(b"=", 3, b"", id="an empty response by curl"),
        pytest.param(b"*", 3, replies.AUTH_CANCELLED, id="cancelled"),
        pytest.param(b"**", 4, replies.BAD_BASE64, id="no base64"),
        pytest.param(b"\xff", 3, replies.BAD_BASE64, id="no ASCII"),
        pytest.param(b"AAAA", exchange.LINE_OCTETS, b"\0\0\0", id="the longest"),
        pytest.param(b"AAAA", exchange.LINE_OCTETS + 1, replies.RESPONSE_TOO_LONG, id="too long"),
    ],
)
def test_a_response(line: bytes, length: int, expected: bytes | Reply) -> None:
    """Octets, or what ends the exchange."""
    assert expected == exchange.judge(line, length)


@pytest.mark.parametrize("event", [Auth("PLAIN", b"secret"), AuthResponse(b"secret"), Command("AUTH", "PLAIN c2VjcmV0")], ids=repr)
def test_no_event_shows_credentials(event: object) -> None:
    """What is printed of an event goes to logs and tracebacks."""
    assert "secret" not in repr(event)
    assert "c2V" not in repr(event)


def test_errors_end_an_exchange_too() -> None:
    """The error budget counts in an exchange as anywhere."""
    driver = Driver(OFFERED)
    driver.feed(b"EHLO x\r\n")
    for _ in range(19):
        driver.feed(b"MAIL FROM:<x\r\n")
    driver.feed(b"AUTH PLAIN\r\n")
    assert driver.feed(b"*\r\n").startswith(b"501 5.7.0")
    assert driver.feed(b"AUTH PLAIN\r\n").startswith(b"421 4.7.0")


def test_too_many_errors_before_an_answer() -> None:
    """A shell that lets the exchange go on past the budget does not help the peer."""
    driver = Driver(OFFERED)
    driver.feed(b"EHLO x\r\n")
    driver.feed(b"AUTH PLAIN\r\n")
    driver.engine.tally.errors = 20
    assert driver.feed(SECRET.encode() + b"\r\n").startswith(b"421 4.7.0")
    assert driver.closed


def test_a_shell_that_knows_the_peer_may_say_so() -> None:
    """Who is known by other means needs no AUTH, and gets none."""
    driver = Driver(replace(OFFERED, require_auth=True))
    driver.feed(b"EHLO x\r\n")
    assert driver.feed(b"MAIL FROM:<a@x>\r\n").startswith(b"530 5.7.0")
    driver.engine.authenticated = True
    assert driver.feed(b"AUTH PLAIN\r\n").startswith(b"503 5.5.1")
    assert driver.feed(b"MAIL FROM:<a@x>\r\n").startswith(b"250")


def test_auth_is_announced_where_it_can_be_used() -> None:
    """Under TLS, or anywhere if that is allowed; never without mechanisms."""
    said = {tls: Driver(replace(OFFERED, auth_tls=True), greeted=True).engine for tls in (False, True)}
    said[True].tls = True
    assert "AUTH PLAIN LOGIN" not in said[False].greeting_lines()
    assert "AUTH PLAIN LOGIN" in said[True].greeting_lines()
    assert "AUTH PLAIN LOGIN" in Driver(OFFERED).engine.greeting_lines()
    assert not any(line.startswith("AUTH") for line in Driver(OFFER).engine.greeting_lines())
