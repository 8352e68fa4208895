"""Fuzz targets: whatever bytes come, what must hold holds. ``python -m tests.fuzz`` runs them for longer."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import HealthCheck, settings

TIMES = "POSTBUS_FUZZ_TIMES"
"""Environment variable: how many times as many examples, from a seed that is new each time. Unset: the same examples in every run."""


def bounded(examples: int, **options: Any) -> settings:
    """Return settings for so many *examples*: the same in every run, so that a failure comes again; more and new ones on demand."""
    times = os.environ.get(TIMES)
    return settings(
        max_examples=examples * int(times or 1),
        derandomize=times is None,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        **options,
    )
