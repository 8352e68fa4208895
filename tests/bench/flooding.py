"""Clients that send large messages truly at once: ``python -m tests.bench.flooding HOST:PORT COUNT OCTETS``.

smtp-source writes a message in one go before it turns to the next connection. Here COUNT connections stop at DATA's 354, wait for one
another, and then all send for as long as the server takes it. Prints the seconds that took, once all have their 250.
"""

from __future__ import annotations

import asyncio
import sys
import time

from postbus.app.loop import loop_factory

LINE = b"x" * 74 + b"\r\n"
CHUNK = LINE * 862  # 64 KiB
TIMEOUT_S = 150
COMMANDS = (b"EHLO client.test", b"MAIL FROM:<a@example.org>", b"RCPT TO:<b@example.net>", b"DATA")
HEADER = b"From: <a@example.org>\r\nTo: <b@example.net>\r\nSubject: large\r\n\r\n"


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def expect(self, code: bytes) -> None:
        """Read one reply, which must have *code*."""
        while True:
            line = await self._reader.readline()
            assert line.startswith(code), line
            if line[3:4] == b" ":
                return

    async def begin(self) -> None:
        """Go as far as the 354."""
        await self.expect(b"220")
        for command in COMMANDS:
            self._writer.write(command + b"\r\n")
            await self.expect(b"354" if command == b"DATA" else b"250")

    async def send(self, octets: int) -> None:
        """Send a message of about *octets* and await its 250."""
        self._writer.write(HEADER)
        for _ in range(octets // len(CHUNK)):
            self._writer.write(CHUNK)
            await self._writer.drain()
        self._writer.write(b".\r\n")
        await self.expect(b"250")
        self._writer.close()


async def flood(host: str, port: int, count: int, octets: int) -> float:
    """Return how long *count* messages took from the moment all began."""
    async with asyncio.timeout(TIMEOUT_S):
        clients = [Client(*await asyncio.open_connection(host, port)) for _ in range(count)]
        await asyncio.gather(*(client.begin() for client in clients))
        began_s = time.monotonic()
        await asyncio.gather(*(client.send(octets) for client in clients))
        return time.monotonic() - began_s


if __name__ == "__main__":
    to_host, _, to_port = sys.argv[1].rpartition(":")
    with asyncio.Runner(loop_factory=loop_factory()) as main:
        print(f"{main.run(flood(to_host, int(to_port), int(sys.argv[2]), int(sys.argv[3]))):.1f}", flush=True)
