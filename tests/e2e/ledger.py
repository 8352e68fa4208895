"""kill -9 at any moment under load, again and again, with a ledger: ``python -m tests.e2e.ledger --rounds 200 [--sink kafka]``.

A round starts postbus on the spool that the last one left, lets many senders at it over SMTP and LMTP, and kills it when at least
``ACKNOWLEDGED_MIN`` letters have their 250 and others wait for theirs. Nothing is mended between rounds. After the last, postbus
starts once more and delivers what is left; then every key that was acknowledged must have been published, whole, under one event id.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol

import orjson
import psutil
from aiokafka import AIOKafkaConsumer, TopicPartition

from tests.brokers import Kafka, make_kafka
from tests.e2e.harness import Postbus, tree
from tests.e2e.published import Lines, Published
from tests.e2e.senders import Desk, Traffic, send_until, together

ACKNOWLEDGED_MIN = 200
ACKNOWLEDGED_SPREAD = 120
"""The kill comes so much later at most: not always in the same place of a group commit, nor of a delivery."""
SMTP_SENDERS, LMTP_SENDERS = 30, 10
EVENTS_MAX_OCTETS = 200_000_000


class Source(Protocol):
    """Where events come out."""

    async def take(self, published: Published) -> None:
        """Take what came since the last call."""

    async def stop(self) -> None:
        """Let go."""


class FileSource:
    """The file sink's lines."""

    def __init__(self, path: Path) -> None:
        self._lines = Lines(path)

    async def take(self, published: Published) -> None:
        """Take what came since the last call; nobody writes meanwhile, so the file can be cut."""
        published.take_structured(self._lines.take())
        self._lines.discard(EVENTS_MAX_OCTETS)

    async def stop(self) -> None:
        """Nothing is held."""


