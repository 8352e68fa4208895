"""The Kafka sink against a real broker."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import errors

from postbus.event.cloudevents import kafka_structured
from postbus.event.model import Event
from postbus.sinks import Health, Outcome, Rejected, Retry, Sent
from postbus.sinks.kafka import KafkaSink, make
from postbus.sinks.kafka import sink as module
from postbus.sinks.kafka.connection import Topic, partition_of
from postbus.sinks.kafka.outcomes import MEANINGS, meaning_of, outcome_of
from postbus.sinks.kafka.sink import Held
from postbus.sinks.settings import KafkaSettings, SecretMissingError
from tests.brokers import PASSWORD, USER, Kafka
from tests.sinks.samples import raw_sample, sample

real = pytest.mark.kafka
QUICK: dict[str, Any] = {"request_timeout_s": 1.5, "send_timeout_s": 4.0, "linger_ms": 0}
"""Deadlines short enough for tests, in the proportion that settings demand."""


@asynccontextmanager
async def running(kafka: Kafka, topic: str, **settings: Any) -> AsyncIterator[KafkaSink]:
    """A started sink that writes to *topic*."""
    known = {"kind": "kafka", "bootstrap": [kafka.bootstrap], "topic": topic, **QUICK, **settings}
    sink = make("bus", KafkaSettings.model_validate(known))
    await sink.start()
    try:
        yield sink
    finally:
        await sink.stop(3)


async def until_sent(sink: KafkaSink, event: Event, within_s: float = 30) -> list[Outcome]:
    """Send *event* until it is sent, as a dispatcher does; return every outcome."""
    outcomes: list[Outcome] = []
    async with asyncio.timeout(within_s):
        while not outcomes or not isinstance(outcomes[-1], Sent):
            outcomes.append(await sink.send(event))
            await asyncio.sleep(0)
    return outcomes


async def frozen(kafka: Kafka, during: Callable[[], Awaitable[None]]) -> None:
    """Run *during* while the broker's process is stopped in its tracks: connections stand, nothing is answered."""
    assert kafka.process is not None
    os.kill(kafka.process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, kafka.process.pid, os.WSTOPPED)  # the last of its threads may take a while on a busy machine, and answer
    try:
        await during()
    finally:
        os.kill(kafka.process.pid, signal.SIGCONT)


# --- what arrives


@real
async def test_an_event_arrives_in_binary_mode(kafka: Kafka) -> None:
    """Value, key and content type are the event's; attributes are headers; the detail says where it went."""
    topic, event = await kafka.create_topic(), sample()
    async with running(kafka, topic) as sink:
        assert await sink.send(event) == Sent(f"{topic}/0/0")
    (record,) = await kafka.consume(topic)
    assert record.value == event.data
    assert record.key == event.partitionkey.encode()
    assert record.header("ce_id") == event.id.encode()
    assert record.header("content-type") == b"application/json"


@real
async def test_raw_octets_arrive_untouched(kafka: Kafka) -> None:
    """Binary mode carries a mail's own octets, whatever they are, with the envelope beside them."""
    topic, event = await kafka.create_topic(), raw_sample()
    async with running(kafka, topic) as sink:
        assert isinstance(await sink.send(event), Sent)
    (record,) = await kafka.consume(topic)
    assert record.value == event.data
    assert record.header("postbus-envelope") == event.envelope
    assert record.header("content-type") == b"message/rfc822"


@real
async def test_an_event_arrives_in_structured_mode(kafka: Kafka) -> None:
    """One JSON object, no ``ce_`` headers; raw mail is wanted as JSON then."""
    topic, event = await kafka.create_topic(), sample()
    async with running(kafka, topic, mode="structured") as sink:
        assert not sink.octets
        assert isinstance(await sink.send(event), Sent)
    (record,) = await kafka.consume(topic)
    assert record.value == kafka_structured(event)[1]
    assert [name for name, _ in record.headers] == ["content-type"]


