"""The spool's tables: groups, marks, pages, dead letters, damage. Synchronous, as on the writer's thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from zlib import crc32

import pytest

from postbus.bridge.spool import Delivery, Held, Slot, SpoolDamaged, SpoolFailed, SpoolFull, SpoolRefused, slots_of
from postbus.bridge.spool.database import Database
from postbus.bridge.spool.records import Mark, State
from postbus.bridge.spool.tables import FORMAT, Row, place_of, row_of, storable
from postbus.event.mail import Mail
from tests.bridge.mails import NOW_MS, mail, recipient

DONE, RETRY, DEAD = State.DONE, State.RETRY, State.DEAD
ALL = 1 << 40


def content_of(seq: int) -> bytes:
    """Return a content nobody else has."""
    return b"content %d\r\n" % seq * 10


def two_sinks(seq: int) -> Mail:
    """Return a mail that owes two events to two sinks each."""
    sinks = {"sinks": ("out", "other")}
    return mail(f"m{seq}", content_of(seq), recipient(f"{seq}-a", **sinks), recipient(f"{seq}-b", index=1, **sinks))  # type: ignore[arg-type]


def row(seq: int, record: Mail | None = None, *, file: str | None = None) -> Row:
    """Return the row of a mail with one slot, or of *record*."""
    content = content_of(seq)
    record = record or mail(f"m{seq}", content)
    return row_of(seq, record, slots_of(record), size_octets=len(content), octets=None if file else content, file=file)


def mark(seq: int, state: State = DONE, number: int = 0, slots: int = 1, **rest: object) -> Mark:
    """Return a mark for sink ``out``."""
    values = {"event_id": f"e{seq}-{number}", "sink": "out", **rest}
    return Mark(seq, number, slots, state, **values)  # type: ignore[arg-type]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """An open, empty database."""
    database = Database(tmp_path / "spool.db", tmp_path / "bodies")
    database.open()
    yield database
    database.close()


def fresh(database: Database, sink: str = "out", after: int = 0, limit: int = 100, max_octets: int = ALL) -> list[tuple[int, int]]:
    """Return (seq, slot number) of a page of the backlog."""
    return [delivery.order for delivery in database.fresh(sink, after, limit, max_octets, NOW_MS).deliveries]


def due(database: Database, now_ms: int = NOW_MS, limit: int = 100, max_octets: int = ALL) -> list[tuple[int, int]]:
    """Return (seq, slot number) of what is due."""
    return [delivery.order for delivery in database.due("out", limit, max_octets, now_ms, NOW_MS).deliveries]


def test_settings_that_durability_rests_on(database: Database) -> None:
    """The log is synced at every commit, the database is ours alone, and pages are large."""
    sql = database._sql
    read = {
        name: sql.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous", "locking_mode", "page_size", "auto_vacuum")
    }
    assert {"journal_mode": "wal", "synchronous": 2, "locking_mode": "exclusive", "page_size": 16384, "auto_vacuum": 2} == read
    assert sql.execute("PRAGMA wal_autocheckpoint").fetchone() == (1000,)
    assert sql.execute("PRAGMA journal_size_limit").fetchone() == (67108864,)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param((1, "ä", b"\xff", None), True, id="all kinds"),
        pytest.param((-(1 << 63), (1 << 63) - 1), True, id="64 bits"),
        pytest.param((1 << 63,), False, id="more than 64 bits"),
        pytest.param(("x\ud800",), False, id="half a surrogate pair"),
    ],
)
def test_what_a_row_can_hold(database: Database, values: tuple[object, ...], expected: bool) -> None:
    """The check agrees with SQLite."""
    assert expected == storable(values)
    with suppress(UnicodeEncodeError, OverflowError):
        database._sql.execute("SELECT " + ", ".join("?" * len(values)), values)
        assert expected


def test_what_goes_in_comes_out(database: Database) -> None:
    """A message read back is the one that was written: record, slots, octets."""
    record = two_sinks(7)
    database.apply([row(7, record)], ())
    (delivery, second) = database.fresh("other", 0, 10, ALL, NOW_MS).deliveries
    assert record == delivery.held.mail
    assert slots_of(record) == delivery.held.slots
    assert content_of(7) == delivery.held.octets
    assert (7, 1) == delivery.order
    assert Slot(0, "other", required=True) == delivery.slot
    assert record.recipients[1] == second.recipient
    assert "7/1" in repr(delivery)
    assert "in row" in repr(delivery.held)


def test_body_in_a_file(database: Database, tmp_path: Path) -> None:
    """A row may name a file instead of holding the octets; the group that deletes it tells the name."""
    database.apply([row(1, file="f1"), row(2), row(3, file="f3")], ())
    (first, *_) = database.fresh("out", 0, 10, ALL, NOW_MS).deliveries
    assert first.held.octets is None
    assert tmp_path / "bodies" / "f1" == first.held.path
    assert "f1" in repr(first.held)
    applied = database.apply((), [mark(1), mark(2), mark(3)])
    assert (3, {"f1", "f3"}) == (applied.messages, set(applied.files))


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 200])
def test_groups_of_any_size(database: Database, count: int) -> None:
    """Every message of a group is there, whatever its size."""
    rows = [row(seq) for seq in range(1, count + 1)]
    database.apply(rows, ())
    assert [(seq, 0) for seq in range(1, count + 1)] == fresh(database, limit=1000)
    applied = database.apply((), [mark(seq) for seq in range(1, count + 1)])
    assert (count, sum(row.size_octets for row in rows)) == (applied.messages, applied.octets)
    assert [] == fresh(database)


def test_a_group_is_all_or_nothing(database: Database) -> None:
    """When one row cannot go in, none does, and the marks of the group did not happen."""
    database.apply([row(1)], ())
    for marks in ([mark(1)], []):
        with pytest.raises(SpoolFailed, match="cannot commit"):
            database.apply([row(2), row(1)], marks)
        assert [(1, 0)] == fresh(database)
    database.apply([row(2)], ())
    assert [(1, 0), (2, 0)] == fresh(database)


def test_a_message_goes_with_its_last_slot(database: Database) -> None:
    """Slots of one message are done one by one, in one group, or both."""
    database.apply([row(1, two_sinks(1)), row(2, two_sinks(2))], ())
    assert database.apply((), [mark(1, number=0, slots=4), mark(1, number=2, slots=4)]).messages == 0
    assert [(2, 0), (2, 2)] == fresh(database)
    assert [(1, 1), (1, 3), (2, 1), (2, 3)] == fresh(database, "other")
    assert database.apply((), [mark(1, number=1, slots=4), mark(1, number=3, slots=4)]).messages == 1
    assert database.apply((), [mark(2, number=number, slots=4) for number in range(4)]).messages == 1
    assert (0, 0) == database._sql.execute("SELECT (SELECT count(*) FROM message), (SELECT count(*) FROM mark)").fetchone()


def test_done_twice_is_done_once(database: Database) -> None:
    """The same mark twice, in one group or in two, does not finish a message with other slots open."""
    database.apply([row(1, two_sinks(1))], ())
    twice = [mark(1, number=0, slots=4)] * 4
    assert database.apply((), twice).messages == 0
    assert database.apply((), twice).messages == 0
    assert [(1, 2)] == fresh(database)


def test_removals(database: Database) -> None:
    """A message is taken out whatever its slots say."""
    database.apply([row(1), row(2, two_sinks(2))], [mark(2, RETRY, slots=4)])
    applied = database.apply((), (), [1, 2])
    assert (2, None) == (applied.messages, applied.dead_letters)
    assert [] == fresh(database) + due(database)


def test_pages(database: Database) -> None:
    """The backlog is paged in order, by number and by octets, and a page says how far it looked."""
    database.apply([row(seq, two_sinks(seq) if seq == 3 else None) for seq in range(1, 6)], ())
    page = database.fresh("out", 0, 2, ALL, NOW_MS)
    assert ([(1, 0), (2, 0)], 2, False) == ([delivery.order for delivery in page.deliveries], page.upto, page.complete)
    page = database.fresh("out", 2, 2, ALL, NOW_MS)
    assert ([(3, 0), (3, 2)], 3, False) == ([delivery.order for delivery in page.deliveries], page.upto, page.complete)
    page = database.fresh("out", 3, 10, ALL, NOW_MS)
    assert ([(4, 0), (5, 0)], 5, True) == ([delivery.order for delivery in page.deliveries], page.upto, page.complete)
    assert [(1, 0)] == fresh(database, max_octets=1)
    assert [(3, 1), (3, 3)] == fresh(database, "other")
    assert [] == fresh(database, "ou")
    assert database.fresh("out", 99, 10, ALL, NOW_MS).upto == 99


def test_both_slots_of_a_message_share_it(database: Database) -> None:
    """Two deliveries of one message are two slots of one object, so that it is parsed once."""
    database.apply([row(1, two_sinks(1))], ())
    first, second = database.fresh("out", 0, 10, ALL, NOW_MS).deliveries
    assert first.held is second.held


def test_retries(database: Database) -> None:
    """A retry is not in the backlog; it comes when due, the longest due first, with its attempts and age."""
    database.apply([row(1), row(2), row(3)], [mark(1, RETRY, attempt=3, due_ms=NOW_MS, at_ms=5), mark(2, RETRY, due_ms=NOW_MS - 1)])
    assert [(3, 0)] == fresh(database)
    assert [(2, 0), (1, 0)] == due(database)
    (_, second) = database.due("out", 10, ALL, NOW_MS, NOW_MS).deliveries
    assert (3, 5) == (second.attempt, second.since_ms)
    page = database.due("out", 10, ALL, NOW_MS - 1, NOW_MS)
    assert ([(2, 0)], NOW_MS, False) == ([delivery.order for delivery in page.deliveries], page.next_due_ms, page.complete)
    assert database.due("out", 1, ALL, NOW_MS, NOW_MS).next_due_ms == NOW_MS
    assert [(2, 0)] == due(database, max_octets=1)
    page = database.due("other", 10, ALL, NOW_MS, NOW_MS)
    assert ((), None, True) == (page.deliveries, page.next_due_ms, page.complete)


def test_two_retries_of_one_message_share_it(database: Database) -> None:
    """Retries of one message for one sink are slots of one object."""
    database.apply([row(1, two_sinks(1))], [mark(1, RETRY, slots=4), mark(1, RETRY, number=2, slots=4)])
    first, second = database.due("out", 10, ALL, NOW_MS, NOW_MS).deliveries
    assert first.held is second.held


def test_dead_letters(database: Database) -> None:
    """A dead letter keeps its message; it can be listed, read, and found by name."""
    record = mail("m1", content_of(1), recipient("e1-0"))
    applied = database.apply([row(1, record), row(2)], [mark(1, DEAD, why="rejected: no", at_ms=NOW_MS, attempt=2)], recount=True)
    assert {"out": 1} == applied.dead_letters
    assert [(2, 0)] == fresh(database)
    (letter,) = database.dead_letters(10, place_of(""))
    assert ("e1-0", "out", "rejected: no", NOW_MS, 2, "m1", "all") == (
        letter.event_id,
        letter.sink,
        letter.why,
        letter.at_ms,
        letter.attempt,
        letter.message_id,
        letter.route,
    )
    found = database.dead_letter("e1-0", "out")
    assert found is not None
    assert (letter, content_of(1)) == (found[0], found[1].held.octets)
    assert database.dead_letter("e1-0", "other") is None
    assert database.dead_mark("other", "out") is None


def test_dead_letters_are_paged(database: Database) -> None:
    """The cursor of the last letter leads to what follows."""
    rows = [row(seq) for seq in range(1, 6)]
    database.apply(rows, [mark(seq, DEAD, at_ms=NOW_MS + seq % 2) for seq in range(1, 6)])
    first = database.dead_letters(3, place_of(""))
    rest = database.dead_letters(3, place_of(first[-1].cursor))
    assert ["e2-0", "e4-0", "e1-0", "e3-0", "e5-0"] == [letter.event_id for letter in first + rest]


def test_replay_and_drop(database: Database) -> None:
    """A dead letter becomes a retry again, or goes with its message."""
    database.apply([row(1), row(2)], [mark(1, DEAD), mark(2, DEAD)], recount=True)
    assert {"out": 1} == database.apply((), [mark(1, RETRY, due_ms=NOW_MS)], recount=True).dead_letters
    assert [(1, 0)] == due(database)
    applied = database.apply((), [mark(2)], recount=True)
    assert (1, {}) == (applied.messages, applied.dead_letters)


def test_expired_dead_letters(database: Database) -> None:
    """Dead letters go by age, the oldest first."""
    database.apply([row(seq) for seq in range(1, 5)], [mark(seq, DEAD, at_ms=seq) for seq in range(1, 5)])
    assert [1, 2] == [mark.seq for mark in database.expired(3, 100)]
    assert [1] == [mark.seq for mark in database.expired(3, 1)]
    assert [] == database.expired(0, 100)


def test_dead_letters_are_counted_on(database: Database) -> None:
    """The count by sink follows marks that are given again, become others, and go with their messages."""
    record = two_sinks(1)
    database.apply([row(1, record), row(2), row(3)], ())

    def counted(*marks: Mark, removals: tuple[int, ...] = ()) -> dict[str, int] | None:
        return database.apply((), marks, removals, recount=True).dead_letters

    assert {"out": 1, "other": 1} == counted(mark(1, DEAD, 0, 4), mark(1, DEAD, 1, 4, sink="other"))
    assert {"out": 2, "other": 1} == counted(mark(1, DEAD, 0, 4), mark(2, DEAD))
    assert {"out": 1, "other": 1} == counted(mark(1, RETRY, 0, 4))
    assert {"out": 1} == counted(removals=(1,))
    assert {"out": 2} == counted(mark(3, DEAD))
    database.reopen((3,))
    assert {"out": 1} == database.tally().dead_letters
    assert {} == counted(mark(2))


def test_the_dead_are_walked_over_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the look for the oldest nor a page goes over dead letters again, or reads their bodies."""
    database.apply([row(seq) for seq in range(1, 50)], [mark(seq, DEAD) for seq in range(1, 50)], recount=True)
    assert database.oldest_ms() is None
    steps: list[int] = []
    database._sql.set_progress_handler(lambda: steps.append(1), 1)
    assert database.oldest_ms() is None
    assert len(steps) < 50
    monkeypatch.setattr(database, "_held", lambda *_: pytest.fail("a body was read"))
    assert [] == fresh(database)


