"""Turns: order within a key, whoever gives up, and nobody of another key waits."""

from __future__ import annotations

import asyncio

import pytest

from postbus.sinks.turns import Place, Turns


class Walker:
    """Waits in a line until it may go, and says so."""

    def __init__(self, turns: Turns, went: list[str], name: str, key: str = "k") -> None:
        self.place: Place = turns.enter(key)
        self.ready = asyncio.Event()
        self.task = asyncio.ensure_future(self._walk(went, name))

    async def _walk(self, went: list[str], name: str) -> None:
        try:
            await self.ready.wait()
            await self.place.reached()
            went.append(name)
        finally:
            self.place.leave()


async def settle() -> None:
    """Let everybody who can go, go."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("order", ["abc", "cba", "bca"])
async def test_who_is_ready_first_still_waits(order: str) -> None:
    """The order of entering is the order of going, in whichever order they become ready."""
    turns, went = Turns(), list[str]()
    walkers = {name: Walker(turns, went, name) for name in "abc"}
    for name in order:
        walkers[name].ready.set()
        await settle()
    assert ["a", "b", "c"] == went
    assert {} == turns._lines


async def test_another_key_does_not_wait() -> None:
    """A key that is held up holds up nobody else."""
    turns, went = Turns(), list[str]()
    slow, other = Walker(turns, went, "slow"), Walker(turns, went, "other", key="o")
    other.ready.set()
    await settle()
    assert ["other"] == went
    slow.ready.set()
    await settle()
    assert ["other", "slow"] == went


@pytest.mark.parametrize("gone", ["a", "b", "c", "ab", "bc", "abc"])
async def test_who_is_cancelled_lets_the_others_go(gone: str) -> None:
    """A cancelled one, at the head or behind it, is passed over; the rest keep their order."""
    turns, went = Turns(), list[str]()
    walkers = {name: Walker(turns, went, name) for name in "abcd"}
    for name in "bcd":
        walkers[name].ready.set()
    await settle()
    for name in gone:
        walkers[name].task.cancel()
    await settle()
    walkers["a"].ready.set()
    await settle()
    assert [name for name in "abcd" if name not in gone] == went
    assert {} == turns._lines


async def test_who_leaves_early_goes_at_once() -> None:
    """Leaving before one's turn neither waits nor lets those behind overtake those ahead; leaving twice is harmless."""
    turns, went = Turns(), list[str]()
    ahead, early, behind = (Walker(turns, went, name) for name in ("ahead", "early", "behind"))
    early.place.leave()
    early.place.leave()
    early.ready.set()
    behind.ready.set()
    await settle()
    assert ["early"] == went
    ahead.ready.set()
    await settle()
    assert ["early", "ahead", "behind"] == went
    assert {} == turns._lines


async def test_cancelled_in_the_moment_of_its_turn() -> None:
    """Whoever is cancelled when its turn has just come passes it on."""
    turns, went = Turns(), list[str]()
    first, second, third = (Walker(turns, went, name) for name in ("first", "second", "third"))
    second.ready.set()
    third.ready.set()
    await settle()
    first.place.leave()  # second's turn has come, and second has not run yet
    second.task.cancel()
    await settle()
    assert ["third"] == went
    first.task.cancel()
    await settle()
    assert {} == turns._lines
