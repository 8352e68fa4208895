"""The way to one sink: its queue, its workers, its pauses.

A lane is *live* while everything undecided for its sink is in memory; fresh mail then goes straight into the queue. When the queue or
the memory is full it falls *behind*: fresh mail stays in the spool, and pages of the backlog are read, in order, as the queue empties,
until the end of the backlog is met and the lane is live again. ``_cursor`` is the seq up to which everything has been in memory.

Order: sends start in the order of acceptance. When the sink as a whole is down the queue pauses, what was under way goes back to
its place, and after the pause one delivery alone tries the sink. An event that fails by itself steps aside: it leaves memory, and the
spool knows when it is due. Within a key, a send starts only when those before it have started, though a large mail takes longer to be
read and parsed; but for one that has to wait for memory. So order per key holds as far as the sink keeps the order of the sends it is
given at once.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from postbus import telemetry
from postbus.bridge.backoff import delay_s, exhausted
from postbus.bridge.budget import EVENT_COPIES, Budget
from postbus.bridge.clock import Clock, Timer
from postbus.bridge.fates import Fates, Word
from postbus.bridge.outcomes import WORDS, Unfit, known
from postbus.bridge.renderer import ParserUnavailableError, Renderer, Rendering
from postbus.bridge.spool import Delivery, Held, Page, SpoolDamaged, SpoolFault
from postbus.bridge.spool_settings import RetrySettings
from postbus.event.model import UnfitError
from postbus.sinks import Outcome, Rejected, Retry, Sent, Sink
from postbus.sinks.turns import Turns

YIELD_EVERY = 16
"""A worker lets the loop run after so many deliveries, for sinks whose ``send`` never waits."""
GONE_WORKERS = 4
SPOOL_PAUSE_S = 1.0
"""How long to wait before asking a spool again that could not be read."""


class Store(Protocol):
    """The spool, as a lane needs it."""

    def done(self, delivery: Delivery) -> None:
        """Delivered, or not wanted any more."""

    def retry(self, delivery: Delivery, due_ms: int, why: str) -> None:
        """Stepped aside until *due_ms*."""

    def dead(self, delivery: Delivery, why: str) -> None:
        """Given up."""

    def set_aside(self, delivery: Delivery, why: str) -> None:
        """Found damaged."""

    async def fresh(self, sink: str, after: int, limit: int, max_octets: int) -> Page:
        """Return undecided deliveries."""

    async def due(self, sink: str, limit: int, max_octets: int) -> Page:
        """Return retries that are due."""

    async def verify(self, held: Held) -> None:
        """Raise ``SpoolDamaged`` unless the message's file is what was accepted."""

    async def read(self, held: Held) -> bytes:
        """Return a message's octets."""


@dataclass(slots=True)
class Shared:
    """What all lanes share.

    Attributes:
        waiting: memory for messages that wait; sending: for those being sent. Two, since who sends waits for memory that only
            others who send will give back: it may not be held by those who wait for him.
    """

    store: Store
    renderer: Renderer
    retry: RetrySettings
    clock: Clock
    random: Callable[[], float]
    waiting: Budget
    sending: Budget
    window_max_events: int
    fates: Fates = field(default_factory=Fates)
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)  # one page at a time: each is measured against what is left


class _FileCargo:
    """What is in memory of a message that lies in a file, while somebody is sending it or waits for memory to send it."""

    __slots__ = ("lock", "paid", "rendering", "senders")

    def __init__(self) -> None:
        self.paid = False  # the message's own octets are taken from the budget, until the last of the senders has left
        self.lock = asyncio.Lock()
        self.rendering: Rendering | None = None
        self.senders = 0


def _is_down(outcome: Outcome) -> bool:
    return isinstance(outcome, Retry) and outcome.sink_down


def _event_octets(delivery: Delivery) -> int:
    """Return what sending *delivery*'s event takes, beside the message itself."""
    return EVENT_COPIES * min(delivery.held.size_octets, delivery.recipient.event_max_octets)


