"""The bound on octets in flight."""

from __future__ import annotations

import asyncio

import pytest

from postbus.sinks.budget import Budget


async def test_what_fits_is_granted_at_once() -> None:
    """No suspension while there is room."""
    budget = Budget(10)
    taking = budget.take(10, 1)
    with pytest.raises(StopIteration) as done:
        taking.send(None)
    assert done.value.value is True
    assert budget.used_octets == 10


async def test_what_does_not_fit_waits_its_turn() -> None:
    """First come, first served, also for a small one behind a large one."""
    budget = Budget(10)
    assert await budget.take(8, 1)
    order: list[str] = []

    async def take(name: str, octets: int) -> None:
        assert await budget.take(octets, 5)
        order.append(name)

    tasks = [asyncio.create_task(take("large", 9)), asyncio.create_task(take("small", 1))]
    await asyncio.sleep(0)
    assert order == []
    budget.give(8)
    await asyncio.gather(*tasks)
    assert order == ["large", "small"]


async def test_the_deadline_ends_the_waiting() -> None:
    """Refused in time, out of the queue, and those behind are let through."""
    budget = Budget(10)
    assert await budget.take(8, 1)
    behind = asyncio.create_task(budget.take(2, 5))
    refused = asyncio.create_task(budget.take(5, 0.01))
    assert await behind
    assert not await refused
    assert budget.used_octets == 10


async def test_one_that_is_too_large_goes_alone() -> None:
    """More than the whole budget is granted when nothing else is in flight."""
    budget = Budget(10)
    assert await budget.take(50, 1)
    assert not await budget.take(1, 0.01)
    budget.give(50)
    assert await budget.take(1, 1)


async def test_who_is_cancelled_leaves_nothing_behind() -> None:
    """Cancelled in the queue, or in the very turn in which it was granted."""
    budget = Budget(10)
    assert await budget.take(10, 1)
    waiting = asyncio.create_task(budget.take(10, 5))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    granted = asyncio.create_task(budget.take(10, 5))
    await asyncio.sleep(0)
    budget.give(10)
    granted.cancel()
    await asyncio.gather(granted, return_exceptions=True)
    assert budget.used_octets == 0
