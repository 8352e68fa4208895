"""What the headers say of a message as a whole."""

from __future__ import annotations

import pytest

from postbus.event import headers
from postbus.event.facts import media_type, positions, read
from postbus.event.parsed import Address, Defect, Facts


def facts_of(block: bytes) -> tuple[Facts, list[str], list[Defect]]:
    """Return facts, what was cut, and defects."""
    defects: list[Defect] = []
    fields = headers.read(block)
    found, cut = read(fields, positions(fields, defects), defects)
    return found, cut, defects


def test_every_fact() -> None:
    """Each header where it belongs."""
    block = (
        b"From: Al <a@x>, b@x\r\nSender: s@x\r\nReply-To: r@x\r\nTo: t@x\r\nCc: c@x\r\nSubject: =?utf-8?q?=C3=A9?=\r\n"
        b"Date: Mon, 1 Jan 2024 00:00:00 +0000\r\nMessage-ID: <m@x>\r\nIn-Reply-To: <i@x>\r\nReferences: <r1@x> <r2@x>\r\n"
        b"List-Id: A list <list.x>\r\nAuto-Submitted: Auto-Generated; x\r\n"
        b"Content-Type: multipart/report; report-type=Delivery-Status; boundary=b\r\n"
    )
    expected = Facts(
        content_type="multipart/report",
        message_id="<m@x>",
        date="2024-01-01T00:00:00Z",
        date_raw="Mon, 1 Jan 2024 00:00:00 +0000",
        subject="é",
        from_=(Address("Al", "a@x"), Address(None, "b@x")),
        sender=(Address(None, "s@x"),),
        reply_to=(Address(None, "r@x"),),
        to=(Address(None, "t@x"),),
        cc=(Address(None, "c@x"),),
        in_reply_to=("<i@x>",),
        references=("<r1@x>", "<r2@x>"),
        list_id="list.x",
        auto_submitted="auto-generated",
        is_report=True,
        is_auto_reply=False,
    )
    assert (expected, [], []) == facts_of(block)


def test_silence() -> None:
    """No headers, no facts."""
    assert (Facts(), [], []) == facts_of(b"")


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        pytest.param(b"Auto-Submitted: auto-replied (vacation)\r\n", True, id="RFC 3834"),
        pytest.param(b"Auto-Submitted: no\r\n", False, id="no"),
        pytest.param(b"X-Autoreply: yes\r\n", True, id="X-Autoreply"),
        pytest.param(b"X-Autorespond: x\r\n", True, id="X-Autorespond"),
        pytest.param(b"Precedence: Auto_Reply\r\n", True, id="Precedence"),
        pytest.param(b"Precedence: bulk\r\n", False, id="bulk"),
    ],
)
def test_programs_that_answer(block: bytes, expected: bool) -> None:
    """By their own word, or by old habit."""
    assert expected == facts_of(block)[0].is_auto_reply


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        pytest.param(b"List-Id: list.x\r\n", "list.x", id="no brackets"),
        pytest.param(b"List-Id: <>\r\n", "<>", id="empty brackets"),
        pytest.param(b"List-Id:\r\n", None, id="empty"),
    ],
)
def test_list_ids(block: bytes, expected: str | None) -> None:
    """RFC 2919, or the value as it is."""
    assert expected == facts_of(block)[0].list_id


def test_a_message_id_without_brackets_is_kept_as_it_is() -> None:
    """Devices write them."""
    assert "m@x" == facts_of(b"Message-ID: m@x\r\n")[0].message_id


def test_the_first_of_two_counts() -> None:
    """For headers that may occur once; others may repeat without a word."""
    found, _, defects = facts_of(b"Subject: a\r\nsubject: b\r\nReceived: x\r\nReceived: y\r\n")
    assert ("a", [Defect("header.duplicate", None, "subject")]) == (found.subject, defects)


def test_a_date_that_is_none() -> None:
    """Kept as sent."""
    found, _, defects = facts_of(b"Date: yesterday\r\n")
    assert (None, "yesterday", [Defect("date.invalid", None, "Date")]) == (found.date, found.date_raw, defects)


@pytest.mark.parametrize(("name", "field"), [(b"To", "to"), (b"Reply-To", "replyTo")])
def test_too_many_addresses_are_cut(name: bytes, field: str) -> None:
    """And that is said, in the event's own words."""
    assert [field] == facts_of(name + b": " + b"a@b," * 1001 + b"\r\n")[1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("Text/HTML", "text/html", id="case"),
        pytest.param("application/vnd.x+json", "application/vnd.x+json", id="tree and suffix"),
        pytest.param("text", "text/plain", id="no subtype"),
        pytest.param("a/b\u202e", "text/plain", id="no token"),
        pytest.param("", "text/plain", id="nothing"),
    ],
)
def test_media_types(text: str, expected: str) -> None:
    """What is no media type counts as text/plain (RFC 2045 s5.2)."""
    assert expected == media_type(text)
