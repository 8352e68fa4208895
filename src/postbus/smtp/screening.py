"""What a line is refused for before it is read as a command: the errors before it, its length, its characters.

Nearly every line is short and printable ASCII, which the engine sees at a glance; only what is left is looked at here.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from postbus.smtp import replies
from postbus.smtp.commands import VERBS
from postbus.smtp.replies import Reply
from postbus.smtp.terms import Limits

CLIENT_HELLO = b"\x16\x03"
"""How a TLS handshake record begins (RFC 8446 s5.1), and no command."""

_CHUNK_ANNOUNCED = re.compile(rb"BDAT[\x00-\x20]", re.IGNORECASE)  # with a tab, say: to some servers that is a chunk all the same
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # C0, DEL and C1


class Suspect(NamedTuple):
    """A line to be looked at.

    Attributes:
        octets: without CRLF; of a long one perhaps only the last.
        length: of the whole line with its CRLF, in octets.
        head: its first octets, as many as a verb and a space have.
        verb: upper-case, as far as it could be read.
        clean: all its characters may stand in a command.
    """

    octets: bytes
    length: int
    head: bytes
    verb: str
    clean: bool


def decode(line: bytes) -> tuple[str, bool]:
    """Return a line that is not ASCII as text, and whether it is UTF-8 without control characters (C1 included).

    A verb is ASCII; a letter whose upper case happens to be one makes none.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return line.decode("latin-1"), False
    return text if text.partition(" ")[0].isascii() else "", _CONTROL.search(text) is None


def judge(line: Suspect, limits: Limits, *, exhausted: bool) -> Reply | None:
    """Return why *line* is refused unread, if it is; *exhausted*: there were too many errors before it."""
    row = VERBS.get(line.verb)
    allowance = row.allowance_octets if row is not None else 0
    for bad, reply in (
        (line.octets.startswith(CLIENT_HELLO), replies.NOT_TLS),
        (line.length > limits.endless_octets, replies.ENDLESS_LINE),
        (exhausted, replies.TOO_MANY_ERRORS),
        (line.length > limits.command_octets + allowance, _too_long(line.head)),
        (not line.clean and _CHUNK_ANNOUNCED.match(line.head) is not None, replies.BAD_CHUNK),
        (not line.clean, row.malformed if row is not None else replies.UNKNOWN),
    ):
        if bad:
            return reply
    return None


def _too_long(head: bytes) -> Reply:
    """Return the answer to an overlong line that began with *head*, of which all but the last octet may be lost."""
    row = VERBS.get(head.partition(b" ")[0].decode("latin-1").upper())
    return replies.LINE_TOO_LONG if row is None else row.too_long
