"""Whether the spool may take more, by its bounds: a pure decision."""

from __future__ import annotations

from postbus.bridge.spool.records import Numbers
from postbus.bridge.spool_settings import SpoolSettings


class Bounds:
    """The bounds among the spool's settings, which are asked three times for each message."""

    __slots__ = ("dead_letters_max", "free_min_octets", "max_messages", "max_octets")

    def __init__(self, settings: SpoolSettings) -> None:
        self.max_octets = settings.max_octets
        self.max_messages = settings.max_messages
        self.dead_letters_max = settings.dead_letters_max
        self.free_min_octets = settings.free_min_octets

    def load(self, numbers: Numbers) -> float:
        """Return how near the spool is to its bounds: 0 empty, 1 or more full.

        Free space on the disk is not looked at: others use it too, and there is either enough or not (``exceeded``).
        """
        return max(
            (numbers.octets + numbers.spilled_octets) / self.max_octets,
            numbers.messages / self.max_messages,
            sum(numbers.dead_letters.values()) / self.dead_letters_max,
        )

    def exceeded(self, numbers: Numbers, size_octets: int) -> str | None:
        """Return which bound a message of *size_octets* would exceed, in words for logs; ``None`` if it may come.

        Args:
            numbers: the spool as it is.
            size_octets: what the message adds to the disk; 0 for one that lies there already.
        """
        used_octets = numbers.octets + numbers.spilled_octets
        if used_octets + size_octets > self.max_octets or numbers.octets >= self.max_octets:
            return f"{used_octets} of {self.max_octets} octets are in use"
        if numbers.messages >= self.max_messages:
            return f"{numbers.messages} of {self.max_messages} messages are held"
        if numbers.dead_letters and (letters := sum(numbers.dead_letters.values())) >= self.dead_letters_max:
            return f"{letters} of {self.dead_letters_max} dead letters are kept: replay or drop some"
        if numbers.free_octets - size_octets <= self.free_min_octets:
            return f"{numbers.free_octets} octets are free on the disk, {self.free_min_octets} must stay"
        return None
