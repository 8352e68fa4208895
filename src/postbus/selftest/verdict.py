"""Judges a row by what could be observed: replies, their number and order, and whether the connection lived.

A server that is not postbus may rightly answer otherwise than the table says. What makes a row fail is therefore danger that shows on the
wire, never another code: replies to nothing that was sent (something smuggled was read), a command taken outside its transaction (state was
kept), control octets taken into a path, a mail taken for nobody, a command run out of an HTTP request, an answer that is owed and never
comes. All of it is pure; the words are in ``Word``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from postbus.selftest.played import Played
from postbus.selftest.reading import Unit, pairs
from postbus.selftest.vectors import Row

Word = Literal["pass", "safe", "lenient", "FAIL", "skipped"]
"""``pass``: the listed answer. ``safe``: another one, which refuses or hangs up as well. ``lenient``: took what the table refuses, and no
danger showed on the wire. ``FAIL``: danger showed, or no answer came. ``skipped``: not played, or not to its point."""

SEVERITY: tuple[Word, ...] = ("pass", "safe", "lenient", "FAIL")
"""From best to worst; the worst finding is the verdict."""

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_HTTP = frozenset({"GET", "POST", "CONNECT", "PUT", "HEAD", "OPTIONS", "DELETE", "PATCH", "TRACE", "PROPFIND", "PRI"})
_WITHIN = frozenset({"RCPT", "DATA", "BDAT"})
_PATHS = frozenset({"MAIL", "RCPT"})


@dataclass(frozen=True, slots=True)
class Verdict:
    """The word, and why in one line; nothing of the peer's text is in it but codes."""

    word: Word
    why: str = ""


def judge(row: Row, played: Played) -> Verdict:
    """Return the verdict on *row* as it was *played*."""
    spoiled = _spoiled(played)
    if spoiled is not None:
        return spoiled
    findings = [*_surplus(played), *_silence(played), *_units(row, played), *_end(row, played)]
    return max(findings, key=lambda finding: SEVERITY.index(finding.word), default=Verdict("pass"))


def _spoiled(played: Played) -> Verdict | None:
    """Return why the attack itself could not begin, ``None`` if it did."""
    if not played.early and played.greeting != "220":
        if played.greeting is None:
            return Verdict("FAIL", "hung up before its banner" if played.end == "closed" else "sent no banner")
        return Verdict("skipped", f"the banner was {played.greeting}")
    for one in played.exchanges:
        if one.part != "prologue" or one.agreed:
            continue
        what = (one.sent or b"TLS").split(b" ")[0].strip().decode("latin-1")
        if len(one.got) >= len(one.expected):
            return Verdict("skipped", f"answered {', '.join(one.got)} to {what}, before the attack began")
        return Verdict("FAIL", f"{'hung up' if played.end == 'closed' else 'did not answer'} at {what}, before the attack began")
    return None


def _surplus(played: Played) -> Iterator[Verdict]:
    """Find replies to nothing that was sent; a farewell before hanging up is none of them."""
    surplus = list(played.got.surplus)
    if surplus and played.end == "closed" and surplus[-1][:1] in {"4", "5"}:
        surplus.pop()
    if not surplus:
        return
    said = f"{len(surplus)} more {'reply' if len(surplus) == 1 else 'replies'} than it was asked for ({', '.join(surplus[:4])})"
    framed = any(unit.verb in {".", "BDAT", "STARTTLS"} for unit in played.got.units)
    # replies move up, so the last ones are not those too many: whether more was taken than the table takes says it
    taken = sum(code[:1] in {"2", "3"} for code in played.replies)
    allowed = sum(unit.good or unit.verb == "QUIT" for unit in played.expected.units)
    if framed or taken > allowed:
        yield Verdict("FAIL", f"smuggled: {said}")
    else:
        yield Verdict("lenient", f"read one line as several: {said}")


def _silence(played: Played) -> Iterator[Verdict]:
    """Find answers that are owed and did not come."""
    if played.end != "silent":
        return
    waiting = next((unit for unit in played.got.units if unit.reply is None), None)
    if waiting is None:
        return
    name = "the content" if waiting.verb == "." else waiting.verb or "an empty line"
    rest = played.got.owed
    answered = sum(unit.verb == waiting.verb == "." and unit.reply is not None for unit in played.got.units)
    if played.lmtp and answered:
        yield Verdict("FAIL", f"{answered} of {answered + rest} replies to the content: LMTP gives one for each accepted recipient")
    else:
        yield Verdict("FAIL", f"hung: no answer to {name}")


