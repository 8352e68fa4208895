"""Run every check and every test: ``python -m tests [STEP ...]``.

The steps are the rows of ``STEPS``. All of them run even when an earlier one failed; the exit code says whether every one passed.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable

# Modules whose branches must be covered by their own tests alone (tests/<room>/test_<module>.py): the rooms mail passes through unseen.
OWN_COVERAGE_PERCENT = 95

STEPS: dict[str, Sequence[str]] = {
    "lint": (PYTHON, "-m", "ruff", "check", "."),
    "format": (PYTHON, "-m", "ruff", "format", "--check", "."),
    "types": (PYTHON, "-m", "mypy"),
    "walls": (str(Path(PYTHON).with_name("lint-imports")), "--no-cache"),
    "tests": (PYTHON, "-m", "pytest", "-q", "--durations=15"),
    "coverage": (PYTHON, "-m", "tests.own_coverage", str(OWN_COVERAGE_PERCENT)),
}


def main(wanted: Sequence[str]) -> int:
    """Run the steps named in *wanted* (all without a name); return 0 when each passed."""
    unknown = [name for name in wanted if name not in STEPS]
    if unknown:
        print(f"no step named {', '.join(unknown)}; there are: {', '.join(STEPS)}", file=sys.stderr)
        return 2
    failed = []
    for name in wanted or STEPS:
        print(f"== {name}: {' '.join(STEPS[name])}", flush=True)
        started = time.monotonic()
        code = subprocess.run(STEPS[name], cwd=ROOT, check=False).returncode
        print(f"== {name}: {'passed' if code == 0 else f'FAILED ({code})'} in {time.monotonic() - started:.0f} s", flush=True)
        if code != 0:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "every step passed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
