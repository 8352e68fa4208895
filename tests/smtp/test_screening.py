"""Lines that are refused before they are read as commands."""

from __future__ import annotations

from dataclasses import replace

import pytest

from postbus.smtp import Limits, Mail, Refused, Reply, Signal, State, replies
from tests.smtp.driver import OFFER, Driver, opened, owed


def test_a_log_never_sees_a_long_verb() -> None:
    """An unknown verb is cut."""
    engine = opened()
    engine.receive(b"x" * 400 + b"\r\n")
    assert engine.next_event() == Refused("X" * 16, replies.UNKNOWN)


def test_a_long_recipient_is_too_long_however_it_arrives() -> None:
    """What is discarded has no verb, so an overlong RCPT names nobody."""
    for size in (1, 5000):
        driver = Driver()
        driver.feed(b"EHLO x\r\n")
        driver.feed(b"MAIL FROM:<a@b>\r\n")
        sent = b"RCPT TO:<" + b"z" * 4200 + b">\r\nDATA\r\n"
        for at in range(0, len(sent), size):
            driver.feed(sent[at : at + size])
        assert driver.sent.endswith(replies.LINE_TOO_LONG.wire + replies.SEND_RCPT.wire)


@pytest.mark.parametrize("line", ["\u017ftarttls", "ma\u0131l FROM:<a@b>", "\u00fc"])
def test_a_verb_is_ascii(line: str) -> None:
    """Letters whose upper case is an ASCII letter make no verb."""
    engine = opened(replace(OFFER, starttls=True))
    engine.answer(engine.default_reply(owed(engine, b"EHLO x\r\n")))
    engine.receive(line.encode() + b"\r\n")
    assert engine.next_event() == Refused("", replies.UNKNOWN)


def test_a_malformed_recipient_was_named() -> None:
    """A RCPT with control characters counts as a refused recipient."""
    driver = Driver()
    driver.feed(b"EHLO x\r\n")
    driver.feed(b"MAIL FROM:<a@b>\r\nRCPT TO:<\0@d>\r\nDATA\r\n")
    assert driver.engine.state is State.REFUSED
    assert driver.sent.endswith(replies.BAD_RECIPIENT.wire + replies.NO_RECIPIENTS.wire)


@pytest.mark.parametrize(
    ("data", "refused"),
    [
        pytest.param(b"\x16\x03", Refused("", replies.NOT_TLS), id="a handshake, unfinished"),
        pytest.param(b"\x16\x03" + b"x" * 5000, Refused("", replies.NOT_TLS), id="a handshake, long and unfinished"),
        pytest.param(b"\x16\x03\r\n", Refused("", replies.NOT_TLS), id="a handshake with a line end"),
        pytest.param(b"x" * 101, Refused("", replies.ENDLESS_LINE), id="endless"),
        pytest.param(b"x" * 99 + b"\r\n", Refused("", replies.ENDLESS_LINE), id="endless, and then it ends"),
        pytest.param(b"PUT /\r\n", Refused("PUT", replies.NOT_HTTP), id="HTTP"),
    ],
)
def test_hang_ups(data: bytes, refused: Refused) -> None:
    """The worst faults end the session at once, and say why."""
    engine = opened(limits=Limits(command_octets=50, endless_octets=100))
    engine.receive(data)
    assert refused == engine.next_event()
    assert engine.next_event() is Signal.CLOSED
    assert refused.reply.wire == engine.bytes_to_send()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        pytest.param(b"MAIL FROM:<\xff@b>", replies.BAD_SENDER, id="no UTF-8"),
        pytest.param("NOOP \u0085".encode(), replies.BAD_CHARACTERS, id="a control character that is UTF-8"),
        pytest.param(b"BDAT " + b"1" * 600, replies.BAD_CHUNK, id="too long a line of a verb with an answer of its own"),
        pytest.param(b"NOOP \xc3\xbc", None, id="UTF-8"),
    ],
)
def test_lines_out_of_the_ordinary(line: bytes, expected: Reply | None) -> None:
    """A verb says what is told of a line that cannot be read."""
    driver = Driver()
    driver.feed(b"EHLO x\r\n" + b"")
    driver.feed(line + b"\r\n")
    refused = [event.reply for event in driver.events if isinstance(event, Refused)]
    assert refused == ([] if expected is None else [expected])


def test_after_the_last_error_nothing_is_read() -> None:
    """A line that comes then is not even looked at."""
    driver = Driver(limits=Limits(errors=1))
    driver.feed(b"XX\r\n")
    driver.feed(b"NOOP\r\n")
    assert driver.events[-1] == Refused("", replies.TOO_MANY_ERRORS)


def test_extensions_lengthen_commands() -> None:
    """A MAIL of more than 512 octets is taken for its parameters' sake (RFC 5321 s4.5.3.1.4)."""
    engine = opened()
    engine.answer(engine.default_reply(owed(engine, b"EHLO x\r\n")))
    assert isinstance(owed(engine, b"MAIL FROM:<a@b> AUTH=" + b"x" * 500 + b"\r\n"), Mail)


@pytest.mark.parametrize("line", [b"BDAT\t6 LAST", b"bdat\x006 LAST", b"Bdat\x0b6"])
def test_bdat_with_another_white_space_hangs_up(line: bytes) -> None:
    """To some servers ``BDAT<TAB>6`` announces a chunk; what it announces must be nobody's commands."""
    driver = Driver()
    driver.feed(b"EHLO x\r\n")
    assert driver.feed(line + b"\r\nRSET\r\n") == replies.BAD_CHUNK.wire
    assert driver.engine.state is State.CLOSED
