"""Real and generated mail over SMTP and LMTP into Kafka: what was on the wire is what the topic holds, one event per recipient.

Each mail goes to three recipients (raw, both, parsed), whose routes lead to topics of their own, through a tee that remembers the wire.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jsonschema
import pytest

from tests.brokers import Kafka, Record
from tests.e2e.harness import POSTBUS, Postbus, connect, deliver, running, tree
from tests.e2e.mails import CHARSETS, Mail, corpus, generated
from tests.e2e.tee import Sent, Tee, tee

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

MIB = 1024 * 1024
MODES = ("raw", "both", "parsed")
SINKS = {"raw": "binary", "both": "binary", "parsed": "structured"}
PROTOCOLS = ("smtp", "lmtp")


@dataclass(repr=False)
class Case:
    """One mail over one protocol: what was answered, and what came out by mode."""

    mail: Mail
    protocol: str
    number: int
    codes: list[int] = field(default_factory=list)
    wire: Sent | None = None
    records: dict[str, list[Record]] = field(default_factory=dict)

    @property
    def recipients(self) -> list[str]:
        """The recipients: one for each mode."""
        return [f"{mode}-{self.protocol}-{self.number}@{mode}.example.org" for mode in MODES]

    @property
    def name(self) -> str:
        """For a failure's message."""
        return f"{self.mail.name} over {self.protocol}"


@dataclass(repr=False)
class Run:
    """Everything that was sent, and every record of each topic."""

    postbus: Postbus
    cases: list[Case]
    topics: dict[str, list[Record]]

    @property
    def accepted(self) -> list[Case]:
        """The cases that deserve an event."""
        return [case for case in self.cases if case.mail.code == 250]


