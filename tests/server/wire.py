"""A listener under test, and a client that sees every octet."""

from __future__ import annotations

import array
import asyncio
import fcntl
import re
import select
import socket
import ssl
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import trustme

from postbus.server import Listener, ListenerSettings
from postbus.server.roster import Roster

PATIENCE_S = 3


@cache
def authority() -> trustme.CA:
    """Return the tests' certificate authority."""
    return trustme.CA()


@cache
def server_context() -> ssl.SSLContext:
    """Return a context with a certificate for localhost."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return context


@cache
def client_context() -> ssl.SSLContext:
    """Return a context that trusts the tests' authority."""
    context = ssl.create_default_context()
    authority().configure_trust(context)
    return context


@asynccontextmanager
async def listening(handler: Any, settings: ListenerSettings | None = None, **options: Any) -> AsyncIterator[Listener]:
    """Run a listener on a free port, or where *settings* say; cut everything at the end."""
    listener = Listener(handler, settings or ListenerSettings(address="127.0.0.1:0", hostname="mx.example"), name="test", **options)
    await listener.start()
    try:
        yield listener
    finally:
        await listener.close()


def roster_of(listener: Listener) -> Roster:
    """Return the roster of a started listener."""
    assert listener.roster is not None
    return listener.roster


async def until(condition: Callable[[], Any]) -> None:
    """Wait until *condition* holds, looking once per loop turn or so."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


def kernel_holds(server: Any) -> int:
    """Return how much the kernel holds for *server*, a connection's protocol, that it has not read."""
    held = array.array("i", [0])
    fcntl.ioctl(server.transport.get_extra_info("socket").fileno(), termios.FIONREAD, held)
    return held[0]


def is_gone(server: Any, *, half: bool = False) -> bool:
    """Return whether the kernel knows that *server*'s peer has reset the connection, or closed its *half*, whatever the loop knows."""
    poll = select.poll()
    wanted = select.POLLRDHUP if half else 0  # errors and hang-ups are told without asking
    poll.register(server.transport.get_extra_info("socket").fileno(), wanted)
    return any(bits & (select.POLLHUP | select.POLLERR | wanted) for _, bits in poll.poll(0))


class Wire:
    """A client: ``send`` octets, ``reply`` for the next reply, ``rest`` for all that comes before the end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    @asynccontextmanager
    async def to(cls, listener: Listener, *, tls: bool = False, banner: bool = True) -> AsyncIterator[Wire]:
        """Connect to *listener*, and read its banner unless told otherwise."""
        address = listener.addresses[0]
        if address.startswith("/"):
            reader, writer = await asyncio.open_unix_connection(address)
        else:
            host, _, port = address.rpartition(":")
            options: dict[str, Any] = {"ssl": client_context(), "server_hostname": "localhost"} if tls else {}
            reader, writer = await asyncio.open_connection(host, int(port), **options)
        wire = cls(reader, writer)
        try:
            if banner:
                assert (await wire.reply()).startswith("220")
            yield wire
        finally:
            writer.transport.abort()
            await asyncio.sleep(0)

    def reset(self) -> None:
        """Vanish: the other end sees a reset."""
        peer = self.writer.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.writer.transport.abort()

    async def reply(self) -> str:
        """Return the next reply, its lines joined by LF; ``""`` at the end of the connection."""
        lines = []
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    line = (await self.reader.readline()).decode()
                except ConnectionError:
                    return ""
                lines.append(line.rstrip("\r\n"))
                if line[3:4] != "-":
                    return "\n".join(lines)

    async def rest(self) -> str:
        """Return everything up to the end of the connection."""
        async with asyncio.timeout(PATIENCE_S):
            return (await self.reader.read()).decode()

    def send(self, octets: bytes | str) -> None:
        """Send *octets*."""
        self.writer.write(octets.encode() if isinstance(octets, str) else octets)

    async def say(self, command: str) -> str:
        """Send a command line and return its reply."""
        self.send(command + "\r\n")
        return await self.reply()

    async def talk(self, *commands: str) -> list[str]:
        """Say the *commands* one after the other; return the code of each reply."""
        return [(await self.say(command))[:3] for command in commands]

    async def begin(self, *recipients: str, hello: str = "EHLO") -> None:
        """Greet and begin a message to *recipients*, up to the 354."""
        assert (await self.say(f"{hello} client.example")).startswith("250")
        assert await self.talk("MAIL FROM:<a@client.example>", *[f"RCPT TO:<{one}>" for one in recipients or ["b@mx.example"]], "DATA") == [
            "250",
            *["250"] * len(recipients or ["b"]),
            "354",
        ]

    async def start_tls(self) -> None:
        """Say STARTTLS and shake hands."""
        assert (await self.say("STARTTLS")).startswith("220")
        await self.shake_hands()

    async def shake_hands(self) -> None:
        """Shake hands on the plain connection."""
        await self.writer.start_tls(client_context(), server_hostname="localhost")


_REPLY = re.compile(r"(\d{3})[ ](?:([245]\.\d+\.\d+)(?= |$))?")


def codes(replies: str) -> list[str]:
    """Return code and enhanced code of each whole reply in *replies*: ``["250 2.1.0", "250"]``."""
    found = []
    for line in replies.splitlines():
        match = _REPLY.match(line)
        if match is not None:
            found.append(" ".join(part for part in match.groups() if part))
    return found
