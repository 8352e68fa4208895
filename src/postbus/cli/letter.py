"""Compose a test mail and hand it over SMTP or LMTP: what ``postbus send`` does, without the terminal."""

from __future__ import annotations

import mimetypes
import re
import smtplib
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from email.message import EmailMessage
from email.policy import SMTP, SMTPUTF8
from email.utils import formatdate, make_msgid
from pathlib import Path
from typing import Literal

Encryption = Literal["none", "starttls", "implicit"]
Progress = Callable[[int], None]
"""Called with the octets handed over so far."""

CHUNK_OCTETS = 256 * 1024

# The id postbus puts at the end of its 250: a UUID, so that a sender's log and an event can be joined.
TRANSACTION_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Destination:
    """Where to hand a mail over, and as whom.

    Attributes:
        path: a Unix socket; wins over *host* and *port*.
        user, password: to log in with, where there is a user.
        timeout_s: bounds each step.
    """

    host: str
    port: int
    path: str | None = None
    lmtp: bool = False
    encryption: Encryption = "none"
    verify: bool = True
    timeout_s: float = 60.0
    user: str | None = None
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.path or f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Fate:
    """What the server said of one recipient, in its last word about it."""

    recipient: str
    code: int
    text: str

    @property
    def accepted(self) -> bool:
        """The server took responsibility for the message to this recipient."""
        return 200 <= self.code < 300

    @property
    def transaction_id(self) -> str | None:
        """The id in the server's reply, or ``None``."""
        found = TRANSACTION_ID.search(self.text) if self.accepted else None
        return found.group() if found else None


def compose(
    sender: str, recipients: Sequence[str], *, subject: str, text: str, html: str | None, attachments: Sequence[Path]
) -> EmailMessage:
    """Return a well-formed mail; *attachments* are read whole.

    Raises:
        OSError: a file cannot be read.
        ValueError: a header would hold a line break.
    """
    ascii_only = (sender + "".join(recipients)).isascii()
    mail = EmailMessage(policy=SMTP if ascii_only else SMTPUTF8)  # an address beyond ASCII has no other form (RFC 6532 s3.2)
    mail["From"], mail["To"], mail["Subject"] = sender or "postmaster@localhost", ", ".join(recipients), subject
    mail["Date"], mail["Message-ID"] = formatdate(localtime=False), make_msgid(domain="postbus.invalid")
    mail.set_content(text)
    if html is not None:
        mail.add_alternative(html, subtype="html")
    for path in attachments:
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        maintype, _, subtype = kind.partition("/")
        if maintype == "message":  # RFC 2046 s5.2.1 forbids base64 there; an opaque file is what was asked for
            maintype, subtype = "application", "octet-stream"
        mail.add_attachment(path.read_bytes(), maintype=maintype, subtype=subtype, filename=path.name)
    return mail


def canonical(octets: bytes) -> bytes:
    """Return *octets* with every line ending in CRLF, the last one too (RFC 5321 s2.3.8)."""
    lines = re.split(rb"\r\n|\r|\n", octets)
    return b"\r\n".join(lines if lines[-1] == b"" else [*lines, b""])


def deliver(
    destination: Destination, sender: str, recipients: Sequence[str], octets: bytes, progress: Progress | None = None
) -> list[Fate]:
    """Hand *octets* (canonical) over and return one fate per recipient, in order; the same recipient twice has two.

    Raises:
        OSError, smtplib.SMTPException: the conversation itself broke (refused, no TLS, connection lost).
    """
    with _connected(destination) as client:
        # A name that is no ASCII needs SMTPUTF8 (RFC 6531 s3.4), and only then it is asked for.
        options = ["SMTPUTF8"] if not (sender + "".join(recipients)).isascii() else []
        if "size" in client.esmtp_features:
            options.append(f"SIZE={len(octets)}")
        if "8bitmime" in client.esmtp_features and not octets.isascii():
            options.append("BODY=8BITMIME")
        code, reply = client.mail(sender, options)
        if code >= 300:
            return [Fate(name, code, _text(reply)) for name in recipients]
        fates = [Fate(name, code, _text(reply)) for name in recipients for code, reply in [client.rcpt(name)]]
        taken = [index for index, fate in enumerate(fates) if fate.accepted]
        if taken:
            for index, (code, text) in zip(taken, _content(client, destination, len(taken), octets, progress), strict=True):
                fates[index] = replace(fates[index], code=code, text=text)
        return fates


