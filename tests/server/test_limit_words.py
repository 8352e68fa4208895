"""Each limit by its word: a live session that meets exactly this one, the last answer it gets, and what the metric counts."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from postbus.server import AuthResult
from postbus.server.auth_settings import AuthSettings
from postbus.server.client_settings import ClientSettings
from postbus.server.limits import OF_REPLY
from postbus.server.settings import LimitSettings, ListenerSettings, TimeoutSettings
from postbus.telemetry.numbers import NUMBERS
from tests.server.conftest import Run
from tests.server.test_smtp import Box
from tests.server.wire import Wire, listening, roster_of, until

MAIL, RCPT, DATA = "MAIL FROM:<a@x>", "RCPT TO:<b@mx.example>", "DATA"
NEXT = ""
"""Of a script: say nothing, read one more reply."""


@dataclass(frozen=True, slots=True)
class Case:
    """A session behind EHLO.

    Attributes:
        word: the limit it meets, once.
        answer: the last reply.
        script: what is sent, line by line, each when the one before it has its reply.
        limits, clients: settings that bring the limit near.
        engine: bounds of the engine that no setting moves.
        also: what it cannot but meet on the way: word to how often.
    """

    word: str
    answer: str
    script: tuple[str, ...]
    limits: dict[str, int] = field(default_factory=dict)
    clients: dict[str, int] = field(default_factory=dict)
    engine: dict[str, int] = field(default_factory=dict)
    also: dict[str, int] = field(default_factory=dict)


CASES = (
    Case("pipelining", "554 5.5.0 Protocol error: command sent before its turn", ("EHLO x\r\nNOOP",)),
    Case("http", "502 5.7.0 This is a mail server", ("GET / HTTP/1.1",)),
    Case("tls", "501 5.5.2 TLS is not spoken here without STARTTLS", ("\x16\x03\x01",)),
    Case("errors", "421 4.7.0 Too many errors", ("MAIL FROM:<",) * 3, limits={"errors_max": 2}),
    Case(
        "auth_failures",
        "421 4.7.0 Too many authentication failures",
        ("AUTH PLAIN " + base64.b64encode(b"\0tim\0wrong").decode(),) * 2,
    ),
    Case(
        "auth_failure_rate",
        "454 4.7.0 Too many failed authentications from your network, try again later",
        ("AUTH PLAIN " + base64.b64encode(b"\0tim\0wrong").decode(),) * 2,
        clients={"auth_failure_rate_max": 1},
    ),
    Case("junk", "421 4.7.0 Too many commands without mail", ("NOOP", "RSET", "NOOP"), limits={"junk_max": 3}),
    Case("unknown", "421 4.7.0 Too many unrecognized commands", ("XYZZY",) * 3, limits={"unknown_max": 2}),
    Case("endless_line", "421 4.7.0 Endless line", ("NOOP " + "x" * 70_000,)),
    Case(
        "endless_message",
        "421 4.7.0 Message far over the size limit",
        (MAIL, RCPT, DATA, ("x" * 500 + "\r\n") * 2300),
        limits={"message_max_octets": 1024},
    ),
    Case("chunks", "421 4.7.0 Too many small chunks", (MAIL, RCPT, *["BDAT 2\r\n"] * 3), engine={"small_chunks": 2}),
    Case("size", "552 5.3.4 Message size exceeds limit", (MAIL + " SIZE=2000",), limits={"message_max_octets": 1024}),
    Case(
        "line",
        "550 5.6.0 Message holds a line that is too long",
        (MAIL, RCPT, DATA, "x" * 1100 + "\r\n."),
        limits={"line_max_octets": 1000},
    ),
    Case(
        "recipients",
        "452 4.5.3 Too many recipients",
        (MAIL, *(f"RCPT TO:<b{number}@mx.example>" for number in range(101))),
        limits={"recipients_max": 100},
    ),
    Case(
        "recipient_domains",
        "452 4.5.3 Too many recipient domains in one session",
        (MAIL, RCPT, "RCPT TO:<b@other.example>"),
        limits={"recipient_domains_max": 1},
    ),
    Case(
        "session_octets",
        "421 4.7.0 Too much in one session",
        (MAIL, RCPT, DATA, ("x" * 998 + "\r\n") * 1000 + ".", NEXT),
        limits={"session_max_octets": 100_000},
    ),
    Case("session_messages", "421 4.7.0 Too many messages in one session", (MAIL, "RSET", MAIL), limits={"messages_max": 1}),
    Case(
        "message_rate",
        "450 4.7.1 Too many messages in a short time, try again later",
        (MAIL, "RSET", MAIL),
        clients={"message_rate_max": 1},
    ),
    Case(
        "recipient_rate",
        "450 4.7.1 Too many recipients in a short time, try again later",
        (MAIL, RCPT, RCPT),
        clients={"recipient_rate_max": 1},
    ),
    Case(
        "persistence",
        "421 4.7.1 Too many requests in a short time, try again later",
        (MAIL, "RSET", MAIL, MAIL),
        limits={"errors_max": 1},
        clients={"message_rate_max": 1},
        also={"message_rate": 1},
    ),
)


class Hesitant(Box):
    """Thinks about a sender until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.told = asyncio.Event(), asyncio.Event()

    async def handle_MAIL(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        """Wait, then take it."""
        self.asked.set()
        await self.told.wait()
        return "250 OK"


def counts() -> dict[str, float]:
    """Return how often each limit was hit so far on the listener under test."""
    return {word: count for (listener, word), count in NUMBERS.reading("postbus_limits_hit_total").items() if listener == "test"}


def since(before: dict[str, float]) -> dict[str, float]:
    """Return which limits were hit since *before*, and how often."""
    return {word: count - before.get(word, 0) for word, count in counts().items() if count != before.get(word, 0)}


def settings(case: Case) -> ListenerSettings:
    """Return a listener's settings for *case*, under which nobody is spared and nobody waits."""
    return ListenerSettings(
        address="127.0.0.1:0",
        hostname="mx.example",
        limits=LimitSettings(**case.limits),
        clients=ClientSettings(exempt=(), **case.clients),
        timeouts=TimeoutSettings(error_delay_s=0),
        auth=AuthSettings(allow_plaintext=True, failures_max=2, failure_delay_s=0),
    )


def refuse(*_: Any) -> AuthResult:
    """Know nobody."""
    return AuthResult(success=False, handled=False)


def test_every_limit_has_a_session_that_meets_it() -> None:
    """A word without a row is a number that nobody has seen; ``backlog`` needs an answer that is owed, and has a test of its own."""
    assert sorted(OF_REPLY.values()) == sorted([*(case.word for case in CASES), "backlog"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.word)
def test_a_limit_is_counted_by_its_word(case: Case, run: Run) -> None:
    """Once, and no other; the peer is told which one it was."""

    async def scenario() -> None:
        before = counts()
        async with listening(Box(), settings(case), authenticator=refuse) as listener:
            terms = roster_of(listener).terms
            roster_of(listener).grant(replace(terms, limits=replace(terms.limits, **case.engine)))
            async with Wire.to(listener) as wire:
                await wire.say("EHLO x")
                *way, last = [await (wire.say(line) if line != NEXT else wire.reply()) for line in case.script]
                assert case.answer == last
                assert case.answer not in way
            await until(lambda: listener.sessions == 0)
        assert {case.word: 1, **case.also} == since(before)

    run(scenario())


def test_who_runs_far_ahead_is_counted(run: Run) -> None:
    """Octets beyond the backlog while an answer is owed: the session ends, and the answer is nobody's any more."""

    async def scenario() -> None:
        before, box = counts(), Hesitant()
        async with listening(box, settings(Case("backlog", "", ()))) as listener:
            terms = roster_of(listener).terms
            roster_of(listener).grant(replace(terms, limits=replace(terms.limits, backlog_octets=100)))
            async with Wire.to(listener) as wire:
                await wire.say("EHLO x")
                wire.send(MAIL + "\r\n")
                await box.asked.wait()
                (server,) = roster_of(listener).connections
                seen = server.octets
                wire.send("NOOP\r\n" * 20)
                await until(lambda: server.octets > seen + 100)
                box.told.set()
                assert await wire.reply() == "421 4.7.0 Too much sent without waiting for replies"
                assert await wire.rest() == ""
            await until(lambda: listener.sessions == 0)
        assert {"backlog": 1} == since(before)

    run(scenario())
