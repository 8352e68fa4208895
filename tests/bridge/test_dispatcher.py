"""Accepted mail on its way to the sinks, over a real spool and fake sinks, with a clock the test turns."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from postbus import telemetry
from postbus.bridge.dispatcher import Dispatcher
from postbus.bridge.lane import Lane
from postbus.bridge.renderer import Renderer
from postbus.bridge.spool import Delivery, Held, Spool, SpoolFailed, slots_of
from postbus.bridge.spool_settings import DispatchSettings, RetrySettings, SpoolSettings
from postbus.event.model import Event
from postbus.sinks import Outcome, Rejected, Retry, Sent
from postbus.telemetry.numbers import NUMBERS
from tests.bridge.fake_sinks import FakeParser, FakeSink
from tests.bridge.mails import NOW_MS, ManualClock, in_memory, mail, recipient, until

SMALL, LARGE = b"small\r\n", b"large\r\n" * 100_000
GRACE_S = 600
RETRY = RetrySettings(
    first_delay_s=1,
    multiplier=2,
    max_delay_s=60,
    jitter=0,
    attempts_max=3,
    age_max_s=1000,
    best_effort_attempts_max=2,
    gone_sink_grace_s=GRACE_S,
)


@dataclass
class Works:
    """A spool, its dispatcher and their clock."""

    spool: Spool
    dispatcher: Dispatcher
    clock: ManualClock

    async def accept(self, name: str, *, content: bytes = SMALL, **rest: Any) -> Held:
        """Commit a mail called *name* to one recipient."""
        record = mail(name, content, recipient(name, **rest), received_ms=self.clock.ms)
        held = await self.spool.commit(record, slots_of(record), in_memory(content))
        await asyncio.sleep(0)  # the turn in which it is given out
        return held

    def lane(self, name: str = "out") -> Lane:
        """Return a lane."""
        return self.dispatcher._lanes[name]

    async def empty(self) -> None:
        """Wait until nothing is held."""
        await until(lambda: self.spool.numbers.messages == 0, "an empty spool")

    async def dead(self) -> dict[str, str]:
        """Return the dead letters: id -> reason."""
        return {letter.event_id: letter.why for letter in await self.spool.dead_letters(1000)}


@asynccontextmanager
async def working(
    folder: Path,
    *sinks: FakeSink,
    clock: ManualClock | None = None,
    retry: RetrySettings = RETRY,
    dispatch: DispatchSettings | None = None,
    parser: FakeParser | None = None,
) -> AsyncIterator[Works]:
    """Open a spool and dispatch it to *sinks*."""
    clock = clock or ManualClock()
    spool = Spool(SpoolSettings(folder=folder, free_min_octets=0, ballast_octets=0), clock=clock)
    await spool.open()
    dispatcher = Dispatcher(
        spool,
        {sink.name: sink for sink in sinks},
        Renderer(parser or FakeParser()),
        retry=retry,
        dispatch=dispatch,
        clock=clock,
        random=lambda: 0.5,
    )
    dispatcher.start()
    clock.advance(0)
    try:
        yield Works(spool, dispatcher, clock)
    finally:
        await dispatcher.drain(0)
        await spool.close()


def failing_first(count: int, outcome: Outcome) -> Any:
    """Return an answer that is *outcome* so many times, then Sent."""
    left = [count]

    def answer(_: Event) -> Outcome:
        left[0] -= 1
        return outcome if left[0] >= 0 else Sent()

    return answer


# --- the straight way


async def test_fresh_mail_is_sent_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accepted mail goes to its sink in order, without the spool being read, and leaves the spool."""
    sink = FakeSink(concurrency=1)
    async with working(tmp_path, sink) as works:
        await until(lambda: not works.lane()._chores)

        def no(*_: Any) -> None:
            raise AssertionError("the spool was read")

        monkeypatch.setattr(works.spool._database, "fresh", no)
        monkeypatch.setattr(works.spool._database, "due", no)
        for number in range(30):
            await works.accept(f"m{number}")
        await works.empty()
        assert [f"m{number}" for number in range(30)] == sink.ids
        assert (0, 0) == (works.dispatcher.waiting.used_octets, works.dispatcher.sending.used_octets)


