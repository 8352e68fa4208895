"""Plays the table against a target, several rows at a time, and gives results in the table's order."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from postbus.selftest.fitting import Known, about_plain, fitted, unfit
from postbus.selftest.played import Played
from postbus.selftest.player import play
from postbus.selftest.target import Target, trouble
from postbus.selftest.vectors import Row, rows
from postbus.selftest.verdict import Verdict, Word, judge

ROW_MAX_S = 60.0
"""A row that takes longer has failed, whatever is going on: servers that delay each error by a second reach 20 s."""

PARALLEL = 4
"""Rows at a time: far below what servers allow one client (Postfix 50), and enough not to wait for one that delays."""


@dataclass(frozen=True)
class Result:
    """What came of one row; ``played`` is ``None`` if it was skipped, or no connection was made."""

    row: Row
    verdict: Verdict
    played: Played | None = None
    seconds: float = 0.0


def chosen(pattern: str = "*") -> tuple[Row, ...]:
    """Return the rows whose id, or section, is like *pattern* (a shell's)."""
    return tuple(row for row in rows() if fnmatchcase(row.id, pattern) or fnmatchcase(row.section, pattern))


async def results(target: Target, known: Known, table: Iterable[Row], *, parallel: int = PARALLEL) -> AsyncIterator[Result]:
    """Play each row of *table* and give its result, in order."""
    gate = asyncio.Semaphore(parallel)

    async def one(row: Row) -> Result:
        async with gate:
            return await result(target, known, row)

    tasks = [asyncio.create_task(one(row)) for row in table]
    try:
        for task in tasks:
            yield await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def result(target: Target, known: Known, row: Row) -> Result:
    """Play one row of the table as the server is to be asked, and judge it."""
    why = unfit(row, known, target.names)
    if why:
        return Result(row, Verdict("skipped", why))
    asked = fitted(row, known, target.names)
    connect = target.inside if known.starttls and not about_plain(row) else target.plain
    begun = time.monotonic()
    try:
        async with asyncio.timeout(ROW_MAX_S):
            played = await play(asked, connect, context=target.context, name=target.certificate_name, patience=target.patience)
    except TimeoutError:
        return Result(row, Verdict("FAIL", f"not done within {ROW_MAX_S:g} s"), seconds=time.monotonic() - begun)
    except OSError as error:
        return Result(row, Verdict("FAIL", f"no connection: {trouble(error)}"), seconds=time.monotonic() - begun)
    return Result(row, judge(asked, played), played, time.monotonic() - begun)


def counts(found: Iterable[Result]) -> Mapping[Word, int]:
    """Return how many results there are of each word."""
    tally = Counter(one.verdict.word for one in found)
    return {word: tally[word] for word in ("pass", "safe", "lenient", "FAIL", "skipped")}


def passed(found: Iterable[Result]) -> bool:
    """Return whether nothing failed, and something was judged at all."""
    tally = counts(found)
    return tally["FAIL"] == 0 and sum(tally.values()) > tally["skipped"]


def report(target: Target, known: Known, found: Iterable[Result]) -> dict[str, Any]:
    """Return everything as JSON; octets as strings, one character (U+0000 to U+00FF) an octet, as in the table."""
    found = list(found)
    return {
        "target": str(target.address),
        "protocol": target.protocol,
        "encryption": target.encryption,
        "keywords": dict(known.keywords),
        "passed": passed(found),
        "counts": dict(counts(found)),
        "rows": [_row(one) for one in found],
    }


def _row(one: Result) -> dict[str, Any]:
    row: dict[str, Any] = {"id": one.row.id, "title": one.row.title, "section": one.row.section, "source": one.row.source}
    row |= {"verdict": one.verdict.word, "why": one.verdict.why, "seconds": round(one.seconds, 3)}
    if one.played is not None:
        row["end"] = one.played.end
        row["exchanges"] = [
            {
                "part": exchange.part,
                "sent": None if exchange.sent is None else exchange.sent.decode("latin-1"),
                "expected": exchange.expected,
                "got": exchange.got,
            }
            for exchange in one.played.exchanges
        ]
    return row
