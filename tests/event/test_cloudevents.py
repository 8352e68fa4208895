"""CloudEvents bindings, with the CloudEvents SDK as oracle where it is right.

It is wrong, and not asked, where it takes any ``ce`` header for the binary mode, holds Kafka headers as a dictionary and
lets the record key overwrite ``partitionkey`` (ours is equal to it).
"""

from __future__ import annotations

import json
from base64 import b64decode
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import pytest
from cloudevents.core.bindings import http, kafka
from hypothesis import given
from hypothesis import strategies as st

from postbus.event import cloudevents
from postbus.event.cloudevents import STRUCTURED_TYPE, http_binary, kafka_binary, kafka_structured, message_max_octets, structured
from postbus.event.mail import Mode
from postbus.event.model import EVENT_RESERVE_OCTETS, RAW_TYPE, RECEIVED_TYPE, SCHEMA_ID, Event

JSON_EVENT = Event(
    id="018cc251-f400-7000-8000-00000000000a",
    type=RECEIVED_TYPE,
    source="//mx.example/postbus/test",
    subject="inbox",
    time="2024-01-01T00:00:00.007Z",
    datacontenttype="application/json",
    dataschema=SCHEMA_ID,
    partitionkey="P" * 43,
    dedupekey="D" * 43,
    traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    data='{"mode":"parsed","subject":"é"}'.encode(),
    envelope=b"",
    mode="parsed",
    route="inbox",
)
RAW_EVENT = JSON_EVENT._replace(
    type=RAW_TYPE,
    datacontenttype="message/rfc822",
    dataschema=None,
    traceparent=None,
    data=b"Subject: \xff\r\n\r\n\x00",
    envelope='{"mode":"raw","é":1}'.encode(),
    mode="raw",
)
EXTENSIONS = ("partitionkey", "dedupekey", "traceparent")
EVENTS = [pytest.param(JSON_EVENT, id="json"), pytest.param(RAW_EVENT, id="octets")]


def check(event: Event, found: Any, data: object) -> None:
    """Compare what the SDK read with what was sent."""
    assert (event.id, event.source, event.type, event.subject) == (
        found.get_id(),
        found.get_source(),
        found.get_type(),
        found.get_subject(),
    )
    assert datetime(2024, 1, 1, 0, 0, 0, 7000, UTC) == found.get_time()
    assert (event.datacontenttype, event.dataschema) == (found.get_datacontenttype(), found.get_dataschema())
    assert {name: getattr(event, name) for name in EXTENSIONS} == {name: found.get_extension(name) for name in EXTENSIONS}
    assert data == found.get_data()


def _data(event: Event) -> object:
    return json.loads(event.data) if event.type == RECEIVED_TYPE else event.data


@pytest.mark.parametrize("event", EVENTS)
def test_the_sdk_reads_our_binary_kafka_record(event: Event) -> None:
    """Every attribute and the data."""
    key, value, headers = kafka_binary(event)
    assert len(headers) == len(dict(headers))
    check(event, kafka.from_binary_event(kafka.KafkaMessage(dict(headers), key, value), _format()), _data(event))


@pytest.mark.parametrize("event", EVENTS)
def test_the_sdk_reads_our_structured_kafka_record(event: Event) -> None:
    """Without any ce header, which would make it read the envelope as data."""
    key, value, headers = kafka_structured(event)
    assert not [name for name, _ in headers if name.startswith("ce")]
    assert ("content-type", STRUCTURED_TYPE.encode()) == headers[0]
    check(event, kafka.from_structured_event(kafka.KafkaMessage(dict(headers), key, value), _format()), _data(event))


@pytest.mark.parametrize("event", EVENTS)
def test_the_sdk_reads_our_structured_http_body(event: Event) -> None:
    """JSON data as JSON, octets as base64."""
    message = http.HTTPMessage({"content-type": cloudevents.HTTP_STRUCTURED_TYPE}, structured(event))
    check(event, http.from_structured_event(message, _format()), _data(event))


@pytest.mark.parametrize("event", EVENTS)
def test_the_sdk_reads_our_binary_http_request(event: Event) -> None:
    """Attributes percent-encoded in headers."""
    headers, body = http_binary(event)
    check(event, http.from_binary_event(http.HTTPMessage(dict(headers), body), _format()), _data(event))