async def test_concurrency_is_the_sinks(tmp_path: Path) -> None:
    """As many sends are under way as the sink allows, no more."""
    sink = FakeSink(concurrency=3, gate=asyncio.Event())
    async with working(tmp_path, sink) as works:
        for number in range(10):
            await works.accept(f"m{number}")
        await until(lambda: sink.in_flight == 3)
        (status,) = works.dispatcher.status()
        assert ("out", True, 10, 7, 3, False, 0, "", False) == (
            status.sink,
            status.configured,
            status.owed,
            status.queued,
            status.in_flight,
            status.paused,
            status.failures,
            status.trouble,
            status.behind,
        )
        assert sink.gate is not None
        sink.gate.set()
        await works.empty()
        assert 3 == sink.in_flight_max
        await works.accept("later")
        await works.empty()


async def test_every_slot_is_delivered(tmp_path: Path) -> None:
    """Each recipient's event goes to each of its sinks, required and best effort."""
    out, other = FakeSink("out"), FakeSink("other")
    async with working(tmp_path, out, other) as works:
        people = [recipient("a", sinks=("out", "other")), recipient("b", index=1, best_effort=("other",))]
        record = mail("m", SMALL, *people)
        await works.spool.commit(record, slots_of(record), in_memory(SMALL))
        await works.empty()
        assert (["a", "b"], ["a", "b"]) == (sorted(out.ids), sorted(other.ids))


async def test_a_file_is_in_memory_only_while_it_is_sent(tmp_path: Path) -> None:
    """A large body is read when its turn comes, once for all its events, and given back; what has no room waits."""
    out, other = FakeSink("out", gate=asyncio.Event()), FakeSink("other", gate=asyncio.Event())
    async with working(tmp_path, out, other, dispatch=DispatchSettings(in_flight_max_octets=8_388_608)) as works:
        for name in "ab":
            await works.accept(name, content=LARGE, sinks=("out", "other"))
        await until(lambda: out.in_flight == 1 and other.in_flight == 1)
        assert out.events[0].data is other.events[0].data
        assert (1 + 2 + 2) * len(LARGE) == works.dispatcher.sending.used_octets
        for sink in (out, other):
            assert sink.gate is not None
            sink.gate.set()
        await works.empty()
        assert (["a", "b"], 0) == (out.ids, works.dispatcher.sending.used_octets)
        assert [LARGE] * 2 == [event.data for event in out.events]


@pytest.mark.parametrize(
    ("size_octets", "in_flight_max_octets", "at_once"),
    [
        pytest.param(1_000_000, 3 * 1_500_000, 1, id="one at a time"),
        pytest.param(1_000_000, 3 * 4_600_000, 4, id="a file, and its events in the room beside it"),
        pytest.param(100_000, 3 * 350_000, 3, id="a row"),
    ],
)
async def test_the_events_of_one_mail_are_counted(tmp_path: Path, size_octets: int, in_flight_max_octets: int, at_once: int) -> None:
    """However many recipients a mail has, what is in memory of it stays within the budget; the file is read once."""
    sink = FakeSink(concurrency=20, octets=False, gate=asyncio.Event())
    async with working(tmp_path, sink, dispatch=DispatchSettings(in_flight_max_octets=in_flight_max_octets)) as works:
        record = mail("m", b"x" * size_octets, *(recipient(f"r{number:02}", index=number) for number in range(20)))
        reads: list[Held] = []
        read = works.spool._files.read

        async def noted(held: Held) -> bytes:
            reads.append(held)
            return await read(held)

        works.spool._files.read = noted  # type: ignore[method-assign]
        await works.spool.commit(record, slots_of(record), in_memory(b"x" * size_octets))
        await until(lambda: sink.in_flight == at_once)
        assert sink.gate is not None
        sink.gate.set()
        await works.empty()
        assert (20, at_once, 0) == (len(sink.ids), sink.in_flight_max, works.dispatcher.sending.used_octets)
        assert len(reads) <= 1


async def test_large_mail_to_several_when_memory_is_short(tmp_path: Path) -> None:
    """Whoever waited for memory gives back what another event of his message had taken meanwhile: nothing is lost, nothing stops."""
    sink = FakeSink(concurrency=2)
    async with working(tmp_path, sink, dispatch=DispatchSettings(in_flight_max_octets=4_194_304)) as works:
        for number in range(6):
            await works.accept(f"one{number}", content=LARGE + LARGE)
            record = mail(f"some{number}", LARGE, *(recipient(f"some{number}.{index}", index=index) for index in range(3)))
            await works.spool.commit(record, slots_of(record), in_memory(LARGE))
        await works.empty()
        assert (24, 0) == (len(set(sink.ids)), works.dispatcher.sending.used_octets)


