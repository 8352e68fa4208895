"""Measure the modules mail passes through by their own tests alone: ``python -m tests.own_coverage PERCENT``.

Each module of ``ROOMS`` must have a test module of its own name, and that test module alone must cover its branches: coverage that comes
from somewhere else's test is an accident, not a proof (the idea is websockets' tests/maxi_cov.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "postbus"

# Glob under src/postbus -> where the module's own test lives.
ROOMS = {"smtp/*.py": "tests/smtp", "event/*.py": "tests/event", "bridge/spool/*.py": "tests/bridge/spool"}


def own_tests() -> dict[Path, Path]:
    """Return each measured module with its own test module (which may be missing)."""
    found: dict[Path, Path] = {}
    for pattern, folder in ROOMS.items():
        for module in sorted(SOURCE.glob(pattern)):
            if module.stem != "__init__":
                found[module] = ROOT / folder / f"test_{module.stem}.py"
    return found


def measure(module: Path, test: Path) -> tuple[float, list[int], str]:
    """Return (covered percent with branches, missing lines, test output) of *module* under *test* alone."""
    with tempfile.TemporaryDirectory() as folder:
        data, report = Path(folder) / "data", Path(folder) / "report.json"
        environment = {**os.environ, "COVERAGE_FILE": str(data)}
        coverage = [sys.executable, "-m", "coverage"]
        run = subprocess.run(
            [*coverage, "run", "--branch", f"--include={module}", "-m", "pytest", "-q", "-p", "no:cacheprovider", str(test)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode != 0:
            return 0.0, [], run.stdout[-3000:]
        subprocess.run([*coverage, "json", "-q", "-o", str(report)], cwd=ROOT, env=environment, check=True, capture_output=True)
        (figures,) = json.loads(report.read_text())["files"].values()
        return figures["summary"]["percent_covered"], figures["missing_lines"], ""


def main(least_percent: float) -> int:
    """Print one line per module; return 1 when one lacks its test or falls short."""
    pairs = own_tests()
    bad = 0
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        results = pool.map(lambda pair: measure(*pair) if pair[1].exists() else (0.0, [], f"missing: {pair[1]}"), pairs.items())
        for module, (percent, lines, output) in zip(pairs, results, strict=True):
            short = percent < least_percent
            bad += short
            print(f"{percent:6.1f} %  {module.relative_to(SOURCE)}{f'  missing lines {lines}' if short else ''}", flush=True)
            if output:
                print(output)
    print(f"{len(pairs)} modules, {bad} below {least_percent:.0f} %")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
