"""Mails to send: the interpreter's own corpus, and generated ones for what it lacks."""

from __future__ import annotations

import random
import re
import sysconfig
from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import SMTP as CRLF
from functools import cache
from pathlib import Path

from tests.peers import missing

STRAY = re.compile(rb"\r(?!\n)|(?<!\r)\n|\0")
"""What no message may hold (RFC 5321 s2.3.8): a CR or LF alone, a NUL."""


@dataclass(frozen=True, slots=True)
class Mail:
    """One mail to send. *options* are MAIL's parameters; *code* is the answer it deserves."""

    name: str
    octets: bytes
    options: tuple[str, ...] = ()

    @property
    def code(self) -> int:
        """Return the reply expected after the dot."""
        return _code(self.octets)


@cache
def _code(octets: bytes) -> int:
    """Look for strays once: in 25 MB it takes a while."""
    return 550 if STRAY.search(octets) else 250


def corpus() -> list[Mail]:
    """Return every file of the interpreter's corpus as a mail, lines made CRLF."""
    folder = Path(sysconfig.get_path("stdlib")) / "test" / "test_email" / "data"
    files = sorted(path for path in folder.glob("*") if path.is_file()) if folder.is_dir() else []
    if not files:
        missing("the interpreter's corpus of mails", "install the tests of Python's standard library (Debian: libpython3.X-testsuite)")
    return [Mail(path.name, re.sub(rb"\r?\n", b"\r\n", path.read_bytes()), ("BODY=8BITMIME",)) for path in files]


def generated() -> list[Mail]:
    """Return mails for what the corpus lacks: charsets, attachments, 8-bit headers, emptiness, size, long lines, dots."""
    head = b"From: A <a@example.net>\r\nTo: b@example.org\r\nSubject: generated\r\n"
    eight = ("BODY=8BITMIME",)
    return [
        *(_text(charset, words) for charset, words in CHARSETS.items()),
        Mail("attachments", _attachments(), eight),
        Mail("header-latin-1", b"From: J\xf6rg <j@example.net>\r\nSubject: Gr\xfc\xdfe\r\n\r\nbody\r\n", eight),
        Mail("header-utf-8", "From: Jörg <jörg@example.net>\r\nSubject: Grüße 漢字\r\n\r\nbody\r\n".encode(), ("SMTPUTF8", *eight)),
        Mail("empty-body", head + b"\r\n"),
        Mail("only-headers", head),
        Mail("no-headers", b"\r\njust a body\r\n"),
        Mail("one-empty-line", b"\r\n"),
        Mail("dots", head + b"\r\n.\r\n..\r\n...\r\n.a\r\na.\r\n.\r\n\r\n.\r\n"),
        Mail("dot-first", b".Subject: a dot\r\n\r\n.\r\n"),
        Mail("long-line-1000", head + b"\r\n" + b"x" * 998 + b"\r\n"),
        Mail("long-line-500k", head + b"\r\n" + b"y" * 500_000 + b"\r\nlast\r\n"),
        Mail("all-octets", head + b"\r\n" + bytes(octet for octet in range(256) if octet not in b"\0\r\n") * 64 + b"\r\n", eight),
        Mail("spilled-300k", head + b"\r\n" + _lines(300_000, seed=1)),
        Mail("stray-cr", head + b"\r\na\rb\r\n"),
        Mail("stray-lf", head + b"\r\na\nb\r\n"),
        Mail("smuggled-end", head + b"\r\nbody\n.\r\nMAIL FROM:<evil@example.net>\r\n"),
        Mail("nul", head + b"\r\na\0b\r\n"),
        Mail("megabytes-25", head + b"\r\n" + _lines(25 * 1024 * 1024, seed=2)),
    ]


CHARSETS = {
    "us-ascii": "plain words",
    "utf-8": "Grüße, 漢字, 😀",
    "iso-8859-1": "Grüße à côté",
    "iso-8859-15": "10 € für Œuvre",
    "windows-1252": "“quoted” 10 €",
    "koi8-r": "Привет, мир",
    "shift_jis": "こんにちは世界",
    "iso-2022-jp": "こんにちは世界",
    "gb18030": "你好世界",
    "big5": "你好世界",
    "euc-kr": "안녕하세요 세계",
}
"""A text in each charset; the event's text must say the same."""


def _text(charset: str, words: str) -> Mail:
    head = f"From: a@example.net\r\nSubject: {charset}\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset={charset}\r\n"
    body = words.encode(charset)
    return Mail(f"charset-{charset}", head.encode() + b"Content-Transfer-Encoding: 8bit\r\n\r\n" + body + b"\r\n", ("BODY=8BITMIME",))


def _attachments() -> bytes:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "A <a@example.net>", "B <b@example.org>", "three parts and a letter in a letter"
    message.set_content("text\n")
    message.add_alternative("<p>html</p>\n", subtype="html")
    message.add_attachment(bytes(range(256)) * 100, maintype="application", subtype="octet-stream", filename="Übersicht & Plan.bin")
    inner = EmailMessage()
    inner["Subject"] = "inner"
    inner.set_content("inside\n")
    message.add_attachment(inner)
    return message.as_bytes(policy=CRLF)


def _lines(octets: int, *, seed: int) -> bytes:
    """Return about so many octets of base64-like lines of 76 characters, the same for the same *seed*."""
    stir = random.Random(seed)
    line = "".join(stir.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", k=68)).encode()
    return b"".join(b"%08d%b\r\n" % (number, line) for number in range(octets // 78))