async def test_a_large_mail_waits_for_none_that_wait_behind_it(tmp_path: Path) -> None:
    """A queue full of small mail holds no memory that the one worker needs for the large one before them."""
    sink = FakeSink(concurrency=1)
    async with working(tmp_path, sink, dispatch=DispatchSettings(in_flight_max_octets=1_048_576)) as works:
        await works.accept("large", content=LARGE)
        for number in range(30):
            await works.accept(f"m{number}", content=b"x" * 30_000)
        await works.empty()
        assert ["large", *(f"m{number}" for number in range(30))] == sink.ids


# --- what the parser says


async def test_a_moments_trouble_of_the_parser_is_no_verdict(tmp_path: Path) -> None:
    """The mail comes again, and its event is what it would have been."""
    sink, parser = FakeSink(), FakeParser(troubles=1)
    async with working(tmp_path, sink, parser=parser) as works:
        await works.accept("m", mode="parsed")
        await until(lambda: parser.asked and not works.lane().in_flight)
        assert [] == sink.ids
        works.clock.advance(1)
        await works.empty()
        assert (["m"], {}) == (sink.ids, await works.dead())


async def test_what_no_event_can_hold_is_a_dead_letter(tmp_path: Path) -> None:
    """It cannot be parsed, and is too large for its sinks as it is: its content is kept, not left out."""
    sink = FakeSink()
    async with working(tmp_path, sink) as works:
        content = b"x" * 200_000
        record = mail("m", content, replace(recipient("m", mode="parsed"), event_max_octets=100_000))
        await works.spool.commit(record, slots_of(record), in_memory(content))
        await until(lambda: works.spool.numbers.dead_letters)
        assert [] == sink.ids
        assert "could not be parsed (parser.died)" in (await works.dead())["m"]


# --- sinks that are down


async def test_a_sink_that_is_down_pauses_its_queue(tmp_path: Path) -> None:
    """All wait while the sink is down; pauses grow; one alone tries it; then all go, in order, and others were not held up."""
    out, other = FakeSink("out", answer=failing_first(3, Retry("down"))), FakeSink("other")
    async with working(tmp_path, out, other) as works:
        for number in range(4):
            await works.accept(f"m{number}", sinks=("out", "other"))
        await until(lambda: works.lane().paused and not works.lane().in_flight)
        await until(lambda: len(other.ids) == 4)
        assert ["m0"] == out.ids
        assert (True, False) == (works.dispatcher.down("out"), works.dispatcher.down("other"))
        assert "down" == works.dispatcher.status()[0].trouble or "down" == works.dispatcher.status()[1].trouble
        await works.accept("m4", sinks=("out",))
        works.clock.advance(0.9)
        assert not works.lane()._probing
        works.clock.advance(0.1)
        await until(lambda: works.lane().failures == 2)
        works.clock.advance(1.9)
        assert ["m0", "m0"] == out.ids
        works.clock.advance(0.1)
        await until(lambda: works.lane().failures == 3)
        assert ["m0", "m0", "m0"] == out.ids
        works.clock.advance(4)
        await works.empty()
        assert ["m0", "m1", "m2", "m3", "m4"] == out.ids[3:]
        assert (False, 0, "") == (works.lane().paused, works.lane().failures, works.lane().trouble)
        assert {} == await works.dead()


async def test_failures_at_once_count_once(tmp_path: Path) -> None:
    """Sends that were under way together and fail together are one failure of the sink, and keep their order."""
    sink = FakeSink(concurrency=8, gate=asyncio.Event(), answer=failing_first(8, Retry("down")))
    async with working(tmp_path, sink) as works:
        for number in range(12):
            await works.accept(f"m{number:02}")
        await until(lambda: sink.in_flight == 8)
        assert sink.gate is not None
        sink.gate.set()
        await until(lambda: works.lane().paused and not works.lane().in_flight)
        assert 1 == works.lane().failures
        works.clock.advance(1)
        await works.empty()
        assert [f"m{number:02}" for number in range(12)] == sink.ids[8:]


