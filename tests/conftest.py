"""Fixtures every room of the tests may take."""

from __future__ import annotations

from tests.brokers import kafka, kafka_of_the_run

__all__ = ["kafka", "kafka_of_the_run"]
