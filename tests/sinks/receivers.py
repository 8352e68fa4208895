"""A real HTTP server on loopback that behaves as badly as it is told: no framework would let it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Request:
    """What arrived: header names in lower case."""

    line: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Receiver:
    """The server: *requests* that came whole, *connections* accepted, *closed* by the client."""

    port: int = 0
    tls: bool = False
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        """Where to post."""
        return f"{'https' if self.tls else 'http'}://localhost:{self.port}/hook"


Behaviour = Callable[[Receiver, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def read_request(reader: asyncio.StreamReader) -> Request:
    """Read one request with Content-Length; raises IncompleteReadError when the client has gone."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    line, *rows = head.split("\r\n")[:-2]
    headers = {name.lower(): value.strip() for name, _, value in (row.partition(":") for row in rows)}
    return Request(line, headers, await reader.readexactly(int(headers.get("content-length", "0"))))


def answering(answer: bytes) -> Behaviour:
    """Give *answer* to every request, on one connection for as long as the client likes."""

    async def behave(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            receiver.requests.append(await read_request(reader))
            writer.write(answer)
            await writer.drain()

    return behave


def status(code: int, *headers: str, body: bytes = b"") -> Behaviour:
    """Answer with *code*."""
    head = "".join(f"{row}\r\n" for row in (f"HTTP/1.1 {code} Status", f"Content-Length: {len(body)}", *headers))
    return answering(head.encode() + b"\r\n" + body)


def closing(answer: bytes) -> Behaviour:
    """Take one request, say *answer*, and close."""

    async def behave(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        receiver.requests.append(await read_request(reader))
        writer.write(answer)
        await writer.drain()

    return behave


def blurting(answer: bytes) -> Behaviour:
    """Say *answer* before anything was asked, and close."""

    async def behave(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()

    return behave


def resetting(answer: bytes) -> Behaviour:
    """Take one request, say *answer*, and reset the connection (RST instead of FIN)."""

    async def behave(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        receiver.requests.append(await read_request(reader))
        writer.write(answer)
        await writer.drain()
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return behave


def repeating(head: bytes, piece: bytes, pause_s: float = 0.0) -> Behaviour:
    """Take one request, say *head*, then *piece* for ever."""

    async def behave(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        receiver.requests.append(await read_request(reader))
        writer.write(head)
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return behave


async def silent(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take requests and answer none."""
    while True:
        receiver.requests.append(await read_request(reader))


async def not_reading(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Accept the connection and read nothing of it, until the client leaves."""
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.Event().wait()


def once_then_close(receiver_answer: bytes) -> Behaviour:
    """Answer the first request of each connection and close behind it without saying so, as an idle timeout does."""

    async def behave(receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        receiver.requests.append(await read_request(reader))
        writer.write(receiver_answer)
        await writer.drain()
        # The next request is met by a connection that is already closing.
        await reader.readexactly(1)

    return behave


BOMB = gzip.compress(b"\0" * 50_000_000)
"""50 MB in 50 KB."""


@asynccontextmanager
async def receiving(behave: Behaviour, tls: ssl.SSLContext | None = None, port: int = 0) -> AsyncIterator[Receiver]:
    """A receiver on loopback that treats each connection as *behave* says; its connections end with it."""
    receiver = Receiver(tls=tls is not None)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        receiver.connections += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await behave(receiver, reader, writer)
        finally:
            tasks.discard(task)
            receiver.closed.set()
            writer.transport.abort() if tls is not None else writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=tls)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
