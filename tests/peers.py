"""Real peers the tests talk to: missing on a laptop skips with the reason, missing in CI fails."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def missing(peer: str, remedy: str) -> NoReturn:
    """End the test because *peer* is not here: skip on a laptop, fail in CI. *remedy* says how to get it."""
    reason = f"{peer} is not here: {remedy}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def find(program: str) -> str | None:
    """Return the path of *program*, or ``None``. Looks in the sbin folders too."""
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    return shutil.which(program, path=search)


def need(program: str, remedy: str) -> str:
    """Return the path of *program*, or end the test as ``missing`` does."""
    found = find(program)
    if found is None:
        missing(program, remedy)
    return found
