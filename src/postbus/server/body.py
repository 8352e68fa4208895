"""The content of one message: in memory while small, in a file of its own beyond a threshold.

The file is made, written, closed and unlinked in threads, never on the loop. States of a spilled body:

  writing   file spill-<random> exists, incomplete   dropped by the connection when the sender vanishes; after a crash the folder's owner's
  whole     file complete, closed, not yet synced     the handler may rename it and call ``release``; else ``discard`` unlinks it
  released  the file is the handler's                 never touched again

A nameless file is unlinked as soon as it is open: a process that dies leaves none, and there is nothing a handler could take.

Nothing here syncs: whoever acknowledges the message syncs what it relies on.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import secrets
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from typing import Any

BATCH_OCTETS = 128 * 1024  # one write to disk; twice that is no faster and holds 20 MiB more for 100 senders
AHEAD_OCTETS = 64 * 1024  # may wait in memory behind the batch in flight; then the sender has to wait
CRUMB_OCTETS = 4096  # pieces up to here are joined: kept as they arrive, 2 octets would cost 40, and a write each
SPILL_PREFIX = "spill-"


class Body:
    """The octets of a message, dots taken out, line ends as sent.

    Attributes:
        size_octets: length of the content.
        octets: the content, or None when it went to a file.
        path: the file, or None when the content is in memory or in a file without a name, or the file was released.
        file: the file without a name, or None.
    """

    __slots__ = ("_digest", "_unlink", "file", "octets", "path", "size_octets")

    def __init__(
        self,
        octets: bytes | None,
        *,
        path: Path | None = None,
        size_octets: int | None = None,
        digest: str | None = None,
        unlink: Callable[[Path], object] | None = None,
        file: NamelessFile | None = None,
    ) -> None:
        self.octets = octets
        self.file = file
        self.path = path
        self.size_octets = len(octets or b"") if size_octets is None else size_octets
        self._digest = digest
        self._unlink = unlink

    def sha256(self) -> str:
        """Return the SHA-256 of the content in hex; a spilled body was hashed while it was written."""
        if self._digest is None:
            self._digest = hashlib.sha256(self.read()).hexdigest()
        return self._digest

    def read(self) -> bytes:
        """Return the content; reads a spilled body from its file, which blocks.

        Raises:
            OSError: the file is gone or unreadable.
            ValueError: the body was discarded or released.
        """
        if self.octets is not None:
            return self.octets
        file = self.file
        if file is not None:
            return file.read(self.size_octets)
        if self.path is None:
            raise ValueError("the body was discarded or its file was taken")
        return self.path.read_bytes()

    def load(self) -> None:
        """Have the content of a nameless file in memory instead; blocks.

        Raises:
            OSError: the file is unreadable; it stays where it is.
        """
        if self.file is not None:
            self.octets, self.file = self.file.read(self.size_octets), None

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle the content itself: a descriptor has one owner, and none in another process."""
        whole = self.octets is not None or self.file is not None or self.path is not None
        return type(self), (self.read() if whole else None,)

    def release(self) -> None:
        """The file has a new owner: forget it."""
        self.path = None

    def discard(self) -> None:
        """Forget the content and unlink its file, if there is one and it was not released."""
        path, self.path, self.octets, self.file = self.path, None, None, None
        if path is None:
            return
        if self._unlink is None:
            path.unlink(missing_ok=True)
        else:
            self._unlink(path)


class NamelessFile:
    """An open file that has no name: its blocks are free once nobody holds it, or its process has ended."""

    __slots__ = ("__weakref__", "_descriptor")

    def __init__(self, descriptor: int) -> None:
        """Own *descriptor*."""
        self._descriptor = descriptor

    def read(self, size_octets: int) -> bytes:
        """Return its first *size_octets*, in any thread.

        Raises:
            OSError: the disk fails, or the file is shorter.
        """
        pieces, at = [], 0
        while at < size_octets:
            piece = os.pread(self._descriptor, size_octets - at, at)
            if not piece:
                raise OSError(errno.EIO, "spilled content ends early")
            pieces.append(piece)
            at += len(piece)
        return b"".join(pieces)

    def __del__(self) -> None:
        """Let it go: whoever keeps an envelope keeps its content, however long after the answer."""
        os.close(self._descriptor)


