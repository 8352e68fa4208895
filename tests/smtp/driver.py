"""The harness of the protocol tests: feeds an engine, answers its events, returns what came of it.

``Driver`` is one session with a fake shell. It answers by the engine's default replies, or by ``Policy``: recipients to refuse,
verbs to answer otherwise. ``ARRIVALS`` are the ways the same octets may arrive; they must always mean the same.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from postbus.smtp import (
    Auth,
    AuthResponse,
    Bdat,
    Chunk,
    EndOfMessage,
    Engine,
    Event,
    Limits,
    Offer,
    Owed,
    Rcpt,
    Refused,
    Reply,
    Signal,
    StartTls,
)
from postbus.smtp import replies as words

BANNER = Reply(220, "mx.test ESMTP")
OFFER = Offer("mx.test")
CHALLENGES: Mapping[str, Sequence[bytes]] = {"PLAIN": [b""], "LOGIN": [b"User Name\0", b"Password\0"]}
MALFORMED = Reply(501, "Not of the mechanism's form", "5.5.2")


@dataclass(frozen=True)
class Policy:
    """What the fake shell decides: *refuses* recipients with 550 5.1.1, answers a verb with *answers* instead of the default."""

    refuses: frozenset[str] = frozenset()
    answers: Mapping[str, Reply | Sequence[Reply]] = field(default_factory=dict)


class Driver:
    """One session with a fake shell around the engine; TLS "handshakes" succeed at once.

    Attributes:
        events: all so far; accepted: the content of each message that was answered with 2xx; sent: all octets sent.
    """

    def __init__(
        self,
        offer: Offer = OFFER,
        *,
        lmtp: bool = False,
        limits: Limits | None = None,
        raw_verbs: frozenset[str] = frozenset(),
        policy: Policy | None = None,
        greeted: bool = True,
    ) -> None:
        self.engine = Engine(offer, lmtp=lmtp, limits=limits, raw_verbs=raw_verbs)
        self.policy = policy or Policy()
        self.events: list[Event] = []
        self.accepted: list[bytes] = []
        self.sent = b""
        self._pieces: list[bytes] = []
        self._owed: Owed | None = None
        self._mechanism = ""
        self._said: list[bytes] = []
        if greeted:
            self.engine.open(BANNER)
            self.engine.bytes_to_send()

    @property
    def closed(self) -> bool:
        """Whether the engine has hung up."""
        return self.engine.next_event() is Signal.CLOSED

    def feed(self, data: bytes) -> bytes:
        """Hand *data* to the engine, answer all it says, return what it sends back."""
        self.engine.receive(data)
        self.pump()
        return self.drain()

    def feed_withheld(self, segments: Iterable[bytes]) -> bytes:
        """Hand all *segments* to the engine before the first answer is given; then answer all, return what it sends back."""
        for segment in segments:
            self.engine.receive(segment)
            self.listen()
        self.pump()
        return self.drain()

    def drain(self) -> bytes:
        """Return what the engine wants sent."""
        out = self.engine.bytes_to_send()
        self.sent += out
        return out

    def pump(self) -> Signal:
        """Answer events until there is none, and say why."""
        while True:
            signal = self.listen()
            if self._owed is None:
                return signal
            event, self._owed = self._owed, None
            self.answer(event)

    def listen(self) -> Signal:
        """Note events until there is none or one is owed an answer."""
        while not isinstance(event := self.engine.next_event(), Signal):
            self.events.append(event)
            if isinstance(event, Chunk):
                self._pieces.append(event.octets)
            elif isinstance(event, EndOfMessage | AuthResponse) and event.refusal is not None:
                self._pieces = []
            elif not isinstance(event, Refused):
                self._owed = event
        return event

    def answer(self, event: Owed) -> None:
        """Answer *event* as the policy says."""
        reply = self.policy.answers.get(event.verb)
        if reply is None:
            refused = isinstance(event, Rcpt) and event.address in self.policy.refuses
            reply = Reply(550, "No such user", "5.1.1") if refused else self.engine.default_reply(event)
            if isinstance(event, Auth | AuthResponse):
                reply = self.identify(event)
        self.engine.answer(reply)
        if isinstance(event, EndOfMessage):
            if isinstance(reply, Reply) and reply.code < 300:
                self.accepted.append(b"".join(self._pieces))
            self._pieces = []
        elif not self.engine.in_transaction:  # RSET or a greeting between chunks
            self._pieces = []
        if isinstance(event, StartTls) and self.engine.next_event() is Signal.PAUSED:
            self.engine.tls_started()

    def identify(self, event: Auth | AuthResponse) -> Reply:
        """Return the next challenge, or the verdict on the one user there is: ``test`` with the password ``1234``."""
        if isinstance(event, Auth):
            self._mechanism, self._said = event.mechanism, []
            said = event.initial
        else:
            said = event.octets
        self._said += [] if said is None else [said]
        challenges = CHALLENGES[self._mechanism]
        if len(self._said) < len(challenges):
            return Reply(334, b64encode(challenges[len(self._said)]).decode())
        parts = self._said if self._mechanism == "LOGIN" else self._said[0].split(b"\0")
        if len(parts) + (self._mechanism == "LOGIN") != 3 or not all(parts[-2:]):
            return MALFORMED
        return words.AUTHENTICATED if parts[-2:] == [b"test", b"1234"] and parts[0] in {b"", b"test"} else words.AUTH_FAILED


def codes(replies: bytes) -> list[str]:
    """Return code and enhanced code, ``"250 2.1.0"`` or ``"250"``, of each reply in *replies*."""
    found = []
    for line in replies.decode().splitlines():
        if line[3:4] == "-":
            continue
        word = line[4:].partition(" ")[0]
        enhanced = word if word.replace(".", "").isdigit() and word.count(".") == 2 else ""
        found.append(f"{line[:3]} {enhanced}".strip())
    return found


def normal(events: Sequence[Event]) -> list[Event]:
    """Return *events* so that they can be compared: chunks joined, those of a refused or unfinished message left out."""
    result: list[Event] = []
    pieces: list[bytes] = []
    for event in events:
        if isinstance(event, Chunk):
            pieces.append(event.octets)
            continue
        if isinstance(event, Bdat):  # the next chunk of the same message
            result.append(event)
            continue
        if isinstance(event, EndOfMessage) and event.refusal is None:
            result.append(Chunk(b"".join(pieces)))
        pieces = []
        result.append(event)
    return result


def whole(data: bytes) -> Iterator[list[bytes]]:
    """All in one segment."""
    yield [data]


def bytewise(data: bytes) -> Iterator[list[bytes]]:
    """Each octet in a segment of its own."""
    yield [data[at : at + 1] for at in range(len(data))]


def every_split(data: bytes) -> Iterator[list[bytes]]:
    """Two segments, parted everywhere."""
    for at in range(1, len(data)):
        yield [data[:at], data[at:]]


def some_splits(data: bytes) -> Iterator[list[bytes]]:
    """Two segments, parted near the ends; for long data."""
    for at in [*range(1, 9), *range(max(len(data) - 8, 9), len(data))]:
        yield [data[:at], data[at:]]


ARRIVALS: Mapping[str, Callable[[bytes], Iterator[list[bytes]]]] = {"whole": whole, "bytewise": bytewise, "every split": every_split}


def pipelined(offer: Offer) -> Offer:
    """Return *offer* without strict pipelining: to wait for no answer is to pipeline everything."""
    return replace(offer, strict_pipelining=False)


def opened(offer: Offer = OFFER, *, lmtp: bool = False, limits: Limits | None = None, raw_verbs: frozenset[str] = frozenset()) -> Engine:
    """Return an engine whose banner is sent."""
    engine = Engine(offer, lmtp=lmtp, limits=limits, raw_verbs=raw_verbs)
    engine.open(BANNER)
    engine.bytes_to_send()
    return engine


def owed(engine: Engine, data: bytes) -> Owed:
    """Feed *data* and return the event it makes, which must be owed an answer."""
    engine.receive(data)
    event = engine.next_event()
    assert not isinstance(event, Signal | Chunk | Refused)
    return event


def transact(engine: Engine, *recipients: str) -> None:
    """Bring *engine* into content, with *recipients* accepted."""
    lines = [
        b"LHLO x" if engine._lmtp else b"EHLO x",
        b"MAIL FROM:<a@b>",
        *(f"RCPT TO:<{address}>".encode() for address in recipients),
        b"DATA",
    ]
    for line in lines:
        engine.answer(engine.default_reply(owed(engine, line + b"\r\n")))
    engine.bytes_to_send()
