"""After an I/O error: the database is opened anew, at growing pauses until that works. On the loop; the opening is the writer's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from postbus import telemetry
from postbus.bridge.backoff import delay_s
from postbus.bridge.clock import Clock, Timer
from postbus.bridge.spool.database import Database
from postbus.bridge.spool.faults import SpoolFault
from postbus.bridge.spool.writer import Writer
from postbus.bridge.spool_settings import RetrySettings

PAUSES = RetrySettings(first_delay_s=1.0, max_delay_s=60.0)


class Reopening:
    """Opens *database* again and again until it is open.

    Args:
        database, writer, clock: what it works with.
        failed: called with the reason when it did not work; opened: called when it did.

    Attributes:
        refused: messages whose senders were told 451 though they may be in the log: taken out as it opens.
    """

    def __init__(
        self, database: Database, writer: Writer, clock: Clock, *, failed: Callable[[str], None], opened: Callable[[], None]
    ) -> None:
        self.refused: list[int] = []
        self._database = database
        self._writer = writer
        self._clock = clock
        self._failed = failed
        self._opened = opened
        self._timer: Timer | None = None
        self._failures = 0
        self._ended = False

    def begin(self) -> None:
        """Try after a first pause."""
        self._failures = 0
        self._later()

    def end(self) -> None:
        """Try no more; what is under way is forgotten."""
        self._ended = True
        if self._timer is not None:
            self._timer.cancel()

    def _later(self) -> None:
        self._failures += 1
        self._timer = self._clock.call_later(delay_s(self._failures, PAUSES, 0.5), self._try)

    def _try(self) -> None:
        refused = tuple(self.refused)
        self._writer.post(partial(self._database.reopen, refused), partial(self._tried, len(refused)))

    def _tried(self, refused: int, _result: None, fault: SpoolFault | None) -> None:
        if self._ended:
            return
        if fault is not None:
            telemetry.spool_failed(kind="reopen", why=str(fault))
            self._failed(str(fault))
            self._later()
            return
        del self.refused[:refused]
        telemetry.spool_reopened(failures=self._failures)
        self._opened()
