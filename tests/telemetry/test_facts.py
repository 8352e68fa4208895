"""Every fact, called once: it bumps what the table knows and writes a line that passes."""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from postbus import telemetry
from postbus.telemetry.lines import LOG
from postbus.telemetry.metrics import METRICS
from postbus.telemetry.numbers import NUMBERS

FACTS = {
    name: fact
    for name, fact in vars(telemetry).items()
    if isinstance(fact, types.FunctionType) and fact.__module__ == telemetry.__name__ and not name.startswith("_")
}
SAMPLES: dict[object, object] = {str: "word", int: 250, float: 0.25, bool: True, BaseException: ValueError("why")}


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    """The process's log, to a file, at debug."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    path = tmp_path / "log"
    telemetry.configure(level="debug", log_format="json", descriptor=os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    yield path
    LOG.close()
    root.handlers[:], root.level = handlers, level


def sample(annotation: object) -> object:
    """Return a value of the annotated type; of a union's first that is known."""
    for candidate in (annotation, *typing.get_args(annotation)):
        if candidate in SAMPLES:
            return SAMPLES[candidate]
        if isinstance(candidate, str):  # a Literal
            return candidate
    return []


@pytest.mark.parametrize("fact", FACTS.values(), ids=FACTS)
def test_a_fact_takes_primitives_and_passes(fact: Callable[..., object], log: Path) -> None:
    """Keyword arguments only, plain types (or an exception), a docstring; its metrics are in the table, its line has a two-part name."""
    hints = typing.get_type_hints(fact)
    parameters = inspect.signature(fact).parameters
    assert fact.__doc__
    assert {inspect.Parameter.KEYWORD_ONLY} >= {parameter.kind for parameter in parameters.values()}
    fact(**{name: sample(hints[name]) for name in parameters})
    LOG.close()
    for line in log.read_bytes().splitlines():
        assert re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", json.loads(line)["event"])


def test_every_metric_has_somebody_who_sets_it() -> None:
    """A row without a fact, or without a reader that is watched, would promise figures that never come."""
    package = Path(inspect.getfile(telemetry)).parents[1]
    source = "".join(path.read_text() for path in package.rglob("*.py") if path.name != "metrics.py")
    assert [] == [metric.name for metric in METRICS if f'"{metric.name}"' not in source]
    assert {metric.name for metric in METRICS} == set(NUMBERS.table)