async def test_retry_after_is_heeded(tmp_path: Path) -> None:
    """A sink that asks for a longer pause gets it."""
    sink = FakeSink(answer=failing_first(1, Retry("busy", after_s=30)))
    async with working(tmp_path, sink) as works:
        await works.accept("m")
        await until(lambda: works.lane().paused)
        works.clock.advance(29)
        assert ["m"] == sink.ids
        works.clock.advance(1)
        await works.empty()


async def test_an_answer_of_any_kind_ends_the_pause(tmp_path: Path) -> None:
    """A sink that rejects one event is not down."""
    answers: list[Outcome] = [Retry("down"), Rejected("no"), Sent()]
    sink = FakeSink(answer=lambda _: answers.pop(0), concurrency=1)
    async with working(tmp_path, sink) as works:
        await works.accept("a")
        await works.accept("b")
        await until(lambda: works.lane().paused)
        works.clock.advance(1)
        await until(lambda: works.spool.numbers.pending["out"] == 0)
        assert {"a": "rejected: no"} == await works.dead()


async def test_age_ends_the_wait_for_a_sink(tmp_path: Path) -> None:
    """What has grown too old while its sink was down is a dead letter at the next failure; the younger waits on."""
    sink = FakeSink(answer=lambda _: Retry("down"), concurrency=1)
    async with working(tmp_path, sink, retry=RETRY.model_copy(update={"max_delay_s": 500.0, "first_delay_s": 500.0})) as works:
        await works.accept("a")
        await works.accept("b")
        await until(lambda: works.lane().paused)
        works.clock.ms += 600_000
        await works.accept("young")
        works.clock.advance(400)
        await until(lambda: works.spool.numbers.pending["out"] == 1)
        await works.spool.flush()
        assert {"a": "age: down", "b": "age: down"} == await works.dead()
        assert 1 == works.lane().queued


# --- events that fail by themselves


async def test_an_event_that_fails_by_itself_steps_aside(tmp_path: Path) -> None:
    """It leaves memory, the others pass, and it comes again when due, with the same bytes."""
    failures = {"a": 2}

    def answer(event: Event) -> Outcome:
        failures[event.id] = failures.get(event.id, 0) - 1
        return Retry("odd", sink_down=False) if failures[event.id] >= 0 else Sent()

    sink = FakeSink(answer=answer, concurrency=1)
    async with working(tmp_path, sink) as works:
        for name in "ab":
            await works.accept(name)
        await until(lambda: works.spool.numbers.pending["out"] == 1)
        assert (["a", "b"], 0, 0) == (sink.ids, works.lane().queued, works.dispatcher.sending.used_octets)
        works.clock.advance(1)
        await until(lambda: len(sink.ids) == 3)
        await until(lambda: not works.lane().in_flight)
        works.clock.advance(2)
        await works.empty()
        assert ["a", "b", "a", "a"] == sink.ids
        assert 1 == len({repr(event) for event in sink.events if event.id == "a"})


async def test_attempts_end(tmp_path: Path) -> None:
    """After its last attempt an event is a dead letter with the reason; put back, it starts anew."""
    sink = FakeSink(answer=lambda _: Retry("odd", sink_down=False))
    async with working(tmp_path, sink) as works:
        await works.accept("a")
        for attempt, pause in enumerate((1, 2, 4), 1):
            await until(lambda attempt=attempt: len(sink.ids) == attempt and not works.lane().in_flight)  # type: ignore[misc]
            await works.spool.flush()
            works.clock.advance(pause)
        assert {"a": "attempts: odd"} == await works.dead()
        sink.answer = lambda _: Sent()
        assert await works.spool.replay("a", "out")
        works.clock.advance(0)
        await works.empty()
        assert 4 == len(sink.ids)


async def test_rejected_is_dead_at_once(tmp_path: Path) -> None:
    """What the far side will never take is a dead letter with its reason, kept over a restart."""
    sink = FakeSink(answer=lambda _: Rejected("no such topic"))
    async with working(tmp_path, sink) as works:
        await works.accept("a")
        await until(lambda: works.spool.numbers.dead_letters)
    async with working(tmp_path, sink) as works:
        assert {"a": "rejected: no such topic"} == await works.dead()
        assert ["a"] == sink.ids


