"""Events as Kafka records: a 250 rests on what the in-sync replicas acknowledged.

- ``record``: event -> record, pure.   ``outcomes``: aiokafka's exceptions -> what the caller does next.
- ``connection``: how a client is made, what is asked of the cluster first, how a client is ended.
- ``sink``: the sink and the supervisor of its client.

The only room that imports aiokafka.
"""

from __future__ import annotations

from postbus.sinks.kafka.sink import KafkaSink
from postbus.sinks.settings import KafkaSettings

__all__ = ["KafkaSink", "make"]


def make(name: str, settings: KafkaSettings) -> KafkaSink:
    """Return the sink *name*, not yet started (entry point ``postbus.sinks``)."""
    return KafkaSink(name, settings)
