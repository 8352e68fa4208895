"""The spool's thread."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import pytest

from postbus.bridge.spool import SpoolFailed, SpoolFull
from postbus.bridge.spool.writer import Writer


async def test_jobs_run_on_the_thread_in_order() -> None:
    """Jobs run off the loop, one after another, and their results come back to it."""
    writer = Writer()
    order: list[str] = []

    def job(name: str) -> str:
        order.append(name)
        return threading.current_thread().name

    results = await asyncio.gather(*(writer.run(partial(job, name)) for name in "abc"))
    assert (["a", "b", "c"], ["postbus-spool"] * 3) == (order, results)
    await writer.stop()


async def test_faults_come_back() -> None:
    """A fault of the spool is raised where the job was asked for."""
    writer = Writer()

    def fail() -> None:
        raise SpoolFull("full")

    with pytest.raises(SpoolFull, match="full"):
        await writer.run(fail)
    await writer.stop()


async def test_a_bug_does_not_end_the_thread() -> None:
    """An exception nobody foresaw is a failed spool, and the next job runs."""
    writer = Writer()
    with pytest.raises(SpoolFailed, match="ZeroDivisionError"):
        await writer.run(lambda: 1 // 0)
    assert await writer.run(lambda: 7) == 7
    await writer.stop()


async def test_nobody_waits_any_more() -> None:
    """A caller that has gone does not disturb the thread."""
    writer = Writer()
    gate = threading.Event()
    task = asyncio.create_task(writer.run(gate.wait))
    await asyncio.sleep(0)
    task.cancel()
    gate.set()
    assert await writer.run(lambda: 7) == 7
    await writer.stop()


def test_a_loop_that_was_closed() -> None:
    """When the loop ends first, results are dropped and the thread ends when told."""
    loop = asyncio.new_event_loop()
    gate = threading.Event()

    async def start() -> Writer:
        writer = Writer()
        writer.post(gate.wait, lambda _result, _fault: None)
        return writer

    writer = loop.run_until_complete(start())
    loop.close()
    gate.set()
    writer._jobs.put(None)
    writer._runner.join(10)
    assert not writer._runner.is_alive()
