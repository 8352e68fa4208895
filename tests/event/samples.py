"""Mails, records and the corpus for tests of events."""

from __future__ import annotations

import re
import sysconfig
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from postbus.event.mail import Auth, Client, Mail, Mode, Recipient, Tls
from tests import peers

PLAIN = (
    b"Received: from a.example (a.example [192.0.2.1])\r\n\tby mx.example with ESMTPS id 123;\r\n\tMon, 1 Jan 2024 00:00:00 +0000\r\n"
    b"From: Alice Doe <alice@a.example>\r\nTo: bob@b.example\r\nSubject: hello\r\nDate: Mon, 1 Jan 2024 01:00:00 +0100\r\n"
    b"Message-ID: <1@a.example>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n" + b"one line of text\r\n" * 30
)


def multipart(*parts: bytes, subtype: bytes = b"mixed", boundary: bytes = b"b", head: bytes = b"") -> bytes:
    """Return a message of *parts*, each with its own headers."""
    opening = b"--" + boundary + b"\r\n"
    body = b"".join(opening + part + b"\r\n" for part in parts)
    return head + b"Content-Type: multipart/" + subtype + b"; boundary=" + boundary + b"\r\n\r\n" + body + b"--" + boundary + b"--\r\n"


def nested(levels: int) -> bytes:
    """Return a message of that many multiparts, one inside the other."""
    return b"".join(b"Content-Type: multipart/mixed; boundary=b%06d\r\n\r\n--b%06d\r\n" % (level, level) for level in range(levels))


def recipient(*, mode: Mode = "parsed", **changes: Any) -> Recipient:
    """Return a recipient, changed as asked."""
    plain = Recipient(
        event_id="018cc251-f400-7000-8000-00000000000a",
        address="Bob+tag@b.example",
        normalized="bob+tag@b.example",
        index=0,
        route="inbox",
        pattern="*@b.example",
        mode=mode,
        sinks=("kafka",),
        best_effort=("audit",),
        event_max_octets=1024 * 1024,
        partition_key="P" * 43,
        dedupe_key="D" * 43,
        tag="tag",
        captures={"list": "x"},
        params={"NOTIFY": "SUCCESS,FAILURE", "ORCPT": "rfc822;Bob@b.example"},
    )
    return replace(plain, **changes)


def mail(octets: bytes, *recipients: Recipient, **changes: Any) -> Mail:
    """Return the record of a mail with *octets* as its message, changed as asked."""
    plain = Mail(
        id="018cc251-f400-7000-8000-000000000000",
        source="//mx.example/postbus/test",
        received_ms=1_704_067_200_007,
        listener="smtp",
        protocol="esmtps",
        client=Client("192.0.2.1", 40_000, helo="a.example"),
        mail_from="alice@a.example",
        size_octets=len(octets),
        sha256=sha256(octets).hexdigest(),
        recipients=recipients or (recipient(),),
        params={"SIZE": str(len(octets)), "BODY": "8BITMIME", "ENVID": "QQ314159", "RET": "HDRS"},
        tls=Tls("TLSv1.3", "TLS_AES_256_GCM_SHA384", "CN=a.example"),
        auth=Auth("PLAIN", "alice"),
        defects=(("smtp.bare_lf", "tolerated"),),
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    )
    return replace(plain, **changes)


def corpus() -> list[Path]:
    """Return the interpreter's own collection of mails, or end the test when it ships none."""
    folder = Path(sysconfig.get_path("stdlib")) / "test" / "test_email" / "data"
    if not folder.is_dir():
        peers.missing("the interpreter's mail corpus", "use a Python that ships its test package (test/test_email/data)")
    return sorted(path for path in folder.iterdir() if path.suffix == ".txt")


def wire(octets: bytes) -> bytes:
    """Return *octets* with every line end made CRLF, as SMTP carries them."""
    return re.sub(rb"\r?\n", b"\r\n", octets)
