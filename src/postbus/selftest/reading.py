"""How a strict server reads what was sent, beside what the server under test answered.

Replies belong to what they answer: a line ended by CRLF, a content ended by CRLF . CRLF, a chunk of counted octets, a response to a
challenge. ``read`` walks the octets and hands each of these units the next reply, following the server where its answers decide what comes
next (354, 220 to STARTTLS, 334). Replies that belong to nothing are ``surplus``: the server saw a unit where none is, which is how a
smuggled mail, or a command run from the wrong side of STARTTLS, shows on the wire.
Sources: RFC 5321 s2.3.8, s4.1.1.4; RFC 2033 s4.2; RFC 3030 s2;
RFC 3207 s4.2; RFC 4954 s4.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Literal

Place = Literal["command", "partial", "content", "chunk", "tls", "challenge", "quit"]
"""Where the octets end: behind a whole command, within a line, within content or a chunk, where only a handshake may follow, and so on."""

_CHUNK = re.compile(rb"BDAT +(\d{1,19})( +LAST)? *", re.IGNORECASE)
_GREETINGS = frozenset({"HELO", "EHLO", "LHLO"})


@dataclass(frozen=True, slots=True)
class Unit:
    """What is answered by one reply.

    Attributes:
        verb: in upper case; ``"."`` for content, ``"BANNER"`` for the greeting, ``"*"`` for a response to a challenge.
        octets: the line without CRLF, or the content.
        reply: code and enhanced code, such as ``"250 2.1.0"``; ``None`` if none came.
        transaction: a MAIL had been accepted and nothing ended it; recipients: how many RCPT had been accepted since.
    """

    verb: str
    octets: bytes
    reply: str | None
    transaction: bool
    recipients: int

    @property
    def good(self) -> bool:
        """The server agreed: 2xx, or 354 and 334, which ask for more. 221 to anything but QUIT is a farewell."""
        return self.reply is not None and self.reply[:1] in {"2", "3"} and (self.verb == "QUIT" or self.reply[:3] != "221")


@dataclass(frozen=True, slots=True)
class Reading:
    """The units in order, the replies that belong to none of them, and where the octets end."""

    units: tuple[Unit, ...]
    surplus: tuple[str, ...]
    place: Place

    @property
    def owed(self) -> int:
        """How many units have no reply yet."""
        return sum(unit.reply is None for unit in self.units)


@dataclass(slots=True)
class _Walk:
    """The state of one reading; ``left`` are the replies not yet handed out."""

    left: Iterator[str]
    lmtp: bool
    units: list[Unit] = field(default_factory=list)
    transaction: bool = False
    recipients: int = 0
    place: Place = "command"

    def answer(self, verb: str, octets: bytes) -> str:
        """Hand the next reply to a unit; return it, ``""`` if there is none."""
        unit = Unit(verb, octets, next(self.left, None), self.transaction, self.recipients)
        self.units.append(unit)
        return unit.reply or ""

    def forget(self) -> None:
        """Nothing of the transaction is left."""
        self.transaction, self.recipients = False, 0

    def end_mail(self, verb: str, octets: bytes) -> None:
        """Answer a whole message: once, in LMTP once for each accepted recipient (RFC 2033 s4.2; for none not at all)."""
        for _ in range(self.recipients if self.lmtp else 1):
            self.answer(verb, octets)
        self.forget()


def read(sent: Iterable[bytes | None], replies: Iterable[str], *, lmtp: bool = False, early: bool = False) -> Reading:
    """Return how a strict server reads *sent*, with its *replies*.

    Args:
        sent: octets in order; ``None`` is a TLS handshake.
        replies: codes in order, without the banner's unless *early*.
        lmtp: content is answered once for each accepted recipient.
        early: the octets were sent before the banner, whose reply (or the refusal in its place) comes first.
    """
    walk = _Walk(iter(replies), lmtp)
    if early:
        walk.answer("BANNER", b"")
    for layer in _layers(sent):
        if walk.place == "tls":
            walk.forget()
        walk.place = "command"
        _read_layer(walk, layer)
    return Reading(tuple(walk.units), tuple(walk.left), walk.place)


def _layers(sent: Iterable[bytes | None]) -> list[bytes]:
    """Return what was sent in plain text, and what after each handshake."""
    layers = [b""]
    for octets in sent:
        if octets is None:
            layers.append(b"")
        else:
            layers[-1] += octets
    return layers


def _read_layer(walk: _Walk, octets: bytes) -> None:
    at = 0
    while walk.place == "command" and at < len(octets):
        end = octets.find(b"\r\n", at)
        if end < 0:
            walk.place = "partial"
            return
        line, at = octets[at:end], end + 2
        at = _read_command(walk, line, octets, at)


def _read_command(walk: _Walk, line: bytes, octets: bytes, at: int) -> int:
    """Read the command *line*; return where in *octets* the next one begins."""
    verb = line.split(b" ")[0].decode("latin-1").upper()
    if verb == "BDAT" and (chunk := _CHUNK.fullmatch(line)):
        return _read_chunk(walk, chunk, octets, at)
    reply = walk.answer(verb, line)
    code = reply[:3]
    if verb == "DATA" and code == "354":
        return _read_content(walk, octets, at)
    if verb == "STARTTLS" and code == "220":
        walk.place = "tls"
    elif verb == "QUIT" and code == "221":
        walk.place = "quit"
    elif verb == "AUTH" and code == "334":
        return _read_responses(walk, octets, at)
    elif code.startswith("2"):
        if verb in _GREETINGS or verb in {"RSET", "XCLIENT"}:
            walk.forget()
        elif verb == "MAIL":
            walk.transaction, walk.recipients = True, 0
        elif verb == "RCPT":
            walk.recipients += 1
    return at


def _read_content(walk: _Walk, octets: bytes, at: int) -> int:
    """Read content up to its end, whose first CRLF may be that of the DATA line (RFC 5321 s4.1.1.4)."""
    end = octets.find(b"\r\n.\r\n", at - 2)
    if end < 0:
        walk.place = "content"
        return at
    walk.end_mail(".", octets[at : end + 2])
    return end + 5


def _read_chunk(walk: _Walk, chunk: re.Match[bytes], octets: bytes, at: int) -> int:
    """Read as many octets as a BDAT says; framing is by count alone (RFC 3030 s2)."""
    end = at + int(chunk[1])
    if end > len(octets):
        walk.place = "chunk"
        return at
    if chunk[2] and walk.transaction:
        walk.end_mail("BDAT", chunk[0])
    else:
        walk.answer("BDAT", chunk[0])
    return end


def _read_responses(walk: _Walk, octets: bytes, at: int) -> int:
    """Read responses to challenges until the server asks for no more (RFC 4954 s4)."""
    while True:
        end = octets.find(b"\r\n", at)
        if end < 0:
            walk.place = "challenge"
            return at
        line, at = octets[at:end], end + 2
        if not walk.answer("*", line).startswith("334"):
            return at


def pairs(expected: Sequence[Unit], got: Sequence[Unit]) -> Iterator[tuple[Unit | None, Unit]]:
    """Pair each unit that was answered with the one the table expects in its place; ``None`` past the table's end, or where they part."""
    alike = list(takewhile(lambda both: both[0].verb == both[1].verb, zip(expected, got, strict=False)))
    yield from alike
    for unit in got[len(alike) :]:
        yield None, unit
