"""CloudEvents 1.0.2 bindings: an event as the octets a sink sends. Serialised once; sign and send the same octets.

Structured messages carry no ``ce`` headers although the specification allows them: readers in the field take such
headers for the binary mode and hand over the whole envelope as data.
"""

from __future__ import annotations

from binascii import b2a_base64
from urllib.parse import quote

import orjson

from postbus.event.mail import Mode
from postbus.event.model import EVENT_RESERVE_OCTETS, RAW_TYPE, Event

STRUCTURED_TYPE = "application/cloudevents+json; charset=utf-8"
"""Content type of structured messages (JSON event format s3). Lower case: the JavaScript SDK compares letter by letter on HTTP."""

HTTP_STRUCTURED_TYPE = STRUCTURED_TYPE
"""The same on HTTP (HTTP binding s3.2.1)."""

ENVELOPE_HEADER = "postbus-envelope"
"""Kafka and HTTP header with the envelope beside raw octets. No ``ce`` prefix: it is no context attribute."""

# What a header value on HTTP may show bare: printable ASCII but space, quote and percent (HTTP binding s3.1.3.2).
_BARE = "!#$&'()*+,-./:;<=>?@[\\]^_`{|}~"


def attributes(event: Event) -> dict[str, str]:
    """Return the context attributes that are set, but ``datacontenttype``, in a fixed order."""
    found = {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "subject": event.subject,
        "time": event.time,
        "partitionkey": event.partitionkey,
        "dedupekey": event.dedupekey,
    }
    if event.dataschema:
        found["dataschema"] = event.dataschema
    if event.traceparent:
        found["traceparent"] = event.traceparent
    return found


def structured(event: Event) -> bytes:
    """Return *event* as one JSON object (JSON event format): ``data`` is spliced in, octets become ``data_base64``.

    The envelope that goes beside octets has no place in this form: raw events for JSON sinks are rendered as JSON.
    """
    head = attributes(event)
    head["datacontenttype"] = event.datacontenttype
    if event.type == RAW_TYPE:
        return orjson.dumps({**head, "data_base64": _base64(event.data)})
    return b'%b,"data":%b}' % (orjson.dumps(head)[:-1], event.data)


def kafka_structured(event: Event) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    """Return key, value and headers of a structured Kafka record (Kafka binding s3.3)."""
    return event.partitionkey.encode(), structured(event), [("content-type", STRUCTURED_TYPE.encode()), *_hop(event)]


def kafka_binary(event: Event) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    """Return key, value and headers of a binary Kafka record (Kafka binding s3.2): the value is never null."""
    headers = [(f"ce_{name}", value.encode()) for name, value in attributes(event).items()]
    headers.append(("content-type", event.datacontenttype.encode()))
    if event.envelope:
        headers.append((ENVELOPE_HEADER, event.envelope))
    return event.partitionkey.encode(), event.data, headers + _hop(event)


def http_binary(event: Event) -> tuple[list[tuple[str, str]], bytes]:
    """Return headers and body of a binary HTTP request (HTTP binding s3.1); header values are percent-encoded."""
    headers = [(f"ce-{name}", quote(value, safe=_BARE)) for name, value in attributes(event).items()]
    headers.append(("content-type", event.datacontenttype))
    if event.envelope:
        headers.append((ENVELOPE_HEADER, quote(event.envelope, safe=_BARE)))
    return headers, event.data


def _hop(event: Event) -> list[tuple[str, bytes]]:
    """Return the record's own trace header: the extension keeps the origin's, this one is the hop's (both start equal)."""
    return [("traceparent", event.traceparent.encode())] if event.traceparent else []


def _base64(octets: bytes) -> str:
    return b2a_base64(octets, newline=False).decode("ascii")


def message_max_octets(event_max_octets: int, mode: Mode, as_octets: bool) -> int | None:
    """Return the largest message whose event certainly fits *event_max_octets*, or ``None`` when any does (``parsed`` leaves out).

    Args:
        event_max_octets: the largest event a sink carries, encoded as it sends it.
        mode: the route's.
        as_octets: the sink takes raw events as octets; else they are base64 in JSON, a third larger.
    """
    if mode == "parsed":
        return None
    room = max(event_max_octets - EVENT_RESERVE_OCTETS, 0)
    return room if as_octets and mode == "raw" else room // 4 * 3
