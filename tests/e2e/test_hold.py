"""Hold with a real Kafka: a 250 is an acknowledged record; recipients' fates, and messages too large for a route's sinks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.brokers import Kafka, Record
from tests.e2e.harness import Postbus, deliver, running, tree, unique, wait_until
from tests.e2e.webserver import WebServer, serving

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

KIB = 1024
LISTENERS = {"smtp": {"address": "127.0.0.1:0"}, "lmtp": {"address": "127.0.0.1:0", "protocol": "lmtp"}}
RECORD_MAX_OCTETS = 256 * KIB
SMALL = b"Subject: hold\r\n\r\nbody\r\n"


@dataclass(repr=False)
class Setting:
    """Postbus with routes that hold: to Kafka, to a web server, to both, to a topic that does not exist."""

    postbus: Postbus
    kafka: Kafka
    topic: str
    web: WebServer

    def records(self, recipient: str, at_least: int = 0) -> list[Record]:
        """Return the records for *recipient*."""
        found = asyncio.run(self.kafka.consume(self.topic, at_least=at_least, timeout_s=15))
        return [record for record in found if json.loads(record.header("postbus-envelope") or b"{}")["envelope"]["recipient"] == recipient]


@pytest.fixture(scope="module")
def setting(kafka_of_the_run: Kafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    """One postbus for all tests here."""
    kafka_of_the_run.start()
    topic = asyncio.run(kafka_of_the_run.create_topic())
    with serving() as web:
        cluster = {"kind": "kafka", "bootstrap": [kafka_of_the_run.bootstrap], "max_request_octets": RECORD_MAX_OCTETS}
        sinks = {
            "records": {**cluster, "topic": topic},
            "nowhere": {**cluster, "topic": f"{topic}-missing"},
            "hook": {"kind": "webhook", "url": f"{web.url}/hook", "event_max_octets": 1024 * KIB},
            "refuses": {"kind": "webhook", "url": f"{web.url}/refuses", "event_max_octets": 1024 * KIB},
        }
        web.answers["/refuses"] = 413
        routes = [
            {"name": "records", "match": "*@records.example.org", "sinks": "records", "mode": "raw"},
            {"name": "hook", "match": "*@hook.example.org", "sinks": "hook", "mode": "raw"},
            {"name": "two", "match": "*@two.example.org", "sinks": ["records", "hook"], "mode": "raw"},
            {"name": "nowhere", "match": "*@nowhere.example.org", "sinks": "nowhere", "mode": "raw"},
            {"name": "refuses", "match": "*@refuses.example.org", "sinks": "refuses", "mode": "raw"},
        ]
        config = tree(listeners=LISTENERS, sinks=sinks, routes=routes, acceptance="hold")
        with running(tmp_path_factory.mktemp("hold"), config) as postbus:
            yield Setting(postbus, kafka_of_the_run, topic, web)


def test_an_accepted_mail_is_a_record_already(setting: Setting) -> None:
    """When 250 comes the topic has the octets; there is no spool at all."""
    recipient = f"{unique()}@records.example.org"
    with setting.postbus.smtp("smtp") as client:
        [verdict] = deliver(client, [recipient], SMALL)
    assert 250 == verdict.code
    [record] = setting.records(recipient)
    assert SMALL == record.value
    assert not (setting.postbus.folder / "spool").exists()
    assert verdict.text.endswith(json.loads(record.header("postbus-envelope") or b"{}")["transactionId"])


def test_the_same_recipient_twice_is_two_events_with_one_dedupe_key(setting: Setting) -> None:
    """And the same message again later has the same key too; ids never repeat."""
    recipient = f"{unique()}@records.example.org"
    with setting.postbus.smtp("smtp") as client:
        assert [250, 250] == [verdict.code for verdict in deliver(client, [recipient, recipient], SMALL)]
        assert [250] == [verdict.code for verdict in deliver(client, [recipient], SMALL)]
        assert [250] == [verdict.code for verdict in deliver(client, [recipient], SMALL + b"more\r\n")]
    records = setting.records(recipient)
    assert 4 == len({record.header("ce_id") for record in records})
    keys = [record.header("ce_dedupekey") for record in records]
    assert [keys[0]] * 3 == keys[:3]
    assert keys[0] != keys[3]
    assert 1 == len({record.key for record in records})


def test_lmtp_recipients_have_fates_of_their_own(setting: Setting) -> None:
    """One transaction across sinks: acknowledged 250, refused by the receiver 554, topic missing 451, unknown 550 5.1.1."""
    name = unique()
    domains = ("records", "refuses", "hook", "nowhere", "two", "unknown")
    with setting.postbus.smtp("lmtp") as client:
        said = deliver(client, [f"{name}@{domain}.example.org" for domain in domains], SMALL)
    told = {domain: f"{verdict.code} {verdict.text}"[:9] for domain, verdict in zip(domains, said, strict=True)}
    expected = {"records": "250 2.0.0", "refuses": "554 5.3.0", "hook": "250 2.0.0", "nowhere": "451 4.3.0", "two": "250 2.0.0"}
    assert {**expected, "unknown": "550 5.1.1"} == told
    assert 1 == len(setting.records(f"{name}@records.example.org"))
    assert 1 == len(setting.records(f"{name}@two.example.org"))
    assert 2 == sum(name.encode() in post.body for post in setting.web.posts if post.path == "/hook")


def test_an_operators_mistake_bounces_nothing(setting: Setting) -> None:
    """A topic that does not exist is 451 for every recipient, and /readyz says so while the pod stays ready."""
    with setting.postbus.smtp("smtp") as client:
        [verdict] = deliver(client, [f"{unique()}@nowhere.example.org"], SMALL)
    assert 451 == verdict.code
    answer = setting.postbus.get("/readyz?verbose")
    assert 200 == answer.code
    assert "[~]sink.nowhere degraded: the topic does not exist" in answer.text
    assert "[+]sink.records" in answer.text


def test_over_smtp_recipients_with_other_sinks_come_again(setting: Setting) -> None:
    """The one reply is true for all: other sinks get 452 4.5.3 at RCPT, the same sinks share the transaction, and nobody gets it twice."""
    name = unique()
    people = [f"{name}{number}@{domain}.example.org" for number, domain in enumerate(("records", "hook", "two", "records", "unknown"))]
    with setting.postbus.smtp("smtp") as client:
        said = deliver(client, people, SMALL, options=["SIZE=100"])
        assert [250, 452, 452, 250, 550] == [verdict.code for verdict in said]
        assert all(verdict.text.startswith("4.5.3") for verdict in said[1:3])
        again = deliver(client, [people[1]], SMALL)
        assert [250] == [verdict.code for verdict in again]
    assert [1, 1] == [len(setting.records(people[index])) for index in (0, 3)]
    assert 1 == sum(name.encode() in post.body for post in setting.web.posts)


def test_size_follows_the_sinks(setting: Setting) -> None:
    """EHLO announces the most that some route's sinks carry: here the web server's, in base64."""
    with setting.postbus.smtp("smtp") as client:
        client.ehlo()
        announced = int(client.esmtp_features["size"])
    assert 700 * KIB < announced < 1024 * KIB * 3 // 4
    with setting.postbus.smtp("smtp") as client:
        client.ehlo()
        assert 552 == client.mail("a@example.net", [f"SIZE={announced + 1}"])[0]
        assert 250 == client.mail("a@example.net", [f"SIZE={announced}"])[0]


@pytest.mark.parametrize("listener", ["smtp", "lmtp"])
def test_too_large_for_the_route_is_refused_before_acceptance(setting: Setting, listener: str) -> None:
    """552 at RCPT where SIZE= says so, and after the dot where it does not; what just fits is taken."""
    octets = b"Subject: large\r\n\r\n" + b"x" * 70 + b"\r\n"
    large, fitting = octets + b"y" * 300 * KIB + b"\r\n", octets + b"z" * 200 * KIB + b"\r\n"
    name = unique()
    person = f"{name}@records.example.org"
    with setting.postbus.smtp(listener) as client:
        client.ehlo_or_helo_if_needed()
        client.mail("a@example.net", [f"SIZE={len(large)}"])
        assert 552 == client.rcpt(person)[0]
        assert 250 == client.rcpt(f"{name}@hook.example.org")[0]
        client.rset()
        assert [552] == [verdict.code for verdict in deliver(client, [person], large)]
        assert [250] == [verdict.code for verdict in deliver(client, [person], fitting)]
    [record] = setting.records(person)
    assert fitting == record.value
    assert not any(f"{name}@".encode() in post.body for post in setting.web.posts)


def test_over_lmtp_only_the_small_route_refuses_a_large_message(setting: Setting) -> None:
    """Without SIZE=, each recipient's sinks decide after the dot."""
    name = unique()
    large = b"Subject: large\r\n\r\n" + b"x" * 300 * KIB + b"\r\n"
    with setting.postbus.smtp("lmtp") as client:
        said = deliver(client, [f"{name}@records.example.org", f"{name}@hook.example.org"], large)
    assert [552, 250] == [verdict.code for verdict in said]
    assert 1 == sum(name.encode() in post.body for post in setting.web.posts)


def test_kafka_away_and_back(setting: Setting) -> None:
    """While the broker is away: 451, at once or within the deadline; when it is back, 250 without a restart. Nobody's record is lost."""
    setting.kafka.require_ours()
    name = unique()
    codes: list[int] = []

    def one() -> int:
        with setting.postbus.smtp("smtp") as client:
            codes.append(deliver(client, [f"{name}-{len(codes)}@records.example.org"], SMALL)[0].code)
        return codes[-1]

    assert 250 == one()
    setting.kafka.kill()
    assert 451 == one()
    assert 451 == one()
    setting.kafka.start()
    wait_until(lambda: one() == 250, lambda: f"Kafka is not used again\n{setting.postbus.log.tail()}", 40)
    assert 250 == one()
    records = asyncio.run(setting.kafka.consume(setting.topic, at_least=codes.count(250), timeout_s=15))
    found = {json.loads(record.header("postbus-envelope") or b"{}")["envelope"]["recipient"] for record in records}
    promised = {f"{name}-{number}@records.example.org" for number, code in enumerate(codes) if code == 250}
    assert promised <= found
