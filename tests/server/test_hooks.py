"""Hooks and the values they return; the forms and the methods that programs written for aiosmtpd use."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Any

import pytest

from postbus.server import LMTP, MISSING, SMTP, Envelope, Reply, Session
from postbus.server.hooks import Hooks, Misanswered, ehlo_reply, message_replies, reply_of
from tests.server.conftest import Run
from tests.server.test_smtp import Box, Ehlo, HeloCounter, sent
from tests.server.wire import Wire, listening

OK = Reply(250, "OK", "2.0.0")


class Words(StrEnum):
    """What a handler may say, as some like to write it."""

    OK = "250 2.0.0 OK"
    BOTH = "250 2.0.0 OK\r\n550 no"


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        pytest.param("250 2.0.0 OK", OK, id="text"),
        pytest.param(b"250 2.0.0 OK", OK, id="octets"),
        pytest.param(Words.OK, OK, id="text that is an enumeration's"),
        pytest.param(OK, OK, id="a reply"),
        pytest.param("250-one\r\n250 two", Reply(250, ("one", "two")), id="several lines"),
        pytest.param(None, None, id="None"),
        pytest.param(Reply(354, "go on"), None, id="an answer that ends nothing"),
        pytest.param("OK", None, id="no code"),
        pytest.param(250, None, id="a number"),
    ],
)
def test_what_an_outcome_stands_for(outcome: Any, expected: Reply | None) -> None:
    """A reply, or a mistake whose text never holds the value."""
    if expected is not None:
        assert expected == reply_of(outcome)
        return
    with pytest.raises(Misanswered, match=r"returned|answered"):
        reply_of(outcome)


@pytest.mark.parametrize(
    ("outcome", "lmtp", "expected"),
    [
        pytest.param("250 2.0.0 OK", False, OK, id="one, SMTP"),
        pytest.param("250 2.0.0 OK", True, (OK, OK), id="one, LMTP"),
        pytest.param(["250 2.0.0 OK", b"550 no"], True, (OK, Reply(550, "no")), id="each"),
        pytest.param(("250 2.0.0 OK", "550 no"), False, OK, id="folded"),
        pytest.param(Words.BOTH, True, (OK, Reply(550, "no")), id="each on its line, an enumeration's"),
        pytest.param([], True, None, id="none"),
        pytest.param(bytearray(b"250 OK"), True, None, id="not a reply each"),
    ],
)
def test_what_an_outcome_says_for_two_recipients(outcome: Any, lmtp: bool, expected: Any) -> None:
    """As many replies as the protocol has."""
    if expected is not None:
        assert expected == message_replies(outcome, 2, lmtp=lmtp)
        return
    with pytest.raises(Misanswered):
        message_replies(outcome, 2, lmtp=lmtp)


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        pytest.param(["250-mx", "250-SIZE 1", "250 HELP"], Reply(250, ("mx", "SIZE 1", "HELP")), id="lines"),
        pytest.param(["250 mx", "250-HELP"], Reply(250, ("mx", "HELP")), id="badly marked lines"),
        pytest.param("550 no", Reply(550, "no"), id="a refusal"),
        pytest.param([], None, id="nothing"),
        pytest.param(["250-mx", "550 no"], None, id="codes that differ"),
    ],
)
def test_what_a_list_of_ehlo_lines_stands_for(outcome: Any, expected: Reply | None) -> None:
    """The marks between code and text are ours to set."""
    if expected is not None:
        assert expected == ehlo_reply(outcome)
        return
    with pytest.raises(Misanswered):
        ehlo_reply(outcome)


class Any5:
    """Takes whatever there is."""

    def handle_EHLO(self, *args: Any) -> Any:
        """Return the lines."""
        return args[-1]


class Three:
    """Takes too little."""

    def handle_EHLO(self, server: Any, session: Any) -> Any:
        """Never called."""


def test_the_forms_of_handle_ehlo() -> None:
    """Five arguments or any number; two are a mistake, and said so at once."""
    assert Hooks(Any5()).ehlo_has_responses
    assert Hooks(Ehlo()).ehlo_has_responses
    assert not Hooks(Box()).ehlo_has_responses
    with pytest.raises(RuntimeError, match="not 2 arguments"):
        Hooks(Three())


class Old:
    """The handler of smtpd."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome
        self.messages: list[tuple[Any, ...]] = []

    def process_message(self, peer: Any, mailfrom: str, rcpttos: list[str], data: Any) -> Any:
        """Keep."""
        self.messages.append((mailfrom, list(rcpttos), data))
        return self.outcome


class OldCoroutine(Old):
    """The same, as a coroutine."""

    async def process_message(self, peer: Any, mailfrom: str, rcpttos: list[str], data: Any) -> Any:
        """Keep, a loop turn later."""
        await asyncio.sleep(0)
        return super().process_message(peer, mailfrom, rcpttos, data)


@pytest.mark.parametrize("handler", [pytest.param(Old, id="plain"), pytest.param(OldCoroutine, id="coroutine")])
@pytest.mark.parametrize(("outcome", "expected"), [(None, "250 2.0.0 OK"), ("554 no", "554 no")])
def test_process_message_takes_mail(handler: type[Old], outcome: Any, expected: str, run: Run) -> None:
    """It warns, and works; None means success."""

    async def scenario() -> None:
        old = handler(outcome)
        async with listening(old) as listener, Wire.to(listener) as wire:
            await wire.begin()
            assert await sent(wire, "x\r\n") == expected
            assert old.messages == [("a@client.example", ["b@mx.example"], b"x\r\n")]

    with pytest.warns(DeprecationWarning, match="process_message"):
        run(scenario())


