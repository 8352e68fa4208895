"""How full the spool is, by its bounds."""

from __future__ import annotations

import pytest

from postbus.bridge.spool.bounds import Bounds
from postbus.bridge.spool.records import Numbers
from postbus.bridge.spool_settings import SpoolSettings

MIB = 1024 * 1024
BOUNDS = Bounds(SpoolSettings(max_octets=10 * MIB, max_messages=100, dead_letters_max=10))


@pytest.mark.parametrize(
    ("octets", "spilled", "messages", "letters", "expected"),
    [
        pytest.param(0, 0, 0, 0, 0.0, id="empty"),
        pytest.param(3 * MIB, 2 * MIB, 10, 0, 0.5, id="octets, those on their way too"),
        pytest.param(0, 0, 90, 0, 0.9, id="messages"),
        pytest.param(0, 0, 0, 10, 1.0, id="dead letters"),
    ],
)
def test_the_fullest_part_counts(octets: int, spilled: int, messages: int, letters: int, expected: float) -> None:
    """From 0 to 1, where nothing more is taken."""
    numbers = Numbers(octets=octets, spilled_octets=spilled, messages=messages, dead_letters={"kafka": letters}, free_octets=1 << 40)
    assert expected == BOUNDS.load(numbers)
    assert (BOUNDS.exceeded(numbers, 0) is None) == (expected < 1)
