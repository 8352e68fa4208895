"""What the headers say of a message as a whole: who, to whom, when, about what, in answer to what, and whether a program wrote it."""

from __future__ import annotations

import re

from postbus.event import addresses, headers, making
from postbus.event.parsed import Address, Defect, Facts

_MEDIA_TYPE = re.compile(r"[!#$&-.0-9A-Z^_a-z{}~+]{1,127}/[!#$&-.0-9A-Z^_a-z{}~+]{1,127}")


def media_type(text: str) -> str:
    """Return a media type in lower case; what is none counts as ``text/plain`` (RFC 2045 s5.2)."""
    if not text:
        return "text/plain"
    return text.lower() if _MEDIA_TYPE.fullmatch(text) else "text/plain"


_ONCE = frozenset(("date", "from", "sender", "reply-to", "to", "cc", "message-id", "in-reply-to", "references", "subject", "content-type"))


def positions(fields: headers.Fields, defects: list[Defect]) -> dict[str, int]:
    """Return where each field stands first, by lower-case name. *defects* is added to where one stands twice that may not."""
    first: dict[str, int] = {}
    for position, header in enumerate(fields.headers):
        key = header.name.lower()
        if key not in first:
            first[key] = position
        elif key in _ONCE:
            defects.append(Defect("header.duplicate", None, key))
    return first


def read(fields: headers.Fields, first: dict[str, int], defects: list[Defect]) -> tuple[Facts, list[str]]:
    """Return what the headers say of the message and the names of facts that are not whole.

    Args:
        fields: the message's own.
        first: their ``positions``.
        defects: added to.
    """
    reader = _FactReader(fields, first, defects)
    date_raw = reader.text("date")
    date = headers.date_utc(date_raw) if date_raw else None
    if date_raw and date is None:
        defects.append(Defect("date.invalid", None, "Date"))
    content_type = headers.parameters_of(reader.loose("content-type"))
    auto_submitted = reader.text("auto-submitted")
    facts = making.facts(
        content_type=media_type(content_type.value),
        message_id=reader.message_id(),
        date=date,
        date_raw=date_raw,
        subject=reader.text("subject"),
        from_=reader.addresses("from"),
        sender=reader.addresses("sender"),
        reply_to=reader.addresses("reply-to"),
        to=reader.addresses("to"),
        cc=reader.addresses("cc"),
        in_reply_to=reader.message_ids("in-reply-to"),
        references=reader.message_ids("references"),
        list_id=reader.list_id(),
        auto_submitted=auto_submitted.partition(";")[0].strip().lower() if auto_submitted else None,
        is_report=content_type.value == "multipart/report" and content_type.parameters.get("report-type", "").lower() == "delivery-status",
        is_auto_reply=_is_auto_reply(auto_submitted, reader),
    )
    return facts, reader.cut


def _is_auto_reply(auto_submitted: str | None, reader: _FactReader) -> bool:
    """Return whether a program answered (RFC 3834 s5), by its own word or by the headers programs used before there was one."""
    if auto_submitted and auto_submitted.lower().startswith("auto-replied"):
        return True
    first = reader.first
    return "x-autoreply" in first or "x-autorespond" in first or (reader.text("precedence") or "").lower() == "auto_reply"


class _FactReader:
    """The first field of each name, as text, as octets loosely decoded, as addresses."""

    def __init__(self, fields: headers.Fields, first: dict[str, int], defects: list[Defect]) -> None:
        self.fields = fields
        self.first = first
        self.defects = defects
        self.cut: list[str] = []

    def text(self, name: str) -> str | None:
        """Return the decoded value, or ``None`` when there is no such field."""
        position = self.first.get(name)
        return None if position is None else self.fields.headers[position].value

    def loose(self, name: str) -> str:
        """Return the value before encoded words are decoded, ``""`` when there is no such field."""
        position = self.first.get(name)
        return "" if position is None else self.fields.loose[position]

    def addresses(self, name: str) -> tuple[Address, ...]:
        """Return the mailboxes of an address field."""
        if name not in self.first:
            return ()
        found, cut = addresses.addresses(self.loose(name), self.defects)
        if cut:
            self.cut.append(_CAMEL.get(name, name))
        return found

    def message_id(self) -> str | None:
        """Return the message id with its brackets, or the value as it is when it has none."""
        text = self.text("message-id")
        return next(iter(headers.message_ids(text)), text) if text else None

    def message_ids(self, name: str) -> tuple[str, ...]:
        """Return the message ids of a field that holds several."""
        text = self.text(name)
        return headers.message_ids(text) if text else ()

    def list_id(self) -> str | None:
        """Return what stands between the angle brackets of List-Id (RFC 2919 s2), or the value when it has none."""
        text = self.text("list-id")
        if not text:
            return None
        return text.rpartition("<")[2].partition(">")[0].strip() or text


_CAMEL = {"reply-to": "replyTo"}
