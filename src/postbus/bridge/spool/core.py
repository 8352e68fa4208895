"""The spool itself: admission, group commit, faults, housekeeping. Runs on the loop; what blocks is on the writer or in a pool."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Literal

from postbus import telemetry
from postbus.bridge.clock import Clock, LoopClock, Timer
from postbus.bridge.spool.bodies import BodyFiles
from postbus.bridge.spool.bounds import Bounds
from postbus.bridge.spool.database import Database, Tally
from postbus.bridge.spool.faults import SpoolFailed, SpoolFault, SpoolFull, SpoolUnwritable
from postbus.bridge.spool.folder import Folder
from postbus.bridge.spool.groups import Commit, Group, Line, Written, write
from postbus.bridge.spool.housekeeping import Chores, Findings, care, watch
from postbus.bridge.spool.records import Body, DeadLetter, Delivery, Held, Mark, Numbers, Page, Slot, State, reason
from postbus.bridge.spool.reopening import Reopening
from postbus.bridge.spool.startup import take
from postbus.bridge.spool.tables import mark_of, obituaries, place_of, row_of
from postbus.bridge.spool.writer import Writer
from postbus.bridge.spool_settings import SpoolSettings
from postbus.event.mail import Mail

ROW_MAX_OCTETS = 262_144
"""Larger bodies are files: inline and file cost the same at 128 to 256 KiB."""
MARK_LINGER_S = 0.05
"""How long marks wait, for each other and for mail to ride with. A crash meanwhile sends those events once more."""
GATHER_S = 0.002
"""How long at most a group is gathered while mail comes in numbers, as PostgreSQL's commit_delay: 382 us of CPU per message became 264,
since every group costs the loop and the threads a dozen hand-overs. Handed over as soon as it is as large as the last, the rate of 20
connections rose by a third."""
LOOK_S = 0.1
"""How often the free space is looked at; in between, what was written counts against it."""
TICK_S = 1.0
RETENTION_TICKS = 60

Closed = Literal["full", "unhealthy"]


class Spool:
    """Accepted mail, until its sinks have it. Open and use it on one loop.

    Attributes:
        numbers: the spool in figures; read only.
        receiver: called on the loop with each message as it becomes durable, in order of seq; set it before mail arrives.
        on_replay: called with the sink's name when a dead letter was put back.
    """

    def __init__(self, settings: SpoolSettings, *, clock: Clock | None = None) -> None:
        self.settings = settings
        self._bounds = Bounds(settings)
        self.numbers = Numbers()
        self.receiver: Callable[[Held], None] | None = None
        self.on_replay: Callable[[str], None] | None = None
        self.folder = Folder(settings.folder, settings.ballast_octets)
        self.spill_folder = self.folder.spill
        self._clock: Clock = clock or LoopClock()
        self._database = Database(self.folder.database, self.folder.bodies)
        self._state: Literal["closed", "open", "failed"] = "closed"
        self._accepting = False
        self._reason = "the spool is not open"
        self._disk_full = False
        self._stalled = False  # the disk is full and the ballast is gone: nothing is tried before the next tick
        self._busy = False
        self._scheduled = False
        self._line = Line(lambda commit: self._forget(commit.row.size_octets, commit.row.file))
        self._linger: asyncio.TimerHandle | None = None
        self._company = 0  # how many messages the last group held: several, and senders are many
        self._gathering: asyncio.TimerHandle | None = None
        self._looked_at = 0.0
        self._tick_timer: Timer | None = None
        self._ticks = 0
        self._trouble = ""  # of the last round of housekeeping
        self._commits = 0  # since the last tick
        self._holes_told = 0
        self._next_seq = 0
        self._watches: list[Callable[[], None]] = []

    # --- opening and closing

    async def open(self) -> None:
        """Take the folder, read what is held, sweep what no row names.

        Raises:
            SpoolRefused: the operator must act; the text says how.
            SpoolFailed, SpoolFull: the disk says no.
        """
        self._loop = asyncio.get_running_loop()
        self._writer = Writer()
        self._files = BodyFiles(self.folder)
        self._reopening = Reopening(self._database, self._writer, self._clock, failed=self._reopen_failed, opened=self._reopened)
        now_ms, steady_ms = self._clock.now_ms(), self._clock.steady_ms()
        tally: Tally | None = None
        trouble: BaseException | None = None
        try:
            tally = await self._writer.run(partial(take, self.folder, self._database, now_ms=now_ms, steady_ms=steady_ms))
        except BaseException as error:  # noqa: BLE001 - raised below: compiled, a handler must not wait (pyproject.toml)
            trouble = error
        if tally is None:
            await self._writer.stop()
            self._files.stop()
            assert trouble is not None, "nothing but an exception leaves no tally"
            raise trouble
        self.numbers = numbers = tally.numbers()
        # Past what was used and past the clock: a number is not used twice even when the spool was empty meanwhile.
        self._next_seq = max(tally.newest + 1, now_ms * 1000)
        self._state, self._accepting, self._reason = "open", True, ""
        self._watches += watch(self.numbers, self.oldest_age_s)
        self._tell_holes()
        self._tick_timer = self._clock.call_later(0, self._tick)
        telemetry.spool_opened(messages=numbers.messages, octets=numbers.octets, dead_letters=sum(tally.dead_letters.values()))

    async def close(self) -> None:
        """Accept nothing more, make durable what waits, let the folder go. Harmless when it is not open."""
        if self._state == "closed":
            return
        self._accepting = False
        self._reason = "the spool is closing"
        self._reopening.end()
        for timer in (self._tick_timer, self._linger):
            if timer is not None:
                timer.cancel()
        self._stalled = False
        while self._state == "open" and (self._busy or self._line) and not self._stalled:
            if not self._busy:
                self._hand_over()
            await self._writer.run(lambda: None)
        self._state = "closed"
        self._line.refuse_commits(SpoolFailed("the spool is closed"))
        with suppress(SpoolFault):
            await self._writer.run(self._database.close)
        await self._writer.stop()
        self._files.stop()
        self.folder.close()
        for end in self._watches:
            end()
        self._watches.clear()

    # --- accepting

    def gate(self) -> Closed | None:
        """Return why mail cannot be taken now, ``None`` if it can. No I/O, no awaits."""
        if self._state != "open" or not self._accepting:
            return "unhealthy"
        return "full" if self._full(0) else None

    @property
    def reason(self) -> str:
        """What ``gate`` means, for logs and status pages; ``""`` when mail can be taken."""
        return self._full(0) or "" if self._state == "open" and self._accepting else self._reason

    @property
    def load(self) -> float:
        """How near the spool is to its bounds: 0 empty, 1 or more full."""
        return self._bounds.load(self.numbers)

    def _full(self, size_octets: int) -> str | None:
        return "the disk is full" if self._disk_full else self._bounds.exceeded(self.numbers, size_octets)

    async def bury(self, mail: Mail, slots: Sequence[Slot], body: Body, why: Sequence[str]) -> None:
        """Keep *mail* as dead letters, one for each slot with its reason; return when that is durable. Otherwise as ``commit``."""
        await self._accept(mail, tuple(slots), body, why)

    async def commit(self, mail: Mail, slots: Sequence[Slot], body: Body) -> Held:
        """Take *mail*; return when it is durable. *receiver* is given it in the same turn of the loop, behind whoever waits for answers.

        A spilled body's file is taken (``body.release`` was called). If the caller is cancelled, the message is not kept:
        its sender gets no 250 and will send it again.

        Args:
            mail: the record, rendered from now on without further input.
            slots: the deliveries owed; ``slots_of(mail)`` for all.
            body: the octets.

        Raises:
            SpoolFull: 452. SpoolFailed: 451. What is left of the body then is the caller's to discard.
        """
        return await self._accept(mail, tuple(slots), body, ())

    async def _accept(self, mail: Mail, slots: tuple[Slot, ...], body: Body, why: Sequence[str]) -> Held:
        if not slots:
            raise ValueError("a message that owes nothing would be held for ever")
        size_octets = body.size_octets
        if self._state != "open" or not self._accepting:
            raise SpoolFailed(self._reason)
        full = self._full(0 if body.path is not None else size_octets)  # a spilled file is on the disk already
        if full is not None:
            raise SpoolFull(full)
        self.numbers.messages += 1
        self.numbers.octets += size_octets
        name: str | None = None
        octets = body.octets
        try:
            if octets is None or size_octets > ROW_MAX_OCTETS:
                name, octets = await self._keep(body), None
            # From here to the queue without await: the order of numbers is the order of groups.
            self._next_seq += 1
            row = row_of(self._next_seq, mail, slots, size_octets=size_octets, octets=octets, file=name)
            buried = obituaries(row.seq, mail, slots, why, self._clock.now_ms()) if why else ()
        except BaseException:
            self._forget(size_octets, name)
            raise
        commit = Commit(row, mail, slots, self._loop.create_future(), buried)
        self._line.commits.append(commit)
        self._line.recount |= bool(buried)
        self._poke()
        return await commit.future

    async def _keep(self, body: Body) -> str:
        try:
            return await self._files.keep(body)
        except SpoolFailed as fault:
            self._fail(str(fault))
            raise

    def _forget(self, size_octets: int, name: str | None) -> None:
        self.numbers.messages -= 1
        self.numbers.octets -= size_octets
        if name is not None:
            self._files.remove((name,))

    # --- marks: what became of deliveries. They return at once, and are durable a moment later (groups.RIDE_MARKS).

    def done(self, delivery: Delivery) -> None:
        """The sink has the event, or nobody wants it any more. The message goes with its last open slot."""
        held = delivery.held
        # With one slot the message goes at once, and nobody will read the mark.
        self._mark(Mark(held.seq, 0, 1, State.DONE) if len(held.slots) == 1 else mark_of(delivery, State.DONE, 0, "", 0), delivery)

    def retry(self, delivery: Delivery, due_ms: int, why: str) -> None:
        """The event steps aside until *due_ms*, by the steady clock; ``delivery.attempt`` is kept with it."""
        self._post(mark_of(delivery, State.RETRY, due_ms, why, delivery.since_ms))

    def dead(self, delivery: Delivery, why: str) -> None:
        """The event is given up; it is kept, with its message, as a dead letter."""
        self._line.recount = True
        self._mark(mark_of(delivery, State.DEAD, 0, why, self._clock.now_ms()), delivery)

    def set_aside(self, delivery: Delivery, why: str) -> None:
        """The message turned out to be damaged: keep it out of every page, and tell."""
        seq, why, now_ms = delivery.held.seq, reason(why), self._clock.now_ms()
        self._decide(delivery.slot.sink)
        self.numbers.damaged += 1
        telemetry.spool_damaged(what="message", why=why, place=delivery.held.mail.id)
        self._writer.post(lambda: self._database.set_aside(seq, why, now_ms), lambda _result, _fault: None)

    def _mark(self, mark: Mark, delivery: Delivery) -> None:
        self._decide(delivery.slot.sink)
        self._post(mark)

    def _decide(self, sink: str, count: int = 1) -> None:
        """*count* deliveries are not owed to *sink* any more."""
        pending = self.numbers.pending
        pending[sink] = pending.get(sink, 0) - count

    def _post(self, mark: Mark) -> None:
        self._line.post(mark)
        if self._linger is None:
            self._linger = self._loop.call_later(MARK_LINGER_S, self._linger_ended)
        elif self._line.urgent:
            self._poke()

    def _linger_ended(self) -> None:
        self._linger = None
        self._line.overdue = bool(self._line.marks)
        self._hand_over()

    async def flush(self) -> None:
        """Return when every mark given so far is durable. Raises ``SpoolFailed`` if the spool is not healthy."""
        if self._line.durable:
            return
        if self._state != "open":
            raise SpoolFailed(self._reason)
        future = self._line.flush()
        self._poke()
        await future

    # --- groups

    def _poke(self) -> None:
        """Hand a group over at the end of this turn of the loop, so that all who come in this turn share it; or a little later.

        Later ends when as many have come as the last group held: with so many senders at work, nobody else is on the way.
        """
        if self._gathering is not None and len(self._line.commits) >= self._company:
            self._gathering.cancel()
            self._gathering = None
            self._loop.call_soon(self._hand_over)
        if not self._busy and not self._scheduled:
            self._scheduled = True
            if self._company > 1:
                self._gathering = self._loop.call_later(GATHER_S, self._hand_over)
            else:  # one sender alone waits for nobody
                self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        self._scheduled = False
        if self._gathering is not None:  # marks that have waited long enough come before its time
            self._gathering.cancel()
            self._gathering = None
        if self._state != "open":  # failed meanwhile: nobody waits for a reopening
            self._line.refuse_commits(SpoolFailed(self._reason))
            return
        if self._busy or self._stalled:
            return
        group = self._line.take()
        if not (group.commits or group.marks or group.removals):
            return
        if self._linger is not None and not self._line.marks:
            self._linger.cancel()
            self._linger = None
        self._busy = True
        look = self._loop.time() >= self._looked_at + LOOK_S
        if look:
            self._looked_at = self._loop.time()
        self._writer.post(partial(write, group, self._database, self.folder, look=look), partial(self._applied, group))

    def _applied(self, group: Group, written: Written | None, fault: SpoolFault | None) -> None:
        self._busy = False
        if fault is not None:
            self._group_failed(group, fault)
            return
        assert written is not None
        applied, free_octets, seconds = written
        numbers = self.numbers
        numbers.messages -= applied.messages
        numbers.octets -= applied.octets
        numbers.free_octets = numbers.free_octets - group.octets if free_octets is None else free_octets
        if applied.dead_letters is not None:
            numbers.dead_letters = applied.dead_letters
        self._files.remove(applied.files)
        self._line.done(group)
        arrivals = [held for held in map(self._resolve, group.commits) if held is not None]
        self._commits += len(group.commits)
        telemetry.spool_committed(messages=len(group.commits), seconds=seconds)
        self._company = len(group.commits)
        self._next_group(seconds)
        if arrivals:
            self._loop.call_soon(self._give_out, arrivals)  # a turn later: answers are on their way before deliveries begin

    def _give_out(self, arrivals: Sequence[Held]) -> None:
        if self.receiver is not None:
            for held in arrivals:
                self.receiver(held)

    def _next_group(self, seconds: float) -> None:
        """Go on for those who wait for an answer, at once if that took long; marks alone wait a little for company."""
        if self._line.urgent and seconds < GATHER_S:
            self._poke()
        elif self._line.urgent:
            self._hand_over()
        elif self._line and self._linger is None:
            self._linger = self._loop.call_later(MARK_LINGER_S, self._linger_ended)

    def _resolve(self, commit: Commit) -> Held | None:
        row = commit.row
        if commit.future.cancelled():  # nobody answered 250: take it out again
            self._line.removals.append(row.seq)
            self._line.recount |= bool(commit.marks)
            telemetry.spool_withdrawn(message=commit.mail.id)
            return None
        path = self.folder.bodies / row.file if row.file is not None else None
        held = Held(row.seq, commit.mail, commit.slots, size_octets=row.size_octets, octets=row.body, path=path)
        if commit.marks:  # dead on arrival
            commit.future.set_result(held)
            return None
        pending = self.numbers.pending
        for _, sink, _ in commit.slots:
            pending[sink] = pending.get(sink, 0) + 1
        commit.future.set_result(held)
        return held

    # --- faults

    def _group_failed(self, group: Group, fault: SpoolFault) -> None:
        self._line.put_back(group)
        if isinstance(fault, SpoolFull):
            self._ran_full(fault)
        elif isinstance(fault, SpoolUnwritable) and self._line.sift(fault):
            telemetry.spool_job_crashed(error=fault)
            self._hand_over()
        else:
            self._reopening.refused += [commit.row.seq for commit in group.commits]
            self._fail(str(fault))

    def _ran_full(self, fault: SpoolFull) -> None:
        """Give the ballast back for the marks that wait; if that was done before, let them wait for the next tick."""
        self._line.refuse_commits(fault)
        if self._disk_full:
            self._stalled = True
            self._line.refuse_flushes(fault)
            return
        self._disk_full = True
        telemetry.spool_failed(kind="full", why=str(fault))
        self._writer.post(self.folder.drop_ballast, lambda _result, _fault: None)
        self._hand_over()

    def _fail(self, why: str) -> None:
        """Stop accepting, and open again after a pause."""
        self._reason = why
        self._line.refuse_commits(SpoolFailed(why))
        self._line.refuse_flushes(SpoolFailed(why))
        telemetry.spool_failed(kind="failed", why=why)
        if self._state == "open":
            self._state = "failed"
            self._reopening.begin()

    def _reopen_failed(self, why: str) -> None:
        self._reason = why

    def _reopened(self) -> None:
        self._state, self._reason = "open", ""
        self._hand_over()

    # --- reading

    async def fresh(self, sink: str, after: int, limit: int, max_octets: int) -> Page:
        """Return undecided deliveries to *sink* of messages after seq *after*, in order."""
        return await self._page(sink, partial(self._database.fresh, sink, after, limit, max_octets, self._clock.now_ms()))

    async def due(self, sink: str, limit: int, max_octets: int) -> Page:
        """Return retries to *sink* that are due now. Those returned before must have been decided, or they come again."""
        await self.flush()
        times = self._clock.steady_ms(), self._clock.now_ms()
        return await self._page(sink, partial(self._database.due, sink, limit, max_octets, *times))

    async def _page(self, sink: str, read: Callable[[], Page]) -> Page:
        page = await self._writer.run(read)
        self._tell_holes()
        self._decide(sink, page.damaged)
        return page

    async def verify(self, held: Held) -> None:
        """Check that the file of *held* is what was accepted. Raises ``SpoolDamaged`` or ``SpoolFailed``."""
        await self._files.verify(held)

    async def read(self, held: Held) -> bytes:
        """Return the octets of *held*. Raises as ``verify``; the content of a file is not checked again."""
        return await self._files.read(held)

    def _tell_holes(self) -> None:
        holes = self._database.holes
        for why in holes[self._holes_told :]:
            telemetry.spool_damaged(what="row", why=why, place=str(self.folder.database))
            self.numbers.damaged += 1
        self._holes_told = len(holes)

    # --- dead letters

    async def dead_letters(self, limit: int = 100, after: str = "") -> list[DeadLetter]:
        """Return at most *limit* dead letters, the oldest first, behind the cursor *after*. ``ValueError``: that is no cursor."""
        place = place_of(after)
        await self.flush()
        letters = await self._writer.run(lambda: self._database.dead_letters(limit, place))
        self._tell_holes()
        return letters

    async def dead_letter(self, event_id: str, sink: str) -> tuple[DeadLetter, Delivery] | None:
        """Return one dead letter and its delivery (for rendering), ``None`` if there is none of that name."""
        await self.flush()
        return await self._writer.run(lambda: self._database.dead_letter(event_id, sink))

    async def replay(self, event_id: str, sink: str) -> bool:
        """Put a dead letter back in its sink's queue, attempts and age counted anew; return whether there was one."""
        mark = await self._dead_mark(event_id, sink)
        if mark is None:
            return False
        self._decide(sink, -1)
        self._line.recount = True
        self._post(mark._replace(state=State.RETRY, attempt=0, due_ms=self._clock.steady_ms(), at_ms=self._clock.now_ms()))
        await self.flush()
        if self.on_replay is not None:
            self.on_replay(sink)
        return True

    async def drop(self, event_id: str, sink: str) -> bool:
        """Forget a dead letter; return whether there was one. Its message goes with its last open slot."""
        mark = await self._dead_mark(event_id, sink)
        if mark is None:
            return False
        self._drop(mark)
        await self.flush()
        return True

    async def _dead_mark(self, event_id: str, sink: str) -> Mark | None:
        await self.flush()
        return await self._writer.run(lambda: self._database.dead_mark(event_id, sink))

    def _drop(self, mark: Mark) -> None:
        self._line.recount = True
        self._post(mark._replace(state=State.DONE))

    # --- housekeeping

    def _tick(self) -> None:
        self._ticks += 1
        idle = not self._commits and not self._disk_full  # giving pages back needs room for the log
        self._commits = 0
        chores = Chores(idle=idle, retention=self._ticks % RETENTION_TICKS == 1, healthy=self._state == "open", now_ms=self._clock.now_ms())
        self._writer.post(partial(care, self.folder, self._database, self.settings, chores), self._cared)

    def _cared(self, found: Findings | None, fault: SpoolFault | None) -> None:
        if self._state == "closed" or not self._accepting:
            return
        self._tick_timer = self._clock.call_later(TICK_S, self._tick)
        stalled, self._stalled = self._stalled, False
        trouble, self._trouble = self._trouble, "" if fault is None else str(fault)
        if fault is not None:
            if trouble != self._trouble:
                telemetry.spool_failed(kind="housekeeping", why=self._trouble)
            self._hand_over()
            return
        assert found is not None
        numbers = self.numbers
        numbers.free_octets, numbers.spilled_octets = found.free_octets, found.spilled_octets
        if found.looked:
            numbers.oldest_ms = found.oldest_ms
        for mark in found.expired:
            telemetry.dead_letter_dropped(sink=mark.sink, event=mark.event_id)
            self._drop(mark)
        if self._disk_full:
            self._disk_full = stalled or found.free_octets <= self.settings.free_min_octets
            self._hand_over()

    def oldest_age_s(self) -> float:
        """Return the age of the oldest message still owed to a sink, 0 if there is none."""
        oldest_ms = self.numbers.oldest_ms
        return 0.0 if oldest_ms is None else max(0.0, (self._clock.now_ms() - oldest_ms) / 1000)
