"""From a mail's record and octets to an event."""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import replace
from hashlib import sha256
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from postbus.event import mime
from postbus.event.cloudevents import kafka_binary, message_max_octets, structured
from postbus.event.mail import Mode, mail_from_bytes, mail_to_bytes
from postbus.event.model import (
    ENVELOPE_MAX_OCTETS,
    RAW_TYPE,
    RECEIVED_TYPE,
    SCHEMA_ID,
    Event,
    UnfitError,
    json_schema,
    needs_octets,
    needs_parse,
    render,
)
from postbus.event.parsed import Defect, Parsed, from_bytes, to_bytes, unreadable
from tests.event.samples import PLAIN, corpus, mail, recipient, wire

_VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def test_the_attributes() -> None:
    """As recorded at acceptance."""
    event = render(mail(PLAIN), recipient(), b"", mime.parse(PLAIN), as_octets=False)
    expected = Event(
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
        data=event.data,
        envelope=b"",
        mode="parsed",
        route="inbox",
    )
    assert expected == event
    _VALIDATOR.validate(json.loads(event.data))


@pytest.mark.parametrize(("smtputf8", "media_type"), [(False, "message/rfc822"), (True, "message/global")])
def test_raw_octets(smtputf8: bool, media_type: str) -> None:
    """The octets themselves, the envelope beside them."""
    event = render(mail(PLAIN, smtputf8=smtputf8), recipient(mode="raw"), PLAIN, None, as_octets=True)
    assert (RAW_TYPE, media_type, None, PLAIN, "raw") == (event.type, event.datacontenttype, event.dataschema, event.data, event.mode)
    assert 0 < len(event.envelope) <= ENVELOPE_MAX_OCTETS
    assert mail(PLAIN).sha256 == json.loads(event.envelope)["message"]["sha256"]


def test_octets_that_outgrow_the_sink_become_no_event() -> None:
    """A limit can shrink after a message was accepted: an event without them would hold nothing."""
    octets = PLAIN + b"x" * 100_000
    to = recipient(mode="raw", event_max_octets=50_000)
    with pytest.raises(UnfitError, match="100"):
        render(mail(octets, to), to, octets, None, as_octets=True)


@pytest.mark.parametrize("mode", ["parsed", "both"])
@pytest.mark.parametrize("parsed", [None, unreadable(Defect("parser.died", None, "SIGSEGV"))], ids=["none", "unreadable"])
def test_what_cannot_be_parsed_comes_raw_in_json(mode: Mode, parsed: Parsed | None) -> None:
    """Whatever form the sink wants of raw routes: this route promised JSON."""
    event = render(mail(PLAIN), recipient(mode=mode), PLAIN, parsed, as_octets=True)
    tree = json.loads(event.data)
    _VALIDATOR.validate(tree)
    assert (RECEIVED_TYPE, "raw", PLAIN) == (event.type, event.mode, b64decode(tree["raw"]["base64"]))


@pytest.mark.parametrize(
    ("mode", "parsed", "parse", "octets"),
    [
        pytest.param("raw", None, False, True, id="raw"),
        pytest.param("parsed", mime.parse(PLAIN), True, False, id="parsed"),
        pytest.param("parsed", unreadable(), True, True, id="parsed, unreadable"),
        pytest.param("parsed", None, True, True, id="parsed, not yet"),
        pytest.param("both", mime.parse(PLAIN), True, True, id="both"),
    ],
)
def test_what_rendering_asks_for(mode: Mode, parsed: Parsed | None, parse: bool, octets: bool) -> None:
    """So that nobody reads or parses for nothing."""
    assert (parse, octets) == (needs_parse(mode), needs_octets(mode, parsed))


@pytest.mark.parametrize("mode", ["parsed", "raw", "both"])
def test_a_retry_renders_the_same_bytes(mode: Mode) -> None:
    """From the spool's row and the octets, however often, wherever parsed."""
    to = recipient(mode=mode)
    first = render(mail(PLAIN, to), to, PLAIN, mime.parse(PLAIN), as_octets=False)
    record = mail_from_bytes(mail_to_bytes(mail(PLAIN, to)))
    again = render(record, record.recipients[0], PLAIN, from_bytes(to_bytes(mime.parse(PLAIN))), as_octets=False)
    assert first == again


