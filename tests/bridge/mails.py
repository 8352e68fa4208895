"""Mails, bodies and a clock for the tests of the bridge."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from postbus.event.mail import Client, Mail, Recipient

NOW_MS = 1_795_000_000_000


@dataclass(slots=True)
class Octets:
    """A received body; a spilled one when *path* is given."""

    octets: bytes | None
    path: Path | None = None
    size_octets: int = 0
    released: bool = False

    def release(self) -> None:
        """Note that the spool took the file."""
        self.released = True
        self.path = None

    def read(self) -> bytes:
        """Return the content."""
        return self.octets if self.octets is not None else (self.path or Path("/nowhere")).read_bytes()


def in_memory(content: bytes) -> Octets:
    """Return a body in memory."""
    return Octets(content, None, len(content))


def spilled(folder: Path, content: bytes, name: str = "spill-1") -> Octets:
    """Return a body whose content lies in a file of *folder*."""
    path = folder / name
    path.write_bytes(content)
    return Octets(None, path, len(content))


def recipient(
    event_id: str, *, sinks: tuple[str, ...] = ("out",), best_effort: tuple[str, ...] = (), index: int = 0, mode: str = "raw"
) -> Recipient:
    """Return an accepted RCPT."""
    return Recipient(
        event_id=event_id,
        address=f"to-{event_id}@example.org",
        normalized=f"to-{event_id}@example.org",
        index=index,
        route="all",
        pattern="*",
        mode=mode,  # type: ignore[arg-type]
        sinks=sinks,
        best_effort=best_effort,
        event_max_octets=100_000_000,
        partition_key="key",
        dedupe_key="dedupe",
    )


def mail(name: str, content: bytes, *recipients: Recipient, received_ms: int = NOW_MS) -> Mail:
    """Return the record of a mail called *name*; without recipients there is one, for sink ``out``, whose event is ``<name>-0``."""
    return Mail(
        id=name,
        source="/postbus/test",
        received_ms=received_ms,
        listener="mx",
        protocol="esmtp",
        client=Client("192.0.2.1", 2525, "client.example"),
        mail_from="from@example.org",
        size_octets=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        recipients=recipients or (recipient(f"{name}-0"),),
    )


@dataclass(slots=True)
class ManualTimer:
    """A call that is made when its clock is turned past it."""

    due_ms: float
    callback: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        """Forget the call."""
        self.cancelled = True


@dataclass(slots=True)
class ManualClock:
    """A clock whose hands the test turns."""

    ms: int = NOW_MS
    timers: list[ManualTimer] = field(default_factory=list)
    set_by_ms: int = 0

    def now_ms(self) -> int:
        """Return the time shown; *set_by_ms* is what somebody has set it by."""
        return self.ms + self.set_by_ms

    def steady_ms(self) -> int:
        """Return the time that passes."""
        return self.ms

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> ManualTimer:
        """Note a call."""
        timer = ManualTimer(self.ms + delay_s * 1000, callback)
        self.timers.append(timer)
        return timer

    def advance(self, seconds: float) -> None:
        """Turn the hands and make the calls that have become due, in order."""
        self.ms += int(seconds * 1000)
        while ready := sorted((timer for timer in self.timers if timer.due_ms <= self.ms), key=lambda timer: timer.due_ms):
            timer = ready[0]
            self.timers.remove(timer)
            if not timer.cancelled:
                timer.callback()


async def until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Let the loop run until *condition* holds; fail after ten seconds."""
    try:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(f"{what} did not come true") from None
