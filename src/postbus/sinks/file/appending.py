"""The process that writes lines: ``python -I -S appending.py (FILE | -) (fsync | nosync)``. Started by ``appender`` alone.

It talks over the socket that is its standard input, and imports nothing but a little of the standard library: it takes 20 ms to start, and
11 MiB beside what it writes.

    group   8 octets length, big-endian; so many octets of whole lines
    answer  one line: octets taken off a torn end first, errno, why: ``0 0`` when the group is written (and on disk)

States of the file's end, and who cleans:
  whole    the last octet is LF
  torn     a line without its LF, after a crash or a full disk; none of it was acknowledged, since that takes the whole group
           -> taken off when the file is opened, and at once when a write fails half-way
A torn end and a line that somebody is just writing look the same. So the file is locked (flock) for as long as it is open, and nobody
mends or cuts it without the lock: who finds it taken, as a sink made by a reload does until the old one has stopped, asks for the
events again.
Acknowledgement is the return of write, on a file opened with O_DSYNC if it is to be durable: that is write and fdatasync in one call
(open(2)). A write that failed, half-way or in its sync, is never tried again on the same file: the kernel may have marked the pages clean.
What it left is cut off, the file is opened anew, and the events come again.
An owner that was killed leaves this process to end what it is at: a sync, for which the next owner finds the file taken that long; or a
write to a pipe that nobody reads, until somebody does or nobody can.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Callable
from typing import BinaryIO

STDOUT = "-"
WIRE_FD, STDOUT_FD = 0, 1
FILE_MODE = 0o600
LOOK_S = 0.01
"""How long after a look the file is taken to be where it was; with few events each group is preceded by one."""
REPAIR_READ_OCTETS = 64 * 1024
"""The end of a torn file is searched for its last LF in steps of this."""
SIZE_OCTETS = 8


class TakenError(OSError):
    """Somebody else has the file open to write."""

    def __init__(self) -> None:
        super().__init__(errno.EWOULDBLOCK, "another sink, or another process, writes to this file")


class LogFile:
    """A file of lines that is appended to; opened when first written, and anew when it was moved away or failed.

    Attributes:
        repaired_octets: taken off a torn end since somebody last asked.
    """

    def __init__(self, path: str, *, fsync: bool) -> None:
        self.repaired_octets = 0
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

    def close(self) -> None:
        """Close the file, if it is open."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _open(self) -> int:
        """Open the file, make it if need be, lock it, take a torn line off its end, and return its size."""
        new = not os.path.exists(self._path)
        synced = os.O_DSYNC if self._fsync else 0
        self._fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | synced, FILE_MODE)
        found = os.fstat(self._fd)
        self._identity = (found.st_dev, found.st_ino)
        if not stat.S_ISREG(found.st_mode):
            return 0
        lock(self._fd)
        if new and self._fsync:
            sync_folder(os.path.dirname(self._path) or ".")
        return self._repaired(os.fstat(self._fd).st_size)

    def _repaired(self, size: int) -> int:
        """Take a torn last line off: it was never acknowledged, and its event comes again. Return the size then."""
        whole = end_of_last_line(self._fd, size)
        if whole < size:
            os.ftruncate(self._fd, whole)
            self.repaired_octets += size - whole
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
            found = os.stat(self._path)
        except FileNotFoundError:
            return False
        self._size_octets = found.st_size
        return (found.st_dev, found.st_ino) == self._identity


class Stream:
    """Standard output: a pipe, a terminal or a file, ours to write to but not to close."""

    repaired_octets = 0

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, octets: bytes) -> None:
        """Write whole lines, waiting for a slow reader. Raises OSError."""
        write_all(self._fd, octets)


Target = LogFile | Stream


def serve(target: Target, groups: BinaryIO, answer: Callable[[bytes], object]) -> None:
    """Write group after group to *target* until they end; one that ends in its middle is nobody's any more."""
    while len(head := groups.read(SIZE_OCTETS)) == SIZE_OCTETS:
        size_octets = int.from_bytes(head, "big")
        if len(octets := groups.read(size_octets)) < size_octets:
            return
        number, why = _outcome(target, octets)
        del octets
        repaired_octets, target.repaired_octets = target.repaired_octets, 0
        answer(f"{repaired_octets} {number} {why}\n".encode())


def _outcome(target: Target, octets: bytes) -> tuple[int, str]:
    """Write *octets*; return errno and why it was not done, 0 and nothing when it was."""
    try:
        target.write(octets)
    except OSError as error:
        return error.errno or errno.EIO, (error.strerror or str(error)).replace("\n", " ")
    except Exception as error:  # noqa: BLE001 - whatever it is (no memory, say), the next group is written
        return errno.EIO, f"failed in postbus: {type(error).__name__}"
    return 0, ""


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
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # a flag that all who share a terminal or a pipe have in common, and one of them has set
            select.select([], [fd], [])


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


def sync_folder(folder: str) -> None:
    """Make a new name in *folder* survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def main(path: str, sync: str) -> None:
    """Write what comes over standard input until it ends. Signals for all of postbus are not for us: its drain still needs us."""
    for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    target = Stream(STDOUT_FD) if path == STDOUT else LogFile(path, fsync=sync == "fsync")
    serve(target, sys.stdin.buffer, lambda answer: os.write(WIRE_FD, answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
