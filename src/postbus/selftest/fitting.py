"""Fits the attack table to a server: puts in the addresses it knows, turns SMTP into LMTP, and says which rows it cannot be asked.

What a server is like is learned beforehand (``Known``): what its EHLO says, whether it wants TLS first. A row that is about a setting the
server has not, or does not show, is skipped with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from postbus.selftest.reading import read
from postbus.selftest.vectors import Row, Step


@dataclass(frozen=True, slots=True)
class Names:
    """The addresses to say. *refused* is a recipient the server answers with 5xx, ``None`` if none is known; *helo* is who we are."""

    recipient: str = "b@mx.test"
    refused: str | None = "nobody@mx.test"
    sender: str = "a@client.example"
    helo: str = "client.example"


TABLES_OWN = Names()
"""The names that stand in the table."""


@dataclass(frozen=True, slots=True)
class Known:
    """What was learned of a server.

    Attributes:
        protocol: which one it speaks; encrypted: TLS from the first octet; starttls: rows are played behind STARTTLS if they can be.
        keywords: of its EHLO, upper-case, with their parameters; after STARTTLS those of the second, and STARTTLS.
        plain_keywords: of its EHLO before STARTTLS.
        test_user: it knows the user test with the password 1234, who logs in throughout the table.
        tls_first: it answers 530 to MAIL before TLS; tls_trouble: why a STARTTLS cannot be followed, ``""`` if it can.
    """

    protocol: Literal["smtp", "lmtp"] = "smtp"
    encrypted: bool = False
    starttls: bool = False
    keywords: Mapping[str, str] = field(default_factory=dict)
    plain_keywords: Mapping[str, str] = field(default_factory=dict)
    tls_first: bool = False
    tls_trouble: str = ""
    test_user: bool = False


def _offers(keyword: str) -> Callable[[Known, Any], str]:
    """Return a rule: the keyword is announced if and only if the setting is true."""

    def rule(known: Known, wanted: Any) -> str:
        if (keyword in known.keywords) == bool(wanted):
            return ""
        return f"it announces no {keyword}" if wanted else f"it announces {keyword}"

    return rule


def _size(known: Known, wanted: Any) -> str:
    announced = known.keywords.get("SIZE", "")
    return "" if announced == str(wanted) else f"for a server whose SIZE is {wanted}"


def _tls_first(known: Known, wanted: Any) -> str:
    return "" if known.tls_first == bool(wanted) else "for a server that wants TLS first" if wanted else "it wants TLS first"


def _limits(known: Known, wanted: Any) -> str:
    """Settings that LIMITS tells (RFC 9422)."""
    told = dict(word.split("=", 1) for word in known.keywords.get("LIMITS", "").split() if "=" in word)
    shown = {name: told.get(keyword) for name, keyword in _LIMITS.items()}
    hidden = [f"{name} {value}" for name, value in wanted.items() if shown.get(name) != str(value)]
    return f"about a limit that is another there, or does not show: {', '.join(hidden)}" if hidden else ""


_LIMITS = {"mails": "MAILMAX", "recipients": "RCPTMAX", "recipient_domains": "RCPTDOMAINMAX"}


def _keywords(known: Known, wanted: Any) -> str:
    missing = [line for line in wanted if known.keywords.get(line.partition(" ")[0]) != line.partition(" ")[2]]
    return f"it does not announce {', '.join(missing)}" if missing else ""


def _deliverby(known: Known, wanted: Any) -> str:
    return "" if known.keywords.get("DELIVERBY") == str(wanted) else f"for a server that announces DELIVERBY {wanted}"


def _auth(known: Known, wanted: Any) -> str:
    offered = known.keywords.get("AUTH", "").split()
    if not wanted:
        return "it announces AUTH" if offered else ""
    if not set(wanted) <= set(offered):
        return f"it announces no AUTH {' '.join(wanted)}"
    return "" if known.test_user else "for a server that knows the table's user: say --test-user"


def _auth_tls(known: Known, wanted: Any) -> str:
    plainly = not known.encrypted and "AUTH" in known.plain_keywords
    return "it announces AUTH in plain text" if wanted and plainly else ""


SHOWN: Mapping[str, Callable[[Known, Any], str]] = {
    "auth": _auth,
    "auth_tls": _auth_tls,
    "limits": _limits,
    "keywords": _keywords,
    "deliverby_min_s": _deliverby,
    "requiretls": _offers("REQUIRETLS"),
    "starttls": _offers("STARTTLS"),
    "smtputf8": _offers("SMTPUTF8"),
    "chunking": _offers("CHUNKING"),
    "binarymime": _offers("BINARYMIME"),
    "xclient": _offers("XCLIENT"),
    "xforward": _offers("XFORWARD"),
    "size_octets": _size,
    "require_tls": _tls_first,
}
"""Settings of a row's server that show on the wire, and why a server does not fit (``""`` if it does)."""


