"""What the spool does once a second beside its work: measure, give room back, drop old dead letters. Runs on the writer's thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from postbus import telemetry
from postbus.bridge.spool.database import Database
from postbus.bridge.spool.folder import Folder, disk_faults
from postbus.bridge.spool.records import Mark, Numbers
from postbus.bridge.spool_settings import SpoolSettings

RETENTION_STEP = 500
"""Dead letters dropped at once."""


@dataclass(frozen=True, slots=True)
class Chores:
    """What is to be done.

    Attributes:
        idle: nothing was committed lately; retention: it is time for old dead letters; healthy: the database is open.
        now_ms: the time.
    """

    idle: bool
    retention: bool
    healthy: bool
    now_ms: int


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found. *looked*: the database was asked, so *oldest_ms* is known."""

    free_octets: int
    spilled_octets: int
    looked: bool = False
    oldest_ms: int | None = None
    expired: tuple[Mark, ...] = ()


def care(folder: Folder, database: Database, settings: SpoolSettings, chores: Chores) -> Findings:
    """Do one round. Blocks.

    Raises:
        SpoolFault: something could not be read or written; the next round tries again.
    """
    free_octets = folder.free_octets()
    with disk_faults("cannot look at the spill folder"):
        spilled_octets = folder.spilled_octets()
    if free_octets > settings.free_min_octets + settings.ballast_octets and folder.fill_ballast():
        free_octets = folder.free_octets()
    if not chores.healthy:
        return Findings(free_octets, spilled_octets)
    expired: list[Mark] = []
    if chores.retention:
        before_ms = chores.now_ms - settings.dead_letter_age_max_s * 1000
        expired = database.expired(before_ms, RETENTION_STEP)
    if chores.idle:
        database.vacuum()
    return Findings(free_octets, spilled_octets, looked=True, oldest_ms=database.oldest_ms(), expired=tuple(expired))


def watch(numbers: Numbers, oldest_age_s: Callable[[], float]) -> list[Callable[[], None]]:
    """Let metrics read *numbers*; return the functions that end it."""
    return [
        telemetry.watch("postbus_spool_messages", lambda: {(): numbers.messages}),
        telemetry.watch("postbus_spool_octets", lambda: {(): numbers.octets}),
        telemetry.watch("postbus_spool_free_octets", lambda: {(): numbers.free_octets}),
        telemetry.watch("postbus_spool_damaged", lambda: {(): numbers.damaged}),
        telemetry.watch("postbus_spool_oldest_seconds", lambda: {(): oldest_age_s()}),
        telemetry.watch("postbus_dead_letters_kept", lambda: {(sink,): count for sink, count in numbers.dead_letters.items()}),
        telemetry.watch("postbus_sink_queue_events", lambda: {(sink,): count for sink, count in numbers.pending.items()}),
    ]
