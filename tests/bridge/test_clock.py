"""The real clock."""

from __future__ import annotations

import asyncio
import time

from postbus.bridge.clock import LoopClock


async def test_wall_clock_and_timers() -> None:
    """Time is the wall's in milliseconds; calls are made on the loop, unless cancelled."""
    clock = LoopClock()
    assert abs(clock.now_ms() - time.time() * 1000) < 1000
    called = asyncio.Event()
    missed: list[int] = []
    clock.call_later(0, lambda: missed.append(1)).cancel()
    clock.call_later(0.001, called.set)
    async with asyncio.timeout(5):
        await called.wait()
    assert [] == missed
