"""What a server without hooks answers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Protocol

from postbus.smtp import replies
from postbus.smtp.commands import greeting_lines, help_reply
from postbus.smtp.events import Command, Helo, Help, Owed
from postbus.smtp.replies import Reply
from postbus.smtp.terms import Limits, Offer


class Circumstances(Protocol):
    """What an answer may depend on, besides the event it answers."""

    offer: Offer
    esmtp: bool
    tls: bool

    @property
    def lmtp(self) -> bool:
        """The protocol is LMTP."""

    @property
    def limits(self) -> Limits:
        """The limits in force."""


_FIXED: Mapping[str, Reply] = {
    "MAIL": replies.SENDER_OK,
    "RCPT": replies.RECIPIENT_OK,
    "DATA": replies.START_MAIL,
    "BDAT": replies.CHUNK_OK,
    ".": replies.OK,
    "STARTTLS": replies.START_TLS,
    "AUTH": replies.AUTH_FAILED,
    "=": replies.AUTH_FAILED,
    "RSET": replies.OK,
    "NOOP": replies.OK,
    "VRFY": replies.CANNOT_VRFY,
    "EXPN": replies.NO_EXPN,
    "QUIT": replies.BYE,
    "XFORWARD": replies.OK,
}


def default_reply(event: Owed, session: Circumstances) -> Reply:
    """Return what is answered to *event* where nobody knows better. A raw verb is nobody's but the shell's."""
    if isinstance(event, Command):
        return replies.UNKNOWN
    fixed = _FIXED.get(event.verb)
    if fixed is not None:
        return fixed
    if isinstance(event, Helo):
        return _greeting(session.offer, session.limits, tls=session.tls, extended=event.verb != "HELO")
    if isinstance(event, Help):
        return help_reply(event.arg, lmtp=session.lmtp, esmtp=session.esmtp)
    return Reply(220, f"{session.offer.hostname} {'LMTP' if session.lmtp else 'ESMTP'}")  # XCLIENT: the session begins anew


@lru_cache(maxsize=64)
def _greeting(offer: Offer, limits: Limits, *, tls: bool, extended: bool) -> Reply:
    return Reply(250, greeting_lines(offer, limits, tls=tls) if extended else offer.hostname)
