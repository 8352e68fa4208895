"""An accepted mail becomes its events: parsed once, rendered for whoever sends.

Rendering is a pure function of the mail's record and octets, so a retry gives the same bytes again; what is kept here only saves work. So a
moment's trouble of the parser may not show in an event: then there is none yet.
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


RENDERED_HERE_MAX_OCTETS = 512 * 1024
"""Larger mail is rendered in a thread: 25 MiB took 150 ms, while everybody waited."""


class ParserUnavailableError(Exception):
    """Nothing can be said of the message now, through no fault of its own; later it may be."""


class Parser(Protocol):
    """Takes a message apart within bounds (``bridge.parsing``)."""

    def parse_here(self, octets: bytes, *, inline_max_octets: int) -> Parsed | None:
        """Return a small plain message taken apart, without waiting; ``None``: it is none, ask ``parse``."""

    async def parse(self, octets: bytes | Path, *, inline_max_octets: int) -> Parsed:
        """Return what could be taken apart, the same each time. Raises ParserUnavailableError, never for what a message says."""


class Rendering:
    """What the events of one mail share, kept as long as this object is: what was parsed, and octets read from a file.

    An event is whoever's it is who asked for it: kept here, those of a thousand recipients would be in memory at once.
    """

    __slots__ = ("_body", "_lock", "_parsed", "_parser", "_read", "mail")

    def __init__(self, mail: Mail, parser: Parser, body: bytes | Path, read: Read | None) -> None:
        self.mail = mail
        self._parser = parser
        self._body = body
        self._read = read
        self._parsed: Parsed | None = None
        self._lock: asyncio.Lock | None = None

    async def event(self, recipient: int, *, as_octets: bool) -> Event:
        """Return the event of the recipient at this index.

        Args:
            recipient: index in ``mail.recipients``.
            as_octets: the sink wants raw mail as octets, not as base64 in JSON.

        Raises:
            FileNotFoundError: the body was a file, and is gone.
            ParserUnavailableError: not now.
            UnfitError: never.
        """
        event = self.event_here(recipient, as_octets=as_octets)
        if event is not None:
            return event
        record, octets = self.mail.recipients[recipient], self._body
        parsed = (self._parsed or await self._parse()) if needs_parse(record.mode) else None
        if not isinstance(octets, bytes):
            octets = await self._load() if needs_octets(record.mode, parsed) else b""
        if self._large:
            return await asyncio.to_thread(render, self.mail, record, octets, parsed, as_octets=as_octets)
        return render(self.mail, record, octets, parsed, as_octets=as_octets)

    def event_here(self, recipient: int, *, as_octets: bool) -> Event | None:
        """Return the event if nobody has to wait for it, as for most mail; else ``None``, and ``event`` has it. Arguments as there."""
        record, octets = self.mail.recipients[recipient], self._body
        if not isinstance(octets, bytes) or self._large:
            return None
        parsed = None
        if needs_parse(record.mode):
            parsed = self._parsed = self._parsed or self._parser.parse_here(octets, inline_max_octets=self._room_octets)
            if parsed is None:
                return None
        return render(self.mail, record, octets, parsed, as_octets=as_octets)

    async def _parse(self) -> Parsed:
        async with self._one_at_a_time:
            if self._parsed is None:
                self._parsed = await self._parser.parse(self._body, inline_max_octets=self._room_octets)
        return self._parsed

    @property
    def _large(self) -> bool:
        return self.mail.size_octets > RENDERED_HERE_MAX_OCTETS

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
