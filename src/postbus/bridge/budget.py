"""One memory budget for mail on its way to the sinks."""

from __future__ import annotations

import asyncio
from collections import deque

EVENT_COPIES = 2
"""Counted for each event being sent: it, and the request that carries it. The message's own octets are counted once, beside."""


class Budget:
    """Octets that may be in use at once. Whoever asks while nobody has any gets them, however many, so that nothing waits for ever.

    What somebody took can outlive him, for those who come after (``free`` ends it): it counts, but it keeps nobody waiting for ever.
    """

    def __init__(self, limit_octets: int) -> None:
        self.limit_octets = limit_octets
        self.used_octets = 0
        self._takers = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def room_octets(self) -> int:
        """What is left; not below 0."""
        return max(0, self.limit_octets - self.used_octets)

    def try_take(self, octets: int) -> bool:
        """Take *octets* if they are there and nobody waits for them; return whether."""
        if self._waiting or not self._fits(octets):
            return False
        self._take(octets)
        return True

    def force(self, octets: int) -> None:
        """Take *octets* that are in memory already, room or not."""
        self._take(octets)

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
        """Give *octets* back: the taker has done. What he took beyond them stays in use until ``free``."""
        self._takers -= 1
        self.free(octets)

    def free(self, octets: int) -> None:
        """*octets* are not in use any more that a taker took beyond his own."""
        self.used_octets -= octets
        if self._waiting:
            self._serve()

    def _take(self, octets: int) -> None:
        self.used_octets += octets
        self._takers += 1

    def _fits(self, octets: int) -> bool:
        return self.used_octets + octets <= self.limit_octets or not self._takers

    def _serve(self) -> None:
        while self._waiting:
            octets, future = self._waiting[0]
            if not future.done():
                if not self._fits(octets):
                    return
                self._take(octets)
                future.set_result(None)
            self._waiting.popleft()
