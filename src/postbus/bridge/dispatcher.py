"""Takes accepted mail to its sinks, until each has it or is given up.

Fresh mail comes from the spool's hands as it becomes durable, in order, and is sent from memory; the spool is read only for
retries, for what did not fit into memory, and for what a restart left. What became of each delivery goes back to the spool as a mark.
See ``bridge.lane`` for what happens on the way to one sink.
"""

from __future__ import annotations

import asyncio
import random as randomness
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from postbus import telemetry
from postbus.bridge.budget import Budget
from postbus.bridge.clock import Clock, LoopClock
from postbus.bridge.fates import Fates
from postbus.bridge.lane import Lane, Shared
from postbus.bridge.renderer import Renderer
from postbus.bridge.spool import Delivery, Held, Spool
from postbus.bridge.spool_settings import DispatchSettings, RetrySettings
from postbus.sinks import Sink


@dataclass(frozen=True, slots=True)
class LaneStatus:
    """One lane in figures.

    Attributes:
        sink: name; configured: false when the configuration does not know it any more.
        owed: deliveries in the spool and in memory; queued, in_flight: in memory.
        paused, failures, trouble: the sink is down, how often in a row, why.
        behind: some of the backlog is only in the spool.
    """

    sink: str
    configured: bool
    owed: int
    queued: int
    in_flight: int
    paused: bool
    failures: int
    trouble: str
    behind: bool


class Dispatcher:
    """All lanes. Make and use it on the spool's loop; ``start`` after ``spool.open`` and before mail arrives."""

    def __init__(
        self,
        spool: Spool,
        sinks: Mapping[str, Sink],
        renderer: Renderer,
        *,
        retry: RetrySettings | None = None,
        dispatch: DispatchSettings | None = None,
        fates: Fates | None = None,
        clock: Clock | None = None,
        random: Callable[[], float] = randomness.random,
    ) -> None:
        dispatch = dispatch or DispatchSettings()
        self.waiting = Budget(dispatch.in_flight_max_octets // 3)  # of the copies of a message that may be there one waits: its octets
        self.sending = Budget(dispatch.in_flight_max_octets - self.waiting.limit_octets)
        self._spool = spool
        self._sinks = dict(sinks)
        self._lanes: dict[str, Lane] = {}
        self._shared = Shared(
            store=spool,
            renderer=renderer,
            retry=retry or RetrySettings(),
            clock=clock or LoopClock(),
            random=random,
            waiting=self.waiting,
            sending=self.sending,
            window_max_events=dispatch.window_max_events,
            fates=fates or Fates(),
        )
        self._fates = self._shared.fates
        self._watches: list[Callable[[], None]] = []

    def start(self) -> None:
        """Take the spool's mail from now on, and read what it holds from before."""
        backlog = self._spool.numbers.messages > 0
        for name in {*self._sinks, *self._spool.numbers.pending}:
            self._open_lane(name, backlog=backlog)
        self._spool.receiver = self.receive
        self._spool.on_replay = self._replayed
        self._watches.append(
            telemetry.watch("postbus_sink_up", lambda: {(lane.name,): int(not lane.failures) for lane in self._lanes.values() if lane.sink})
        )

    def _open_lane(self, name: str, *, backlog: bool) -> Lane:
        lane = self._lanes[name] = Lane(name, self._sinks.get(name), self._shared, backlog=backlog)
        lane.start()
        return lane

    def _lane(self, name: str) -> Lane:
        return self._lanes.get(name) or self._open_lane(name, backlog=False)

    def receive(self, held: Held) -> None:
        """Queue a message that has just become durable. The spool calls this, in order of seq."""
        slots = held.slots
        self._fates.begin(held.mail)
        if len(slots) == 1:
            self._lane(slots[0].sink).receive(held, (Delivery(held, 0),))
            return
        by_sink: dict[str, list[Delivery]] = {}
        for number, slot in enumerate(slots):
            by_sink.setdefault(slot.sink, []).append(Delivery(held, number))
        for sink, deliveries in by_sink.items():
            self._lane(sink).receive(held, deliveries)

    def _replayed(self, sink: str) -> None:
        self._lane(sink).due_at(self._shared.clock.steady_ms())

    def replace(self, sinks: Mapping[str, Sink], retry: RetrySettings | None = None) -> None:
        """Send to *sinks* from now on (a reload). What is under way ends with the old ones; stop those after ``settled``."""
        self._sinks = dict(sinks)
        self._shared.retry = retry or self._shared.retry
        for name, lane in self._lanes.items():
            if lane.sink is not sinks.get(name):
                lane.set_sink(sinks.get(name))
        for name in sinks.keys() - self._lanes.keys():
            self._open_lane(name, backlog=False)

    def down(self, sink: str) -> bool:
        """Return whether the queue of *sink* pauses because the sink is down."""
        lane = self._lanes.get(sink)
        return lane is not None and lane.failures > 0

    def status(self) -> list[LaneStatus]:
        """Return every lane in figures: cheap, no I/O."""
        owed = self._spool.numbers.pending
        return [
            LaneStatus(
                sink=lane.name,
                configured=lane.sink is not None,
                owed=owed.get(lane.name, 0),
                queued=lane.queued,
                in_flight=lane.in_flight,
                paused=lane.paused,
                failures=lane.failures,
                trouble=lane.trouble,
                behind=lane.behind,
            )
            for lane in self._lanes.values()
        ]

    async def drain(self, deadline_s: float) -> None:
        """Send what is in memory, at most for *deadline_s* seconds, then end. What is not done by then stays in the spool."""
        lanes = list(self._lanes.values())
        with suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                await asyncio.gather(*(lane.drain() for lane in lanes))
        await asyncio.gather(*(lane.stop() for lane in lanes))
        for end in self._watches:
            end()
        self._watches.clear()