@pytest.fixture(scope="module")
def run(kafka_of_the_run: Kafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Send everything once, and read the topics once."""
    kafka_of_the_run.start()
    large = {"max.message.bytes": str(64 * MIB)}
    topics = {mode: asyncio.run(kafka_of_the_run.create_topic(config=large)) for mode in MODES}
    folder = tmp_path_factory.mktemp("corpus")
    sink = {
        "kind": "kafka",
        "bootstrap": [kafka_of_the_run.bootstrap],
        "topic": topics["raw"],
        "topics": topics,
        "max_request_octets": 40 * MIB,
        "in_flight_max_octets": 128 * MIB,
    }
    config = tree(
        listeners={"smtp": {"address": "127.0.0.1:0"}, "lmtp": {"address": f"unix:{folder}/lmtp.sock", "protocol": "lmtp"}},
        sinks={"binary": sink, "structured": {**sink, "mode": "structured"}},
        routes=[{"name": mode, "match": f"*@{mode}.example.org", "sinks": SINKS[mode], "mode": mode} for mode in MODES],
    )
    cases = [Case(mail, protocol, number) for protocol in PROTOCOLS for number, mail in enumerate(corpus() + generated())]
    with running(folder, config) as postbus:
        for protocol in PROTOCOLS:
            with tee(postbus.address(protocol)) as wire:
                _send(wire, [case for case in cases if case.protocol == protocol])
        postbus.wait_delivered(60)
        expected = sum(case.mail.code == 250 for case in cases)
        records = {mode: asyncio.run(kafka_of_the_run.consume(topic, at_least=expected, timeout_s=30)) for mode, topic in topics.items()}
        for case in cases:
            for mode, address in zip(MODES, case.recipients, strict=True):
                case.records[mode] = [record for record in records[mode] if address == _recipient(record)]
        yield Run(postbus, cases, records)
    _read.cache_clear()


def _send(wire: Tee, cases: Sequence[Case]) -> None:
    """Send *cases* in one session (a refused content costs the session nothing), and note what the tee saw of each."""
    with connect(wire.address, lmtp=cases[0].protocol == "lmtp") as client:
        for case in cases:
            size = f"SIZE={len(case.mail.octets) + 2}"  # without it, routes that carry different sizes cannot share SMTP's one reply
            verdicts = deliver(client, case.recipients, case.mail.octets, options=[*case.mail.options, size])
            case.codes = [verdict.code for verdict in verdicts]
    seen = {message.recipients: message for message in wire.messages}
    for case in cases:
        case.wire = seen.get(tuple(case.recipients))


def _envelope(record: Record) -> Any:
    """Return what stands round the message: in the data, or in the header beside the octets."""
    text = record.header("postbus-envelope") or record.value
    assert text is not None
    whole = _read(text)
    return whole["data"] if "specversion" in whole else whole


def _attribute(record: Record, name: str) -> str:
    """Return a CloudEvents attribute: a header in binary mode, a key of the object in structured mode."""
    header = record.header(f"ce_{name}")
    if header is not None:
        return header.decode()
    assert b"application/cloudevents+json; charset=utf-8" == (record.header("content-type") or b"").lower()
    return str(_read(record.value or b"")[name])


@cache
def _read(text: bytes) -> Any:
    """Return the JSON *text*, read once: one of them is 33 MiB."""
    return json.loads(text)


def _recipient(record: Record) -> str:
    return str(_envelope(record)["envelope"]["recipient"])


def test_every_mail_gets_the_answer_it_deserves(run: Run) -> None:
    """250 for every mail, but 550 for one with a CR or LF alone or a NUL in it; each recipient is told over LMTP."""
    expected = {case.name: {case.mail.code} for case in run.cases}
    assert expected == {case.name: set(case.codes) for case in run.cases}
    assert {3} == {len(case.codes) for case in run.cases}


def test_raw_octets_are_those_of_the_wire(run: Run) -> None:
    """The value of a raw record is the message as it was on the wire, without transparency dots; `both` holds it in base64."""
    for case in run.accepted:
        assert case.wire is not None, case.name
        [raw], [both] = case.records["raw"], case.records["both"]
        assert raw.value is not None, case.name
        assert case.wire.sha256 == hashlib.sha256(raw.value).hexdigest(), case.name
        told = _envelope(both)["raw"]
        assert case.wire.sha256 == hashlib.sha256(base64.b64decode(told["base64"])).hexdigest() == told["sha256"], case.name
        assert len(case.wire.octets) == _envelope(raw)["message"]["sizeBytes"] == told["sizeBytes"], case.name


def test_what_was_sent_is_what_the_wire_carried(run: Run) -> None:
    """The tee and the sender agree (smtplib ends a last line that has no end), so neither is the only witness."""
    for case in run.accepted:
        assert case.wire is not None, case.name
        assert case.wire.octets in {case.mail.octets, case.mail.octets + b"\r\n"}, case.name


def test_one_event_for_each_accepted_recipient(run: Run) -> None:
    """As many records as accepted recipients, each with its own id, none for a refused mail, and no other recipient in it."""
    for mode in MODES:
        assert len(run.accepted) == len(run.topics[mode]), mode
        assert {case.name: 1 for case in run.accepted} == {case.name: len(case.records[mode]) for case in run.accepted}
    ids = [_attribute(record, "id") for mode in MODES for record in run.topics[mode]]
    assert len(ids) == len(set(ids))
    for case in run.accepted:
        for mode in MODES:
            [record] = case.records[mode]
            parts = {name: part for name, part in _envelope(record).items() if name != "raw"}
            said = b"".join([json.dumps(parts).encode(), record.key or b"", *(value for _, value in record.headers)])
            assert [False, False, True] == sorted(address.encode() in said for address in case.recipients), (case.name, mode)


def test_json_is_valid_against_the_published_schema(run: Run) -> None:
    """`postbus schema event` prints the schema; every JSON event fits it."""
    printed = subprocess.run([POSTBUS, "schema", "event"], capture_output=True, text=True, check=True, timeout=30)
    schema = json.loads(printed.stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    for case in run.accepted:
        for mode in ("both", "parsed"):
            [record] = case.records[mode]
            errors = [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(_envelope(record))]
            assert [] == errors, (case.name, mode)
            assert schema["$id"] == _attribute(record, "dataschema")


def test_keys_follow_the_recipient(run: Run) -> None:
    """The same message to another recipient has another dedupe key; the record's own key is the partition key."""
    records = [record for mode in MODES for record in run.topics[mode]]
    keys = [_attribute(record, "dedupekey") for record in records]
    assert len(keys) == len(set(keys))
    for record in records:
        assert (record.key or b"").decode() == _attribute(record, "partitionkey")


def test_texts_are_read_in_their_charset(run: Run) -> None:
    """The text of an event is what the writer typed, whatever the charset."""
    for case in run.accepted:
        charset = case.mail.name.removeprefix("charset-")
        if charset in CHARSETS:
            [record] = case.records["parsed"]
            assert CHARSETS[charset] == _envelope(record)["body"]["text"].strip(), case.name


def test_attachments_are_listed(run: Run) -> None:
    """A file with a name that is not ASCII, and a letter in a letter, which is one attachment."""
    for case in run.accepted:
        if case.mail.name == "attachments":
            [record] = case.records["parsed"]
            found = [(part["filename"], part["contentType"], part["sizeBytes"]) for part in _envelope(record)["attachments"]]
            assert ("Übersicht & Plan.bin", "application/octet-stream", 25_600) == found[0]
            assert "message/rfc822" == found[1][1]


def test_protocols_are_told(run: Run) -> None:
    """The event says how the mail came."""
    for case in run.accepted:
        [record] = case.records["raw"]
        assert {"smtp": "esmtp", "lmtp": "lmtp"}[case.protocol] == _envelope(record)["listener"]["protocol"], case.name


def test_nobody_complained(run: Run) -> None:
    """No error and no warning about a message is in the log, and the sums of log, metrics and topics are the same."""
    assert [] == [line for line in run.postbus.log.lines if line["level"] == "error"]
    accepted = run.postbus.metric("postbus_messages_total", outcome="accepted")
    assert len(run.accepted) == accepted == len(run.postbus.log.find("message.accepted"))
    assert 3 * len(run.accepted) == run.postbus.metric("postbus_recipients_total", outcome="accepted")
