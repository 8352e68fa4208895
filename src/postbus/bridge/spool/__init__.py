"""Accepted mail on disk, from its 250 until its sinks have it.

Theory of operation. ``Spool.commit`` appends a message to a queue; the writer's thread puts all that wait, and the marks of
deliveries that ended meanwhile, into one SQLite transaction. **The return of that transaction's COMMIT is acceptance** (write-ahead
log, ``synchronous=FULL``: the log's fdatasync has returned): before it nothing is answered 2xx, after it the message is published
whatever happens to this process. All who waited learn of it in one wake-up of the loop.

Disk states of a message (F: the octets' file, B: the same under ``bodies/``, R: its row; + exists, - does not):
  1  +F -B -R   being received, ``spill/<name>``          the listener removes it; swept at start
  2  -F +B -R   synced and renamed, not accepted          removed when the commit fails; an orphan after a crash, swept at start
  3  -F +B +R   accepted: must never be lost              row goes with the last slot done (or dropped dead letter)
  4  -F -B +R   the same, body in the row (<= 256 KiB)    as 3
  5  -F +B -R   all done                                  unlinked after the delete committed; after a crash an orphan, swept at start
  6  any, seq in ``damaged``                              set aside: never delivered, never deleted by us; told by log, metric, status
What is not in this list is damage. Damage is a value: the message is set aside and the rest is delivered. A database that cannot be
opened at all is moved to ``damaged/<ms>/`` with its bodies, and a new one begun.

Order of syncs for a file: its fsync, rename, the folder's fsync, then the row's COMMIT. An fsync that failed is never tried again on
the same data (https://wiki.postgresql.org/wiki/Fsync_Errors): all who waited get ``SpoolFailed``, nothing more is accepted, and the
database is opened anew, its log folded and restarted, and what was refused taken out.

A crash loses no mark that matters: an event whose DONE was not yet durable is sent once more, under the same id.

A full disk cannot even delete, since deleting writes to the log. So accepting stops while ``free_min_octets`` are left, and a
preallocated ``ballast`` file is given back when SQLite says SQLITE_FULL. If that is not enough, marks wait in memory and are tried
once a second; those a full disk keeps from being written are lost with the process, and their events sent once more.

Files of the folder (0700, files 0600): ``spool.db`` ``spool.db-wal`` ``bodies/`` ``spill/`` ``ballast`` ``lock`` ``damaged/``.
One process owns it (a record lock, and SQLite's exclusive mode); network file systems are refused.
"""

from __future__ import annotations

from postbus.bridge.spool.core import Spool
from postbus.bridge.spool.faults import SpoolDamaged, SpoolFailed, SpoolFault, SpoolFull, SpoolRefused
from postbus.bridge.spool.records import Body, DeadLetter, Delivery, Held, Numbers, Page, Slot, slots_of

__all__ = [
    "Body",
    "DeadLetter",
    "Delivery",
    "Held",
    "Numbers",
    "Page",
    "Slot",
    "Spool",
    "SpoolDamaged",
    "SpoolFailed",
    "SpoolFault",
    "SpoolFull",
    "SpoolRefused",
    "slots_of",
]
