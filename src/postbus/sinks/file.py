"""Events as JSON lines in a file, or on standard output: the embedded default and the dead-letter export.

All events that wait when the writer is free go out in one write, and with ``fsync`` are on disk when it returns (group commit). Writing
happens in one thread, so that neither a slow disk nor a pipe that nobody reads ever stops the loop. Standard output is never made
non-blocking, a flag that a terminal shares with the shell: the thread asks ``poll`` first and then writes no more than a pipe takes whole.

States of the file's end, and who cleans:
  whole    the last octet is LF
  torn     a line without its LF, after a crash or a full disk; none of it was acknowledged, since that takes the whole group
           -> taken off when the file is opened, and at once when a write fails half-way
A torn end and a line that somebody is just writing look the same. So the file is locked (flock) for as long as it is open, and nobody
mends or cuts it without the lock: who finds it taken, as a sink made by a reload does until the old one has stopped, asks for the
events again.
Acknowledgement is the return of write, on a file opened with O_DSYNC if it is to be durable: that is write and fdatasync in one call
(open(2)). It matters, since after each call the thread has to win the interpreter lock back from a busy loop, which cost 10 us of CPU per
message. A write that failed, half-way or in its sync, is never tried again on the same file: the kernel may have marked the pages clean.
What it left is cut off, the file is opened anew, and the events come again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import select
import stat
import sys
import threading
import time
import traceback
from pathlib import Path
from queue import SimpleQueue

from postbus import telemetry
from postbus.event.cloudevents import structured
from postbus.event.model import Event
from postbus.sinks import Health, Outcome, Rejected, Retry, Sent
from postbus.sinks.budget import Budget, weight_of
from postbus.sinks.settings import FileSettings

STDOUT = "-"
PIPE_WRITE_MAX_OCTETS = select.PIPE_BUF
"""When poll says that a pipe is writable, so much goes in without blocking (POSIX: PIPE_BUF; 4,096 on Linux)."""
POLL_S = 0.2
"""How often a thread before a full pipe looks whether it is to give up."""
FILE_MODE = 0o600
LOOK_S = 0.01
"""How long after a look the file is taken to be where it was; with few events each group is preceded by one."""
REPAIR_READ_OCTETS = 64 * 1024
"""The end of a torn file is searched for its last LF in steps of this."""
_WRITTEN = Sent()


class StalledError(OSError):
    """What was to be written waited too long: for a disk, for a reader of standard output."""


class TakenError(OSError):
    """Somebody else has the file open to write."""

    def __init__(self) -> None:
        super().__init__(errno.EWOULDBLOCK, "another sink, or another process, writes to this file")


class Group:
    """Lines that are written together, and who waits for each. A waiter that is done stopped waiting: its line need not be written."""

    __slots__ = ("lines", "timer", "waiters", "weight")

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.weight = 0
        self.waiters: list[asyncio.Future[OSError | None]] = []
        self.timer: asyncio.TimerHandle | None = None

    def finish(self, error: OSError | None) -> None:
        """Tell everybody who still waits; ``None``: the lines are written."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(error)