def _units(row: Row, played: Played) -> Iterator[Verdict]:
    """Find dangers and differences, reply by reply."""
    http = False
    for wanted, unit in pairs(played.expected.units, played.got.units):
        http = http or unit.verb in _HTTP
        if unit.good:
            danger = _danger(unit, http=http)
            if danger:
                yield Verdict("FAIL", danger)
                continue
        if wanted is not None:
            yield from _difference(row, wanted, unit, played)


def _danger(unit: Unit, *, http: bool) -> str:
    """Return what is dangerous about a good reply to *unit*; ``""`` if nothing."""
    if http and unit.verb != "QUIT":
        return f"ran {unit.verb} out of an HTTP request: {unit.reply}"
    if unit.verb in _WITHIN and not unit.transaction and not (unit.reply or "").startswith("354"):
        return f"kept state: {unit.verb} was taken outside a transaction: {unit.reply}"
    whole = unit.verb == "." or (unit.verb == "BDAT" and b"LAST" in unit.octets.upper())
    if whole and not unit.recipients:
        return f"took a mail for no recipient: {unit.reply}"
    if unit.verb in _PATHS and (found := _CONTROL.search(unit.octets)):
        return f"took octet 0x{found[0][0]:02x} into the path of {unit.verb}: {unit.reply}"
    return ""


def _difference(row: Row, wanted: Unit, unit: Unit, played: Played) -> Iterator[Verdict]:
    """Compare a harmless reply with the one the table expects."""
    name = {".": "the content", "BANNER": "octets before the banner"}.get(unit.verb, unit.verb or "an empty line")
    if unit.reply is None:
        if played.end == "closed" and wanted.reply is not None:
            yield Verdict("safe", f"hung up, expected {wanted.reply} to {name}")
    elif unit.good:
        if wanted.good or (unit.verb == "QUIT" and wanted.reply is None):
            return  # that it lived to see QUIT is said once, by _end
        if unit.verb == "STARTTLS" and _went_to_tls(row, played):
            yield Verdict("safe", "went on to TLS, and what stood behind STARTTLS did not run")
        elif unit.verb == ".":
            yield Verdict("lenient", f"took it as one mail: {unit.reply}; see that it passes no such octets on")
        elif unit.verb == "BANNER":
            yield Verdict("lenient", f"took {name}, or had sent it before they came: {unit.reply}; a server that waits a moment can tell")
        else:
            yield Verdict("lenient", f"took {name}: {unit.reply}, expected {wanted.reply or 'to be cut off before'}")
    elif wanted.reply is None or wanted.reply[:3] != unit.reply[:3]:
        yield Verdict("safe", f"answered {unit.reply} to {name}, expected {wanted.reply or 'to be cut off before'}")


def _went_to_tls(row: Row, played: Played) -> bool:
    """Return whether the server dropped what stood behind STARTTLS, which RFC 3207 s4.2 allows as well as hanging up."""
    begun = any(exchange.part == "probe" and exchange.sent is None for exchange in played.exchanges)
    return row.one_segment and begun and played.end == "open"


def _end(row: Row, played: Played) -> Iterator[Verdict]:
    """Compare how the connection ended."""
    if row.closes and played.end == "open":
        if not _went_to_tls(row, played):
            yield Verdict("lenient", "does not hang up")
    elif not row.closes and played.end == "closed":
        yield Verdict("safe", "hung up")
    elif played.end == "no tls":
        yield Verdict("safe", "TLS could not be begun")


def differences(row: Row, played: Played) -> list[str]:
    """Return where *played* is not to the letter what the table says: for a server of our own, where every code counts."""
    found: list[str] = []
    for one in played.exchanges:
        # what the probe asks is no row's business but for its codes
        wanted, got = ([code[:3] if one.part == "probe" else code for code in codes] for codes in (one.expected, one.got))
        if wanted != got:
            found.append(f"{one.sent!r:.200}: expected {wanted}, got {got}")
    due = "closed" if row.closes else "left" if any(step.kind == "eof" for step in row.steps) else "open"
    if played.end != due:
        found.append(f"the connection should be {due}, and is {played.end}")
    return found
