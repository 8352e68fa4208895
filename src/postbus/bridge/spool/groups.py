"""What waits for the writer: commits, marks, removals, and those who wait for marks to be durable; how a group is written."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from postbus.bridge.spool.database import Applied, Database
from postbus.bridge.spool.faults import SpoolFault
from postbus.bridge.spool.folder import Folder
from postbus.bridge.spool.records import Held, Mark, Slot
from postbus.bridge.spool.tables import Row, storable
from postbus.event.mail import Mail

GROUP_MAX_MESSAGES = 256
GROUP_MAX_OCTETS = 8_388_608
GROUP_MAX_MARKS = 2_048
RIDE_MARKS = 256
"""Marks ride with mail when so many wait, or when they have waited long: a group of mail alone is one statement, and messages that go
together leave whole pages behind. Until then a crash sends their events once more."""


@dataclass(slots=True)
class Commit:
    """A message that waits for its group."""

    row: Row
    mail: Mail
    slots: tuple[Slot, ...]
    future: asyncio.Future[Held]
    marks: tuple[Mark, ...] = ()


@dataclass(slots=True)
class Group:
    """What goes into one transaction."""

    commits: list[Commit] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    removals: list[int] = field(default_factory=list)
    recount: bool = False
    octets: int = 0


class Written(NamedTuple):
    """What came of a group. *free_octets*: ``None`` when nobody looked, or it could not be read."""

    applied: Applied
    free_octets: int | None
    seconds: float


def write(group: Group, database: Database, folder: Folder, *, look: bool) -> Written:
    """Put *group* into one transaction, and *look* at the free space. Blocks; runs on the writer's thread.

    Raises:
        SpoolFault: nothing of it is durable, as far as anybody knows.
    """
    start = time.perf_counter()
    rows = [commit.row for commit in group.commits]
    marks = [*group.marks, *(mark for commit in group.commits for mark in commit.marks)]
    applied = database.apply(rows, marks, group.removals, recount=group.recount)
    free_octets: int | None = None
    if look:
        with suppress(SpoolFault):  # the group is durable, whatever statvfs says
            free_octets = folder.free_octets()
    return Written(applied, free_octets, time.perf_counter() - start)


class Line:
    """Everything that waits, in order; ``take`` makes a group of what comes first.

    Args:
        forget: called with a commit whose caller has gone before its turn.
    """

    def __init__(self, forget: Callable[[Commit], None]) -> None:
        self.commits: deque[Commit] = deque()
        self.marks: deque[Mark] = deque()
        self.removals: list[int] = []
        self.recount = False
        self.overdue = False
        """The marks have waited long enough."""
        self._forget = forget
        self._posted = 0
        self._durable = 0
        self._flushes: deque[tuple[int, asyncio.Future[None]]] = deque()

    def __bool__(self) -> bool:
        return bool(self.commits or self.marks or self.removals)

    @property
    def urgent(self) -> bool:
        """Somebody waits for an answer, or the marks have waited long enough, or alone fill a group."""
        return bool(self.commits or self.removals or self._flushes) or self.overdue or len(self.marks) >= GROUP_MAX_MARKS

    @property
    def _ripe(self) -> bool:
        """The marks go with the next group, though it holds mail."""
        return self.overdue or bool(self._flushes) or len(self.marks) >= RIDE_MARKS

    @property
    def durable(self) -> bool:
        """Every mark posted so far is durable."""
        return self._durable == self._posted

    def post(self, mark: Mark) -> None:
        """Let *mark* wait."""
        self.marks.append(mark)
        self._posted += 1

    def flush(self) -> asyncio.Future[None]:
        """Return a future that is done once every mark posted so far is durable."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flushes.append((self._posted, future))
        return future

    def take(self) -> Group:
        """Return the next group, within bounds."""
        group = Group(removals=self.removals, recount=self.recount)
        self.removals, self.recount = [], False
        queue, marks, commits = self.commits, self.marks, group.commits
        while queue and len(commits) < GROUP_MAX_MESSAGES and group.octets < GROUP_MAX_OCTETS:
            commit = queue.popleft()
            if commit.future.cancelled():
                self._forget(commit)
                continue
            commits.append(commit)
            group.octets += len(commit.row.body or b"")
        if commits and not (group.recount or group.removals or self._ripe):
            return group
        self.overdue = False
        if len(marks) <= GROUP_MAX_MARKS:
            group.marks.extend(marks)
            marks.clear()
        else:
            group.marks.extend(marks.popleft() for _ in range(GROUP_MAX_MARKS))
        return group

    def put_back(self, group: Group) -> None:
        """Let a group that failed wait again, before all others."""
        self.commits.extendleft(reversed(group.commits))
        self.marks.extendleft(reversed(group.marks))
        self.removals = group.removals + self.removals
        self.recount |= group.recount

    def done(self, group: Group) -> None:
        """The marks of *group* are durable: tell who waited for them."""
        self._durable += len(group.marks)
        while self._flushes and self._flushes[0][0] <= self._durable:
            _, future = self._flushes.popleft()
            if not future.done():
                future.set_result(None)

    def sift(self, fault: SpoolFault) -> int:
        """Take out what no row can hold, so that it does not keep the others from disk; return how much it was.

        A mark that is taken out is lost: its delivery is owed again after a restart.
        """
        marks, self.marks = self.marks, deque(filter(storable, self.marks))
        lost = len(marks) - len(self.marks)
        self._durable += lost
        spoilt = [commit for commit in self.commits if not all(map(storable, (commit.row, *commit.marks)))]
        self.commits = deque(commit for commit in self.commits if commit not in spoilt)
        self._refuse(spoilt, fault)
        return lost + len(spoilt)

    def refuse_commits(self, fault: SpoolFault) -> None:
        """Tell all who wait with their mail that it was not taken."""
        queue, self.commits = self.commits, deque()
        self._refuse(queue, fault)

    def _refuse(self, commits: Iterable[Commit], fault: SpoolFault) -> None:
        for commit in commits:
            self._forget(commit)
            if not commit.future.done():
                commit.future.set_exception(type(fault)(str(fault)))

    def refuse_flushes(self, fault: SpoolFault) -> None:
        """Tell all who wait for marks that these are not durable."""
        while self._flushes:
            _, future = self._flushes.popleft()
            if not future.done():
                future.set_exception(fault)