def test_oldest(database: Database) -> None:
    """The oldest message is one that is still owed."""
    assert database.oldest_ms() is None
    records = [mail(f"m{seq}", content_of(seq), received_ms=seq) for seq in range(1, 4)]
    database.apply([row(seq, record) for seq, record in enumerate(records, 1)], [mark(1, DEAD)], recount=True)
    assert database.oldest_ms() == 2
    database.apply((), [mark(2)])
    assert database.oldest_ms() == 3
    database.apply((), [mark(1, RETRY)], recount=True)
    assert database.oldest_ms() == 1
    database.set_aside(1, "damaged", NOW_MS)
    assert database.oldest_ms() == 3


def test_tally_after_reopening(database: Database) -> None:
    """At start the totals, the deliveries owed and the files are counted from what is on disk."""
    marks = [mark(2, DEAD), mark(3, RETRY), mark(4, number=1, slots=4, sink="other")]
    database.apply([row(1), row(2), row(3, file="f3"), row(4, two_sinks(4))], marks)
    database.set_aside(1, "damaged", NOW_MS)
    database.close()
    database.open()
    tally = database.tally()
    assert (4, 4, {"f3"}, {"out": 1}, 1) == (tally.messages, tally.newest, tally.files, tally.dead_letters, tally.damaged)
    assert {"out": 3, "other": 1} == dict(tally.pending), "what is set aside is owed to nobody"
    assert sum(len(content_of(seq)) for seq in range(1, 5)) == tally.octets


