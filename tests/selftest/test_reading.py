"""How octets and replies are read: what is a unit, whose reply is whose, what belongs to nobody."""

from __future__ import annotations

import pytest

from postbus.selftest.reading import Place, read

MAIL = b"MAIL FROM:<a@client.example>\r\nRCPT TO:<b@mx.test>\r\nDATA\r\n"
TAKEN = ("250 2.1.0", "250 2.1.5", "354")


@pytest.mark.parametrize(
    ("sent", "replies", "units", "surplus", "place"),
    [
        pytest.param([], (), [], (), "command", id="nothing"),
        pytest.param([b"NOOP\r\n", b"noop x\r\n"], ("250", "250"), [("NOOP", "250"), ("NOOP", "250")], (), "command", id="commands"),
        pytest.param([b"NOOP\r\n"], (), [("NOOP", None)], (), "command", id="no answer"),
        pytest.param([b"NOOP\nRSET\r\n"], ("250", "250"), [("NOOP\nRSET", "250")], ("250",), "command", id="a bare LF ends nothing"),
        pytest.param([b"NOO", b"P\r", b"\nRS"], ("250",), [("NOOP", "250")], (), "partial", id="a line in pieces"),
        pytest.param([b"\r\n"], ("500",), [("", "500")], (), "command", id="an empty line"),
        pytest.param(
            [MAIL, b"text\r\n.\r\n"],
            (*TAKEN, "250"),
            [("MAIL", "250 2.1.0"), ("RCPT", "250 2.1.5"), ("DATA", "354"), (".", "250")],
            (),
            "command",
            id="content",
        ),
        pytest.param(
            [MAIL, b".\r\n"],
            (*TAKEN, "250"),
            [("MAIL", "250 2.1.0"), ("RCPT", "250 2.1.5"), ("DATA", "354"), (".", "250")],
            (),
            "command",
            id="empty content",
        ),
        pytest.param(
            [MAIL, b"text\n.\nMAIL\r\n.\r\n"],
            (*TAKEN, "250", "250"),
            [("MAIL", "250 2.1.0"), ("RCPT", "250 2.1.5"), ("DATA", "354"), (".", "250")],
            ("250",),
            "command",
            id="a false end",
        ),
        pytest.param(
            [MAIL, b"text"], TAKEN, [("MAIL", "250 2.1.0"), ("RCPT", "250 2.1.5"), ("DATA", "354")], (), "content", id="content without end"
        ),
        pytest.param(
            [b"DATA\r\ntext\r\n"], ("503", "500"), [("DATA", "503"), ("TEXT", "500")], (), "command", id="no content where none is asked"
        ),
        pytest.param([b"STARTTLS\r\nMAIL\r\n"], ("220",), [("STARTTLS", "220")], (), "tls", id="behind STARTTLS stands nothing"),
        pytest.param([b"STARTTLS\r\nMAIL\r\n"], ("454", "503"), [("STARTTLS", "454"), ("MAIL", "503")], (), "command", id="no STARTTLS"),
        pytest.param(
            [b"STARTTLS\r\nMAIL\r\n", None, b"NOOP\r\n"],
            ("220", "250", "250"),
            [("STARTTLS", "220"), ("NOOP", "250")],
            ("250",),
            "command",
            id="a command that ran from before TLS",
        ),
        pytest.param([b"QUIT\r\nRSET\r\n"], ("221",), [("QUIT", "221")], (), "quit", id="nothing behind QUIT"),
        pytest.param(
            [b"BDAT 5 LAST\r\n\r\n.\r", b"\nNOOP\r\n"], ("503", "250"), [("BDAT", "503"), ("NOOP", "250")], (), "command", id="by count"
        ),
        pytest.param([b"BDAT 3\r\nabcNOOP\r\n"], ("250", "250"), [("BDAT", "250"), ("NOOP", "250")], (), "command", id="a chunk"),
        pytest.param([b"BDAT 9\r\nabc"], (), [], (), "chunk", id="a chunk that is not whole"),
        pytest.param([b"BDAT x\r\nNOOP\r\n"], ("501", "250"), [("BDAT", "501"), ("NOOP", "250")], (), "command", id="no count"),
        pytest.param(
            [b"AUTH LOGIN\r\nYQ==\r\nYg==\r\nNOOP\r\n"],
            ("334", "334", "235", "250"),
            [("AUTH", "334"), ("*", "334"), ("*", "235"), ("NOOP", "250")],
            (),
            "command",
            id="challenges",
        ),
        pytest.param([b"AUTH LOGIN\r\n"], ("334",), [("AUTH", "334")], (), "challenge", id="a challenge unanswered"),
    ],
)
def test_whose_reply_is_whose(
    sent: list[bytes | None], replies: tuple[str, ...], units: list[tuple[str, str | None]], surplus: tuple[str, ...], place: Place
) -> None:
    """Each unit gets the next reply, and what is left belongs to nobody."""
    reading = read(sent, replies)
    assert units == [(unit.verb, unit.reply) for unit in reading.units]
    assert (surplus, place) == (reading.surplus, reading.place)
    assert reading.owed == sum(reply is None for _, reply in units)


