"""The bench runs and says what it must; how fast is not for a test to judge."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import builds
from tests.bench.__main__ import main
from tests.bench.figures import Bar, Figure, Series, table
from tests.bench.measuring import POSTFIX
from tests.bench.rows import ROWS
from tests.peers import need


@pytest.mark.parametrize(
    ("bar", "value", "expected"),
    [
        pytest.param(Bar(1.6, 1.1), 1.1, "aim", id="less is better, at the aim"),
        pytest.param(Bar(1.6, 1.1), 1.6, "must", id="less is better, at the must"),
        pytest.param(Bar(1.6, 1.1), 1.61, "missed", id="less is better, beyond"),
        pytest.param(Bar(6, 8, least=True), 8, "aim", id="more is better, at the aim"),
        pytest.param(Bar(6, 8, least=True), 7.9, "must", id="more is better, below the aim"),
        pytest.param(Bar(6, 8, least=True), 5.9, "missed", id="more is better, below"),
        pytest.param(Bar(64), 64, "must", id="no aim"),
    ],
)
def test_verdict(bar: Bar, value: float, expected: str) -> None:
    """A value is held against aim and must, in the direction that is better."""
    assert expected == bar.verdict(value)


def test_the_ratio_is_taken_round_by_round() -> None:
    """What made both slow in one round does not count: the median of the rounds' ratios is judged."""
    figure = Figure("work", Series("us", (10, 20, 90)), Bar(1.6, 1.1), "peer", Series("us", (10, 10, 60)))
    assert (1.0, 2.0, 1.5) == figure.judged.values
    assert ("must", 1.5) == (figure.verdict, figure.judged.median)


def test_table_is_aligned() -> None:
    """The table is plain text with a column for each heading."""
    figure = Figure("work", Series("us", (10.0, 12.0, 11.0)), Bar(1.6, 1.1), "peer", Series("us", (10.0, 10.0, 10.0)))
    absolute = Figure("memory", Series("KiB", (1.4,)), Bar(8))
    head, rule, first, second = table([figure, absolute]).splitlines()
    assert len(head) == len(rule)
    assert ["work", "11.0 us (10.0-12.0)", "peer 10.0 us (10.0-10.0)", "1.10 x (1.00-1.20)", "<= 1.6 x", "<= 1.1 x", "aim"] == first.split(
        "  "
    )[:1] + [cell for cell in (part.strip() for part in first.split("  ")[1:]) if cell]
    assert head.index("must") == second.index("<= 8 KiB")


def test_row_names_are_unique() -> None:
    """``--row`` names one row."""
    assert len(ROWS) == len({row.name for row in ROWS})


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_tree")
@pytest.mark.timeout(builds.TIMEOUT_S + 120)
def test_quick_bench_writes_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The smoke run measures the cheap rows, plays the attacks, and writes all that a reader needs to judge the figures."""
    need("smtp-sink", POSTFIX)
    need("smtp-source", POSTFIX)
    out = tmp_path / "bench.json"
    monkeypatch.setenv("PYTHONPATH", "")  # which the bench changes, for this process' children
    assert 0 == main(["--quick", "--rounds", "2", "--out", str(out)])
    report = json.loads(out.read_text())
    parts = {"date", "build", "quick", "rounds", "machine", "versions", "load_average", "rows", "missing", "attacks", "settings"}
    assert (parts, "compiled") == (set(report), report["build"])
    assert [row.name for row in ROWS if row.cheap] == [row["name"] for row in report["rows"]]
    for row in report["rows"]:
        assert 2 == len(row["measured"]["values"]) == len(row["peer"]["values"]) == len(row["ratio"]["values"])
        assert row["verdict"] in {"aim", "must", "missed"}
        assert row["measured"]["min"] <= row["measured"]["median"] <= row["measured"]["max"]
    assert [] == report["missing"]
    assert report["attacks"]["green"]
    assert {"cores", "memory_octets", "cpu", "kernel", "python"} == report["machine"].keys()
    assert "spool" in json.dumps(report["settings"]["bridge-cpu"])
    printed = capsys.readouterr().out
    assert all(title in printed for title in (row.title for row in ROWS if row.cheap))


def test_unknown_row_is_named() -> None:
    """A row that does not exist ends the run with the names of those that do."""
    with pytest.raises(SystemExit, match="no row named nonsense; there are: reused-plain"):
        main(["--row", "nonsense"])