def test_the_sdk_writes_what_we_write() -> None:
    """The other way round: from the event it read, the same binary record and the same structured object."""
    key, value, headers = kafka_binary(JSON_EVENT)
    event = kafka.from_binary_event(kafka.KafkaMessage(dict(headers), key, value), _format())
    theirs = kafka.to_binary_event(event, _format())
    ours = {name: text for name, text in headers if name != "traceparent"}
    assert _moment(ours.pop("ce_time")) == _moment(theirs.headers["ce_time"])
    assert ours == {name: text for name, text in theirs.headers.items() if name != "ce_time"}
    assert json.loads(value) == json.loads(theirs.value)
    again = json.loads(kafka.to_structured_event(event, _format()).value)
    mine = json.loads(structured(JSON_EVENT))
    assert _moment(mine.pop("time")) == _moment(again.pop("time"))
    assert mine == again


def _moment(text: str | bytes) -> datetime:
    return datetime.fromisoformat(text if isinstance(text, str) else text.decode())


def _format() -> Any:
    from cloudevents.core.formats.json import JSONFormat

    return JSONFormat()


def test_the_envelope_goes_beside_octets_only() -> None:
    """As one header, on Kafka as it is, on HTTP percent-encoded."""
    assert ("postbus-envelope", RAW_EVENT.envelope) in kafka_binary(RAW_EVENT)[2]
    assert RAW_EVENT.envelope.decode() == unquote(dict(http_binary(RAW_EVENT)[0])["postbus-envelope"])
    assert "postbus-envelope" not in dict(kafka_binary(JSON_EVENT)[2])
    assert "postbus-envelope" not in dict(http_binary(JSON_EVENT)[0])


def test_the_trace_goes_along_as_attribute_and_as_hop() -> None:
    """Both start equal; none without a sampled session."""
    headers = kafka_binary(JSON_EVENT)[2]
    assert dict(headers)["ce_traceparent"] == dict(headers)["traceparent"] == JSON_EVENT.traceparent.encode()  # type: ignore[union-attr]
    assert not [name for name, _ in kafka_binary(RAW_EVENT)[2] + kafka_structured(RAW_EVENT)[2] if "trace" in name]


def test_the_record_key_is_the_partition_key() -> None:
    """In both modes."""
    assert b"P" * 43 == kafka_binary(JSON_EVENT)[0] == kafka_structured(JSON_EVENT)[0]


@given(
    st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20),
    st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20),
)
def test_any_source_and_route_survive(source: str, route: str) -> None:
    """In JSON, in Kafka headers and in HTTP headers, which hold printable ASCII alone."""
    event = JSON_EVENT._replace(source=source, subject=route)
    assert (source, route) == tuple(json.loads(structured(event))[name] for name in ("source", "subject"))
    kafka_headers, http_headers = dict(kafka_binary(event)[2]), dict(http_binary(event)[0])
    assert (source, route) == (kafka_headers["ce_source"].decode(), kafka_headers["ce_subject"].decode())
    assert (source, route) == (unquote(http_headers["ce-source"]), unquote(http_headers["ce-subject"]))
    assert all("!" <= char <= "~" for value in (http_headers["ce-source"], http_headers["ce-subject"]) for char in value)


def test_octets_travel_as_base64_in_json() -> None:
    """And never as data."""
    tree = json.loads(structured(RAW_EVENT))
    assert RAW_EVENT.data == b64decode(tree["data_base64"])
    assert "data" not in tree


@pytest.mark.parametrize(
    ("event_max_octets", "mode", "as_octets", "expected"),
    [
        pytest.param(1 << 20, "parsed", False, None, id="parsed leaves out"),
        pytest.param(1 << 20, "parsed", True, None, id="parsed, octets wanted"),
        pytest.param(1 << 20, "raw", True, (1 << 20) - EVENT_RESERVE_OCTETS, id="octets"),
        pytest.param(1 << 20, "raw", False, ((1 << 20) - EVENT_RESERVE_OCTETS) // 4 * 3, id="base64"),
        pytest.param(1 << 20, "both", True, ((1 << 20) - EVENT_RESERVE_OCTETS) // 4 * 3, id="both is JSON"),
        pytest.param(100, "raw", True, 0, id="nothing fits"),
    ],
)
def test_the_largest_message_that_fits(event_max_octets: int, mode: Mode, as_octets: bool, expected: int | None) -> None:
    """Known before a message is accepted."""
    assert expected == message_max_octets(event_max_octets, mode, as_octets)
