"""The thread that does what blocks: jobs go in from the loop, results come back to it in the same order."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar, cast

from postbus import telemetry
from postbus.bridge.spool.faults import SpoolFailed, SpoolFault

Result = TypeVar("Result")


class Writer:
    """One thread with one queue. Start and stop it on the loop that it serves."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], object], Callable[[Any, SpoolFault | None], None]] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._runner = threading.Thread(target=self._work, name="postbus-spool", daemon=True)
        self._runner.start()

    def post(self, job: Callable[[], Result], then: Callable[[Result | None, SpoolFault | None], None]) -> None:
        """Run *job* on the thread, then ``then(result, None)`` or ``then(None, fault)`` on the loop: one wake-up of the loop per job."""
        self._jobs.put((job, then))

    async def run(self, job: Callable[[], Result]) -> Result:
        """Run *job* on the thread and return its result, or raise its ``SpoolFault``."""
        future: asyncio.Future[Result] = self._loop.create_future()

        def then(result: Result | None, fault: SpoolFault | None) -> None:
            if future.done():  # whoever asked has gone
                return
            if fault is None:
                future.set_result(cast("Result", result))
            else:
                future.set_exception(fault)

        self.post(job, then)
        return await future

    async def stop(self) -> None:
        """End the thread once the jobs before are done."""
        ended = self._loop.create_future()
        self.post(lambda: None, lambda _result, _fault: ended.set_result(None))
        await ended
        self._jobs.put(None)
        self._runner.join()

    def _work(self) -> None:
        while (task := self._jobs.get()) is not None:
            job, then = task
            result: object = None
            fault: SpoolFault | None = None
            try:
                result = job()
            except SpoolFault as found:
                fault = found
            except Exception as error:  # noqa: BLE001 - top of the thread: a bug of ours must not end it
                telemetry.spool_job_crashed(error=error)
                fault = SpoolFailed(f"{type(error).__name__}: {error}")
            with suppress(RuntimeError):  # the loop was closed under us: nobody waits any more
                self._loop.call_soon_threadsafe(then, result, fault)