def test_marks_without_a_message_are_forgotten(database: Database) -> None:
    """A mark that came after its message was taken out does not outlive a restart."""
    database.apply((), [mark(9, RETRY)])
    assert [] == due(database)
    database.close()
    database.open()
    assert database._sql.execute("SELECT count(*) FROM mark").fetchone() == (0,)


def test_vacuum_gives_pages_back(database: Database) -> None:
    """After a backlog has gone, its pages return to the file system in steps."""
    content = b"x" * 100_000
    record = mail("m", content)
    database.apply(
        [row_of(seq, record, slots_of(record), size_octets=len(content), octets=content, file=None) for seq in range(1, 201)], ()
    )
    database.apply((), [mark(seq) for seq in range(1, 201)])
    (before,) = database._sql.execute("PRAGMA page_count").fetchone()
    assert database.vacuum()
    while database.vacuum():
        pass
    (after,) = database._sql.execute("PRAGMA page_count").fetchone()
    assert after < before / 10


# --- faults


def test_a_newer_format_is_refused(database: Database) -> None:
    """A spool of a newer postbus is left alone, with words that say what to do."""
    database._sql.execute(f"PRAGMA user_version={FORMAT + 1}")
    database.close()
    with pytest.raises(SpoolRefused, match=r"written by a newer postbus \(spool format 2, this one knows 1\): run that version"):
        database.open()
    with pytest.raises(SpoolFailed, match="not open"):
        database.tally()


