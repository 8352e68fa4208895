"""What a sender said beside the two addresses: the parameters of MAIL, and those of this event's RCPT, as the event tells them.

The record keeps them as they were sent, whichever they are (``Mail.params``, ``Recipient.params``), so that rows of any age can be told in
the words of today. Those that have a field of their own are typed; every other one stands under ``other`` by its keyword.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from postbus.event.charsets import scrub_line

Said = Mapping[str, str | None]

_BODIES = frozenset(("7BIT", "8BITMIME", "BINARYMIME"))
_SIZE = re.compile(r"\d{1,18}", re.ASCII)
_PRIORITY = re.compile(r"-?\d", re.ASCII)
_BY = re.compile(r"([+-]?\d{1,9});([NRnr])([Tt]?)", re.ASCII)
_MODES = {"N": "notify", "R": "return"}


def told(mail: Said, rcpt: Said, *, smtputf8: bool) -> dict[str, Any]:
    """Return the event's ``envelope.params``.

    Args:
        mail: parameters of MAIL, keys upper-case, values as sent (``None``: a bare keyword).
        rcpt: those of the RCPT this event is for, and of no other.
        smtputf8: MAIL had SMTPUTF8.
    """
    found: dict[str, Any] = {
        "size": None,
        "body": "7BIT",
        "smtputf8": smtputf8,
        "envid": None,
        "ret": None,
        "notify": [],
        "orcpt": None,
        "requireTls": False,
        "priority": None,
        "by": None,
        "auth": None,
        "other": {"mail": _other(mail), "rcpt": _other(rcpt)},
    }
    for said, fields in ((mail, _OF_MAIL), (rcpt, _OF_RCPT)):
        for keyword, value in said.items():
            field = fields.get(keyword)
            if field is not None:
                found[field[0]] = field[1](value)
    return found


def _text(value: str | None) -> str | None:
    return None if value is None else scrub_line(value)


def _size(value: str | None) -> int | None:
    return int(value) if value and _SIZE.fullmatch(value) else None


def _body(value: str | None) -> str:
    body = (value or "").upper()
    return body if body in _BODIES else "7BIT"


def _notify(value: str | None) -> list[str]:
    return scrub_line(value).split(",") if value else []


def _priority(value: str | None) -> int | None:
    return int(value) if value and _PRIORITY.fullmatch(value) else None


def _by(value: str | None) -> dict[str, Any] | None:
    found = _BY.fullmatch(value or "")
    return None if found is None else {"seconds": int(found[1]), "mode": _MODES[found[2].upper()], "trace": bool(found[3])}


def _said(_value: str | None) -> bool:
    return True


Fields = Mapping[str, tuple[str, Callable[[str | None], object]]]

_OF_MAIL: Final[Fields] = {
    "SIZE": ("size", _size),
    "BODY": ("body", _body),
    "ENVID": ("envid", _text),
    "RET": ("ret", _text),
    "REQUIRETLS": ("requireTls", _said),
    "MT-PRIORITY": ("priority", _priority),
    "BY": ("by", _by),
    "AUTH": ("auth", _text),
}
"""Which field a parameter is told by, and what is made of its value."""
_OF_RCPT: Final[Fields] = {"NOTIFY": ("notify", _notify), "ORCPT": ("orcpt", _text)}
_TYPED: Final = frozenset((*_OF_MAIL, *_OF_RCPT, "SMTPUTF8"))


def _other(said: Said) -> dict[str, str | None]:
    return {scrub_line(key): _text(value) for key, value in said.items() if key not in _TYPED} if said else {}
