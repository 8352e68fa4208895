"""The broker the tests rely on does what they rely on."""

from __future__ import annotations

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from tests.brokers import Kafka

pytestmark = pytest.mark.kafka


async def _produce(kafka: Kafka, topic: str, value: bytes, request_timeout_ms: int = 10_000) -> None:
    """Send one record and wait for its acknowledgement."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all", request_timeout_ms=request_timeout_ms)
    await producer.start()
    try:
        await producer.send_and_wait(topic, value, key=b"k", headers=[("h", b"1"), ("h", b"2")])
    finally:
        await producer.stop()


async def test_what_was_sent_is_read_back(kafka: Kafka) -> None:
    """Key, value and headers come back as they went, duplicates kept."""
    topic = await kafka.create_topic(partitions=2)
    await _produce(kafka, topic, b"v")
    (record,) = await kafka.consume(topic, at_least=1)
    assert (record.key, record.value, record.headers) == (b"k", b"v", (("h", b"1"), ("h", b"2")))
    assert record.header("h") == b"1"
    assert record.header("absent") is None


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_the_broker_comes_back_with_its_data(kafka: Kafka, end: str) -> None:
    """A broker that was stopped or killed starts again at the same address with the topics it had."""
    topic = await kafka.create_topic()
    await _produce(kafka, topic, b"before")
    getattr(kafka, end)()
    kafka.start()
    await _produce(kafka, topic, b"after")
    records = await kafka.consume(topic, at_least=2)
    assert [record.value for record in records] == [b"before", b"after"]


async def test_a_topic_falls_short_of_replicas_while_the_second_broker_is_down(kafka: Kafka) -> None:
    """With two replicas and min.insync.replicas 2, nothing is acknowledged until the second broker is back."""
    kafka.require_ours()
    assert kafka.second is not None
    kafka.second.start()
    topic = await kafka.create_topic(replication=2, config={"min.insync.replicas": "2"})
    await _produce(kafka, topic, b"both up")
    kafka.second.stop()
    with pytest.raises(KafkaError):
        await _produce(kafka, topic, b"one down", request_timeout_ms=500)
    kafka.second.start()
    await _produce(kafka, topic, b"both up again")
    kafka.second.stop()
