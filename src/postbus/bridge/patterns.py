r"""Recipient patterns: how they are written, and what each one asks of an address.

Every pattern is compared with the whole address in its normalised form (``event.ids.normalize``): local part in lower case,
its tag kept, domain as lower-case A-labels. Patterns are brought into the same form, so their case does not matter.

    support@example.org          this address
    *@example.org                every address of the domain; ``*`` is any run of characters, also none
    orders-*@*.example.org       the same in any place; ``*.example.org`` does not take example.org itself
    support+*@example.org        the tag is part of the pattern
    postmaster                   the address without a domain, which is legal for this one name (RFC 5321 s4.5.1)
    *                            everyone
    /(?P<team>[a-z]+)@example\.org/   a regular expression for the whole address, its named groups are the event's captures

The tag is what follows the first ``+`` of a local part. A route with ``tags: true`` looks at addresses without their tag and
says it in the event; so does a pattern that has a ``+`` itself, except that it is compared with the tag in place. A regular
expression sees the whole address in any case; its group ``tag``, if it has one, is the tag.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from postbus.bridge.expressions import ExpressionError, compile_expression
from postbus.event.ids import normalize

STARS_MAX = 16
"""Each ``*`` is one pass over the address; nothing sensible has more."""

Kind = Literal["exact", "domain", "wildcard", "expression", "everyone"]


class PatternError(ValueError):
    """The pattern cannot be used; ``message`` is what is wrong, ``remedy`` what would be right."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message, remedy)
        self.message, self.remedy = message, remedy


@dataclass(frozen=True, slots=True)
class Pattern:
    """One pattern, ready to be compared.

    Attributes:
        text: as configured: what log and event call the pattern.
        kind: ``exact`` and ``domain`` (``*@example.org``) are found by lookup, the others are tried.
        key: the address, or the domain the pattern is bound to; ``""`` where there is neither.
        expression: for ``wildcard`` and ``expression``, to be used with ``fullmatch``.
        untagged: compare with the address without its tag.
        tagged: say the tag.
    """

    text: str
    kind: Kind
    key: str = ""
    expression: re.Pattern[str] | None = None
    untagged: bool = False
    tagged: bool = False


def compile_pattern(text: str, *, tags: bool = False) -> Pattern:
    """Return *text* ready to be compared; *tags* is the route's.

    Raises:
        PatternError: it is no pattern, or one that could keep the process busy.
    """
    if text == "*":
        return Pattern(text, "everyone", tagged=tags)
    if text.startswith("/"):
        return _expression(text)
    if any(c.isspace() or not c.isprintable() for c in text) and not text.startswith('"'):
        raise PatternError("an address has no white space", "write one pattern an item")
    local, at, domain = text.rpartition("@")
    if not at:
        return _bare(text)
    if not local or not domain:
        raise PatternError("half of the address is missing", f"write *{text}" if domain else f"write {text}example.org or {text}*")
    return _address(text, local, domain, tags=tags)


def split_tag(address: str) -> tuple[str, str | None]:
    """Return the normalised *address* without its tag, and the tag; ``None`` where it has none.

    A quoted local part has no tag, and neither has one that starts with ``+``: nothing would be left of it.
    """
    local, _, domain = address.rpartition("@")
    at = local.find("+")
    if at < 1 or local.startswith('"'):
        return address, None
    return f"{local[:at]}@{domain}", local[at + 1 :]


def _expression(text: str) -> Pattern:
    if len(text) < 3 or not text.endswith("/"):
        raise PatternError("a regular expression stands between two slashes", "write /.../")
    try:
        return Pattern(text, "expression", expression=compile_expression(text[1:-1]))
    except ExpressionError as error:
        raise PatternError(error.message, error.remedy) from None


def _bare(text: str) -> Pattern:
    if text.lower() == "postmaster":
        return Pattern(text, "exact", key="postmaster")
    if re.fullmatch(r"[\w-]+(\.[\w-]+)+", text):
        raise PatternError("a domain alone is no pattern", f"write *@{text}")
    raise PatternError("an address has a domain", f"write {text}@example.org or {text}@*")


def _address(text: str, local: str, domain: str, *, tags: bool) -> Pattern:
    plus = "+" in local and not local.startswith('"')
    untagged, tagged = tags and not plus, tags or plus
    if text.count("*") > STARS_MAX:
        raise PatternError(f"more than {STARS_MAX} `*`", "use fewer")
    if "*" not in text:
        return Pattern(text, "exact", normalize(text), untagged=untagged, tagged=tagged)
    host = _host(domain)
    if local == "*" and "*" not in host:
        return Pattern(text, "domain", host, untagged=untagged, tagged=tagged)
    bound = "" if "*" in host else host
    mailbox = local if "*" in local else normalize(f"{local}@x")[:-2]
    whole = re.compile(f"{_run(mailbox.lower(), '.', '@')}{_run(host, '[^@]', '')}", re.ASCII | re.DOTALL)
    return Pattern(text, "wildcard", bound, whole, untagged, tagged)


def _host(domain: str) -> str:
    """Return *domain* with its labels as lower-case A-labels; a label with a ``*`` must be ASCII, since A-labels have no parts."""
    if "*" not in domain:
        return normalize(f"x@{domain}")[2:]
    labels = domain.split(".")
    if any("*" in label and not label.isascii() for label in labels):
        raise PatternError("`*` inside a label with other than ASCII letters", "write the label in its A-label form (xn--...)")
    return ".".join(label.lower() if "*" in label else normalize(f"x@{label}")[2:] if label else "" for label in labels)


def _run(text: str, any_character: str, tail: str) -> str:
    """Return the expression for *text* with its ``*``.

    Each piece between two ``*`` is taken where it first fits and not tried again (``(?>...)``): with wildcards a later place
    can only be worse, so the work is bounded by length x pieces.
    """
    first, *others = text.split("*")
    if not others:
        return re.escape(text + tail)
    pieces = [f"(?>{any_character}*?{re.escape(piece)})" for piece in others[:-1]]
    return f"{re.escape(first)}{''.join(pieces)}{any_character}*{re.escape(others[-1] + tail)}"
