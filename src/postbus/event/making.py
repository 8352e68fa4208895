"""Records made for every mail. A named tuple's own constructor is interpreted, even where all around it is compiled."""

from __future__ import annotations

from postbus.event.parsed import Address, Attachment, Defect, Facts, Header, Parsed, Text


def header(name: str, value: str) -> Header:
    """Return the header of a plain field."""
    return tuple.__new__(Header, (name, value, False, None))


def address(name: str | None, text: str) -> Address:
    """Return a valid mailbox outside groups."""
    return tuple.__new__(Address, (name, text, None, True))


def text(content: str, declared: str | None, used: str, *, lossy: bool, truncated: bool) -> Text:
    """Return a body."""
    return tuple.__new__(Text, (content, declared, used, lossy, truncated))


def facts(
    *,
    content_type: str,
    message_id: str | None,
    date: str | None,
    date_raw: str | None,
    subject: str | None,
    from_: tuple[Address, ...],
    sender: tuple[Address, ...],
    reply_to: tuple[Address, ...],
    to: tuple[Address, ...],
    cc: tuple[Address, ...],
    in_reply_to: tuple[str, ...],
    references: tuple[str, ...],
    list_id: str | None,
    auto_submitted: str | None,
    is_report: bool,
    is_auto_reply: bool,
) -> Facts:
    """Return what the headers say."""
    people = (from_, sender, reply_to, to, cc)
    origin = (content_type, message_id, date, date_raw, subject)
    return tuple.__new__(Facts, (*origin, *people, in_reply_to, references, list_id, auto_submitted, is_report, is_auto_reply))


def parsed(
    *,
    facts: Facts,
    headers: tuple[Header, ...],
    text: Text | None,
    html: Text | None,
    attachments: tuple[Attachment, ...],
    defects: tuple[Defect, ...],
    parts_seen: int,
    truncated: tuple[str, ...],
) -> Parsed:
    """Return a message taken apart."""
    return tuple.__new__(Parsed, (facts, headers, text, html, attachments, defects, parts_seen, truncated, True))
