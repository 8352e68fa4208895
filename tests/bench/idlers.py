"""Clients that connect, read the banner and say nothing: ``python -m tests.bench.idlers HOST:PORT COUNT [tls]``.

Prints ``open COUNT`` when all have their banner, and holds them until it is ended. They come from several loopback addresses, so that
COUNT is not bounded by the ports of one.
"""

from __future__ import annotations

import asyncio
import ssl
import sys

from postbus.app.loop import loop_factory, raise_file_limit

SOURCES = 4
AT_ONCE = 50
OPEN_TIMEOUT_S = 150


class Idler(asyncio.Protocol):
    """Waits for the banner."""

    def __init__(self) -> None:
        self.greeted = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        """The banner is here."""
        if not self.greeted.done():
            self.greeted.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server has hung up: not idle, but over."""
        if not self.greeted.done():
            self.greeted.set_exception(exc or ConnectionResetError("closed before the banner"))


async def hold(host: str, port: int, count: int, secure: bool) -> None:
    """Open *count* connections, AT_ONCE at a time, and keep them."""
    loop, gate = asyncio.get_running_loop(), asyncio.Semaphore(AT_ONCE)
    context = ssl.create_default_context() if secure else None
    if context is not None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    kept: list[asyncio.BaseTransport] = []

    async def connect(number: int) -> None:
        async with gate:
            source = (f"127.0.0.{number % SOURCES + 1}", 0)
            transport, idler = await loop.create_connection(Idler, host, port, ssl=context, local_addr=source)
            await idler.greeted
            kept.append(transport)

    async with asyncio.timeout(OPEN_TIMEOUT_S):
        await asyncio.gather(*(connect(number) for number in range(count)))
    print(f"open {count}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    raise_file_limit()
    to_host, _, to_port = sys.argv[1].rpartition(":")
    with asyncio.Runner(loop_factory=loop_factory()) as main:
        main.run(hold(to_host, int(to_port), int(sys.argv[2]), "tls" in sys.argv[3:]))