def test_somebody_elses_database(tmp_path: Path) -> None:
    """A database that is not a spool is damage, not a spool."""
    connection = sqlite3.connect(tmp_path / "spool.db")
    connection.execute("PRAGMA application_id=77")
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(SpoolDamaged, match="not a spool"):
        Database(tmp_path / "spool.db", tmp_path).open()


def test_rubbish(tmp_path: Path) -> None:
    """A file that is no database is damage."""
    (tmp_path / "spool.db").write_bytes(b"rubbish" * 1000)
    with pytest.raises(SpoolDamaged, match="NOTADB"):
        Database(tmp_path / "spool.db", tmp_path).open()


def test_locked(database: Database) -> None:
    """SQLite too knows that there is one owner."""
    with pytest.raises(SpoolRefused, match="BUSY"):
        Database(database.path, database.path.parent).open()


def test_full(database: Database) -> None:
    """No room is told as such; the group did not happen, and the same connection goes on when room is back."""
    database.apply([row(1)], ())
    database._sql.execute("PRAGMA max_page_count=16")
    content = b"x" * 1_000_000
    record = mail("m", content)
    with pytest.raises(SpoolFull):
        database.apply([row_of(2, record, slots_of(record), size_octets=len(content), octets=content, file=None)], [mark(1)])
    assert [(1, 0)] == fresh(database)
    database._sql.execute("PRAGMA max_page_count=1000000")
    database.apply([row(3)], [mark(1)])
    assert [(3, 0)] == fresh(database)


