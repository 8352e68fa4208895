"""Every reply the server can send (RFC 5321 s4.2, RFC 3463), as values."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Reply:
    """One SMTP reply.

    Attributes:
        code: 200 to 599.
        text: one line, or several for a multi-line reply; ASCII (UTF-8 after SMTPUTF8), no CR or LF.
        enhanced: enhanced status code such as ``"2.1.0"``, or ``""`` where none belongs (EHLO, banner, 354).
        close: the connection ends once this reply is sent.
        wire: the reply as octets, made once.
    """

    code: int
    text: str | tuple[str, ...]
    enhanced: str = ""
    close: bool = False
    wire: bytes = field(init=False, repr=False, compare=False, default=b"")
