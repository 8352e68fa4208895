"""Every reply the server can send (RFC 5321 s4.2, RFC 3463), as values.

The engine's own replies stand at the end as constants: a peer's fault is one of these, never an exception. Texts are generic on
purpose; what a log needs is in the event.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

_ENHANCED = re.compile(r"([245]\.\d{1,3}\.\d{1,3})(?:\s+|$)")  # RFC 3463 s2
_LINE = re.compile(r"([2-5]\d\d)(?:([ -])(.*))?")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f]")  # would end or garble a reply line


@dataclass(frozen=True, slots=True)
class Reply:
    """One SMTP reply.

    Attributes:
        code: 200 to 599.
        text: one line, or several for a multi-line reply; ASCII (UTF-8 after SMTPUTF8), no CR or LF.
        enhanced: enhanced status code such as ``"2.1.0"``, or ``""`` where none belongs (EHLO, banner, 354).
        close: the connection ends once this reply is sent; always so for 421 (RFC 5321 s4.2.2).
        wire: the reply as octets, made once.
    """

    code: int
    text: str | tuple[str, ...]
    enhanced: str = ""
    close: bool = False
    wire: bytes = field(init=False, repr=False, compare=False, default=b"")

    def __post_init__(self) -> None:
        """Check the parts and make the wire form.

        Raises:
            ValueError: the code is out of range, or a line holds a control character.
        """
        if not 200 <= self.code <= 599:
            msg = f"not a reply code: {self.code}"
            raise ValueError(msg)
        if self.code == 421:
            object.__setattr__(self, "close", True)
        lines = self.lines
        if _UNSAFE.search("".join(lines)):
            msg = f"a reply line may not hold control characters: {self.text!r}"
            raise ValueError(msg)
        head = f"{self.enhanced} " if self.enhanced else ""
        before = "".join([f"{self.code}-{head}{line}\r\n" for line in lines[:-1]])
        wire = f"{before}{self.code} {head}{lines[-1]}\r\n"
        object.__setattr__(self, "wire", wire.encode("utf-8", "replace"))

    @property
    def lines(self) -> tuple[str, ...]:
        """The text as lines, at least one."""
        return (self.text,) if isinstance(self.text, str) else self.text or ("",)

    def __str__(self) -> str:
        """Return what ``parse`` reads: code, enhanced code and text, lines parted by CRLF."""
        return self.wire.decode()[:-2]

    @staticmethod
    def parse(text: str) -> Reply:
        """Make the reply a hook's string stands for, such as ``"250 2.0.0 OK"``; several lines as on the wire.

        Cached, since hooks say the same few things.

        Raises:
            ValueError: *text* is not a reply.
        """
        return _parse(text)


@lru_cache(maxsize=512)
def _parse(text: str) -> Reply:
    rows = [_LINE.fullmatch(line) for line in re.split(r"\r?\n", text.rstrip("\r\n"))]
    found = [row for row in rows if row is not None]
    codes = {row[1] for row in found}
    if len(found) != len(rows) or len(codes) != 1 or any(row[2] != "-" for row in found[:-1]) or found[-1][2] == "-":
        msg = f"not a reply: {text!r}"
        raise ValueError(msg)
    code = int(codes.pop())
    lines = [row[3] or "" for row in found]
    heads = {match[1] if (match := _ENHANCED.match(line)) else "" for line in lines}
    enhanced = heads.pop() if len(heads) == 1 else ""
    if enhanced and enhanced[0] == str(code)[0]:  # RFC 2034 s3: the classes agree
        lines = [line[len(enhanced) :].lstrip() for line in lines]
    else:
        enhanced = ""
    return Reply(code, lines[0] if len(lines) == 1 else tuple(lines), enhanced)


def fold(replies: Sequence[Reply]) -> Reply:
    """Return the one reply SMTP can give for several recipients' outcomes: any 4xx, else any 2xx, else the first 5xx.

    A temporary failure wins, since the sender will come again for all; else one success wins, since a refusal would bounce what was taken.
    """
    for first in (4, 2):
        for reply in replies:
            if reply.code // 100 == first:
                return reply if first == 2 else LOCAL_ERROR
    return replies[0]


# --- what the shell answers by default
OK = Reply(250, "OK", "2.0.0")
SENDER_OK = Reply(250, "Sender OK", "2.1.0")
RECIPIENT_OK = Reply(250, "Recipient OK", "2.1.5")
START_MAIL = Reply(354, "End data with <CR><LF>.<CR><LF>")
CHUNK_OK = Reply(250, "Chunk OK", "2.0.0")
START_TLS = Reply(220, "Ready to start TLS", "2.0.0")
BYE = Reply(221, "Bye", "2.0.0")
CANNOT_VRFY = Reply(252, "Cannot VRFY user, but will accept message and attempt delivery", "2.5.2")  # RFC 5321 s3.5.3
NO_EXPN = Reply(502, "EXPN not available", "5.5.1")
LOCAL_ERROR = Reply(451, "Local error in processing", "4.3.0")
NO_TLS = Reply(454, "TLS not available", "4.7.0")

# --- sequence (RFC 5321 s4.1.4)
SEND_HELO = Reply(503, "Send HELO or EHLO first", "5.5.1")
SEND_EHLO = Reply(503, "Send EHLO first", "5.5.1")
HELO_IS_NOT_EHLO = Reply(503, "Not after HELO", "5.5.1")
SEND_MAIL = Reply(503, "Send MAIL first", "5.5.1")
SEND_RCPT = Reply(503, "Send RCPT first", "5.5.1")
NESTED_MAIL = Reply(503, "Sender already specified", "5.5.1")
NO_RECIPIENTS = Reply(554, "No valid recipients", "5.5.1")  # RFC 2920 s3.1
NO_LMTP_RECIPIENTS = Reply(503, "No valid recipients", "5.5.1")  # RFC 2033 s4.2
IN_TRANSACTION = Reply(503, "Not within a mail transaction", "5.5.1")
AFTER_BDAT = Reply(503, "Not between chunks: go on with BDAT, or RSET", "5.5.1")
CHUNK_FAILED = Reply(503, "A chunk of this message was refused: RSET, or end it with LAST", "5.5.1")
BINARY_NEEDS_BDAT = Reply(503, "BODY=BINARYMIME needs BDAT", "5.5.1")  # RFC 3030 s3
TLS_ACTIVE = Reply(503, "TLS already active", "5.5.1")
AUTHENTICATED_ALREADY = Reply(503, "Already authenticated", "5.5.1")  # RFC 4954 s4
TLS_FIRST = Reply(530, "Must issue a STARTTLS command first", "5.7.0")  # RFC 3207 s4

NOT_TRUSTED = Reply(550, "Not authorized to speak for other clients", "5.7.0")  # XCLIENT, XFORWARD

# --- syntax
UNKNOWN = Reply(500, "Command not recognized", "5.5.1")
LINE_TOO_LONG = Reply(500, "Line too long", "5.5.2")  # RFC 5321 s4.5.3.1.9
BAD_CHARACTERS = Reply(501, "Control or malformed characters in command", "5.5.2")
BAD_HOSTNAME = Reply(501, "Invalid host name", "5.5.4")
BAD_SENDER = Reply(501, "Bad sender address syntax", "5.1.7")
BAD_RECIPIENT = Reply(501, "Bad recipient address syntax", "5.1.3")
BAD_PARAMETER = Reply(501, "Bad parameter value", "5.5.4")
UNKNOWN_PARAMETER = Reply(555, "Parameter not recognized or not implemented", "5.5.4")  # RFC 5321 s4.1.1.11
NEEDS_SMTPUTF8 = Reply(553, "Address needs SMTPUTF8", "5.6.7")  # RFC 6531 s3.5
NO_BDAT = Reply(502, "BDAT not available", "5.5.1")
NO_TOPIC = Reply(504, "No help on that", "5.5.4")

# --- authentication (RFC 4954 s4, s6)
AUTHENTICATED = Reply(235, "Authentication successful", "2.7.0")
AUTH_FAILED = Reply(535, "Authentication credentials invalid", "5.7.8")  # the same for an unknown user and a wrong password
AUTH_FAULT = Reply(454, "Temporary authentication failure", "4.7.0")
AUTH_FIRST = Reply(530, "Authentication required", "5.7.0")
AUTH_SYNTAX = Reply(501, "Syntax: AUTH mechanism [initial-response]", "5.5.4")
AUTH_CANCELLED = Reply(501, "Authentication cancelled", "5.7.0")
BAD_BASE64 = Reply(501, "Cannot decode base64", "5.5.2")
RESPONSE_TOO_LONG = Reply(500, "Authentication exchange line is too long", "5.5.6")
ENCRYPT_FIRST = Reply(538, "Encryption required for requested authentication mechanism", "5.7.11")
UNKNOWN_MECHANISM = Reply(504, "Unrecognized authentication type", "5.5.4")
NO_AUTH = Reply(502, "AUTH not available", "5.5.1")

# --- limits
TOO_BIG = Reply(552, "Message size exceeds limit", "5.3.4")  # RFC 1870 s6.1
TOO_MANY_RECIPIENTS = Reply(452, "Too many recipients", "4.5.3")  # RFC 5321 s4.5.3.1.10
TOO_MANY_DOMAINS = Reply(452, "Too many recipient domains in one session", "4.5.3")  # RFC 9422 s4.3
STRAY_LINE_ENDING = Reply(550, "Message holds a bare CR, a bare LF or a NUL", "5.5.2")
TEXT_LINE_TOO_LONG = Reply(550, "Message holds a line that is too long", "5.6.0")

# --- hanging up
EARLY_TALK = Reply(554, "Protocol error: command sent before its turn", "5.5.0", close=True)  # RFC 2920 s3.1
BAD_CHUNK = Reply(501, "Syntax: BDAT size [LAST]", "5.5.4", close=True)  # where the next command begins cannot be known
TOO_MANY_CHUNKS = Reply(421, "Too many small chunks", "4.7.0")
NOT_HTTP = Reply(502, "This is a mail server", "5.7.0", close=True)
NOT_TLS = Reply(501, "TLS is not spoken here without STARTTLS", "5.5.2", close=True)
TOO_MANY_ERRORS = Reply(421, "Too many errors", "4.7.0")
TOO_MANY_FAILURES = Reply(421, "Too many authentication failures", "4.7.0")
TOO_MUCH_JUNK = Reply(421, "Too many commands without mail", "4.7.0")
TOO_MANY_MAILS = Reply(421, "Too many messages in one session", "4.7.0")  # RFC 9422 s4.1
TOO_MANY_UNKNOWN = Reply(421, "Too many unrecognized commands", "4.7.0")
ENDLESS_LINE = Reply(421, "Endless line", "4.7.0")
ENDLESS_MESSAGE = Reply(421, "Message far over the size limit", "4.7.0")
TOO_FAR_AHEAD = Reply(421, "Too much sent without waiting for replies", "4.7.0")
