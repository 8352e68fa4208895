"""What comes before a session behind a load balancer: the PROXY header, and the peer it names.

A ``Preface`` stands in for the protocol until the header is there, then hands it the connection and the octets behind the header, and
is gone: a session costs nothing for having had one. On implicit TLS the header comes before the handshake, so ``read_header`` takes it
from the socket, octet by octet as far as the header goes and no further, and the socket goes to TLS as if nothing had been.

    connection --not trusted--> closed        no header in time, a bad one, or the end --> closed, no banner
        |                                             ^
        +--trusted--> reading the header -------------+--whole--> the protocol's ``connection_made``
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from postbus import telemetry
from postbus.server.networks import Networks
from postbus.server.proxy_protocol import HEADER_MAX_OCTETS, HeaderReader, ProxyData

if TYPE_CHECKING:
    from postbus.server.connection import Connection


@dataclass(frozen=True, slots=True)
class HeaderTerms:
    """What is asked of the beginning of a connection.

    Attributes:
        trusted: who may send a header; None: everybody, where ``handle_PROXY`` decides instead (aiosmtpd's way).
        timeout_s: for the whole header.
    """

    trusted: Networks | None
    timeout_s: float


class Preface(asyncio.Protocol):
    """Reads the header of one connection, for *server*.

    Attributes:
        deadline: when it must be there, in the time of the roster's sweep.
    """

    __slots__ = ("_reader", "_server", "_transport", "deadline")

    def __init__(self, server: Connection, transport: asyncio.Transport, terms: HeaderTerms) -> None:
        self._server = server
        self._transport = transport
        self._reader = HeaderReader()
        self.deadline = server.roster.sweep.clock() + terms.timeout_s

    @classmethod
    def open(cls, server: Connection, transport: asyncio.Transport, terms: HeaderTerms) -> None:
        """Take *transport* for *server*: turn its peer away, or wait for the header."""
        roster = server.roster
        peer = transport.get_extra_info("peername")
        if terms.trusted is not None and peer not in terms.trusted:
            server.finished = True
            refused(roster.terms.name, peer, "untrusted")
            transport.close()
            return
        refusal = roster.turn_away(0)
        if refusal is not None:
            server.finished = True
            transport.write(refusal.wire)
            transport.close()
            return
        preface = cls(server, transport, terms)
        roster.expect(preface)
        transport.set_protocol(preface)

    def data_received(self, data: bytes) -> None:
        """Read; with the header whole, hand over."""
        taken = self._reader.feed(data)
        found = self._reader.data
        if found is None:
            return
        if not found:
            self._end("malformed", found.error)
            return
        server, transport = self._server, self._transport
        server.roster.unexpect(self)
        server.proxied = found
        transport.set_protocol(cast("asyncio.Protocol", server))
        server.connection_made(transport)
        rest = data[taken:]
        if rest:
            server.data_received(rest)

    def connection_lost(self, exc: Exception | None) -> None:
        """The peer left before its header was whole: a health check that only connects, mostly."""
        del exc
        self._end("lost", "")

    def expire(self) -> None:
        """Its time is up."""
        self._end("timeout", "")

    def close(self) -> None:
        """Close without a word: the listener ends."""
        self._end("drain", "")

    def _end(self, reason: str, error: str) -> None:
        server = self._server
        if server.finished:
            return
        server.finished = True
        server.roster.unexpect(self)
        refused(server.roster.terms.name, self._transport.get_extra_info("peername"), reason, error)
        self._transport.close()


async def read_header(loop: asyncio.AbstractEventLoop, peer: socket.socket, timeout_s: float) -> ProxyData | None:
    """Take the header from *peer*, a socket that does not block, and leave there what comes behind it; None: *peer* has left.

    Raises:
        TimeoutError: it was not whole within *timeout_s*.
        OSError: the connection broke.
    """
    reader = HeaderReader()
    async with asyncio.timeout(timeout_s):
        while reader.data is None:
            await _readable(loop, peer)
            try:
                seen = peer.recv(HEADER_MAX_OCTETS, socket.MSG_PEEK)
            except BlockingIOError:
                continue
            if not seen:
                return None
            peer.recv(reader.feed(seen))  # what was seen is there: this neither waits nor takes more
    return reader.data


async def _readable(loop: asyncio.AbstractEventLoop, peer: socket.socket) -> None:
    """Wait until *peer* has something to read."""
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(peer, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(peer)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def refused(listener: str, peer: Any, reason: str, error: str = "") -> None:
    """Count and log a connection that gets no session."""
    telemetry.proxy_refused(listener=listener, peer=str(peer[0] if isinstance(peer, tuple) else peer or ""), reason=reason, error=error)
