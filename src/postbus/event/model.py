"""The event: what a sink is handed, and how a mail's record and octets become one.

``render`` is a pure function: the same record and octets give the same bytes, at the first attempt, after a restart and
at a replay.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from postbus.event import encoding
from postbus.event.encoding import ENVELOPE_MAX_OCTETS, UnfitError
from postbus.event.mail import Mail, Mode, Recipient
from postbus.event.parsed import Parsed
from postbus.event.schema import SCHEMA_ID, json_schema

__all__ = [
    "ENVELOPE_MAX_OCTETS",
    "EVENT_RESERVE_OCTETS",
    "RAW_TYPE",
    "RECEIVED_TYPE",
    "SCHEMA_ID",
    "Event",
    "UnfitError",
    "json_schema",
    "needs_octets",
    "needs_parse",
    "render",
]

RECEIVED_TYPE: Final = "dev.postbus.mail.received.v1"
"""Type of an event whose data is JSON."""

RAW_TYPE: Final = "dev.postbus.mail.raw.v1"
"""Type of an event whose data is the message's octets."""

EVENT_RESERVE_OCTETS = 16 * 1024
"""What an event can need beside the message itself: envelope and skeleton (8 KiB), attributes with long names (7), record framing."""

_ATTRIBUTES_OCTETS: Final = 1024


class Event(NamedTuple):
    """One event, ready for any binding. A tuple, since a frozen dataclass of so many fields takes several times as long to make.

    Attributes:
        id, type, source, subject, time, datacontenttype, dataschema: CloudEvents 1.0 context attributes as text; the
            subject is the route's name, time is RFC 3339 in UTC with milliseconds; dataschema is ``None`` where the data is octets.
        partitionkey, dedupekey, traceparent: extension attributes; traceparent is ``None`` when the session was not sampled.
        data: JSON text in UTF-8, or the octets of the message (``type`` RAW_TYPE).
        envelope: compact JSON of at most ENVELOPE_MAX_OCTETS for the Kafka header ``postbus-envelope``, only beside octets; else ``b""``.
        mode: what the data holds: ``raw`` also for mail of a ``parsed`` route that could not be parsed.
        route: name of the route.
    """

    id: str
    type: str
    source: str
    subject: str
    time: str
    datacontenttype: str
    dataschema: str | None
    partitionkey: str
    dedupekey: str
    traceparent: str | None
    data: bytes
    envelope: bytes
    mode: Literal["parsed", "raw", "both"]
    route: str


def needs_parse(mode: Mode) -> bool:
    """Return whether ``render`` wants the message parsed."""
    return mode != "raw"


def needs_octets(mode: Mode, parsed: Parsed | None) -> bool:
    """Return whether ``render`` reads the octets; if not, they may be ``b""`` (and a spilled body stays on disk)."""
    return mode != "parsed" or parsed is None or not parsed.readable


def render(mail: Mail, recipient: Recipient, octets: bytes, parsed: Parsed | None, *, as_octets: bool) -> Event:
    """Return the event for one recipient of a mail, at most ``recipient.event_max_octets`` large in any binding.

    Args:
        mail: the record.
        recipient: one of its recipients.
        octets: the message; see ``needs_octets``.
        parsed: what parsing found, ``None`` where ``needs_parse`` says it is not wanted. An unreadable one gives an
            event of mode ``raw`` with its defects, in JSON, since JSON is what the route promises.
        as_octets: the sink wants raw events as octets; heeded on routes of mode ``raw``.

    Raises:
        UnfitError: the event would be raw, and is larger than that.
    """
    if recipient.mode == "raw" and as_octets and len(octets) + EVENT_RESERVE_OCTETS <= recipient.event_max_octets:
        media_type = "message/global" if mail.smtputf8 else "message/rfc822"
        return _event(mail, recipient, octets, envelope=encoding.envelope_json(mail, recipient), octets_type=media_type)
    room = recipient.event_max_octets - _ATTRIBUTES_OCTETS - 6 * (len(mail.source) + len(recipient.route))
    if recipient.mode == "raw" or parsed is None or not parsed.readable:
        tree = encoding.raw_tree(mail, recipient, octets, parsed, room)
    else:
        tree = encoding.parsed_tree(mail, recipient, octets, parsed, room)
    return _event(mail, recipient, encoding.fitted(tree, room), mode=tree["mode"])


def _event(
    mail: Mail, recipient: Recipient, data: bytes, *, mode: Mode = "raw", envelope: bytes = b"", octets_type: str | None = None
) -> Event:
    # A named tuple's own constructor is interpreted (as in ``making``), and would take four times as long.
    return tuple.__new__(
        Event,
        (
            recipient.event_id,
            RAW_TYPE if octets_type else RECEIVED_TYPE,
            mail.source,
            recipient.route,
            _time(mail.received_ms),
            octets_type or "application/json",
            None if octets_type else SCHEMA_ID,
            recipient.partition_key,
            recipient.dedupe_key,
            mail.traceparent,
            data,
            envelope,
            mode,
            recipient.route,
        ),
    )


def _time(since_epoch_ms: int) -> str:
    """Return a time as RFC 3339 in UTC with milliseconds and ``Z``."""
    seconds, milliseconds = divmod(since_epoch_ms, 1000)
    return f"{_second(seconds)}.{str(1000 + milliseconds)[1:]}Z"  # a format as 03d costs ten times that


@lru_cache(maxsize=8)  # mail that comes in numbers comes in the same second
def _second(since_epoch_s: int) -> str:
    return datetime.fromtimestamp(since_epoch_s, UTC).isoformat()[:19]
