"""A tee on the wire: a proxy that forwards a mail session and remembers every octet of it, STARTTLS included.

It stands between a real peer and postbus. What the peer put on the wire inside DATA, taken apart here by RFC 5321 s4.5.2 and by
nothing of ours, is what a raw event must hold.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

CHUNK = 1 << 18
Turn = tuple[Literal["client", "server"], bytes]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(slots=True)
class Conversation:
    """One connection: what was said, in order, without TLS. *tls* says whether it was upgraded."""

    turns: list[Turn] = field(default_factory=list)
    tls: bool = False
    asked_tls: bool = False

    def said_by(self, who: str) -> bytes:
        """Return all that one side said."""
        return b"".join(octets for side, octets in self.turns if side == who)


@dataclass(frozen=True, slots=True)
class Sent:
    """One message as it went over the wire: its octets without transparency dots, and its recipients' commands."""

    octets: bytes
    recipients: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Return the hash of the octets."""
        return hashlib.sha256(self.octets).hexdigest()


def messages(turns: Sequence[Turn]) -> Iterator[Sent]:
    """Yield the whole messages of a conversation. A client waits for 354, so the last reply before its next octet tells."""
    reader = _Reader()
    for who, octets in turns:
        if who == "server":
            reader.heard += octets
        else:
            yield from reader.said(octets)


class _Reader:
    """Follows the client's side: commands, then content, then commands again."""

    def __init__(self) -> None:
        self.heard = b""
        self._line = bytearray()
        self._content = bytearray()
        self._state: Literal["command", "asked", "content"] = "command"
        self._recipients: list[str] = []

    def said(self, octets: bytes) -> Iterator[Sent]:
        """Take more of what the client said."""
        if self._state == "asked":
            self._state = "content" if self.heard.splitlines()[-1].startswith(b"354") else "command"
            self._content.clear()
        if self._state == "content":
            octets, whole = self._more_content(octets)
            if whole is not None:
                yield Sent(whole, tuple(self._recipients))
        if self._state != "content":
            self._line += octets
            while b"\r\n" in self._line and self._state == "command":
                line, _, rest = bytes(self._line).partition(b"\r\n")
                self._line = bytearray(rest)
                self._command(line)

    def _more_content(self, octets: bytes) -> tuple[bytes, bytes | None]:
        """Return what stands behind the end of the message, and the message if its end is here."""
        searched = max(0, len(self._content) - 4)
        self._content += octets
        if self._content.startswith(b".\r\n"):
            end, behind = 0, 3
        elif (found := self._content.find(b"\r\n.\r\n", searched)) >= 0:
            end, behind = found + 2, found + 5
        else:
            return b"", None
        content, rest = bytes(self._content[:end]), bytes(self._content[behind:])
        self._state = "command"
        return rest, content.removeprefix(b".").replace(b"\r\n.", b"\r\n")

    def _command(self, line: bytes) -> None:
        verb = line.upper()
        if verb.startswith(b"MAIL FROM:"):
            self._recipients = []
        elif verb.startswith(b"RCPT TO:"):
            self._recipients.append(line[8:].partition(b">")[0].strip(b" <").decode("utf-8", "replace"))
        elif verb == b"DATA":
            self._state = "asked"


class Tee:
    """A proxy in a thread of its own.

    Attributes:
        address: where it listens, ``host:port`` or a path.
        conversations: in the order of their connections.
    """

    def __init__(self, target: str, server_tls: ssl.SSLContext | None, client_tls: ssl.SSLContext | None, path: Path | None) -> None:
        self.address = ""
        self.conversations: list[Conversation] = []
        self._target = target
        self._server_tls = server_tls
        self._client_tls = client_tls
        self._path = path
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.Task[None]] = set()

    @property
    def messages(self) -> list[Sent]:
        """Every whole message, connection by connection."""
        return [message for conversation in self.conversations for message in messages(tuple(conversation.turns))]

    async def listen(self) -> asyncio.Server:
        """Bind."""
        if self._path is not None:
            server = await asyncio.start_unix_server(self._connected, str(self._path), limit=CHUNK)
            self.address = str(self._path)
        else:
            server = await asyncio.start_server(self._connected, "127.0.0.1", 0, limit=CHUNK)
            self.address = "127.0.0.1:" + str(server.sockets[0].getsockname()[1])
        return server

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        with suppress(OSError, asyncio.CancelledError):  # a peer that resets the connection has ended its session
            await self._proxy((reader, writer))
        writer.transport.abort()

    async def _proxy(self, client: Streams) -> None:
        if self._target.startswith("/"):
            server = await asyncio.open_unix_connection(self._target, limit=CHUNK)
        else:
            host, _, port = self._target.rpartition(":")
            server = await asyncio.open_connection(host, int(port), limit=CHUNK)
        conversation = Conversation()
        self.conversations.append(conversation)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._from_client(conversation, client, server))
                group.create_task(self._from_server(conversation, client, server))
        except* OSError:
            pass  # as above: the conversation holds what was said before
        finally:
            server[1].transport.abort()

    async def _from_client(self, conversation: Conversation, client: Streams, server: Streams) -> None:
        while octets := await client[0].read(CHUNK):
            conversation.turns.append(("client", octets))
            conversation.asked_tls = octets.upper().endswith(b"STARTTLS\r\n")
            server[1].write(octets)
            await server[1].drain()
        if server[1].can_write_eof():
            server[1].write_eof()
        else:
            server[1].close()

    async def _from_server(self, conversation: Conversation, client: Streams, server: Streams) -> None:
        while octets := await server[0].read(CHUNK):
            conversation.turns.append(("server", octets))
            upgrade = conversation.asked_tls and octets.startswith(b"220")
            if upgrade and self._client_tls is not None:
                await server[1].start_tls(self._client_tls, server_hostname="mx.postbus.test")
            client[1].write(octets)
            await client[1].drain()
            if upgrade and self._server_tls is not None:
                await client[1].start_tls(self._server_tls)
                conversation.tls = True
        client[1].close()

    async def _end(self) -> None:
        for task in tuple(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)


@contextmanager
def tee(
    target: str, *, server_tls: ssl.SSLContext | None = None, client_tls: ssl.SSLContext | None = None, path: Path | None = None
) -> Iterator[Tee]:
    """Yield a tee in front of *target* (``host:port`` or a path), on a port of loopback or on the Unix socket *path*.

    Args:
        target: where postbus listens.
        server_tls: the certificate shown to the peer after STARTTLS.
        client_tls: what is trusted towards postbus.
        path: listen there instead.
    """
    proxy = Tee(target, server_tls, client_tls, path)
    loop = proxy._loop
    server = loop.run_until_complete(proxy.listen())
    thread = threading.Thread(target=loop.run_forever, name="tee", daemon=True)
    thread.start()
    try:
        yield proxy
    finally:

        async def end() -> None:
            server.close()
            await proxy._end()

        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
