"""The time the bridge lives by: one small interface, so that tests can turn the hands themselves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that is due later."""

    def cancel(self) -> None:
        """Forget the call; harmless when it was made already."""


class Clock(Protocol):
    """What the bridge asks of time."""

    def now_ms(self) -> int:
        """Return milliseconds since the Unix epoch, as the machine's clock says now: for what people read, and for ages."""

    def steady_ms(self) -> int:
        """Return milliseconds since the Unix epoch, as told at the start and counted on: for pauses. Nobody can set it."""

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call *callback* on the loop once *delay_s* seconds have passed."""


_STARTED_MS = (time.time_ns() - time.monotonic_ns()) // 1_000_000
"""One for all clocks of the process, so that they agree."""


class LoopClock:
    """The real one: the wall clock, and the running loop's timers."""

    def now_ms(self) -> int:
        """Return what the machine's clock says."""
        return time.time_ns() // 1_000_000

    def steady_ms(self) -> int:
        """Return the time of the start and what has passed since."""
        return _STARTED_MS + time.monotonic_ns() // 1_000_000

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call *callback* on the running loop once *delay_s* seconds have passed."""
        return asyncio.get_running_loop().call_later(delay_s, callback)
