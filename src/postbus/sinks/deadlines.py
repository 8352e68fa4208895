"""Time limits for what tasks wait for, by one timer for all of them.

``asyncio.timeout_at`` makes a timer for each use, which takes 4 us; and nearly all that is waited for comes long before.
"""

from __future__ import annotations

import asyncio
from operator import attrgetter
from types import TracebackType


class Deadlines:
    """Whose time is running. One for everybody who waits about equally long; use it on one loop."""

    def __init__(self) -> None:
        self._running: dict[Limit, None] = {}  # in order of entering
        self._timer: asyncio.TimerHandle | None = None
        self._look_at_s = 0.0

    def until(self, deadline_s: float) -> Limit:
        """Return a context manager that lets its body wait until *deadline_s*, by the loop's clock.

        Then what the body waits for is cancelled, and TimeoutError raised, as ``asyncio.timeout_at`` does.
        """
        return Limit(self, deadline_s)

    def enter(self, limit: Limit) -> None:
        """The time of *limit* runs."""
        self._running[limit] = None
        if self._timer is None or limit.deadline_s < self._look_at_s:
            self._look_later(limit.deadline_s)

    def leave(self, limit: Limit) -> None:
        """It does not any more."""
        self._running.pop(limit, None)

    def _look_later(self, look_at_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._look_at_s = look_at_s
        self._timer = asyncio.get_running_loop().call_at(look_at_s, self._look)

    def _look(self) -> None:
        """End what is due, the earliest first, and come again for the next.

        While all comes in time that is once in a limit's time, so it may look at all.
        """
        self._timer = None
        now_s = max(self._look_at_s, asyncio.get_running_loop().time())  # a loop's clock may be a little behind its timers
        due = [limit for limit in self._running if limit.deadline_s <= now_s]
        for limit in sorted(due, key=attrgetter("deadline_s")):
            del self._running[limit]
            limit.expire()
        if self._running:
            self._look_later(min(limit.deadline_s for limit in self._running))


class Limit:
    """The time limit of one body; see ``Deadlines.until``. Enter it once, in a task."""

    def __init__(self, deadlines: Deadlines, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self._deadlines = deadlines
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0  # cancellations that others had asked for before
        self._expired = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a time limit needs a task to end")
        self._task = task
        self._cancelling = task.cancelling()
        self._deadlines.enter(self)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._deadlines.leave(self)
        task = self._task
        if self._expired and task is not None and task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError):
            raise TimeoutError from error  # nobody else wants the task to end

    def expire(self) -> None:
        """The time is over."""
        self._expired = True
        if self._task is not None:
            self._task.cancel()