class Spill:
    """Content on its way into a file: fed on the loop, written by a thread, one batch in flight.

    Attributes:
        path: the file, mode 0600; a nameless one has that name only while it is made.
        fault: the disk's error; what follows it is dropped.
    """

    __slots__ = (
        "_digest",
        "_dropped",
        "_ending",
        "_file",
        "_finished",
        "_folder",
        "_loop",
        "_nameless",
        "_pending",
        "_pending_octets",
        "_pool",
        "_progress",
        "_writing",
        "fault",
        "path",
    )

    def __init__(
        self,
        folder: Path,
        pool: Executor | None,
        loop: asyncio.AbstractEventLoop,
        progress: Callable[[], None],
        nameless: bool = False,
    ) -> None:
        """*progress* is called on the loop whenever a batch is on disk, and when it turned out that it cannot be."""
        self._nameless = nameless
        self._finished = False
        self.path = folder / (SPILL_PREFIX + secrets.token_hex(8))
        self.fault: OSError | None = None
        self._pool = pool
        self._loop = loop
        self._progress = progress
        self._pending: list[bytes] = []
        self._pending_octets = 0
        self._writing = False
        self._ending = False
        self._dropped = False
        self._file: int | None = None
        self._digest = hashlib.sha256()

    @property
    def behind(self) -> bool:
        """A batch is in flight and enough waits behind it: the sender has to wait too."""
        return self._writing and self._pending_octets >= AHEAD_OCTETS

    @property
    def whole(self) -> bool:
        """``end`` was called and everything is written, or never will be."""
        return self._ending and not self._writing

    @property
    def digest(self) -> str:
        """SHA-256 of what was written, in hex; final once ``whole``."""
        return self._digest.hexdigest()

    def feed(self, octets: bytes) -> None:
        """Take the next octets."""
        if self.fault is not None:
            return
        pending = self._pending
        if pending and len(pending[-1]) + len(octets) <= CRUMB_OCTETS:
            pending[-1] += octets
        else:
            pending.append(octets)
        self._pending_octets += len(octets)
        if self._pending_octets >= BATCH_OCTETS and not self._writing:
            self._write_pending()

    def take(self) -> NamelessFile | None:
        """Return the nameless file, whose owner is the caller from now on; None where it has a name. To be called once ``whole``."""
        file, self._file = self._file, None
        return None if file is None else NamelessFile(file)

    def end(self) -> None:
        """No more octets will come: write the rest and close the file."""
        self._ending = True
        if not self._writing:
            self._write_pending()

    def drop(self) -> None:
        """Nobody wants the content any more: unlink the file as soon as no thread writes it."""
        self._dropped = True
        self._pending.clear()
        self._pending_octets = 0
        if not self._writing:
            self._unlink_soon()

    def _unlink_soon(self) -> None:
        try:
            self._loop.run_in_executor(self._pool, self._unlink)
        except RuntimeError:  # the threads have ended with the listener
            self._unlink()

    def _write_pending(self) -> None:
        batch, self._pending = self._pending, []
        self._pending_octets = 0
        self._writing = True
        self._loop.run_in_executor(self._pool, self._write, batch, self._ending).add_done_callback(self._written)

    def _written(self, done: asyncio.Future[OSError | None]) -> None:
        self._writing = False
        self.fault = self.fault or done.result()
        if self._dropped:
            self._unlink_soon()
            return
        if self.fault is not None:
            self._pending.clear()
            self._pending_octets = 0
        elif (self._pending and (self._ending or self._pending_octets >= BATCH_OCTETS)) or (self._ending and not self._finished):
            self._write_pending()
        self._progress()

    def _write(self, batch: list[bytes], last: bool) -> OSError | None:
        """Write *batch*, in a thread; return the disk's error instead of raising it, so that no future goes unread."""
        try:
            if self._file is None:
                self._file = self._open()
            for octets in batch:
                self._digest.update(octets)
                rest = memoryview(octets)
                while rest:
                    rest = rest[os.write(self._file, rest) :]
            if last:
                self._finished = True
                if not self._nameless:
                    self._close()
        except OSError as error:
            self._unlink()
            return error
        return None

    def _open(self) -> int:
        """Make the file."""
        flags = os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        if not self._nameless:
            return os.open(self.path, flags | os.O_WRONLY, 0o600)
        try:
            file = os.open(self.path, flags | os.O_RDWR, 0o600)
        except FileNotFoundError:  # temporary folders are swept: one without files for days is gone
            self.path.parent.mkdir(0o700, exist_ok=True)
            file = os.open(self.path, flags | os.O_RDWR, 0o600)
        self.path.unlink()
        return file

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    def _unlink(self) -> None:
        with suppress(OSError):  # a disk this sick has been reported by the write; the folder's owner finds the file at the next start
            self._close()
            self.path.unlink(missing_ok=True)
