"""How late the event loop is: what /livez asks first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from postbus import telemetry
from postbus.sidecar.status import Check


class Pulse:
    """A heartbeat on the loop. Run ``run`` as a task; ask ``check`` whenever.

    Args:
        interval_s: time between beats.
        clock: monotonic seconds.
    """

    def __init__(self, *, interval_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._due = clock() + interval_s
        self._lag_s = 0.0

    async def run(self) -> None:
        """Beat until cancelled."""
        self._due = self._clock() + self._interval_s
        while True:
            await asyncio.sleep(self._interval_s)
            self.beat()

    def beat(self) -> None:
        """Take the time of one beat."""
        now = self._clock()
        self._lag_s = max(0.0, now - self._due)
        self._due = now + self._interval_s
        telemetry.loop_lagged(lag_s=self._lag_s)

    @property
    def lag_s(self) -> float:
        """How late the last beat was, or the next one already is: whichever is worse."""
        return max(self._lag_s, self._clock() - self._due)

    def check(self, lag_max_s: float) -> Check:
        """Return the check ``loop``: false while the loop is more than *lag_max_s* late."""
        lag_s = self.lag_s
        return Check("loop", lag_s <= lag_max_s, f"{lag_s:.3f} s late, allowed {lag_max_s:g}")
