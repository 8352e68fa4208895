"""What a sender said beside the two addresses: the parameters of MAIL, and those of this event's RCPT, as the event tells them.

The record keeps them as they were sent, whichever they are (``Mail.params``, ``Recipient.params``), so that rows of any age can be told in
the words of today. Those that have a field of their own are typed; every other one stands under ``other`` by its keyword.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from postbus.event.charsets import scrub_line

Said = Mapping[str, str | None]

_BODIES: Final = frozenset(("7BIT", "8BITMIME", "BINARYMIME"))
_TYPED = frozenset(("SIZE", "BODY", "SMTPUTF8", "ENVID", "RET", "REQUIRETLS", "MT-PRIORITY", "BY", "AUTH", "NOTIFY", "ORCPT"))
_SIZE: Final = re.compile(r"\d{1,18}", re.ASCII)
_PRIORITY: Final = re.compile(r"-?\d", re.ASCII)
_BY: Final = re.compile(r"([+-]?\d{1,9});([NRnr])([Tt]?)", re.ASCII)
_MODES = {"N": "notify", "R": "return"}


def told(mail: Said, rcpt: Said, *, smtputf8: bool) -> dict[str, Any]:
    """Return the event's ``envelope.params``.

    Args:
        mail: parameters of MAIL, keys upper-case, values as sent (``None``: a bare keyword).
        rcpt: those of the RCPT this event is for, and of no other.
        smtputf8: MAIL had SMTPUTF8.
    """
    size = mail.get("SIZE") or ""
    body = (mail.get("BODY") or "").upper()
    notify = rcpt.get("NOTIFY")
    priority = mail.get("MT-PRIORITY") or ""
    return {
        "size": int(size) if _SIZE.fullmatch(size) else None,
        "body": body if body in _BODIES else "7BIT",
        "smtputf8": smtputf8,
        "envid": _text(mail.get("ENVID")),
        "ret": _text(mail.get("RET")),
        "notify": scrub_line(notify).split(",") if notify else [],
        "orcpt": _text(rcpt.get("ORCPT")),
        "requireTls": "REQUIRETLS" in mail,
        "priority": int(priority) if _PRIORITY.fullmatch(priority) else None,
        "by": _by(mail.get("BY")),
        "auth": _text(mail.get("AUTH")),
        "other": {"mail": _other(mail), "rcpt": _other(rcpt)},
    }


def _text(value: str | None) -> str | None:
    return None if value is None else scrub_line(value)


def _by(value: str | None) -> dict[str, Any] | None:
    found = _BY.fullmatch(value or "")
    return None if found is None else {"seconds": int(found[1]), "mode": _MODES[found[2].upper()], "trace": bool(found[3])}


def _other(said: Said) -> dict[str, str | None]:
    return {scrub_line(key): _text(value) for key, value in said.items() if key not in _TYPED} if said else {}
