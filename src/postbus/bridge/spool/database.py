"""The spool's database: the only module that knows SQLite. Every call blocks and belongs on the writer's thread.

Choices (measured; SQLite 3.40): pages of 16 KiB (+42 % at 16 KB bodies against 4 KiB); rows go in by one statement for many, because
each statement gives the interpreter lock away and has to win it back from a busy loop; freed pages are returned by
``incremental_vacuum``, which only runs to its end under ``executescript``; no statement stays open between calls, since an open
reader makes the write-ahead log grow without bound.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from zlib import crc32

import orjson

from postbus.bridge.spool.faults import SpoolDamaged, SpoolFailed, SpoolFault, SpoolFull, SpoolRefused, SpoolUnwritable
from postbus.bridge.spool.records import DeadLetter, Delivery, Held, Mark, Numbers, Page, State
from postbus.bridge.spool.tables import APPLICATION_ID, FORMAT, SCHEMA, SETUP, Place, Row, finished, letter_of, mark_in, slots_in
from postbus.event.mail import mail_from_bytes

ROWS_PER_STATEMENT = 64
VACUUM_PAGES = 1_000
"""Pages returned per idle step: 37 ms."""

ROW = "seq, received_ms, size_octets, slots, deliveries, file, checksum, mail, body"
IN_LIST = "IN (SELECT value FROM json_each(?))"
AMONG = f"message {IN_LIST}"
UNDECIDED = "slots > (SELECT count(*) FROM mark WHERE mark.message = seq)"
"""Passes over dead letters and retries without reading their bodies."""
SOUND = "seq NOT IN (SELECT seq FROM damaged)"
MARK = "INSERT OR REPLACE INTO mark VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"

_FAULTS: dict[int, type[SpoolFault]] = {
    sqlite3.SQLITE_FULL: SpoolFull,
    sqlite3.SQLITE_CORRUPT: SpoolDamaged,
    sqlite3.SQLITE_NOTADB: SpoolDamaged,
    sqlite3.SQLITE_BUSY: SpoolRefused,
}


@contextmanager
def database_faults(doing: str) -> Iterator[None]:
    """Turn SQLite's exceptions into the spool's own, by primary result code (https://www.sqlite.org/rescode.html)."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        raise _FAULTS.get(code, SpoolFailed)(f"{doing}: {error} ({name})") from error
    except (UnicodeEncodeError, OverflowError) as error:  # the driver's, before SQLite saw it
        raise SpoolUnwritable(f"{doing}: {error}") from error


@dataclass(slots=True)
class Tally:
    """What was found at start: totals, deliveries owed by sink, the files that rows name, the disk's free room."""

    messages: int = 0
    octets: int = 0
    pending: Counter[str] = field(default_factory=Counter)
    dead_letters: dict[str, int] = field(default_factory=dict)
    damaged: int = 0
    files: set[str] = field(default_factory=set)
    newest: int = 0
    free_octets: int = 0

    def numbers(self) -> Numbers:
        """Return the same as the spool's figures."""
        return Numbers(
            messages=self.messages,
            octets=self.octets,
            free_octets=self.free_octets,
            pending={sink: count for sink, count in self.pending.items() if count > 0},
            dead_letters=self.dead_letters,
            damaged=self.damaged,
        )


@dataclass(frozen=True, slots=True)
class Applied:
    """What one group did beside being durable: messages that went, with their octets and files; dead letters if they changed."""

    messages: int
    octets: int
    files: tuple[str, ...]
    dead_letters: dict[str, int] | None


class Database:
    """One SQLite file in exclusive WAL mode."""

    def __init__(self, path: Path, bodies: Path) -> None:
        self.path = path
        self.newest = 0
        self._oldest = 0  # nothing older is owed: spares walking over dead letters again
        self._dead: Counter[str] = Counter()  # dead letters by sink, counted on: there may be many
        self.holes: list[str] = []
        self._bodies = bodies
        self._connection: sqlite3.Connection | None = None
        self._inserts: dict[int, str] = {}
        self._marked = True  # the mark table may hold something

    # --- opening and closing

    def open(self) -> None:
        """Open, check the format, own the file.

        Raises:
            SpoolRefused: somebody else has it open, or a newer postbus wrote it.
            SpoolDamaged: this is no database of ours.
            SpoolFailed, SpoolFull: the disk says no.
        """
        try:
            with database_faults(f"cannot open {self.path}"):
                self._connection = sqlite3.connect(self.path, timeout=0.5, isolation_level=None, check_same_thread=False)
                self._prepare(self._connection)
        except SpoolFault:
            self.close()
            raise

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.executescript(SETUP)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        if version > FORMAT:
            raise SpoolRefused(
                f"{self.path} was written by a newer postbus (spool format {version}, this one knows {FORMAT}): "
                "run that version, or give this one another folder"
            )
        if application not in (0, APPLICATION_ID) or (version and application == 0):
            raise SpoolDamaged(f"{self.path} is a database, but not a spool")
        if version == 0:
            connection.executescript(SCHEMA)
        else:
            connection.executescript("BEGIN IMMEDIATE; DELETE FROM mark WHERE message NOT IN (SELECT seq FROM message); COMMIT;")
        self._oldest, self._dead = 0, self._count_dead(connection, "1")

    def close(self) -> None:
        """Fold the log into the database and let the file go. Harmless when it is not open."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def reopen(self, refused: Sequence[int]) -> None:
        """Open again after an I/O error.

        The log is folded into the database and started anew, so that nothing rests on pages whose fsync failed: they are
        written again, elsewhere. Messages whose senders were told 451 are taken out: they will be sent again.
        """
        self.close()
        self.open()
        with database_faults("cannot fold the log"):
            (busy, _, _) = self._sql.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                raise SpoolFailed("cannot fold the log: it is in use")
        if refused:
            self.apply((), (), refused, recount=True)

    @property
    def _sql(self) -> sqlite3.Connection:
        if self._connection is None:
            raise SpoolFailed("the database is not open")
        return self._connection

    @contextmanager
    def _transaction(self, doing: str) -> Iterator[sqlite3.Connection]:
        connection = self._sql
        with database_faults(doing):
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.commit()  # gives the interpreter lock away once, where execute("COMMIT") does so four times
            except BaseException:
                if connection.in_transaction:
                    with suppress(sqlite3.Error):
                        connection.execute("ROLLBACK")
                raise

    # --- writing

    def apply(self, rows: Sequence[Row], marks: Sequence[Mark], removals: Sequence[int] = (), *, recount: bool = False) -> Applied:
        """Do one group in one transaction. **Its COMMIT is what acceptance means**: when this returns, *rows* are durable.

        Args:
            rows: messages to hold, in order of seq.
            marks: what became of slots; a message all of whose slots are done goes.
            removals: messages to forget whatever their slots say.
            recount: dead letters come or go with this group.
        """
        if rows and len(rows) <= ROWS_PER_STATEMENT and not (marks or removals or recount):
            return self._apply_rows(rows)
        touched = _list({mark.seq for mark in marks}.union(removals)) if recount else "[]"
        with self._transaction("cannot commit") as sql:
            before = self._count_dead(sql, AMONG, touched) if recount else None
            self._insert(sql, rows)
            gone, partial = finished(marks)
            if partial:
                self._marked = True
                sql.executemany(MARK, partial)
                self._oldest = min(self._oldest, *(mark.seq for mark in partial))  # a dead letter may be owed again
                gone += self._completed(sql, {mark.seq for mark in partial if mark.state == State.DONE})
            gone += removals
            messages, octets, files = self._delete(sql, gone) if gone else (0, 0, None)
            after = self._count_dead(sql, AMONG, touched) if recount else None
        if before is not None and after is not None:
            self._dead = self._dead + after - before
        if rows:
            self.newest = max(self.newest, rows[-1].seq)
        return Applied(messages, int(octets or 0), tuple(files.split(",")) if files else (), dict(self._dead) if recount else None)

    def _apply_rows(self, rows: Sequence[Row]) -> Applied:
        """Do a group of mail alone: the one statement is its own transaction, and gives the lock away three times, not nine."""
        sql = self._sql
        if sql.in_transaction:  # a ROLLBACK failed: what goes in now would be durable with its COMMIT only, which nobody will give
            raise SpoolFailed("cannot commit: a transaction was left open")
        with database_faults("cannot commit"):
            self._insert(sql, rows)
        self.newest = max(self.newest, rows[-1].seq)
        return Applied(0, 0, (), None)

    def _insert(self, sql: sqlite3.Connection, rows: Sequence[Row]) -> None:
        start = 0
        while start < len(rows):
            count = min(ROWS_PER_STATEMENT, len(rows) - start)
            statement = self._inserts.get(count)
            if statement is None:
                values = ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?, ?)"] * count)
                statement = self._inserts[count] = f"INSERT INTO message ({ROW}) VALUES {values}"  # noqa: S608 - our own constants
            parameters: list[object] = []
            for row in rows[start : start + count]:
                parameters += row
            sql.execute(statement, parameters)
            start += count

    @staticmethod
    def _completed(sql: sqlite3.Connection, candidates: set[int]) -> list[int]:
        """Return which of *candidates* have all their slots done now."""
        if not candidates:
            return []
        done = f"(SELECT count(*) FROM mark WHERE mark.message = message.seq AND state = {State.DONE})"  # noqa: S608
        query = f"SELECT seq FROM message WHERE seq {IN_LIST} AND slots = {done}"  # noqa: S608
        return [seq for (seq,) in sql.execute(query, (_list(candidates),))]

    def _delete(self, sql: sqlite3.Connection, seqs: Sequence[int]) -> tuple[int, float | None, str | None]:
        which = (_list(seqs),)
        totals: tuple[int, float | None, str | None] = sql.execute(
            f"SELECT count(*), sum(size_octets), group_concat(file) FROM message WHERE seq {IN_LIST}",  # noqa: S608
            which,
        ).fetchone()
        sql.execute(f"DELETE FROM message WHERE seq {IN_LIST}", which)  # noqa: S608
        if self._marked:
            sql.execute(f"DELETE FROM mark WHERE message {IN_LIST}", which)  # noqa: S608
        return totals

    def set_aside(self, seq: int, why: str, at_ms: int) -> None:
        """Keep message *seq* out of every page from now on."""
        with self._transaction("cannot set a message aside") as sql:
            sql.execute("INSERT OR IGNORE INTO damaged VALUES (?, ?, ?)", (seq, why, at_ms))

    def vacuum(self) -> bool:
        """Return some free pages to the file system; return whether there are more."""
        with database_faults("cannot vacuum"):
            self._sql.executescript(f"PRAGMA incremental_vacuum({VACUUM_PAGES})")
            (rest,) = self._sql.execute("PRAGMA freelist_count").fetchone()
        return bool(rest)

    # --- reading

    def tally(self) -> Tally:
        """Read what is held, once, at start."""
        tally = Tally()
        with database_faults("cannot read the spool"):
            damaged = {seq for (seq,) in self._sql.execute("SELECT seq FROM damaged").fetchall()}
            for seq, size_octets, deliveries, file in self._walk("seq, size_octets, deliveries, file", 0, "1"):
                tally.messages += 1
                tally.octets += size_octets if isinstance(size_octets, int) else 0
                tally.newest = seq
                if isinstance(file, str):
                    tally.files.add(file)
                elif file is not None:  # so that no body is swept for want of its name
                    self._hole(f"the name of the body's file of message {seq} is damaged")
                if seq in damaged:  # held, but owed to nobody
                    continue
                with suppress(ValueError):  # found and told when the row is loaded
                    tally.pending.update(slot.sink for slot in slots_in(deliveries))
            sound = "message NOT IN (SELECT seq FROM damaged)"
            decided = f"SELECT sink, count(*) FROM mark WHERE state != {State.RETRY} AND {sound} GROUP BY sink"  # noqa: S608
            tally.pending.subtract(dict(self._sql.execute(decided).fetchall()))
            tally.dead_letters = dict(self._dead)
            tally.damaged = len(damaged)
            self._marked = self._sql.execute("SELECT 1 FROM mark LIMIT 1").fetchone() is not None
        self.newest = tally.newest
        return tally

    def fresh(self, sink: str, after: int, limit: int, max_octets: int, now_ms: int) -> Page:
        """Return undecided deliveries to *sink* of messages after seq *after*, in order; at least one message if there is any.

        Damaged messages on the way are set aside and told of in ``holes``.
        """
        deliveries: list[Delivery] = []
        octets, upto, complete = 0, self.newest, True
        damage: list[tuple[int, str]] = []
        with database_faults("cannot read the backlog"):
            for row in self._walk(ROW, after, f"{SOUND} AND instr(deliveries, ?) AND {UNDECIDED}", f'"{sink}"'):
                held = self._held(row, damage)
                if held is not None:
                    decided = {number for (number,) in self._sql.execute("SELECT number FROM mark WHERE message = ?", (held.seq,))}
                    deliveries += [
                        Delivery(held, number) for number, slot in enumerate(held.slots) if slot.sink == sink and number not in decided
                    ]
                    octets += held.size_octets if held.octets is not None else 0
                if len(deliveries) >= limit or octets >= max_octets:
                    upto, complete = row[0], False
                    break
        self._tell(damage, now_ms)
        return Page(tuple(deliveries), max(upto, after), complete, len(damage))

    def hasten(self, due_ms: int) -> None:
        """Let every retry be due at *due_ms* at the latest."""
        with self._transaction("cannot read the retries") as sql:
            sql.execute(f"UPDATE mark SET due_ms = ? WHERE state = {State.RETRY} AND due_ms > ?", (due_ms, due_ms))  # noqa: S608

    def due(self, sink: str, limit: int, max_octets: int, by_ms: int, now_ms: int) -> Page:
        """Return retries to *sink* that are due by *by_ms*, the longest due first. *now_ms*: for damage met on the way."""
        deliveries: list[Delivery] = []
        octets = 0
        damage: list[tuple[int, str]] = []
        held_by_seq: dict[int, Held | None] = {}
        query = (
            "SELECT message, number, attempt, due_ms, at_ms FROM mark "  # noqa: S608
            f"WHERE state = {State.RETRY} AND sink = ? AND message NOT IN (SELECT seq FROM damaged) "
            "ORDER BY due_ms, message, number LIMIT ?"
        )
        next_due_ms: int | None = None
        with database_faults("cannot read the retries"):
            for seq, *rest in self._sql.execute(query, (sink, limit + 1)).fetchall():
                if not isinstance(seq, int):
                    self._hole(f"a retry to {sink} is of no message")
                    continue
                if not all(isinstance(value, int) for value in rest):
                    damage.append((seq, "the record of a retry is damaged"))
                    continue
                number, attempt, due_ms, at_ms = rest
                if due_ms > by_ms or len(deliveries) >= limit or octets >= max_octets:
                    next_due_ms = due_ms
                    break
                if seq not in held_by_seq:
                    row = self._sql.execute(f"SELECT {ROW} FROM message WHERE seq = ?", (seq,)).fetchone()  # noqa: S608
                    held_by_seq[seq] = held = self._held(row, damage) if row else None
                    octets += held.size_octets if held is not None and held.octets is not None else 0
                found = held_by_seq[seq]
                if found is not None and not 0 <= number < len(found.slots):
                    damage.append((seq, "the record of a retry is damaged"))
                elif found is not None:
                    deliveries.append(Delivery(found, number, attempt, at_ms))
        self._tell(damage, now_ms)
        return Page(tuple(deliveries), 0, next_due_ms is None, len(damage), next_due_ms)

    def oldest_ms(self) -> int | None:
        """Return when the oldest message was accepted that is neither dead nor damaged."""
        alive = f"NOT EXISTS (SELECT 1 FROM mark WHERE message = seq AND state = {State.DEAD})"  # noqa: S608
        with database_faults("cannot read the oldest message"):
            query = f"SELECT seq, received_ms FROM message WHERE seq >= ? AND {alive} AND {SOUND} ORDER BY seq LIMIT 1"  # noqa: S608
            found = self._sql.execute(query, (self._oldest,)).fetchone()
        self._oldest = self.newest + 1 if found is None else found[0]
        return None if found is None or not isinstance(found[1], int) else found[1]

    # --- dead letters

    def dead_letters(self, limit: int, after: Place) -> list[DeadLetter]:
        """Return at most *limit* dead letters, the oldest first, beginning behind the place *after*."""
        where = "(at_ms, message, number) > (?, ?, ?) ORDER BY at_ms, message, number LIMIT ?"
        return self._letters(where, (*after, limit))

    def dead_mark(self, event_id: str, sink: str) -> Mark | None:
        """Return the mark of one dead letter, ``None`` if there is none of that name."""
        where = f"state = {State.DEAD} AND sink = ? AND event_id = ?"
        with database_faults("cannot read a dead letter"):
            found = self._sql.execute(f"SELECT * FROM mark WHERE {where}", (sink, event_id)).fetchone()  # noqa: S608
        return None if found is None else mark_in(found)

    def dead_letter(self, event_id: str, sink: str) -> tuple[DeadLetter, Delivery] | None:
        """Return one dead letter with its message, ``None`` if there is none of that name.

        Raises:
            SpoolDamaged: the message is not what was written.
        """
        mark = self.dead_mark(event_id, sink)
        if mark is None:
            return None
        with database_faults("cannot read a dead letter"):
            row = self._sql.execute(f"SELECT {ROW} FROM message WHERE seq = ?", (mark.seq,)).fetchone()  # noqa: S608
        damage: list[tuple[int, str]] = []
        held = self._held(row, damage) if row else None
        if held is None or not 0 <= mark.number < len(held.slots):
            raise SpoolDamaged(damage[0][1] if damage else "the record of a dead letter is damaged")
        return letter_of(mark, held), Delivery(held, mark.number, mark.attempt)

    def expired(self, before_ms: int, limit: int) -> list[Mark]:
        """Return at most *limit* dead letters that were given up before *before_ms*, the oldest first."""
        where = f"state = {State.DEAD} AND at_ms < ? ORDER BY at_ms, message, number LIMIT ?"
        with database_faults("cannot read old dead letters"):
            found = self._sql.execute(f"SELECT * FROM mark WHERE {where}", (before_ms, limit)).fetchall()  # noqa: S608
        return [mark for mark in map(mark_in, found) if mark is not None]

    def _letters(self, where: str, parameters: tuple[object, ...]) -> list[DeadLetter]:
        letters = []
        damage: list[tuple[int, str]] = []
        with database_faults("cannot list dead letters"):
            query = f"SELECT * FROM mark WHERE state = {State.DEAD} AND {where}"  # noqa: S608
            for mark in map(mark_in, self._sql.execute(query, parameters).fetchall()):
                if mark is None:  # it has no name that anybody could ask for
                    self._hole("the record of a dead letter is damaged; its message is kept")
                    continue
                columns = "seq, received_ms, size_octets, slots, deliveries, file, checksum, mail, NULL"
                row = self._sql.execute(f"SELECT {columns} FROM message WHERE seq = ?", (mark.seq,)).fetchone()  # noqa: S608
                held = self._held(row, damage, body=False) if row else None
                letters.append(letter_of(mark, held))
        return letters

    @staticmethod
    def _count_dead(sql: sqlite3.Connection, where: str, *parameters: object) -> Counter[str]:
        query = f"SELECT sink, count(*) FROM mark WHERE state = {State.DEAD} AND {where} GROUP BY sink"  # noqa: S608
        return Counter(dict(sql.execute(query, parameters).fetchall()))

    # --- rows and damage

    def _held(self, row: Sequence[Any], damage: list[tuple[int, str]], *, body: bool = True) -> Held | None:
        """Return the message in *row*, as it was read; if it is not what was written, add (seq, why) to *damage*.

        Damage can give every value any type, but for seq: the table's key is always a number.
        """
        seq, _, size_octets, _, deliveries, file, checksum, record, octets = row
        why = None
        if not isinstance(record, bytes) or crc32(record) != checksum:
            why = "the record of the mail is damaged"
        elif not isinstance(size_octets, int) or not isinstance(file, str | None):
            why = "the row is damaged"
        elif body and not (octets is None if file else isinstance(octets, bytes) and len(octets) == size_octets):
            why = "the body is damaged"
        if why is None:
            try:
                mail = mail_from_bytes(record)
                slots = slots_in(deliveries, len(mail.recipients))
            except (ValueError, TypeError, KeyError) as error:
                damage.append((seq, f"the record of the mail cannot be read: {error}"))
                return None
            if octets is None or sha256(octets).hexdigest() == mail.sha256:
                path = self._bodies / file if file else None
                return Held(seq, mail, slots, size_octets=size_octets, octets=octets, path=path)
            why = "the body is damaged"
        damage.append((seq, why))
        return None

    def _tell(self, damage: list[tuple[int, str]], now_ms: int) -> None:
        for seq, why in damage:
            self.set_aside(seq, why, now_ms)
            self.holes.append(why)

    def _hole(self, hole: str) -> None:
        """Add *hole* to what is told, once, however often it is met."""
        if hole not in self.holes:
            self.holes.append(hole)

    def _walk(self, columns: str, after: int, where: str, *parameters: object) -> Iterator[Any]:
        """Yield rows of the message table in order; step over stretches that cannot be read, and tell of them in ``holes``."""
        query = f"SELECT {columns} FROM message WHERE seq > ? AND {where} ORDER BY seq"  # noqa: S608
        while True:
            cursor = self._sql.execute(query, (after, *parameters))
            try:
                for row in cursor:
                    after = row[0]
                    yield row
                return
            except sqlite3.DatabaseError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_CORRUPT:
                    raise
                start = self._behind(after)
                self._hole(f"messages after {after} up to {start} cannot be read")
                if start is None:
                    return
                after = start
            finally:
                cursor.close()

    def _behind(self, after: int) -> int | None:
        """Return the least seq from which reading works again behind a damaged stretch, ``None`` if nothing does."""

        def readable(seq: int) -> bool:
            try:
                return self._sql.execute("SELECT seq FROM message WHERE seq > ? ORDER BY seq LIMIT 1", (seq,)).fetchone() is not None
            except sqlite3.DatabaseError:
                return False

        step = 1
        while not readable(after + step):
            step *= 2
            if step > 1 << 62:
                return None
        low, high = after + step // 2, after + step
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if readable(middle) else (middle, high)
        return high


def _list(seqs: Sequence[int] | set[int]) -> str:
    return orjson.dumps(list(seqs)).decode()
