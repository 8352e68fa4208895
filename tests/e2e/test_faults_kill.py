"""kill -9 at any moment under load: every message that got its 250 is published, whole, under one id; and no restart needs a hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.brokers import Kafka
from tests.e2e import ledger
from tests.e2e.ledger import ACKNOWLEDGED_MIN, Sums

ROUNDS = 20
KAFKA_ROUNDS = 3


def _judge(sums: Sums, rounds: int) -> None:
    assert (0, 0, 0) == (sums.lost, sums.half_written, sums.renamed)
    assert sums.keys_published == sums.keys_acknowledged + sums.keys_published_unacknowledged
    assert sums.events == sums.keys_published + sums.duplicates
    assert rounds * ACKNOWLEDGED_MIN <= sums.letters_acknowledged < sums.letters_sent
    assert sums.pending_at_kill_min > 0


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_twenty_kills_lose_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Twenty kills into a durable file, each with at least 200 letters acknowledged and others pending."""
    sums = await ledger.run_file(tmp_path / "postbus", ROUNDS)
    with capsys.disabled():
        print(f"\nkill ledger, file: {sums}")
    _judge(sums, ROUNDS)


@pytest.mark.slow
@pytest.mark.kafka
@pytest.mark.timeout(300)
async def test_kills_lose_nothing_on_the_way_to_kafka(tmp_path: Path, kafka: Kafka, capsys: pytest.CaptureFixture[str]) -> None:
    """The same with a real broker behind the spool."""
    sums = await ledger.run_kafka(tmp_path / "postbus", KAFKA_ROUNDS, kafka)
    with capsys.disabled():
        print(f"\nkill ledger, Kafka: {sums}")
    _judge(sums, KAFKA_ROUNDS)
