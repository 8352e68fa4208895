"""An accepted mail becomes its events: parsed once, rendered once for each recipient and each form a sink wants.

Rendering is a pure function of the mail's record and octets, so a retry gives the same bytes again; what is kept here only saves work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from postbus.event.mail import Mail
from postbus.event.model import Event, needs_octets, needs_parse, render
from postbus.event.parsed import Parsed

Read = Callable[[], Awaitable[bytes]]


class Parser(Protocol):
    """Takes a message apart within bounds (``bridge.parsing``)."""

    def parse_here(self, octets: bytes, *, inline_max_octets: int) -> Parsed | None:
        """Return a small plain message taken apart, without waiting; ``None``: it is none, ask ``parse``."""

    async def parse(self, octets: bytes | Path, *, inline_max_octets: int) -> Parsed:
        """Return what could be taken apart; never raises for what a message says."""


class Rendering:
    """The events of one mail, made when first asked for and kept as long as this object is."""

    __slots__ = ("_body", "_events", "_lock", "_parsed", "_parser", "_read", "mail")

    def __init__(self, mail: Mail, parser: Parser, body: bytes | Path, read: Read | None) -> None:
        self.mail = mail
        self._parser = parser
        self._body = body
        self._read = read
        self._parsed: Parsed | None = None
        self._lock: asyncio.Lock | None = None
        self._events: dict[tuple[int, bool], Event] = {}

    async def event(self, recipient: int, *, as_octets: bool) -> Event:
        """Return the event of the recipient at this index.

        Args:
            recipient: index in ``mail.recipients``.
            as_octets: the sink wants raw mail as octets, not as base64 in JSON.

        Raises:
            FileNotFoundError: the body was a file, and is gone.
        """
        key = (recipient, as_octets)
        event = self._events.get(key)
        if event is not None:
            return event
        record = self.mail.recipients[recipient]
        parsed = (self._parsed or self._parse_here() or await self._parse()) if needs_parse(record.mode) else None
        octets = self._body if isinstance(self._body, bytes) else b""
        if not octets and needs_octets(record.mode, parsed):
            octets = await self._load()
        event = self._events.get(key)  # somebody else may have been quicker while we waited
        if event is None:
            event = self._events[key] = render(self.mail, record, octets, parsed, as_octets=as_octets)
        return event

    def _parse_here(self) -> Parsed | None:
        """Parse without waiting, as most mail can be."""
        if isinstance(self._body, bytes):
            self._parsed = self._parser.parse_here(self._body, inline_max_octets=self._room_octets)
        return self._parsed

    async def _parse(self) -> Parsed:
        async with self._one_at_a_time:
            if self._parsed is None:
                self._parsed = await self._parser.parse(self._body, inline_max_octets=self._room_octets)
        return self._parsed

    @property
    def _room_octets(self) -> int:
        """The largest event any recipient's sinks carry."""
        return max([recipient.event_max_octets for recipient in self.mail.recipients])

    async def _load(self) -> bytes:
        async with self._one_at_a_time:
            if not isinstance(self._body, bytes):
                assert self._read is not None, "a file comes with a way to read it"
                self._body = await self._read()
        return self._body

    @property
    def _one_at_a_time(self) -> asyncio.Lock:
        """Two sinks may ask while a worker process or the disk is at it."""
        if self._lock is None:
            self._lock = asyncio.Lock()
        return self._lock


class Renderer:
    """Opens mails for rendering."""

    def __init__(self, parser: Parser) -> None:
        self._parser = parser

    def open(self, mail: Mail, body: bytes | Path, read: Read | None = None) -> Rendering:
        """Return the events-to-be of *mail*.

        Args:
            mail: the record.
            body: its octets, or the file that holds them.
            read: gives the octets of the file; asked only if an event carries them.
        """
        return Rendering(mail, self._parser, body, read)
