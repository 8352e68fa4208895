"""Limits told and enforced while we are under pressure (RFC 9422): fewer recipients a message, fewer messages a session.

A sender that heeds LIMITS then comes with less at once, and comes again on a new connection, which a load balancer may give to somebody
who has room. A sender that heeds nothing meets the same limits as 452 and 421, which lose no mail. What a session was told at its greeting
holds for it until the next greeting; one that said HELO was told nothing and has the limits of the configuration.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from postbus.smtp.terms import Limits

STEPS = ((0.97, 0.0, 1), (0.9, 0.1, 5), (0.75, 0.5, 20))
"""From this load on: this share of the recipients and domains, and so many messages a session at most. Heaviest first."""

RECIPIENTS_MIN = 100
"""RFC 5321 s4.5.3.1.8: a server takes at least so many."""


def lowered(limits: Limits, load: float) -> Limits:
    """Return *limits* as they are under *load*: 0 nothing to do, 1 nothing more can be taken."""
    for least, share, mails in STEPS:
        if load >= least:
            return _lowered(limits, share, mails)
    return limits


@lru_cache(maxsize=32)
def _lowered(limits: Limits, share: float, mails: int) -> Limits:
    return replace(
        limits,
        mails=min(limits.mails, mails) if limits.mails else mails,
        recipients=min(limits.recipients, max(RECIPIENTS_MIN, int(limits.recipients * share))),
        recipient_domains=max(1, int(limits.recipient_domains * share)) if limits.recipient_domains else 0,
    )
