"""The SASL exchange of AUTH (RFC 4954): the command's argument, and each line the client answers a challenge with.

What the octets of a response mean is the mechanism's business, and so the shell's; here they are only base64 or not. They are
credentials, so no event shows them in its ``repr``.
"""

from __future__ import annotations

import binascii
import re
from typing import TYPE_CHECKING

from postbus.smtp import replies
from postbus.smtp.events import Auth
from postbus.smtp.replies import Reply

if TYPE_CHECKING:
    from postbus.smtp.commands import Standing

LINE_OCTETS = 12_288
"""A line of the exchange, the command with its initial response too, CRLF included (RFC 4954 s4, s4.5)."""

_BASE64 = re.compile(rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")  # binascii takes surplus padding
CANCEL = b"*"
EMPTY = "="
"""The initial response that is there, but empty: without a word, none was given (RFC 4954 s4)."""


def decode(text: bytes | str) -> bytes | None:
    """Return what *text* stands for in base64, or ``None``: nothing but the alphabet and its padding is taken (RFC 4648 s3.3)."""
    octets = text.encode() if isinstance(text, str) else text
    return binascii.a2b_base64(octets) if _BASE64.fullmatch(octets) else None


def parse(arg: str | None, session: Standing) -> Auth | Reply:
    """Read ``mechanism [initial-response]``, or return why AUTH is refused now."""
    offer = session.offer
    words = [word for word in (arg or "").split(" ") if word]
    mechanism, *rest = words or [""]
    for bad, reply in (
        (not offer.auth, replies.NO_AUTH),
        (not session.esmtp, replies.HELO_IS_NOT_EHLO),
        (offer.auth_tls and not session.tls, replies.ENCRYPT_FIRST),
        (session.authenticated, replies.AUTHENTICATED_ALREADY),
        (not mechanism or len(rest) > 1, replies.AUTH_SYNTAX),
        (mechanism.upper() not in offer.auth, replies.UNKNOWN_MECHANISM),
    ):
        if bad:
            return reply
    if not rest:
        return Auth(mechanism.upper())
    initial = b"" if rest[0] == EMPTY else decode(rest[0])
    return replies.BAD_BASE64 if initial is None else Auth(mechanism.upper(), initial)


def judge(line: bytes, length: int) -> bytes | Reply:
    """Return the octets of a response, or the reply that ends the exchange.

    Args:
        line: without CRLF; of a long one, its last octets.
        length: of the whole line with CRLF.
    """
    if length > LINE_OCTETS:
        return replies.RESPONSE_TOO_LONG
    text = line.strip(b" ")
    if text == CANCEL:
        return replies.AUTH_CANCELLED
    octets = b"" if text == EMPTY.encode() else decode(text)  # curl 7.88 answers so where it has nothing to say
    return replies.BAD_BASE64 if octets is None else octets