class FileSink:
    """Appends events to a file; see ``postbus.sinks.Sink``."""

    kind = "file"
    secure = True
    octets = False

    def __init__(self, name: str, settings: FileSettings) -> None:
        self.name = name
        self.durable = settings.fsync and settings.path != STDOUT
        self.event_max_octets = settings.event_max_octets
        self.concurrency = settings.concurrency
        self._settings = settings
        self._target: Target = Stream(sys.stdout) if settings.path == STDOUT else LogFile(name, Path(settings.path), fsync=settings.fsync)
        self._budget = Budget(settings.in_flight_max_octets)
        self._gathering = Group()
        self._writing: Group | None = None
        self._queue: SimpleQueue[Group | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._trouble: str | None = None
        self._stopping = False

    # --- the contract

    async def start(self) -> None:
        """Start the writer. The file is opened with the first event."""
        self._loop = asyncio.get_running_loop()
        # A daemon: a write that hangs in the kernel (a dead network disk) must not keep the process from ending.
        self._thread = threading.Thread(target=self._write_groups, name=f"sink-{self.name}", daemon=True)
        self._thread.start()

    async def send(self, event: Event) -> Outcome:
        """Append *event* as one line and wait until it is written (and on disk, if so configured)."""
        weight = weight_of(event)
        if not self._budget.try_take(weight) and not await self._budget.take(weight, self._settings.timeout_s):
            return self._failure("what was to be written before is not written yet")
        waiter: asyncio.Future[OSError | None] | Outcome | None = None
        try:
            waiter = self._enqueued(event, weight)
        finally:
            if not isinstance(waiter, asyncio.Future):
                self._budget.give(weight)
        if not isinstance(waiter, asyncio.Future):
            return waiter
        error = await waiter
        if error is not None:
            return self._failure(f"not written: {error.strerror or error}", error)
        self._trouble = None
        return _WRITTEN

    async def stop(self, timeout_s: float) -> None:
        """Write what waits, at most *timeout_s*, and close."""
        self._stopping = True
        thread, self._thread = self._thread, None
        if thread is None:
            return
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        waiting = [waiter for group in (self._writing, self._gathering) if group for waiter in group.waiters]
        if waiting:
            await asyncio.wait(waiting, timeout=max(0.0, timeout_s - 2 * POLL_S))
        self._target.give_up()
        self._queue.put(None)
        await asyncio.to_thread(thread.join, max(0.0, deadline_s - loop.time()))
        self._gathering.finish(StalledError("stopped before it was written"))

    def health(self) -> Health:
        """Return whether the last write worked."""
        return Health(ok=self._trouble is None, detail=self._trouble or "writing")

    # --- groups

    def _enqueued(self, event: Event, weight: int) -> asyncio.Future[OSError | None] | Outcome:
        """Add *event* to the group that goes next, which gives *weight* back; return what its writing will set, or why it was not added."""
        loop = self._loop
        if self._stopping or loop is None:
            return Retry("stopping")
        line = structured(event) + b"\n"
        if len(line) > self.event_max_octets:
            return Rejected(f"the event has {len(line)} octets, this sink takes {self.event_max_octets}", too_large=True)
        group = self._gathering
        if group.timer is None:
            # One timer for all of a group, which its first line starts: the others wait a little less than their time.
            group.timer = loop.call_later(self._settings.timeout_s, self._expire, group)
            if self._writing is None:
                # Not at once: everybody who is ready in this turn of the loop comes along.
                loop.call_soon(self._hand_over)
        waiter: asyncio.Future[OSError | None] = loop.create_future()
        group.weight += weight
        group.lines.append(line)
        group.waiters.append(waiter)
        return waiter

    def _hand_over(self) -> None:
        """Give the gathered group to the thread; one group is in its hands at a time."""
        if self._writing is None and self._gathering.lines:
            group, self._gathering = self._gathering, Group()
            self._writing = group
            self._queue.put(group)

    def _written(self, group: Group, error: OSError | None) -> None:
        """On the loop: tell everybody who waited for *group*, and write the next."""
        self._writing = None
        if group.timer is not None:
            group.timer.cancel()
        self._budget.give(group.weight)
        group.finish(error)
        self._hand_over()

    def _expire(self, group: Group) -> None:
        """End the waiting for *group*. If it has not reached the thread, it is not written at all: its events come again."""
        group.finish(StalledError(f"not within {self._settings.timeout_s:g} s"))
        if group is self._gathering:
            self._gathering = Group()
            self._budget.give(group.weight)

    def _failure(self, why: str, error: OSError | None = None) -> Retry:
        """Return a retry, and say so once."""
        if self._trouble is None and not self._stopping:
            telemetry.sink_troubled(sink=self.name, why=why, error=repr(error))
        self._trouble = why
        return Retry(why)

    # --- in the thread

    def _write_groups(self) -> None:
        """Write group after group until ``None`` comes. Nothing that happens to one of them ends it."""
        assert self._loop is not None
        while (group := self._queue.get()) is not None:
            error = self._write(group)
            # The loop may be gone when the process ends over a stuck write: then nobody waits any more.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._written, group, error)
        with contextlib.suppress(OSError):
            self._target.close()

    def _write(self, group: Group) -> OSError | None:
        """Write *group*; return why it was not written."""
        try:
            self._target.write(b"".join(line for line, waiter in zip(group.lines, group.waiters, strict=True) if not waiter.done()))
        except OSError as error:
            return error
        except Exception as error:  # noqa: BLE001 - the top of a thread: whatever it is (no memory, say), the next group is written
            telemetry.task_restarted(task=f"sink {self.name}: writer", error=repr(error), after_s=0.0, traceback=traceback.format_exc())
            return OSError(f"failed in postbus: {type(error).__name__}")
        return None


class LogFile:
    """A file of lines that is appended to; opened when first written, and anew when it was moved away or failed."""

    def __init__(self, name: str, path: Path, *, fsync: bool) -> None:
        self._name = name
        self._path = path
        self._fsync = fsync
        self._fd = -1
        self._identity = (0, 0)
        self._size_octets = 0  # where the next line begins, unless somebody has cut the file since
        self._looked_at_s = 0.0

    def write(self, octets: bytes) -> None:
        """Append whole lines. Raises OSError; then none of them counts as written."""
        try:
            if not self._in_place():
                self.close()
                self._size_octets = self._open()
            self._append(octets)
        except BaseException:
            with contextlib.suppress(OSError):
                self.close()
            raise

    def give_up(self) -> None:
        """Nothing to wake: a disk answers or it does not."""

    def close(self) -> None:
        """Close the file, if it is open."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _open(self) -> int:
        """Open the file, make it if need be, lock it, take a torn line off its end, and return its size."""
        new = not self._path.exists()
        synced = os.O_DSYNC if self._fsync else 0
        self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | synced, FILE_MODE)
        found = os.fstat(self._fd)
        self._identity = (found.st_dev, found.st_ino)
        if not stat.S_ISREG(found.st_mode):
            return 0
        lock(self._fd)
        if new and self._fsync:
            sync_folder(self._path.parent)
        return self._repaired(os.fstat(self._fd).st_size)

    def _repaired(self, size: int) -> int:
        """Take a torn last line off: it was never acknowledged, and its event comes again. Return the size then."""
        whole = end_of_last_line(self._fd, size)
        if whole < size:
            os.ftruncate(self._fd, whole)
            telemetry.sink_file_repaired(sink=self._name, octets=size - whole)
        return whole

    def _append(self, octets: bytes) -> None:
        """Write all of *octets*, or leave the file as it was."""
        try:
            write_all(self._fd, octets)
        except BaseException:
            # A full disk takes half a line; should this fail too, the next opening repairs it.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, min(self._size_octets, os.fstat(self._fd).st_size))
            raise
        self._size_octets += len(octets)

    def _in_place(self) -> bool:
        """Return whether the path leads to the file that is open: it may have been rotated. Looked at every 10 ms at most."""
        if self._fd < 0:
            return False
        now_s = time.monotonic()
        if now_s < self._looked_at_s + LOOK_S:
            return True
        self._looked_at_s = now_s
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        self._size_octets = found.st_size
        return (found.st_dev, found.st_ino) == self._identity


class Stream:
    """Standard output: a pipe, a terminal or a file, ours to write to but not to close."""

    def __init__(self, stream: object) -> None:
        self._stream = stream
        self._giving_up = False

    def write(self, octets: bytes) -> None:
        """Write whole lines, waiting for a slow reader. Raises OSError; ``StalledError`` after ``give_up``."""
        fd = self._stream.fileno()  # type: ignore[attr-defined]
        if stat.S_ISREG(os.fstat(fd).st_mode):
            write_all(fd, octets)
            return
        writable = select.poll()
        writable.register(fd, select.POLLOUT)
        view = memoryview(octets)
        while view:
            if writable.poll(POLL_S * 1000):
                view = view[os.write(fd, view[:PIPE_WRITE_MAX_OCTETS]) :]
            elif self._giving_up:
                raise StalledError("nobody reads standard output")

    def give_up(self) -> None:
        """Let a write that waits for a reader fail."""
        self._giving_up = True

    def close(self) -> None:
        """Leave standard output open: it is not ours."""


Target = LogFile | Stream


def lock(fd: int) -> None:
    """Be the only one who writes to the file *fd*, until it is closed. Raises TakenError at once if somebody is already."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TakenError from None


def write_all(fd: int, octets: bytes) -> None:
    """Write all of *octets* to *fd*, which may take them in pieces."""
    view = memoryview(octets)
    while view:
        view = view[os.write(fd, view) :]


def end_of_last_line(fd: int, size: int) -> int:
    """Return the offset behind the last LF of the first *size* octets of *fd*; 0 when there is none."""
    end = size
    while end > 0:
        start = max(0, end - REPAIR_READ_OCTETS)
        found = os.pread(fd, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def sync_folder(folder: Path) -> None:
    """Make a new name in *folder* survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make(name: str, settings: FileSettings) -> FileSink:
    """Return the sink *name*, not yet started (entry point ``postbus.sinks``)."""
    return FileSink(name, settings)
