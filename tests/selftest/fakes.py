"""A small server that is sound, and the same with one fault: what the self-test must tell apart."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Literal

from tests.server.wire import server_context

Fault = Literal[
    "none",
    "ends mail at LF.LF",
    "ends commands at LF",
    "runs what stood behind STARTTLS",
    "replies once in LMTP",
    "never answers",
    "never answers content",
    "hangs up at once",
    "hangs up at EHLO",
    "keeps the envelope of an accepted mail",
    "keeps the envelope of a refused mail",
    "keeps the envelope over RSET",
    "takes mail for nobody",
    "takes control octets into paths",
    "runs mail out of HTTP",
]

CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
PATHS = {
    b"MAIL": re.compile(rb"MAIL FROM:<[^<>]*>( .*)?", re.IGNORECASE),
    b"RCPT": re.compile(rb"RCPT TO:<[^<> ]+@[^<> ]+>( .*)?", re.IGNORECASE),
}
VERBS = {
    b"RSET": b"250 2.0.0 OK",
    b"NOOP": b"250 2.0.0 OK",
    b"VRFY": b"252 2.5.2 Perhaps",
    b"QUIT": b"221 2.0.0 Bye",
    b"EHLO": b"250-mx.test\r\n250-STARTTLS\r\n250 SMTPUTF8",
    b"LHLO": b"250 mx.test",
    b"HELO": b"250 mx.test",
    b"MAIL": b"250 2.1.0 OK",
    b"RCPT": b"250 2.1.5 OK",
    b"DATA": b"354 Go on",
    b"STARTTLS": b"220 2.0.0 Go on",
}


class Session:
    """One connection."""

    def __init__(self, fault: Fault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, lmtp: bool) -> None:
        self.fault, self.reader, self.writer, self.lmtp = fault, reader, writer, lmtp
        self.buffer = b""
        self.greeted = self.encrypted = self.mail = False
        self.recipients = 0

    def has(self, *faults: Fault) -> bool:
        """Whether the server has one of the *faults*."""
        return self.fault in faults

    async def until(self, *ends: bytes) -> bytes | None:
        """Return what comes before the first of *ends*; ``None`` at the end of the connection."""
        while True:
            found = [(at, end) for end in ends if (at := self.buffer.find(end)) >= 0]
            if found:
                at, end = min(found)
                got, self.buffer = self.buffer[:at], self.buffer[at + len(end) :]
                return got
            data = await self.reader.read(65_536)
            if not data:
                return None
            self.buffer += data

    async def say(self, line: bytes) -> None:
        """Send a reply."""
        self.writer.write(line + b"\r\n")
        await self.writer.drain()

    async def serve(self) -> None:
        """Talk to the end."""
        if self.has("hangs up at once"):
            return
        await self.say(b"220 mx.test")
        while (line := await self.until(b"\r\n", *([b"\n"] if self.has("ends commands at LF") else []))) is not None:
            if self.has("never answers") or not await self.command(line):
                if self.has("never answers"):
                    continue
                return

    def refusal(self, verb: bytes, line: bytes) -> bytes | None:
        """Return why a command is refused, ``None`` if it is not."""
        out_of_turn = (
            (verb == b"MAIL" and (self.mail or not (self.greeted or self.has("runs mail out of HTTP"))))
            or (verb == b"RCPT" and not self.mail)
            or (verb == b"DATA" and not self.recipients and not (self.mail and self.has("takes mail for nobody")))
            or (verb == b"STARTTLS" and (self.encrypted or not self.greeted))
        )
        if verb not in VERBS:
            return b"500 5.5.1 What?"
        if out_of_turn:
            return b"503 5.5.1 Not now"
        if CONTROL.search(line) and not self.has("takes control octets into paths"):
            return b"501 5.5.2 No"
        if verb in PATHS and not PATHS[verb].fullmatch(line):
            return b"501 5.1.3 No"
        return b"550 5.1.1 No such user" if b"nobody@" in line else None

    async def command(self, line: bytes) -> bool:
        """Answer a command; return whether to go on."""
        verb = line.split(b" ")[0].upper()
        refusal = self.refusal(verb, line)
        if refusal is not None:
            await self.say(refusal)
            return True
        if verb == b"EHLO" and self.has("hangs up at EHLO"):
            return False
        await self.say(VERBS[verb])
        self.note(verb)
        if verb == b"STARTTLS":
            if not self.has("runs what stood behind STARTTLS"):
                self.buffer = b""
            await self.writer.start_tls(server_context())
            self.greeted, self.encrypted = False, True
        if verb == b"DATA":
            return await self.content()
        return verb != b"QUIT"

    def note(self, verb: bytes) -> None:
        """Remember what was said."""
        if verb in {b"EHLO", b"HELO", b"LHLO"}:
            self.greeted = True
        if verb in {b"EHLO", b"HELO", b"LHLO", b"STARTTLS"} or (verb == b"RSET" and not self.has("keeps the envelope over RSET")):
            self.mail, self.recipients = False, 0
        self.mail = self.mail or verb == b"MAIL"
        self.recipients += verb == b"RCPT"

    async def content(self) -> bool:
        """Read content and answer it."""
        self.buffer = b"\r\n" + self.buffer
        content = await self.until(b"\r\n.\r\n", *([b"\n.\n"] if self.has("ends mail at LF.LF") else []))
        if content is None:
            return False
        if self.has("never answers content"):
            return True
        good = b"\0" not in content
        count = self.recipients if self.lmtp and not self.has("replies once in LMTP") else 1
        for _ in range(count):
            await self.say(b"250 2.0.0 OK" if good else b"550 5.5.2 No")
        if not self.has("keeps the envelope of an accepted mail" if good else "keeps the envelope of a refused mail"):
            self.mail, self.recipients = False, 0
        return True


@asynccontextmanager
async def served(fault: Fault, *, lmtp: bool = False) -> AsyncIterator[int]:
    """Run the server; give its port."""
    sessions: set[asyncio.Task[None]] = set()

    async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        sessions.add(task)
        try:
            with suppress(OSError):
                await Session(fault, reader, writer, lmtp=lmtp).serve()
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        finally:
            writer.transport.abort()
            sessions.discard(task)

    server = await asyncio.start_server(session, "127.0.0.1", 0, limit=1 << 20)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(sessions):
            task.cancel()
        await asyncio.gather(*sessions, return_exceptions=True)
        await asyncio.sleep(0)
        await server.wait_closed()
