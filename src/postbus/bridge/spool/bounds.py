"""Whether the spool may take more, by its bounds: a pure decision."""

from __future__ import annotations

from postbus.bridge.spool.records import Numbers
from postbus.bridge.spool_settings import SpoolSettings


def load(numbers: Numbers, settings: SpoolSettings) -> float:
    """Return how near the spool is to its bounds: 0 empty, 1 or more full.

    Free space on the disk is not looked at: others use it too, and there is either enough or not (``exceeded``).
    """
    return max(
        (numbers.octets + numbers.spilled_octets) / settings.max_octets,
        numbers.messages / settings.max_messages,
        sum(numbers.dead_letters.values()) / settings.dead_letters_max,
    )


def exceeded(numbers: Numbers, settings: SpoolSettings, size_octets: int) -> str | None:
    """Return which bound a message of *size_octets* would exceed, in words for logs; ``None`` if it may come.

    Args:
        numbers: the spool as it is.
        settings: its bounds.
        size_octets: what the message adds to the disk; 0 for one that lies there already.
    """
    used_octets = numbers.octets + numbers.spilled_octets
    if used_octets + size_octets > settings.max_octets or numbers.octets >= settings.max_octets:
        return f"{used_octets} of {settings.max_octets} octets are in use"
    if numbers.messages >= settings.max_messages:
        return f"{numbers.messages} of {settings.max_messages} messages are held"
    if (letters := sum(numbers.dead_letters.values())) >= settings.dead_letters_max:
        return f"{letters} of {settings.dead_letters_max} dead letters are kept: replay or drop some"
    if numbers.free_octets - size_octets <= settings.free_min_octets:
        return f"{numbers.free_octets} octets are free on the disk, {settings.free_min_octets} must stay"
    return None
