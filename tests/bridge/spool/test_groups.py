"""What waits for the writer, where somebody who waited has gone."""

from __future__ import annotations

import asyncio

from postbus.bridge.spool.faults import SpoolFailed
from postbus.bridge.spool.groups import Commit, Line
from postbus.bridge.spool.records import Mark, State, slots_of
from postbus.bridge.spool.tables import row_of
from tests.bridge.mails import mail


def waiting() -> Commit:
    """Return a commit; nothing here looks at its mail."""
    record = mail("m", b"")
    row = row_of(1, record, slots_of(record), size_octets=0, octets=b"", file=None)
    return Commit(row, record, slots_of(record), asyncio.get_running_loop().create_future())


async def test_who_has_gone_is_told_nothing() -> None:
    """A refusal reaches everybody who still waits, and each commit is forgotten once."""
    forgotten: list[Commit] = []
    line = Line(forgotten.append)
    gone, here = waiting(), waiting()
    line.commits += (gone, here)
    gone.future.cancel()
    left, stays = line.flush(), line.flush()
    left.cancel()
    line.refuse_commits(SpoolFailed("disk I/O error"))
    line.refuse_flushes(SpoolFailed("disk I/O error"))
    assert [gone, here] == forgotten
    for future in (here.future, stays):
        assert "disk I/O error" == str(future.exception())
    assert (True, True, False) == (gone.future.cancelled(), left.cancelled(), bool(line))


async def test_a_flush_ends_when_what_it_waits_for_is_durable() -> None:
    """Not before its own marks, and not after: what came later is another's."""
    line = Line(lambda _: None)
    line.post(Mark(1, 0, 1, State.DONE))
    first = line.flush()
    group = line.take()
    line.post(Mark(2, 0, 1, State.DONE))
    second = line.flush()
    assert (False, False) == (first.done(), line.durable)
    line.done(group)
    assert (True, False) == (first.done(), second.done())
    line.done(line.take())
    assert (True, True) == (second.done(), line.durable)
