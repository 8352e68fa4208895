"""The file sink: lines that are whole, written when they are acknowledged, and never a blocked loop."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pytest

from postbus.event.cloudevents import structured
from postbus.sinks import Rejected, Retry, Sent
from postbus.sinks.file import FileSink, make
from postbus.sinks.file.appender import Appender
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


async def test_events_are_acknowledged_when_their_group_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before; and many events share a group."""
    order: list[str] = []
    async with writing(tmp_path / "events.jsonl") as sink:
        real = sink._appender.write

        async def write(lines: Sequence[bytes]) -> None:
            await real(lines)
            order.append("written")

        monkeypatch.setattr(sink._appender, "write", write)

        async def send() -> None:
            await sink.send(sample())
            order.append("acknowledged")

        await asyncio.gather(*(send() for _ in range(50)))
    assert order == ["written"] + ["acknowledged"] * 50


async def test_without_fsync_it_is_not_durable(tmp_path: Path) -> None:
    """And does not say that it is."""
    async with writing(tmp_path / "events.jsonl", fsync=False) as sink:
        assert await sink.send(sample()) == Sent()
        assert not sink.durable


async def test_a_file_that_was_moved_is_made_anew(tmp_path: Path) -> None:
    """Rotation needs no signal."""
    path = tmp_path / "events.jsonl"
    async with writing(path) as sink:
        await sink.send(sample())
        path.rename(tmp_path / "events.1")
        async with asyncio.timeout(5):
            while not path.exists():
                assert await sink.send(sample()) == Sent()


async def test_a_torn_line_is_taken_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And told of."""
    path, event = tmp_path / "events.jsonl", sample()
    path.write_bytes(b'{"id":1}\n{"id":')
    async with writing(path) as sink:
        assert await sink.send(event) == Sent()
    assert path.read_bytes() == b'{"id":1}\n' + structured(event) + b"\n"
    assert "sink.file_repaired" in caplog.text
    assert "octets=6" in caplog.text


async def test_a_full_device_is_a_retry() -> None:
    """Time and again."""
    async with writing("/dev/full", fsync=False) as sink:
        for _ in range(2):
            assert await sink.send(sample()) == Retry("not written: No space left on device")
            assert sink.health().detail == "not written: No space left on device"


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


async def test_an_event_that_cannot_be_encoded_takes_no_room(tmp_path: Path) -> None:
    """Whatever becomes of an event, its octets are given back."""
    async with writing(tmp_path / "f", event_max_octets=20_000) as sink:
        with pytest.raises(TypeError):
            await sink.send(sample()._replace(subject="\udcff"))
        await sink.send(sample(octets=20_000))
        await sink.send(sample())
        assert sink._budget.used_octets == 0


# --- the process


def process_of(sink: FileSink) -> subprocess.Popen[bytes]:
    """The process that writes for *sink*."""
    process = sink._appender._process
    assert process is not None
    return process


async def test_a_process_that_was_killed_is_made_anew(tmp_path: Path) -> None:
    """What it was told last is a retry; what comes then is written."""
    path, events = tmp_path / "events.jsonl", [sample() for _ in range(3)]
    async with writing(path) as sink:
        assert await sink.send(events[0]) == Sent()
        process = process_of(sink)
        process.send_signal(signal.SIGSTOP)
        sending = asyncio.create_task(sink.send(events[1]))
        while sink._writing is None:
            await asyncio.sleep(0)
        process.kill()
        assert await sending == Retry("not written: the process that writes has ended (SIGKILL)")
        assert not sink.health().ok
        assert await sink.send(events[2]) == Sent()
        assert process_of(sink).pid != process.pid
        assert sink.health().ok
    assert path.read_bytes().splitlines() == [structured(events[0]), structured(events[2])]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
async def test_signals_for_all_of_postbus_do_not_end_it(tmp_path: Path, number: signal.Signals) -> None:
    """A drain needs it until the end, whoever signals the whole group of processes."""
    async with writing(tmp_path / "events.jsonl") as sink:
        assert await sink.send(sample()) == Sent()
        process = process_of(sink)
        process.send_signal(number)
        assert await sink.send(sample()) == Sent()
        assert process_of(sink) is process
        assert process.poll() is None


async def test_a_process_that_ended_while_nothing_was_to_do_is_not_missed(tmp_path: Path) -> None:
    """The next event has another."""
    path, events = tmp_path / "events.jsonl", [sample() for _ in range(2)]
    async with writing(path) as sink:
        assert await sink.send(events[0]) == Sent()
        process = process_of(sink)
        process.kill()
        while sink._appender._transport is not None:
            await asyncio.sleep(0)
        assert await sink.send(events[1]) == Sent()
        assert process.returncode == -signal.SIGKILL
    assert path.read_bytes().splitlines() == [structured(event) for event in events]


async def test_an_answer_in_pieces_is_one_answer(tmp_path: Path) -> None:
    """Or its rest would be taken for that of the next group, which may not be written at all."""
    appender = Appender("lines", str(tmp_path / "f"), fsync=True, stdout=sys.stdout)
    answer = appender._answer = asyncio.get_running_loop().create_future()
    for piece in (b"0 2", b"8 No space", b"\n"):
        assert not answer.done()
        appender.data_received(piece)
    assert answer.result() == b"0 28 No space\n"
    assert appender._said == b""


async def test_no_process_to_be_had_is_a_retry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until there is one."""
    async with writing(tmp_path / "events.jsonl") as sink:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", str(tmp_path / "nothing"))
            assert await sink.send(sample()) == Retry("not written: No such file or directory")
        assert await sink.send(sample()) == Sent()


