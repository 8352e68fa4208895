"""smtp-source, Postfix's own load generator, through a tee, over SMTP and LMTP: an event for each recipient, with the wire's octets.

Every event goes to a file and to a Kafka topic.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest

from tests.brokers import Kafka
from tests.e2e.harness import Postbus, running, tree
from tests.e2e.tee import tee
from tests.peers import need

pytestmark = pytest.mark.kafka

KIB = 1024


@dataclass(repr=False)
class Setting:
    """Postbus, and the topic of all its events."""

    postbus: Postbus
    kafka: Kafka
    topic: str

    def recorded(self, at_least: int) -> list[str]:
        """Return the ids on the topic."""
        records = asyncio.run(self.kafka.consume(self.topic, at_least=at_least))
        return [(record.header("ce_id") or b"").decode() for record in records]


@pytest.fixture(scope="module")
def setting(kafka_of_the_run: Kafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    """One postbus with SMTP and LMTP; a small spill threshold, so that most sizes go both ways."""
    kafka_of_the_run.start()
    topic = asyncio.run(kafka_of_the_run.create_topic(config={"max.message.bytes": str(8 * KIB * KIB)}))
    folder = tmp_path_factory.mktemp("source")
    listeners = {
        "smtp": {"address": "127.0.0.1:0", "spill_threshold_octets": 32 * KIB},
        "lmtp": {"address": f"unix:{folder}/lmtp.sock", "protocol": "lmtp", "spill_threshold_octets": 32 * KIB},
    }
    records = {"kind": "kafka", "bootstrap": [kafka_of_the_run.bootstrap], "topic": topic, "max_request_octets": 6 * KIB * KIB}
    sinks = {**tree()["sinks"], "records": records}
    routes = [{"name": "everyone", "match": "*", "sinks": ["file", "records"], "mode": "both"}]
    with running(folder, tree(listeners=listeners, sinks=sinks, routes=routes)) as started:
        yield Setting(started, kafka_of_the_run, topic)


@pytest.mark.parametrize(("listener", "arguments"), [pytest.param("smtp", [], id="SMTP"), pytest.param("lmtp", ["-L"], id="LMTP")])
@pytest.mark.parametrize(
    ("octets", "messages", "recipients", "sessions"),
    [
        pytest.param(KIB, 400, 1, 10, id="1 KiB"),
        pytest.param(KIB, 60, 5, 10, id="1 KiB to 5"),
        pytest.param(32 * KIB, 60, 2, 10, id="32 KiB to 2"),
        pytest.param(1024 * KIB, 16, 2, 8, id="1 MiB to 2"),
    ],
)
def test_each_recipient_has_one_event_with_the_octets_of_the_wire(
    setting: Setting, listener: str, arguments: Sequence[str], octets: int, messages: int, recipients: int, sessions: int
) -> None:
    """Every recipient of every message has one event with the octets of the wire, and one record; sessions are used again."""
    program, postbus = need("smtp-source", "install postfix"), setting.postbus
    name = f"{listener}-{octets}-{recipients}"
    before = len(postbus.events())
    load = ["-s", str(sessions), "-m", str(messages), "-l", str(octets), "-r", str(recipients), "-d"]
    with tee(postbus.address(listener)) as wire:
        addresses = ["-t", f"{name}@example.org", "-f", "load@example.net", f"inet:{wire.address}"]
        done = subprocess.run([program, *arguments, *load, *addresses], capture_output=True, text=True, timeout=100, check=False)
        assert (0, "") == (done.returncode, done.stderr)
        sent = Counter(message.sha256 for message in wire.messages for _ in message.recipients)
    found = postbus.wait_events(before + messages * recipients)[before:]
    postbus.wait_delivered()
    assert messages * recipients == len(postbus.events()) - before
    assert messages * recipients == len({event["id"] for event in found})
    assert sent == Counter(hashlib.sha256(base64.b64decode(event["data"]["raw"]["base64"])).hexdigest() for event in found)
    transactions = Counter(event["data"]["transactionId"] for event in found)
    assert {recipients: messages} == Counter(transactions.values())
    sizes = {event["data"]["message"]["sizeBytes"] for event in found}
    assert all(octets <= size < octets + 500 for size in sizes), sizes
    written = [event["id"] for event in postbus.events()]
    assert sorted(written) == sorted(setting.recorded(at_least=len(written)))
    assert [] == [line for line in postbus.log.lines if line["level"] == "error"]
