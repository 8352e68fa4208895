"""Kinds of sinks, found by the entry points of the group ``postbus.sinks``: a kind of one's own is a package that has one.

Only the kinds in use are imported, so that a postbus without Kafka never loads a Kafka client.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from postbus.sinks import Sink

GROUP = "postbus.sinks"


class UnknownKindError(ValueError):
    """No installed package brings this kind of sink; the text says which kinds there are."""


def kinds() -> list[str]:
    """Return the installed kinds, sorted."""
    return sorted(entry_points(group=GROUP).names)


def make(name: str, settings: Any) -> Sink:
    """Return the sink called *name* that *settings* describe; it is not started.

    Raises:
        UnknownKindError: ``settings.kind`` is not installed.
    """
    found = entry_points(group=GROUP, name=settings.kind)
    if not found:
        raise UnknownKindError(f"sinks.{name}.kind: no sink of kind {settings.kind!r} is installed, there are: {', '.join(kinds())}")
    sink: Sink = next(iter(found)).load()(name, settings)
    return sink
