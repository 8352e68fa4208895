"""What hostile clients do, each as a coroutine that says in words how it was answered.

``python -m tests.server.loads NAME HOST:PORT COUNT`` runs one in a process of its own, so that its work is not taken for the server's,
and prints those words: replies by code with how many there were, and ``ended`` where the server cut the connection.
"""

from __future__ import annotations

import asyncio
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable

from postbus.app.loop import loop_factory, raise_file_limit

Load = Callable[[str, int, int], Awaitable[Counter[str]]]
TIMEOUT_S = 60.0
BLOCK = b"x" * 65_536
ENDLESS_BLOCKS = 1024
"""64 MiB: who has not been stopped by then never is."""
TRICKLE_S = 0.2
RECEIVE_OCTETS = 4096
GREETING = b"EHLO client.test\r\n"
ENVELOPE = (b"MAIL FROM:<a@example.net>\r\n", b"RCPT TO:<b@example.org>\r\n")


class Peer:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer

    async def reply(self) -> str:
        """Return the code of the next reply; ``ended`` when there is none."""
        while True:
            try:
                line = await self._reader.readline()
            except OSError:
                return "ended"
            if not line:
                return "ended"
            if line[3:4] != b"-":
                return line[:3].decode()

    async def replies(self, count: int) -> Counter[str]:
        """Return the next *count* replies, or those up to the end."""
        found: Counter[str] = Counter()
        while count and not found["ended"]:
            found[await self.reply()] += 1
            count -= 1
        return +found

    async def go(self, *commands: bytes) -> str:
        """Send *commands* one after the other; return the code of the last reply."""
        code = ""
        for command in commands:
            self.writer.write(command)
            code = await self.reply()
        return code


async def connected(host: str, port: int) -> Peer:
    """Return a connection that has its banner."""
    peer = Peer(*await asyncio.open_connection(host, port))
    assert await peer.reply() == "220"
    return peer


async def _each(work: Iterable[Awaitable[Counter[str]]]) -> Counter[str]:
    return sum(await asyncio.gather(*work), Counter())


async def slow(host: str, port: int, count: int) -> Counter[str]:
    """An octet now and then, in a command by one half, in content by the other, until the server has had enough."""
    gate = asyncio.Semaphore(100)

    async def trickle(number: int) -> Counter[str]:
        async with gate:
            peer = await connected(host, port)
            if number % 2:
                assert await peer.go(GREETING, *ENVELOPE, b"DATA\r\n") == "354"
        last = asyncio.ensure_future(peer.replies(1))
        while not last.done():
            peer.writer.write(b"N")
            await asyncio.wait([last], timeout=TRICKLE_S)
        peer.writer.close()
        return await last

    return await _each(trickle(number) for number in range(count))


async def deaf(host: str, port: int, count: int) -> Counter[str]:
    """Commands without end, and not one reply read."""
    return await asyncio.to_thread(_talk_on, host, port, count)


def _talk_on(host: str, port: int, count: int) -> Counter[str]:
    """Send to *count* connections whatever they take, until each is cut or time is over."""
    poll, open_for = select.poll(), {}
    deadline = time.monotonic() + TIMEOUT_S / 2
    for _ in range(count):
        peer = socket.socket()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_OCTETS)
        peer.connect((host, port))
        peer.recv(100)  # the banner: who talks before it is sent away
        peer.setblocking(False)
        poll.register(peer, select.POLLOUT)
        open_for[peer.fileno()] = peer
    while open_for and time.monotonic() < deadline:
        for descriptor, happened in poll.poll(100):
            try:
                if not happened & (select.POLLERR | select.POLLHUP):
                    open_for[descriptor].send(b"RSET\r\n" * 1_000)  # which may be sent ahead (RFC 2920 s3.1), as NOOP may not
                    continue
            except BlockingIOError:
                continue
            except OSError:
                pass  # it is cut, as it should be
            poll.unregister(descriptor)
            open_for.pop(descriptor).close()
    return +Counter({"ended": count - len(open_for), "open": len(open_for)})


