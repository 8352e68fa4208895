"""What the spool holds, as values: slots, held messages, deliveries, marks, dead letters, numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple, Protocol

from postbus.event.mail import Mail, Recipient


class Body(Protocol):
    """A received message's octets, in memory or in a file of the spill folder (``postbus.server.Body`` is one)."""

    size_octets: int
    octets: bytes | None
    path: Path | None

    def release(self) -> None:
        """Forget the file: somebody else has taken it."""


class Slot(NamedTuple):
    """One delivery owed: this recipient's event to that sink."""

    recipient: int
    sink: str
    required: bool


def slots_of(mail: Mail) -> tuple[Slot, ...]:
    """Return every delivery *mail* owes: for each recipient its required sinks, then its best-effort ones."""
    return tuple(
        Slot(index, sink, required)
        for index, recipient in enumerate(mail.recipients)
        for sinks, required in ((recipient.sinks, True), (recipient.best_effort, False))
        for sink in sinks
    )


class Held:
    """One message as the spool holds it. *seq* orders by acceptance and is never used twice.

    ``users`` and ``cargo`` belong to the dispatcher: how many deliveries in memory share this message, and what it has rendered of it.
    """

    __slots__ = ("cargo", "mail", "octets", "path", "seq", "size_octets", "slots", "users")

    def __init__(self, seq: int, mail: Mail, slots: tuple[Slot, ...], *, size_octets: int, octets: bytes | None, path: Path | None) -> None:
        self.seq = seq
        self.mail = mail
        self.slots = slots
        self.size_octets = size_octets
        self.octets = octets
        self.path = path
        self.users = 0
        self.cargo: object | None = None

    def __repr__(self) -> str:
        place = "row" if self.octets is not None else str(self.path)
        return f"<Held {self.seq} {self.mail.id} {self.size_octets} octets in {place}, {len(self.slots)} slots>"


class Delivery:
    """One slot of a held message on its way.

    Attributes:
        held: the message.
        number: index of the slot in ``held.slots``.
        attempt: failures of this event by itself so far.
        since_ms: what its age is counted from: acceptance, or the replay.
    """

    __slots__ = ("attempt", "held", "number", "since_ms")

    def __init__(self, held: Held, number: int, attempt: int = 0, since_ms: int | None = None) -> None:
        self.held = held
        self.number = number
        self.attempt = attempt
        self.since_ms = held.mail.received_ms if since_ms is None else since_ms

    @property
    def slot(self) -> Slot:
        """The delivery owed."""
        return self.held.slots[self.number]

    @property
    def recipient(self) -> Recipient:
        """Whose event it is."""
        return self.held.mail.recipients[self.slot.recipient]

    @property
    def order(self) -> tuple[int, int]:
        """Sorts deliveries by acceptance."""
        return (self.held.seq, self.number)

    def __repr__(self) -> str:
        return f"<Delivery {self.held.seq}/{self.number} {self.recipient.event_id} -> {self.slot.sink}, attempt {self.attempt}>"


class State(IntEnum):
    """What a mark says of a slot. A slot without a mark is owed and was never decided."""

    DONE = 0
    RETRY = 1
    DEAD = 2


WHY_MAX_CHARACTERS = 1_000


def reason(why: str) -> str:
    """Return *why* as a mark keeps it: bounded, and with an encoding (a plug-in's text may hold half a surrogate pair)."""
    return why[:WHY_MAX_CHARACTERS].encode("utf-8", "backslashreplace").decode()


class Mark(NamedTuple):
    """What became of one slot, on its way to the database. *slots*: how many the message has."""

    seq: int
    number: int
    slots: int
    state: State
    event_id: str = ""
    sink: str = ""
    attempt: int = 0
    due_ms: int = 0
    why: str = ""
    at_ms: int = 0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A delivery given up. The whole message is kept with it.

    Attributes:
        event_id, sink: its name.
        why: reason, for people and logs.
        at_ms: when it was given up; received_ms: when its message was accepted.
        attempt: failures of the event by itself.
        message_id, route, recipient, mail_from, size_octets: from the mail.
        cursor: pass it as *after* to list what follows.
    """

    event_id: str
    sink: str
    why: str
    at_ms: int
    received_ms: int
    attempt: int
    message_id: str
    route: str
    recipient: str
    mail_from: str
    size_octets: int
    cursor: str


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the backlog of one sink.

    Attributes:
        deliveries: in order.
        upto: every message up to this seq was looked at.
        complete: nothing more was there.
        damaged: messages that were set aside on the way.
        next_due_ms: when the earliest retry that is not in this page is due, ``None`` without one (only for retries).
    """

    deliveries: tuple[Delivery, ...]
    upto: int
    complete: bool
    damaged: int = 0
    next_due_ms: int | None = None


@dataclass(slots=True)
class Numbers:
    """The spool in figures, kept up to date without I/O.

    Attributes:
        messages, octets: held, dead letters and commits under way included.
        spilled_octets: in files that are still being received.
        free_octets: on the spool's file system.
        oldest_ms: acceptance of the oldest message that is neither dead nor damaged; ``None`` when there is none.
        pending: deliveries owed, by sink; dead_letters: by sink.
        damaged: messages (or unreadable stretches of the database) set aside.
    """

    messages: int = 0
    octets: int = 0
    spilled_octets: int = 0
    free_octets: int = 0
    oldest_ms: int | None = None
    pending: dict[str, int] = field(default_factory=dict)
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    damaged: int = 0