def test_reopening(database: Database) -> None:
    """After an I/O error the log starts anew, what was durable is there, and what was refused is not."""
    database.apply([row(1), row(2), row(3)], ())
    database.reopen([2])
    assert [(1, 0), (3, 0)] == fresh(database)
    database.reopen([])
    assert [(1, 0), (3, 0)] == fresh(database)


class Broken:
    """A connection whose statements fail as told."""

    def __init__(self, real: sqlite3.Connection, fails: dict[str, sqlite3.Error]) -> None:
        self._real = real
        self._fails = fails

    def execute(self, statement: str, *parameters: object) -> sqlite3.Cursor:
        """Fail, or ask the real one."""
        for start, error in self._fails.items():
            if statement.startswith(start):
                raise error
        return self._real.execute(statement, *parameters)  # type: ignore[arg-type]

    def commit(self) -> None:
        """Fail as COMMIT is told to, or ask the real one."""
        if "COMMIT" in self._fails:
            raise self._fails["COMMIT"]
        self._real.commit()

    def executescript(self, script: str) -> sqlite3.Cursor:
        """Ask the real one."""
        return self._real.executescript(script)

    @property
    def in_transaction(self) -> bool:
        """Ask the real one."""
        return self._real.in_transaction

    def close(self) -> None:
        """Fail after closing, as SQLite may."""
        self._real.close()
        raise sqlite3.OperationalError("disk I/O error")


