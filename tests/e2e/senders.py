"""Many senders at once, over raw sockets, that write down what they were told: the other side of every fault test.

A sender is honest as RFC 5321 asks: mail is its own until it has read a 250 behind the dot, and ours from then on. ``Traffic`` is what all
of them wrote down; tests compare it with what was published. A connection's end is written down with the phase it came in, since
losing a connection between transactions, or after a 421, is harmless, and inside a message is not.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256

import pytest

REPLY_TIMEOUT_S = 60.0
RETRY_PAUSE_S = 0.05
"""A sender's own queue: how soon it comes again after a 4xx. Not a wait of the test's."""
BIG_OCTETS = 300_000
"""Beyond 256 KiB: content goes to a file while it is received, and stays one in the spool."""

Key = tuple[str, str]
"""SHA-256 of the content, recipient: what one event is about. Every letter's content is its own, so no two events share one."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One mail, not like any other: *content* with CRLF and without transparency dots."""

    serial: int
    recipients: tuple[str, ...]
    content: bytes
    sha256: str

    @property
    def wire(self) -> bytes:
        """The content as it crosses the wire, the final dot included (RFC 5321 s4.5.2)."""
        return (b"\r\n" + self.content).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n"

    @property
    def keys(self) -> set[Key]:
        """What its events are about."""
        return {(self.sha256, recipient) for recipient in self.recipients}


class Desk:
    """Writes letters: small ones, some with an attachment, and every *big_every*-th beyond the spill threshold.

    Args:
        stem: in every subject; seed: of sizes and recipients.
        big_every: 0 for no big ones; mime_every: likewise, those with an attachment (a worker process parses them).
        recipients_max: of one letter; addresses: the local parts that recipients are drawn from.
    """

    def __init__(
        self, stem: str, *, seed: int = 0, big_every: int = 12, mime_every: int = 0, recipients_max: int = 3, addresses: int = 40
    ) -> None:
        self.stem = stem
        self._random = random.Random(seed)
        self._serials = itertools.count(1)
        self._big_every = big_every
        self._mime_every = mime_every
        self._recipients_max = recipients_max
        self._addresses = [f"{stem}-{number}@example.org" for number in range(addresses)]

    def letter(self, recipients: Sequence[str] = ()) -> Letter:
        """Return the next letter."""
        serial = next(self._serials)
        if not recipients:
            recipients = self._random.sample(self._addresses, self._random.randint(1, self._recipients_max))
        size = self._random.randint(10, 4_000)
        if self._big_every and serial % self._big_every == 0:
            size = BIG_OCTETS + size
        # Lines that begin with dots, so that transparency is at work in every letter.
        line = b".%08d the quick brown fox jumps over the lazy dog\r\n" % serial
        text = line * (size // len(line) + 1)
        head = b"From: <a@example.net>\r\nSubject: %s %d\r\n" % (self.stem.encode(), serial)
        attached = self._mime_every and serial % self._mime_every == 0
        content = head + (_with_attachment(text) if attached else b"\r\n" + text)
        return Letter(serial, tuple(recipients), content, sha256(content).hexdigest())


def _with_attachment(text: bytes) -> bytes:
    part = b"--b\r\nContent-Type: %s\r\n\r\n%s"
    return (
        b'MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="b"\r\n\r\n'
        + part % (b"text/plain", text)
        + part % (b'application/octet-stream; name="a.bin"', text)
        + b"--b--\r\n"
    )


class Phase(StrEnum):
    """Where a connection is: what its loss would mean."""

    GREETING = "before the banner"
    IDLE = "between transactions"
    ENVELOPE = "in the envelope"
    CONTENT = "in the content"
    REPLY = "behind the dot"


@dataclass(frozen=True, slots=True)
class End:
    """How a connection ended: *code* is 421, or 221 after QUIT, or 0 when it was lost."""

    phase: Phase
    code: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply."""

    code: int
    text: str


class LostError(Exception):
    """The connection is gone, or was taken leave of with a 421."""

    def __init__(self, end: End) -> None:
        super().__init__(str(end))
        self.end = end


@dataclass
class Traffic:
    """What the senders did and were told.

    Attributes:
        sent: letters whose final dot was written, by digest; tried: those whose content was begun.
        acknowledged: each key with a 250 behind the dot, and the transaction it names.
        repeats: how often a key was acknowledged beyond the first time.
        pending: digests of letters whose dot is on the wire and whose reply is not.
        unheard: digests of letters whose reply never came; they may have been accepted.
        refused: reply codes of 400 and more, to RCPT or behind the dot.
        ends: how connections ended.
    """

    sent: dict[str, Letter] = field(default_factory=dict)
    tried: dict[str, Letter] = field(default_factory=dict)
    acknowledged: dict[Key, str] = field(default_factory=dict)
    repeats: int = 0
    pending: set[str] = field(default_factory=set)
    unheard: set[str] = field(default_factory=set)
    refused: Counter[int] = field(default_factory=Counter)
    ends: list[End] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def letters_acknowledged(self) -> int:
        """How many letters have a 250 for at least one recipient."""
        return len({digest for digest, _ in self.acknowledged})

    @property
    def cut(self) -> list[End]:
        """The ends inside a message: lost, without a reply, after its transaction had begun."""
        return [end for end in self.ends if end.code == 0 and end.phase in {Phase.ENVELOPE, Phase.CONTENT, Phase.REPLY}]

    def note(self) -> None:
        """Something was written down: let those who wait look again."""
        self._changed.set()

    async def until(self, condition: Callable[[], object], what: str, timeout_s: float = 30.0) -> None:
        """Return once *condition* holds; it is looked at whenever something was written down."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            pytest.fail(
                f"not within {timeout_s:g} s: {what}; {len(self.sent)} sent, {len(self.acknowledged)} acknowledged, "
                f"refused {dict(self.refused)}, ends {Counter(self.ends).most_common(5)}"
            )


