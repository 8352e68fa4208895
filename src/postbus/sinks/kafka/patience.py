"""One timer for all who wait equally long."""

from __future__ import annotations

import asyncio


class Patience:
    """Ends the waiting for futures whose time is over. Most are done long before: then it costs a dictionary's entry, not a timer."""

    def __init__(self) -> None:
        self._deadlines_s: dict[asyncio.Future[None], float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._look_at_s = 0.0

    async def wait(self, waiter: asyncio.Future[None], deadline_s: float) -> None:
        """Return when *waiter* is done; it is set at *deadline_s*, by the loop's clock, if by nobody else."""
        self._deadlines_s[waiter] = deadline_s
        if self._timer is None or deadline_s < self._look_at_s:
            self._look_later(deadline_s)
        try:
            await waiter
        finally:
            del self._deadlines_s[waiter]

    def _look_later(self, look_at_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._look_at_s = look_at_s
        self._timer = asyncio.get_running_loop().call_at(look_at_s, self._look)

    def _look(self) -> None:
        """End what is due, and come again for the next. About once in a timeout, so it may look at all."""
        self._timer = None
        left_s = []
        for waiter, deadline_s in self._deadlines_s.items():
            if deadline_s > self._look_at_s:
                left_s.append(deadline_s)
            elif not waiter.done():
                waiter.set_result(None)
        if left_s:
            self._look_later(min(left_s))
