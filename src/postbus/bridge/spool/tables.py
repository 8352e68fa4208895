"""The spool's tables, and what can be said of their rows without a database.

  message   one row per message held. ``deliveries`` is a JSON list of slots; ``body`` holds the octets, or ``file`` names them.
  mark      what is known of a slot beside its being owed: DONE (a message with other slots open), RETRY (due later), DEAD.
  damaged   messages set aside: never delivered, never deleted by us.

A slot without a mark is owed and undecided, so the common message costs one insert and one delete, and the backlog after a crash
is simply the message table in order. A message goes when all its slots are done; its marks go with it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple
from zlib import crc32

import orjson

from postbus.bridge.spool.records import DeadLetter, Delivery, Held, Mark, Slot, State, reason
from postbus.event.mail import Mail, mail_to_bytes

FORMAT = 1
"""What this code writes and reads; kept in ``user_version``."""
Place = tuple[int, int, int]
"""Of a dead letter in their list: when it was given up, seq of its message, number of its slot."""
CURSOR = re.compile(r"-?[0-9]{1,18}\.[0-9]{1,18}\.[0-9]{1,9}", re.ASCII)
APPLICATION_ID = 0x70_6F_73_74
PAGE_OCTETS = 16_384
MARK_KINDS = (int, int, int, int, str, str, int, int, str, int)
"""What the columns of a mark hold. SQLite does not see to it: damage can give a value any type."""
INTEGER_MIN = -(1 << 63)
INDEX_MAX = 1 << 31
JOURNAL_MAX_OCTETS = 67_108_864
"""The write-ahead log is cut back to this after a checkpoint; it is usually 1,000 pages, 16 MiB."""
SETUP = f"""
PRAGMA page_size={PAGE_OCTETS};
PRAGMA auto_vacuum=INCREMENTAL;
PRAGMA locking_mode=EXCLUSIVE;
PRAGMA journal_mode=WAL;
PRAGMA synchronous=FULL;
PRAGMA wal_autocheckpoint=1000;
PRAGMA journal_size_limit={JOURNAL_MAX_OCTETS};
PRAGMA temp_store=MEMORY;
PRAGMA cell_size_check=ON;
"""
SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE message (
  seq INTEGER PRIMARY KEY, received_ms INTEGER NOT NULL, size_octets INTEGER NOT NULL, slots INTEGER NOT NULL,
  deliveries TEXT NOT NULL, file TEXT, checksum INTEGER NOT NULL, mail BLOB NOT NULL, body BLOB
);
CREATE TABLE mark (
  message INTEGER NOT NULL, number INTEGER NOT NULL, slots INTEGER NOT NULL, state INTEGER NOT NULL, event_id TEXT NOT NULL,
  sink TEXT NOT NULL, attempt INTEGER NOT NULL, due_ms INTEGER NOT NULL, why TEXT NOT NULL, at_ms INTEGER NOT NULL,
  PRIMARY KEY (message, number)
) WITHOUT ROWID;
CREATE INDEX mark_due ON mark (sink, due_ms, message, number) WHERE state = {State.RETRY};
CREATE INDEX mark_dead ON mark (at_ms, message, number) WHERE state = {State.DEAD};
CREATE INDEX mark_event ON mark (sink, event_id) WHERE state = {State.DEAD};
CREATE TABLE damaged (seq INTEGER PRIMARY KEY, why TEXT NOT NULL, at_ms INTEGER NOT NULL);
PRAGMA application_id={APPLICATION_ID};
PRAGMA user_version={FORMAT};
COMMIT;
"""


class Row(NamedTuple):
    """One row of the message table."""

    seq: int
    received_ms: int
    size_octets: int
    slots: int
    deliveries: str
    file: str | None
    checksum: int
    mail: bytes
    body: bytes | None


def row_of(seq: int, mail: Mail, slots: tuple[Slot, ...], *, size_octets: int, octets: bytes | None, file: str | None) -> Row:
    """Return the row that holds this message."""
    record = mail_to_bytes(mail)
    deliveries = orjson.dumps(slots, default=tuple).decode()
    return Row(seq, mail.received_ms, size_octets, len(slots), deliveries, file, crc32(record), record, octets)


def mark_of(delivery: Delivery, state: State, due_ms: int, why: str, at_ms: int) -> Mark:
    """Return what is written of *delivery*: *why* and *at_ms* are the reason and its time, *due_ms* when it is tried again."""
    held, slot = delivery.held, delivery.slot
    event_id = delivery.recipient.event_id
    return Mark(held.seq, delivery.number, len(held.slots), state, event_id, slot.sink, delivery.attempt, due_ms, reason(why), at_ms)


