"""Content in memory and in files."""

from __future__ import annotations

import asyncio
import hashlib
import stat
from pathlib import Path
from typing import Any

import pytest

from postbus.server import Body, Envelope, ListenerSettings
from postbus.server.body import BATCH_OCTETS, Spill
from tests.server.conftest import Run
from tests.server.wire import Wire, listening, until

LINE = b"x" * 998 + b"\r\n"


class Taker:
    """Keeps what it learns of each body; renames the file when told to."""

    def __init__(self, takes: Path | None = None) -> None:
        self.takes = takes
        self.seen: list[tuple[int, str, Path | None, int]] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:
        """Look at the body."""
        body = envelope.body
        assert body is not None
        mode = stat.S_IMODE(body.path.stat().st_mode) if body.path is not None else 0
        self.seen.append((body.size_octets, body.sha256(), body.path, mode))
        assert hashlib.sha256(envelope.content).hexdigest() == body.sha256()
        if self.takes is not None and body.path is not None:
            body.path.rename(self.takes)
            body.release()
        return "250 OK"


def small(**fields: Any) -> ListenerSettings:
    """Return settings for tests, with *fields*."""
    return ListenerSettings(address="127.0.0.1:0", hostname="mx.example", **fields)


@pytest.mark.parametrize(
    ("lines", "spilled"),
    [
        pytest.param(0, False, id="empty"),
        pytest.param(256, False, id="under the threshold"),
        pytest.param(263, True, id="just over"),
        pytest.param(5000, True, id="many batches"),
    ],
)
def test_large_content_goes_to_a_file_and_is_gone_after_its_answer(lines: int, spilled: bool, tmp_path: Path, run: Run) -> None:
    """The file is private, hashed while written, and unlinked unless taken."""
    content = LINE * lines

    async def scenario() -> None:
        taker = Taker()
        async with listening(taker, small(), spill_folder=tmp_path) as listener, Wire.to(listener) as wire:
            for _ in range(2):
                await wire.begin()
                wire.send(content + b".\r\n")
                assert await wire.reply() == "250 OK"
            await until(lambda: not list(tmp_path.iterdir()))
            for size, digest, path, mode in taker.seen:
                assert (size, digest) == (len(content), hashlib.sha256(content).hexdigest())
                assert (path is not None) == spilled
                assert mode == (0o600 if spilled else 0)

    run(scenario())


def test_a_file_that_was_taken_stays(tmp_path: Path, run: Run) -> None:
    """Rename and release is how acceptance keeps it."""
    kept = tmp_path / "kept"

    async def scenario() -> None:
        async with listening(Taker(kept), small(), spill_folder=tmp_path) as listener, Wire.to(listener) as wire:
            await wire.begin()
            wire.send(LINE * 1000 + b".\r\n")
            assert await wire.reply() == "250 OK"
        assert [kept] == list(tmp_path.iterdir())
        assert LINE * 1000 == kept.read_bytes()

    run(scenario())


def test_a_sender_that_vanishes_leaves_no_file(tmp_path: Path, run: Run) -> None:
    """Half a message is nothing."""

    async def scenario() -> None:
        taker = Taker()
        async with listening(taker, small(), spill_folder=tmp_path) as listener, Wire.to(listener) as wire:
            await wire.begin()
            wire.send(LINE * 2000)
            await until(lambda: list(tmp_path.iterdir()))
            wire.writer.transport.abort()
            await until(lambda: listener.sessions == 0)
            await until(lambda: not list(tmp_path.iterdir()))
        assert taker.seen == []

    run(scenario())


def test_a_disk_error_is_answered_behind_the_dot(tmp_path: Path, run: Run) -> None:
    """The message is read to its end and refused; the session goes on."""

    async def scenario() -> None:
        taker = Taker()
        async with listening(taker, small(), spill_folder=tmp_path / "missing") as listener, Wire.to(listener) as wire:
            await wire.begin()
            wire.send(LINE * 2000 + b".\r\n")
            assert await wire.reply() == "451 4.3.0 Local error in processing"
            await wire.begin()
            wire.send(b"small\r\n.\r\n")
            assert await wire.reply() == "250 OK"
        assert len(taker.seen) == 1

    run(scenario())


def test_a_full_disk_is_452(tmp_path: Path, run: Run) -> None:
    """``/dev/full`` says ENOSPC at each write."""

    async def scenario() -> None:
        (tmp_path / "here").mkdir()
        async with listening(Taker(), small(), spill_folder=tmp_path / "here") as listener, Wire.to(listener) as wire:
            await wire.begin()
            opened = []

            def to_full(folder: Path, *arguments: Any) -> Spill:
                spill = Spill(folder, *arguments)
                spill.path = Path("/dev/full")
                opened.append(spill)
                return spill

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("postbus.server.content.Spill", to_full)
                patch.setattr("postbus.server.body.os.O_EXCL", 0)
                patch.setattr("postbus.server.body.Spill._unlink", lambda _spill: None)
                wire.send(LINE * 2000 + b".\r\n")
                assert (await wire.reply()).startswith("452 4.3.1")
            assert opened

    run(scenario())


def test_spill_stops_the_sender_while_two_batches_wait(tmp_path: Path, run: Run) -> None:
    """``behind`` is what pauses reading."""

    async def scenario() -> None:
        moved = asyncio.Event()
        spill = Spill(tmp_path, None, asyncio.get_running_loop(), moved.set)
        spill.feed(b"a" * BATCH_OCTETS)
        states = [spill.behind]
        spill.feed(b"b" * BATCH_OCTETS)
        states.append(spill.behind)
        assert states == [False, True]
        await until(lambda: not spill.behind)
        spill.end()
        await until(lambda: spill.whole)
        assert spill.fault is None
        assert spill.path.read_bytes() == b"a" * BATCH_OCTETS + b"b" * BATCH_OCTETS
        assert hashlib.sha256(spill.path.read_bytes()).hexdigest() == spill.digest

    run(scenario())


def test_a_body_that_was_discarded_cannot_be_read(tmp_path: Path) -> None:
    """In memory or in a file."""
    path = tmp_path / "body"
    path.write_bytes(b"x")
    for body in (Body(b"x"), Body(None, path=path, size_octets=1)):
        assert body.read() == b"x"
        body.discard()
        with pytest.raises(ValueError, match="discarded"):
            body.read()
    assert not path.exists()
