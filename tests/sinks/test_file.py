"""The file sink: lines that are whole, on disk when they are acknowledged, and never a blocked loop."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import select
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pytest

from postbus.event.cloudevents import structured
from postbus.sinks import Rejected, Retry, Sent
from postbus.sinks import file as file_module
from postbus.sinks.file import FileSink, LogFile, end_of_last_line, make
from postbus.sinks.settings import FileSettings
from tests.sinks.samples import sample


@asynccontextmanager
async def writing(path: Path | str, **settings: Any) -> AsyncIterator[FileSink]:
    """A started sink that appends to *path*."""
    sink = make("lines", FileSettings(kind="file", path=str(path), **settings))
    await sink.start()
    try:
        yield sink
    finally:
        await sink.stop(2)


@contextmanager
def piped(monkeypatch: pytest.MonkeyPatch) -> Iterator[BinaryIO]:
    """Standard output as a pipe; gives the end to read from, which never blocks."""
    reading, writable = os.pipe()
    os.set_blocking(reading, False)
    with (
        os.fdopen(writable, "wb", buffering=0) as stdout,
        os.fdopen(reading, "rb", buffering=0) as reader,
        monkeypatch.context() as patch,
    ):
        patch.setattr(sys, "stdout", stdout)
        yield reader


async def test_an_event_is_one_line(tmp_path: Path) -> None:
    """The event as structured CloudEvents JSON and a line feed; the file is nobody else's to read."""
    event, path = sample(), tmp_path / "events.jsonl"
    async with writing(path) as sink:
        assert await sink.send(event) == Sent()
        assert path.read_bytes() == structured(event) + b"\n"
        assert sink.durable
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_events_are_appended_in_order(tmp_path: Path) -> None:
    """A thousand at once are a thousand whole lines in the order sent, behind what was there."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"id":"before"}\n')
    events = [sample() for _ in range(1000)]
    async with writing(path) as sink:
        await asyncio.gather(*(sink.send(event) for event in events))
    ids = [orjson.loads(line)["id"] for line in path.read_bytes().splitlines()]
    assert ids == ["before", *(event.id for event in events)]


def instead_of_writes_to_files(monkeypatch: pytest.MonkeyPatch, act: Callable[[int, Callable[[], int]], int]) -> None:
    """Let ``act(fd, write)`` stand for every write to a regular file; *write* does it."""
    real = os.write

    def write(fd: int, octets: bytes) -> int:
        return act(fd, lambda: real(fd, octets)) if stat.S_ISREG(os.fstat(fd).st_mode) else real(fd, octets)

    monkeypatch.setattr(os, "write", write)


async def test_what_is_acknowledged_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every group is synced before its events are acknowledged, and many events share a group."""
    order: list[str] = []

    def spy(fd: int, write: Callable[[], int]) -> int:
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DSYNC
        count = write()
        order.append("written and synced")
        return count

    instead_of_writes_to_files(monkeypatch, spy)
    async with writing(tmp_path / "events.jsonl") as sink:

        async def send() -> None:
            await sink.send(sample())
            order.append("acknowledged")

        await asyncio.gather(*(send() for _ in range(50)))
    assert order == ["written and synced"] + ["acknowledged"] * 50


async def test_without_fsync_nothing_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the sink does not call itself durable."""
    async with writing(tmp_path / "events.jsonl", fsync=False) as sink:
        assert await sink.send(sample()) == Sent()
        assert not sink.durable
        assert isinstance(sink._target, LogFile)
        assert not fcntl.fcntl(sink._target._fd, fcntl.F_GETFL) & os.O_DSYNC


@pytest.mark.parametrize("move", [pytest.param(Path.rename, id="rotated"), pytest.param(lambda path, _: path.unlink(), id="deleted")])
async def test_a_file_that_was_moved_is_made_anew(
    tmp_path: Path, move: Callable[[Path, Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rotation needs no signal: what comes when the path is looked at again finds it empty."""
    monkeypatch.setattr(file_module, "LOOK_S", 0.0)
    path, event = tmp_path / "events.jsonl", sample()
    async with writing(path) as sink:
        await sink.send(sample())
        move(path, tmp_path / "events.1")
        await sink.send(event)
    assert path.read_bytes() == structured(event) + b"\n"


