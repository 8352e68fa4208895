"""Fuzz for longer: ``python -m tests.fuzz [TIMES [PYTEST-ARGUMENT ...]]``, 100 times as many examples as in a build unless TIMES says more.

Runs every test whose examples ``tests.fuzz.bounded`` counts, from a seed that is new each time. Further arguments choose among them, as in
``python -m tests.fuzz 1000 -k address``. A failure prints its smallest case, to be kept as a row of the tests of what it broke.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz import TIMES

ROOT = Path(__file__).resolve().parents[2]
TIMES_DEFAULT = "100"


def targets() -> list[str]:
    """Return the test modules that take their bounds from here."""
    modules = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(module.relative_to(ROOT)) for module in modules if "from tests.fuzz import bounded" in module.read_text("utf-8")]


def main(arguments: Sequence[str]) -> int:
    """Run the targets; return pytest's exit code."""
    times, *others = arguments or (TIMES_DEFAULT,)
    if not times.isdecimal() or int(times) < 1:
        print(f"{times!r} is not how many times; write a number, then arguments for pytest", file=sys.stderr)
        return 2
    command = [sys.executable, "-m", "pytest", "-q", "--timeout", "0", *targets(), *others]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, TIMES: times}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
