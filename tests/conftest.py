"""Fixtures every room of the tests may take."""

from __future__ import annotations

from tests.brokers import kafka, kafka_of_the_run
from tests.builds import builds, compiled_tree, image

__all__ = ["builds", "compiled_tree", "image", "kafka", "kafka_of_the_run"]