def obituaries(seq: int, mail: Mail, slots: tuple[Slot, ...], why: Sequence[str], at_ms: int) -> tuple[Mark, ...]:
    """Return the marks of a message that is given up at birth: one for each slot, with its reason."""
    names = [mail.recipients[slot.recipient].event_id for slot in slots]
    return tuple(
        Mark(seq, number, len(slots), State.DEAD, names[number], slot.sink, why=reason(text), at_ms=at_ms)
        for number, (slot, text) in enumerate(zip(slots, why, strict=True))
    )


def slots_in(deliveries: object, recipients: int = INDEX_MAX) -> tuple[Slot, ...]:
    """Return the slots in a row's *deliveries*, as it was read, of a mail with so many *recipients*.

    Raises:
        ValueError: they are not what was written.
    """
    found: object = orjson.loads(deliveries) if isinstance(deliveries, str) else None
    slots: list[Slot] = []
    for entry in found if isinstance(found, list) else [found]:
        if not isinstance(entry, list) or len(entry) != 3:
            raise ValueError("no delivery")
        recipient, sink, required = entry
        if type(recipient) is not int or not 0 <= recipient < recipients or not isinstance(sink, str) or not isinstance(required, bool):
            raise ValueError("no delivery")
        slots.append(Slot(recipient, sink, required))
    return tuple(slots)


def mark_in(values: Sequence[Any]) -> Mark | None:
    """Return the mark in a row of the mark table, as it was read; ``None``: it is not what was written."""
    if not all(isinstance(value, kind) for value, kind in zip(values, MARK_KINDS, strict=True)) or values[3] not in set(State):
        return None
    seq, number, slots, state, *rest = values
    return Mark(seq, number, slots, State(state), *rest)


def storable(values: tuple[object, ...]) -> bool:
    """Return whether SQLite can hold all of *values*: text needs an encoding, a number 64 bits."""
    for value in values:
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                return False
        elif isinstance(value, int) and not INTEGER_MIN <= value <= -INTEGER_MIN - 1:
            return False
    return True


def finished(marks: Sequence[Mark]) -> tuple[list[int], list[Mark]]:
    """Split *marks* into messages that are wholly done by this group, and marks that must be written."""
    gone: list[int] = []
    rest: list[Mark] = []
    for mark in marks:
        if mark.slots == 1 and mark.state == State.DONE:
            gone.append(mark.seq)
        else:
            rest.append(mark)
    if len(rest) > 1:
        done = Counter(mark.seq for mark in {(mark.seq, mark.number): mark for mark in rest}.values() if mark.state == State.DONE)
        whole = {mark.seq for mark in rest if done[mark.seq] == mark.slots}
        gone += whole
        rest = [mark for mark in rest if mark.seq not in whole]
    return gone, rest


def place_of(cursor: str) -> Place:
    """Return the place that a dead letter's *cursor* names, for ``""`` the one before all. ``ValueError``: it names none."""
    if not cursor:
        return (-1, -1, -1)
    if CURSOR.fullmatch(cursor) is None:
        raise ValueError("this is no cursor of a list of dead letters")
    at_ms, seq, number = map(int, cursor.split("."))
    return (at_ms, seq, number)


def letter_of(mark: Mark, held: Held | None) -> DeadLetter:
    """Return the dead letter that *mark* stands for; *held* is ``None`` when its message is damaged."""
    cursor = f"{mark.at_ms}.{mark.seq}.{mark.number}"
    if held is None or not 0 <= mark.number < len(held.slots):  # damaged: the name and the reason are what is left
        return DeadLetter(mark.event_id, mark.sink, mark.why, mark.at_ms, 0, mark.attempt, "", "", "", "", 0, cursor)
    mail = held.mail
    recipient = mail.recipients[held.slots[mark.number].recipient]
    return DeadLetter(
        event_id=mark.event_id,
        sink=mark.sink,
        why=mark.why,
        at_ms=mark.at_ms,
        received_ms=mail.received_ms,
        attempt=mark.attempt,
        message_id=mail.id,
        route=recipient.route,
        recipient=recipient.address,
        mail_from=mail.mail_from,
        size_octets=held.size_octets,
        cursor=cursor,
    )
