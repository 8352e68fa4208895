"""Measure the modules mail passes through by their own tests alone: ``python -m tests.own_coverage [PERCENT]``.

A module of ``smtp`` or ``event`` must have a test module of its own name, and that test module alone must cover its branches; the spool,
whose modules make sense only together, must be covered by the tests of its room. Coverage that comes from somewhere else's test is an
accident, not a proof (the idea is websockets' tests/maxi_cov.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "postbus"

LEAST_PERCENT = 95.0

ONE_BY_ONE = {"smtp": "tests/smtp", "event": "tests/event"}
TOGETHER = {"bridge/spool": "tests/bridge/spool"}


@dataclass(frozen=True, slots=True)
class Run:
    """Some modules, and the tests that must cover them."""

    modules: tuple[Path, ...]
    tests: Path


def runs() -> Iterator[Run]:
    """Yield what is measured."""
    for room, tests in ONE_BY_ONE.items():
        for module in sorted((SOURCE / room).glob("*.py")):
            if module.stem != "__init__":
                yield Run((module,), ROOT / tests / f"test_{module.stem}.py")
    for room, tests in TOGETHER.items():
        yield Run(tuple(sorted((SOURCE / room).glob("*.py"))), ROOT / tests)


def measure(run: Run) -> Mapping[Path, tuple[float, list[int]]]:
    """Return (percent, missing lines) of each module of *run*; nothing where its tests fail or are missing.

    The percent is of its branches, or of lines and branches together, whichever is less: many straight lines excuse no branch.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        environment = {**os.environ, "COVERAGE_FILE": str(Path(folder) / "data")}
        coverage = [sys.executable, "-m", "coverage"]
        include = ",".join(map(str, run.modules))
        tested = subprocess.run(
            [*coverage, "run", "--branch", f"--include={include}", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(run.tests)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if tested.returncode != 0:
            print(tested.stdout[-3000:])
            return {}
        subprocess.run([*coverage, "json", "-q", "-o", str(report)], cwd=ROOT, env=environment, check=True, capture_output=True)
        files = json.loads(report.read_text("utf-8"))["files"]
        return {ROOT / name: (_percent(figures["summary"]), figures["missing_lines"]) for name, figures in files.items()}


def _percent(summary: Mapping[str, float]) -> float:
    """Return what *summary*, coverage's own, says of one module."""
    branches = summary["num_branches"]
    return min(summary["percent_covered"], 100 * summary["covered_branches"] / branches if branches else 100)


def main(least_percent: float) -> int:
    """Print one line per module; return 1 when one lacks its test or falls short."""
    bad = 0
    count = 0
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        wanted = list(runs())
        for run, found in zip(wanted, pool.map(measure, wanted), strict=True):
            for module in run.modules:
                percent, lines = found.get(module, (0.0, []))
                count += 1
                bad += percent < least_percent
                missing = f"  missing lines {lines}" if percent < least_percent else ""
                print(f"{percent:6.1f} %  {module.relative_to(SOURCE)}{missing}", flush=True)
    print(f"{count} modules, {bad} below {least_percent:.0f} %")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if sys.argv[1:] else LEAST_PERCENT))
