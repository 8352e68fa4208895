"""The process that writes a file: started when first needed, and again when it has died; spoken with over a socket.

A process, since a thread has to win the interpreter lock back after each call that waits for a disk, from a loop that is busy and lets it
go for a moment after every callback: each time the thread was woken for nothing, which cost 20 us of CPU per message. And what hangs in
the kernel, on a dead network disk or before a pipe that nobody reads, is left behind or killed without harm when the sink stops.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

from postbus import telemetry
from postbus.sinks.file import appending

_LAST_MOMENT_S = 1.0


class AppenderError(OSError):
    """The process has ended, or never began."""


class StalledError(OSError):
    """What was to be written waited too long: for a disk, for a reader of standard output."""


class Appender(asyncio.Protocol):
    """Writes lines to the file *path*, or to *stdout* where that is ``-``, in a process of its own. One group at a time."""

    def __init__(self, name: str, path: str, *, fsync: bool, stdout: TextIO | None) -> None:
        self._name = name
        self._arguments = (path, "fsync" if fsync else "nosync")
        self._stdout = stdout if path == appending.STDOUT else subprocess.DEVNULL
        self._process: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[bytes] | None = None
        self._said = b""

    async def write(self, lines: Sequence[bytes]) -> None:
        """Return once *lines* are written, and on disk if so asked. Raises OSError: none of them counts as written."""
        if self._transport is None:
            await self.end(_LAST_MOMENT_S)  # should it have died meanwhile
            await self._start()
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.writelines([_size(lines), *lines])
        answer = await self._answer
        if not answer:
            raise AppenderError(f"the process that writes has ended ({_named(await self.end(_LAST_MOMENT_S))})")
        repaired_octets, number, why = answer.decode().rstrip("\n").split(" ", 2)
        if repaired_octets != "0":
            telemetry.sink_file_repaired(sink=self._name, octets=int(repaired_octets))
        if number != "0":
            raise OSError(int(number), why)

    async def end(self, timeout_s: float) -> int | None:
        """Kill the process, should there be one, and return its exit code: what it has not answered for comes again anyway.

        ``None``: not within *timeout_s*. It hangs in the kernel, and is left there.
        """
        process, self._process = self._process, None
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        if process is None:
            return None
        process.kill()
        if (code := process.poll()) is not None:
            return code
        with suppress(subprocess.TimeoutExpired):
            return await asyncio.to_thread(process.wait, timeout_s)
        return None

    async def _start(self) -> None:
        """Start the process. Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(  # noqa: S603, ASYNC220 - our own program; it takes a millisecond or two
                [sys.executable, "-I", "-S", appending.__file__, *self._arguments],
                stdin=theirs.fileno(),
                stdout=self._stdout,
                env={},  # nothing of our environment, which may hold secrets
                start_new_session=True,  # Ctrl-C is for us: it writes as long as we want
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._transport, _ = await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=ours)

    # --- asyncio's side

    def data_received(self, data: bytes) -> None:
        """Take an answer; half of one, given for the whole, would leave the rest to the next group."""
        self._said += data
        if self._said.endswith(b"\n"):
            self._give(self._said)

    def connection_lost(self, exc: Exception | None) -> None:
        """The process has ended. Another is started only after this, or never: so it is of the transport that there is."""
        del exc
        self._transport = None
        self._give(b"")

    def _give(self, answer: bytes) -> None:
        self._said = b""
        waiting, self._answer = self._answer, None
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)


def _size(lines: Sequence[bytes]) -> bytes:
    return sum(map(len, lines)).to_bytes(appending.SIZE_OCTETS, "big")


def _named(code: int | None) -> str:
    """Return an exit code in words: the signal's name, or the number."""
    if code is None:
        return "it hangs"
    return signal.Signals(-code).name if code < 0 else f"exit {code}"