def io_error() -> sqlite3.OperationalError:
    """Return what SQLite raises when fsync fails."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
    error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
    return error


@pytest.mark.parametrize(("statement", "marks"), [("INSERT", []), ("COMMIT", [mark(9)])], ids=["mail alone", "mail and marks"])
def test_io_error_at_commit(database: Database, statement: str, marks: list[Mark]) -> None:
    """A commit that fails is a fault, even when ROLLBACK and close fail too; opening again works."""
    database.apply([row(1)], ())
    database._connection = Broken(database._sql, {statement: io_error(), "ROLLBACK": io_error()})  # type: ignore[assignment]
    with pytest.raises(SpoolFailed, match="SQLITE_IOERR_FSYNC"):
        database.apply([row(2)], marks)
    database.reopen([2])
    assert [(1, 0)] == fresh(database)


def test_mail_is_not_put_into_a_transaction_that_was_left_open(database: Database) -> None:
    """A ROLLBACK that failed leaves one: what went in would not be durable when it returned."""
    real = database._sql
    database._connection = Broken(real, {"COMMIT": io_error(), "ROLLBACK": io_error()})  # type: ignore[assignment]
    with pytest.raises(SpoolFailed):
        database.apply([row(1)], [mark(9)])
    with pytest.raises(SpoolFailed, match="left open"):
        database.apply([row(2)], ())
    database.reopen([1])
    assert [] == fresh(database)


def test_error_that_ended_the_transaction(database: Database) -> None:
    """Some errors roll back by themselves; then there is nothing to roll back."""
    real = database._sql
    database._connection = Broken(real, {"DELETE": io_error()})  # type: ignore[assignment]
    with pytest.raises(SpoolFailed):
        database.apply([row(1)], [mark(1)])
    assert not real.in_transaction
    database._connection = real


def test_log_that_cannot_be_folded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the log cannot be folded, the spool is not open again."""

    class Busy(Broken):
        def execute(self, statement: str, *parameters: object) -> sqlite3.Cursor:
            return super().execute("SELECT 1, 0, 0" if "wal_checkpoint" in statement else statement, *parameters)

    def prepare(connection: sqlite3.Connection) -> None:
        database._connection = Busy(connection, {})  # type: ignore[assignment]

    monkeypatch.setattr(database, "_prepare", prepare)
    with pytest.raises(SpoolFailed, match="cannot fold the log"):
        database.reopen([])


# --- damage