async def test_the_path_is_not_looked_at_for_every_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is time to look again, events go to the file that is open, wherever it is now; none is lost."""
    monkeypatch.setattr(file_module, "LOOK_S", 3600.0)
    path, moved = tmp_path / "events.jsonl", tmp_path / "events.1"
    events = [sample() for _ in range(3)]
    async with writing(path) as sink:
        for event in events[:2]:  # the first opens the file, the second is preceded by a look
            assert await sink.send(event) == Sent()
        path.rename(moved)
        assert await sink.send(events[2]) == Sent()
    assert moved.read_bytes().splitlines() == [structured(event) for event in events]
    assert not path.exists()


async def test_a_file_that_was_cut_gets_no_hole_when_a_write_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that rotates by copy and truncate: what a failed write left is cut off where the file now ends."""
    path = tmp_path / "events.jsonl"

    def fail(_: int, write: Callable[[], int]) -> int:
        path.write_bytes(b"")  # after the look
        write()
        raise OSError(errno.ENOSPC, "No space left on device")

    async with writing(path) as sink:
        await sink.send(sample())
        instead_of_writes_to_files(monkeypatch, fail)
        assert await sink.send(sample()) == Retry("not written: No space left on device")
        monkeypatch.undo()
        assert b"\0" not in path.read_bytes()


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        pytest.param(b'{"id":1}\n{"id":2}\n', b'{"id":1}\n{"id":2}\n', id="whole"),
        pytest.param(b'{"id":1}\n{"id":', b'{"id":1}\n', id="torn"),
        pytest.param(b'{"id":', b"", id="torn in the first line"),
        pytest.param(b'{"id":1}\n' + b"x" * 200_000, b'{"id":1}\n', id="torn in a long line"),
        pytest.param(b"", b"", id="empty"),
    ],
)
async def test_a_torn_line_is_taken_off(tmp_path: Path, before: bytes, kept: bytes) -> None:
    """After a crash every line is whole: the torn one was not acknowledged, its event comes again."""
    path, event = tmp_path / "events.jsonl", sample()
    path.write_bytes(before)
    async with writing(path) as sink:
        await sink.send(event)
    assert path.read_bytes() == kept + structured(event) + b"\n"


async def test_a_disk_that_fills_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that takes half a line and then fails is undone; the event is a retry, and goes when there is room."""
    path, event = tmp_path / "events.jsonl", sample()
    real, room = os.write, [40]

    def write(fd: int, octets: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = real(fd, octets[: room[0]])
        room[0] -= taken
        return taken

    async with writing(path) as sink:
        await sink.send(sample())
        before = path.read_bytes()
        monkeypatch.setattr(os, "write", write)
        assert await sink.send(event) == Retry("not written: No space left on device")
        assert path.read_bytes() == before
        assert sink.health().detail == "not written: No space left on device"
        monkeypatch.undo()
        assert await sink.send(event) == Sent()
        assert sink.health().ok
    assert path.read_bytes() == before + structured(event) + b"\n"


async def test_a_full_device_is_a_retry() -> None:
    """The real thing, where the kernel has one."""
    async with writing("/dev/full", fsync=False) as sink:
        assert await sink.send(sample()) == Retry("not written: No space left on device")


async def test_a_sync_that_failed_is_not_tried_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is opened anew and the event written again: the kernel may have forgotten the first."""
    path, before, event = tmp_path / "events.jsonl", sample(), sample()
    calls: list[int] = []

    def fail(fd: int, write: Callable[[], int]) -> int:
        calls.append(write())
        raise OSError(errno.EIO, "Input/output error")

    async with writing(path) as sink:
        assert await sink.send(before) == Sent()
        assert isinstance(sink._target, LogFile)
        first = sink._target._fd
        instead_of_writes_to_files(monkeypatch, fail)
        assert await sink.send(event) == Retry("not written: Input/output error")
        assert sink._target._fd == -1 != first
        monkeypatch.undo()
        assert await sink.send(event) == Sent()
    assert len(calls) == 1
    assert path.read_bytes().splitlines() == [structured(before), structured(event)]


