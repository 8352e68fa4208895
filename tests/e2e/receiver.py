"""A webhook's receiver whose mood a test changes while mail flows: there, away, failing, slow; on one port all the while."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest

from tests.ports import free_ports

Mood = Literal["willing", "failing", "unavailable", "slow"]

STATUS: dict[Mood, bytes] = {
    "willing": b"204 No Content",
    "failing": b"500 Internal Server Error",
    "unavailable": b"503 Service Unavailable",
    "slow": b"204 No Content",
}


class Receiver:
    """An HTTP/1.1 server on loopback.

    Attributes:
        mood: what it does with the next request; ``slow``: it answers 204 once ``gate`` is set.
        taken: events it answered 2xx for, or began to; asked: how many requests came.
    """

    def __init__(self) -> None:
        self.mood: Mood = "willing"
        self.gate = asyncio.Event()
        self.taken: list[dict[str, Any]] = []
        self.asked = 0
        self.port = free_ports(1)[0]
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    @property
    def url(self) -> str:
        """Where to post."""
        return f"http://127.0.0.1:{self.port}/hook"

    async def listen(self) -> None:
        """Take connections, on the same port each time."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)

    async def leave(self) -> None:
        """Close the port and cut every connection: nobody is there."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if server is not None:
            await server.wait_closed()

    async def until(self, condition: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
        """Return once *condition* holds; it is looked at after every request."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pytest.fail(f"not within {timeout_s:g} s: {what}; {self.asked} asked, {len(self.taken)} taken")

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                await self._serve(reader, writer)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            return  # the client has left, or the test wants us to
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = next(int(row.partition(":")[2]) for row in head.split("\r\n") if row.startswith("content-length:"))
        body = await reader.readexactly(length)
        mood = self.mood
        self.asked += 1
        self._changed.set()
        if mood == "slow":
            await self.gate.wait()
        if STATUS[mood].startswith(b"2"):
            self.taken.append(json.loads(body))
            self._changed.set()
        writer.write(b"HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n" % STATUS[mood])
        await writer.drain()


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """Yield a receiver that listens."""
    receiver = Receiver()
    await receiver.listen()
    try:
        yield receiver
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await receiver.leave()
