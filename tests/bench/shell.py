"""What the shell costs around the engine: microseconds of CPU for a message and for a connection, no socket, a plain hook.

Run: ``python -m tests.bench.shell``. The transport is a fake that remembers nothing, so this is our own code and nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from postbus.server.client_settings import ClientSettings
from postbus.server.roster import Roster, Terms
from postbus.server.smtp import SMTP
from tests.bench.engine import MESSAGES

ROUNDS = 7
TIMES = 4000
GREETING = b"EHLO client.example.com\r\n"
PEERS = {"spared": ("127.0.0.1", 40_000), "counted": ("192.0.2.1", 40_000)}


class Handler:
    """Takes every message, by a plain function."""

    def handle_DATA(self, _server: Any, _session: Any, _envelope: Any) -> str:
        """Take it."""
        return "250 OK"


class FakeTransport(asyncio.Transport):
    """A transport whose peer reads everything."""

    def __init__(self, peer: tuple[str, int]) -> None:
        super().__init__({"peername": peer, "sockname": ("127.0.0.1", 25)})

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Drop *data*."""

    def pause_reading(self) -> None:
        """What the bench sends, it sends."""

    def resume_reading(self) -> None:
        """It has never stopped."""

    def close(self) -> None:
        """Nothing is open."""

    def abort(self) -> None:
        """Nothing is open."""

    def is_closing(self) -> bool:
        """Never: the bench hangs up by itself."""
        return False

    def can_write_eof(self) -> bool:
        """No half is closed."""
        return False


def opened(roster: Roster, handler: Handler, peer: tuple[str, int]) -> SMTP:
    """Return a connection of *peer* to a server for *handler*, its banner sent."""
    server = SMTP(handler, hostname="mx.test", loop=roster.loop)
    server.join(roster)
    server.connection_made(FakeTransport(peer))
    return server


async def cost_us(work: Callable[[], None], times: int) -> float:
    """Return the least CPU that *work* took over some rounds, in microseconds."""
    best = float("inf")
    for _ in range(ROUNDS):
        begin = time.process_time()
        for _ in range(times):
            work()
        best = min(best, (time.process_time() - begin) / times * 1e6)
        await asyncio.sleep(0)  # ends the turns that were put off
    return best


def message(roster: Roster, peer: tuple[str, int], segments: list[bytes]) -> Callable[[], None]:
    """Return what sends one message on a connection of its own, made now."""
    server = opened(roster, Handler(), peer)
    server.data_received(GREETING)

    def send() -> None:
        for segment in segments:
            server.data_received(segment)

    return send


def connection(roster: Roster, peer: tuple[str, int]) -> Callable[[], None]:
    """Return what makes a connection, greets and hangs up."""
    handler = Handler()

    def connect() -> None:
        server = opened(roster, handler, peer)
        server.data_received(GREETING)
        server.data_received(b"QUIT\r\n")
        server.connection_lost(None)

    return connect


async def main() -> None:
    """Print the table."""
    loop = asyncio.get_running_loop()
    clients = ClientSettings(connections_max=0, connection_rate_max=0, message_rate_max=10**9, recipient_rate_max=10**9)
    for kind, peer in PEERS.items():
        roster = Roster(loop, Terms(clients=clients))
        for name, (segments, _) in MESSAGES.items():
            times = TIMES if name == "1 KB" else TIMES // 20
            print(f"{kind:8} {name:24}{await cost_us(message(roster, peer, segments), times):8.1f} us")
        print(f"{kind:8} {'EHLO and QUIT':24}{await cost_us(connection(roster, peer), TIMES):8.1f} us")
        await roster.close()


if __name__ == "__main__":
    asyncio.run(main())
