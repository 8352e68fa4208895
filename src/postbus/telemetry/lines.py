"""Log lines: one JSON object (or one readable line) per fact, on standard error, without ever blocking the caller.

A line costs the caller about 3 us: it is encoded and appended to a queue that one thread empties, at the latest 50 ms later. The
queue is bounded; when standard error is stuck (a full pipe that nobody reads) lines are dropped and counted, and mail goes on.
Standard error itself is never made non-blocking: the flag belongs to the open file, which a terminal shares with the shell.

Until ``configure`` was called (the library in somebody else's program), lines go to the ``postbus`` logger of the standard library.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Literal

from postbus.telemetry.encoding import VALUE_MAX_CHARACTERS, encode_json, encode_text

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "text"]
Addresses = Literal["domain", "full", "hash", "none"]

RANKS: Mapping[str, int] = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
QUEUE_MAX_OCTETS = 2_097_152
"""Octets waiting for the thread; as many again may be in its hands. About 10,000 lines."""
GATHER_S = 0.05
"""How long the thread waits for more lines before it writes; a line is out within 100 ms."""
LIBRARY = "postbus"
"""The logger that has our lines where nobody has configured us: in somebody else's program."""
EXIT_FLUSH_S = 1.0
"""How long the end of the process waits for a slow reader of standard error."""


# --- addresses

_HIDDEN: Mapping[Addresses, Callable[[str], str]] = {
    "full": lambda address: address,
    "domain": lambda address: "@" + address.rpartition("@")[2] if "@" in address else "@",
    # A plain hash of something guessable: it lets lines be joined, it does not hide an address from somebody who guesses it.
    "hash": lambda address: hashlib.blake2b(address.lower().encode("utf-8", "surrogatepass"), digest_size=8).hexdigest(),
    "none": lambda _: "-",
}


# --- writing


class Writer:
    """Writes lines to a file descriptor from a thread of its own; ``put`` never blocks."""

    def __init__(self, descriptor: int, *, max_octets: int = QUEUE_MAX_OCTETS, gather_s: float = GATHER_S) -> None:
        self.dropped = 0
        self._descriptor = descriptor
        self._max_octets = max_octets
        self._gather_s = gather_s
        self._lines: deque[bytes] = deque()
        self._held_octets = 0  # about: two threads touch it, and the thread resets it at every flush
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._writer = threading.Thread(target=self._run, name="postbus-log", daemon=True)
        self._writer.start()

    def put(self, line: bytes) -> None:
        """Queue *line*, or count it as dropped when the queue is full."""
        if self._held_octets + len(line) > self._max_octets:
            self.dropped += 1
            return
        self._held_octets += len(line)
        self._lines.append(line)
        if not self._wake.is_set():
            self._wake.set()

    def close(self, timeout_s: float = EXIT_FLUSH_S) -> bool:
        """Write what is queued and end the thread; return whether it ended in time. A stuck reader loses the rest."""
        self._stop.set()
        self._wake.set()
        self._writer.join(timeout_s)
        return not self._writer.is_alive()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._stop.wait(self._gather_s)
            self._wake.clear()
            self._write(self._take())
            if self._stop.is_set() and not self._lines:
                return

    def _take(self) -> bytes:
        batch = []
        while self._lines:
            batch.append(self._lines.popleft())
        self._held_octets = 0
        return b"".join(batch)

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # somebody else made it non-blocking
                select.select([], [self._descriptor], [])
            except OSError:  # closed: there is nobody left to tell
                self.dropped += bytes(rest).count(b"\n")
                return


