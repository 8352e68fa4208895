"""RFC 5321 s4.1.2 and its extensions as named patterns, and the parsing of paths and parameters.

All of it works on ``str`` decoded from one command line, free of control characters: the engine has refused those before.
Non-ASCII characters are part of atoms, quoted strings and labels (RFC 6531 s3.3); whether they are welcome is the caller's
question. What is tolerated beyond the RFC names the software that needs it and is counted as a defect:

* ``dots``: leading, trailing or doubled dots in a local part (Japanese mobile carriers gave such addresses to their customers);
* ``underscore``: in a domain label (Windows host names; Postfix takes them);
* ``no-brackets``, ``no-domain``: only when asked for (``Offer.lenient_paths``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from postbus.smtp.events import NO_DEFECTS

DOMAIN_MAX_OCTETS = 255  # RFC 5321 s4.5.3.1.2; a local part over 64 is taken, since VERP senders exceed it

UTF8 = r"\u00a0-\U0010ffff"  # UTF8-non-ascii (RFC 6531 s3.3) without the C1 controls
_ATEXT = rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~{UTF8}-]"
_QUOTED = rf'"(?:[ !#-\[\]-~{UTF8}]|\\[ -~])*"'
_LABEL = rf"[A-Za-z0-9_{UTF8}](?:[A-Za-z0-9_{UTF8}-]*[A-Za-z0-9_{UTF8}])?"
_DOMAIN = rf"{_LABEL}(?:\.{_LABEL})*\.?"  # the root's dot: some resolvers' output reaches us so
_LITERAL = r"\[[!-Z^-~]+\]"
_AT = rf"(?:{_DOMAIN}|{_LITERAL})"

MAILBOX = re.compile(rf"(?P<local>(?:{_ATEXT}|\.)+|{_QUOTED})(?:@(?P<domain>{_AT}))?")
SOURCE_ROUTE = re.compile(rf"@{_AT}(?:,@{_AT})*:")  # RFC 5321 appendix C: accepted and ignored
KEYWORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*", re.ASCII)
VALUE = re.compile(rf"[!-<>-~{UTF8}]+")  # esmtp-value; non-ASCII for ORCPT under SMTPUTF8 (RFC 6533 s3)
XTEXT = r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*"  # RFC 3461 s4

# What most mail has: an address of letters, digits, hyphens and dots, nothing to judge and nothing behind it; or the null path.
_PLAIN_PATH = r"<(|[A-Za-z0-9_+=-]+(?:\.[A-Za-z0-9_+=-]+)*@[A-Za-z0-9]+(?:[.-][A-Za-z0-9]+)*)>"
_PLAIN = re.compile(_PLAIN_PATH)
PLAIN_SENDER = re.compile(rf"[Ff][Rr][Oo][Mm]:{_PLAIN_PATH}")
PLAIN_RECIPIENT = re.compile(rf"[Tt][Oo]:{_PLAIN_PATH.replace('(|', '(')}")


class Path(NamedTuple):
    """A parsed path: the address without brackets and route (``""`` = null), what was tolerated, and what stands behind it."""

    address: str
    defects: Mapping[str, int]
    rest: str


def parse_path(text: str, *, lenient: bool) -> Path | None:
    """Read the path that *text* begins with, or ``None``; domains are checked, the rest is not looked at.

    ``<>`` gives the address ``""``; ``<Postmaster>`` and, when *lenient*, other local parts come without a domain. The caller
    decides whether such addresses are welcome.
    """
    plain = _PLAIN.match(text)
    if plain is not None and plain.end() <= DOMAIN_MAX_OCTETS:
        return Path(plain[1], NO_DEFECTS, text[plain.end() :])
    defects: dict[str, int] = {}
    start = 1
    if not text.startswith("<"):
        if not lenient:
            return None
        defects["no-brackets"] = 1
        start = 0
    elif (route := SOURCE_ROUTE.match(text, 1)) is not None:
        start = route.end()
    mailbox = MAILBOX.match(text, start)
    if mailbox is None or not _judge(mailbox["local"], mailbox["domain"], defects, lenient=lenient):
        return None
    end = mailbox.end()
    if start and text[end : end + 1] != ">":
        return None
    return Path(mailbox[0], defects or NO_DEFECTS, text[end + 1 :] if start else text[end:])


def _judge(local: str, domain: str | None, defects: dict[str, int], *, lenient: bool) -> bool:
    """Return whether the parts of a mailbox will do, and add to *defects* what is tolerated in them."""
    if local[0] != '"' and (local[0] == "." or local[-1] == "." or ".." in local):
        defects["dots"] = 1
    if domain is None:
        if local.lower() == "postmaster":  # RFC 5321 s4.1.1.3
            return True
        defects["no-domain"] = 1
        return lenient
    if domain[0] == "[":
        return is_literal(domain)
    if "_" in domain:
        defects["underscore"] = 1
    return len(domain.encode()) <= DOMAIN_MAX_OCTETS


def is_literal(domain: str) -> bool:
    """Return whether *domain*, brackets included, is an address literal (RFC 5321 s4.1.3)."""
    inner = domain[1:-1]
    try:
        if inner[:5].lower() == "ipv6:":  # the only tag registered
            return "%" not in str(IPv6Address(inner[5:]))  # a zone is no part of an address literal
        IPv4Address(inner)
    except ValueError:
        return False
    return True


def parse_parameters(text: str) -> Mapping[str, str | None] | None:
    """Read ``SP keyword ["=" value] ...`` (RFC 5321 s4.1.2), keys upper-case; ``None`` if malformed, ``{}`` if empty.

    A keyword given twice is malformed too.
    """
    found: dict[str, str | None] = {}
    for word in filter(None, text.split(" ")):  # SP alone parts them, no other white space of Unicode
        keyword, equals, value = word.partition("=")
        key = keyword.upper()
        if key in found or KEYWORD.fullmatch(keyword) is None or (equals and VALUE.fullmatch(value) is None):
            return None
        found[key] = value if equals else None
    return found
