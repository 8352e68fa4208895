"""Events for the sinks' tests."""

from __future__ import annotations

import itertools

from postbus.event.model import RAW_TYPE, RECEIVED_TYPE, Event

_NUMBERS = itertools.count(1)

SAMPLE = Event(
    id="01900000-0000-7000-8000-000000000000",
    type=RECEIVED_TYPE,
    source="//mx.example.org/postbus",
    subject="support",
    time="2026-11-23T01:02:03.004Z",
    datacontenttype="application/json",
    dataschema="https://postbus.dev/schema/v1.json",
    partitionkey="cGFydGl0aW9u",
    dedupekey="ZGVkdXBl",
    traceparent=None,
    data='{"mode":"parsed","subject":"Grüße"}'.encode(),
    envelope=b"",
    mode="parsed",
    route="support",
)


def sample(*, octets: int = 0, data: bytes | None = None, route: str = "support") -> Event:
    """Return an event of its own id; its data is *data*, or JSON of about *octets* octets."""
    event_id = f"01900000-0000-7000-8000-{next(_NUMBERS):012x}"
    if data is None:
        data = b'{"pad":"%b"}' % (b"x" * octets) if octets else SAMPLE.data
    return SAMPLE._replace(id=event_id, data=data, route=route, subject=route)


def raw_sample(octets: bytes = b"Subject: x\r\n\r\n\xff\x00body\r\n") -> Event:
    """Return an event whose data is the octets of a mail."""
    return sample(data=octets)._replace(
        type=RAW_TYPE, datacontenttype="message/rfc822", dataschema=None, envelope=b'{"index":0}', mode="raw"
    )