def spoil(database: Database, column: str, value: object, seq: int = 2) -> None:
    """Overwrite a column of one row."""
    database._sql.execute(f"UPDATE message SET {column} = ? WHERE seq = ?", (value, seq))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        pytest.param("mail", b"{}", id="record"),
        pytest.param("body", b"other octets", id="body of another size"),
        pytest.param("body", content_of(3), id="body of the same size"),
        pytest.param("body", None, id="no body"),
        pytest.param("body", "text", id="body of another type"),
        pytest.param("deliveries", '[["out"]]', id="slots"),
        pytest.param("deliveries", '"out" is not JSON', id="slots that are no JSON"),
        pytest.param("deliveries", '[["0", "out", true]]', id="slots of another type"),
        pytest.param("deliveries", '"out"', id="slots that are no list"),
        pytest.param("deliveries", '[[1, "out", true]]', id="a slot of nobody"),
        pytest.param("mail", "text", id="record of another type"),
        pytest.param("checksum", "text", id="checksum of another type"),
        pytest.param("size_octets", "text", id="size of another type"),
        pytest.param("size_octets", 7.5, id="size that is no whole number"),
        pytest.param("file", b"f2", id="name of another type"),
    ],
)
def test_a_damaged_row_is_set_aside(database: Database, column: str, value: object) -> None:
    """A row that is not what was written is told of and set aside; the rest is delivered, also after a restart."""
    database.apply([row(1), row(2), row(3)], ())
    spoil(database, column, value)
    page = database.fresh("out", 0, 10, ALL, NOW_MS)
    assert ([(1, 0), (3, 0)], 1) == ([delivery.order for delivery in page.deliveries], page.damaged)
    assert 1 == len(database.holes)
    assert [(1, 0), (3, 0)] == fresh(database)
    assert 1 == len(database.holes)
    database.close()
    database.open()
    tally = database.tally()
    assert (3, 1, int) == (tally.messages, tally.damaged, type(tally.octets))


def test_a_record_of_another_format(database: Database) -> None:
    """A record whose checksum is right and whose content cannot be read is damage all the same."""
    database.apply([row(1), row(2)._replace(mail=b"[]", checksum=crc32(b"[]"))], ())
    assert [(1, 0)] == fresh(database)
    assert "cannot be read" in database.holes[0]


def test_a_damaged_retry(database: Database) -> None:
    """A retry whose row is damaged is set aside; the others come."""
    database.apply([row(1), row(2)], [mark(1, RETRY), mark(2, RETRY)])
    spoil(database, "body", b"", seq=1)
    assert [(2, 0)] == due(database)
    assert [(2, 0)] == due(database)


@pytest.mark.parametrize("value", ["text", 1.5, b"octets"], ids=["text", "no whole number", "octets"])
@pytest.mark.parametrize("column", ["attempt", "due_ms", "at_ms", "number"])
def test_a_retry_of_another_type(database: Database, column: str, value: object) -> None:
    """A retry whose mark is not what was written is set aside with its message; the others come."""
    database.apply([row(1), row(2)], [mark(1, RETRY), mark(2, RETRY)])
    database._sql.execute(f"UPDATE mark SET {column} = ? WHERE message = 1", (value,))
    assert [(2, 0)] == due(database)
    assert [(2, 0)] == due(database)
    assert fresh(database) == []


def test_a_retry_of_a_slot_that_is_not_there(database: Database) -> None:
    """Set aside, too."""
    database.apply([row(1), row(2)], [mark(1, RETRY), mark(2, RETRY)])
    database._sql.execute("UPDATE mark SET number = 7 WHERE message = 1")
    assert [(2, 0)] == due(database)
    assert "retry is damaged" in database.holes[0]


@pytest.mark.parametrize(
    ("column", "value"), [("attempt", "text"), ("why", b"octets"), ("at_ms", 1.5), ("event_id", b"octets"), ("number", "text")]
)
def test_a_dead_letter_of_another_type(database: Database, column: str, value: object) -> None:
    """A dead letter whose mark is not what was written has no name to ask for; the others are listed, and dropped in time."""
    database.apply([row(1), row(2)], [mark(1, DEAD, at_ms=1), mark(2, DEAD, at_ms=1)])
    database._sql.execute(f"UPDATE mark SET {column} = ? WHERE message = 1", (value,))
    assert ["e2-0"] == [letter.event_id for letter in database.dead_letters(10, place_of(""))]
    assert [2] == [found.seq for found in database.expired(NOW_MS, 10)]
    assert database.dead_mark("e1-0", "out") is None
    assert ["the record of a dead letter is damaged; its message is kept"] == database.holes


