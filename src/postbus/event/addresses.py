"""Address headers to mailboxes (RFC 5322 s3.4, obsolete forms included), structure first, decoding after.

An encoded word may decode to a comma or an angle bracket; read in that order it stays part of a name. One pass over
tokens, linear; what fits no grammar comes out as one entry with ``valid`` false, never as an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from postbus.event import charsets, making
from postbus.event.headers import decode_words
from postbus.event.parsed import Address, Defect

ADDRESSES_MAX = 1000
"""Mailboxes read from one header; a postmaster's own limit on recipients is of that order."""

_TOKEN = re.compile(r"""("(?:[^"\\]|\\.)*"?)|(\[[^\]]*\]?)|([<>,;:()\\@])|([ \t\r\n]+)|([^"\[<>,;:()\\@ \t\r\n]+)""", re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\U0010ffff-]+"
_PLAIN_SPEC = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*"
# One mailbox without comments, escapes and the like: most headers.
_PLAIN = re.compile(rf"""(?:([\w !#$%&'*+/=?^`{{|}}~.-]*|"[^"\\]*"[ \t]*)<({_PLAIN_SPEC})>|({_PLAIN_SPEC}))""")
_ADDR_SPEC = re.compile(rf'(?:{_ATOM}(?:\.{_ATOM})*|"(?:[^"\\]|\\.)*")@(?:{_ATOM}(?:\.{_ATOM})*|\[[^\[\]\\]*\])')


def addresses(text: str, defects: list[Defect]) -> tuple[tuple[Address, ...], bool]:
    """Return the mailboxes of an address header and whether there were more than ADDRESSES_MAX.

    Args:
        text: the value, unfolded, encoded words not yet decoded.
        defects: added to.
    """
    match = _PLAIN.fullmatch(text)
    if match:
        name, routed, bare = match.groups()
        return (making.address(_name(name, defects) if name else None, routed or bare),), False
    found: list[Address] = []
    for address in _Reader(text, defects).read():
        if len(found) == ADDRESSES_MAX:
            return tuple(found), True
        found.append(address)
    return tuple(found), False


def _name(text: str, defects: list[Defect]) -> str | None:
    """Return a display name without its quotes, decoded, or ``None`` when it is empty."""
    text = text.strip(" \t\r\n")
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = _ESCAPE.sub(r"\1", text[1:-1])
    if "=?" in text:
        text, _ = decode_words(text, defects)
    return charsets.scrub_address(text).strip() or None


class _Reader:
    """The tokens of one address header, gathered into mailboxes.

    ``phrase`` is what stands before an angle bracket (or is the address itself when none comes), ``route`` what stands
    inside one, ``comments`` what stood in parentheses (old mail keeps the name there).
    """

    def __init__(self, text: str, defects: list[Defect]) -> None:
        self.text = text
        self.defects = defects
        self.group: str | None = None
        self._clear()

    def _clear(self) -> None:
        self.phrase: list[str] = []
        self.route: list[str] | None = None
        self.inside = False
        self.comments: list[list[str]] = []
        self.depth = 0

    def read(self) -> Iterator[Address]:
        """Yield the mailboxes in order."""
        for match in _TOKEN.finditer(self.text):
            quoted, literal, mark, blank, word = match.groups()
            if self.depth:
                self._comment(match[0])
            elif mark == "(":
                self.depth = 1
                self.comments.append([])
            elif self.inside:
                self._angle(match[0], blank)
            elif mark in (",", ";", ":", "<"):
                yield from self._mark(mark)
            else:
                self.phrase.append(quoted or literal or word or mark or " ")
        yield from self._finish()

    def _comment(self, token: str) -> None:
        self.depth += {"(": 1, ")": -1}.get(token, 0)
        if self.depth:
            self.comments[-1].append(token)

    def _angle(self, piece: str, blank: str | None) -> None:
        if piece == ">":
            self.inside = False
        elif not blank and self.route is not None:
            self.route.append(piece)

    def _mark(self, mark: str) -> Iterator[Address]:
        if mark == "<":
            self.inside = True
            self.route = []
            return
        if mark == ":" and self.route is None and "@" not in self.phrase and self.group is None:
            self.group = _name("".join(self.phrase), self.defects) or ""
            self._clear()
            return
        yield from self._finish()
        if mark == ";":
            self.group = None

    def _finish(self) -> Iterator[Address]:
        """Yield the mailbox gathered so far, if there is one, and begin anew."""
        phrase = "".join(self.phrase).strip()
        comment = next((text for pieces in self.comments if (text := "".join(pieces).strip())), "")
        if self.route is not None:
            name, address = phrase or comment, _without_route("".join(self.route))
        else:
            name, address = comment, _compact(self.phrase) if "@" in self.phrase else phrase
        self._clear()
        if not address and not name:
            return
        clean = charsets.scrub_address(address)
        valid = clean == address and _ADDR_SPEC.fullmatch(address) is not None
        if not valid:
            self.defects.append(Defect("address.invalid", None, "no addr-spec"))
        yield Address(_name(name, self.defects), clean, self.group or None, valid)


def _without_route(address: str) -> str:
    """Return *address* without an obsolete source route (``@a,@b:user@host``, RFC 5322 s4.4)."""
    return address.rpartition(":")[2] if address.startswith("@") else address


def _compact(tokens: list[str]) -> str:
    """Return a bare address: blanks round its dots and at-sign are old syntax (RFC 5322 s4.4) and go; inner ones show it is no address."""
    return re.sub(r"[ \t\r\n]*([.@])[ \t\r\n]*", r"\1", "".join(tokens).strip())