async def test_best_effort_leaves_no_dead_letter(tmp_path: Path) -> None:
    """A best-effort sink is retried within its own bounds, then the event is forgotten."""
    extra = FakeSink("extra", answer=lambda _: Retry("odd", sink_down=False))
    async with working(tmp_path, FakeSink(), extra) as works:
        await works.accept("a", best_effort=("extra",))
        await until(lambda: len(extra.ids) == 1 and not works.lane("extra").in_flight)
        works.clock.advance(1)
        await works.empty()
        assert (["a", "a"], {}) == (extra.ids, await works.dead())


async def test_many_retries_come_in_batches(tmp_path: Path) -> None:
    """More retries than fit into memory are read page by page, each once."""
    first = {f"m{number}" for number in range(12)}

    def answer(event: Event) -> Outcome:
        if event.id in first:
            first.discard(event.id)
            return Retry("odd", sink_down=False)
        return Sent()

    sink = FakeSink(answer=answer, concurrency=2)
    async with working(tmp_path, sink, dispatch=DispatchSettings(window_max_events=4)) as works:
        for number in range(12):
            await works.accept(f"m{number}")
        await until(lambda: not first and not works.lane().in_flight and not works.lane().queued)
        works.clock.advance(2)
        for _ in range(20):
            await until(lambda: not works.lane().in_flight and not works.lane().queued and not works.lane()._chores)
            works.clock.advance(0)
        await works.empty()
        assert 24 == len(sink.ids)
        assert 12 == len(set(sink.ids))


# --- more than memory holds


BOUNDS = [
    pytest.param(DispatchSettings(window_max_events=5), id="events"),
    pytest.param(DispatchSettings(in_flight_max_octets=1_048_576), id="octets"),
]


@pytest.mark.parametrize("dispatch", BOUNDS)
async def test_a_backlog_waits_in_the_spool(tmp_path: Path, dispatch: DispatchSettings) -> None:
    """Beyond its window a lane leaves mail in the spool, and takes it page by page, in order, each once; then it is live again."""
    sink = FakeSink(gate=asyncio.Event(), concurrency=1)
    content = b"x" * 30_000
    async with working(tmp_path, sink, dispatch=dispatch) as works:
        for number in range(60):
            await works.accept(f"m{number}", content=content)
        assert works.lane().behind
        assert works.lane().queued < 12
        assert works.dispatcher.waiting.used_octets < works.dispatcher.waiting.limit_octets + len(content)  # a page ends behind the bound
        assert sink.gate is not None
        sink.gate.set()
        for number in range(60, 80):
            await works.accept(f"m{number}", content=content)
        await works.empty()
        assert [f"m{number}" for number in range(80)] == sink.ids
        await until(lambda: not works.lane().behind)
        await works.accept("live")
        await works.empty()


async def test_restart(tmp_path: Path) -> None:
    """What was owed before a restart is delivered after it, in order, retries with their attempts."""
    sink = FakeSink(answer=lambda event: Retry("odd", sink_down=False) if event.id == "m0" else Retry("down"), concurrency=1)
    async with working(tmp_path, sink) as works:
        for number in range(5):
            await works.accept(f"m{number}")
        await until(lambda: works.lane().paused)
    sink = FakeSink(concurrency=1, answer=lambda event: Retry("odd", sink_down=False) if event.id == "m0" else Sent())
    async with working(tmp_path, sink, clock=ManualClock(NOW_MS + 1000)) as works:
        await until(lambda: len(sink.ids) == 5 and not works.lane().in_flight)
        assert ["m1", "m2", "m3", "m4"] == [name for name in sink.ids if name != "m0"]
        works.clock.advance(2)
        await until(lambda: sink.ids.count("m0") == 2 and not works.lane().in_flight)
        works.clock.advance(4)
        await until(lambda: works.spool.numbers.dead_letters)
        assert {"m0": "attempts: odd"} == await works.dead()


