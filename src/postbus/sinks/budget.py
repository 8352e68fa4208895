"""A bound on octets in flight: whoever wants more than is left waits its turn, up to a deadline."""

from __future__ import annotations

import asyncio
from collections import deque

from postbus.event.model import Event

ATTRIBUTES_OCTETS = 1024
"""What an event usually needs beside data and envelope."""


def weight_of(event: Event) -> int:
    """Return about how many octets *event* has when it is sent: known before anything is made of it, so that the budget comes first."""
    return len(event.data) + len(event.envelope) + ATTRIBUTES_OCTETS


class Budget:
    """Octets that may be in flight at once, handed out first come, first served.

    An amount larger than the whole budget is granted when nothing else is in flight: nothing is starved for ever.
    """

    def __init__(self, limit_octets: int) -> None:
        self.limit_octets = limit_octets
        self.used_octets = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, octets: int, timeout_s: float | None) -> bool:
        """Take *octets*, waiting at most *timeout_s* (``None``: until they are there); return whether they were granted.

        The common case does not suspend.
        """
        if self.try_take(octets):
            return True
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((octets, turn))
        try:
            async with asyncio.timeout(timeout_s):
                await turn
        except (TimeoutError, asyncio.CancelledError) as error:
            self._leave(octets, turn)
            if isinstance(error, asyncio.CancelledError):
                raise
            return False
        return True

    def try_take(self, octets: int) -> bool:
        """Take *octets* if they can be had at once, which nobody waits for; return whether they were granted."""
        if self._waiting or not self._fits(octets):
            return False
        self.used_octets += octets
        return True

    def give(self, octets: int) -> None:
        """Give *octets* back and let those who fit now go on."""
        self.used_octets -= octets
        self._admit()

    def _fits(self, octets: int) -> bool:
        return self.used_octets == 0 or self.used_octets + octets <= self.limit_octets

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            octets, turn = self._waiting.popleft()
            if not turn.done():
                self.used_octets += octets
                turn.set_result(None)

    def _leave(self, octets: int, turn: asyncio.Future[None]) -> None:
        """Step out of the queue; what had been granted in the same moment is given back."""
        if turn.done() and not turn.cancelled():
            self.give(octets)
        else:
            self._waiting = deque(entry for entry in self._waiting if entry[1] is not turn)
            self._admit()
