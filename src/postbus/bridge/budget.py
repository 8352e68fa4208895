"""One memory budget for mail on its way to the sinks."""

from __future__ import annotations

import asyncio
from collections import deque

COPIES = 3
"""Counted for each message: its octets, its event, the request that carries it."""


class Budget:
    """Octets that may be in use at once. What is larger than all of it passes alone, so that nothing waits for ever."""

    def __init__(self, limit_octets: int) -> None:
        self.limit_octets = limit_octets
        self.used_octets = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def room_octets(self) -> int:
        """What is left; not below 0."""
        return max(0, self.limit_octets - self.used_octets)

    def try_take(self, octets: int) -> bool:
        """Take *octets* if they are there and nobody waits for them; return whether."""
        if self._waiting or not self._fits(octets):
            return False
        self.used_octets += octets
        return True

    def force(self, octets: int) -> None:
        """Take *octets* that are in memory already, room or not."""
        self.used_octets += octets

    async def take(self, octets: int) -> None:
        """Take *octets* as soon as they are there; first come, first served."""
        if self.try_take(octets):
            return
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((octets, future))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.give(octets)  # it came in the same moment
            self._serve()
            raise

    def give(self, octets: int) -> None:
        """Give *octets* back."""
        self.used_octets -= octets
        if self._waiting:
            self._serve()

    def _fits(self, octets: int) -> bool:
        return self.used_octets + octets <= self.limit_octets or self.used_octets <= 0

    def _serve(self) -> None:
        while self._waiting:
            octets, future = self._waiting[0]
            if not future.done():
                if not self._fits(octets):
                    return
                self.used_octets += octets
                future.set_result(None)
            self._waiting.popleft()
