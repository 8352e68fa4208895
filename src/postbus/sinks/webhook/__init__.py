"""Events as HTTP POST requests, signed as Standard Webhooks asks.

- ``request``: event -> headers and body, pure.   ``signing``: the signature, pure.   ``answers``: status and failure -> outcome, pure.
- ``egress``: which addresses may be connected to, decided where the socket is made.
- ``transport``: httpx's requests over aiohttp's connections.   ``sink``: the sink.

The only room that imports httpx and aiohttp.
"""

from __future__ import annotations

from postbus.sinks.settings import WebhookSettings
from postbus.sinks.webhook.sink import WebhookSink

__all__ = ["WebhookSink", "make"]


def make(name: str, settings: WebhookSettings) -> WebhookSink:
    """Return the sink *name*, not yet started (entry point ``postbus.sinks``)."""
    return WebhookSink(name, settings)
