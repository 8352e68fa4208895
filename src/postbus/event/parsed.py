"""What parsing found in a message, as plain values, and their form on the pipe from a parser process.

The form is a JSON document and the contents of attachments behind it, never pickle: the process that writes it runs
native code fed by strangers, so its reader believes nothing but data.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

_LENGTH_OCTETS = 4


class Defect(NamedTuple):
    """One thing about a message that is not as it should be.

    Attributes:
        code: dotted name from the published list (``mime.DEFECTS``).
        part_id: the MIME part, numbered as in IMAP (``"1.2"``), or ``None`` for the message.
        detail: a few words; never content.
    """

    code: str
    part_id: str | None
    detail: str


class Header(NamedTuple):
    """One header field. *raw* holds the value's octets, unfolded, when they are not pure ASCII or decoding was lossy."""

    name: str
    value: str
    lossy: bool = False
    raw: bytes | None = None


class Address(NamedTuple):
    """One mailbox of an address header. *valid* is false when *address* is no addr-spec; then it is the text as found."""

    name: str | None
    address: str
    group: str | None = None
    valid: bool = True


class Text(NamedTuple):
    """One body. *declared* is the charset label as sent, *used* the canonical name of what decoded it."""

    text: str
    declared: str | None
    used: str
    lossy: bool
    truncated: bool


class Attachment(NamedTuple):
    """One part that is not a body.

    Attributes:
        part_id, filename, content_type, disposition, content_id: as declared, scrubbed; sender-controlled.
        size_octets, sha256: of the transfer-decoded content, hex; ``None`` when it could not be decoded.
        content: the octets, or ``None`` with a *reason*: ``too_large`` or ``undecodable``.
    """

    part_id: str
    filename: str | None
    content_type: str
    disposition: str | None
    content_id: str | None
    size_octets: int | None
    sha256: str | None
    content: bytes | None
    reason: str | None


class Facts(NamedTuple):
    """What the headers say of the message as a whole; ``None`` and ``()`` where they are silent."""

    content_type: str = "text/plain"
    message_id: str | None = None
    date: str | None = None
    date_raw: str | None = None
    subject: str | None = None
    from_: tuple[Address, ...] = ()
    sender: tuple[Address, ...] = ()
    reply_to: tuple[Address, ...] = ()
    to: tuple[Address, ...] = ()
    cc: tuple[Address, ...] = ()
    in_reply_to: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    list_id: str | None = None
    auto_submitted: str | None = None
    is_report: bool = False
    is_auto_reply: bool = False


_NO_FACTS = Facts()


class Parsed(NamedTuple):
    """A message as parsed within bounds.

    Attributes:
        readable: false when no parse came about (hostile, too large, parser died): then only *defects* speak, and the event is raw.
        truncated: names of fields that are not whole, as paths into the event (``"headers"``, ``"body.text"``).
    """

    facts: Facts = _NO_FACTS
    headers: tuple[Header, ...] = ()
    text: Text | None = None
    html: Text | None = None
    attachments: tuple[Attachment, ...] = ()
    defects: tuple[Defect, ...] = ()
    parts_seen: int = 0
    truncated: tuple[str, ...] = ()
    readable: bool = True


def unreadable(*defects: Defect) -> Parsed:
    """Return the verdict that the message is to be published raw, and why."""
    return Parsed(defects=defects, readable=False)


def to_bytes(parsed: Parsed) -> bytes:
    """Return *parsed* as octets: four octets of length, JSON of that length, then the contents of attachments in order."""
    contents = [attachment.content for attachment in parsed.attachments if attachment.content is not None]
    text = orjson.dumps(_tree(parsed))
    return b"".join([len(text).to_bytes(_LENGTH_OCTETS, "big"), text, *contents])


def from_bytes(octets: bytes) -> Parsed:
    """Return what ``to_bytes`` wrote.

    Raises:
        ValueError: *octets* are nothing of the kind.
    """
    start = _LENGTH_OCTETS + int.from_bytes(octets[:_LENGTH_OCTETS], "big")
    try:
        return _parsed(orjson.loads(octets[_LENGTH_OCTETS:start]), octets, start)
    except (TypeError, KeyError, IndexError, AttributeError) as exc:
        raise ValueError("not a parsed message") from exc


def _tree(parsed: Parsed) -> dict[str, Any]:
    facts = parsed.facts._asdict()
    for key in _ADDRESS_LISTS:
        facts[key] = [list(address) for address in facts[key]]
    return {
        "facts": facts,
        "headers": [[h.name, h.value, h.lossy, None if h.raw is None else h.raw.decode("latin-1")] for h in parsed.headers],
        "text": parsed.text and list(parsed.text),
        "html": parsed.html and list(parsed.html),
        "attachments": [[*a[:7], None if a.content is None else len(a.content), a.reason] for a in parsed.attachments],
        "defects": [list(defect) for defect in parsed.defects],
        "parts_seen": parsed.parts_seen,
        "truncated": parsed.truncated,
        "readable": parsed.readable,
    }


_ADDRESS_LISTS = ("from_", "sender", "reply_to", "to", "cc")
_TEXT_LISTS = ("in_reply_to", "references")


def _parsed(tree: dict[str, Any], octets: bytes, start: int) -> Parsed:
    facts = tree["facts"]
    for key in _ADDRESS_LISTS:
        facts[key] = tuple(Address(*row) for row in facts[key])
    for key in _TEXT_LISTS:
        facts[key] = tuple(facts[key])
    attachments = []
    for *row, size, reason in tree["attachments"]:
        content = None if size is None else octets[start : start + size]
        start += size or 0
        attachments.append(Attachment._make([*row, content, reason]))
    if start != len(octets):
        raise ValueError("contents are cut short")
    return Parsed(
        facts=Facts(**facts),
        headers=tuple(
            Header(name, value, lossy, None if raw is None else str(raw).encode("latin-1")) for name, value, lossy, raw in tree["headers"]
        ),
        text=Text(*tree["text"]) if tree["text"] else None,
        html=Text(*tree["html"]) if tree["html"] else None,
        attachments=tuple(attachments),
        defects=tuple(Defect(*row) for row in tree["defects"]),
        parts_seen=tree["parts_seen"],
        truncated=tuple(tree["truncated"]),
        readable=tree["readable"],
    )
