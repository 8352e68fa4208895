"""Compose a test mail and hand it over SMTP or LMTP: what ``postbus send`` does, without the terminal."""

from __future__ import annotations

import mimetypes
import re
import smtplib
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from pathlib import Path
from typing import Literal

Encryption = Literal["none", "starttls", "implicit"]

# The id postbus puts at the end of its 250 (design 4.4): a UUID, so that a sender's log and an event can be joined.
TRANSACTION_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Destination:
    """Where to hand a mail over. *path* is a Unix socket and wins over *host* and *port*; *timeout_s* bounds each step."""

    host: str
    port: int
    path: str | None = None
    lmtp: bool = False
    encryption: Encryption = "none"
    verify: bool = True
    timeout_s: float = 60.0


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
    """Return a well-formed mail; *attachments* are read whole. Raises OSError for a file that cannot be read."""
    mail = EmailMessage()
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


def deliver(destination: Destination, sender: str, recipients: Sequence[str], octets: bytes) -> list[Fate]:
    """Hand *octets* (canonical) over and return one fate per recipient, in order.

    Raises:
        OSError, smtplib.SMTPException: the conversation itself broke (refused, no TLS, connection lost).
    """
    with _connect(destination) as client:
        # A name that is no ASCII needs SMTPUTF8 (RFC 6531 s3.4), and only then it is asked for.
        options = ["SMTPUTF8"] if not (sender + "".join(recipients)).isascii() else []
        if "size" in client.esmtp_features:
            options.append(f"SIZE={len(octets)}")
        if "8bitmime" in client.esmtp_features and not octets.isascii():
            options.append("BODY=8BITMIME")
        code, reply = client.mail(sender, options)
        if code >= 300:
            return [Fate(name, code, _text(reply)) for name in recipients]
        named = {name: Fate(name, code, _text(reply)) for name in recipients for code, reply in [client.rcpt(name)]}
        taken = [name for name in named if named[name].accepted]
        if taken:
            named |= _content(client, destination, taken, octets)
        return [named[name] for name in recipients]


def _connect(destination: Destination) -> smtplib.SMTP:
    """Return a client that was greeted, over the wished encryption."""
    context = ssl.create_default_context()
    if not destination.verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    name, port, timeout_s = destination.host, destination.port, destination.timeout_s
    client: smtplib.SMTP
    if destination.lmtp:
        client = smtplib.LMTP(destination.path or name, port, timeout=timeout_s)
    elif destination.encryption == "implicit":
        client = smtplib.SMTP_SSL(name, port, timeout=timeout_s, context=context)
    else:
        client = smtplib.SMTP(name, port, timeout=timeout_s)
    client.ehlo_or_helo_if_needed()
    if destination.encryption == "starttls":
        client.starttls(context=context)
        client.ehlo_or_helo_if_needed()
    return client


def _content(client: smtplib.SMTP, destination: Destination, taken: Sequence[str], octets: bytes) -> Mapping[str, Fate]:
    """Send the message and read the reply (RFC 5321 s4.1.1.4) or, on LMTP, one per accepted recipient (RFC 2033 s4.2)."""
    code, reply = client.docmd("DATA")
    if code != 354:
        return {name: Fate(name, code, _text(reply)) for name in taken}
    stuffed = re.sub(rb"(?m)^\.", b"..", octets)
    client.send(stuffed + b".\r\n")
    if destination.lmtp:  # smtplib's own LMTP.data() reads one reply only (cpython#76984)
        return {name: Fate(name, code, _text(reply)) for name in taken for code, reply in [client.getreply()]}
    code, reply = client.getreply()
    return {name: Fate(name, code, _text(reply)) for name in taken}


def _text(reply: bytes) -> str:
    return " ".join(reply.decode("utf-8", "replace").split())
