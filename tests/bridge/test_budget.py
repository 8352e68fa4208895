"""One memory budget."""

from __future__ import annotations

import asyncio

from postbus.bridge.budget import Budget


def test_within_the_limit() -> None:
    """What fits is taken; what does not is not; what is given back fits again."""
    budget = Budget(10)
    assert budget.try_take(6)
    assert not budget.try_take(5)
    assert budget.room_octets == 4
    budget.give(6)
    assert budget.try_take(10)


def test_larger_than_all() -> None:
    """What is larger than the whole budget passes alone, and nothing passes beside it."""
    budget = Budget(10)
    assert budget.try_take(99)
    assert (False, 0) == (budget.try_take(1), budget.room_octets)
    budget.force(5)
    budget.give(99)
    budget.give(5)
    assert budget.room_octets == 10


async def test_what_outlives_its_taker() -> None:
    """It counts until it is free, but nobody waits for ever for those who keep it for him."""
    budget = Budget(10)
    assert budget.try_take(9)
    assert not budget.try_take(8)
    waiting = asyncio.create_task(budget.take(8))
    await asyncio.sleep(0)
    budget.give(4)
    await waiting
    assert (13, False) == (budget.used_octets, budget.try_take(1))
    budget.free(5)
    assert budget.try_take(2)


async def test_first_come_first_served() -> None:
    """Those who wait are served in order; a small one does not overtake a large one."""
    budget = Budget(10)
    await budget.take(8)
    order: list[int] = []

    async def take(octets: int) -> None:
        await budget.take(octets)
        order.append(octets)

    tasks = [asyncio.create_task(take(octets)) for octets in (9, 1, 2)]
    await asyncio.sleep(0)
    assert not budget.try_take(1)
    budget.give(8)
    await asyncio.wait(tasks[:2])
    assert [9, 1] == order
    budget.give(9)
    await tasks[2]
    assert [9, 1, 2] == order


async def test_whoever_leaves_the_line_holds_nobody_up() -> None:
    """Cancelled while waiting, or in the very moment of being served: nothing is lost."""
    budget = Budget(10)
    await budget.take(10)
    first, second = (asyncio.create_task(budget.take(10)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    budget.give(10)
    second.cancel()
    await asyncio.wait([second])
    assert (True, True, 0) == (first.cancelled(), second.cancelled(), budget.used_octets)
