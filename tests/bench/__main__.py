"""Measure postbus against its peers on this machine: ``python -m tests.bench [--quick] [--plain] [--row NAME ...] [--out bench.json]``.

Prints the table of ``tests.bench.rows`` and writes it as JSON, with the settings, versions and machine it holds for, and with what is
missing and why. Takes about ten minutes; what goes on is said on standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests import compiled
from tests.bench import attacks, surroundings
from tests.bench.figures import Figure, table
from tests.bench.measuring import Plan
from tests.bench.rows import ROWS, Row

ROUNDS = 5
QUICK_SHARE = 0.02

# What ends one row and not the others: a peer that is missing (tests.peers), a condition that was not met in time, a program that failed.
FAILURES = (pytest.skip.Exception, pytest.fail.Exception, subprocess.SubprocessError, OSError, AssertionError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write; return 0 when every chosen row was measured and every attack got its answer."""
    chosen = _options().parse_args(arguments)
    rows = _rows(chosen.row, quick=chosen.quick)
    if not chosen.plain:
        os.environ["PYTHONPATH"] = str(compiled.tree())  # as the image has it; for every program started from here
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": chosen.quick,
        "build": "plain" if chosen.plain else "compiled",
        "rounds": chosen.rounds,
        "machine": surroundings.machine(),
        "versions": surroundings.versions(),
        "load_average": {"before": surroundings.load_average()},
    }
    with tempfile.TemporaryDirectory(prefix="postbus-bench-", ignore_cleanup_errors=True) as folder:
        plan = Plan(chosen.rounds, QUICK_SHARE if chosen.quick else chosen.share, Path(folder), _say)
        figures, missing = _measure(plan, rows)
    _say("the attack table")
    report["rows"] = [{"name": row.name, **figure.json()} for row, figure in figures]
    report |= {"missing": missing, "attacks": attacks.played(), "settings": plan.settings}
    report["load_average"]["after"] = surroundings.load_average()
    chosen.out.write_text(json.dumps(report, indent=1) + "\n")
    print(_printed(report, [figure for _, figure in figures], chosen.out))
    return 0 if not missing and report["attacks"]["green"] else 1


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="the cheap rows with few messages: does it work, not how fast")
    parser.add_argument("--plain", action="store_true", help="the sources as they are, not compiled as in the image")
    parser.add_argument(
        "--row", action="append", default=[], metavar="NAME", help=f"measure these only: {', '.join(row.name for row in ROWS)}"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of every row; the median counts")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual number of messages")
    parser.add_argument("--out", type=Path, default=Path("bench.json"), help="where the report goes")
    return parser


def _rows(names: Sequence[str], *, quick: bool) -> list[Row]:
    unknown = set(names) - {row.name for row in ROWS}
    if unknown:
        sys.exit(f"no row named {', '.join(sorted(unknown))}; there are: {', '.join(row.name for row in ROWS)}")
    return [row for row in ROWS if (row.name in names if names else row.cheap or not quick)]


def _measure(plan: Plan, rows: Sequence[Row]) -> tuple[list[tuple[Row, Figure]], list[dict[str, str]]]:
    """Return the figures, and what could not be measured with the reason."""
    figures: list[tuple[Row, Figure]] = []
    missing: list[dict[str, str]] = []
    for row in rows:
        _say(f"{row.name}: {row.title}")
        try:
            measured, beside, note = row.measure(plan)
        except FAILURES as error:
            missing.append({"row": row.name, "reason": f"{error}"[:4000] or type(error).__name__})
            _say(f"{row.name}: not measured: {missing[-1]['reason'].splitlines()[0]}")
        else:
            figures.append((row, Figure(row.title, measured, row.bar, row.peer, beside, note)))
            _say(table([figures[-1][1]]).splitlines()[-1])  # so that a run cut short has said what it knows
    return figures, missing


def _printed(report: dict[str, Any], figures: Sequence[Figure], out: Path) -> str:
    """Return what people read: the table, notes, what is missing, the attacks, the machine."""
    machine, attacked = report["machine"], report["attacks"]
    load = report["load_average"]
    lines = [table(figures), ""]
    lines += [f"{figure.row} ({figure.peer or 'absolute'}): {figure.note}" for figure in figures if figure.note]
    lines += [f"missing: {gap['row']}: {gap['reason'].splitlines()[0]}" for gap in report["missing"]]
    lines += [f"attacks: {attacked['passed']} of {attacked['rows']} rows got their listed answer"]
    lines += [f"FAILED: {failure['row']}: {failure['why']}" for failure in attacked["failed"]]
    memory_gib = machine["memory_octets"] / 2**30
    lines.append(f"{machine['cores']} cores, {machine['cpu']}, {memory_gib:.0f} GiB, Linux {machine['kernel']}, {machine['python']}")
    lines.append(f"{report['build']} build; {report['rounds']} rounds; load average {load['before'][0]} before, {load['after'][0]} after")
    lines.append(f"report in {out}")
    return "\n".join(lines)


_BEGAN = time.monotonic()


def _say(text: str) -> None:
    """Tell on standard error what goes on."""
    print(f"{time.monotonic() - _BEGAN:6.0f} s  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # so that every program started is ended
    sys.exit(main())
