"""Coroutines that are run at once as far as they go."""

from __future__ import annotations

import asyncio
import contextvars

import pytest

from postbus.sinks.kafka.eager import Rest, begin


async def test_what_need_not_wait_is_done_at_once() -> None:
    """Its result is there, its error is raised."""

    async def work(number: int) -> int:
        return 10 // number

    assert begin(work(5)) == 2
    with pytest.raises(ZeroDivisionError):
        begin(work(0))


async def test_what_has_to_wait_goes_on_when_it_is_awaited() -> None:
    """However often it waits, for futures and for turns of the loop, with timers of its own."""
    loop, steps = asyncio.get_running_loop(), list[str]()
    first: asyncio.Future[str] = loop.create_future()

    async def work() -> str:
        steps.append("begun")
        found = await first
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await asyncio.sleep(0.001)
        steps.append("done")
        return found

    rest = begin(work())
    assert isinstance(rest, Rest)
    assert steps == ["begun"]
    loop.call_soon(first.set_result, "x")
    assert await rest == "x"
    assert steps == ["begun", "done"]


async def test_an_error_it_waits_for_is_its_own() -> None:
    """It may handle it, and go on waiting."""
    loop = asyncio.get_running_loop()
    first: asyncio.Future[None] = loop.create_future()

    async def work() -> str:
        try:
            await first
        except OSError:
            await asyncio.sleep(0)
            return "handled"
        return "not raised"

    rest = begin(work())
    assert isinstance(rest, Rest)
    loop.call_soon(first.set_exception, OSError())
    assert await rest == "handled"


@pytest.mark.parametrize("handles", [True, False])
async def test_a_cancellation_reaches_it(handles: bool) -> None:
    """Of the task that awaits what is left, and its clean-up is run."""
    ended = asyncio.Event()

    async def work() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not handles:
                raise
        finally:
            ended.set()
        return "went on"

    async def wait() -> str:
        rest = begin(work())
        assert isinstance(rest, Rest)
        return await rest

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    waiting.cancel()
    if handles:
        assert await waiting == "went on"
    else:
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert ended.is_set()


async def test_a_timeout_ends_it() -> None:
    """As it does whatever is awaited in its place."""

    async def work() -> None:
        await asyncio.Event().wait()

    rest = begin(work())
    assert isinstance(rest, Rest)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await rest


async def test_it_is_the_same_task_and_context() -> None:
    """Before the wait and behind it."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    variable.set("mine")

    async def work() -> list[object]:
        found: list[object] = [asyncio.current_task(), variable.get()]
        await asyncio.sleep(0)
        return [*found, asyncio.current_task(), variable.get()]

    rest = begin(work())
    assert isinstance(rest, Rest)
    task = asyncio.current_task()
    assert await rest == [task, "mine", task, "mine"]
