"""Time limits by one timer: as ``asyncio.timeout_at``, whose cases these are too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, suppress
from types import TracebackType
from typing import Any

import pytest

from postbus.sinks.deadlines import Deadlines


def for_ever() -> asyncio.Future[None]:
    """What never comes."""
    return asyncio.get_running_loop().create_future()


def now_s() -> float:
    """The loop's clock."""
    return asyncio.get_running_loop().time()


async def test_what_comes_in_time_ends_the_wait() -> None:
    """And leaves nothing behind but the one timer."""
    deadlines, one = Deadlines(), for_ever()
    asyncio.get_running_loop().call_soon(one.set_result, None)
    with deadlines.until(now_s() + 60):
        await one
    assert not deadlines._running
    deadlines._timer.cancel()  # type: ignore[union-attr]


async def test_each_waits_as_long_as_it_may() -> None:
    """Whatever the order in which they come; who is cancelled is forgotten."""
    deadlines, ended = Deadlines(), dict[float, float]()
    began_s = now_s()

    async def wait(delay_s: float) -> None:
        with pytest.raises(TimeoutError), deadlines.until(began_s + delay_s):
            await for_ever()
        ended[delay_s] = now_s() - began_s

    tasks = [asyncio.create_task(wait(delay_s)) for delay_s in (0.1, 0.05, 0.15, 0.05, 0.0, -1.0)]
    gone = asyncio.create_task(wait(0.01))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(*tasks)
    assert list(ended) == sorted(ended)
    assert all(delay_s - 0.002 <= after_s for delay_s, after_s in ended.items())  # a loop's clock may be a millisecond coarse
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert not deadlines._running
    assert deadlines._timer is None


async def test_many_waits_have_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as later ones end later."""
    deadlines, made = Deadlines(), list[float]()
    loop = asyncio.get_running_loop()
    real = loop.call_at

    def call_at(when: float, *rest: Any, **more: Any) -> asyncio.TimerHandle:
        made.append(when)
        return real(when, *rest, **more)

    monkeypatch.setattr(loop, "call_at", call_at)
    for number in range(100):
        with deadlines.until(number + loop.time() + 60):
            pass
    assert 1 == len(made)
    deadlines._timer.cancel()  # type: ignore[union-attr]


Until = Callable[[float], AbstractContextManager[None]]


async def inner_and_outer(until: Until) -> str:
    """The outer limit's end is not taken for the inner's."""
    try:
        with until(now_s() + 0.01):
            try:
                with until(now_s() + 60):
                    await for_ever()
            except TimeoutError:
                return "inner"
    except TimeoutError:
        return "outer"
    return "none"


async def cancelled_in_the_same_turn(until: Until) -> str:
    """Somebody else wants the task to end too: it ends."""
    task = asyncio.current_task()
    assert task is not None
    try:
        with until(now_s() - 1):
            asyncio.get_running_loop().call_soon(task.cancel)
            await for_ever()
    except TimeoutError:
        return "over"
    except asyncio.CancelledError:
        task.uncancel()
        return "cancelled"
    return "none"


async def cancelled_before(until: Until) -> str:
    """A cancellation that the task lives with, before its limit, does not hide the limit's."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    try:
        with until(now_s() + 0.01):
            await for_ever()
    except TimeoutError:
        return "over"
    finally:
        task.uncancel()
    return "none"


async def fails_on_its_own(until: Until) -> str:
    """What the body raises is what is raised, though its time was over."""
    try:
        with until(now_s() + 0.01):
            try:
                await for_ever()
            except asyncio.CancelledError:
                raise ValueError("its own") from None
    except ValueError:
        task = asyncio.current_task()
        assert task is not None
        return f"its own, {task.cancelling()} cancellations left"
    return "none"


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        pytest.param(inner_and_outer, "outer", id="inner and outer"),
        pytest.param(cancelled_in_the_same_turn, "cancelled", id="cancelled in the same turn"),
        pytest.param(cancelled_before, "over", id="cancelled before"),
        pytest.param(fails_on_its_own, "its own, 0 cancellations left", id="fails on its own"),
    ],
)
async def test_as_the_standard_library(case: Callable[[Until], Any], expected: str) -> None:
    """The same body, with our limits and with asyncio's, ends alike."""
    deadlines = Deadlines()

    @contextmanager
    def ours(deadline_s: float) -> Any:
        with deadlines.until(deadline_s):
            yield

    assert expected == await case(ours)
    assert not deadlines._running
    assert expected == await case(_Asyncio)


class _Asyncio:
    """``asyncio.timeout_at`` for ``with``: entering and leaving it never waits."""

    def __init__(self, deadline_s: float) -> None:
        self._timeout = asyncio.timeout_at(deadline_s)

    def __enter__(self) -> None:
        _at_once(self._timeout.__aenter__())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _at_once(self._timeout.__aexit__(kind, error, trace))


def _at_once(work: Any) -> None:
    try:
        work.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits")


async def test_after_a_stall_all_that_is_overdue_ends_at_once() -> None:
    """Not one by one, each in a turn of its own; but in order, and those of one deadline as they came."""
    deadlines, began_s, ended = Deadlines(), now_s(), list[tuple[int, int]]()

    async def wait(delay_ms: int, number: int) -> None:
        with pytest.raises(TimeoutError), deadlines.until(began_s + delay_ms / 1000):
            await for_ever()
        ended.append((delay_ms, number))

    tasks = [asyncio.create_task(wait(delay_ms, number)) for delay_ms in range(20, 0, -1) for number in (1, 2)]
    await asyncio.sleep(0)
    time.sleep(0.05)  # the stall itself: the loop does nothing meanwhile
    while not tasks[0].done():
        await asyncio.sleep(0)
    assert all(task.done() for task in tasks)
    assert sorted(ended) == ended


async def test_it_needs_a_task() -> None:
    """Outside of one nobody could be ended."""
    refused: list[str] = []

    def enter() -> None:
        try:
            with Deadlines().until(0):
                pass
        except RuntimeError as error:
            refused.append(str(error))

    asyncio.get_running_loop().call_soon(enter)
    await asyncio.sleep(0)
    assert ["a time limit needs a task to end"] == refused