@pytest.mark.parametrize("mode", ["parsed", "raw", "both"])
def test_the_interpreters_corpus(mode: Mode) -> None:
    """Every mail gives an event that fits the schema, decodes, and whose hashes are right."""
    for path in corpus():
        octets = wire(path.read_bytes())
        to = recipient(mode=mode)
        event = render(mail(octets, to), to, octets, mime.parse(octets), as_octets=False)
        tree = json.loads(event.data)
        _VALIDATOR.validate(tree)
        _check_texts(tree)
        assert sha256(octets).hexdigest() == tree["message"]["sha256"]
        if tree["raw"]:
            assert octets == b64decode(tree["raw"]["base64"])
        for attachment in tree["attachments"] or ():
            assert attachment["sha256"] == sha256(b64decode(attachment["content"]["base64"])).hexdigest(), path.name


def _check_texts(tree: Any) -> None:
    """No text anywhere holds a control (TAB, CR and LF of bodies excepted) or half a character."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            _check_text(name, value) if isinstance(value, str) else _check_texts(value)
    elif isinstance(tree, list):
        for value in tree:
            _check_text("", value) if isinstance(value, str) else _check_texts(value)


def _check_text(name: str, text: str) -> None:
    allowed = "\t\r\n" if name in ("text", "html") else "\t"
    assert not [
        char for char in text if (ord(char) < 32 and char not in allowed) or 0x7F <= ord(char) <= 0x9F or 0xD800 <= ord(char) <= 0xDFFF
    ]


@given(st.binary(max_size=300))
def test_any_octets_give_an_event(octets: bytes) -> None:
    """Valid, decodable, clean."""
    event = render(mail(octets), recipient(), octets, mime.parse(octets), as_octets=False)
    tree = json.loads(event.data)
    _VALIDATOR.validate(tree)
    _check_texts(tree)


@pytest.mark.parametrize("as_octets", [True, False])
@pytest.mark.parametrize("mode", ["parsed", "raw", "both"])
@pytest.mark.parametrize("event_max_octets", [65_536, 1_000_000])
def test_the_largest_message_fits_every_binding(mode: Mode, as_octets: bool, event_max_octets: int) -> None:
    """What is promised before acceptance holds after it, as Kafka record and as structured body."""
    size = message_max_octets(event_max_octets, mode, as_octets) or event_max_octets * 3
    octets = (b'Subject: "\r\n\r\n' + b'"\t"\xe9\r\n' * (size // 4))[:size]
    long = "\u20ac" * 500
    to = recipient(mode=mode, event_max_octets=event_max_octets, route=long, captures={"x": "y" * 9000})
    event = render(mail(octets, to, source=long), to, octets, mime.parse(octets), as_octets=as_octets)
    assert mode == "parsed" or b"omitted" not in event.data
    key, value, headers = kafka_binary(event)
    assert len(key) + len(value) + sum(len(name) + len(text) + 8 for name, text in headers) + 128 <= event_max_octets
    assert (as_octets and mode == "raw") or len(structured(event)) <= event_max_octets


def test_times_have_milliseconds() -> None:
    """Always three digits, always Z."""
    to = recipient()
    times = [render(mail(PLAIN, received_ms=ms), to, PLAIN, None, as_octets=False).time for ms in (0, 999, 1_000, 4_102_444_800_120)]
    assert ["1970-01-01T00:00:00.000Z", "1970-01-01T00:00:00.999Z", "1970-01-01T00:00:01.000Z", "2100-01-01T00:00:00.120Z"] == times


def test_an_unsampled_session_leaves_no_trace() -> None:
    """Nothing is made up."""
    event = render(replace(mail(PLAIN), traceparent=None), recipient(), PLAIN, None, as_octets=False)
    assert event.traceparent is None
    assert b"traceparent" not in structured(event)