class Log:
    """What is logged, how and where. One per process (``LOG``)."""

    def __init__(self) -> None:
        self.writer: Writer | None = None
        self._rank = logging.DEBUG
        self._encode: Callable[[str, str, str, Mapping[str, object]], bytes] = encode_json
        self._readable = False
        self._hide = _HIDDEN["domain"]
        self._second = -1
        self._prefix = ""
        self._library = logging.getLogger(LIBRARY)
        self._closed_drops = 0

    def configure(
        self, *, level: Level = "info", log_format: Format = "auto", addresses: Addresses = "domain", descriptor: int | None = None
    ) -> None:
        """Start (or change) logging to standard error, or to *descriptor*, and route the standard library's ``logging`` here.

        ``auto`` means text on a terminal and JSON elsewhere.
        """
        target = sys.__stderr__.fileno() if descriptor is None and sys.__stderr__ is not None else descriptor
        target = 2 if target is None else target
        terminal = os.isatty(target)
        if log_format == "json" or (log_format == "auto" and not terminal):
            self._encode, self._readable = encode_json, False
        else:
            self._readable = True
            colour = terminal and "NO_COLOR" not in os.environ  # https://no-color.org
            self._encode = lambda now, rank, event, keys: encode_text(now, rank, event, keys, colour=colour)
        self._rank = RANKS[level]
        self._hide = _HIDDEN[addresses]
        self.close()
        self.writer = Writer(target)
        atexit.unregister(self.close)
        atexit.register(self.close)
        _adopt_standard_logging(self)

    def close(self) -> None:
        """Flush and stop; later lines go to the standard library's logger again."""
        if self.writer is None:
            return
        writer, self.writer = self.writer, None
        writer.close()
        self._closed_drops += writer.dropped

    @property
    def dropped(self) -> int:
        """Lines dropped since the process started."""
        return self._closed_drops + (self.writer.dropped if self.writer else 0)

    def log(self, level: Level, event: str, /, **keys: object) -> None:
        """Write one line: *event* is a name (``session.closed``), *keys* are plain values; ``None`` values are left out."""
        rank = RANKS[level]
        if rank < self._rank:
            return
        writer = self.writer
        if writer is None:
            if self._library.isEnabledFor(rank):
                self._library.log(rank, "%s", encode_text(self._now(), level, event, keys, colour=False).decode()[13:].rstrip())
            return
        writer.put(self._encode(self._now(), level, event, keys))

    def say(self, text: str) -> None:
        """Write *text* as it is, for the person at a terminal; nothing where lines are for machines. The text is ours, never a peer's."""
        if self._readable and self.writer is not None:
            self.writer.put(text.encode())

    def address(self, text: str) -> str:
        """Return a mail address as the log may show it. The null sender is ``<>``."""
        return self._hide(text) if text else "<>"

    def _now(self) -> str:
        now = time.time()
        second = int(now)
        if second != self._second:
            self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second
        return f"{self._prefix}.{int((now - second) * 1000):03d}Z"


# --- the standard library's logging


class _Adapter(logging.Handler):
    """Turns the log records of our dependencies into lines."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write *record* as one line with its traceback, both bounded; our own lines come back where none of ours are written (``log``)."""
        if record.name == LIBRARY:
            return
        level: Level = "error" if record.levelno >= logging.ERROR else "warning"
        traceback = None
        if record.exc_info:
            traceback = logging.Formatter().formatException(record.exc_info)
        message = record.getMessage()[:VALUE_MAX_CHARACTERS].strip()
        self._log.log(level, "dependency." + level, logger=record.name, message=message, traceback=traceback)


QUIET: Mapping[str, int] = {
    "aiokafka": logging.WARNING,  # its DEBUG prints bodies
    "httpx": logging.WARNING,  # its INFO prints URLs with their queries
    "httpcore": logging.WARNING,
    "asyncio": logging.WARNING,
    "opentelemetry": logging.WARNING,
    "uvicorn": logging.ERROR,  # a warning for every malformed request: strangers could fill the log
}
"""Least serious records taken from our dependencies, whatever else is asked."""


def _adopt_standard_logging(log: Log) -> None:
    root = logging.getLogger()
    for handler in [found for found in root.handlers if isinstance(found, _Adapter)]:
        root.removeHandler(handler)
    root.addHandler(_Adapter(log))
    root.setLevel(logging.WARNING)
    for name, least in QUIET.items():
        logging.getLogger(name).setLevel(least)


LOG = Log()
"""The process's log."""
