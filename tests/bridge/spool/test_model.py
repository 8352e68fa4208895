"""The spool against a dictionary: whatever happens in whatever order, both hold the same."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from postbus.bridge.spool import Delivery, Spool, slots_of
from postbus.bridge.spool.core import ROW_MAX_OCTETS
from postbus.bridge.spool_settings import SpoolSettings
from tests.bridge.mails import ManualClock, in_memory, mail, recipient

Result = TypeVar("Result")
ALL = 1 << 40
SINKS = ("out", "other")
SIZES = st.sampled_from((0, 10, 20_000, ROW_MAX_OCTETS + 1))


class SpoolMachine(RuleBasedStateMachine):
    """Owed and retried deliveries, dead letters and octets, in a spool and in dictionaries."""

    deliveries = Bundle("deliveries")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = ManualClock()
        self.count = 0
        self.owed: dict[tuple[int, int], str] = {}
        self.retries: dict[tuple[int, int], int] = {}
        self.dead: dict[tuple[str, str], tuple[int, int]] = {}
        self.contents: dict[int, bytes] = {}
        self.sinks: dict[tuple[int, int], str] = {}

    def run(self, job: Coroutine[Any, Any, Result]) -> Result:
        """Run *job* on the machine's loop."""
        return self.loop.run_until_complete(job)

    @initialize()
    def open(self) -> None:
        """Open the spool, again after a restart."""
        self.spool = Spool(SpoolSettings(folder=Path(self.folder.name), free_min_octets=0, ballast_octets=0), clock=self.clock)
        self.run(self.spool.open())

    @rule(
        target=deliveries,
        recipients=st.integers(1, 3),
        best_effort=st.booleans(),
        size=SIZES,
    )
    def commit(self, recipients: int, best_effort: bool, size: int) -> Any:
        """Accept a mail."""
        self.count += 1
        content = bytes([self.count % 256]) * size
        sinks: dict[str, Any] = {"sinks": ("out",), "best_effort": ("other",)} if best_effort else {"sinks": SINKS}
        people = [recipient(f"{self.count}-{index}", index=index, **sinks) for index in range(recipients)]
        record = mail(f"m{self.count}", content, *people)
        held = self.run(self.spool.commit(record, slots_of(record), in_memory(content)))
        self.contents[held.seq] = content
        made = [Delivery(held, number) for number in range(len(held.slots))]
        for delivery in made:
            self.owed[delivery.order] = self.sinks[delivery.order] = delivery.slot.sink
        return made

    def _left(self, delivery: Delivery) -> None:
        seq = delivery.held.seq
        if not any(order[0] == seq for order in [*self.owed, *self.retries, *self.dead.values()]):
            del self.contents[seq]

    @rule(made=deliveries, which=st.integers(0, 5))
    def done(self, made: list[Delivery], which: int) -> None:
        """A delivery ends well, unless it has ended before."""
        delivery = made[which % len(made)]
        if self.owed.pop(delivery.order, None) or self.retries.pop(delivery.order, None):
            self.spool.done(delivery)
            self._left(delivery)

    @rule(made=deliveries, which=st.integers(0, 5), pause=st.integers(0, 100))
    def retry(self, made: list[Delivery], which: int, pause: int) -> None:
        """A delivery steps aside."""
        delivery = made[which % len(made)]
        if self.owed.pop(delivery.order, None) or self.retries.pop(delivery.order, None):
            delivery.attempt += 1
            self.spool.retry(delivery, self.clock.ms + pause, "later")
            self.retries[delivery.order] = self.clock.ms + pause

    @rule(made=deliveries, which=st.integers(0, 5))
    def give_up(self, made: list[Delivery], which: int) -> None:
        """A delivery becomes a dead letter."""
        delivery = made[which % len(made)]
        if self.owed.pop(delivery.order, None) or self.retries.pop(delivery.order, None):
            self.spool.dead(delivery, "no")
            self.dead[delivery.recipient.event_id, delivery.slot.sink] = delivery.order

    @rule(made=consumes(deliveries), drop=st.booleans())
    def decide_on_the_dead(self, made: list[Delivery], drop: bool) -> None:
        """All dead letters of a mail are dropped or put back."""
        for delivery in made:
            name = delivery.recipient.event_id, delivery.slot.sink
            known = name in self.dead
            assert known == self.run((self.spool.drop if drop else self.spool.replay)(*name))
            if known:
                order = self.dead.pop(name)
                if drop:
                    self._left(delivery)
                else:
                    self.retries[order] = self.clock.ms

    @rule(ms=st.integers(1, 200))
    def wait(self, ms: int) -> None:
        """Time passes."""
        self.clock.ms += ms

    @rule()
    def restart(self) -> None:
        """The process ends in good order and comes back."""
        self.run(self.spool.close())
        self.open()

    @invariant()
    def same(self) -> None:
        """Pages, retries, dead letters and figures are those of the dictionaries."""
        if hasattr(self, "spool"):
            self.run(self._compare())

    async def _compare(self) -> None:
        spool, numbers = self.spool, self.spool.numbers
        await spool.flush()
        for sink in SINKS:
            page = await spool.fresh(sink, 0, 10_000, ALL)
            assert sorted(order for order, owner in self.owed.items() if owner == sink) == [one.order for one in page.deliveries]
            late = await spool.due(sink, 10_000, ALL)
            expected = sorted((due, *order) for order, due in self.retries.items() if due <= self.clock.ms and self.sinks[order] == sink)
            assert expected == [(self.retries[one.order], *one.order) for one in late.deliveries]
            later = [due for order, due in self.retries.items() if due > self.clock.ms and self.sinks[order] == sink]
            assert late.next_due_ms == (min(later) if later else None)
            for delivery in (*page.deliveries, *late.deliveries):
                assert self.contents[delivery.held.seq] == await spool.read(delivery.held)
        assert set(self.dead) == {(letter.event_id, letter.sink) for letter in await spool.dead_letters(10_000)}
        assert len(self.dead) == sum(numbers.dead_letters.values())
        assert (len(self.contents), sum(map(len, self.contents.values()))) == (numbers.messages, numbers.octets)
        assert len(self.owed) + len(self.retries) == sum(numbers.pending.values())

    def teardown(self) -> None:
        """Close all."""
        self.run(self.spool.close())
        self.loop.close()
        self.folder.cleanup()


SpoolMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
TestSpoolAgainstDictionaries = SpoolMachine.TestCase
