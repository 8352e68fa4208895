"""Stock handlers."""

from __future__ import annotations

import asyncio
import email.message
import io
import socket
import sys
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from postbus.server import LMTP, SMTP, Controller, Envelope, ListenerSettings, Session
from postbus.server.handlers import AsyncMessage, Debugging, Mailbox, Message, Proxy, Sink, reply_from, with_peer
from postbus.server.smtp import machine_name
from tests.server.conftest import Run
from tests.server.test_smtp import sent
from tests.server.wire import Wire, listening


def test_debugging_prints_messages(run: Run) -> None:
    """Options, headers, the peer, the text."""

    async def scenario() -> None:
        stream = io.StringIO()
        async with listening(Debugging(stream)) as listener, Wire.to(listener) as wire:
            assert await wire.talk("EHLO x", "MAIL FROM:<a@x> BODY=8BITMIME", "RCPT TO:<b@x>", "DATA") == ["250", "250", "250", "354"]
            assert await sent(wire, "Subject: x\r\n\r\ntext\r\n") == "250 OK"
        lines = stream.getvalue().splitlines()
        assert lines[0] == "---------- MESSAGE FOLLOWS ----------"
        assert "mail options: ['BODY=8BITMIME']" in lines
        assert any(line.startswith("X-Peer: ('127.0.0.1'") for line in lines)
        assert lines[-2:] == ["text", "------------ END MESSAGE ------------"]

    run(scenario())


def test_sink_takes_everything(run: Run) -> None:
    """And does nothing."""

    async def scenario() -> None:
        async with listening(Sink()) as listener, Wire.to(listener) as wire:
            await wire.begin()
            assert await sent(wire) == "250 2.0.0 OK"

    run(scenario())


@pytest.mark.parametrize(
    ("handler", "words", "stream"),
    [
        pytest.param(Debugging, (), sys.stdout, id="standard output"),
        pytest.param(Debugging, ("stderr",), sys.stderr, id="standard error"),
        pytest.param(Sink, (), None, id="sink"),
    ],
)
def test_from_cli(handler: Any, words: tuple[str, ...], stream: Any) -> None:
    """Words make a handler."""
    made = handler.from_cli(ArgumentParser(), *words)
    assert type(made) is handler
    assert stream is None or made.stream is getattr(sys, "stderr" if words else "stdout")


@pytest.mark.parametrize(("handler", "words"), [(Debugging, ("both",)), (Debugging, ("stdout", "stderr")), (Sink, ("x",))])
def test_from_cli_refuses_other_words(handler: Any, words: tuple[str, ...]) -> None:
    """By way of the parser."""
    with pytest.raises(SystemExit):
        handler.from_cli(ArgumentParser(), *words)


