"""The process that writes: files that end with whole lines, on disk when it says so; what is said to it and by it."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from postbus.sinks.file import appending
from postbus.sinks.file.appending import LogFile, Stream, TakenError, end_of_last_line, serve, write_all

LINE = b'{"id":"1"}\n'


@contextmanager
def opened(path: Path, *, fsync: bool = True) -> Iterator[LogFile]:
    """A file of lines, closed in the end."""
    file = LogFile(str(path), fsync=fsync)
    try:
        yield file
    finally:
        file.close()


def instead_of_writes(monkeypatch: pytest.MonkeyPatch, act: Callable[[Callable[[], int]], int]) -> None:
    """Let ``act(write)`` stand for every write; *write* does it."""
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, octets: act(lambda: real(fd, octets)))


@pytest.mark.parametrize("fsync", [True, False])
def test_what_is_written_is_on_disk_if_so_asked(tmp_path: Path, fsync: bool) -> None:
    """Each write is its own sync; the file is nobody else's to read."""
    path = tmp_path / "events.jsonl"
    with opened(path, fsync=fsync) as file:
        file.write(LINE)
        assert fsync == bool(fcntl.fcntl(file._fd, fcntl.F_GETFL) & os.O_DSYNC)
    assert path.read_bytes() == LINE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("fsync", [True, False])
def test_a_new_name_survives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: bool) -> None:
    """Its folder is synced once, when the file is made."""
    synced: list[str] = []
    monkeypatch.setattr(appending, "sync_folder", synced.append)
    for _ in range(2):
        with opened(tmp_path / "events.jsonl", fsync=fsync) as file:
            file.write(LINE)
            file.write(LINE)
    assert synced == [str(tmp_path)] * fsync


def test_a_name_without_a_folder_is_in_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose folder is synced, too."""
    monkeypatch.chdir(tmp_path)
    with opened(Path("events.jsonl")) as file:
        file.write(LINE)
    assert (tmp_path / "events.jsonl").read_bytes() == LINE


@pytest.mark.parametrize("move", [pytest.param(Path.rename, id="rotated"), pytest.param(lambda path, _: path.unlink(), id="deleted")])
def test_a_file_that_was_moved_is_made_anew(tmp_path: Path, move: Callable[[Path, Path], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotation needs no signal: what comes when the path is looked at again finds it empty."""
    monkeypatch.setattr(appending, "LOOK_S", 0.0)
    path = tmp_path / "events.jsonl"
    with opened(path) as file:
        file.write(b"before\n")
        move(path, tmp_path / "events.1")
        file.write(LINE)
    assert path.read_bytes() == LINE


def test_the_path_is_not_looked_at_for_every_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until it is time to look again, lines go to the file that is open, wherever it is now; none is lost."""
    monkeypatch.setattr(appending, "LOOK_S", 3600.0)
    path, moved = tmp_path / "events.jsonl", tmp_path / "events.1"
    with opened(path) as file:
        file.write(LINE)  # opens the file
        file.write(LINE)  # is preceded by a look
        path.rename(moved)
        file.write(LINE)
    assert moved.read_bytes() == LINE * 3
    assert not path.exists()


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
def test_a_torn_line_is_taken_off(tmp_path: Path, before: bytes, kept: bytes) -> None:
    """After a crash every line is whole: the torn one was not acknowledged, its event comes again."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(before)
    with opened(path) as file:
        file.write(LINE)
        assert file.repaired_octets == len(before) - len(kept)
    assert path.read_bytes() == kept + LINE


def test_a_disk_that_fills_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that takes half a line and then fails is undone; the same lines go when there is room."""
    path = tmp_path / "events.jsonl"
    real, room = os.write, [4]

    def write(fd: int, octets: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = real(fd, octets[: room[0]])
        room[0] -= taken
        return taken

    with opened(path) as file:
        file.write(LINE)
        monkeypatch.setattr(os, "write", write)
        with pytest.raises(OSError, match="No space"):
            file.write(LINE)
        assert path.read_bytes() == LINE
        monkeypatch.undo()
        file.write(LINE)
    assert path.read_bytes() == LINE * 2


def test_a_file_that_was_cut_gets_no_hole_when_a_write_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that rotates by copy and truncate: what a failed write left is cut off where the file now ends."""
    path = tmp_path / "events.jsonl"

    def fail(write: Callable[[], int]) -> int:
        os.truncate(path, 0)  # after the look
        write()
        raise OSError(errno.ENOSPC, "No space left on device")

    with opened(path) as file:
        file.write(LINE * 10)
        instead_of_writes(monkeypatch, fail)
        with pytest.raises(OSError, match="No space"):
            file.write(LINE)
    assert path.read_bytes() == LINE  # whole, and comes again