async def test_the_spool_cannot_be_read_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane asks again when the backlog or the retries cannot be read."""
    sink = FakeSink(answer=failing_first(1, Retry("odd", sink_down=False)))
    async with working(tmp_path, sink) as works:
        await works.accept("a")
        await until(lambda: sink.ids == ["a"] and not works.lane().in_flight)
        await works.spool.flush()
        real = works.spool._database.due, works.spool._database.fresh

        def fail(*_: Any) -> None:
            raise SpoolFailed("I/O error")

        monkeypatch.setattr(works.spool._database, "due", fail)
        monkeypatch.setattr(works.spool._database, "fresh", fail)
        works.lane()._live = False
        works.lane()._page_soon()
        works.clock.advance(1)
        await until(lambda: works.lane().trouble == "I/O error" and not works.lane()._chores)
        monkeypatch.setattr(works.spool._database, "due", real[0])
        monkeypatch.setattr(works.spool._database, "fresh", real[1])
        works.clock.advance(1)
        await works.empty()
        await until(lambda: not works.lane().behind)


# --- damage and mistakes


async def test_damage_is_set_aside(tmp_path: Path) -> None:
    """A message whose file is missing is set aside and told; the rest is delivered."""
    sink = FakeSink(gate=asyncio.Event(), concurrency=1)
    async with working(tmp_path, sink) as works:
        await works.accept("first")
        held = await works.accept("lost", content=LARGE)
        await works.accept("last")
        assert held.path is not None
        held.path.unlink()
        assert sink.gate is not None
        sink.gate.set()
        await until(lambda: works.spool.numbers.pending["out"] == 0)
        assert (["first", "last"], 1, 0) == (sink.ids, works.spool.numbers.damaged, works.dispatcher.sending.used_octets)


async def test_a_file_that_cannot_be_read_steps_aside(tmp_path: Path) -> None:
    """An I/O error on a body is not damage: the event comes again."""
    sink = FakeSink(gate=asyncio.Event(), concurrency=1)
    async with working(tmp_path, sink) as works:
        await works.accept("first")
        held = await works.accept("unreadable", content=LARGE)
        assert held.path is not None
        aside = held.path.with_suffix(".aside")
        held.path.rename(aside)
        held.path.mkdir()
        assert sink.gate is not None
        sink.gate.set()
        await until(lambda: works.spool.numbers.pending["out"] == 1 and not works.lane().in_flight)
        held.path.rmdir()
        aside.rename(held.path)
        works.clock.advance(1)
        await works.empty()
        assert ["first", "unreadable"] == sink.ids


async def test_a_sink_that_raises(tmp_path: Path) -> None:
    """A mistake of a sink costs one event a retry, and the worker goes on."""

    def crash(event: Event) -> Outcome:
        if event.id == "bad":
            raise ZeroDivisionError
        return Sent()

    sink = FakeSink(answer=crash)
    async with working(tmp_path, sink) as works:
        await works.accept("bad")
        await works.accept("good")
        await until(lambda: works.spool.numbers.pending["out"] == 1)
        for attempt in (2, 3):
            await until(lambda: not works.lane().in_flight)
            works.clock.advance(4)
            await until(lambda attempt=attempt: sink.ids.count("bad") == attempt)  # type: ignore[misc]
        await until(lambda: works.spool.numbers.dead_letters)
        assert {"bad": "attempts: failed in postbus: ZeroDivisionError"} == await works.dead()


async def test_a_worker_that_dies_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake of ours in a worker or a chore is told, and others go on in its place."""
    sink = FakeSink(concurrency=1)
    async with working(tmp_path, sink) as works:
        lane = works.lane()
        with monkeypatch.context() as patch:
            failing = [ZeroDivisionError]

            async def broken(*_: Any) -> None:
                raise ZeroDivisionError

            class BrokenOnce(deque[Delivery]):
                def popleft(self) -> Delivery:
                    if failing:
                        raise failing.pop()
                    return super().popleft()

            patch.setattr(lane, "_queue", BrokenOnce(lane._queue))
            await works.accept("first")
            await works.empty()
            patch.setattr(lane._shared, "store", SimpleNamespace(fresh=broken))
            lane._live = False
            lane._page_soon()
            await until(lambda: not lane._chores)
        await works.accept("next")
        works.clock.advance(1)
        await works.empty()
        assert ["first", "next"] == sink.ids


