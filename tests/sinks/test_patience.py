"""One timer for all who wait equally long."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from postbus.sinks.kafka.patience import Patience


def waiter() -> asyncio.Future[None]:
    """Something to wait for."""
    return asyncio.get_running_loop().create_future()


def now_s() -> float:
    """The loop's clock."""
    return asyncio.get_running_loop().time()


async def test_what_is_done_in_time_ends_the_wait() -> None:
    """And leaves nothing behind but the one timer."""
    patience, one = Patience(), waiter()
    asyncio.get_running_loop().call_soon(one.set_result, None)
    await patience.wait(one, now_s() + 60)
    assert not patience._deadlines_s
    patience._timer.cancel()  # type: ignore[union-attr]


async def test_each_waits_as_long_as_he_may() -> None:
    """Whatever the order in which they come; who is cancelled is forgotten."""
    patience, ended = Patience(), dict[float, float]()
    began_s = now_s()

    async def wait(delay_s: float) -> None:
        await patience.wait(waiter(), began_s + delay_s)
        ended[delay_s] = now_s() - began_s

    tasks = [asyncio.create_task(wait(delay_s)) for delay_s in (0.1, 0.05, 0.15, 0.05, 0.0, -1.0)]
    gone = asyncio.create_task(patience.wait(waiter(), began_s + 0.01))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(*tasks)
    assert list(ended) == sorted(ended)
    assert all(delay_s - 0.002 <= after_s for delay_s, after_s in ended.items())  # a loop's clock may be a millisecond coarse
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert not patience._deadlines_s
    assert patience._timer is None


async def test_many_waits_have_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as later ones end later."""
    patience, made = Patience(), list[float]()
    loop = asyncio.get_running_loop()
    real = loop.call_at

    def call_at(when: float, *rest: Any, **more: Any) -> asyncio.TimerHandle:
        made.append(when)
        return real(when, *rest, **more)

    monkeypatch.setattr(loop, "call_at", call_at)
    for number in range(100):
        one = waiter()
        one.set_result(None)
        await patience.wait(one, number + loop.time() + 60)
    assert 1 == len(made)
    patience._timer.cancel()  # type: ignore[union-attr]