def test_a_sync_that_failed_is_not_tried_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is closed, and opened anew for what comes: the kernel may have forgotten what it was given."""
    path = tmp_path / "events.jsonl"
    calls: list[int] = []

    def fail(write: Callable[[], int]) -> int:
        calls.append(write())
        raise OSError(errno.EIO, "Input/output error")

    with opened(path) as file:
        file.write(b"before\n")
        instead_of_writes(monkeypatch, fail)
        with pytest.raises(OSError, match="Input/output"):
            file.write(LINE)
        assert file._fd == -1
        monkeypatch.undo()
        assert path.read_bytes() == b"before\n"
        file.write(LINE)
    assert len(calls) == 1
    assert path.read_bytes() == b"before\n" + LINE


def test_a_file_has_one_writer(tmp_path: Path) -> None:
    """A second one neither writes nor mends until the first has closed it."""
    path, half = tmp_path / "events.jsonl", b'{"id":'
    with opened(path) as old, opened(path) as new:
        old.write(LINE)
        with path.open("ab") as file:
            file.write(half)  # what a line looks like while the first writes it
        with pytest.raises(TakenError):
            new.write(LINE)
        assert path.read_bytes() == LINE + half
        old.close()
        new.write(LINE)
    assert path.read_bytes() == LINE * 2


@pytest.mark.parametrize("text", [b"", b"\n", b"a", b"a\n", b"a\nb", b"a\nb\n", b"\n\n", b"a" * 9, b"a\n" + b"b" * 9])
def test_the_last_line_is_found_across_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes) -> None:
    """However the file is cut into steps."""
    monkeypatch.setattr(appending, "REPAIR_READ_OCTETS", 3)
    path = tmp_path / "f"
    path.write_bytes(text)
    with path.open("rb") as file:
        assert end_of_last_line(file.fileno(), len(text)) == text.rfind(b"\n") + 1


def test_a_pipe_that_somebody_made_nonblocking_is_waited_for() -> None:
    """The flag belongs to all who share it."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    octets, received = b"x" * 1_000_000, bytearray()

    def read() -> None:
        while len(received) < len(octets):
            received.extend(os.read(reading, 65536))

    reader = threading.Thread(target=read)
    reader.start()
    write_all(writing, octets)
    reader.join()
    assert bytes(received) == octets
    os.close(reading)
    os.close(writing)


# --- the conversation


def framed(*groups: bytes) -> io.BytesIO:
    """What a sink says."""
    return io.BytesIO(b"".join(len(group).to_bytes(8, "big") + group for group in groups))


def served(target: LogFile, said: io.BytesIO) -> list[bytes]:
    """Return the answers to what was *said*."""
    answers: list[bytes] = []
    serve(target, said, answers.append)
    return answers


def test_group_after_group_is_written_and_answered_for(tmp_path: Path) -> None:
    """In order, until nothing more is said."""
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"torn")
    with opened(path) as file:
        assert served(file, framed(LINE, LINE * 2)) == [b"4 0 \n", b"0 0 \n"]
    assert path.read_bytes() == LINE * 3


def test_a_group_cut_short_is_not_written(tmp_path: Path) -> None:
    """Who said half of it has died, and says it all again after his restart."""
    whole = framed(LINE, LINE * 1000).getvalue()
    for end in (3, 8 + len(LINE) + 3, 8 + len(LINE) + 8, len(whole) - 1):
        path = tmp_path / f"{end}"
        with opened(path) as file:
            answers = served(file, io.BytesIO(whole[:end]))
        assert len(answers) == (end > 8)
        assert (path.read_bytes() if path.exists() else b"") == LINE * len(answers)


class Moody:
    """Raises what it is told to, then writes."""

    def __init__(self, *errors: Exception | None) -> None:
        self.repaired_octets = 0
        self._errors = list(errors)

    def write(self, octets: bytes) -> None:
        """Do nothing, or raise."""
        del octets
        if error := self._errors.pop(0):
            raise error


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), b"0 28 No space left on device\n"),
        (TakenError(), b"0 11 another sink, or another process, writes to this file\n"),
        (OSError("of two\nlines"), b"0 5 of two lines\n"),
        (MemoryError(), b"0 5 failed in postbus: MemoryError\n"),
    ],
)
def test_what_went_wrong_is_said_in_one_line_and_ends_nothing(error: Exception, answer: bytes) -> None:
    """The next group is written."""
    answers: list[bytes] = []
    serve(Moody(error, None), framed(LINE, LINE), answers.append)  # type: ignore[arg-type]
    assert answers == [answer, b"0 0 \n"]


def test_standard_output_is_written_and_left_open() -> None:
    """It is not ours."""
    reading, writing = os.pipe()
    answers: list[bytes] = []
    serve(Stream(writing), framed(LINE), answers.append)
    os.write(writing, b"more")
    assert os.read(reading, 100) == LINE + b"more"
    assert answers == [b"0 0 \n"]
    os.close(reading)
    os.close(writing)
