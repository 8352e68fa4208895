"""What clients say in the mechanisms we have: octets to names and passwords, or ``None`` where they are not of the mechanism's form.

Pure. Names and passwords must be UTF-8 without NUL (RFC 4616 s2); ``saslprep`` makes equal what people mean to be equal.
"""

from __future__ import annotations

import re
import stringprep
import unicodedata
from collections.abc import Mapping

from postbus.server.auth import BearerToken, ClientCertificate, LoginPassword

TOKEN = re.compile(rb"[A-Za-z0-9._~+/-]+=*")  # RFC 6750 s2.1

_PROHIBITED = (
    stringprep.in_table_c12, stringprep.in_table_c21_c22, stringprep.in_table_c3, stringprep.in_table_c4, stringprep.in_table_c5,
    stringprep.in_table_c6, stringprep.in_table_c7, stringprep.in_table_c8, stringprep.in_table_c9,
)  # fmt: skip


def saslprep(text: str) -> str | None:
    """Return *text* as it is to be compared and hashed (RFC 4013, a query: characters newer than Unicode 3.2 pass), or ``None``.

    ``None``: it is empty, or holds what no name or password may hold, such as control characters.
    """
    if text.isascii():  # nothing to map
        return text if text and text.isprintable() else None
    mapped = "".join(" " if stringprep.in_table_c12(char) else char for char in text if not stringprep.in_table_b1(char))
    made = unicodedata.normalize("NFKC", mapped)
    if not made or any(prohibited(char) for char in made for prohibited in _PROHIBITED):
        return None
    return made if _one_direction(made) else None


def _one_direction(text: str) -> bool:
    """Return whether *text* mixes no directions of writing (RFC 3454 s6)."""
    if not any(map(stringprep.in_table_d1, text)):
        return True
    return not any(map(stringprep.in_table_d2, text)) and stringprep.in_table_d1(text[0]) and stringprep.in_table_d1(text[-1])


def login_password(login: bytes, password: bytes) -> LoginPassword | None:
    """Return the two, if both are there, and UTF-8 without NUL."""
    return LoginPassword(login, password) if _is_text(login) and _is_text(password) else None


def read_plain(octets: bytes) -> tuple[bytes, LoginPassword] | None:
    """Return whom the client wants to be (``b""``: itself), and who it is (RFC 4616 s2: ``[authzid] NUL authcid NUL passwd``)."""
    parts = octets.split(b"\0")
    if len(parts) != 3 or not (parts[0] == b"" or _is_text(parts[0])):
        return None
    who = login_password(parts[1], parts[2])
    return None if who is None else (parts[0], who)


def read_oauthbearer(octets: bytes) -> BearerToken | None:
    """Return the token (RFC 7628 s3.1: ``n,[a=authzid],^A key=value ^A ... ^A``, a channel binding is not supported)."""
    header, _, rest = octets.partition(b"\1")
    parts = header.split(b",")
    if len(parts) != 3 or parts[0] not in {b"n", b"y"} or parts[2] or not (parts[1] == b"" or parts[1].startswith(b"a=")):
        return None
    login = parts[1][2:].replace(b"=2C", b",").replace(b"=3D", b"=")  # RFC 5801 s4
    return _bearer(login, _pairs(rest))


def read_xoauth2(octets: bytes) -> BearerToken | None:
    """Return the token (Google's and Microsoft's form: ``user=name ^A auth=Bearer token ^A ^A``)."""
    pairs = _pairs(octets)
    return None if pairs is None or not pairs.get(b"user") else _bearer(pairs[b"user"], pairs)


def _pairs(octets: bytes) -> Mapping[bytes, bytes] | None:
    """Return the key=value pairs, each ended by ^A, all by another."""
    if not octets.endswith(b"\1\1"):
        return None
    found = {}
    for pair in octets[:-2].split(b"\1"):
        key, equals, value = pair.partition(b"=")
        if not equals or not key.isalpha() or key in found:
            return None
        found[key] = value
    return found


def _bearer(login: bytes, pairs: Mapping[bytes, bytes] | None) -> BearerToken | None:
    scheme, _, token = (pairs or {}).get(b"auth", b"").partition(b" ")
    if scheme.lower() != b"bearer" or TOKEN.fullmatch(token) is None or not (login == b"" or _is_text(login)):
        return None
    return BearerToken(login, token)


def read_external(octets: bytes, certificate: Mapping[str, object], subject: str) -> ClientCertificate | None:
    """Return whom *certificate* (as ``SSLSocket.getpeercert`` gives it) speaks for; ``None``: not for whom the client asks in *octets*."""
    names = (subject, *_values(certificate, "subject", "commonName"), *_values(certificate, "subjectAltName", None))
    wanted = octets.decode("utf-8", "replace")
    if wanted and wanted not in names:
        return None
    return ClientCertificate((wanted or subject).encode(), subject, names)


def _values(certificate: Mapping[str, object], part: str, key: str | None) -> list[str]:
    """Return the values in *part*, whose form is pairs, or tuples of pairs."""
    found = certificate.get(part)
    entries = found if isinstance(found, tuple) else ()
    pairs = [pair for entry in entries for pair in ([entry] if entry and isinstance(entry[0], str) else entry)]
    return [value for name, value in pairs if key in {None, name} and isinstance(value, str)]


def _is_text(octets: bytes) -> bool:
    """Return whether *octets* are a name or password as they may be sent."""
    try:
        return bool(octets) and b"\0" not in octets and bool(octets.decode())
    except UnicodeDecodeError:
        return False