@pytest.mark.parametrize("path", ["/nowhere/events.jsonl", "/proc/events.jsonl"])
async def test_a_path_that_cannot_be_is_a_retry(path: str) -> None:
    """A missing folder is an operator's mistake: mail waits."""
    async with writing(path) as sink:
        outcome = await sink.send(sample())
        assert isinstance(outcome, Retry)
        assert outcome.sink_down
        assert not sink.health().ok


async def test_too_large_is_rejected(tmp_path: Path) -> None:
    """An event over the bound is not written."""
    async with writing(tmp_path / "f", event_max_octets=20_000) as sink:
        assert isinstance(await sink.send(sample(octets=20_000)), Rejected)
    assert not (tmp_path / "f").exists()


# --- one writer


async def test_a_file_has_one_writer(tmp_path: Path) -> None:
    """A second sink, as a reload makes one, neither writes nor mends until the first has stopped; then it goes on by itself."""
    path = tmp_path / "events.jsonl"
    first, second, half = sample(), sample(), b'{"id":'
    async with writing(path) as old, writing(path) as new:
        assert await old.send(first) == Sent()
        with path.open("ab") as file:
            file.write(half)  # what a line looks like while the first writes it
        assert await new.send(second) == Retry("not written: another sink, or another process, writes to this file")
        assert path.read_bytes() == structured(first) + b"\n" + half
        await old.stop(1)
        assert await new.send(second) == Sent()
        assert new.health().ok
    assert path.read_bytes() == structured(first) + b"\n" + structured(second) + b"\n"


async def test_no_event_is_lost_while_one_sink_follows_another(tmp_path: Path) -> None:
    """Senders that move from the old sink to the new one, as at a reload under load: all that was acknowledged is there."""
    path, acknowledged = tmp_path / "events.jsonl", list[str]()
    async with writing(path) as old, writing(path) as new:

        async def send(sinks: tuple[FileSink, ...]) -> None:
            for sink in sinks:
                for _ in range(20):
                    event = sample(octets=3000)
                    acknowledged.extend([event.id] if await sink.send(event) == Sent() else [])

        async def hand_over() -> None:
            while len(acknowledged) < 200:
                await asyncio.sleep(0)
            await old.stop(5)

        await asyncio.gather(hand_over(), *(send((old, new)) for _ in range(50)))
        last = sample()
        await until_sent(new, last)
    written = {orjson.loads(line)["id"] for line in path.read_bytes().splitlines()}
    assert not set(acknowledged) - written
    assert last.id in written


async def test_the_writer_survives_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """What is no error of the disk is logged and costs one attempt, not the sink."""
    path, before, event = tmp_path / "events.jsonl", sample(), sample()
    async with writing(path) as sink:
        assert await sink.send(before) == Sent()
        real = os.write

        def fail(fd: int, octets: bytes) -> int:
            real(fd, octets[:10])
            raise MemoryError

        monkeypatch.setattr(os, "write", fail)
        outcome = await sink.send(event)
        monkeypatch.undo()
        assert outcome == Retry("not written: failed in postbus: MemoryError")
        assert path.read_bytes() == structured(before) + b"\n"
        assert await sink.send(event) == Sent()
    assert path.read_bytes() == structured(before) + b"\n" + structured(event) + b"\n"


async def test_an_event_that_cannot_be_encoded_takes_no_room(tmp_path: Path) -> None:
    """Whatever becomes of an event, its octets are given back."""
    async with writing(tmp_path / "f", event_max_octets=20_000) as sink:
        with pytest.raises(TypeError):
            await sink.send(sample()._replace(subject="\udcff"))
        await sink.send(sample(octets=20_000))
        await sink.send(sample())
        assert sink._budget.used_octets == 0


# --- a slow disk