@contextmanager
def _connected(destination: Destination) -> Iterator[smtplib.SMTP]:
    """Give a client that was greeted, over the wished encryption; say QUIT at the end, whatever is answered to it."""
    context = ssl.create_default_context()
    if not destination.verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    name, port, timeout_s = destination.path or destination.host, destination.port, destination.timeout_s
    client: smtplib.SMTP
    if destination.encryption == "implicit":
        client = smtplib.SMTP_SSL(name, port, timeout=timeout_s, context=context)
    else:
        kind = smtplib.LMTP if destination.lmtp else smtplib.SMTP
        client = kind(name, port, timeout=timeout_s)
    try:
        client.ehlo_or_helo_if_needed()
        if destination.encryption == "starttls":
            client.starttls(context=context)
            client.ehlo_or_helo_if_needed()
        if destination.user is not None:
            client.login(destination.user, destination.password)
        yield client
        with suppress(smtplib.SMTPException, OSError):  # every recipient's fate is known already
            client.quit()
    finally:
        client.close()


def _content(client: smtplib.SMTP, destination: Destination, count: int, octets: bytes, progress: Progress | None) -> list[tuple[int, str]]:
    """Send the message and return what is said of it *count* times: the one reply of SMTP, or LMTP's several (RFC 2033 s4.2)."""
    code, reply = client.docmd("DATA")
    if code != 354:
        return [(code, _text(reply))] * count
    stuffed = memoryview(re.sub(rb"(?m)^\.", b"..", octets))
    assert isinstance(client.sock, socket.socket)
    for start in range(0, len(stuffed), CHUNK_OCTETS):
        client.sock.sendall(stuffed[start : start + CHUNK_OCTETS])
        if progress is not None:
            progress(min(start + CHUNK_OCTETS, len(stuffed)))
    client.send(b".\r\n")
    replies = [client.getreply() for _ in range(count if destination.lmtp else 1)]  # smtplib's LMTP.data() reads one only (cpython#76984)
    said = [(code, _text(reply)) for code, reply in replies]
    return said if destination.lmtp else said * count


def _text(reply: bytes) -> str:
    return " ".join(reply.decode("utf-8", "replace").split())


_LOG = "its log says why"
_TROUBLES: Mapping[type[Exception], tuple[str, str]] = {
    # looked up along the exception's own ancestors, so the nearest class speaks
    ConnectionRefusedError: (
        "nobody listens at {where}",
        "start postbus with `postbus run`, or name the listener with --host and --port, or --socket",
    ),
    FileNotFoundError: ("there is no socket {where}", "start postbus, or check --socket"),
    PermissionError: ("this user may not connect to {where}", "check the socket's owner and mode"),
    socket.gaierror: ("the name {host} cannot be resolved", "check --host"),
    TimeoutError: ("{where} did not answer within {timeout_s:g} s", "check --host and --port; does it want --tls?"),
    ssl.SSLCertVerificationError: (
        "the certificate of {where} is not trusted: {detail}",
        "use its name with --host, or --insecure for a test",
    ),
    ssl.SSLError: ("TLS with {where} failed: {detail}", "does it speak TLS from the first octet (--tls), or after STARTTLS (--starttls)?"),
    smtplib.SMTPNotSupportedError: ("{where} cannot do that: {detail}", "leave --starttls away, or give the server a certificate"),
    smtplib.SMTPAuthenticationError: ("{where} answered {detail}", "check --user and the password"),
    smtplib.SMTPResponseException: ("{where} answered {detail}", _LOG),
    smtplib.SMTPServerDisconnected: ("{where} hung up", "its log says why; does it want --tls?"),
    ConnectionError: ("{where} hung up: {detail}", "its log says why; does it want --tls?"),
    OSError: ("the conversation with {where} broke: {detail}", "check --host and --port"),
    smtplib.SMTPException: ("the conversation with {where} broke: {detail}", _LOG),
}

_WITHOUT = {
    "SMTPUTF8": "use addresses of ASCII alone",
    "AUTH": "leave --user away, or say --starttls or --tls: servers ask for passwords inside TLS",
}
"""What to do without what a server does not have, by smtplib's word for it."""


def trouble(error: Exception, destination: Destination) -> tuple[str, str]:
    """Return what broke a conversation, and what would help."""
    what, remedy = next(_TROUBLES[kind] for kind in type(error).__mro__ if kind in _TROUBLES)
    if isinstance(error, smtplib.SMTPNotSupportedError):
        remedy = next((better for word, better in _WITHOUT.items() if word in str(error)), remedy)
    words = {"where": str(destination), "host": destination.host, "timeout_s": destination.timeout_s, "detail": _detail(error)}
    return what.format_map(words), remedy


def _detail(error: Exception) -> str:
    match error:
        case smtplib.SMTPResponseException(smtp_code=code, smtp_error=said):
            return f"{code} {_text(said) if isinstance(said, bytes) else said}"
        case ssl.SSLCertVerificationError(verify_message=message):
            return str(message)
        case ssl.SSLError(reason=str(reason)):
            return reason.lower().replace("_", " ")
        case OSError(strerror=str(reason)):
            return reason.lower()
        case _:
            return str(error).rstrip(".")
