"""Small plain mail is parsed here and at once; ``parsing`` has all else. A module of its own, so that it is compiled (pyproject.toml)."""

from __future__ import annotations

from time import perf_counter

from postbus import telemetry
from postbus.event import mime
from postbus.event.parsed import Parsed


def parse_here(octets: bytes, *, inline_max_octets: int) -> Parsed | None:
    """Return a small plain message taken apart, without waiting; ``None``: it is none, ask ``parse``."""
    started = perf_counter()
    if len(octets) > mime.SIMPLE_MAX_OCTETS or mime.guard(octets).way != "simple":
        return None
    return told("process", mime.parse(octets, inline_max_octets=inline_max_octets), started)


def told(place: str, found: Parsed, started: float) -> Parsed:
    """Count *found*, and return it."""
    outcome = "parsed" if found.readable else found.defects[0].code
    telemetry.mail_parsed(place=place, outcome=outcome, seconds=perf_counter() - started)
    return found
