"""A sink that answers as told, and a parser that takes nothing apart."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from postbus.bridge.renderer import ParserUnavailableError
from postbus.event.model import Event
from postbus.event.parsed import Defect, Parsed, unreadable
from postbus.sinks import Health, Outcome, Sent

Answer = Callable[[Event], Outcome]


@dataclass
class FakeSink:
    """Notes what it is sent and answers by *answer*; while *gate* is set, sends wait for it."""

    name: str = "out"
    answer: Answer = field(default=lambda event: Sent(event.id))
    concurrency: int = 4
    kind: str = "fake"
    durable: bool = True
    secure: bool = True
    octets: bool = True
    event_max_octets: int = 1 << 30
    ok: bool = True
    beginning: bool = False
    gate: asyncio.Event | None = None
    events: list[Event] = field(default_factory=list)
    in_flight: int = 0
    in_flight_max: int = 0

    @property
    def ids(self) -> list[str]:
        """The ids of what was sent, in order of the sends' beginning."""
        return [event.id for event in self.events]

    async def start(self) -> None:
        """Be ready."""

    async def send(self, event: Event) -> Outcome:
        """Answer as told."""
        self.events.append(event)
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight, self.in_flight_max)
        try:
            if self.gate is not None:
                await self.gate.wait()
            return self.answer(event)
        finally:
            self.in_flight -= 1

    async def stop(self, timeout_s: float) -> None:
        """End."""

    def health(self) -> Health:
        """Say what the test wants said."""
        return Health(self.ok, "fake", self.beginning)


@dataclass
class FakeParser:
    """Says of every message that it cannot be read, after so many *troubles*, and counts how often it was asked."""

    asked: list[bytes | Path] = field(default_factory=list)
    gate: asyncio.Event | None = None
    troubles: int = 0

    def parse_here(self, octets: bytes, *, inline_max_octets: int) -> Parsed | None:
        """No message is plain enough."""

    async def parse(self, octets: bytes | Path, *, inline_max_octets: int) -> Parsed:
        """Answer."""
        self.asked.append(octets)
        if self.gate is not None:
            await self.gate.wait()
        if self.troubles:
            self.troubles -= 1
            raise ParserUnavailableError("fake trouble")
        return unreadable(Defect("parser.died", None, "fake"))