class FailingOnce(dict[str, Any]):
    """A dictionary that breaks the first time it is asked for *key*."""

    def __init__(self, values: Mapping[str, Any], key: str, failing: list[type[Exception]]) -> None:
        super().__init__(values)
        self._key = key
        self._failing = failing

    def __getitem__(self, key: str) -> Any:
        if key == self._key and self._failing:
            raise self._failing.pop()
        return super().__getitem__(key)


@pytest.mark.parametrize(
    ("outcome", "mistaken"),
    [
        pytest.param(Sent(), "delivery_done", id="sent"),
        pytest.param(Retry("odd", sink_down=False), "delivery_done", id="sent at the second attempt"),
        pytest.param(Retry("down"), "delivery_done", id="sent when it is back"),
        pytest.param(Rejected("no"), "delivery_given_up", id="rejected"),
        pytest.param(Retry("odd", sink_down=False), "delivery_deferred", id="stepping aside"),
        pytest.param(Retry("down"), "sink_paused", id="down"),
    ],
)
async def test_a_mistake_of_ours_in_the_end_costs_no_delivery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: Outcome, mistaken: str
) -> None:
    """What cannot be noted comes again: neither forgotten until a restart nor counted twice."""
    sink = FakeSink(answer=failing_first(1, outcome), concurrency=1)
    failing: list[type[Exception]] = [ZeroDivisionError]
    real = getattr(telemetry, mistaken)

    def broken(**keys: Any) -> None:
        if failing:
            raise failing.pop()
        real(**keys)

    if mistaken == "delivery_done":  # compiled code calls it past any patch: what it rests on breaks
        monkeypatch.setattr(NUMBERS, "cells", FailingOnce(NUMBERS.cells, "postbus_delivery_lag_seconds", failing))
    else:
        monkeypatch.setattr(telemetry, mistaken, broken)
    async with working(tmp_path, sink) as works:
        await works.accept("m")

        def decided() -> bool:
            works.clock.advance(0.1)
            return works.spool.numbers.pending["out"] == 0

        await until(decided)
        assert (0, 0) == (works.dispatcher.waiting.used_octets, works.lane().queued)
        assert len(sink.ids) <= 3
        assert not failing  # it was met


# --- the configuration changes


async def test_a_sink_that_left_by_mistake(tmp_path: Path) -> None:
    """A sink that comes back within its grace gets what waited, in order; nothing was given up."""
    gone, back = FakeSink("gone", answer=lambda _: Retry("down")), FakeSink("gone")
    async with working(tmp_path, gone) as works:
        for name in "ab":
            await works.accept(name, sinks=("gone",))
        await until(lambda: works.lane("gone").paused and not works.lane("gone").in_flight)
        works.dispatcher.replace({})
        await until(lambda: "no longer" in works.lane("gone").trouble)
        works.dispatcher.replace({"gone": back})
        await works.empty()
        assert (["a", "b"], {}) == (back.ids, works.spool.numbers.dead_letters)


async def test_a_clock_set_back_does_not_delay_a_retry(tmp_path: Path) -> None:
    """A pause of a second is over after a second, though the machine's clock was set back an hour meanwhile."""
    answers: Iterator[Outcome] = iter([Retry("not now", sink_down=False), Sent("")])
    sink = FakeSink(answer=lambda _: next(answers))
    async with working(tmp_path, sink) as works:
        await works.accept("a")
        await until(lambda: works.lane("out")._next_due_ms)
        works.clock.set_by_ms = -3_600_000
        works.clock.advance(1)
        await works.empty()
        assert ["a", "a"] == sink.ids


async def test_a_sink_that_left_the_configuration(tmp_path: Path) -> None:
    """Events owed to a sink that is no longer configured wait for it, then are dead letters with that reason, at a reload and at start."""
    gone = FakeSink("gone", answer=lambda _: Retry("down"))
    async with working(tmp_path, FakeSink(), gone) as works:
        for name in "ab":
            await works.accept(name, sinks=("gone",))
        await until(lambda: works.lane("gone").paused and not works.lane("gone").in_flight)
        works.dispatcher.replace({"out": FakeSink()})
        works.clock.advance(GRACE_S - 1)
        await until(lambda: works.lane("gone").paused and not works.lane("gone").in_flight)
        assert ({}, 2) == (works.spool.numbers.dead_letters, works.spool.numbers.pending["gone"])
        works.clock.advance(61)
        await until(lambda: works.spool.numbers.dead_letters == {"gone": 2})
        assert {"rejected: sink 'gone' is no longer in the configuration"} == set((await works.dead()).values())
        await works.accept("c", sinks=("never",))
        await until(lambda: works.lane("never").paused)
        works.clock.advance(GRACE_S)
        await until(lambda: works.spool.numbers.dead_letters == {"gone": 2, "never": 1})
    async with working(tmp_path, gone) as works:
        await works.accept("d", sinks=("gone",))
        await until(lambda: works.lane("gone").paused)
    async with working(tmp_path, FakeSink()) as works:
        await until(lambda: works.lane("gone").paused)
        works.clock.advance(GRACE_S)
        await until(lambda: works.spool.numbers.dead_letters == {"gone": 3, "never": 1})
        assert [False] == [status.configured for status in works.dispatcher.status() if status.sink == "gone"]