class TopicSource:
    """The records of a topic with one partition."""

    def __init__(self, consumer: Any, topic: str) -> None:
        self._consumer = consumer
        self._partition = TopicPartition(topic, 0)

    @classmethod
    async def open(cls, kafka: Kafka, topic: str) -> TopicSource:
        """Return a reader of *topic* from its beginning."""
        consumer = AIOKafkaConsumer(topic, bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest", fetch_max_wait_ms=50)
        await consumer.start()
        return cls(consumer, topic)

    async def take(self, published: Published) -> None:
        """Take what came since the last call."""
        end = (await self._consumer.end_offsets([self._partition]))[self._partition]
        while await self._consumer.position(self._partition) < end:
            for records in (await self._consumer.getmany(timeout_ms=1000)).values():
                for record in records:
                    headers = {name.removeprefix("ce_"): value.decode() for name, value in record.headers}
                    published.take(headers, orjson.loads(record.value))

    async def stop(self) -> None:
        """Close the consumer."""
        await self._consumer.stop()


@dataclass(frozen=True, slots=True)
class Sums:
    """The ledger's last line. Letters are mails; keys are accepted recipients, each of which becomes an event."""

    rounds: int
    letters_sent: int
    letters_acknowledged: int
    pending_at_kill_min: int
    keys_acknowledged: int
    keys_published: int
    keys_published_unacknowledged: int
    events: int
    duplicates: int
    lost: int
    half_written: int
    renamed: int
    backlog_max: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Round:
    """One line of the ledger."""

    number: int
    backlog: int
    acknowledged: int
    pending: int
    seconds: float


def configuration(sink: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return postbus's configuration: SMTP and LMTP, everything spooled to one sink, whole mails in the events."""
    listeners = {"mx": {"address": "127.0.0.1:0"}, "lmtp": {"address": "127.0.0.1:0", "protocol": "lmtp"}}
    whole = tree(listeners=listeners, sinks={"out": dict(sink)}, acceptance="spool", **(changes or {}))
    whole["routes"] = [{"name": "everyone", "match": "*", "sinks": "out", "mode": "both"}]
    return whole


async def run(
    folder: Path, rounds: int, *, sink: Mapping[str, Any], source: Source, tell: Callable[[str], None] = print, seed: int = 1
) -> Sums:
    """Do *rounds* kills in *folder* and return the sums. Raises AssertionError as soon as something is not what it should be."""
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    postbus = Postbus(folder, configuration(sink))
    traffic, published, moments = Traffic(), Published(), random.Random(seed)
    desk = Desk("k", seed=seed, big_every=15, mime_every=50)
    lines: list[Round] = []
    orphans: list[psutil.Process] = []
    try:
        for number in range(1, rounds + 1):
            line = await _round(postbus, traffic, desk, number, ACKNOWLEDGED_MIN + moments.randrange(ACKNOWLEDGED_SPREAD), orphans)
            await source.take(published)
            lines.append(line)
            tell(_row(line))
        await asyncio.to_thread(_recover, postbus)
        await source.take(published)
        await asyncio.to_thread(postbus.reap, orphans)
    finally:
        await asyncio.to_thread(postbus.close)
        await source.stop()
    strangers = published.strangers(traffic)
    sums = Sums(
        rounds=rounds,
        letters_sent=len(traffic.sent),
        letters_acknowledged=traffic.letters_acknowledged,
        pending_at_kill_min=min(line.pending for line in lines),
        keys_acknowledged=len(traffic.acknowledged),
        keys_published=len(published.ids),
        keys_published_unacknowledged=len(published.ids.keys() - traffic.acknowledged.keys()),
        events=published.events,
        duplicates=published.duplicates,
        lost=len(published.lost(traffic)),
        half_written=len(strangers),
        renamed=len(published.renamed) + len(published.misnamed(traffic)),
        backlog_max=max(line.backlog for line in lines),
        seconds=round(time.monotonic() - began, 1),
    )
    tell(orjson.dumps(asdict(sums)).decode())
    return sums


async def _round(
    postbus: Postbus, traffic: Traffic, desk: Desk, number: int, acknowledged_min: int, orphans: list[psutil.Process]
) -> Round:
    """Start, load, kill. Children of the killed process may outlive it for a moment: the next start must do beside them."""
    began = time.monotonic()
    await asyncio.to_thread(postbus.start)
    await asyncio.to_thread(postbus.reap, orphans)
    assert [] == postbus.log.find("spool.damaged")
    backlog = int(postbus.log.find("spool.opened")[0]["messages"])
    acknowledged, unheard = traffic.letters_acknowledged, len(traffic.unheard)
    enough = _Enough(traffic, acknowledged + acknowledged_min)
    letters = (desk.letter() for _ in repeat(None))
    senders = asyncio.create_task(together(_senders(postbus, traffic, letters)))
    await traffic.until(enough, f"{acknowledged_min} acknowledged letters\n{postbus.log.tail()}")
    orphans[:] = await asyncio.to_thread(_kill, postbus)
    await senders
    line = Round(
        number, backlog, traffic.letters_acknowledged - acknowledged, len(traffic.unheard) - unheard, round(time.monotonic() - began, 2)
    )
    assert line.pending > 0, "the kill landed while no reply was pending"
    return line


class _Enough:
    """Whether it is time to kill, looked at after every reply."""

    def __init__(self, traffic: Traffic, letters: int) -> None:
        self._traffic = traffic
        self._letters = letters

    def __call__(self) -> bool:
        traffic = self._traffic
        # Keys are at least as many as letters: the dear count comes last.
        return bool(traffic.pending) and len(traffic.acknowledged) >= self._letters and traffic.letters_acknowledged >= self._letters


def _senders(postbus: Postbus, traffic: Traffic, letters: Iterator[Any]) -> Iterator[Any]:
    for _ in range(SMTP_SENDERS):
        yield send_until(traffic, postbus.address("mx"), letters)
    for _ in range(LMTP_SENDERS):
        yield send_until(traffic, postbus.address("lmtp"), letters, lmtp=True)


def _kill(postbus: Postbus) -> list[psutil.Process]:
    """End the process as a power cut would, whatever its senders are at; return its children."""
    assert postbus.process is not None
    children: list[psutil.Process] = psutil.Process(postbus.pid).children(recursive=True)
    postbus.process.kill()
    postbus.process.wait()
    return children


def _recover(postbus: Postbus) -> None:
    """Start once more, without a hand, and let everything be delivered."""
    postbus.start()
    postbus.wait_delivered(60)
    status = postbus.status()["spool"]
    assert (0, 0) == (status["damaged"], status["dead_letters"]), status
    assert 0 == postbus.terminate()


def _row(line: Round) -> str:
    return (
        f"round {line.number:3}: {line.backlog:4} found, {line.acknowledged} acknowledged, {line.pending:2} pending, {line.seconds:.2f} s"
    )


async def run_file(folder: Path, rounds: int, **more: Any) -> Sums:
    """Run with the file sink, which acknowledges after fsync."""
    path = folder / "events.jsonl"
    return await run(folder, rounds, sink={"kind": "file", "path": str(path)}, source=FileSource(path), **more)


async def run_kafka(folder: Path, rounds: int, kafka: Kafka, **more: Any) -> Sums:
    """Run with a topic of *kafka*."""
    topic = await kafka.create_topic()
    sink = {"kind": "kafka", "bootstrap": [kafka.bootstrap], "topic": topic}
    return await run(folder, rounds, sink=sink, source=await TopicSource.open(kafka, topic), **more)


def sound(sums: Sums) -> bool:
    """Say whether the promises hold."""
    return (
        sums.lost == sums.half_written == sums.renamed == 0
        and sums.pending_at_kill_min > 0
        and sums.letters_acknowledged >= sums.rounds * ACKNOWLEDGED_MIN
    )


def main(arguments: Sequence[str]) -> int:
    """Run the command line; return 0 when nothing was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.ledger", description="Kill postbus under load and count what was lost.")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--sink", choices=("file", "kafka"), default="file")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    said = parser.parse_args(arguments)
    print(f"seed {said.seed}, process {os.getpid()}, {psutil.cpu_count()} processors")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="postbus-ledger-", ignore_cleanup_errors=True)))
        if said.sink == "file":
            sums = asyncio.run(run_file(folder / "postbus", said.rounds, seed=said.seed))
        else:
            (folder / "kafka").mkdir()
            kafka = make_kafka(folder / "kafka")
            kafka.start()
            stack.callback(kafka.stop)
            sums = asyncio.run(run_kafka(folder / "postbus", said.rounds, kafka, seed=said.seed))
    print("nothing was lost" if sound(sums) else "THE PROMISE WAS BROKEN")
    return 0 if sound(sums) else 1


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
