"""What a receiver's answer, or its failure to answer, means: two tables. Pure.

The contract with receivers, in short: 2xx takes the event, 413 refuses it for good, everything else is tried again. An unknown
4xx is more often a deployment gone wrong than a verdict on one event, so mail is not lost over it; what is tried again for too long
becomes a dead letter.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp

from postbus.sinks import Outcome, Rejected, Retry, Sent
from postbus.sinks.webhook.egress import ForbiddenAddressError

GONE = 410
RETRY_AFTER_MAX_S = 3600.0
"""No receiver parks its mail for longer by one header; the next answer may ask for another hour."""

# Status -> (why, whether the whole endpoint is the trouble rather than this event). What is not here: see FAMILIES.
STATUSES: Mapping[int, tuple[str, bool]] = {
    401: ("refused our credentials", True),
    402: ("wants to be paid", True),
    403: ("refused our credentials", True),
    404: ("knows no such path", True),
    405: ("takes no POST", True),
    407: ("wants proxy credentials", True),
    408: ("waited too long for us", True),
    GONE: ("is gone and wants no more events", True),
    411: ("wants a length", True),
    414: ("finds the URL too long", True),
    415: ("does not understand the format", True),
    421: ("is the wrong server", True),
    425: ("will not take early data", True),
    426: ("wants another protocol", True),
    429: ("is asked too often", True),
    431: ("finds the headers too large", True),
    451: ("may not answer for legal reasons", True),
    502: ("has no upstream", True),
    503: ("is unavailable", True),
    504: ("has a slow upstream", True),
    507: ("is full", True),
    511: ("is behind a login page", True),
}

# Hundreds -> the same, for every other status.
FAMILIES: Mapping[int, tuple[str, bool]] = {
    1: ("changed the protocol", True),
    3: ("redirects, which is not followed: configure the URL it leads to", True),
    4: ("refused the event", False),
    5: ("failed over the event", False),
}


def outcome_of(status: int, retry_after: str | None, now: datetime) -> Outcome:
    """Return what an answer means.

    Args:
        status: the final status code.
        retry_after: value of the Retry-After header, if there was one; honoured with every status (RFC 9110 s10.2.3).
        now: in UTC, for a Retry-After that is a date.
    """
    if 200 <= status <= 299:
        return Sent(str(status))
    if status == 413:
        return Rejected("the receiver finds the event too large (413)", too_large=True)
    words, endpoint = STATUSES.get(status) or FAMILIES.get(status // 100) or ("gave no HTTP answer", True)
    return Retry(f"the receiver {words} ({status})", after_s=seconds_of(retry_after, now), sink_down=endpoint)


def seconds_of(retry_after: str | None, now: datetime) -> float | None:
    """Return the pause that Retry-After asks for, 0 to RETRY_AFTER_MAX_S; ``None`` for none or nonsense."""
    if retry_after is None:
        return None
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        # Longer numbers than that are no pause anybody means, and int() refuses absurd ones.
        return min(RETRY_AFTER_MAX_S, float(int(text[:10])))
    try:
        when = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
    when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
    return min(RETRY_AFTER_MAX_S, max(0.0, (when - now).total_seconds()))


# First match wins, so a class stands before those it derives from.
FAILURES: tuple[tuple[tuple[type[BaseException], ...], str], ...] = (
    ((ForbiddenAddressError,), "the URL leads to an address that is not allowed"),
    ((aiohttp.InvalidURL,), "the URL is not one that can be connected to"),
    ((aiohttp.ClientConnectorDNSError,), "the receiver's name cannot be resolved"),
    ((aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError), "the receiver's certificate is not trusted"),
    ((aiohttp.ClientSSLError, ssl.SSLError), "TLS with the receiver failed"),
    ((aiohttp.ConnectionTimeoutError,), "the receiver cannot be connected to in time"),
    ((aiohttp.ServerTimeoutError, TimeoutError), "the receiver did not answer in time"),
    ((aiohttp.ClientConnectorError,), "the receiver cannot be connected to"),
    ((aiohttp.ServerDisconnectedError,), "the receiver closed the connection without an answer"),
    ((aiohttp.ClientResponseError, aiohttp.ClientPayloadError), "the receiver's answer is not HTTP"),
    ((aiohttp.ClientOSError, ConnectionError), "the receiver broke the connection"),
    ((aiohttp.ClientError, OSError), "the connection failed"),
)


def failure_of(error: BaseException) -> str | None:
    """Return in words why there was no answer; ``None`` when *error* is no failure of the far side."""
    cause = getattr(error, "os_error", None)
    if isinstance(cause, OSError) and ForbiddenAddressError.MARK in str(cause):
        return FAILURES[0][1]
    return next((why for classes, why in FAILURES if isinstance(error, classes)), None)
