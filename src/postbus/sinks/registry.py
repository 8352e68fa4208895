"""Kinds of sinks, found by the entry points of the group ``postbus.sinks``: a kind of one's own is a package that has one.

Such an entry point is a function ``(name, settings) -> Sink`` (``postbus.sinks.Sink``), named by its kind. *settings* are our own
settings class for our own kinds, and for others the mapping of what the configuration says beside ``kind``. It raises ``ValueError``
with words for the operator when that is wrong; it does not connect (``start`` does).

Only the kinds in use are imported, so that a postbus without Kafka never loads a Kafka client.
"""

from __future__ import annotations

from importlib.metadata import entry_points

from postbus.sinks import Sink
from postbus.sinks.settings import FileSettings, KafkaSettings, PluginSettings, WebhookSettings

GROUP = "postbus.sinks"


class SinkUnusableError(ValueError):
    """A sink cannot be made from its settings; the text says why."""


def kinds() -> list[str]:
    """Return the installed kinds, sorted."""
    return sorted(entry_points(group=GROUP).names)


def make(name: str, settings: KafkaSettings | WebhookSettings | FileSettings | PluginSettings) -> Sink:
    """Return the sink called *name* that *settings* describe; it is not started.

    Raises:
        SinkUnusableError: no installed package brings the kind, or the one that does refuses these settings.
    """
    found = entry_points(group=GROUP, name=settings.kind)
    if not found:
        raise SinkUnusableError(f"no sink of kind {settings.kind!r} is installed, there are: {', '.join(kinds())}")
    entry = next(iter(found))
    if not isinstance(settings, PluginSettings):
        sink: Sink = entry.load()(name, settings)
        return sink
    try:
        sink = entry.load()(name, settings.options)
    except ValueError as error:
        raise SinkUnusableError(str(error) or "the settings are refused") from error
    except Exception as error:  # another package's code: whatever it raises must not end ours
        raise SinkUnusableError(f"{entry.value} failed: {type(error).__name__}: {error}") from error
    return sink
