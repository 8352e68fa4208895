"""Standard Webhooks 1.0.0 signatures (v1: HMAC-SHA256 over ``id.timestamp.body``). Pure."""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Sequence

SECRET_PREFIX = "whsec_"  # noqa: S105 - the public part
SECRET_MIN_OCTETS, SECRET_MAX_OCTETS = 24, 64


def key_of(secret: str) -> bytes:
    """Return the key in *secret* (``whsec_`` and base64, padding optional).

    Raises:
        ValueError: it is none; the text does not repeat it.
    """
    if not secret.startswith(SECRET_PREFIX):
        raise ValueError(f"a signing secret begins with {SECRET_PREFIX}")
    text = secret.removeprefix(SECRET_PREFIX).rstrip("=")
    try:
        key = b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (Base64Error, ValueError):
        raise ValueError(f"what follows {SECRET_PREFIX} in a signing secret is base64") from None
    if not SECRET_MIN_OCTETS <= len(key) <= SECRET_MAX_OCTETS:
        raise ValueError(f"a signing secret has {SECRET_MIN_OCTETS} to {SECRET_MAX_OCTETS} octets, not {len(key)}")
    return key


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
    signed = b"%b.%d.%b" % (event_id.encode(), timestamp_s, body)
    return " ".join(f"v1,{b64encode(hmac.digest(key, signed, 'sha256')).decode()}" for key in keys)
