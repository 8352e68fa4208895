"""A client's end of a connection: send octets, read replies, and believe nothing."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

LINE_MAX_OCTETS = 65_536
"""Of a reply (RFC 5321 s4.5.3.1.5 says 512); a longer one counts as none."""

REPLY_MAX_LINES = 1000
"""Of one reply: EHLO's have twenty or so; a server that never ends one has not answered."""

_CODE = re.compile(r"(\d{3})(?:$|[ -](?:([245]\.\d{1,3}\.\d{1,3})(?= |$))?)")


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply, whole: its lines without line ends."""

    lines: tuple[str, ...]

    @property
    def code(self) -> str:
        """Code and enhanced code of its last line, ``"250 2.1.0"`` or ``"250"``; ``"?"`` if it is none of SMTP's."""
        found = _CODE.match(self.lines[-1])
        return " ".join(part for part in found.groups() if part) if found else "?"


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens: *path* is a Unix socket and wins over *host* and *port*."""

    host: str = "127.0.0.1"
    port: int = 25
    path: str | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"unix:{self.path}" if self.path else f"{host}:{self.port}"


class Wire:
    """An open connection. ``greeted``: the banner was read, since TLS had to be begun first."""

    greeted = False

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @property
    def encrypted(self) -> bool:
        """Whether TLS is on."""
        return self._writer.get_extra_info("ssl_object") is not None

    def send(self, octets: bytes) -> None:
        """Send *octets*, in one segment where the system allows it."""
        self._writer.write(octets)

    async def reply(self) -> Reply | None:
        """Return the next reply; ``None`` at the end of the connection, or if what comes is no reply."""
        lines: list[str] = []
        while len(lines) < REPLY_MAX_LINES:
            try:
                line = await self._reader.readline()
            except (OSError, ValueError):  # ValueError: a line over LINE_MAX_OCTETS
                return None
            if not line:
                return None
            lines.append(line.rstrip(b"\r\n").decode("utf-8", "replace"))
            if lines[-1][3:4] != "-":
                return Reply(tuple(lines))
        return None

    async def shake_hands(self, context: ssl.SSLContext, name: str) -> None:
        """Begin TLS. Raises OSError (ssl.SSLError is one) when it fails."""
        await self._writer.start_tls(context, server_hostname=name)

    def leave(self) -> None:
        """Cut the connection without a word."""
        self._writer.transport.abort()


@asynccontextmanager
async def connected(address: Address, context: ssl.SSLContext | None = None, name: str = "") -> AsyncIterator[Wire]:
    """Give a connection to *address*, in TLS from the first octet if *context* is given; cut it at the end.

    Raises:
        OSError: nobody listens, or TLS failed.
    """
    options: dict[str, Any] = {"ssl": context, "server_hostname": name or address.host} if context else {}
    if address.path is not None:
        reader, writer = await asyncio.open_unix_connection(address.path, limit=LINE_MAX_OCTETS, **options)
    else:
        reader, writer = await asyncio.open_connection(address.host, address.port, limit=LINE_MAX_OCTETS, **options)
        with suppress(OSError):  # only keeps segments apart
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    wire = Wire(reader, writer)
    try:
        yield wire
    finally:
        wire.leave()
        await asyncio.sleep(0)
