"""The ``Received`` field of our own hop (RFC 5321 s4.4), as an event may carry it.

A pure function of the record, so a retry says the same. What a peer supplies (its name, names looked up for it, a recipient) goes in only
where it is plainly what it should be, never repaired: no parenthesis, quote, bracket or line end of a peer's can end a clause or begin a
comment. The address the listener saw always stands beside the name the peer gave.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import format_datetime
from ipaddress import IPv6Address, ip_address

from postbus.event.mail import Client, Mail, Recipient, Tls

_DOMAIN = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,253}[A-Za-z0-9_])?")
_LITERAL = re.compile(r"\[[A-Za-z0-9.:-]{1,64}\]")  # RFC 5321 s4.1.3
_PATH = re.compile(r"[^\s\x00-\x20\x7f-\x9f<>()\[\]\"\\,;:]{1,320}")  # no quoted local part, no comment, no end of the clause
_ATOM = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_IANA_CIPHER = re.compile(r"TLS_[A-Z0-9_]{1,90}")


def received(mail: Mail, recipient: Recipient) -> str:
    """Return the value of the field, on one line, at most 1500 characters; ``mail.received_by`` must not be ``""``."""
    clauses = [
        _from(mail.client),
        f"by {_by(mail.received_by)} with {_with(mail)}{_tls_comment(mail.tls)} id {mail.id}",
        f"for <{recipient.address}>" if _PATH.fullmatch(recipient.address) else "",
        _tls_clause(mail.tls),
    ]
    when = format_datetime(datetime.fromtimestamp(mail.received_ms // 1000, UTC))
    return " ".join(clause for clause in clauses if clause) + f"; {when}"


def _from(client: Client) -> str:
    literal = _address_literal(client.ip)
    name = client.helo or ""
    known = name if _DOMAIN.fullmatch(name) or _LITERAL.fullmatch(name) else literal or "unknown"
    host = f"{client.ptr} " if client.ptr and _DOMAIN.fullmatch(client.ptr) else ""
    return f"from {known} ({host}{literal})" if literal else f"from {known}"


def _by(hostname: str) -> str:
    return hostname if _DOMAIN.fullmatch(hostname) or _LITERAL.fullmatch(hostname) else "localhost"


def _with(mail: Mail) -> str:
    """Return the keyword of RFC 3848, or where SMTPUTF8 was used of RFC 6531 s4.3."""
    word = mail.protocol.upper()
    if not mail.smtputf8:
        return word
    return "UTF8" + word.removeprefix("E")


def _address_literal(ip: str) -> str:
    """Return *ip* as RFC 5321 s4.1.3 writes it, ``""`` for none."""
    try:
        address = ip_address(ip.partition("%")[0])
    except ValueError:
        return ""
    return f"[IPv6:{address}]" if isinstance(address, IPv6Address) else f"[{address}]"


def _tls_clause(tls: Tls | None) -> str:
    """Return the registered clause (RFC 8314 s4.3), which takes names of the IANA registry; of TLS 1.3 OpenSSL's are the same."""
    return f"tls {tls.cipher}" if tls is not None and _IANA_CIPHER.fullmatch(tls.cipher) else ""


def _tls_comment(tls: Tls | None) -> str:
    """Return version and cipher as a comment, where the clause cannot name the cipher."""
    if tls is None or _IANA_CIPHER.fullmatch(tls.cipher) or not (_ATOM.fullmatch(tls.version) and _ATOM.fullmatch(tls.cipher)):
        return ""
    return f" ({tls.version} {tls.cipher})"
