"""The cells that facts bump, and the table that names them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from postbus.telemetry.metrics import METRICS, Metric, as_markdown
from postbus.telemetry.numbers import OVERFLOW, SERIES_MAX, Numbers

TABLE = (
    Metric("postbus_things_total", "counter", "Things.", ("kind",)),
    Metric("postbus_plain_total", "counter", "Plain things."),
    Metric("postbus_level", "gauge", "Level.", ("tank",)),
    Metric("postbus_thing_seconds", "histogram", "Time.", ("kind",), (0.1, 1.0)),
)


@pytest.mark.parametrize("metric", METRICS, ids=[metric.name for metric in METRICS])
def test_every_row_keeps_the_naming(metric: Metric) -> None:
    """Names say postbus, noun and unit; counters alone end in _total; help is one sentence; bounds ascend."""
    assert re.fullmatch(r"postbus(_[a-z]+)+", metric.name)
    assert (metric.kind == "counter") == metric.name.endswith("_total")
    assert re.fullmatch(r"[A-Z0-9].*\.", metric.help)
    assert (metric.kind == "histogram") == bool(metric.bounds)
    assert sorted(set(metric.bounds)) == list(metric.bounds)
    assert "le" not in metric.labels


def test_names_are_unique() -> None:
    """No two rows share a name, nor the name a counter is known by without its ending."""
    names = [metric.name.removesuffix("_total") for metric in METRICS]
    assert len(set(names)) == len(names)


def test_counting() -> None:
    """Counters add by label set; one without labels exists from the start."""
    numbers = Numbers(TABLE)
    numbers.count("postbus_things_total", "a")
    numbers.count("postbus_things_total", "a", by=2)
    numbers.count("postbus_things_total", "b")
    assert {("a",): 3, ("b",): 1} == numbers.reading("postbus_things_total")
    assert {(): 0} == numbers.reading("postbus_plain_total")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        pytest.param(0.0, [1, 0, 0], id="least"),
        pytest.param(0.1, [1, 0, 0], id="a bound belongs to its bucket"),
        pytest.param(0.11, [0, 1, 0], id="between"),
        pytest.param(5.0, [0, 0, 1], id="past every bound"),
    ],
)
def test_buckets(value: float, expected: list[int]) -> None:
    """A value falls into the first bucket whose bound it does not exceed."""
    numbers = Numbers(TABLE)
    numbers.observe("postbus_thing_seconds", value, "a")
    assert [(("a",), expected, value)] == numbers.histogram("postbus_thing_seconds")


def test_gauges_are_put_or_watched() -> None:
    """A watched gauge is asked at each reading, until it is let go."""
    numbers = Numbers(TABLE)
    numbers.put("postbus_level", 1.5, "north")
    level: dict[tuple[str, ...], float] = {("south",): 2.0}
    stop = numbers.watch("postbus_level", lambda: level)
    assert {("north",): 1.5, ("south",): 2.0} == numbers.reading("postbus_level")
    level["south",] = 3.0
    assert 3.0 == numbers.reading("postbus_level")["south",]
    stop()
    stop()
    assert {("north",): 1.5} == numbers.reading("postbus_level")
    with pytest.raises(ValueError, match="histogram"):
        numbers.watch("postbus_thing_seconds", dict)


def test_mistakes_of_ours_are_found_at_once() -> None:
    """A name that is not in the table, and labels that do not fit, raise."""
    numbers = Numbers(TABLE)
    with pytest.raises(KeyError):
        numbers.count("postbus_typo_total")
    with pytest.raises(ValueError, match="labels"):
        numbers.count("postbus_things_total")
    with pytest.raises(ValueError, match="labels"):
        numbers.observe("postbus_thing_seconds", 1.0, "a", "b")


def test_series_are_bounded() -> None:
    """A label that grows without end shares one cell from the bound on."""
    numbers = Numbers(TABLE)
    for index in range(SERIES_MAX + 500):
        numbers.count("postbus_things_total", str(index))
        numbers.observe("postbus_thing_seconds", 1.0, str(index))
        numbers.put("postbus_level", 1.0, str(index))
    assert 500 == numbers.reading("postbus_things_total")[OVERFLOW,]
    for name in ("postbus_things_total", "postbus_level"):
        assert SERIES_MAX + 1 == len(numbers.reading(name))
    assert SERIES_MAX + 1 == len(numbers.histogram("postbus_thing_seconds"))


def test_the_manual_lists_the_table() -> None:
    """docs/metrics.md is the table; `Path("docs/metrics.md").write_text(as_markdown())` makes it again."""
    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    assert as_markdown() == page.read_text("utf-8")
