"""Plays one row of the attack table against a server, and then asks it what became of that.

The player follows the server where its answers decide what may be sent next: it stops at the first step that would mean something else
there (content where no 354 came), ends what was begun (content it did not expect to send, TLS, a challenge) and says QUIT, so that every
reply the server still has to give is counted.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from postbus.selftest.played import End, Exchange, Part, Played
from postbus.selftest.reading import Place, Reading, read
from postbus.selftest.vectors import Row, Step
from postbus.selftest.wire import Reply, Wire

Connect = Callable[[], AbstractAsyncContextManager[Wire]]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait.

    Attributes:
        reply_s: for a reply that is owed; close_s: for a server to hang up, or for replies that nobody is owed.
    """

    reply_s: float = 10.0
    close_s: float = 0.5


@dataclass(slots=True)
class _Play:
    """One row while it is played."""

    row: Row
    wire: Wire
    context: ssl.SSLContext | None
    name: str
    patience: Patience
    exchanges: list[Exchange] = field(default_factory=list)
    ended: End | None = None

    def reading(self, *, expected: bool = False) -> Reading:
        """Return how a strict server reads what was sent so far, by the replies that came, or by those *expected*."""
        codes = (code for one in self.exchanges for code in (one.expected if expected else one.got))
        return read((one.sent for one in self.exchanges), codes, lmtp=self.row.protocol == "lmtp", early=self.row.early)

    async def exchange(self, part: Part, octets: bytes, expected: tuple[str, ...] = ()) -> None:
        """Send *octets* and await as many replies as are expected; note how the connection ended if it did."""
        self.wire.send(octets)
        self.exchanges.append(Exchange(part, octets, expected))
        for _ in expected:
            await self.hear(self.patience.close_s)
            if self.ended == "silent":
                self.ended = None
                if not self.reading().owed:
                    return  # the probe will tell
                await self.hear(self.patience.reply_s)
            if self.ended is not None:
                return

    async def hear(self, limit_s: float) -> Reply | None:
        """Await one reply and note it with what was sent last; ``None`` says that *ended* was set."""
        try:
            async with asyncio.timeout(limit_s):
                reply = await self.wire.reply()
        except TimeoutError:
            self.ended = "silent"
            return None
        if reply is None:
            self.ended = "closed"
            return None
        last = self.exchanges[-1]
        self.exchanges[-1] = Exchange(last.part, last.sent, last.expected, (*last.got, reply.code))
        return reply

    async def shake_hands(self, part: Part) -> None:
        """Begin TLS."""
        self.exchanges.append(Exchange(part, None))
        if self.context is None:
            self.ended = "no tls"
            return
        try:
            async with asyncio.timeout(self.patience.reply_s):
                await self.wire.shake_hands(self.context, self.name)
        except (OSError, TimeoutError):
            self.ended = "no tls"

    async def step(self, part: Part, step: Step) -> bool:
        """Do a step; return whether the next one means there what the table means."""
        if step.kind == "eof":
            self.wire.leave()
            self.ended = "left"
        elif step.kind == "tls":
            await self.shake_hands(part)
        else:
            await self.exchange(part, step.octets, step.expect)
        return self.ended is None and self.reading().place == self.reading(expected=True).place

    async def steps(self) -> None:
        """Do the prologue and the row, as far as the server lets us."""
        for step in self.row.prologue:
            if not await self.step("prologue", step) or not self.exchanges[-1].agreed:
                return
        for step in self.row.steps:
            if not await self.step("row", step):
                return

    async def probe(self) -> None:
        """See what became of the row: wait for the end where one is due, end what was begun, say QUIT, read to the end."""
        place = self.reading().place
        if self.ended is None and (self.row.closes or place == "tls"):
            await self.listen(self.patience.close_s)
        if self.ended is None:
            await self.finish(place)
        if self.ended is None:
            await self.exchange("probe", b"QUIT\r\n", () if self.row.closes else ("221",))
        if self.ended is None and await self.hear_last():
            self.ended = "open"

    async def finish(self, place: Place) -> None:
        """End what was begun, so that QUIT is a command."""
        if place == "chunk":
            self.ended = "left"  # the octets of a chunk that is not whole cannot be told from commands
        elif place == "tls":
            await self.shake_hands("probe")
            if self.ended is None:
                await self.exchange("probe", b"NOOP\r\n", ("250",))
        elif place in _ENDINGS:
            whole_line = all(one.sent is None or one.sent.endswith(b"\r\n") for one in self.exchanges[-1:])
            await self.exchange("probe", b".\r\n" if place == "content" and whole_line else _ENDINGS[place])
            while self.ended is None and self.reading().owed:
                await self.hear(self.patience.reply_s)

    async def hear_last(self) -> bool:
        """Read to the end of the connection; return whether the server still answered."""
        if not self.exchanges[-1].got:
            await self.hear(self.patience.reply_s)
        alive = self.ended is None
        await self.listen(self.patience.close_s)
        return alive

    async def listen(self, limit_s: float) -> None:
        """Hear all that comes, each within *limit_s* of the one before; nothing coming is no fault."""
        while self.ended is None:
            await self.hear(limit_s)
        if self.ended == "silent":
            self.ended = None


_ENDINGS: dict[Place, bytes] = {"content": b"\r\n.\r\n", "challenge": b"*\r\n", "partial": b"\r\n"}
"""What ends a thing that was begun, so that QUIT is a command again."""


async def play(row: Row, connect: Connect, *, context: ssl.SSLContext | None, name: str, patience: Patience) -> Played:
    """Play *row* over a connection of its own.

    Args:
        row: with the addresses the server knows.
        connect: opens the connection.
        context: for STARTTLS; ``None`` where TLS cannot be begun.
        name: of the server, as its certificate says.
        patience: bounds every wait.

    Raises:
        OSError: no connection could be made.
    """
    async with connect() as wire:
        state = _Play(row, wire, context, name, patience)
        greeting = None if row.early else "220" if wire.greeted else await _banner(state)
        if row.early or greeting == "220":
            await state.steps()
            await state.probe()
        return Played(tuple(state.exchanges), state.ended or "open", row.protocol == "lmtp", row.early, greeting)


async def _banner(state: _Play) -> str | None:
    """Return the banner's code; ``None`` if none came."""
    state.exchanges.append(Exchange("prologue", b""))
    reply = await state.hear(state.patience.reply_s)
    state.exchanges.clear()
    return reply.code[:3] if reply else None
