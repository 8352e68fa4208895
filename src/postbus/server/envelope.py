"""What a client says of one message: one ``Envelope`` per transaction, as handlers see it."""

from __future__ import annotations

from copy import copy
from typing import Any, Self

from postbus.server.body import Body


class Envelope:
    """One mail transaction; a new one replaces it after each message and at HELO, EHLO, LHLO, RSET and STARTTLS.

    Handlers may hang attributes of their own on it.

    Attributes:
        mail_from: reverse-path; the null one is ``<>``, as in aiosmtpd.
        mail_options: parameters of MAIL as a list of upper-case words, as in aiosmtpd.
        mail_params: the same by upper-case name, values as sent; None where a parameter has no value.
        smtp_utf8: MAIL carried SMTPUTF8 (RFC 6531).
        rcpt_tos: accepted recipients, in order; ``handle_RCPT`` appends to it.
        rcpt_options: parameters of all recipients in one list of upper-case words, as in aiosmtpd.
        rcpt_params: one mapping per recipient in ``rcpt_tos``, as ``mail_params``.
        body: the content, in memory or in a file; None before it has arrived.
        xforward: where the mail came from before it came to the peer, as XFORWARD said before MAIL; keys upper-case, None: not available.
        defects: what was tolerated in commands and content, kind to count: ``bare-lf``, ``long-line``, ...
    """

    mail_from: str | None = None
    smtp_utf8: bool = False
    body: Body | None = None
    decode: str | None = None
    _content: Any = None
    _original_content: bytes | None = None

    def __init__(self) -> None:
        self.mail_options: list[str] = []
        self.mail_params: dict[str, str | None] = {}
        self.rcpt_tos: list[str] = []
        self.rcpt_options: list[str] = []
        self.rcpt_params: list[dict[str, str | None]] = []
        self.defects: dict[str, int] = {}
        self.xforward: dict[str, str | None] = {}

    def parted(self) -> Self:
        """Return one like it for the session to go on with, while a hook that was answered for still works on this one.

        Lists, mappings and sets, a handler's own included, are copied; what they hold is not.
        """
        twin = copy(self)
        vars(twin).update({name: copy(value) for name, value in vars(self).items() if isinstance(value, list | dict | set)})
        return twin

    @property
    def original_content(self) -> bytes | None:
        """The message as octets, dots taken out; None before it has arrived. Reads a spilled body from its file, on the first use."""
        if self._original_content is None and self.body is not None:
            self._original_content = self.body.read()
        return self._original_content

    @original_content.setter
    def original_content(self, octets: bytes | None) -> None:
        self._original_content = octets

    @property
    def content(self) -> Any:
        """The message as octets, or as text when the server was made with ``decode_data``; None before it has arrived."""
        if self._content is None:
            octets = self.original_content
            if octets is None or self.decode is None:
                return octets
            self._content = octets.decode(self.decode, "surrogateescape")
        return self._content

    @content.setter
    def content(self, content: Any) -> None:
        self._content = content