def test_lmtp_answers_content_for_each_accepted_recipient() -> None:
    """RFC 2033 s4.2: two were accepted, one was not."""
    sent = b"MAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nRCPT TO:<c@x>\r\nRCPT TO:<d@x>\r\nDATA\r\ntext\r\n.\r\n"
    reading = read([sent], ("250", "250", "550", "250", "354", "250"), lmtp=True)
    assert ["250", None] == [unit.reply for unit in reading.units if unit.verb == "."]
    assert 1 == reading.owed


def test_lmtp_answers_the_last_chunk_for_each_accepted_recipient() -> None:
    """RFC 3030 and RFC 2033 together."""
    sent = b"MAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nRCPT TO:<c@x>\r\nBDAT 1\r\naBDAT 1 LAST\r\nb"
    reading = read([sent], ("250", "250", "250", "250", "250", "451"), lmtp=True)
    assert ["250", "250", "451"] == [unit.reply for unit in reading.units if unit.verb == "BDAT"]


@pytest.mark.parametrize(
    ("command", "reply", "transaction"),
    [
        pytest.param(b"RSET", "250", False, id="RSET"),
        pytest.param(b"EHLO a", "250", False, id="EHLO"),
        pytest.param(b"EHLO a", "501", True, id="a refused EHLO changes nothing"),
        pytest.param(b"NOOP", "250", True, id="NOOP"),
        pytest.param(b"MAIL FROM:<c@x>", "503", True, id="a refused MAIL changes nothing"),
    ],
)
def test_what_ends_a_transaction(command: bytes, reply: str, transaction: bool) -> None:
    """The server's own answers say whether one is open."""
    reading = read([b"MAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\n" + command + b"\r\nNOOP\r\n"], ("250", "250", reply, "250"))
    assert (transaction, int(transaction)) == (reading.units[-1].transaction, reading.units[-1].recipients)


def test_tls_ends_a_transaction() -> None:
    """RFC 3207 s4.2: nothing of before is known behind the handshake."""
    reading = read([b"MAIL FROM:<a@x>\r\nSTARTTLS\r\n", None, b"NOOP\r\n"], ("250", "220", "250"))
    assert not reading.units[-1].transaction


def test_octets_before_the_banner_are_answered_after_it() -> None:
    """The banner, or the refusal in its place, is the first reply."""
    reading = read([b"EHLO a\r\n"], ("220", "250"), early=True)
    assert [("BANNER", "220"), ("EHLO", "250")] == [(unit.verb, unit.reply) for unit in reading.units]


def test_221_is_a_farewell_but_to_quit() -> None:
    """A server that says goodbye to HTTP has not run it."""
    units = read([b"GET / HTTP/1.1\r\nQUIT\r\n"], ("221", "221")).units
    assert [False, True] == [unit.good for unit in units]