class Tracing(SMTP):
    """Overrides the method through which aiosmtpd asks hooks."""

    calls: list[tuple[str, Any]]

    async def _call_handler_hook(self, command: str, *args: Any) -> Any:
        outcome = await super()._call_handler_hook(command, *args)
        type(self).calls.append((command, outcome is MISSING))
        return outcome


class TracingLmtp(Tracing, LMTP):
    """The same in the other protocol."""


@pytest.mark.parametrize("smtp_class", [pytest.param(Tracing, id="smtp"), pytest.param(TracingLmtp, id="lmtp")])
def test_an_overridden_call_handler_hook_sees_every_hook(smtp_class: type[Tracing], run: Run) -> None:
    """Those the handler lacks too."""

    class Counting(HeloCounter, Ehlo, Box):
        def __init__(self) -> None:
            Box.__init__(self)
            HeloCounter.__init__(self)

    async def scenario() -> None:
        Tracing.calls = []
        box = Counting()
        async with listening(box, smtp_class=smtp_class) as listener, Wire.to(listener) as wire:
            await wire.begin(hello="LHLO" if smtp_class is TracingLmtp else "EHLO")
            assert await sent(wire) == "250 2.0.0 OK"
            assert await wire.talk("NOOP", "VRFY x", "RSET", "QUIT") == ["250", "252", "250", "221"]
        asked = ["EHLO", "MAIL", "RCPT", "DATA", "NOOP", "VRFY", "RSET", "QUIT"]
        assert Tracing.calls == [(name, name not in {"EHLO", "DATA"}) for name in asked]
        assert box.envelopes[0].rcpt_tos == ["b@mx.example"]
        assert box.envelopes[0].mail_from == "a@client.example"

    run(scenario())


class Overhearing(LMTP):
    """Overrides ``push``."""

    heard: list[str]

    async def push(self, status: str | bytes | Reply) -> None:
        """Hear it; change the words of one answer, hold back another."""
        assert isinstance(status, str)
        type(self).heard.append(status)
        if status.startswith("252"):
            return
        await super().push(status.replace("Sender OK", "How nice"))


def test_an_overridden_push_sees_the_answers(run: Run) -> None:
    """And may change them; the state follows what is said, and nobody is left without an answer."""

    async def scenario() -> None:
        Overhearing.heard = []
        async with listening(Box(["250 one", "550 two"]), smtp_class=Overhearing) as listener, Wire.to(listener) as wire:
            assert (await wire.say("LHLO x")).startswith("250-mx.example\n250-PIPELINING")
            assert await wire.say("MAIL FROM:<a@x>") == "250 2.1.0 How nice"
            assert await wire.talk("MAIL FROM:<a@x>", "VRFY x", "RCPT TO:<b@x>", "RCPT TO:<c@x>", "DATA") == [
                "503", "252", "250", "250", "354",
            ]  # fmt: skip
            wire.send("x\r\n.\r\n")
            assert [await wire.reply(), await wire.reply()] == ["250 one", "550 two"]
            assert await wire.talk("RCPT TO:<b@x>", "QUIT") == ["503", "221"]
        assert [status[:3] for status in Overhearing.heard] == [
            "250", "250", "503", "252", "250", "250", "354", "250", "550", "503", "221",
        ]  # fmt: skip

    run(scenario())


class Stern(SMTP):
    """Wants more than a HELO."""

    async def check_helo_needed(self, helo: str = "HELO") -> bool:
        """Refuse a peer that calls itself x."""
        if self.session is not None and self.session.host_name == "x":
            await self.push("503 5.5.1 Your name, please")
            return True
        return await super().check_helo_needed(helo)


def test_an_overridden_check_helo_needed_is_asked(run: Run) -> None:
    """Before mail and VRFY, as in aiosmtpd."""

    async def scenario() -> None:
        async with listening(Box(), smtp_class=Stern) as listener, Wire.to(listener) as wire:
            assert await wire.say("MAIL FROM:<a@x>") == "503 5.5.1 Error: send HELO first"
            await wire.say("EHLO x")
            assert await wire.say("MAIL FROM:<a@x>") == "503 5.5.1 Your name, please"
            assert await wire.say("VRFY x") == "503 5.5.1 Your name, please"
            await wire.say("EHLO y")
            assert await wire.talk("MAIL FROM:<a@x>", "RCPT TO:<b@x>", "DATA") == ["250", "250", "354"]
            assert await sent(wire) == "250 2.0.0 OK"

    run(scenario())


class Quirky(Box):
    """Answers MISSING, or keeps nobody."""

    def __init__(self, outcome: Any) -> None:
        super().__init__()
        self.outcome = outcome

    def handle_RCPT(self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]) -> Any:
        """Answer, and append nothing."""
        return self.outcome


def test_a_recipient_hook_that_says_missing_is_as_none(run: Run) -> None:
    """The recipient and its options are kept; one that was accepted and not kept makes DATA fail."""

    async def scenario() -> None:
        box = Quirky(MISSING)
        async with listening(box) as listener, Wire.to(listener) as wire:
            assert await wire.talk("EHLO x", "MAIL FROM:<a@x>", "RCPT TO:<b@x> NOTIFY=never", "DATA") == ["250", "250", "250", "354"]
            await sent(wire)
            assert (box.envelopes[0].rcpt_tos, box.envelopes[0].rcpt_options) == (["b@x"], ["NOTIFY=NEVER"])
            box.outcome = "250 OK"
            assert await wire.talk("MAIL FROM:<a@x>", "RCPT TO:<b@x>", "DATA") == ["250", "250", "503"]

    run(scenario())
