"""The engine: any bytes at any split, any answers, and what its contract says holds."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from postbus.smtp import Chunk, EndOfMessage, Engine, Event, Limits, Mail, Offer, Owed, Rcpt, Refused, Reply, Signal, StartTls, State
from tests.fuzz import bounded
from tests.smtp.driver import BANNER, codes, normal

# Whole lines, and pieces that make a mess of them; so that a session gets anywhere, the good ones come more often.
_PIECES = [
    *(b"EHLO x\r\n", b"LHLO x\r\n", b"MAIL FROM:<a@b>\r\n", b"RCPT TO:<c@d>\r\n", b"DATA\r\n", b"text\r\n", b".\r\n") * 3,
    *(b"HELO x\r\n", b"RSET\r\n", b"NOOP\r\n", b"QUIT\r\n", b"VRFY x\r\n", b"HELP\r\n", b"STARTTLS\r\n", b"AUTH PLAIN AGEAYg==\r\n"),
    *(b"BDAT 5\r\n", b"BDAT 3 LAST\r\n", b"BDAT\r\n", b"hello", b"MAIL FROM:<a..b@c> SIZE=1 X=1\r\n", b"RCPT TO:<e@f> NOTIFY=NEVER\r\n"),
    *(b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00", b"XYZZY\r\n", b"mail from:<>\r\n", b"RCPT TO:<\xc3\xbc@d>\r\n", b"*\r\n"),
    *(b"\r\n", b"\n", b"\r", b"\0", b".", b" ", b"\xff", b"..\r\n", b"\r\n.\r\n", b"\n.\r\n", b"x" * 600, b"y" * 1200 + b"\r\n"),
]
_segments = st.lists(st.lists(st.sampled_from(_PIECES) | st.binary(max_size=8), max_size=6).map(b"".join), max_size=30)
_offers = st.builds(
    Offer,
    hostname=st.just("mx.test"),
    size_octets=st.sampled_from([None, 20, 5000]),
    starttls=st.booleans(),
    require_tls=st.booleans(),
    strict_pipelining=st.booleans(),
    stray=st.sampled_from(["reject", "allow"]),
    lenient_paths=st.booleans(),
    unregistered=st.sampled_from(["refuse", "record"]),
    requiretls=st.booleans(),
    limits=st.booleans(),
)
_limits = st.builds(
    Limits,
    mails=st.sampled_from([0, 2]),
    recipients=st.sampled_from([2, 100]),
    recipient_domains=st.sampled_from([0, 1]),
    errors=st.sampled_from([3, 1000]),
    junk=st.sampled_from([3, 1000]),
    unknown=st.sampled_from([2, 1000]),
    endless_octets=st.just(4096),
    text_line_octets=st.just(1100),
    backlog_octets=st.just(8192),
)
_answers = st.lists(st.sampled_from([200, 250, 354, 421, 450, 550]), max_size=20)


class Talk:
    """One session: hands over segments, answers by the script, then as a server without hooks does, and watches the contract.

    Attributes:
        events: all so far; sent: all octets sent.
    """

    def __init__(self, offer: Offer, limits: Limits, answers: list[int], *, lmtp: bool) -> None:
        self.engine = Engine(offer, lmtp=lmtp, limits=limits)
        self.answers = list(answers)
        self.events: list[Event] = []
        self.content_octets = 0
        self.engine.open(BANNER)
        self.sent = self.engine.bytes_to_send()

    def feed(self, segment: bytes) -> None:
        """Take *segment*, answer all it says."""
        engine = self.engine
        engine.receive(segment)
        while not isinstance(event := engine.next_event(), Signal):
            self.events.append(event)
            self.watch(event)
            if not isinstance(event, Chunk | Refused) and not (isinstance(event, EndOfMessage) and event.refusal is not None):
                self.answer(event)
        self.sent += engine.bytes_to_send()
        assert engine.bytes_to_send() == b""
        assert (event is Signal.CLOSED) == (engine.state is State.CLOSED)

    def watch(self, event: Event) -> None:
        """Check what is always true of *event*."""
        if isinstance(event, Chunk):
            assert event.octets
            self.content_octets += len(event.octets)
        elif isinstance(event, EndOfMessage):
            assert event.refusal is not None or event.size_octets == self.content_octets
            self.content_octets = 0
        elif isinstance(event, Mail | Rcpt):
            assert event.address.isprintable()
        assert self.engine.accepted_recipients == 0 or self.engine.in_transaction or isinstance(event, EndOfMessage)

    def answer(self, event: Owed) -> None:
        """Give the next answer of the script, or the default."""
        engine = self.engine
        assert engine.next_event() is Signal.PAUSED
        code = self.answers.pop(0) if self.answers else 0
        engine.answer(Reply(code, "As the script says") if code else engine.default_reply(event))
        if engine.state is State.UPGRADING:
            assert isinstance(event, StartTls)
            engine.tls_started()
            assert (engine.helo, engine.in_transaction) == (None, False)


@bounded(600)
@given(_segments, _offers, _limits, _answers, st.booleans())
def test_any_bytes_in_any_segments(segments: list[bytes], offer: Offer, limits: Limits, answers: list[int], lmtp: bool) -> None:
    """Nothing raises, replies are whole lines, memory is bounded, a transaction that is over has left nothing, and closed is closed."""
    talk = Talk(offer, limits, answers, lmtp=lmtp)
    for segment in segments:
        talk.feed(segment)
        engine: Any = talk.engine
        assert len(engine._lines) <= limits.endless_octets + len(segment)
        if not engine.in_transaction:
            assert (engine.accepted_recipients, engine.smtputf8, engine.binarymime, engine._chunks) == (0, False, False, None)
    assert talk.sent.endswith(b"\r\n")
    assert all(200 <= int(code[:3]) <= 599 for code in codes(talk.sent))


@bounded(300)
@given(st.lists(st.sampled_from(_PIECES), max_size=25).map(b"".join), st.data(), _offers, _answers, st.booleans())
def test_segments_mean_nothing(data: bytes, draw: st.DataObject, offer: Offer, answers: list[int], lmtp: bool) -> None:
    """Where segments do not define a protocol error, the same octets have the same replies and the same events, however they are parted."""
    from dataclasses import replace

    offer = replace(offer, strict_pipelining=False, starttls=False)
    limits = Limits(endless_octets=1 << 20, backlog_octets=1 << 20)
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=12)))
    whole, parted = (Talk(offer, limits, answers, lmtp=lmtp) for _ in range(2))
    whole.feed(data)
    for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
        parted.feed(data[start:end])
    assert whole.sent == parted.sent
    assert normal(whole.events) == normal(parted.events)