def test_a_dead_letter_of_a_slot_that_is_not_there(database: Database) -> None:
    """It is listed with its name and reason, and says so when it is read."""
    database.apply([row(1)], [mark(1, DEAD)])
    database._sql.execute("UPDATE mark SET number = 7")
    assert ["e1-0"] == [letter.event_id for letter in database.dead_letters(10, place_of(""))]
    with pytest.raises(SpoolDamaged, match="dead letter is damaged"):
        database.dead_letter("e1-0", "out")


def test_a_time_of_another_type(database: Database) -> None:
    """The age of the oldest message is unknown then."""
    database.apply([row(1)], ())
    spoil(database, "received_ms", "text", seq=1)
    assert database.oldest_ms() is None


def test_a_damaged_dead_letter(database: Database) -> None:
    """A dead letter whose row is damaged is listed with its name and reason, and says so when it is read."""
    database.apply([row(1)], [mark(1, DEAD, why="rejected")])
    spoil(database, "mail", b"rubbish", seq=1)
    (letter,) = database.dead_letters(10, place_of(""))
    assert ("e1-0", "rejected", "") == (letter.event_id, letter.why, letter.message_id)
    with pytest.raises(SpoolDamaged, match="record of the mail"):
        database.dead_letter("e1-0", "out")
    assert database.dead_mark("e1-0", "out") is not None


def test_tally_over_a_damaged_row(database: Database) -> None:
    """Counting does not stop at slots that cannot be read."""
    database.apply([row(1), row(2)], ())
    spoil(database, "deliveries", "rubbish", seq=1)
    tally = database.tally()
    assert (2, {"out": 1}) == (tally.messages, dict(tally.pending))


def _tear(database: Database, path: Path) -> None:
    """Overwrite one leaf page in the middle of the message table."""
    database.close()
    pages = path.stat().st_size // 16384
    with path.open("r+b") as file:
        for page in range(pages // 2, pages):
            file.seek(page * 16384)
            if file.read(1) == b"\x0d":  # a table's leaf (https://www.sqlite.org/fileformat2.html s1.6)
                file.seek(page * 16384)
                file.write(b"\xff" * 16384)
                break
    database.open()


def test_a_torn_page(database: Database) -> None:
    """Messages of a page that cannot be read are lost; those before and behind are delivered, and new ones accepted."""
    database.apply([row(seq) for seq in range(1, 2001)], ())
    _tear(database, database.path)
    tally = database.tally()
    assert 1900 < tally.messages < 2000
    assert 1 == len(database.holes)
    got: list[tuple[int, int]] = []
    after, complete = 0, False
    while not complete:
        page = database.fresh("out", after, 100, ALL, NOW_MS)
        got += [delivery.order for delivery in page.deliveries]
        after, complete = page.upto, page.complete
    assert tally.messages == len(got)
    assert (2000, 0) == got[-1]
    database.apply([row(3000)], [mark(1)])
    assert [(3000, 0)] == fresh(database, after=2000)


def test_a_torn_end(database: Database) -> None:
    """When nothing behind the tear can be read, what is before it still is."""
    database.apply([row(seq) for seq in range(1, 301)], ())
    database.close()
    pages = database.path.stat().st_size // 16384
    with database.path.open("r+b") as file:
        file.seek((pages - 1) * 16384)
        file.write(b"\xff" * 16384)
    database.open()
    assert 0 < database.tally().messages < 300
    assert "cannot be read" in database.holes[0]


def test_an_error_that_is_no_damage_is_raised(database: Database) -> None:
    """A read error of the disk is not taken for damage."""
    database._connection = Broken(database._sql, {"SELECT seq, received_ms": io_error()})  # type: ignore[assignment]
    with pytest.raises(SpoolFailed):
        fresh(database)


def test_order_of_deliveries() -> None:
    """A delivery's age counts from acceptance unless it was replayed."""
    record = mail("m", b"")
    held = Held(1, record, slots_of(record), size_octets=0, octets=b"", path=None)
    assert (NOW_MS, 5) == (Delivery(held, 0).since_ms, Delivery(held, 0, since_ms=5).since_ms)