async def test_a_disk_that_hangs_does_not_hang_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events are told to wait in time; what had not reached the thread by then is not written behind their backs."""
    path = tmp_path / "events.jsonl"
    hang, on = os.pipe()
    instead_of_writes_to_files(monkeypatch, lambda _, write: len(os.read(hang, 1)) and write())
    async with writing(path, timeout_s=0.3) as sink:
        first, second = sample(), sample()
        sending = asyncio.create_task(sink.send(first))
        while sink._writing is None:
            await asyncio.sleep(0)
        assert await sink.send(second) == Retry("not written: not within 0.3 s")
        assert isinstance(await sending, Retry)
        os.write(on, b"12")
        assert await until_sent(sink, second)
    assert path.read_bytes().splitlines() == [structured(first), structured(second)]
    os.close(hang)
    os.close(on)


async def until_sent(sink: FileSink, event: Any) -> bool:
    """Send *event* until it is sent."""
    async with asyncio.timeout(5):
        while await sink.send(event) != Sent():
            await asyncio.sleep(0)
    return True


async def test_stop_is_bounded_while_a_disk_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that hangs in the kernel is left behind."""
    hang, on = os.pipe()
    instead_of_writes_to_files(monkeypatch, lambda _, write: len(os.read(hang, 1)) and write())
    async with writing(tmp_path / "events.jsonl") as sink:
        sending = asyncio.create_task(sink.send(sample()))
        while sink._writing is None:
            await asyncio.sleep(0)
        started = time.monotonic()
        await sink.stop(0.5)
        assert time.monotonic() - started < 1
        assert await sink.send(sample()) == Retry("stopping")
        os.write(on, b"1")
        assert await sending == Sent()
    os.close(hang)
    os.close(on)


# --- standard output


async def test_standard_output_gets_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """``-`` writes to standard output, promises no durability and leaves it open."""
    event = sample()
    with piped(monkeypatch) as pipe:
        async with writing("-") as sink:
            assert not sink.durable
            assert await sink.send(event) == Sent()
        assert pipe.read(65536) == structured(event) + b"\n"
        assert not sys.stdout.closed


async def test_a_line_larger_than_the_pipe_arrives_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that reads gets everything, and the pipe's own flags are left alone."""
    event = sample(octets=1_000_000)
    received = b""
    with piped(monkeypatch) as pipe:
        async with writing("-") as sink:
            sending = asyncio.create_task(sink.send(event))
            while not received.endswith(b"\n"):
                received += pipe.read(65536) or b""
                await asyncio.sleep(0)
            assert await sending == Sent()
            assert os.get_blocking(sys.stdout.fileno())
    assert received == structured(event) + b"\n"


async def test_a_pipe_nobody_reads_is_a_retry_and_stop_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop goes on, events are told to wait, octets are bounded, and the sink stops in time."""
    bounds = {"in_flight_max_octets": 1024 * 1024, "event_max_octets": 1024 * 1024}
    with piped(monkeypatch) as pipe:
        sink = make("lines", FileSettings.model_validate({"kind": "file", "timeout_s": 0.3, **bounds}))
        await sink.start()
        outcomes = await asyncio.gather(*(sink.send(sample(octets=400_000)) for _ in range(5)))
        assert {type(outcome) for outcome in outcomes} == {Retry}
        assert not sink.health().ok
        assert select.select([pipe], [], [], 0)[0]
        started = time.monotonic()
        await sink.stop(1)
        assert time.monotonic() - started < 1.5


async def test_a_reader_that_went_away_is_a_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    """EPIPE, not SIGPIPE."""
    reading, writable = os.pipe()
    os.close(reading)
    with os.fdopen(writable, "wb", buffering=0) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        async with writing("-") as sink:
            assert await sink.send(sample()) == Retry("not written: Broken pipe")


async def test_standard_output_that_is_a_file_is_written_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redirected to a file there is nothing to wait for."""
    event, path = sample(octets=100_000), tmp_path / "out"
    with path.open("wb") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        async with writing("-") as sink:
            assert await sink.send(event) == Sent()
    assert path.read_bytes() == structured(event) + b"\n"


@pytest.mark.parametrize("text", [b"", b"\n", b"a", b"a\n", b"a\nb", b"a\nb\n", b"\n\n", b"a" * 9, b"a\n" + b"b" * 9])
def test_the_last_line_is_found_across_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    """However the file is cut into steps."""
    monkeypatch.setattr(file_module, "REPAIR_READ_OCTETS", 3)
    path = tmp_path / "f"
    path.write_bytes(text)
    with path.open("rb") as file:
        assert end_of_last_line(file.fileno(), len(text)) == text.rfind(b"\n") + 1
