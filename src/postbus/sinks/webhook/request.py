"""An event as an HTTP request: headers and body. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from postbus.event.cloudevents import HTTP_STRUCTURED_TYPE, http_binary, structured
from postbus.event.model import Event
from postbus.sinks.webhook.signing import signature

Headers = list[tuple[str, str]]


def request_of(
    event: Event, *, mode: Literal["structured", "binary"], fixed: Sequence[tuple[str, str]], keys: Sequence[bytes], now_s: int
) -> tuple[Headers, bytes]:
    """Return the request's headers and body; the signature is over these very octets.

    ``webhook-id`` is the event's id, the same in every attempt: receivers dedupe by it, signed or not.

    Args:
        event: what to say.
        mode: CloudEvents mode (HTTP binding s3).
        fixed: headers of the configuration.
        keys: see ``signing.signature``; none: not signed.
        now_s: time of this attempt, seconds since the Unix epoch.
    """
    headers: Headers = [*fixed, ("webhook-id", event.id), ("webhook-timestamp", str(now_s))]
    if mode == "structured":
        body = structured(event)
        headers.append(("content-type", HTTP_STRUCTURED_TYPE))
    else:
        binding, body = http_binary(event)
        headers += binding
    if event.traceparent:
        headers.append(("traceparent", event.traceparent))
    if keys:
        headers.append(("webhook-signature", signature(keys, event.id, now_s, body)))
    return headers, body
