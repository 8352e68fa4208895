"""Order among events of one partition key: who comes first goes first, however long it takes to be made ready."""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """A line for each key; those of different keys do not know of each other. Use it on one loop."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}

    def enter(self, key: str) -> Place:
        """Stand at the end of the line of *key*. The place must be left, whatever happens."""
        line = self._lines.get(key)
        if line is None:
            self._lines[key] = deque()
            return Place(self, key, None)
        turn = asyncio.get_running_loop().create_future()
        line.append(turn)
        return Place(self, key, turn)

    def awaited(self, key: str) -> bool:
        """Return whether somebody stands in the line of *key*: if not, whoever is ready need not stand in it."""
        return key in self._lines

    def next(self, key: str) -> None:
        """Whoever was at the head of the line of *key* has left it."""
        line = self._lines[key]
        while line:
            turn = line.popleft()
            if not turn.done():  # else it has left before its turn came
                turn.set_result(None)
                return
        del self._lines[key]


class Place:
    """One's place in a line."""

    __slots__ = ("_key", "_left", "_turn", "_turns")

    def __init__(self, turns: Turns, key: str, turn: asyncio.Future[None] | None) -> None:
        self._turns = turns
        self._key = key
        self._turn = turn
        self._left = False

    @property
    def waits(self) -> bool:
        """Whether somebody may still be ahead."""
        return self._turn is not None and not self._left and not self._turn.done()

    async def reached(self) -> None:
        """Wait until all who came before have left. Returns at once when the place was left."""
        if self._turn is not None and not self._left:
            await self._turn

    def leave(self) -> None:
        """Let the next one go, as soon as the caller waits for something; harmless a second time.

        Whoever leaves before its turn has come, because it failed, was cancelled or will not wait, lets nobody through.
        """
        if self._left:
            return
        self._left = True
        turn = self._turn
        if turn is None or (turn.done() and not turn.cancelled()):
            self._turns.next(self._key)
        else:
            turn.cancel()
