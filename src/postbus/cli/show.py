"""How the commands write: tables and colour on a terminal, plain lines that programs can cut where the output is piped.

NO_COLOR is honoured, as are TERM=dumb and FORCE_COLOR; nothing a peer said reaches a terminal as an escape sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

OUT = Console(highlight=False, soft_wrap=True, markup=False)
ERR = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)

ID_CHARACTERS = 36
"""Cells as long as an event's id, which people copy, are not broken over lines."""

BIG_OCTETS, BIG_COUNT = 2 * 1024 * 1024, 500
"""Work below this is done before a bar could be read."""

STYLES: Mapping[str, str] = {
    "accepted": "green",
    "delivered": "green",
    "ok": "green",
    "try later": "yellow",
    "waiting": "yellow",
    "trying again": "yellow",
    "degraded": "yellow",
    "refused": "red",
    "dead letter": "red",
    "given up": "red",
    "damaged": "red",
    "failed": "red",
    "pass": "green",
    "safe": "green",
    "lenient": "yellow",
    "FAIL": "bold red",
    "skipped": "dim",
}
"""Words of an outcome, and the colour of what begins with them."""


def printable(text: object) -> str:
    """Return *text* on one line, without anything a terminal would act on."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def line(text: str, style: str = "") -> None:
    """Write one line to standard output."""
    OUT.print(Text(printable(text), style=style))


def complain(what: str, remedy: str) -> None:
    """Say on standard error what went wrong and what to do."""
    said = Text("postbus: ", style="red")
    said.append(printable(f"{what}; {remedy}" if remedy else what), style="default")
    ERR.print(said)


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write *rows* in aligned columns under *heads*; long cells are folded on a terminal, and whole where the output is piped."""
    cells = [[printable(cell) for cell in row] for row in rows]
    if not OUT.is_terminal:
        widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
        for row in [list(heads), *cells]:
            OUT.print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for head, *column in zip(heads, *cells, strict=True):
        shown.add_column(head, no_wrap=max(map(len, column), default=0) <= ID_CHARACTERS, overflow="fold")
    for row in cells:
        shown.add_row(*(Text(cell, style=_style(cell), overflow="fold") for cell in row))
    OUT.print(shown)


def _style(cell: str) -> str:
    return next((style for word, style in STYLES.items() if cell == word or cell.startswith(f"{word} ")), "")


@contextmanager
def progress(what: str, total: int, *, octets: bool = False, least: int | None = None) -> Iterator[Callable[[int], None]]:
    """Give a function to tell how far the work is, of *total* steps or octets: a bar on standard error if somebody looks at it.

    *least* is the total from which on a bar is shown, for work whose steps are slow.
    """
    if not ERR.is_terminal or total < (least or (BIG_OCTETS if octets else BIG_COUNT)):
        yield lambda _: None
        return
    count = DownloadColumn() if octets else MofNCompleteColumn()
    with Progress(TextColumn(what), BarColumn(), count, console=ERR, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def instant(ms: int | None) -> str:
    """Return a time in milliseconds since the Unix epoch as people read it, in UTC."""
    return "-" if ms is None else datetime.fromtimestamp(ms / 1000, UTC).isoformat(sep=" ", timespec="seconds").removesuffix("+00:00")


def size(octets: float) -> str:
    """Return a number of octets with a unit."""
    for unit in ("octets", "KiB", "MiB", "GiB"):
        if octets < 1024:
            return f"{octets:.0f} {unit}" if unit == "octets" or octets >= 10 else f"{octets:.1f} {unit}"
        octets /= 1024
    return f"{octets:.1f} TiB"


def status(found: Mapping[str, Any]) -> None:
    """Write what /statusz says: the process, then a table for each of listeners, routes and sinks."""
    file, problems = found["configuration"]["file"], found["configuration"]["problems"]
    line(f"postbus {found['version']}: {found['state']}, up {_span(found['uptime_s'])}, configuration {file}")
    for problem in problems:
        line(f"the last reload was refused: {problem}", "red")
    listeners = found["listeners"].items()
    OUT.print()
    table(
        ("listener", "protocol", "addresses", "sessions"),
        [(name, row["protocol"], " ".join(row["addresses"]) or "not bound", row["sessions"]) for name, row in listeners],
    )
    OUT.print()
    routes = found["routes"].items()
    table(
        ("route", "recipients", "acceptance", "mode", "sinks"),
        [(name, row["match"], row["acceptance"], row["mode"], row["sinks"]) for name, row in routes],
    )
    OUT.print()
    table(("sink", "state", "owed", "events go to", "says"), [_sink(name, row) for name, row in found["sinks"].items()])
    OUT.print()
    spool = found["spool"]
    if spool is None:
        line("no spool: every route holds")
        return
    word = "accepting" if spool["accepting"] else f"not accepting: {spool['reason']}"
    held = f"{spool['messages']} messages, {size(spool['octets'])}, {size(spool['free_octets'])} free"
    line(f"spool: {word}; {held}; oldest undelivered {instant(spool['oldest_ms'])}", "" if spool["accepting"] else "red")
    if spool["dead_letters"]:
        line(f"{spool['dead_letters']} dead letters: see `postbus dead-letters list`", "yellow")
    if spool["damaged"]:
        line(f"{spool['damaged']} damaged messages set aside: the log says which", "red")


def _sink(name: str, row: Mapping[str, Any]) -> tuple[object, ...]:
    paused = row.get("paused", False)
    return name, "paused" if paused else "ok" if row["ok"] else "degraded", row.get("owed", "-"), row.get("place", ""), row["detail"]


def _span(seconds: int) -> str:
    """Return a time span in its two largest units."""
    days, rest = divmod(seconds, 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, rest = divmod(rest, 60)
    parts = [f"{count} {unit}" for count, unit in ((days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")) if count]
    return " ".join(parts[:2]) or "0 s"
