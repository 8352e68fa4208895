"""When to try again, and when not."""

from __future__ import annotations

import pytest

from postbus.bridge.backoff import delay_s, exhausted
from postbus.bridge.spool_settings import RetrySettings

SETTINGS = RetrySettings(first_delay_s=1, multiplier=2, max_delay_s=60, jitter=0.5, retry_after_max_s=100, attempts_max=3, age_max_s=1000)


@pytest.mark.parametrize(
    ("failures", "luck", "after_s", "expected"),
    [
        pytest.param(1, 0.5, None, 1.0, id="first"),
        pytest.param(4, 0.5, None, 8.0, id="grows"),
        pytest.param(50, 0.5, None, 60.0, id="bounded"),
        pytest.param(10_000, 0.5, None, 60.0, id="does not overflow"),
        pytest.param(2, 0.0, None, 1.0, id="jitter shortens"),
        pytest.param(2, 1.0, None, 3.0, id="jitter lengthens"),
        pytest.param(1, 0.5, 30.0, 30.0, id="retry-after lengthens"),
        pytest.param(5, 0.5, 1.0, 16.0, id="retry-after never shortens"),
        pytest.param(1, 0.5, 86_400.0, 100.0, id="retry-after is bounded"),
    ],
)
def test_pause(failures: int, luck: float, after_s: float | None, expected: float) -> None:
    """The pause grows with the failures, within bounds, and heeds Retry-After."""
    assert expected == delay_s(failures, SETTINGS, luck, after_s)


@pytest.mark.parametrize(
    ("attempt", "age_s", "required", "expected"),
    [
        pytest.param(2, 999, True, None, id="worth another try"),
        pytest.param(3, 0, True, "attempts", id="attempts"),
        pytest.param(0, 1000, True, "age", id="age"),
        pytest.param(4, 1001, False, None, id="best effort has bounds of its own"),
        pytest.param(5, 0, False, "attempts", id="best effort attempts"),
        pytest.param(0, 3600, False, "age", id="best effort age"),
    ],
)
def test_giving_up(attempt: int, age_s: float, required: bool, expected: str | None) -> None:
    """A delivery is given up by its attempts or its age."""
    assert expected == exhausted(attempt, age_s, SETTINGS, required=required)


def test_by_default_age_comes_first() -> None:
    """A receiver that answers 500 to everything for days costs no mail: even the shortest pauses outlast the age."""
    defaults = RetrySettings()
    shortest_s = sum(delay_s(failures, defaults, 0.0) for failures in range(1, defaults.attempts_max))
    assert shortest_s > defaults.age_max_s >= 5 * 86_400
