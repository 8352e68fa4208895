"""How a client of the cluster is made, what the cluster is asked before mail rests on it, and how a client is ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from aiokafka import AIOKafkaProducer, errors
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.client import collect_hosts, create_conn
from aiokafka.partitioner import murmur2

from postbus.sinks.settings import KafkaSettings
from postbus.sinks.tls import client_context

METADATA_MAX_AGE_MS = 60_000
"""Default 5 min: leaders that moved quietly would be noticed late."""
CONNECTIONS_MAX_IDLE_MS = 180_000
"""Below the usual 240 s of cloud load balancers, which drop idle connections silently; the broker's own limit is 10 min."""
MIN_INSYNC = "min.insync.replicas"
MAX_MESSAGE = "max.message.bytes"


@dataclass(frozen=True, slots=True)
class Topic:
    """What the cluster says of a topic; ``None``: it did not say (no right to ask), or there is no such topic.

    Attributes:
        exists: the cluster knows it.
        replication: copies of its least copied partition.
        min_insync: ``min.insync.replicas``; Kafka caps it at the number of replicas.
        message_max_octets: ``max.message.bytes``: largest batch the topic takes.
    """

    name: str
    exists: bool = True
    replication: int | None = None
    min_insync: int | None = None
    message_max_octets: int | None = None

    @property
    def copies_at_least(self) -> int | None:
        """Return how many brokers hold a record when it is acknowledged (acks=all), or ``None`` when nobody said."""
        known = [number for number in (self.replication, self.min_insync) if number is not None]
        return min(known) if len(known) == 2 or 1 in known else None


def options(settings: KafkaSettings) -> dict[str, Any]:
    """Return what every client of the cluster is made with: reads secrets and certificates, so call it in a thread.

    Raises:
        SecretMissingError: a secret is not where it should be.
        OSError: a certificate cannot be read.
    """
    found: dict[str, Any] = {"client_id": settings.client_id, "request_timeout_ms": int(settings.request_timeout_s * 1000)}
    protocol = "SSL" if settings.tls is not None else "PLAINTEXT"
    if settings.tls is not None:
        found["ssl_context"] = client_context(settings.tls)
    if settings.sasl is not None:
        protocol = "SASL_SSL" if settings.tls is not None else "SASL_PLAINTEXT"
        found["sasl_mechanism"] = settings.sasl.mechanism
        found["sasl_plain_username"] = settings.sasl.username
        found["sasl_plain_password"] = settings.sasl.password.read()
    return {**found, "security_protocol": protocol}


async def knock(settings: KafkaSettings, opts: Mapping[str, Any]) -> None:
    """Connect to the first broker that answers, and leave.

    aiokafka reports every failure to start as "unable to bootstrap", which tells an operator nothing; this raises the
    last broker's real reason (refused, certificate, password).
    """
    last: BaseException = errors.NoBrokersAvailable()
    for host, port, _ in collect_hosts(list(settings.bootstrap)):
        try:
            connection = await create_conn(host, port, **opts)
        except (OSError, TimeoutError, errors.KafkaError) as error:
            last = error
            continue
        connection.close()
        return
    raise last


async def describe(settings: KafkaSettings, opts: Mapping[str, Any], names: Sequence[str]) -> list[Topic]:
    """Return what the cluster says of the topics *names*."""
    admin = AIOKafkaAdminClient(bootstrap_servers=list(settings.bootstrap), **opts)
    await admin.start()
    try:
        described = await admin.describe_topics(list(names))
        wanted = {MIN_INSYNC: None, MAX_MESSAGE: None}
        resources = [ConfigResource(ConfigResourceType.TOPIC, name, configs=wanted) for name in names]
        configured = await admin.describe_configs(resources)
    finally:
        await admin.close()
    configs = {row[3]: _numbers(row[4]) for answer in configured for row in answer.resources if row[0] == 0}
    return [_topic(row, configs.get(row["topic"], {})) for row in described]


def partition_of(key: bytes, partitions: Sequence[int], available: Sequence[int]) -> int:
    """Return the partition for *key*: the one that Java's client chooses, as aiokafka's does, but reckoned once for each key.

    Its hash is plain Python and takes 6 us; mail goes to the same recipients again and again. *available* does not matter: order does.
    """
    del available
    return partitions[(_hash_of(key) & 0x7FFF_FFFF) % len(partitions)]


_hash_of: Callable[[bytes], int] = lru_cache(maxsize=4096)(murmur2)


def _numbers(entries: Sequence[Sequence[Any]]) -> dict[str, int]:
    """Return the values asked for from a DescribeConfigs answer (rows of name, value, ...)."""
    return {entry[0]: int(entry[1]) for entry in entries if entry[0] in (MIN_INSYNC, MAX_MESSAGE) and str(entry[1]).isdecimal()}


def _topic(row: Mapping[str, Any], config: Mapping[str, int]) -> Topic:
    """Return one topic of a Metadata answer."""
    exists = row["error_code"] != errors.UnknownTopicOrPartitionError.errno
    replicas = [len(partition["replicas"]) for partition in row["partitions"]]
    return Topic(row["topic"], exists, min(replicas) if replicas else None, config.get(MIN_INSYNC), config.get(MAX_MESSAGE))


async def open_producer(
    settings: KafkaSettings, opts: Mapping[str, Any], record_max_octets: int, batch_max_octets: int
) -> AIOKafkaProducer:
    """Return a started producer.

    ``acks=all`` is not a setting. Batches are as large as records may be: with aiokafka's default of 16 KiB every larger mail
    would be a batch of its own, and one batch per partition is in flight.
    """
    producer = AIOKafkaProducer(
        bootstrap_servers=list(settings.bootstrap),
        acks="all",
        enable_idempotence=settings.idempotence,
        linger_ms=settings.linger_ms,
        compression_type=None if settings.compression == "none" else settings.compression,
        max_request_size=record_max_octets,
        max_batch_size=batch_max_octets,
        metadata_max_age_ms=METADATA_MAX_AGE_MS,
        connections_max_idle_ms=CONNECTIONS_MAX_IDLE_MS,
        partitioner=partition_of,
        **opts,
    )
    try:
        await producer.start()
    except BaseException:
        await producer.stop()
        raise
    return producer


async def discard(producer: AIOKafkaProducer, timeout_s: float) -> None:
    """End *producer* now: what it still holds is failed, not sent.

    aiokafka has no such call: ``stop()`` waits for every batch without a bound (aiokafka#1101). So its records are failed first
    and its sender cancelled in the same breath, before it could send what nobody waits for any more; then closing its connections
    ends the requests in flight. Reaches into aiokafka, which is pinned to one minor version for that reason.
    """
    producer._message_accumulator.fail_all(errors.ProducerClosed())  # noqa: SLF001
    sender = producer._sender.sender_task  # noqa: SLF001
    if sender is not None:
        sender.cancel()
    await producer.client.close()
    closing = asyncio.ensure_future(producer.stop())
    await asyncio.wait((closing,), timeout=timeout_s)
    closing.cancel()
    # A sender that ends with an error of its own (a batch failed under its hands) has nothing more to tell.
    await asyncio.gather(closing, return_exceptions=True)