async def test_a_reload_gives_a_lane_a_new_sink(tmp_path: Path) -> None:
    """What waits goes to the new sink at once; a new name has a lane of its own; what did not change is left alone."""
    old, same = FakeSink(answer=lambda _: Retry("down")), FakeSink("same")
    async with working(tmp_path, old, same) as works:
        await works.accept("a")
        await until(lambda: works.lane().paused and not works.lane().in_flight)
        new, added = FakeSink(concurrency=1), FakeSink("added")
        works.dispatcher.replace({"out": new, "same": same, "added": added}, RETRY)
        await works.accept("b", sinks=("added",))
        await works.empty()
        assert (["a"], ["b"]) == (new.ids, added.ids)
        for number in range(8):
            await works.accept(f"m{number}")
        await works.empty()
        assert 1 == new.in_flight_max


async def test_a_sink_that_allows_fewer(tmp_path: Path) -> None:
    """Workers beyond what a new sink allows leave, and nothing that waits is forgotten with them."""
    old = FakeSink(concurrency=6, gate=asyncio.Event())
    async with working(tmp_path, old) as works:
        for number in range(6):
            await works.accept(f"m{number}")
        await until(lambda: old.in_flight == 6)
        assert old.gate is not None
        old.gate.set()
        await works.empty()
        new = FakeSink(concurrency=1)
        works.dispatcher.replace({"out": new})
        await works.accept("one")
        await works.empty()
        assert ["one"] == new.ids


async def test_a_parked_worker_passes_the_word_on(tmp_path: Path) -> None:
    """Many more events than workers, arriving while all are parked, all go."""
    sink = FakeSink(concurrency=2)
    async with working(tmp_path, sink) as works:
        await works.accept("first")
        await works.empty()
        await asyncio.gather(*(works.accept(f"m{number}") for number in range(40)))
        await works.empty()
        assert 41 == len(sink.ids)


# --- the end


async def test_drain_finishes_what_is_in_memory(tmp_path: Path) -> None:
    """A drain sends what is queued, takes nothing more, and leaves what comes late in the spool."""
    sink = FakeSink(gate=asyncio.Event(), concurrency=2)
    async with working(tmp_path, sink) as works:
        for number in range(6):
            await works.accept(f"m{number}")
        await until(lambda: sink.in_flight == 2)
        drain = asyncio.create_task(works.dispatcher.drain(10))
        await asyncio.sleep(0)
        await works.accept("late")
        assert sink.gate is not None
        sink.gate.set()
        await drain
        assert [f"m{number}" for number in range(6)] == sink.ids
    async with working(tmp_path, sink) as works:
        await works.empty()
        assert "late" == sink.ids[-1]


async def test_drain_does_not_wait_for_a_sink_that_is_down_or_hangs(tmp_path: Path) -> None:
    """Paused lanes end at once, hanging sends at the deadline; all of it stays in the spool."""
    down, hangs = FakeSink("down", answer=lambda _: Retry("down")), FakeSink("hangs", gate=asyncio.Event())
    async with working(tmp_path, down, hangs) as works:
        await works.accept("a", sinks=("down", "hangs"))
        await until(lambda: works.lane("down").paused and hangs.in_flight)
        await works.dispatcher.drain(0.05)
        assert 0 == hangs.in_flight
        await works.spool.flush()
        assert 2 == sum(works.spool.numbers.pending.values())
    async with working(tmp_path, FakeSink("down"), FakeSink("hangs")) as works:
        await works.empty()
