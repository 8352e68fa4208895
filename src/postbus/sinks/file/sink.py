"""The file sink: events become lines, lines go in groups.

All events that wait when the file is free go out in one write, and with ``fsync`` are on disk when it returns (group commit). Writing
happens in a process (``appender``), so that neither a slow disk nor a pipe that nobody reads ever stops the loop.
"""

from __future__ import annotations

import asyncio
import sys
import traceback

from postbus import telemetry
from postbus.event.cloudevents import structured
from postbus.event.model import Event
from postbus.sinks import Health, Outcome, Rejected, Retry, Sent
from postbus.sinks.budget import Budget, weight_of
from postbus.sinks.file.appender import Appender, StalledError
from postbus.sinks.file.appending import STDOUT
from postbus.sinks.settings import FileSettings

KILL_S = 0.2
"""What a process may take to die, of the time in which the sink is to stop."""
_WRITTEN = Sent()


class Group:
    """Lines that are written together, and who waits for each. A waiter that is done stopped waiting: its line need not be written."""

    __slots__ = ("lines", "timer", "waiters", "weight")

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.weight = 0
        self.waiters: list[asyncio.Future[OSError | None]] = []
        self.timer: asyncio.TimerHandle | None = None

    def finish(self, error: OSError | None) -> None:
        """Tell everybody who still waits; ``None``: the lines are written."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(error)


class FileSink:
    """Appends events to a file; see ``postbus.sinks.Sink``."""

    kind = "file"
    secure = True
    octets = False

    def __init__(self, name: str, settings: FileSettings) -> None:
        self.name = name
        self.durable = settings.fsync and settings.path != STDOUT
        self.event_max_octets = settings.event_max_octets
        self.concurrency = settings.concurrency
        self._settings = settings
        self._appender = Appender(name, settings.path, fsync=settings.fsync, stdout=sys.stdout)
        self._budget = Budget(settings.in_flight_max_octets)
        self._gathering = Group()
        self._writing: Group | None = None
        self._called = asyncio.Event()
        self._work: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._trouble: str | None = None
        self._stopping = False

    # --- the contract

    async def start(self) -> None:
        """Start the writer. The file is opened with the first event."""
        self._loop = asyncio.get_running_loop()
        self._work = self._loop.create_task(self._write_groups(), name=f"sink {self.name}: writer")

    async def send(self, event: Event) -> Outcome:
        """Append *event* as one line and wait until it is written (and on disk, if so configured)."""
        weight = weight_of(event)
        if not self._budget.try_take(weight) and not await self._budget.take(weight, self._settings.timeout_s):
            return self._failure("what was to be written before is not written yet")
        waiter: asyncio.Future[OSError | None] | Outcome | None = None
        try:
            waiter = self._enqueued(event, weight)
        finally:
            if not isinstance(waiter, asyncio.Future):
                self._budget.give(weight)
        if not isinstance(waiter, asyncio.Future):
            return waiter
        error = await waiter
        if error is not None:
            return self._failure(f"not written: {error.strerror or error}", error)
        self._trouble = None
        return _WRITTEN

    async def stop(self, timeout_s: float) -> None:
        """Write what waits, at most *timeout_s*, and close."""
        self._stopping = True
        work, self._work = self._work, None
        if work is None:
            return
        waiting = [waiter for group in (self._writing, self._gathering) if group for waiter in group.waiters]
        if waiting:
            await asyncio.wait(waiting, timeout=max(0.0, timeout_s - KILL_S))
        work.cancel()
        await asyncio.wait([work])
        await self._appender.end(KILL_S)

    def health(self) -> Health:
        """Return whether the last write worked."""
        return Health(ok=self._trouble is None, detail=self._trouble or "writing")

    # --- groups

    def _enqueued(self, event: Event, weight: int) -> asyncio.Future[OSError | None] | Outcome:
        """Add *event* to the group that goes next, which gives *weight* back; return what its writing will set, or why it was not added."""
        loop = self._loop
        if self._stopping or loop is None:
            return Retry("stopping")
        line = structured(event) + b"\n"
        if len(line) > self.event_max_octets:
            return Rejected(f"the event has {len(line)} octets, this sink takes {self.event_max_octets}", too_large=True)
        group = self._gathering
        if group.timer is None:
            # One timer for all of a group, which its first line starts: the others wait a little less than their time.
            group.timer = loop.call_later(self._settings.timeout_s, self._expire, group)
            self._called.set()  # the task wakes in the next turn: everybody who is ready in this one comes along
        waiter: asyncio.Future[OSError | None] = loop.create_future()
        group.weight += weight
        group.lines.append(line)
        group.waiters.append(waiter)
        return waiter

    async def _write_groups(self) -> None:
        """Write group after group. Nothing that happens to one of them ends it."""
        try:
            while True:
                await self._called.wait()
                self._called.clear()
                group, self._gathering = self._gathering, Group()
                self._writing = group
                self._written(group, await self._write(group))
        finally:
            for left in (self._writing, self._gathering):
                if left is not None:
                    self._written(left, StalledError("stopped before it was written"))

    async def _write(self, group: Group) -> OSError | None:
        """Write *group*; return why it was not written."""
        lines = [line for line, waiter in zip(group.lines, group.waiters, strict=True) if not waiter.done()]
        try:
            if lines:
                await self._appender.write(lines)
        except OSError as error:
            return error
        except Exception as error:  # noqa: BLE001 - the top of a task: whatever it is (no memory, say), the next group is written
            telemetry.task_restarted(task=f"sink {self.name}: writer", error=repr(error), after_s=0.0, traceback=traceback.format_exc())
            return OSError(f"failed in postbus: {type(error).__name__}")
        return None

    def _written(self, group: Group, error: OSError | None) -> None:
        """Tell everybody who waited for *group*."""
        self._writing = None
        if group.timer is not None:
            group.timer.cancel()
        self._budget.give(group.weight)
        group.finish(error)

    def _expire(self, group: Group) -> None:
        """End the waiting for *group*. If it has not reached the process that writes, it is not written at all: its events come again."""
        group.finish(StalledError(f"not within {self._settings.timeout_s:g} s"))
        if group is self._gathering:
            self._gathering = Group()
            self._budget.give(group.weight)

    def _failure(self, why: str, error: OSError | None = None) -> Retry:
        """Return a retry, and say so once."""
        if self._trouble is None and not self._stopping:
            telemetry.sink_troubled(sink=self.name, why=why, error=repr(error))
        self._trouble = why
        return Retry(why)
