"""The spool as intake and dispatcher see it: one suite over every state a message can be in, then faults and bounds."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from postbus import telemetry
from postbus.bridge.spool import Delivery, Held, Spool, SpoolDamaged, SpoolFailed, SpoolFull, SpoolRefused, core, groups, slots_of
from postbus.bridge.spool.database import Applied, Database
from postbus.bridge.spool_settings import SpoolSettings
from tests.bridge.mails import NOW_MS, ManualClock, Octets, in_memory, mail, recipient, spilled, until

ALL = 1 << 40
SMALL, LARGE = b"small\r\n" * 10, b"large\r\n" * 100_000


def settings(folder: Path, **changes: Any) -> SpoolSettings:
    """Return settings for a small spool."""
    return SpoolSettings(**{"folder": folder, "free_min_octets": 0, "ballast_octets": 0, **changes})


@asynccontextmanager
async def opened(folder: Path, clock: ManualClock | None = None, **changes: Any) -> AsyncIterator[Spool]:
    """Open a spool on *folder*; close it in the end."""
    spool = Spool(settings(folder, **changes), clock=clock or ManualClock())
    await spool.open()
    try:
        yield spool
    finally:
        await spool.close()


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    """An open, empty spool."""
    async with opened(tmp_path) as spool:
        yield spool


async def commit(spool: Spool, name: str, content: bytes = SMALL, **rest: Any) -> Held:
    """Commit a mail called *name* with one slot."""
    record = mail(name, content, **rest)
    return await spool.commit(record, slots_of(record), in_memory(content))


async def names(spool: Spool, sink: str = "out") -> list[str]:
    """Return the event ids of the backlog."""
    page = await spool.fresh(sink, 0, 1000, ALL)
    return [delivery.recipient.event_id for delivery in page.deliveries]


async def due(spool: Spool) -> list[str]:
    """Return the event ids of what is due."""
    return [delivery.recipient.event_id for delivery in (await spool.due("out", 1000, ALL)).deliveries]


def bodies(spool: Spool) -> int:
    """Return how many body files there are."""
    return len(list(spool.folder.bodies.iterdir()))


def break_database(spool: Spool, monkeypatch: pytest.MonkeyPatch, fault: Exception, method: str = "apply", times: int = 1) -> list[int]:
    """Let *method* of the spool's database fail so many times; return a list that holds how often it still will."""
    left = [times]
    real: Callable[..., Any] = getattr(spool._database, method)

    def fail(*arguments: Any, **rest: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise fault
        return real(*arguments, **rest)

    monkeypatch.setattr(spool._database, method, fail)
    return left


def full_disk(*_: Any) -> None:
    """Stand for anything that writes."""
    raise SpoolFull("no room")


@asynccontextmanager
async def held_up(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Hold the writer's next group up until the block ends."""
    gate = threading.Event()
    real = spool._database.apply

    def apply(*arguments: Any, **rest: Any) -> Applied:
        gate.wait(10)
        return real(*arguments, **rest)

    monkeypatch.setattr(spool._database, "apply", apply)
    yield
    gate.set()


# --- the contract, for every kind of body


BODIES = [
    pytest.param(lambda folder: in_memory(SMALL), SMALL, False, id="row"),
    pytest.param(lambda folder: in_memory(b""), b"", False, id="empty"),
    pytest.param(lambda folder: in_memory(LARGE), LARGE, True, id="large in memory"),
    pytest.param(lambda folder: spilled(folder, LARGE), LARGE, True, id="spilled"),
    pytest.param(lambda folder: spilled(folder, SMALL), SMALL, True, id="small and spilled"),
]


@pytest.mark.parametrize(("body", "content", "in_file"), BODIES)
async def test_life_of_a_message(tmp_path: Path, body: Callable[[Path], Octets], content: bytes, in_file: bool) -> None:
    """Accepted, read back after a restart, retried, given up, replayed, done: and nothing is left."""
    record = mail("m", content)
    async with opened(tmp_path) as spool:
        received: list[Held] = []
        spool.receiver = received.append
        octets = body(spool.spill_folder)
        held = await spool.commit(record, slots_of(record), octets)
        assert [] == received  # who waits for an answer comes first
        await asyncio.sleep(0)
        assert [held] == received
        assert in_file == (held.path is not None) == (bodies(spool) == 1)
        assert (octets.octets is None) == octets.released
        assert [] == list(spool.spill_folder.iterdir())
        assert (1, len(content), 1) == (spool.numbers.messages, spool.numbers.octets, spool.numbers.pending["out"])
    clock = ManualClock()
    async with opened(tmp_path, clock) as spool:
        assert (1, len(content), 1) == (spool.numbers.messages, spool.numbers.octets, spool.numbers.pending["out"])
        (delivery,) = (await spool.fresh("out", 0, 10, ALL)).deliveries
        assert record == delivery.held.mail
        if in_file:
            await spool.verify(delivery.held)
        assert content == await spool.read(delivery.held)
        delivery.attempt = 1
        spool.retry(delivery, NOW_MS + 1000, "later")
        assert [] == await due(spool)
        clock.advance(1)
        (delivery,) = (await spool.due("out", 10, ALL)).deliveries
        assert delivery.attempt == 1
        spool.dead(delivery, "rejected: no")
        (letter,) = await spool.dead_letters()
        assert ("m-0", "rejected: no", 1) == (letter.event_id, letter.why, letter.attempt)
        assert ({"out": 1}, 0) == (spool.numbers.dead_letters, spool.numbers.pending["out"])
    async with opened(tmp_path, clock) as spool:
        assert ([], []) == (await names(spool), await due(spool))
        assert {"out": 1} == spool.numbers.dead_letters
        found = await spool.dead_letter("m-0", "out")
        assert found is not None
        assert content == await spool.read(found[1].held)
        woken: list[str] = []
        spool.on_replay = woken.append
        assert await spool.replay("m-0", "out")
        assert (["out"], {}, 1) == (woken, spool.numbers.dead_letters, spool.numbers.pending["out"])
        (delivery,) = (await spool.due("out", 10, ALL)).deliveries
        assert (0, clock.ms) == (delivery.attempt, delivery.since_ms)
        spool.done(delivery)
        await spool.flush()
        assert (0, 0, 0) == (spool.numbers.messages, spool.numbers.octets, spool.numbers.pending["out"])
        await until(lambda: bodies(spool) == 0)
    async with opened(tmp_path) as spool:
        assert 0 == spool.numbers.messages


async def test_replay_without_a_listener_and_drop(spool: Spool) -> None:
    """A dead letter can be dropped, and its message goes; one that is not there is neither replayed nor dropped."""
    for name in ("a", "b"):
        spool.dead(Delivery(await commit(spool, name), 0), "no")
    assert await spool.replay("a-0", "out")
    assert await spool.drop("b-0", "out")
    assert (False, False) == (await spool.replay("b-0", "out"), await spool.drop("b-0", "out"))
    assert (1, {}) == (spool.numbers.messages, spool.numbers.dead_letters)


async def test_buried_at_birth(spool: Spool) -> None:
    """Mail that is refused after its 250 was due is kept as dead letters at once, and never delivered."""
    received: list[Held] = []
    spool.receiver = received.append
    record = mail("m", SMALL, recipient("a"), recipient("b", index=1))
    await spool.bury(record, slots_of(record), in_memory(SMALL), ["no", "never"])
    assert ([], [], {"out": 2}, 1) == (received, await names(spool), spool.numbers.dead_letters, spool.numbers.messages)
    assert ["no", "never"] == [letter.why for letter in await spool.dead_letters()]


async def test_messages_are_handed_on_in_order(spool: Spool) -> None:
    """The receiver sees messages in order of seq, whoever waits for them, and after they are durable."""
    received: list[Held] = []
    spool.receiver = received.append
    held = await asyncio.gather(*(commit(spool, f"m{number}") for number in range(50)))
    assert sorted(one.seq for one in held) == [one.seq for one in received]
    assert len(await names(spool)) == 50


async def test_waiting_commits_share_a_group(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All who wait in one turn of the loop are in one transaction; marks, if they are many, ride with the next."""
    monkeypatch.setattr(groups, "RIDE_MARKS", 20)
    written = applied_by(spool, monkeypatch)
    held = await asyncio.gather(*(commit(spool, f"m{number}") for number in range(20)))
    for one in held:
        spool.done(Delivery(one, 0))
    await commit(spool, "last")
    assert [(20, 0), (1, 20)] == written


async def test_few_marks_wait_for_company(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """While mail comes, few marks do not ride with each group, but are written soon all the same, and before who waits for them goes on."""
    written = applied_by(spool, monkeypatch)
    held = [await commit(spool, f"m{number}") for number in range(2)]
    spool.done(Delivery(held[0], 0))
    await commit(spool, "a")
    assert [(1, 0)] * 3 == written
    number = 0
    while not any(marks for _, marks in written):
        await commit(spool, f"b{(number := number + 1)}")
    spool.done(Delivery(held[1], 0))
    await asyncio.gather(spool.flush(), commit(spool, "c"))
    assert sum(marks for _, marks in written) == 2


def applied_by(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return a list of what *spool* writes from now on: rows and marks of each group."""
    written: list[tuple[int, int]] = []
    real = spool._database.apply

    def apply(rows: Any, marks: Any, *rest: Any, **more: Any) -> Applied:
        written.append((len(rows), len(marks)))
        return real(rows, marks, *rest, **more)

    monkeypatch.setattr(spool._database, "apply", apply)
    return written


async def test_a_group_waits_no_longer_than_for_as_many_as_before(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the last group held three, a fourth is not waited for, however long a group may be gathered."""
    monkeypatch.setattr(core, "GATHER_S", 3600.0)
    await asyncio.gather(*(commit(spool, f"m{number}") for number in range(3)))
    first = [asyncio.create_task(commit(spool, f"n{number}")) for number in range(2)]
    await until(lambda: len(spool._line.commits) == 2)
    assert not spool._busy
    await asyncio.gather(*first, commit(spool, "n2"))
    assert 6 == len(await names(spool))


async def test_a_group_is_bounded(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No group grows without bound, neither by messages nor by marks."""
    monkeypatch.setattr(groups, "GROUP_MAX_MESSAGES", 8)
    monkeypatch.setattr(groups, "GROUP_MAX_MARKS", 4)
    held = await asyncio.gather(*(commit(spool, f"m{number}") for number in range(20)))
    for one in held:
        spool.done(Delivery(one, 0))
    await until(lambda: spool.numbers.messages == 0)


async def test_marks_alone_are_written_soon(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks do not wait for a commit for ever, also when they came while a group was under way."""
    held = await commit(spool, "a")
    async with held_up(spool, monkeypatch):
        waiting = asyncio.create_task(commit(spool, "b"))
        await until(lambda: spool._busy)
        spool.done(Delivery(held, 0))
    await waiting
    await until(lambda: spool.numbers.messages == 1)
    spool.done(Delivery(waiting.result(), 0))
    await until(lambda: spool.numbers.messages == 0)


async def test_closing_makes_marks_durable(tmp_path: Path) -> None:
    """What was done before the close is done after it; closing twice is harmless, and so is closing what was never open."""
    async with opened(tmp_path) as spool:
        spool.done(Delivery(await commit(spool, "a"), 0))
        late = asyncio.create_task(commit(spool, "b"))
        await asyncio.sleep(0)
        await spool.close()
        assert (await late).mail.id == "b"
        with pytest.raises(SpoolFailed, match="closing"):
            await commit(spool, "c")
        assert ("unhealthy", "the spool is closing") == (spool.gate(), spool.reason)
    async with opened(tmp_path) as spool:
        assert ["b-0"] == await names(spool)
    await Spool(settings(tmp_path)).close()


async def test_numbers_are_not_used_twice(tmp_path: Path) -> None:
    """A message accepted after all others have gone and the process restarted has a number of its own."""
    async with opened(tmp_path) as spool:
        first = await commit(spool, "a")
        spool.done(Delivery(first, 0))
    async with opened(tmp_path, ManualClock(NOW_MS + 1)) as spool:
        second = await commit(spool, "b")
    async with opened(tmp_path, ManualClock(0)) as spool:
        third = await commit(spool, "c")
    assert first.seq < second.seq < third.seq


async def test_no_file_is_named_twice(tmp_path: Path) -> None:
    """A clock set back and files without a row do not lead to a name that a held message has."""
    async with opened(tmp_path) as spool:
        for name in "abc":  # files that are named and never accepted
            task = asyncio.create_task(commit(spool, name, LARGE))
            await asyncio.sleep(0)
            task.cancel()
            await until(task.done)
        held = await commit(spool, "d", LARGE)
    async with opened(tmp_path, ManualClock(0)) as spool:
        for number in range(4):
            await commit(spool, f"e{number}", bytes([number]) * len(LARGE))
        await spool.verify(held)
        assert 5 == bodies(spool)


# --- those who do not wait for the end


async def test_cancelled_before_the_group(spool: Spool) -> None:
    """A sender who gave up while his mail waited is not kept."""
    task = asyncio.create_task(commit(spool, "a"))
    await asyncio.sleep(0)
    task.cancel()
    await until(task.cancelled)
    await commit(spool, "b")
    assert (["b-0"], 1, len(SMALL)) == (await names(spool), spool.numbers.messages, spool.numbers.octets)


async def test_cancelled_within_the_group(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sender told 451 while his mail became durable is taken out again: he will send it once more."""
    received: list[Held] = []
    spool.receiver = received.append
    async with held_up(spool, monkeypatch):
        task = asyncio.create_task(commit(spool, "a", LARGE))
        await until(lambda: spool._busy)
        task.cancel()
        await until(task.cancelled)
    await until(lambda: not spool._busy and not spool._line)
    assert ([], [], 0, 0) == (received, await names(spool), spool.numbers.messages, spool.numbers.octets)
    await until(lambda: bodies(spool) == 0)


async def test_cancelled_while_the_file_is_synced(spool: Spool) -> None:
    """A sender who gave up while his file was being synced leaves no file."""
    record = mail("a", LARGE)
    task = asyncio.create_task(spool.commit(record, slots_of(record), spilled(spool.spill_folder, LARGE)))
    await asyncio.sleep(0)
    task.cancel()
    await until(task.done)
    await until(lambda: bodies(spool) == 0 and not list(spool.spill_folder.iterdir()))
    assert (0, 0) == (spool.numbers.messages, spool.numbers.octets)


async def test_flush_whose_caller_has_gone(spool: Spool) -> None:
    """A flush nobody waits for any more disturbs nothing."""
    spool.done(Delivery(await commit(spool, "a"), 0))
    task = asyncio.create_task(spool.flush())
    await asyncio.sleep(0)
    task.cancel()
    await until(lambda: spool.numbers.messages == 0)


# --- bounds


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"max_messages": 1}, "1 of 1 messages", id="messages"),
        pytest.param({"max_octets": 1_048_576}, "octets are in use", id="octets"),
    ],
)
async def test_full_by_bounds(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    """Over a bound mail gets SpoolFull; when something has gone it is taken again."""
    async with opened(tmp_path, **changes) as spool:
        assert (None, "") == (spool.gate(), spool.reason)
        held = await commit(spool, "a", b"x" * 1_048_576)
        assert "full" == spool.gate()
        assert reason in spool.reason
        with pytest.raises(SpoolFull, match=reason):
            await commit(spool, "b")
        spool.done(Delivery(held, 0))
        await spool.flush()
        await commit(spool, "c")


async def test_what_is_being_received_counts(tmp_path: Path) -> None:
    """Files still being received use the same budget."""
    clock = ManualClock()
    async with opened(tmp_path, clock, max_octets=1_048_576) as spool:
        (spool.spill_folder / "spill-9").write_bytes(b"x" * 1_000_000)
        clock.advance(1)
        await until(lambda: spool.numbers.spilled_octets)
        with pytest.raises(SpoolFull):
            await commit(spool, "a", b"x" * 50_000)
        await commit(spool, "b", b"x" * 40_000)


async def test_free_space_is_kept(tmp_path: Path) -> None:
    """Mail is not taken when it would eat into the room that must stay free."""
    free = os.statvfs(tmp_path)
    async with opened(tmp_path, free_min_octets=2 * free.f_bavail * free.f_frsize) as spool:
        assert "full" == spool.gate()
        with pytest.raises(SpoolFull, match="must stay"):
            await commit(spool, "a")


async def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLITE_FULL: all who wait get SpoolFull, the ballast is given back so that marks go on, and mail is taken once room is back."""
    clock = ManualClock()
    async with opened(tmp_path, clock, ballast_octets=65_536) as spool:
        held = await commit(spool, "a")
        break_database(spool, monkeypatch, SpoolFull("database or disk is full"))
        spool.done(Delivery(held, 0))
        with pytest.raises(SpoolFull, match="database or disk is full"):
            await commit(spool, "b", LARGE)
        assert ("full", "the disk is full") == (spool.gate(), spool.reason)
        with pytest.raises(SpoolFull):
            await commit(spool, "c")
        await until(lambda: spool.numbers.messages == 0)
        assert not spool.folder.ballast.exists()
        await until(lambda: bodies(spool) == 0)
        clock.advance(1)
        await until(lambda: spool.gate() is None)
        assert spool.folder.ballast.exists()
        await commit(spool, "d")


async def test_full_disk_that_stays_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While not even the ballast helps, marks are kept in memory and tried again with every tick."""
    clock = ManualClock()
    async with opened(tmp_path, clock) as spool:
        held = await commit(spool, "a")
        left = break_database(spool, monkeypatch, SpoolFull("full"), times=4)
        spool.done(Delivery(held, 0))
        for expected in (2, 1, 0):
            await until(lambda expected=expected: left == [expected] and not spool._busy and clock.timers)  # type: ignore[misc]
            clock.advance(1)
        await until(lambda: spool.numbers.messages == 0)


async def test_full_disk_is_left_alone_between_ticks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is tried twice (the second time without the ballast), then once a tick; it is told once; who waits is told."""
    clock, told = ManualClock(), list[str]()
    monkeypatch.setattr(telemetry, "spool_failed", lambda *, kind, why: told.append(f"{kind}: {why}"))
    async with opened(tmp_path, clock) as spool:
        held = await commit(spool, "a")
        left = break_database(spool, monkeypatch, SpoolFull("no room"), times=1000)
        spool.done(Delivery(held, 0))
        with pytest.raises(SpoolFull, match="no room"):
            await spool.flush()
        assert 998 == left[0]
        for tick in range(1, 4):
            waiting = asyncio.create_task(spool.flush())
            await asyncio.sleep(0)
            await until(lambda: clock.timers)
            clock.advance(1)
            with pytest.raises(SpoolFull, match="no room"):
                await waiting
            assert 998 - tick == left[0]
        assert ("full", ["full: no room"]) == (spool.gate(), told)


async def test_closing_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A close tries what waits and lets it be; the next start finds it as it was."""
    async with opened(tmp_path, ballast_octets=65_536) as spool:
        held = await commit(spool, "a")
        left = break_database(spool, monkeypatch, SpoolFull("no room"), times=1000)
        spool.done(Delivery(held, 0))
        await spool.close()
        assert 998 == left[0]
    async with opened(tmp_path) as spool:
        assert ["a-0"] == await names(spool)


async def test_housekeeping_that_goes_on_failing_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log has one line for one trouble, however many rounds meet it."""
    clock, told = ManualClock(), list[str]()
    monkeypatch.setattr(telemetry, "spool_failed", lambda *, kind, why: told.append(f"{kind}: {why}"))
    async with opened(tmp_path, clock) as spool:
        left = break_database(spool, monkeypatch, SpoolFailed("no"), "oldest_ms", times=3)
        for _ in range(5):
            await until(lambda: clock.timers)
            clock.advance(1)
        await until(lambda: not left[0] and clock.timers)
        assert ["housekeeping: no"] == told


async def test_file_on_a_full_disk(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC for a body's file is SpoolFull for that message alone."""

    def full(*_: Any) -> None:
        raise SpoolFull("no space left")

    monkeypatch.setattr(spool.folder, "keep", full)
    record = mail("a", LARGE)
    body = spilled(spool.spill_folder, LARGE)
    with pytest.raises(SpoolFull, match="no space left"):
        await spool.commit(record, slots_of(record), body)
    assert (False, 0, None) == (body.released, spool.numbers.messages, spool.gate())
    await commit(spool, "b")


# --- I/O errors


async def test_io_error_at_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All who wait get SpoolFailed; nothing is accepted until the database was opened anew; then all goes on, marks included."""
    clock = ManualClock()
    async with opened(tmp_path, clock) as spool:
        held = await commit(spool, "a")
        break_database(spool, monkeypatch, SpoolFailed("disk I/O error"))
        spool.done(Delivery(held, 0))
        results = await asyncio.gather(commit(spool, "b"), commit(spool, "c", LARGE), spool.flush(), return_exceptions=True)
        assert [SpoolFailed] * 3 == [type(result) for result in results]
        assert ("unhealthy", "disk I/O error") == (spool.gate(), spool.reason)
        with pytest.raises(SpoolFailed, match="disk I/O error"):
            await commit(spool, "d")
        spool.done(Delivery(held, 0))
        with pytest.raises(SpoolFailed, match="disk I/O error"):
            await spool.flush()
        clock.advance(1)
        await until(lambda: spool.gate() is None)
        await spool.flush()
        await commit(spool, "e")
        assert (["e-0"], 1) == (await names(spool), spool.numbers.messages)
        await until(lambda: bodies(spool) == 0)


async def test_what_was_refused_stays_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that was told failed, and yet is in the log, is taken out when the spool opens again."""
    clock = ManualClock()
    async with opened(tmp_path, clock) as spool:
        real = spool._database.apply

        def late(*arguments: Any, **rest: Any) -> Applied:
            real(*arguments, **rest)
            monkeypatch.setattr(spool._database, "apply", real)
            raise SpoolFailed("fsync failed")

        monkeypatch.setattr(spool._database, "apply", late)
        with pytest.raises(SpoolFailed):
            await commit(spool, "a")
        clock.advance(1)
        await until(lambda: spool.gate() is None)
        assert [] == await names(spool)


async def test_reopening_backs_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening again is tried with growing pauses until it works; housekeeping meanwhile only measures."""
    clock = ManualClock()
    async with opened(tmp_path, clock) as spool:
        break_database(spool, monkeypatch, SpoolFailed("I/O error"))
        left = break_database(spool, monkeypatch, SpoolFailed("still broken"), "reopen", times=2)
        with pytest.raises(SpoolFailed):
            await commit(spool, "a")
        clock.advance(1)
        await until(lambda: left == [1])
        await until(lambda: spool.reason == "still broken")
        clock.advance(1)
        assert [1] == left
        clock.advance(1)
        await until(lambda: left == [0])
        await until(lambda: len([timer for timer in clock.timers if timer.due_ms == clock.ms + 4000]))
        clock.advance(4)
        await until(lambda: spool.gate() is None)


async def test_failed_while_a_file_was_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mail whose file was being synced when the spool failed is refused too, and so is one whose fsync failed."""
    async with opened(tmp_path) as spool:
        gate: Future[None] = Future()
        entered = threading.Event()
        real = spool.folder.keep

        def slow(*arguments: Any) -> None:
            entered.set()
            gate.result(10)
            real(*arguments)

        monkeypatch.setattr(spool.folder, "keep", slow)
        record = mail("a", LARGE)
        waiting = asyncio.create_task(spool.commit(record, slots_of(record), spilled(spool.spill_folder, LARGE)))
        await until(entered.is_set)

        def broken(*_: Any) -> None:
            raise SpoolFailed("fsync failed")

        monkeypatch.setattr(spool.folder, "keep", broken)
        with pytest.raises(SpoolFailed, match="fsync failed"):
            await spool.commit(record, slots_of(record), spilled(spool.spill_folder, LARGE, "spill-2"))
        assert "unhealthy" == spool.gate()
        gate.set_result(None)
        with pytest.raises(SpoolFailed, match="fsync failed"):
            await waiting
        assert (0, 0) == (spool.numbers.messages, spool.numbers.octets)
        await until(lambda: bodies(spool) == 0)


async def test_closing_a_broken_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spool that cannot write can still be closed; a reopening under way is forgotten."""
    clock = ManualClock()
    async with opened(tmp_path, clock) as spool:
        held = await commit(spool, "a")
        break_database(spool, monkeypatch, SpoolFailed("I/O error"), times=100)
        spool.done(Delivery(held, 0))
        with pytest.raises(SpoolFailed):
            await spool.flush()
        clock.advance(1)
        await spool.close()
    async with opened(tmp_path) as spool:
        assert ["a-0"] == await names(spool)


async def test_a_mail_that_cannot_be_written_down(spool: Spool) -> None:
    """A record that cannot be encoded is our mistake; it costs nothing but its own mail."""
    record = mail("a", SMALL, recipient("a", sinks=(b"no text",)))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        await spool.commit(record, slots_of(record), in_memory(SMALL))
    assert (0, 0) == (spool.numbers.messages, spool.numbers.octets)
    await commit(spool, "b")


async def test_a_mail_that_owes_nothing(spool: Spool) -> None:
    """A message without a slot is our mistake: it would never leave."""
    with pytest.raises(ValueError, match="owes nothing"):
        await spool.commit(mail("a", SMALL), (), in_memory(SMALL))


async def test_a_body_that_was_taken_before(spool: Spool) -> None:
    """A body whose file was taken is not mistaken for an empty one."""
    record = mail("a", LARGE)
    body = spilled(spool.spill_folder, LARGE)
    await spool.commit(record, slots_of(record), body)
    with pytest.raises(ValueError, match="taken before"):
        await spool.commit(record, slots_of(record), body)
    assert 1 == spool.numbers.messages


async def test_group_is_durable_whatever_statvfs_says(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The free space that cannot be read does not undo a commit."""

    def fail() -> int:
        raise SpoolFailed("statvfs")

    monkeypatch.setattr(spool.folder, "free_octets", fail)
    assert (await commit(spool, "a")).mail.id == "a"


@pytest.mark.parametrize("why", [pytest.param("x\udcff", id="half a surrogate pair"), pytest.param("\0" * 2000, id="long and null")])
async def test_any_reason_can_be_kept(spool: Spool, why: str) -> None:
    """A reason is text of strangers: it is kept whatever it holds."""
    for name in "abc":
        await commit(spool, name)
    retried, dead, damaged = (await spool.fresh("out", 0, 10, ALL)).deliveries
    spool.retry(retried, NOW_MS, why)
    spool.dead(dead, why)
    spool.set_aside(damaged, why)
    await spool.flush()
    (letter,) = await spool.dead_letters()
    assert ([why.replace("\udcff", "\\udcff")[:1000]], ["a-0"]) == ([letter.why], await due(spool))


async def test_what_no_row_can_hold_harms_nobody_else(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mark and a mail that cannot be written are taken out of their group; those who share it go on, and so does the spool."""
    held = [await commit(spool, name) for name in "ab"]
    async with held_up(spool, monkeypatch):
        first = asyncio.create_task(commit(spool, "first"))
        await until(lambda: spool._busy)
        spool.retry(Delivery(held[0], 0), 1 << 70, "when the sun is cold")
        spool.done(Delivery(held[1], 0))
        spoilt = asyncio.create_task(commit(spool, "spoilt", received_ms=1 << 63))
        good = asyncio.create_task(commit(spool, "good"))
        await asyncio.sleep(0)
    await asyncio.gather(first, good)
    with pytest.raises(SpoolFailed, match="too large"):
        await spoilt
    await spool.flush()
    assert (None, 3, ["a-0", "first-0", "good-0"]) == (spool.gate(), spool.numbers.messages, await names(spool))


# --- damage


async def test_missing_and_damaged_files(spool: Spool) -> None:
    """A body file that is missing, is not what was accepted, or cannot be read is told as such; setting it aside keeps it from pages."""
    held = [await commit(spool, f"m{number}", LARGE) for number in range(4)]
    paths = [one.path for one in held if one.path is not None]
    paths[0].unlink()
    paths[1].write_bytes(LARGE[:-1] + b"x")
    paths[2].unlink()
    paths[2].mkdir()
    with pytest.raises(SpoolDamaged, match="missing"):
        await spool.verify(held[0])
    with pytest.raises(SpoolDamaged, match="missing"):
        await spool.read(held[0])
    with pytest.raises(SpoolDamaged, match="not what was accepted"):
        await spool.verify(held[1])
    with pytest.raises(SpoolFailed, match="cannot read"):
        await spool.verify(held[2])
    await spool.verify(held[3])
    spool.set_aside(Delivery(held[0], 0), "missing")
    assert ["m1-0", "m2-0", "m3-0"] == await names(spool)
    assert (1, 3) == (spool.numbers.damaged, spool.numbers.pending["out"])
    paths[2].rmdir()


async def test_damaged_rows_are_counted(spool: Spool) -> None:
    """A damaged row is found when its page is read; it is counted and no longer owed."""
    await commit(spool, "a")
    await commit(spool, "b")
    await spool._writer.run(
        lambda: spool._database._sql.execute("UPDATE message SET body = x'00' WHERE seq = (SELECT min(seq) FROM message)")
    )
    assert ["b-0"] == await names(spool)
    assert (1, 1) == (spool.numbers.damaged, spool.numbers.pending["out"])


async def test_a_database_that_is_rubbish(tmp_path: Path) -> None:
    """A database that cannot be opened is moved aside with its bodies, and mail is taken again without a hand."""
    async with opened(tmp_path) as spool:
        await commit(spool, "a", LARGE)
    (tmp_path / "spool.db").write_bytes(b"rubbish" * 10_000)
    async with opened(tmp_path) as spool:
        assert 1 == spool.numbers.damaged
        await commit(spool, "b")
        assert ["b-0"] == await names(spool)
        assert 1 == len(list((tmp_path / "damaged" / str(NOW_MS) / "bodies").iterdir()))


async def test_orphans(tmp_path: Path) -> None:
    """Files that no row names go at start; nothing is swept while rows are unreadable, since their files would go too."""
    async with opened(tmp_path) as spool:
        await commit(spool, "a", LARGE)
        (spool.folder.bodies / "orphan").write_bytes(b"")
    async with opened(tmp_path) as spool:
        assert 1 == bodies(spool)
        (spool.folder.bodies / "orphan").write_bytes(b"")
        unreadable = Database(spool.folder.database, spool.folder.bodies)
        unreadable.holes.append("torn")
    spool = Spool(settings(tmp_path), clock=ManualClock())
    spool._database = unreadable
    await spool.open()
    assert (2, 1) == (bodies(spool), spool.numbers.damaged)
    await spool.close()


async def test_two_spools_on_one_folder(tmp_path: Path) -> None:
    """The second is refused, also within one process, and leaves the first alone."""
    async with opened(tmp_path) as spool:
        second = Spool(settings(tmp_path))
        with pytest.raises(SpoolRefused):
            await second.open()
        await commit(spool, "a")


# --- a clock that is set


async def test_a_retry_does_not_wait_for_a_clock_set_back(tmp_path: Path) -> None:
    """A pause of a second lasts a second, whatever the machine's clock is set to meanwhile."""
    clock = ManualClock()
    async with opened(tmp_path, clock) as spool:
        spool.retry(Delivery(await commit(spool, "a"), 0), clock.steady_ms() + 1000, "later")
        clock.set_by_ms = -3_600_000
        assert [] == await due(spool)
        clock.advance(1)
        assert ["a-0"] == await due(spool)


async def test_no_retry_waits_long_after_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that was years ahead before the restart costs an hour, not years; a full disk does not keep the spool from opening."""
    async with opened(tmp_path, ManualClock(2 * NOW_MS)) as spool:
        spool.retry(Delivery(await commit(spool, "a"), 0), 2 * NOW_MS + 1000, "later")
    spool = Spool(settings(tmp_path), clock=ManualClock())
    with monkeypatch.context() as patch:
        patch.setattr(spool._database, "_transaction", full_disk)
        await spool.open()
        assert [] == await due(spool)
    await spool.close()
    clock = ManualClock()
    async with opened(tmp_path, clock) as spool:
        assert [] == await due(spool)
        clock.advance(3600)
        assert ["a-0"] == await due(spool)


# --- housekeeping


async def test_housekeeping(tmp_path: Path) -> None:
    """Once a second the room is measured and the oldest message found; an idle spool gives pages back."""
    clock = ManualClock()
    async with opened(tmp_path, clock) as spool:
        assert 0 == spool.oldest_age_s()
        await commit(spool, "a", received_ms=NOW_MS - 5000)
        for _ in range(3):
            clock.advance(1)
            await until(lambda: clock.timers)
        assert NOW_MS - 5000 == spool.numbers.oldest_ms
        assert 8 == spool.oldest_age_s()


async def test_retention(tmp_path: Path) -> None:
    """Dead letters beyond their age are dropped with their messages, and no younger one."""
    clock = ManualClock()
    async with opened(tmp_path, clock, dead_letter_age_max_s=3600) as spool:
        for name in "ab":
            spool.dead(Delivery(await commit(spool, name), 0), "no")
            await spool.flush()
            clock.ms += 1_800_000
        for expected in ({"out": 1}, {}):
            for _ in range(31):
                await until(lambda: clock.timers)
                clock.advance(60)
            await until(lambda expected=expected: spool.numbers.dead_letters == expected)  # type: ignore[misc]
        await until(lambda: spool.numbers.messages == 0)


async def test_too_many_dead_letters(tmp_path: Path) -> None:
    """Where something gives mail up by the thousand, no more is taken; none is dropped for it, and dropping one makes room."""
    async with opened(tmp_path, dead_letters_max=2) as spool:
        for name in "ab":
            spool.dead(Delivery(await commit(spool, name), 0), "no")
        await spool.flush()
        assert ("full", "2 of 2 dead letters are kept: replay or drop some") == (spool.gate(), spool.reason)
        with pytest.raises(SpoolFull, match="dead letters"):
            await commit(spool, "c")
        await spool.drop("a-0", "out")
        await commit(spool, "c")


@pytest.mark.parametrize("cursor", ["nonsense", "1.2", "1.2.x", "1.2.3.4", f"1.{1 << 64}.1", "\u0661.1.1"])
async def test_a_cursor_that_is_none(spool: Spool, cursor: str) -> None:
    """What is no cursor is told before the disk is asked."""
    with pytest.raises(ValueError, match="no cursor"):
        await spool.dead_letters(10, cursor)


async def test_a_burial_that_was_cancelled(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dead letters that are taken out again are not counted any more."""
    record = mail("m", SMALL)
    async with held_up(spool, monkeypatch):
        task = asyncio.create_task(spool.bury(record, slots_of(record), in_memory(SMALL), ["no"]))
        await until(lambda: spool._busy)
        task.cancel()
        await until(task.cancelled)
    await until(lambda: not spool._busy and not spool._line)
    assert ({}, 0) == (spool.numbers.dead_letters, spool.numbers.messages)


async def test_housekeeping_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round of housekeeping that fails is told, and the next one comes; one that ends after the close changes nothing."""
    clock = ManualClock()
    async with opened(tmp_path, clock) as spool:
        left = break_database(spool, monkeypatch, SpoolFailed("no"), "oldest_ms")
        await commit(spool, "a")
        clock.advance(0)
        await until(lambda: clock.timers)
        assert ([0], None) == (left, spool.numbers.oldest_ms)
        clock.advance(1)
        await until(lambda: spool.numbers.oldest_ms)
        clock.advance(1)
        await spool.close()


async def test_reads_of_a_closed_spool(tmp_path: Path) -> None:
    """A spool that is not open takes nothing."""
    spool = Spool(settings(tmp_path))
    assert ("unhealthy", "the spool is not open") == (spool.gate(), spool.reason)
    with pytest.raises(SpoolFailed, match="not open"):
        await commit(spool, "a")