def unfit(row: Row, known: Known, names: Names) -> str:
    """Return why *row* cannot be asked of the server; ``""`` if it can."""
    sent, needs = said(row), dict(row.server)
    if about_plain(row):
        if known.encrypted:
            return "about plain text, and TLS is on from the first octet"
        if b"STARTTLS" in sent:
            needs.setdefault("starttls", False)
        if needs.get("starttls") and known.tls_trouble:
            return f"about STARTTLS, which failed: {known.tls_trouble}"
    elif known.tls_first and not known.starttls:
        return "it wants TLS first: say --starttls"
    if b"BDAT" in sent:  # who does not know it takes chunks for commands, and nobody may send him any (RFC 3030 s2)
        needs.setdefault("chunking", True)
    if b"BINARYMIME" in sent:
        needs.setdefault("binarymime", True)
    if needs.pop("refuses", ()) and names.refused is None:
        return "needs a recipient that it refuses: say --refused"
    for setting, wanted in needs.items():
        rule = SHOWN.get(setting)
        why = rule(known, wanted) if rule else f"about a setting that does not show: {setting} {_said(wanted)}"
        if why:
            return why
    return _unfit_protocol(row, known, sent)


def about_plain(row: Row) -> bool:
    """Return whether *row* means something in plain text only: STARTTLS, a ClientHello, octets before the banner, AUTH in want of TLS."""
    sent = said(row)
    wanting = any(row.server.get(setting) for setting in ("auth_tls", "requiretls"))
    return b"STARTTLS" in sent or b"\x16\x03" in sent or row.early or wanting or "require_tls" in row.server


def said(row: Row) -> bytes:
    """Return all octets of *row*, in upper case."""
    return b"".join(step.octets for step in (*row.prologue, *row.steps)).upper()


def _said(wanted: Any) -> str:
    if isinstance(wanted, Mapping):
        return ", ".join(f"{key} {_said(value)}" for key, value in wanted.items())
    if isinstance(wanted, tuple):
        return " ".join(map(str, wanted))
    return str(wanted).lower() if isinstance(wanted, bool) else str(wanted)


_GREETING = re.compile(rb"(?m)^(EHLO|HELO|LHLO)\b", re.IGNORECASE)


def _unfit_protocol(row: Row, known: Known, sent: bytes) -> str:
    if row.protocol == known.protocol:
        return ""
    if known.protocol == "smtp":
        return "about LMTP"
    if re.search(rb"(?m)^(HELO|LHLO|STARTTLS)\b", sent):
        return "about SMTP's own greetings" if b"STARTTLS" not in sent else "about STARTTLS, which is asked in SMTP"
    return "" if _shape(row, lmtp=True) == _shape(row, lmtp=False) else "answered in another number in LMTP"


def _shape(row: Row, *, lmtp: bool) -> tuple[int, int]:
    """Return how many replies are missing and left over when the expected ones are handed out."""
    steps = (*row.prologue, *row.steps)
    codes = (code for step in steps for code in step.expect)
    reading = read((None if step.kind == "tls" else step.octets for step in steps), codes, lmtp=lmtp, early=row.early)
    return reading.owed, len(reading.surplus)


def fitted(row: Row, known: Known, names: Names) -> Row:
    """Return *row* as the server is to be asked: its protocol, and *names* for those of the table."""
    if known.protocol == "lmtp" and row.protocol == "smtp":
        row = replace(row, protocol="lmtp", prologue=_as_lmtp(row.prologue), steps=_as_lmtp(row.steps))
    refuses = tuple(row.server.get("refuses", ()))
    if names == TABLES_OWN and set(refuses) <= {names.refused}:
        return row
    change = _changes(names, refuses)
    return replace(row, prologue=_renamed(row.prologue, change), steps=_renamed(row.steps, change))


def _as_lmtp(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    return _renamed(steps, lambda octets: _GREETING.sub(b"LHLO", octets))


def _changes(names: Names, refuses: tuple[str, ...]) -> Callable[[bytes], bytes]:
    """Return what puts *names* in the place of the table's; other local parts of its domain move to the recipient's domain."""
    recipient = names.recipient.encode()
    table: dict[bytes, bytes] = {
        **{local + b"@mx.test": recipient for local in (b"b", b"c", b"d", b"e")},
        **{refused.encode(): (names.refused or refused).encode() for refused in refuses},
        b"a@client.example": names.sender.encode(),
        b"client.example": names.helo.encode(),
        b"mx.test": recipient.rpartition(b"@")[2],
    }
    # whole addresses between brackets: <.b..c.@mx.test> is another one, whose domain alone is changed
    whole = b"|".join(re.escape(key) for key in table if b"@" in key)
    pattern = re.compile(rb"(?<=<)(?:" + whole + rb")(?=>)|client\.example|mx\.test")
    return lambda octets: pattern.sub(lambda found: table[found[0]], octets)


_CHUNK = re.compile(rb"BDAT +(\d+)(?: +LAST)? *\r\n", re.IGNORECASE)


def _renamed(steps: tuple[Step, ...], change: Callable[[bytes], bytes]) -> tuple[Step, ...]:
    return tuple(replace(step, octets=b"".join(_renamed_parts(step.octets, change))) for step in steps)


def _renamed_parts(octets: bytes, change: Callable[[bytes], bytes]) -> Iterator[bytes]:
    """Put names into all but what a BDAT counts."""
    at = 0
    while found := _CHUNK.search(octets, at):
        end = min(found.end() + int(found[1]), len(octets))
        yield change(octets[at : found.start()]) + octets[found.start() : end]
        at = end
    yield change(octets[at:])
