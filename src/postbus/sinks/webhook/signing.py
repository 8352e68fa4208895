"""Standard Webhooks 1.0.0 signatures (v1: HMAC-SHA256 over ``id.timestamp.body``). Pure. Keys: ``sinks.settings.signing_key``."""

from __future__ import annotations

import hmac
from base64 import b64encode
from collections.abc import Sequence


def signature(keys: Sequence[bytes], event_id: str, timestamp_s: int, body: bytes) -> str:
    """Return the value of ``webhook-signature``: one signature per key, in their order.

    Args:
        keys: the current key and, while secrets are rotated, others that receivers may still verify with.
        event_id: without dots: they part the signed string. Ours are UUIDs.
        timestamp_s: time of this attempt, seconds since the Unix epoch; receivers refuse what is 5 minutes off.
        body: exactly the octets sent.
    """
    if "." in event_id:
        raise ValueError(f"{event_id!r}: an id with a dot cannot be signed")
    head = b"%b.%d." % (event_id.encode(), timestamp_s)
    return " ".join(f"v1,{b64encode(_digest(key, head, body)).decode()}" for key in keys)


def _digest(key: bytes, head: bytes, body: bytes) -> bytes:
    """Return the HMAC of *head* and *body*, without making a copy of a large body to join them."""
    made = hmac.new(key, head, "sha256")
    made.update(body)
    return made.digest()