async def noops(host: str, port: int, count: int) -> Counter[str]:
    """*count* NOOPs in one segment."""
    peer = await connected(host, port)
    await peer.go(GREETING)
    peer.writer.write(b"NOOP\r\n" * count)
    return await peer.replies(count)


async def recipients(host: str, port: int, count: int) -> Counter[str]:
    """*count* recipients in one transaction, and its message."""
    peer = await connected(host, port)
    await peer.go(GREETING)
    names = b"".join(b"RCPT TO:<person%d@example.org>\r\n" % number for number in range(count))
    peer.writer.write(ENVELOPE[0] + names + b"DATA\r\n")
    found = await peer.replies(count + 2)
    return found + Counter([await peer.go(b"Subject: to all\r\n\r\nx\r\n.\r\n")])


async def _endless(host: str, port: int, count: int, *prelude: bytes) -> Counter[str]:
    async def talk() -> Counter[str]:
        peer = await connected(host, port)
        await peer.go(*prelude)
        try:
            for _ in range(ENDLESS_BLOCKS):
                peer.writer.write(BLOCK)
                await peer.writer.drain()
        except OSError:  # it has said 421, which a reset takes away from who did not read it
            return Counter({"ended": 1})
        return Counter({"taken": 1})

    return await _each(talk() for _ in range(count))


async def endless_command(host: str, port: int, count: int) -> Counter[str]:
    """A command line without end."""
    return await _endless(host, port, count)


async def endless_content(host: str, port: int, count: int) -> Counter[str]:
    """A line without end in DATA."""
    return await _endless(host, port, count, GREETING, *ENVELOPE, b"DATA\r\n")


async def endless_auth(host: str, port: int, count: int) -> Counter[str]:
    """A line without end as an answer to AUTH's challenge."""
    return await _endless(host, port, count, GREETING, b"AUTH LOGIN\r\n")


async def endless_behind_chunk(host: str, port: int, count: int) -> Counter[str]:
    """A line without end where the next BDAT is due."""
    return await _endless(host, port, count, GREETING, *ENVELOPE, b"BDAT 10\r\n0123456789")


async def chunks(host: str, port: int, count: int) -> Counter[str]:
    """A message in *count* chunks of an octet each."""
    peer = await connected(host, port)
    await peer.go(GREETING, *ENVELOPE)
    peer.writer.write(b"BDAT 1\r\nx" * count)
    return await peer.replies(count)


async def resets(host: str, port: int, count: int) -> Counter[str]:
    """*count* connections, at once, each reset: before its banner, behind a command, or in its content."""
    loop = asyncio.get_running_loop()
    said = (b"", GREETING, GREETING + b"".join(ENVELOPE) + b"DATA\r\nwords")

    async def vanish(number: int) -> Counter[str]:
        with socket.socket() as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            peer.setblocking(False)
            await loop.sock_connect(peer, (host, port))
            if said[number % 3]:
                await loop.sock_recv(peer, 100)
                await loop.sock_sendall(peer, said[number % 3])
        return Counter({"reset": 1})

    return await _each(vanish(number) for number in range(count))


LOADS: dict[str, Load] = {
    load.__name__: load
    for load in (slow, deaf, noops, recipients, endless_command, endless_content, endless_auth, endless_behind_chunk, chunks, resets)
}


async def main(name: str, host: str, port: int, count: int) -> None:
    """Run the load *name*, and print its words."""
    async with asyncio.timeout(TIMEOUT_S):
        found = await LOADS[name](host, port, count)
    print(" ".join(f"{word}:{times}" for word, times in sorted(found.items())), flush=True)


if __name__ == "__main__":
    raise_file_limit()
    to_host, _, to_port = sys.argv[2].rpartition(":")
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main(sys.argv[1], to_host, int(to_port), int(sys.argv[3])))
