"""XCLIENT and XFORWARD, Postfix's extensions for mail proxies and filters: attributes, their forms, what EHLO says (XCLIENT_README).

    XCLIENT  SP attribute "=" value ...    the client is not I, it is this one: the session begins anew with the banner
    XFORWARD SP attribute "=" value ...    the next mail came to me from there: a fact about it, and no more

A value is xtext (RFC 3461 s4), or ``[UNAVAILABLE]`` or ``[TEMPUNAVAIL]``, which become None. Who may say such things is not decided
here: ``Offer.xclient`` and ``Offer.xforward`` are set for peers that may.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from ipaddress import ip_address

from postbus.smtp import grammar

TEXT_MAX_OCTETS = 255  # of a value, decoded
UNAVAILABLE = frozenset({"[UNAVAILABLE]", "[TEMPUNAVAIL]"})

_HEX = re.compile(r"\+([0-9A-F]{2})")
_XTEXT = re.compile(grammar.XTEXT)
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
_PORT = re.compile(r"[0-9]{1,5}")

Form = Callable[[str], str | None]
"""Returns a value in canonical form; None: it has not the right one."""


def _text(value: str) -> str | None:
    return value or None


def _host(value: str) -> str | None:
    return value if _HOST.fullmatch(value) else None


def _port(value: str) -> str | None:
    return str(int(value)) if _PORT.fullmatch(value) and int(value) <= 65_535 else None


def _address(value: str) -> str | None:
    """Read an IPv4 address, or an IPv6 one with or without ``IPV6:`` before it."""
    tagged = value[:5].upper() == "IPV6:"
    try:
        address = ip_address(value[5:] if tagged else value)
    except ValueError:
        return None
    return None if "%" in value or (tagged and address.version == 4) else str(address)


def _one_of(*words: str) -> Form:
    return lambda value: value.upper() if value.upper() in words else None


XCLIENT: Mapping[str, Form] = {
    "NAME": _host,
    "ADDR": _address,
    "PORT": _port,
    "PROTO": _one_of("SMTP", "ESMTP"),
    "HELO": _text,
    "LOGIN": _text,
    "DESTADDR": _address,
    "DESTPORT": _port,
}
XFORWARD: Mapping[str, Form] = {  # names and addresses of other protocols and networks are allowed here
    "NAME": _text,
    "ADDR": _text,
    "PORT": _port,
    "PROTO": _text,
    "HELO": _text,
    "IDENT": _text,
    "SOURCE": _one_of("LOCAL", "REMOTE"),
}


def attributes(arg: str | None, known: Mapping[str, Form]) -> Mapping[str, str | None] | None:
    """Return the attributes in *arg*, names in upper case, values decoded; None: a name or a form is wrong, or there is none."""
    found: dict[str, str | None] = {}
    for word in filter(None, (arg or "").split(" ")):
        name, equals, value = word.partition("=")
        form = known.get(name.upper())
        if form is None or not equals or name.upper() in found:
            return None
        if value.upper() in UNAVAILABLE:
            found[name.upper()] = None
            continue
        text = _decoded(value)
        canonical = None if text is None else form(text)
        if canonical is None:
            return None
        found[name.upper()] = canonical
    return found or None


def _decoded(value: str) -> str | None:
    """Return xtext decoded; None where it is not that, not UTF-8, too long, or holds what would garble a line."""
    if not _XTEXT.fullmatch(value):
        return None
    octets = _HEX.sub(lambda match: chr(int(match[1], 16)), value).encode("latin-1")
    try:
        text = octets.decode()
    except UnicodeDecodeError:
        return None
    return text if len(octets) <= TEXT_MAX_OCTETS and text.isprintable() else None
