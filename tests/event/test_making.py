"""The constructors of ``making`` and the records' own make the same."""

import pytest

from postbus.event import making
from postbus.event.parsed import Address, Attachment, Defect, Facts, Header, Parsed, Text


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        pytest.param(making.header("Subject", "x"), Header("Subject", "x"), id="header"),
        pytest.param(making.address("N", "a@b.example"), Address("N", "a@b.example"), id="address"),
        pytest.param(
            making.text("t", "latin1", "iso-8859-1", lossy=True, truncated=False),
            Text("t", "latin1", "iso-8859-1", lossy=True, truncated=False),
            id="text",
        ),
    ],
)
def test_small_records(made: tuple[object, ...], expected: tuple[object, ...]) -> None:
    """They have every field, and what the other constructor fills in."""
    assert type(made) is type(expected)
    assert made == expected
    assert len(made) == len(type(expected)._fields)  # type: ignore[attr-defined]


def address(name: str) -> tuple[Address, ...]:
    """Return a mailbox like no other."""
    return (Address(name, f"{name}@b.example"),)


def test_facts() -> None:
    """Each fact stands in its own place."""
    given = {
        "content_type": "text/html",
        "message_id": "<1@b>",
        "date": "2026-01-01T00:00:00Z",
        "date_raw": "1 Jan",
        "subject": "s",
        "from_": address("from"),
        "sender": address("sender"),
        "reply_to": address("reply_to"),
        "to": address("to"),
        "cc": address("cc"),
        "in_reply_to": ("<2@b>",),
        "references": ("<3@b>",),
        "list_id": "l",
        "auto_submitted": "no",
        "is_report": True,
        "is_auto_reply": False,
    }
    assert given.keys() == set(Facts._fields)
    made = making.facts(**given)  # type: ignore[arg-type]
    assert type(made) is Facts
    assert made == Facts(**given)  # type: ignore[arg-type]


def test_parsed() -> None:
    """Each finding stands in its own place, and the message was readable."""
    given = {
        "facts": Facts(subject="s"),
        "headers": (Header("A", "b"),),
        "text": Text("t", None, "utf-8", lossy=False, truncated=False),
        "html": Text("h", None, "utf-8", lossy=False, truncated=False),
        "attachments": (Attachment("1", None, "a/b", None, None, 1, "x", b"c", None),),
        "defects": (Defect("code", None, "detail"),),
        "parts_seen": 3,
        "truncated": ("headers",),
    }
    assert {*given, "readable"} == set(Parsed._fields)
    made = making.parsed(**given)  # type: ignore[arg-type]
    assert type(made) is Parsed
    assert made == Parsed(**given)  # type: ignore[arg-type]
    assert made.readable