async def test_a_mistake_of_ours_costs_one_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the sink."""

    async def fail(lines: Sequence[bytes]) -> None:
        raise MemoryError

    async with writing(tmp_path / "events.jsonl") as sink:
        with monkeypatch.context() as patch:
            patch.setattr(sink._appender, "write", fail)
            assert await sink.send(sample()) == Retry("not written: failed in postbus: MemoryError")
        assert await sink.send(sample()) == Sent()


async def test_the_process_knows_nothing_and_nobody_else(tmp_path: Path) -> None:
    """No environment, which may hold secrets; no terminal, whose Ctrl-C is for us; no file of ours but its own."""
    async with writing(tmp_path / "events.jsonl") as sink:
        await sink.send(sample())
        pid = process_of(sink).pid
        assert Path(f"/proc/{pid}/environ").read_bytes() == b""
        assert os.getsid(pid) == pid
        opened = {entry.name: str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    assert opened.keys() == {"0", "1", "2", "3"}
    assert opened["0"].startswith("socket:")
    assert opened["1"] == os.devnull
    assert opened["2"] == str(Path("/proc/self/fd/2").readlink())  # for what Python says should it not start
    assert opened["3"] == str(tmp_path / "events.jsonl")


async def test_the_process_ends_with_its_owner(tmp_path: Path) -> None:
    """Whoever dies closes his end of the socket."""
    appender = Appender("lines", str(tmp_path / "events.jsonl"), fsync=True, stdout=sys.stdout)
    await appender.write([b"{}\n"])
    assert appender._transport is not None
    assert appender._process is not None
    appender._transport.close()
    assert await asyncio.to_thread(appender._process.wait, 5) == 0


async def test_a_disk_that_hangs_does_not_hang_the_loop(tmp_path: Path) -> None:
    """Events are told to wait in time; what had not reached the process by then is not written behind their backs."""
    path = tmp_path / "events.jsonl"
    async with writing(path, timeout_s=0.3) as sink:
        assert await until_sent(sink, before := sample())
        process_of(sink).send_signal(signal.SIGSTOP)  # as in the kernel, on a dead network disk
        first, second = sample(), sample()
        sending = asyncio.create_task(sink.send(first))
        while sink._writing is None:
            await asyncio.sleep(0)
        assert await sink.send(second) == Retry("not written: not within 0.3 s")
        assert isinstance(await sending, Retry)
        process_of(sink).send_signal(signal.SIGCONT)
        assert await until_sent(sink, second)
    assert path.read_bytes().splitlines() == [structured(before), structured(first), structured(second)]


async def until_sent(sink: FileSink, event: Any) -> bool:
    """Send *event* until it is sent."""
    async with asyncio.timeout(5):
        while await sink.send(event) != Sent():
            await asyncio.sleep(0)
    return True


@pytest.mark.parametrize("killable", [True, False])
async def test_stop_is_bounded_while_a_disk_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killable: bool) -> None:
    """A process that hangs in the kernel, where no signal reaches it, is left behind."""
    async with writing(tmp_path / "events.jsonl") as sink:
        assert await sink.send(sample()) == Sent()
        process = process_of(sink)
        process.send_signal(signal.SIGSTOP)
        sending = asyncio.create_task(sink.send(sample()))
        while sink._writing is None:
            await asyncio.sleep(0)
        started = time.monotonic()
        with monkeypatch.context() as patch:
            if not killable:
                patch.setattr(process, "kill", lambda: None)
            await sink.stop(0.5)
        assert time.monotonic() - started < 1.5
        assert await sink.send(sample()) == Retry("stopping")
        assert await sending == Retry("not written: stopped before it was written")
        assert (process.returncode is not None) == killable
        process.kill()
        process.wait()


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