class Relay:
    """A server that refuses by name, and keeps what it takes."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []
        self.answer = "250 2.0.0 OK"

    def handle_MAIL(self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]) -> str:
        """Refuse one sender."""
        if address.startswith("spammer"):
            return "550 5.7.1 Not you"
        envelope.mail_from, envelope.mail_options = address, options
        return "250 2.1.0 OK"

    def handle_RCPT(self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]) -> str:
        """Refuse by the local part."""
        local = address.partition("@")[0]
        if local == "nobody":
            return "550 5.1.1 No such user"
        if local == "full":
            return "452 4.2.2 Mailbox full"
        if local == "closing":
            return "421 4.3.2 Going away"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        """Keep it."""
        self.envelopes.append(envelope)
        return self.answer


@pytest.fixture
def relay() -> Iterator[tuple[Relay, Proxy]]:
    """A relay in a thread, and a handler that passes on to it."""
    behind = Relay()
    controller = Controller(behind, "127.0.0.1", 0)
    controller.start()
    yield behind, Proxy("127.0.0.1", controller.port)
    controller.stop()


async def passed(wire: Wire, *recipients: str, sender: str = "a@x", hello: str = "EHLO", options: str = "") -> list[str]:
    """Send a message; return a reply for it, on LMTP for each recipient."""
    await wire.talk(f"{hello} x", f"MAIL FROM:<{sender}>{options}", *[f"RCPT TO:<{one}>" for one in recipients], "DATA")
    first = await sent(wire, "Subject: x\r\n\r\n..\r\n")
    return [first, *[await wire.reply() for _ in recipients[1:] if hello == "LHLO"]]


def test_proxy_passes_on_what_came(relay: tuple[Relay, Proxy], run: Run) -> None:
    """Envelope and content, with the peer behind the headers; the null sender stays null, SMTPUTF8 stays said."""

    async def scenario() -> None:
        async with listening(relay[1]) as listener, Wire.to(listener) as wire:
            assert await passed(wire, "b@x", "c@x") == ["250 2.0.0 OK"]
            assert await passed(wire, "b@x", sender="") == ["250 2.0.0 OK"]
            assert await passed(wire, "\u00fc@x", options=" SMTPUTF8") == ["250 2.0.0 OK"]

    run(scenario())
    first, bounce, international = relay[0].envelopes
    assert ("a@x", ["b@x", "c@x"]) == (first.mail_from, first.rcpt_tos)
    assert b"Subject: x\r\nX-Peer: 127.0.0.1\r\n\r\n.\r\n" == first.content
    assert "<>" == bounce.mail_from
    assert (["\u00fc@x"], True) == (international.rcpt_tos, international.smtp_utf8)


@pytest.mark.parametrize(
    ("recipients", "lmtp", "smtp"),
    [
        pytest.param(["nobody@x"], ["550 5.1.1 No such user"], "550 5.1.1 No such user", id="all refused"),
        pytest.param(["nobody@x", "b@x"], ["550 5.1.1 No such user", "250 2.0.0 OK"], "250 2.0.0 OK", id="some refused"),
        pytest.param(
            ["b@x", "full@x"], ["250 2.0.0 OK", "452 4.2.2 Mailbox full"], "451 4.3.0 Local error in processing", id="one to try again"
        ),
        pytest.param(["closing@x"], ["451 4.4.2 The relay broke off"], "451 4.3.0 Local error in processing", id="421 is not our end"),
    ],
)
def test_proxy_answers_what_the_relay_said(recipients: list[str], lmtp: list[str], smtp: str, relay: tuple[Relay, Proxy], run: Run) -> None:
    """Each recipient has its outcome on LMTP; on SMTP they are folded. aiosmtpd answers 250 to all of this."""

    async def scenario() -> None:
        async with listening(relay[1], smtp_class=LMTP) as listener, Wire.to(listener) as wire:
            assert await passed(wire, *recipients, hello="LHLO") == lmtp
        async with listening(relay[1]) as listener, Wire.to(listener) as wire:
            assert await passed(wire, *recipients) == [smtp]

    run(scenario())


def test_proxy_asks_no_resolver_for_our_name(relay: tuple[Relay, Proxy], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own name is known: a resolver that is slow or away does not hold up a message."""
    machine_name()

    def away() -> str:
        raise AssertionError("a resolver was asked")

    monkeypatch.setattr("socket.getfqdn", away)

    async def scenario() -> None:
        async with listening(relay[1], ListenerSettings(address="127.0.0.1:0", hostname="mx.test")) as listener, Wire.to(listener) as wire:
            assert await passed(wire, "b@x") == ["250 2.0.0 OK"]

    run(scenario())


def test_proxy_with_a_sender_or_a_message_refused(relay: tuple[Relay, Proxy], run: Run) -> None:
    """The relay's own words."""

    async def scenario() -> None:
        async with listening(relay[1], smtp_class=LMTP) as listener, Wire.to(listener) as wire:
            assert await passed(wire, "b@x", "c@x", sender="spammer@x", hello="LHLO") == ["550 5.7.1 Not you"] * 2
            relay[0].answer = "554 5.6.0 Not that"
            assert await passed(wire, "b@x", hello="LHLO") == ["554 5.6.0 Not that"]

    run(scenario())