class Conversation:
    """One connection to ``host:port``."""

    def __init__(self, traffic: Traffic, *, lmtp: bool) -> None:
        self.phase = Phase.GREETING
        self._traffic = traffic
        self._lmtp = lmtp
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def open(self, address: str) -> None:
        """Connect and greet. Raises LostError, or OSError where nobody listens."""
        host, _, port = address.rpartition(":")
        self._reader, self._writer = await asyncio.open_connection(host, int(port))
        await self._expect()
        self.phase = Phase.IDLE
        self._write(b"LHLO client.test\r\n" if self._lmtp else b"EHLO client.test\r\n")
        await self._expect()

    def close(self) -> None:
        """Drop the connection."""
        self._writer.close()

    def _write(self, octets: bytes) -> None:
        self._writer.write(octets)

    async def _expect(self) -> Reply:
        """Return the next reply, unless it is the last one."""
        lines: list[str] = []
        while not lines or lines[-1][3:4] == "-":
            try:
                async with asyncio.timeout(REPLY_TIMEOUT_S):
                    line = await self._reader.readline()
            except (OSError, TimeoutError) as error:
                raise self._lost(type(error).__name__) from error
            if not line.endswith(b"\n"):
                raise self._lost("eof")
            lines.append(line.decode().rstrip())
        reply = Reply(int(lines[-1][:3]), lines[-1][4:])
        if reply.code == 421:
            raise LostError(End(self.phase, 421, reply.text))
        return reply

    def _lost(self, why: str) -> LostError:
        return LostError(End(self.phase, 0, why))

    async def transact(self, letter: Letter, recipients: Sequence[str]) -> dict[str, Reply]:
        """Send *letter* to *recipients*, the envelope in one segment (RFC 2920); return the reply that counts for each."""
        # Between transactions until the server has answered MAIL: a 421 that crosses it is no cut.
        self.phase = Phase.IDLE
        rows = [f"MAIL FROM:<a@example.net> SIZE={len(letter.content)}", *(f"RCPT TO:<{recipient}>" for recipient in recipients), "DATA"]
        self._write("".join(f"{row}\r\n" for row in rows).encode())
        mail = await self._expect()
        if mail.code < 300:
            self.phase = Phase.ENVELOPE
        said = {recipient: await self._expect() for recipient in recipients}
        data = await self._expect()
        taken = [recipient for recipient, reply in said.items() if reply.code < 300]
        if data.code == 354:
            replies = await self._content(letter, len(taken) if self._lmtp else 1)
            said |= dict(zip(taken, replies if self._lmtp else replies * len(taken), strict=True))
        else:
            said |= dict.fromkeys(taken, data)
            self._write(b"RSET\r\n")
            await self._expect()
        if mail.code >= 300:
            said = dict.fromkeys(recipients, mail)
        self.phase = Phase.IDLE
        return said

    async def _content(self, letter: Letter, replies: int) -> list[Reply]:
        traffic, digest = self._traffic, letter.sha256
        self.phase = Phase.CONTENT
        traffic.tried[digest] = letter
        try:
            self._write(letter.wire)
            await self._writer.drain()
        except OSError as error:
            raise self._lost(type(error).__name__) from error
        self.phase = Phase.REPLY
        traffic.sent[digest] = letter
        traffic.pending.add(digest)
        try:
            said = [await self._expect() for _ in range(replies)]
        except LostError:
            traffic.unheard.add(digest)
            raise
        finally:
            traffic.pending.discard(digest)
        return said

    async def quit(self) -> None:
        """Say good-bye."""
        self._write(b"QUIT\r\n")
        try:
            await self._expect()
        except LostError:
            return
        finally:
            self.close()


