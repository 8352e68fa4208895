"""Kafka and webhooks away under load, then back: under hold senders keep their mail by 451, under spool postbus does; nobody restarts.

The senders are honest (``senders``): whoever gets a 4xx comes again with the same letter until it has its 250.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from tests.brokers import Kafka, Record
from tests.e2e.conftest import Start
from tests.e2e.harness import tree
from tests.e2e.load import SENDERS, Load, in_order, judge, unchanged
from tests.e2e.published import Published
from tests.e2e.receiver import Receiver, receiving

RETRY = {"first_delay_s": 0.1, "max_delay_s": 0.5, "age_max_s": 600, "attempts_max": 10_000}
KAFKA_TIMES = {"request_timeout_s": 2, "send_timeout_s": 5}


def config(sink: dict[str, Any], acceptance: str, **more: Any) -> dict[str, Any]:
    """Return a configuration with one sink and one route."""
    route = {"name": "everyone", "match": "*", "sinks": "out", "mode": "both", "acceptance": acceptance}
    return tree(sinks={"out": sink}, routes=[route], retry=RETRY, **more)


def kafka_sink(kafka: Kafka, topic: str) -> dict[str, Any]:
    """Return a Kafka sink that finds out soon."""
    return {"kind": "kafka", "bootstrap": [kafka.bootstrap], "topic": topic, **KAFKA_TIMES}


# --- Kafka


async def on_topic(kafka: Kafka, topic: str, at_least: int) -> Published:
    """Return what is on *topic*."""
    return of_records(await kafka.consume(topic, at_least=at_least))


def of_records(records: Sequence[Record]) -> Published:
    """Return what CloudEvents in binary mode carry."""
    published = Published()
    for record in records:
        attributes = {name.removeprefix("ce_"): value.decode() for name, value in record.headers}
        assert record.value is not None
        published.take(attributes, orjson.loads(record.value))
    return published


@pytest.mark.kafka
@pytest.mark.parametrize("power_cut", [pytest.param(False, id="stopped"), pytest.param(True, id="killed")])
async def test_hold_refuses_while_kafka_is_away(start: Start, kafka: Kafka, *, power_cut: bool) -> None:
    """451 while the broker is away, 250 again when it is back, without a restart; every 250 is on the topic."""
    kafka.require_ours()
    topic = await kafka.create_topic()
    postbus = await asyncio.to_thread(start, config(kafka_sink(kafka, topic), "hold"))
    pid, load = postbus.pid, Load(postbus)
    with load.cancelled():
        await load.more()
        await asyncio.to_thread(kafka.kill if power_cut else kafka.stop)
        await load.refusals()
        before = len(load.traffic.acknowledged)
        await load.refusals()
        assert before == len(load.traffic.acknowledged)
        assert 200 == (await asyncio.to_thread(postbus.get, "/readyz")).code
        assert "sink.out" in (await asyncio.to_thread(postbus.get, "/readyz?verbose")).text
        await asyncio.to_thread(kafka.start)
        await load.more()
        await load.end()
    assert {451} == load.traffic.refused.keys()
    judge(await on_topic(kafka, topic, len(load.traffic.acknowledged)), load)
    unchanged(postbus, pid)


@pytest.mark.kafka
async def test_spool_keeps_all_while_kafka_is_away(start: Start, kafka: Kafka) -> None:
    """Nobody is refused while the broker is away; when it is back everything arrives, in order for each recipient."""
    kafka.require_ours()
    topic = await kafka.create_topic()
    postbus = await asyncio.to_thread(start, config(kafka_sink(kafka, topic), "spool"))
    pid, load = postbus.pid, Load(postbus)
    with load.cancelled():
        await load.more()
        await asyncio.to_thread(kafka.kill)
        await asyncio.to_thread(postbus.log.wait, "sink.paused")
        await load.more()
        await asyncio.to_thread(kafka.start)
        await load.more()
        await load.end()
    assert {} == load.traffic.refused
    await asyncio.to_thread(postbus.wait_delivered)
    assert [] != postbus.log.find("sink.resumed")
    published = await on_topic(kafka, topic, len(load.traffic.acknowledged))
    judge(published, load)
    assert [] == published.renamed
    in_order(published, load)
    unchanged(postbus, pid)


@pytest.mark.kafka
async def test_too_few_replicas(start: Start, kafka: Kafka) -> None:
    """While ``min.insync.replicas`` is not met, hold answers 451 and spool keeps; both recover when it is."""
    kafka.require_ours()
    assert kafka.second is not None
    second = kafka.second
    await asyncio.to_thread(second.start)
    try:
        topic = await kafka.create_topic(replication=2, config={"min.insync.replicas": "2"})
        routes = [
            {"name": mode, "match": f"{mode}-*@example.org", "sinks": "out", "mode": "both", "acceptance": mode}
            for mode in ("hold", "spool")
        ]
        tree_of_both = tree(sinks={"out": kafka_sink(kafka, topic)}, routes=routes, retry=RETRY)
        postbus = await asyncio.to_thread(start, tree_of_both)
        pid, hold, spool = postbus.pid, Load(postbus, "hold", 4), Load(postbus, "spool", 4)
        with hold.cancelled(), spool.cancelled():
            await asyncio.gather(hold.more(), spool.more())
            await asyncio.to_thread(second.stop)
            await asyncio.gather(hold.refusals(), spool.more())
            before = len(hold.traffic.acknowledged)
            await asyncio.gather(hold.refusals(), spool.more())
            assert before == len(hold.traffic.acknowledged)
            await asyncio.to_thread(second.start)
            await asyncio.gather(hold.more(), spool.more())
            await asyncio.gather(hold.end(), spool.end())
        assert {451} == hold.traffic.refused.keys()
        assert {} == spool.traffic.refused
        await asyncio.to_thread(postbus.wait_delivered)
        records = await kafka.consume(topic, at_least=len(hold.traffic.acknowledged) + len(spool.traffic.acknowledged))
        for load, name in ((hold, b"hold"), (spool, b"spool")):
            judge(of_records([record for record in records if record.header("ce_subject") == name]), load)
        unchanged(postbus, pid)
    finally:
        await asyncio.to_thread(second.stop)


# --- webhooks


def webhook_sink(receiver: Receiver) -> dict[str, Any]:
    """Return a webhook sink that finds out soon."""
    return {"kind": "webhook", "url": receiver.url, "timeout_s": 0.5, "concurrency": 8}


async def _turn(receiver: Receiver, phase: str) -> None:
    """Change what the receiver does."""
    if phase == "away":
        await receiver.leave()
        return
    if phase == "back":
        receiver.gate.set()
        receiver.mood = "willing"
    elif phase in {"failing", "unavailable", "slow"}:
        receiver.mood = phase  # type: ignore[assignment]
    if receiver._server is None:
        await receiver.listen()


PHASES = ("away", "failing", "unavailable", "slow")


async def test_hold_refuses_while_the_webhook_cannot(start: Start) -> None:
    """A receiver that is away, fails, is unavailable or too slow: 451 in every phase, and 250 again after the last."""
    async with receiving() as receiver:
        postbus = await asyncio.to_thread(start, config(webhook_sink(receiver), "hold"))
        pid, load = postbus.pid, Load(postbus)
        with load.cancelled():
            await load.more()
            for phase in PHASES:
                await _turn(receiver, phase)
                await load.refusals(SENDERS)  # what was under way when it turned has ended
                before, asked = len(load.traffic.acknowledged), receiver.asked
                await load.refusals()
                if phase != "away":  # now and then a mail finds out how it stands
                    await receiver.until(lambda asked=asked: receiver.asked > asked, phase)  # type: ignore[misc]
                assert before == len(load.traffic.acknowledged), phase
            await _turn(receiver, "back")
            await load.more()
            await load.end()
        assert {451} == load.traffic.refused.keys()
        judge(Published().take_structured(receiver.taken), load)
        unchanged(postbus, pid)


async def test_spool_keeps_all_while_the_webhook_cannot(start: Start) -> None:
    """Through the same phases nobody is refused under spool, and everything arrives when the receiver is back."""
    async with receiving() as receiver:
        postbus = await asyncio.to_thread(start, config(webhook_sink(receiver), "spool"))
        pid, load = postbus.pid, Load(postbus)
        with load.cancelled():
            await load.more()
            for phase in PHASES:
                await _turn(receiver, phase)
                asked, refused = receiver.asked, len(postbus.log.find("sink.paused"))
                await load.more()
                if phase == "away":
                    await asyncio.to_thread(postbus.log.wait, "sink.paused", at_least=refused + 1)
                else:
                    await receiver.until(lambda asked=asked: receiver.asked > asked, phase)  # type: ignore[misc]
            await _turn(receiver, "back")
            await load.more()
            await load.end()
        assert {} == load.traffic.refused
        await asyncio.to_thread(postbus.wait_delivered)
        published = Published().take_structured(receiver.taken)
        judge(published, load)
        assert [] == published.renamed
        assert 0 == postbus.status()["spool"]["dead_letters"]
        unchanged(postbus, pid)