def test_proxy_without_a_relay(run: Run) -> None:
    """Nobody there, or somebody who hangs up: the sender keeps the message."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 x\r\n")
        await reader.readline()
        writer.close()

    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as holder:
            port = holder.getsockname()[1]
        async with listening(Proxy("127.0.0.1", port), smtp_class=LMTP) as listener, Wire.to(listener) as wire:
            assert await passed(wire, "b@x", hello="LHLO") == ["451 4.4.1 The relay cannot be reached"]
        async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
            proxy = Proxy("127.0.0.1", server.sockets[0].getsockname()[1])
            async with listening(proxy, smtp_class=LMTP) as listener, Wire.to(listener) as wire:
                assert await passed(wire, "b@x", hello="LHLO") == ["451 4.4.2 The relay broke off"]

    run(scenario())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b"A: 1\r\nB: 2\r\n\r\ntext\r\n", b"A: 1\r\nB: 2\r\nX-Peer: p\r\n\r\ntext\r\n", id="CRLF"),
        pytest.param(b"A: 1\n\ntext\n", b"A: 1\nX-Peer: p\n\ntext\n", id="LF"),
        pytest.param(b"\r\ntext\r\n", b"X-Peer: p\r\n\r\ntext\r\n", id="no headers"),
        pytest.param(b"A: 1\r\n", b"A: 1\r\nX-Peer: p\r\n", id="headers only"),
    ],
)
def test_the_peer_stands_behind_the_headers(content: bytes, expected: bytes) -> None:
    """With their line ends."""
    assert expected == with_peer(content, "p")


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        pytest.param(550, b"5.1.1 No\nreally", "550 5.1.1 No really", id="several lines"),
        pytest.param(451, b"\x1b[31mred", "451 [31mred", id="control characters"),
        pytest.param(554, "", "554 ", id="no words"),
        pytest.param(250, b"odd", "451 4.4.2 The relay broke off", id="no refusal"),
        pytest.param(-1, b"", "451 4.4.2 The relay broke off", id="no code"),
    ],
)
def test_a_relays_words_become_a_reply(code: int, text: bytes | str, expected: str) -> None:
    """On one line, free of what could garble it."""
    assert expected == str(reply_from(code, text))


class Kept(Message):
    """Keeps parsed messages."""

    def __init__(self, message_class: Any = None) -> None:
        super().__init__(message_class)
        self.messages: list[email.message.Message] = []

    def handle_message(self, message: email.message.Message) -> None:
        """Keep it."""
        if "fail" in (message["Subject"] or ""):
            raise KeyError("inner")
        self.messages.append(message)


class KeptLater(AsyncMessage):
    """The same, a loop turn later."""

    def __init__(self, message_class: Any = None) -> None:
        super().__init__(message_class)
        self.messages: list[email.message.Message] = []
        self.loops: list[Any] = []

    async def handle_message(self, message: email.message.Message) -> None:
        """Keep it."""
        await asyncio.sleep(0)
        self.loops.append(self.loop)
        self.messages.append(message)


@pytest.mark.parametrize("kind", [Kept, KeptLater])
@pytest.mark.parametrize("decode", [False, True], ids=["octets", "text"])
@pytest.mark.parametrize("message_class", [None, email.message.EmailMessage])
def test_messages_are_parsed(kind: type[Kept | KeptLater], decode: bool, message_class: Any, run: Run) -> None:
    """With the envelope in their headers."""

    async def scenario() -> None:
        handler = kind(message_class)
        async with listening(handler, factory=lambda: SMTP(handler, decode_data=decode)) as listener, Wire.to(listener) as wire:
            await wire.begin("b@x", "c@x")
            assert await sent(wire, "Subject: x\r\n\r\ntext\r\n") == "250 OK"
        (message,) = handler.messages
        assert type(message) is (message_class or email.message.Message)
        assert ("x", "a@client.example", "b@x, c@x") == (message["Subject"], message["X-MailFrom"], message["X-RcptTo"])
        assert message["X-Peer"].startswith("('127.0.0.1'")
        assert "text" in message.get_payload()
        if isinstance(handler, KeptLater):
            assert [asyncio.get_running_loop()] == handler.loops

    run(scenario())


def test_a_handle_message_that_raises_is_451(run: Run) -> None:
    """With nothing of it in the words."""

    async def scenario() -> None:
        async with listening(Kept()) as listener, Wire.to(listener) as wire:
            await wire.begin()
            assert await sent(wire, "Subject: fail\r\n\r\n") == "451 4.3.0 Local error in processing"

    run(scenario())


def test_content_that_is_neither_octets_nor_text() -> None:
    """A handler before this one has put something else there."""
    envelope = Envelope()
    envelope.content = 42
    with pytest.raises(TypeError, match="int"):
        Kept().prepare_message(Session.__new__(Session), envelope)


def test_mailbox_keeps_messages(tmp_path: Path, run: Run) -> None:
    """In a Maildir, until reset."""

    async def scenario() -> None:
        handler = Mailbox(tmp_path / "box")
        async with listening(handler) as listener, Wire.to(listener) as wire:
            await wire.begin()
            assert await sent(wire, "Subject: x\r\n\r\ntext\r\n") == "250 OK"
        (message,) = handler.mailbox
        assert ("x", "b@mx.example") == (message["Subject"], message["X-RcptTo"])
        handler.reset()
        assert 0 == len(handler.mailbox)

    run(scenario())


def test_proxy_and_mailbox_from_words(tmp_path: Path) -> None:
    """HOST PORT; DIRECTORY."""
    proxy = Proxy.from_cli(ArgumentParser(), "mx.example", "25")
    assert ("mx.example", 25) == (proxy._hostname, proxy._port)
    assert str(tmp_path / "x") == Mailbox.from_cli(ArgumentParser(), str(tmp_path / "x")).mail_dir


@pytest.mark.parametrize(
    ("handler", "words"), [(Proxy, ()), (Proxy, ("mx.example",)), (Proxy, ("mx.example", "smtp")), (Mailbox, ()), (Mailbox, ("a", "b"))]
)
def test_proxy_and_mailbox_refuse_other_words(handler: Any, words: tuple[str, ...]) -> None:
    """By way of the parser."""
    with pytest.raises(SystemExit):
        handler.from_cli(ArgumentParser(), *words)


def test_proxy_smuggles_nothing(relay: tuple[Relay, Proxy], run: Run) -> None:
    """Behind BDAT every octet is content; what a relay might take for the end of a message or a line is made a line end, and stuffed."""

    async def scenario() -> None:
        async with listening(relay[1]) as listener, Wire.to(listener) as wire:
            await wire.talk("EHLO x", "MAIL FROM:<a@x>", "RCPT TO:<b@x>")
            content = b"Subject: x\n\ntext\r.\r\nMAIL FROM:<evil@x>\r\r\n.\n"
            wire.send(b"BDAT %d LAST\r\n%b" % (len(content), content))
            assert (await wire.reply()) == "250 2.0.0 OK"

    run(scenario())
    (passed_on,) = relay[0].envelopes
    assert b"Subject: x\r\nX-Peer: 127.0.0.1\r\n\r\ntext\r\n.\r\nMAIL FROM:<evil@x>\r\n\r\n.\r\n" == passed_on.content
    assert {} == passed_on.defects


def test_proxy_passes_on_no_binary_content(relay: tuple[Relay, Proxy], run: Run) -> None:
    """BODY=BINARYMIME may not go by DATA (RFC 3030 s3)."""

    async def scenario() -> None:
        async with listening(relay[1]) as listener, Wire.to(listener) as wire:
            await wire.talk("EHLO x", "MAIL FROM:<a@x> BODY=BINARYMIME", "RCPT TO:<b@x>")
            wire.send(b"BDAT 1 LAST\r\n\0")
            assert (await wire.reply()).startswith("554 5.6.3")

    run(scenario())
    assert [] == relay[0].envelopes
