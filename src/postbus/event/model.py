"""The event: what a sink is handed, and the doors to the published schema and its encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RECEIVED_TYPE = "dev.postbus.mail.received.v1"
"""Type of an event whose data is JSON."""

RAW_TYPE = "dev.postbus.mail.raw.v1"
"""Type of an event whose data is the message's octets."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event, ready for any binding.

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