async def send_until(
    traffic: Traffic,
    address: str,
    letters: Iterable[Letter],
    *,
    lmtp: bool = False,
    stop: asyncio.Event | None = None,
    retry: bool = False,
) -> None:
    """Send *letters* one after the other, until they are all sent or *stop* is set; with *retry* each until it has its 250.

    Without *retry* a lost connection ends the sender, and a letter that was refused is forgotten. With it, a sender that gave a letter its
    first try goes on until it has been taken, whatever *stop* says: so everything in ``traffic.sent`` ends up acknowledged.
    """
    conversation: Conversation | None = None
    for letter in letters:
        if stop is not None and stop.is_set():
            break
        open_for = set(letter.recipients)
        while open_for:
            try:
                if conversation is None:
                    conversation = Conversation(traffic, lmtp=lmtp)
                    await conversation.open(address)
                said = await conversation.transact(letter, sorted(open_for))
            except (LostError, OSError) as error:
                _parted(traffic, conversation, error)
                conversation = None
                if not retry:
                    return
                await asyncio.sleep(RETRY_PAUSE_S)
                continue
            open_for -= _write_down(traffic, letter, said)
            if not retry:
                break
            if open_for:
                await asyncio.sleep(RETRY_PAUSE_S)
    if conversation is not None:
        await conversation.quit()
        traffic.ends.append(End(Phase.IDLE, 221))


def _parted(traffic: Traffic, conversation: Conversation | None, error: Exception) -> None:
    """Write down how *conversation* ended."""
    assert conversation is not None
    if isinstance(error, LostError):
        traffic.ends.append(error.end)
        conversation.close()
    else:
        traffic.ends.append(End(conversation.phase, 0, type(error).__name__))
    traffic.note()


def _write_down(traffic: Traffic, letter: Letter, said: dict[str, Reply]) -> set[str]:
    """Write down each recipient's reply; return who needs no further try: taken, or refused for good."""
    settled = set()
    for recipient, reply in said.items():
        if reply.code >= 400:
            traffic.refused[reply.code] += 1
            if reply.code >= 500:
                settled.add(recipient)
            continue
        key = (letter.sha256, recipient)
        traffic.repeats += key in traffic.acknowledged
        traffic.acknowledged[key] = reply.text.rpartition(" ")[2]
        settled.add(recipient)
    traffic.note()
    return settled


async def together(work: Iterable[Awaitable[None]]) -> None:
    """Wait for all of *work*; the first that fails ends the others."""
    async with asyncio.TaskGroup() as group:
        for each in work:
            group.create_task(_run(each))


async def _run(work: Awaitable[None]) -> None:
    await work
