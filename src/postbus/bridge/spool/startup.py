"""How a folder becomes a spool's at its start: owned, opened, read, swept. Blocks; runs on the writer's thread."""

from __future__ import annotations

from contextlib import suppress

from postbus import telemetry
from postbus.bridge.spool.database import Database, Tally
from postbus.bridge.spool.faults import SpoolDamaged, SpoolFull
from postbus.bridge.spool.folder import Folder

RETRY_WAIT_MAX_MS = 3_600_000
"""No retry waits longer than this after a start: the clock that said when it is due may have been wrong."""


def take(folder: Folder, database: Database, *, now_ms: int, steady_ms: int) -> Tally:
    """Open both and return what is held. A database that cannot be opened is set aside and a new one begun.

    Raises:
        SpoolRefused, SpoolFailed, SpoolFull: nothing is open then.
    """
    folder.open()
    try:
        try:
            database.open()
            tally = database.tally()
        except SpoolDamaged as damage:
            database.close()
            place = folder.quarantine(str(now_ms))
            telemetry.spool_damaged(what="database", why=str(damage), place=str(place))
            database.open()
            tally = database.tally()
            tally.damaged += 1
        if not database.holes:  # with rows unreadable, nobody knows which files they named
            telemetry.spool_swept(orphans=folder.sweep(tally.files))
        with suppress(SpoolFull):  # then they wait as they are
            database.hasten(steady_ms + RETRY_WAIT_MAX_MS)
        folder.fill_ballast()
        tally.free_octets = folder.free_octets()
    except BaseException:
        database.close()
        folder.close()
        raise
    return tally