@real
async def test_routes_have_their_topics(kafka: Kafka) -> None:
    """A route named under ``topics`` goes there, every other one to ``topic``."""
    common, own = await kafka.create_topic(), await kafka.create_topic()
    async with running(kafka, common, topics={"sales": own}) as sink:
        await sink.send(sample(route="sales"))
        await sink.send(sample(route="support"))
    assert [record.header("ce_subject") for record in await kafka.consume(own)] == [b"sales"]
    assert [record.header("ce_subject") for record in await kafka.consume(common)] == [b"support"]


@pytest.mark.parametrize(
    ("key", "number"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_a_key_has_the_partition_that_java_chooses(key: bytes, number: int) -> None:
    """By the numbers of Kafka's own tests, and the same the second time."""
    every, few = range(1 << 31), [4, 5, 6]
    for _ in range(2):
        assert partition_of(key, every, []) == number & 0x7FFF_FFFF
        assert partition_of(key, few, [5]) == few[(number & 0x7FFF_FFFF) % 3]


@real
async def test_many_at_once_all_arrive_once(kafka: Kafka) -> None:
    """A hundred sends at once are a hundred records."""
    topic = await kafka.create_topic(partitions=3)
    events = [sample(octets=5_000) for _ in range(100)]
    async with running(kafka, topic, in_flight_max_octets=1024 * 1024) as sink:
        outcomes = await asyncio.gather(*(sink.send(event) for event in events))
    assert all(isinstance(outcome, Sent) for outcome in outcomes)
    records = await kafka.consume(topic)
    assert sorted(str(record.header("ce_id")) for record in records) == sorted(str(event.id.encode()) for event in events)


@real
async def test_tls_and_password(kafka: Kafka, tmp_path: Path) -> None:
    """The broker's certificate is checked against our authority, and the password is read from its file."""
    kafka.require_ours()
    topic = await kafka.create_topic()
    secret = tmp_path / "password"
    secret.write_text(f"{PASSWORD}\n")
    sasl = {"mechanism": "PLAIN", "username": USER, "password": {"file": str(secret)}}
    async with running(kafka, topic, bootstrap=[kafka.secure_bootstrap], tls={"ca": str(kafka.ca)}, sasl=sasl) as sink:
        assert sink.secure
        assert isinstance(await sink.send(sample()), Sent)


# --- an operator's mistake bounces nothing


@real
@pytest.mark.parametrize(
    ("password", "tls", "expected"),
    [
        pytest.param("wrong", True, "the broker refused our user name, password or mechanism", id="wrong password"),
        pytest.param(None, True, "a secret is missing", id="no password"),
        pytest.param(PASSWORD, False, "the broker's certificate is not trusted", id="unknown authority"),
    ],
)
async def test_wrong_credentials_pause_the_sink(kafka: Kafka, tmp_path: Path, password: str | None, tls: bool, expected: str) -> None:
    """Whatever is wrong with our credentials is said in the outcome and in health, and is a retry."""
    kafka.require_ours()
    secret = tmp_path / "password"
    if password is not None:
        secret.write_text(password)
    sasl = {"mechanism": "PLAIN", "username": USER, "password": {"file": str(secret)}}
    ca = {"ca": str(kafka.ca)} if tls else {}
    async with running(kafka, "any", bootstrap=[kafka.secure_bootstrap], tls=ca, sasl=sasl) as sink:
        assert await sink.send(sample()) == Retry(expected)
        assert sink.health().detail == expected
        assert not sink.health().ok


@real
async def test_a_missing_topic_is_waited_for(kafka: Kafka) -> None:
    """An event for a topic that does not exist is a retry; once somebody has made the topic, it goes."""
    topic = "made-later"
    await kafka.delete_topic(topic)
    async with running(kafka, topic) as sink:
        event = sample()
        assert await sink.send(event) == Retry("the topic does not exist (UnknownTopicOrPartitionError)")
        assert sink.health().detail == "the topic does not exist: made-later"
        await kafka.create_topic(topic)
        await until_sent(sink, event)
        assert sink.health().ok
    assert len(await kafka.consume(topic)) == 1
    await kafka.delete_topic(topic)


@real
async def test_another_routes_missing_topic_holds_nobody_up(kafka: Kafka) -> None:
    """Where routes have their own topics, trouble with one is not the whole sink's."""
    topic = await kafka.create_topic()
    async with running(kafka, topic, topics={"sales": "missing"}) as sink:
        outcome = await sink.send(sample(route="sales"))
        assert outcome == Retry("the topic does not exist (UnknownTopicOrPartitionError)", sink_down=False)
        assert isinstance(await sink.send(sample()), Sent)


# --- too large


@real
async def test_a_record_larger_than_the_setting_is_rejected(kafka: Kafka) -> None:
    """What this sink is not to send is rejected before it reaches the client; what ``event_max_octets`` promises passes."""
    topic = await kafka.create_topic()
    async with running(kafka, topic, max_request_octets=100_000) as sink:
        assert isinstance(await sink.send(sample(octets=100_000)), Rejected)
        assert isinstance(await sink.send(sample(data=b"x" * sink.event_max_octets)), Sent)


@real
async def test_a_topics_own_limit_is_learnt(kafka: Kafka) -> None:
    """``max.message.bytes`` below the setting lowers what the sink says it carries."""
    topic = await kafka.create_topic(config={"max.message.bytes": "50000"})
    async with running(kafka, topic) as sink:
        assert isinstance(await sink.send(sample()), Sent)
        assert sink.event_max_octets == 50_000 - 16 * 1024
        assert isinstance(await sink.send(sample(octets=50_000)), Rejected)
        outcomes = await asyncio.gather(*(sink.send(sample(octets=20_000)) for _ in range(20)))
    assert all(isinstance(outcome, Sent) for outcome in outcomes)


@real
async def test_a_batch_the_broker_finds_too_large_costs_no_small_event(kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the limit cannot be asked for, a refused batch is tried again record by record."""

    async def nothing_said(*_: object) -> list[Topic]:
        return []

    monkeypatch.setattr("postbus.sinks.kafka.sink.describe", nothing_said)
    topic = await kafka.create_topic(config={"max.message.bytes": "50000"})
    async with running(kafka, topic, linger_ms=100) as sink:
        small, large = [sample(octets=20_000) for _ in range(8)], sample(octets=60_000)
        first = await asyncio.gather(*(sink.send(event) for event in small))
        assert {type(outcome) for outcome in first} == {Retry}
        for event in small:
            await until_sent(sink, event)
        assert await sink.send(large) == Rejected("the record is larger than the topic takes (MessageSizeTooLargeError)", too_large=True)
        assert 50_000 < sink.event_max_octets + 16 * 1024 < 60_000
        await until_sent(sink, small[0]._replace(id="again"))
        doubting, sink._doubt_until_s = sink._producer, 0.0
        while sink._producer in (doubting, None):
            await asyncio.wait((asyncio.create_task(asyncio.sleep(0)),))
        assert sink._producer._message_accumulator._batch_size > 1
        assert sink.event_max_octets == 1024 * 1024 - 16 * 1024
    assert len(await kafka.consume(topic)) == len(small) + 1


@real
async def test_a_topic_too_small_for_events_is_waited_for(kafka: Kafka) -> None:
    """An operator's slip is trouble of the sink and costs no mail; a limit that is only small is warned of."""
    topic = await kafka.create_topic(config={"max.message.bytes": "20000"})
    async with running(kafka, topic) as sink:
        assert await sink.send(sample()) == Retry("the topic's max.message.bytes is too small for events")
        assert not sink.health().ok
    topic = await kafka.create_topic(config={"max.message.bytes": "50000"})
    async with running(kafka, topic) as sink:
        assert isinstance(await sink.send(sample()), Sent)
        assert sink.health().ok
        assert f"{topic}: takes no record above 50000 octets" in sink.health().detail


@real
async def test_an_event_that_cannot_be_encoded_takes_no_room(kafka: Kafka) -> None:
    """Whatever becomes of an event, its octets are given back."""
    topic = await kafka.create_topic()
    async with running(kafka, topic) as sink:
        assert isinstance(await sink.send(sample()), Sent)
        with pytest.raises(UnicodeEncodeError):
            await sink.send(sample()._replace(partitionkey="\udcff"))
        assert sink._budget.used_octets == 0


# --- the far side goes and comes back


@real
async def test_the_broker_goes_and_comes_back(kafka: Kafka) -> None:
    """While it is away every event is a retry within the deadline; when it is back they arrive, without a restart of ours."""
    kafka.require_ours()
    topic = await kafka.create_topic()
    async with running(kafka, topic) as sink:
        assert isinstance(await sink.send(sample()), Sent)
        kafka.stop()
        event = sample()
        started = asyncio.get_running_loop().time()
        outcome = await sink.send(event)
        assert isinstance(outcome, Retry)
        assert outcome.sink_down
        assert asyncio.get_running_loop().time() - started < 5
        assert not sink.health().ok
        kafka.start()
        await until_sent(sink, event)
        assert sink.health().ok
    assert (await kafka.consume(topic))[-1].header("ce_id") == event.id.encode()


@real
async def test_a_sink_starts_without_its_broker(kafka: Kafka) -> None:
    """Starting never fails for the far side; mail that comes meanwhile is a retry."""
    kafka.require_ours()
    topic = await kafka.create_topic()
    kafka.stop()
    async with running(kafka, topic) as sink:
        event = sample()
        assert Health(ok=False, detail="connecting", beginning=True) == sink.health()
        assert await sink.send(event) == Retry("no broker can be reached")
        assert Health(ok=False, detail="no broker can be reached") == sink.health()
        kafka.start()
        await until_sent(sink, event)


@real
async def test_what_comes_with_the_start_waits_for_the_first_connection(kafka: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is sent then; and of a broker that is silent for too long it is not said any more that it has only begun."""
    kafka.require_ours()
    topic = await kafka.create_topic()

    async with AsyncExitStack() as stack:

        async def begin() -> None:
            sink = await stack.enter_async_context(running(kafka, topic))
            assert Health(ok=False, detail="connecting", beginning=True) == sink.health()
            early.append(asyncio.create_task(sink.send(sample())))
            with monkeypatch.context() as patch:
                patch.setattr(module, "BEGINNING_MAX_S", 0.0)
                assert Health(ok=False, detail="connecting") == sink.health()

        early: list[asyncio.Task[Outcome]] = []
        await frozen(kafka, begin)
        assert Sent(f"{topic}/0/0") == await early[0]


@real
async def test_a_held_record_is_not_sent_again(kafka: Kafka) -> None:
    """A broker that is stuck past our deadline and then goes on has the event once, however often it was tried."""
    kafka.require_ours()
    topic = await kafka.create_topic()
    # The request outlives the attempt: the broker is back before the client gives the record up.
    async with running(kafka, topic) as sink:
        assert isinstance(await sink.send(sample()), Sent)
        sink._settings = sink._settings.model_copy(update={"send_timeout_s": 0.5})
        event = sample()

        async def try_twice() -> None:
            for _ in range(2):
                assert await sink.send(event) == Retry("no acknowledgement within 0.5 s; the record may still arrive")

        await frozen(kafka, try_twice)
        await until_sent(sink, event)
    assert [record.header("ce_id") for record in await kafka.consume(topic)].count(event.id.encode()) == 1


@real
async def test_a_stuck_client_is_made_anew(kafka: Kafka) -> None:
    """With idempotence a record never expires; the client that holds it past hope is replaced, and the record sent by the next."""
    kafka.require_ours()
    topic = await kafka.create_topic()
    async with running(kafka, topic, idempotence=True) as sink:
        assert isinstance(await sink.send(sample()), Sent)
        first, event = sink._producer, sample()
        kafka.stop()

        async def replaced() -> None:
            while sink._producer is first:
                await sink.send(event)

        async with asyncio.timeout(30):
            await replaced()
        kafka.start()
        await until_sent(sink, event)
    assert (await kafka.consume(topic))[-1].header("ce_id") == event.id.encode()


@real
async def test_a_client_whose_sender_died_is_made_anew(kafka: Kafka) -> None:
    """A fatal error ends the client, not the sink."""
    topic = await kafka.create_topic()
    async with running(kafka, topic) as sink:
        assert isinstance(await sink.send(sample()), Sent)
        sink._producer._message_accumulator.fail_all(errors.OutOfOrderSequenceNumber())  # type: ignore[union-attr]
        outcomes = await until_sent(sink, sample())
    assert outcomes[0] == Retry("the client failed and is made anew (OutOfOrderSequenceNumber)")


@real
async def test_too_few_replicas_are_a_retry(kafka: Kafka) -> None:
    """With min.insync.replicas unmet nothing is acknowledged, and it goes when the replica is back."""
    kafka.require_ours()
    assert kafka.second is not None
    kafka.second.start()
    topic = await kafka.create_topic(replication=2, config={"min.insync.replicas": "2"})
    async with AsyncExitStack() as stack:
        stack.callback(kafka.second.stop)
        sink = await stack.enter_async_context(running(kafka, topic))
        assert isinstance(await sink.send(sample()), Sent)
        assert sink.health().detail == "connected"
        kafka.second.stop()
        event = sample()
        whys = set()
        async with asyncio.timeout(30):
            while "fewer in-sync replicas than min.insync.replicas (NotEnoughReplicasError)" not in whys:
                outcome = await sink.send(event)
                assert isinstance(outcome, Retry), outcome
                assert outcome.sink_down
                whys.add(outcome.why)
        kafka.second.start()
        await until_sent(sink, event)


@real
async def test_a_lone_copy_is_warned_of(kafka: Kafka) -> None:
    """Health says that an acknowledgement rests on one broker's memory, though the sink is well."""
    topic = await kafka.create_topic()
    async with running(kafka, topic) as sink:
        await sink.send(sample())
        assert sink.health().ok
        expected = f"connected; {topic}: an acknowledged event may rest in one broker's memory (min.insync.replicas below 2)"
        assert sink.health().detail == expected


# --- bounds


@real
async def test_stop_is_bounded_while_the_broker_is_stuck(kafka: Kafka) -> None:
    """A client with records unresolved is closed in time, and their sends end as retries."""
    kafka.require_ours()
    topic = await kafka.create_topic()
    async with running(kafka, topic, request_timeout_s=20, send_timeout_s=60) as sink:
        assert isinstance(await sink.send(sample()), Sent)
        sending = asyncio.create_task(sink.send(sample()))

        async def stop() -> None:
            while not sink._held:
                await asyncio.sleep(0)
            started = asyncio.get_running_loop().time()
            await sink.stop(3)
            assert asyncio.get_running_loop().time() - started < 4

        await frozen(kafka, stop)
        assert isinstance(await sending, Retry)
        assert await sink.send(sample()) == Retry("stopping")


@real
async def test_octets_in_flight_are_bounded(kafka: Kafka) -> None:
    """Behind a stuck broker no more is handed over than the budget allows; the rest is told to wait."""
    kafka.require_ours()
    topic = await kafka.create_topic()
    async with running(kafka, topic, in_flight_max_octets=1024 * 1024) as sink:
        assert isinstance(await sink.send(sample()), Sent)
        events = [sample(octets=400_000)._replace(partitionkey=str(number)) for number in range(10)]
        sending = asyncio.gather(*(sink.send(event) for event in events))
        in_flight = [0]

        async def watch() -> None:
            while not sending.done():
                in_flight.append(sink._budget.used_octets)
                await asyncio.wait((sending,), timeout=0.01)

        await frozen(kafka, watch)
        outcomes = await sending
    assert 800_000 < max(in_flight) <= 1024 * 1024
    assert [] == [outcome for outcome in outcomes if not (isinstance(outcome, Retry) and outcome.sink_down)]


@real
async def test_a_cancelled_send_leaves_the_sink_well(kafka: Kafka) -> None:
    """Whoever waits may stop waiting; octets are given back when the record is settled."""
    topic = await kafka.create_topic()
    async with running(kafka, topic, linger_ms=100) as sink:
        assert isinstance(await sink.send(sample()), Sent)
        sending = asyncio.create_task(sink.send(sample()))
        while not sink._held:
            await asyncio.sleep(0)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await sink.send(sample())
        assert not sink._held
        assert sink._budget.used_octets == 0


async def test_an_acknowledgement_in_the_turn_of_the_deadline_counts() -> None:
    """Told to come again, the event would be on the topic twice for no reason."""
    settings = KafkaSettings.model_validate({"kind": "kafka", "bootstrap": ["127.0.0.1:1"], "topic": "t", **QUICK})
    sink, event = make("bus", settings.model_copy(update={"send_timeout_s": 0.0})), sample()
    loop = asyncio.get_running_loop()
    held = sink._held[event.id] = Held(loop.create_future(), "t", 1, alone=False)
    sending = asyncio.create_task(sink.send(event))
    loop.call_soon(held.future.set_result, None)  # behind the first step of the send, ahead of its deadline's
    assert await sending == Sent("t/?/?")
    held.future = loop.create_future()
    assert await sink.send(event) == Retry("no acknowledgement within 0 s; the record may still arrive")


# --- exceptions


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(errors.UnknownTopicOrPartitionError(), Retry("the topic does not exist (UnknownTopicOrPartitionError)"), id="topic"),
        pytest.param(
            errors.TopicAuthorizationFailedError("t"), Retry("not allowed to write to the topic (TopicAuthorizationFailedError)"), id="acl"
        ),
        pytest.param(errors.NodeNotReadyError(), Retry("no broker can be reached (NodeNotReadyError)"), id="down"),
        pytest.param(
            errors.PolicyViolationError(), Retry("the broker refused the record (PolicyViolationError)", sink_down=False), id="policy"
        ),
        pytest.param(errors.KafkaError("?"), Retry("the client failed and is made anew (KafkaError)"), id="unexpected"),
        pytest.param(
            errors.MessageSizeTooLargeError(),
            Rejected("the record is larger than the topic takes (MessageSizeTooLargeError)", too_large=True),
            id="size",
        ),
        pytest.param(ZeroDivisionError(), Retry("an error this version does not know (ZeroDivisionError)", sink_down=False), id="ours"),
        pytest.param(SecretMissingError("x"), Retry("a secret is missing (SecretMissingError)"), id="secret"),
    ],
)
def test_errors_have_their_outcome(error: Exception, expected: Outcome) -> None:
    """Only what is too large by itself is rejected; what is not this event's fault pauses the sink."""
    assert outcome_of(error, alone=True, topic_is_shared=True) == expected


def test_no_row_of_the_table_is_dead() -> None:
    """Each class of the table gets its own row's meaning, not that of a row above it."""
    for classes, meaning in MEANINGS:
        for kind in classes:
            assert meaning_of(kind.__new__(kind)) is meaning, kind


@pytest.mark.parametrize(
    ("replication", "min_insync", "expected"),
    [
        pytest.param(3, 2, 2, id="as it should be"),
        pytest.param(3, 1, 1, id="two replicas may lag"),
        pytest.param(1, 2, 1, id="capped at the replicas"),
        pytest.param(1, None, 1, id="one replica, setting unknown"),
        pytest.param(3, None, None, id="setting unknown"),
        pytest.param(None, None, None, id="nothing known"),
    ],
)
def test_copies_behind_an_acknowledgement(replication: int | None, min_insync: int | None, expected: int | None) -> None:
    """An acknowledgement stands for the lesser of replicas and min.insync.replicas."""
    assert Topic("t", replication=replication, min_insync=min_insync).copies_at_least == expected


async def test_the_clients_own_log_is_off() -> None:
    """At DEBUG aiokafka prints whole messages; nothing of it is let through, whatever the root logger says."""
    sink = make("bus", KafkaSettings(kind="kafka", bootstrap=("127.0.0.1:1",), topic="any"))
    await sink.start()
    assert not logging.getLogger("aiokafka.producer.producer").isEnabledFor(logging.ERROR)
    assert await sink.send(sample()) == Retry("no broker can be reached")
    await sink.stop(1)
