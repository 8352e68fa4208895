"""What was measured, against whom, and whether it is enough: plain values, judged by plain functions."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Series:
    """One quantity, measured in several rounds. Its value is the median; *unit* as people read it (``us``, ``/s``, ``MiB``)."""

    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return statistics.median(self.values)

    def json(self) -> dict[str, Any]:
        """Return it for the report."""
        values = [round(value, 4) for value in self.values]
        return {"unit": self.unit, "median": round(self.median, 4), "min": min(values), "max": max(values), "values": values}


@dataclass(frozen=True, slots=True)
class Bar:
    """What is asked for. *least*: more is better (a rate); else less is (CPU, memory). *aim* is ``None`` where only a must is stated."""

    must: float
    aim: float | None = None
    least: bool = False

    def verdict(self, value: float) -> str:
        """Return ``aim``, ``must`` or ``missed``: what *value* reaches."""
        if self.aim is not None and self._reached(value, self.aim):
            return "aim"
        return "must" if self._reached(value, self.must) else "missed"

    def _reached(self, value: float, goal: float) -> bool:
        return value >= goal if self.least else value <= goal


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    Attributes:
        row: what was done, in the words of the table.
        peer: who did the same beside us; ``""`` where the bar is absolute.
        measured, beside: ours and the peer's, a value a round, the two of a round taken right after one another.
        note: what a reader must know to read the figure.
    """

    row: str
    measured: Series
    bar: Bar
    peer: str = ""
    beside: Series | None = None
    note: str = ""

    @property
    def judged(self) -> Series:
        """What the bar is held against: the ratio of each round, or the measured value itself."""
        if self.beside is None:
            return self.measured
        return Series("x", tuple(ours / theirs for ours, theirs in zip(self.measured.values, self.beside.values, strict=True)))

    @property
    def verdict(self) -> str:
        """What the median reaches."""
        return self.bar.verdict(self.judged.median)

    def json(self) -> dict[str, Any]:
        """Return it for the report."""
        return {
            "row": self.row,
            "measured": self.measured.json(),
            "peer": {"name": self.peer, **self.beside.json()} if self.beside else None,
            "ratio": self.judged.json() if self.beside else None,
            "must": self.bar.must,
            "aim": self.bar.aim,
            "better": "more" if self.bar.least else "less",
            "verdict": self.verdict,
            "note": self.note,
        }


HEAD = ("row", "measured", "peer", "ratio", "must", "aim", "verdict")


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as aligned lines of plain text."""
    rows = [HEAD, *(_cells(figure) for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _cells(figure: Figure) -> tuple[str, ...]:
    sign, unit = (">=" if figure.bar.least else "<="), figure.judged.unit
    beside = f"{figure.peer} {_spread(figure.beside)}" if figure.beside else "-"
    ratio = _spread(figure.judged) if figure.beside else "-"
    aim = "-" if figure.bar.aim is None else f"{sign} {figure.bar.aim:g} {unit}"
    return figure.row, _spread(figure.measured), beside, ratio, f"{sign} {figure.bar.must:g} {unit}", aim, figure.verdict


def _spread(series: Series) -> str:
    """Return the median with the least and the greatest value, in digits that mean something."""
    digits = 2 if series.unit == "x" else 1 if series.median < 100 else 0
    low, middle, high = (f"{value:.{digits}f}" for value in (min(series.values), series.median, max(series.values)))
    return f"{middle} {series.unit} ({low}-{high})" if len(series.values) > 1 else f"{middle} {series.unit}"
