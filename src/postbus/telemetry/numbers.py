"""Plain numbers that facts bump and that are read when somebody scrapes.

An OpenTelemetry counter costs 15 us a call; a dict of ints 0.2. So facts bump dicts, and observable instruments read them at
collection (``exposition``). Cells are written by the loop's thread; another thread may write too as long as no two threads bump the
same cell. Readers copy first, which is atomic.

This module holds the process's one set of numbers: metrics belong to the process, as the registry of every client library does.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping

from postbus.telemetry.metrics import METRICS, Metric

SERIES_MAX = 1_000
"""Label sets per metric; labels are ours and bounded, so this catches our own mistakes before they eat the memory."""
OVERFLOW = "other"

Labels = tuple[str, ...]
Reading = Mapping[Labels, float]


class Cell:
    """One histogram series: bucket counts, the last one past every bound, and the sum."""

    __slots__ = ("counts", "total")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * buckets
        self.total = 0.0


class Numbers:
    """The cells of every metric in *table*.

    Asking for a metric that is not in the table raises ``KeyError``: a mistake of ours, which the test that calls every fact finds.
    """

    def __init__(self, table: Iterable[Metric] = METRICS) -> None:
        self.table: dict[str, Metric] = {metric.name: metric for metric in table}
        self.values: dict[str, dict[Labels, float]] = {}
        self.cells: dict[str, dict[Labels, Cell]] = {}
        self._bounds: dict[str, tuple[float, ...]] = {}
        self._watched: dict[str, list[Callable[[], Reading]]] = {}
        self.clear()

    def clear(self) -> None:
        """Start again from nothing (tests). Counters without labels start at 0, so that a rate exists from the first scrape."""
        for metric in self.table.values():
            if metric.kind == "histogram":
                self.cells[metric.name] = {}
                self._bounds[metric.name] = metric.bounds
            else:
                self.values[metric.name] = {(): 0} if metric.kind == "counter" and not metric.labels else {}
        self._watched.clear()

    def count(self, name: str, *labels: str, by: float = 1) -> None:
        """Add *by* to the counter *name*; *labels* in the table's order."""
        cells = self.values[name]
        try:
            cells[labels] += by
        except KeyError:
            labels = self._admit(name, labels, cells)
            cells[labels] = cells.get(labels, 0) + by

    def observe(self, name: str, value: float, *labels: str) -> None:
        """Put *value* into the histogram *name*. A bucket holds values up to and including its bound, as Prometheus's ``le`` says."""
        cells = self.cells[name]
        bounds = self._bounds[name]
        cell = cells.get(labels)
        if cell is None:
            labels = self._admit(name, labels, cells)
            cell = cells.setdefault(labels, Cell(len(bounds) + 1))
        cell.counts[bisect_left(bounds, value)] += 1
        cell.total += value

    def put(self, name: str, value: float, *labels: str) -> None:
        """Set the gauge *name* to *value*."""
        cells = self.values[name]
        if labels not in cells:
            labels = self._admit(name, labels, cells)
        cells[labels] = value

    def watch(self, name: str, read: Callable[[], Reading]) -> Callable[[], None]:
        """Ask *read* at each scrape for the values of the gauge or counter *name*, by label values; return a function that ends it.

        For numbers that somebody keeps anyway (open sessions, spool depth). *read* must be cheap, and do no I/O.
        """
        if self.table[name].kind == "histogram":
            raise ValueError(f"{name} is a histogram")
        readers = self._watched.setdefault(name, [])
        readers.append(read)

        def stop() -> None:
            if read in readers:
                readers.remove(read)

        return stop

    def reading(self, name: str) -> dict[Labels, float]:
        """Return a copy of the values of a counter or gauge, watched ones included."""
        values = self.values[name].copy()
        for read in tuple(self._watched.get(name, ())):
            values.update(read())
        return values

    def histogram(self, name: str) -> list[tuple[Labels, list[int], float]]:
        """Return (labels, bucket counts, sum) of every series of a histogram."""
        return [(labels, cell.counts.copy(), cell.total) for labels, cell in self.cells[name].copy().items()]

    def _admit(self, name: str, labels: Labels, cells: Mapping[Labels, object]) -> Labels:
        names = self.table[name].labels
        if len(labels) != len(names):
            raise ValueError(f"{name} has the labels {names}, not {labels!r}")
        return labels if len(cells) < SERIES_MAX else (OVERFLOW,) * len(names)


NUMBERS = Numbers()
"""The process's numbers."""
