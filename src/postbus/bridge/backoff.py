"""When to try again: pure arithmetic over the settings, a number of failures and one random number."""

from __future__ import annotations

from postbus.bridge.spool_settings import RetrySettings

POWER_MAX = 64
"""Exponents beyond this add nothing but overflow."""


def delay_s(failures: int, settings: RetrySettings, luck: float, after_s: float | None = None) -> float:
    """Return the pause in seconds after the *failures*-th failure in a row.

    Args:
        failures: 1 for the first.
        settings: bounds and growth.
        luck: a random number in [0, 1): 0.5 means no jitter. Without it, every pod would come back at the same moment.
        after_s: what the far side asked for (Retry-After); it lengthens the pause, within ``retry_after_max_s``, never shortens it.
    """
    pause = min(settings.max_delay_s, settings.first_delay_s * settings.multiplier ** min(failures - 1, POWER_MAX))
    pause *= 1 + settings.jitter * (2 * luck - 1)
    return pause if after_s is None else max(pause, min(after_s, settings.retry_after_max_s))


def exhausted(attempt: int, age_s: float, settings: RetrySettings, *, required: bool) -> str | None:
    """Return why a delivery that has just failed is given up, or ``None`` while it is worth another try.

    Args:
        attempt: failures of this event by itself so far, this one included; 0 when only the sink as a whole was down.
        age_s: since acceptance, or since the replay.
        settings: bounds.
        required: the sink is required for this recipient, not best effort.
    """
    attempts_max = settings.attempts_max if required else settings.best_effort_attempts_max
    age_max_s = settings.age_max_s if required else settings.best_effort_age_max_s
    if attempt >= attempts_max:
        return "attempts"
    if age_s >= age_max_s:
        return "age"
    return None
