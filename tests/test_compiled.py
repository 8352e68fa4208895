"""The compiled package is the same program: what tests ``smtp/`` and ``event/`` passes on it too."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.compiled import ROOT, environment

WHERE = "import postbus.smtp.engine, postbus.event.mime; print(postbus.smtp.engine.__file__, postbus.event.mime.__file__)"
ROOMS = ("tests/smtp", "tests/event", "tests/fuzz")
TIMEOUT_S = 400


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT_S + 600)
def test_compiled_rooms_pass_their_tests() -> None:
    """Every test of the compiled rooms passes on machine code: dialogs, the attack table at every split, properties, fuzz targets."""
    compiled = environment()
    files = subprocess.run([sys.executable, "-c", WHERE], env=compiled, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert [".so", ".so"] == [name[-3:] for name in files]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *ROOMS]
    done = subprocess.run(command, env=compiled, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