class Lane:
    """The queue of one sink. *sink* is ``None`` when the configuration does not know it any more: all waits, then is given up.

    Attributes:
        name: the sink's.
        paused: the sink is down, and nothing is sent until the pause ends.
        failures: of the sink as a whole, in a row.
        trouble: the last reason, ``""`` when all is well.
        in_flight: sends under way.
    """

    def __init__(self, name: str, sink: Sink | None, shared: Shared, *, backlog: bool) -> None:
        self.name = name
        self.sink = sink
        self.paused = False
        self.failures = 0
        self.trouble = ""
        self.in_flight = 0
        self._shared = shared
        self._queue: deque[Delivery] = deque()
        self._workers: set[asyncio.Task[None]] = set()
        self._idle: list[asyncio.Future[None]] = []
        self._chores: set[asyncio.Task[None]] = set()
        self._live = not backlog
        self._cursor = 0
        self._newest = 0
        self._paging = False
        self._probing = False
        self._epoch = 0
        self._pause_timer: Timer | None = None
        self._retrying: set[tuple[int, int]] = set()
        self._next_due_ms: int | None = None
        self._due_timer: Timer | None = None
        self._due_waiting = False
        self._asking = False
        self._draining = False
        self._stopped = False
        self._quiet: asyncio.Future[None] | None = None
        self._last_crash = ""
        self._turns = Turns()
        self._gone_ms = shared.clock.steady_ms()  # since when there is no sink, if there is none

    @property
    def queued(self) -> int:
        """Deliveries in memory that wait."""
        return len(self._queue)

    @property
    def behind(self) -> bool:
        """True while some of the backlog is only in the spool."""
        return not self._live

    # --- in

    def start(self) -> None:
        """Look at what the spool holds for this sink."""
        self._page_soon()
        self.due_at(self._shared.clock.steady_ms())

    def receive(self, held: Held, deliveries: Sequence[Delivery]) -> None:
        """Take in all that a fresh message owes this sink. Messages come in order of seq."""
        if self._live and not self._draining and len(self._queue) < self._shared.window_max_events and self._load(held):
            held.users += len(deliveries)
            self._queue.extend(deliveries)
            self._wake(len(deliveries))
            return
        if self._live:
            self._live = False
            self._cursor = held.seq - 1
        self._newest = held.seq
        self._page_soon()

    def set_sink(self, sink: Sink | None) -> None:
        """Send to *sink* from now on; what is under way ends with the old one."""
        self.sink = sink
        self._gone_ms = self._shared.clock.steady_ms()
        self.failures = 0
        self._epoch += 1
        if self._pause_timer is not None:
            self._pause_timer.cancel()
        self._resume()

    def _load(self, held: Held) -> bool:
        """Count *held* against the memory; files only count while they are being sent."""
        return held.users > 0 or held.octets is None or self._shared.waiting.try_take(held.size_octets)

    def _release(self, delivery: Delivery) -> None:
        """*delivery* leaves memory."""
        held = delivery.held
        held.users -= 1
        if held.users == 0 and held.octets is not None:
            held.cargo = None
            self._shared.waiting.give(held.size_octets)
        if self._retrying:
            self._retrying.discard(delivery.order)
            if not self._retrying and self._due_waiting:
                self._ask_due()
        if not self._live:
            self._page_soon()

    # --- workers

    def _wake(self, count: int) -> None:
        idle = self._idle
        while count > 0 and idle:
            future = idle.pop()  # the one that parked last: a quiet lane keeps one warm worker
            if not future.done():
                future.set_result(None)
                count -= 1
        concurrency = self._concurrency
        while count > 0 and len(self._workers) < concurrency and not self._stopped:
            count -= 1
            task = asyncio.get_running_loop().create_task(self._work(), name=f"sink {self.name}")
            self._workers.add(task)
            task.add_done_callback(self._worker_ended)

    @property
    def _concurrency(self) -> int:
        return GONE_WORKERS if self.sink is None else max(1, self.sink.concurrency)

    def _worker_ended(self, task: asyncio.Task[None]) -> None:
        self._workers.discard(task)
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            self._crashed(error)
        if self._queue:  # one that left because the sink now allows fewer may have been woken for this
            self._wake(1)

    async def _work(self) -> None:
        turn = 0
        while len(self._workers) <= self._concurrency:
            delivery = self._next()
            if delivery is None:
                if self._stopped:
                    return
                future = asyncio.get_running_loop().create_future()
                self._idle.append(future)
                await future
                continue
            epoch = self._epoch
            self.in_flight += 1
            try:
                outcome = await self._attempt(delivery, epoch)
            finally:
                self.in_flight -= 1
            try:
                self._settle(delivery, outcome, epoch)
            except Exception as error:  # noqa: BLE001 - as in _attempt
                self._crashed(error)
                if delivery not in self._queue:  # then nobody else knows of it until a restart
                    self._step_aside(delivery, Retry(f"failed in postbus: {type(error).__name__}", sink_down=False))
            turn += 1
            if turn % YIELD_EVERY == 0:
                await asyncio.sleep(0)

    def _next(self) -> Delivery | None:
        if not self._queue or self.paused or self._stopped or (self._probing and self.in_flight):
            if self._quiet is not None and self._is_quiet() and not self._quiet.done():
                self._quiet.set_result(None)
            return None
        return self._queue.popleft()

    async def _attempt(self, delivery: Delivery, epoch: int) -> Outcome | SpoolDamaged:
        """Return how one send ended. Nothing but cancellation leaves here."""
        start = time.perf_counter()
        try:
            outcome = known(await self._send(delivery, epoch))
        except SpoolDamaged as damage:
            return damage
        except UnfitError as unfit:
            outcome = Unfit(str(unfit))
        except (SpoolFault, ParserUnavailableError) as fault:
            outcome = Retry(str(fault), sink_down=False)
        except Exception as error:  # noqa: BLE001 - top of a delivery: one event must not stop the others
            self._crashed(error)
            outcome = Retry(f"failed in postbus: {type(error).__name__}", sink_down=False)
        telemetry.delivery_attempted(sink=self.name, outcome=WORDS[type(outcome)], seconds=time.perf_counter() - start)
        return outcome

    async def _send(self, delivery: Delivery, epoch: int) -> Outcome:
        sink, held = self.sink, delivery.held
        if sink is None:
            return self._gone()
        if held.octets is None:
            return await self._send_file(sink, delivery, epoch)
        rendering = held.cargo
        if rendering is None:
            rendering = held.cargo = self._shared.renderer.open(held.mail, held.octets)
        assert isinstance(rendering, Rendering)
        recipient, key = delivery.slot.recipient, delivery.recipient.partition_key
        budget, octets = self._shared.sending, _event_octets(delivery)
        taken = budget.try_take(octets)
        try:
            event = rendering.event_here(recipient, as_octets=sink.octets) if taken else None
            if event is not None and not self._turns.awaited(key):
                return await sink.send(event)
            place = self._turns.enter(key)
            try:
                if not taken:
                    place.leave()  # what stands behind may hold the memory this waits for
                    await budget.take(octets)
                    taken = True
                event = event or await rendering.event(recipient, as_octets=sink.octets)
                await place.reached()
            finally:
                place.leave()
            return await sink.send(event) if epoch == self._epoch else self._too_late()
        finally:
            if taken:
                budget.give(octets)

    def _gone(self) -> Outcome:
        """A sink that has left the configuration is down for a while, since it may have been a mistake; then its events are given up."""
        why = f"sink {self.name!r} is no longer in the configuration"
        gone_s = (self._shared.clock.steady_ms() - self._gone_ms) / 1000
        return Rejected(why) if gone_s >= self._shared.retry.gone_sink_grace_s else Retry(why)

    async def _send_file(self, sink: Sink, delivery: Delivery, epoch: int) -> Outcome:
        """Send from a file: it is read when its first event has room, and kept as long as another of its events waits for some."""
        held, budget, octets = delivery.held, self._shared.sending, _event_octets(delivery)
        cargo = held.cargo
        if cargo is None:
            cargo = held.cargo = _FileCargo()
        assert isinstance(cargo, _FileCargo)
        cargo.senders += 1
        place = self._turns.enter(delivery.recipient.partition_key)
        taken = False
        try:
            asked = octets if cargo.paid else octets + held.size_octets
            if not budget.try_take(asked):
                place.leave()  # as above
                await budget.take(asked)
            taken = True
            if cargo.paid and asked > octets:
                budget.free(held.size_octets)  # another event of this message was quicker
            cargo.paid = True
            event = await (await self._open_file(cargo, held)).event(delivery.slot.recipient, as_octets=sink.octets)
            await place.reached()
            place.leave()
            return await sink.send(event) if epoch == self._epoch else self._too_late()
        finally:
            place.leave()
            cargo.senders -= 1
            if not cargo.senders:
                held.cargo = None
                if cargo.paid:
                    budget.free(held.size_octets)
            if taken:
                budget.give(octets)

    def _too_late(self) -> Retry:
        """The sink was found down while this was made ready: back to its place, behind what has failed before it."""
        return Retry(self.trouble)

    async def _open_file(self, cargo: _FileCargo, held: Held) -> Rendering:
        shared = self._shared
        assert held.path is not None
        async with cargo.lock:
            if cargo.rendering is None:
                await shared.store.verify(held)
                cargo.rendering = shared.renderer.open(held.mail, held.path, lambda: shared.store.read(held))
            return cargo.rendering

    # --- outcomes

    def _settle(self, delivery: Delivery, outcome: Outcome | SpoolDamaged, epoch: int) -> None:
        """Do what *outcome* calls for; that *delivery* leaves memory, or goes back into the queue, is the last of it that can fail."""
        if self._probing and epoch == self._epoch and not isinstance(outcome, SpoolDamaged) and not _is_down(outcome):
            telemetry.sink_resumed(sink=self.name, failures=self.failures)  # it answered, whatever it said
            self._resume()
        if isinstance(outcome, Sent):
            lag_s = (self._shared.clock.now_ms() - delivery.held.mail.received_ms) / 1000
            telemetry.delivery_done(sink=self.name, lag_s=lag_s)
            self._shared.store.done(delivery)
            self._note(delivery, "delivered", outcome.detail)
            self._release(delivery)
        elif isinstance(outcome, SpoolDamaged):
            self._shared.store.set_aside(delivery, str(outcome))
            self._note(delivery, "damaged")
            self._release(delivery)
        elif isinstance(outcome, Rejected):
            self._give_up(delivery, "rejected", outcome.why)
        elif outcome.sink_down:
            self._down(delivery, outcome, epoch)
        else:
            self._step_aside(delivery, outcome)

    def _step_aside(self, delivery: Delivery, outcome: Retry) -> None:
        delivery.attempt += 1
        reason = self._exhausted(delivery, delivery.attempt)
        if reason is not None:
            self._give_up(delivery, reason, outcome.why)
            return
        shared = self._shared
        due_ms = shared.clock.steady_ms() + int(1000 * delay_s(delivery.attempt, shared.retry, shared.random(), outcome.after_s))
        telemetry.delivery_deferred(sink=self.name, event=delivery.recipient.event_id, attempt=delivery.attempt, why=outcome.why)
        shared.store.retry(delivery, due_ms, outcome.why)
        self._note(delivery, "trying again")
        self.due_at(due_ms)
        self._release(delivery)

    def _down(self, delivery: Delivery, outcome: Retry, epoch: int) -> None:
        """Put *delivery* back in its place; pause, unless this send began before the pause that is on."""
        self.trouble = outcome.why
        self._note(delivery, "trying again")
        self._put_back(delivery)
        while self._queue and self._exhausted(self._queue[0], 0) is not None:
            self._give_up(self._queue[0], "age", outcome.why)
            self._queue.popleft()
        if epoch != self._epoch:
            return
        shared = self._shared
        self._epoch += 1
        self.failures += 1
        self.paused, self._probing = True, False
        pause_s = delay_s(self.failures, shared.retry, shared.random(), outcome.after_s)
        self._pause_timer = shared.clock.call_later(pause_s, self._probe)
        telemetry.sink_paused(sink=self.name, why=outcome.why, pause_s=pause_s, failures=self.failures)

    def _put_back(self, delivery: Delivery) -> None:
        queue, order = self._queue, delivery.order
        index = 0
        while index < len(queue) and queue[index].order < order:
            index += 1
        queue.insert(index, delivery)

    def _probe(self) -> None:
        self.paused, self._probing = False, True
        self._wake(1)

    def _resume(self) -> None:
        self.paused = self._probing = False
        self.failures, self.trouble = 0, ""
        self._wake(len(self._queue))

    def _exhausted(self, delivery: Delivery, attempt: int) -> str | None:
        age_s = (self._shared.clock.now_ms() - delivery.since_ms) / 1000
        return exhausted(attempt, age_s, self._shared.retry, required=delivery.slot.required)

    def _give_up(self, delivery: Delivery, reason: str, why: str) -> None:
        """A required sink's event becomes a dead letter; a best-effort one is only counted."""
        required = delivery.slot.required
        telemetry.delivery_given_up(sink=self.name, event=delivery.recipient.event_id, reason=reason, why=why, kept=required)
        if required:
            self._shared.store.dead(delivery, f"{reason}: {why}")
        else:
            self._shared.store.done(delivery)
        self._note(delivery, "dead letter" if required else "given up")
        self._release(delivery)

    def _note(self, delivery: Delivery, word: Word, detail: str = "") -> None:
        self._shared.fates.settle(delivery.held.mail, delivery.recipient.event_id, self.name, word, detail)

    # --- the backlog

    def _page_soon(self) -> None:
        if self._live or self._paging or self._draining:
            return
        if len(self._queue) > self._shared.window_max_events // 2 or (self._queue and not self._shared.waiting.room_octets):
            return
        self._paging = True
        self._chore(self._page())

    async def _page(self) -> None:
        shared = self._shared
        try:
            async with shared.reading:
                limit = max(1, shared.window_max_events - len(self._queue))
                page = await shared.store.fresh(self.name, self._cursor, limit, max(1, shared.waiting.room_octets))
                self._append(page)
        except SpoolFault as fault:
            self.trouble = str(fault)
            shared.clock.call_later(SPOOL_PAUSE_S, self._page_soon)
            return
        finally:
            self._paging = False
        self._cursor = page.upto
        self._live = page.complete and self._newest <= page.upto
        self._page_soon()

    def _append(self, page: Page) -> None:
        for delivery in page.deliveries:
            held = delivery.held
            if not held.users and held.octets is not None:
                self._shared.waiting.force(held.size_octets)
            held.users += 1
            self._queue.append(delivery)
        self._wake(len(page.deliveries))

    # --- retries

    def due_at(self, due_ms: int) -> None:
        """Something is due at *due_ms*: look then."""
        if self._draining or (self._next_due_ms is not None and self._next_due_ms <= due_ms):
            return
        self._next_due_ms = due_ms
        if self._due_timer is not None:
            self._due_timer.cancel()
        wait_s = max(0, due_ms - self._shared.clock.steady_ms()) / 1000
        self._due_timer = self._shared.clock.call_later(wait_s, self._ask_due)

    def _ask_due(self) -> None:
        """Read what is due, unless what was due before is still here: the spool would show it again."""
        if self._draining:
            return
        self._due_waiting = bool(self._retrying) or self._asking
        if not self._due_waiting:
            self._asking = True
            self._chore(self._fetch_due())

    async def _fetch_due(self) -> None:
        shared = self._shared
        self._next_due_ms = None
        try:
            async with shared.reading:
                limit = max(1, shared.window_max_events // 2)
                page = await shared.store.due(self.name, limit, max(1, shared.waiting.room_octets))
                self._retrying = {delivery.order for delivery in page.deliveries}
                self._append(page)
        except SpoolFault as fault:
            self.trouble = str(fault)
            page = Page((), 0, False, 0, shared.clock.steady_ms() + int(SPOOL_PAUSE_S * 1000))
        finally:
            self._asking = False
        if page.next_due_ms is not None:
            self.due_at(page.next_due_ms)
        if self._due_waiting and not self._retrying:
            self._ask_due()

    # --- the end

    async def drain(self) -> None:
        """Send what is in memory, unless the sink is down; read nothing more. Returns when nothing is under way."""
        self._draining = True
        if self._due_timer is not None:
            self._due_timer.cancel()
        if not self._is_quiet():
            self._quiet = asyncio.get_running_loop().create_future()
            await self._quiet

    def _is_quiet(self) -> bool:
        return not self.in_flight and (not self._queue or self.paused)

    async def stop(self) -> None:
        """End at once; what was under way or queued stays in the spool."""
        self._stopped = self._draining = True
        for timer in (self._due_timer, self._pause_timer):
            if timer is not None:
                timer.cancel()
        tasks = [*self._workers, *self._chores]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _chore(self, job: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(job, name=f"spool for sink {self.name}")
        self._chores.add(task)
        task.add_done_callback(self._chore_ended)

    def _crashed(self, error: BaseException) -> None:
        """Tell of a mistake of ours or of a sink's; the traceback once, since the next event may well fail in the same place."""
        text = repr(error)
        trace = None if text == self._last_crash else "".join(traceback.format_exception(error))
        self._last_crash = text
        telemetry.task_restarted(task=f"sink {self.name}", error=text, after_s=0.0, traceback=trace)

    def _chore_ended(self, task: asyncio.Task[None]) -> None:
        self._chores.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._crashed(error)
            self._shared.clock.call_later(SPOOL_PAUSE_S, self.start)
