"""The engine's contract: what the shell may rely on, whatever the peer sends."""

from __future__ import annotations

import gc
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from postbus.smtp import (
    Auth,
    AuthResponse,
    Bdat,
    Chunk,
    Command,
    DataStart,
    EndOfMessage,
    Engine,
    Helo,
    Limits,
    Mail,
    Noop,
    Offer,
    OutOfTurn,
    Quit,
    Rcpt,
    Refused,
    Reply,
    Signal,
    StartTls,
    State,
    replies,
)
from postbus.smtp.events import Rset
from postbus.smtp.framing import DISCARD_AFTER_OCTETS
from tests.smtp.driver import BANNER, OFFER, Driver, Policy, codes, normal, opened, owed, pipelined, transact

NO = Reply(550, "No", "5.7.1")
LATER = Reply(450, "Later", "4.7.1")


# --- the shell's side


def test_a_session() -> None:
    """Bytes in, events out; replies in, bytes out."""
    engine = Engine(OFFER)
    assert engine.next_event() is Signal.PAUSED
    engine.open(BANNER)
    assert engine.bytes_to_send() == b"220 mx.test ESMTP\r\n"
    assert engine.bytes_to_send() == b""
    assert engine.next_event() is Signal.NEED_DATA
    assert engine.idle
    transact(engine, "c@d", "e@f")
    assert (engine.in_content, engine.in_transaction, engine.idle) == (True, True, False)
    engine.receive(b"text\r\n.\r\n")
    assert engine.next_event() == Chunk(b"text\r\n")
    assert engine.next_event() == EndOfMessage(6)
    assert engine.next_event() is Signal.PAUSED
    assert not engine.in_content
    assert engine.accepted_recipients == 2
    engine.answer(replies.OK)
    assert engine.state is State.GREETED
    assert engine.accepted_recipients == 0
    assert (engine.helo, engine.esmtp) == ("x", True)
    engine.answer(replies.BYE) if owed(engine, b"QUIT\r\n") == Quit() else pytest.fail("not a QUIT")
    assert engine.next_event() is Signal.CLOSED
    assert engine.bytes_to_send().endswith(b"221 2.0.0 Bye\r\n")


def test_nothing_is_parsed_while_an_answer_is_owed() -> None:
    """Pipelined replies keep their order because the next command waits."""
    engine = opened()
    engine.answer(engine.default_reply(owed(engine, b"EHLO x\r\n")))
    assert owed(engine, b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n") == Mail("a@b", {}, {}, "FROM:<a@b>")
    assert engine.next_event() is Signal.PAUSED
    assert (engine.backlogged, engine.idle) == (True, False)
    assert engine.answer(replies.SENDER_OK), "there is more to say"
    assert engine.next_event() == Rcpt("c@d", {}, {}, "TO:<c@d>")
    assert (engine.backlogged, engine.idle) == (False, False)
    assert not engine.answer(replies.RECIPIENT_OK), "there is nothing to say"
    assert owed(engine, b"QUIT\r\n") == Quit()
    assert engine.answer(replies.BYE), "it is over"


def test_our_own_mistakes_raise() -> None:
    """An answer to nothing, a second banner, TLS that nobody asked for."""
    engine = opened()
    with pytest.raises(OutOfTurn):
        engine.answer(replies.OK)
    with pytest.raises(OutOfTurn):
        engine.open(BANNER)
    with pytest.raises(OutOfTurn):
        engine.tls_started()


def test_after_the_end_nothing_raises() -> None:
    """A hook that finishes after a hang-up may still answer, and late bytes are dropped."""
    engine = opened()
    assert owed(engine, b"NOOP\r\n") == Noop()
    engine.refuse(Reply(421, "Shutting down", "4.3.2"))
    engine.refuse(Reply(421, "Again", "4.3.2"))
    engine.answer(replies.OK)
    engine.receive(b"NOOP\r\n")
    engine.open(BANNER)
    engine.tls_started()
    assert engine.next_event() is Signal.CLOSED
    assert engine.bytes_to_send() == b"421 4.3.2 Shutting down\r\n"
    assert not engine.idle


@pytest.mark.parametrize("banner", [Reply(421, "Too busy", "4.3.2"), Reply(554, "No mail here", "5.3.2")])
def test_a_banner_may_refuse(banner: Reply) -> None:
    """Load is shed before the banner: the refusal is the whole session."""
    engine = Engine(OFFER)
    engine.open(banner)
    assert banner.wire == engine.bytes_to_send()
    assert engine.next_event() is Signal.CLOSED


def test_early_talk_is_allowed_where_pipelining_is_not_strict() -> None:
    """A lenient server answers a peer that did not wait for the banner."""
    engine = Engine(pipelined(OFFER))
    engine.receive(b"NOOP\r\n")
    assert engine.next_event() is Signal.PAUSED
    assert engine.backlogged
    engine.open(BANNER)
    assert engine.next_event() == Noop()


def test_a_backlog_is_bounded() -> None:
    """A peer that never reads its replies, before a shell that never stops reading, is hung up on."""
    engine = opened(limits=Limits(backlog_octets=10_000))
    owed(engine, b"NOOP\r\n")
    engine.receive(b"x" * 10_000)
    assert engine.next_event() is Signal.PAUSED
    engine.receive(b"x")
    assert engine.next_event() is Signal.CLOSED
    assert codes(engine.bytes_to_send()) == ["421 4.7.0"]


def test_a_raw_recipient_out_of_turn_is_none() -> None:
    """A shell that takes RCPT before MAIL has not added to the transaction that follows."""
    engine = opened(lmtp=True, raw_verbs=frozenset({"RCPT"}))
    owed(engine, b"RCPT TO:<early@b>\r\n")
    engine.answer(Reply(250, "Why not", "2.1.5"))
    assert engine.accepted_recipients == 0


def test_several_replies_or_none() -> None:
    """Several replies go out in order and the last one counts; none leaves the state alone."""
    engine = opened()
    owed(engine, b"EHLO x\r\n")
    engine.answer([Reply(250, "one"), NO])
    assert engine.state is State.CONNECTED
    owed(engine, b"EHLO x\r\n")
    engine.answer([])
    assert engine.state is State.CONNECTED
    assert engine.next_event() is Signal.NEED_DATA
    assert codes(engine.bytes_to_send()) == ["250", "550 5.7.1"]


# --- the end of a message


@pytest.mark.parametrize(
    ("lmtp", "several", "sent"),
    [
        (True, [replies.OK, NO], ["250 2.0.0", "550 5.7.1"]),
        (True, [NO, LATER], ["550 5.7.1", "450 4.7.1"]),
        (True, replies.OK, ["250 2.0.0", "250 2.0.0"]),
        (False, [replies.OK, NO], ["250 2.0.0"]),
        (False, [NO, LATER], ["451 4.3.0"]),
        (False, replies.OK, ["250 2.0.0"]),
    ],
)  # fmt: skip
def test_outcomes_per_recipient(lmtp: bool, several: Reply | list[Reply], sent: list[str]) -> None:
    """LMTP says each recipient's outcome, SMTP folds them."""
    engine = opened(lmtp=lmtp)
    transact(engine, "c@d", "e@f")
    engine.receive(b".\r\n")
    assert engine.next_event() == EndOfMessage(0)
    engine.answer(several)
    assert sent == codes(engine.bytes_to_send())
    assert engine.state is State.GREETED


def test_each_recipient_has_one_outcome() -> None:
    """More or fewer replies than recipients are our mistake."""
    engine = opened(lmtp=True)
    transact(engine, "c@d", "e@f")
    engine.receive(b".\r\n")
    engine.next_event()
    for several in ([], [NO], [NO] * 3):
        with pytest.raises(ValueError, match="2 recipients"):
            engine.answer(several)


def test_one_outcome_may_hang_up() -> None:
    """A 421 for one recipient ends the session behind the last reply."""
    engine = opened(lmtp=True)
    transact(engine, "c@d", "e@f")
    engine.receive(b".\r\n")
    engine.next_event()
    engine.answer([Reply(421, "Bye", "4.3.2"), replies.OK])
    assert codes(engine.bytes_to_send()) == ["421 4.3.2", "250 2.0.0"]
    assert engine.next_event() is Signal.CLOSED


@pytest.mark.parametrize("lmtp", [False, True])
def test_a_refused_message_needs_no_answer(lmtp: bool) -> None:
    """What the engine refuses it answers itself, and the pieces given before are for the shell to discard."""
    engine = opened(lmtp=lmtp)
    transact(engine, "c@d", "e@f")
    engine.receive(b"text\r\n")
    engine.receive(b"more\n\r\n.\r\n")
    event = engine.next_event()
    assert event == EndOfMessage(13, replies.STRAY_LINE_ENDING, {"bare-lf": 1})
    assert codes(engine.bytes_to_send()) == ["550 5.5.2"] * (2 if lmtp else 1)
    assert engine.next_event() is Signal.NEED_DATA
    assert engine.state is State.GREETED


def test_a_chunk_is_given_as_it_comes() -> None:
    """Content is not kept: each segment's octets come out at once, but for what may begin the end."""
    engine = opened()
    transact(engine, "c@d")
    for segment, piece in [(b"one\r\ntwo", b"one\r\ntwo"), (b"\r\n.", None), (b".x", b"\r\n.x"), (b"", None)]:
        engine.receive(segment)
        assert (Chunk(piece) if piece else Signal.NEED_DATA) == engine.next_event()


# --- TLS

TLS_OFFER = replace(OFFER, starttls=True, auth=("PLAIN", "LOGIN"), auth_tls=False)


def upgrading(offer: Offer = TLS_OFFER) -> Engine:
    """Return an engine whose StartTls is owed an answer."""
    engine = opened(offer)
    engine.answer(engine.default_reply(owed(engine, b"EHLO x\r\n")))
    assert owed(engine, b"STARTTLS\r\n") == StartTls()
    engine.bytes_to_send()
    return engine


def test_bytes_that_come_while_upgrading_are_kept() -> None:
    """Decrypted bytes may come before the shell knows that the handshake has ended; they are the first of the new session."""
    engine = upgrading()
    engine.answer(replies.START_TLS)
    assert engine.state is State.UPGRADING
    engine.receive(b"NOOP\r\n")
    assert engine.next_event() is Signal.PAUSED
    assert engine.backlogged
    engine.tls_started()
    assert engine.tls
    assert engine.helo is None
    assert not engine.esmtp
    assert engine.next_event() == Noop()


def test_plain_text_that_comes_before_the_220_hangs_up() -> None:
    """What arrived between STARTTLS and its answer was never encrypted."""
    engine = upgrading()
    engine.receive(b"MAIL FROM:<x@y>\r\n")
    engine.answer(replies.START_TLS)
    assert codes(engine.bytes_to_send()) == ["554 5.5.0"]
    assert engine.next_event() is Signal.CLOSED


def test_plain_text_behind_starttls_is_dropped_where_pipelining_is_not_strict() -> None:
    """Even a lenient server runs nothing inside TLS that was sent outside."""
    engine = upgrading(pipelined(TLS_OFFER))
    engine.receive(b"MAIL FROM:<x@y>\r\n")
    engine.answer(replies.START_TLS)
    engine.tls_started()
    assert engine.next_event() is Signal.NEED_DATA


def test_tls_from_the_start() -> None:
    """On an implicit-TLS listener TLS is neither offered nor missed."""
    engine = Engine(replace(TLS_OFFER, require_tls=True), tls=True)
    assert "STARTTLS" not in engine.greeting_lines()
    engine.open(BANNER)
    assert isinstance(owed(engine, b"HELO x\r\n"), Helo)


# --- AUTH


def identifying(limits: Limits | None = None) -> Engine:
    """Return an engine that has sent a challenge."""
    engine = opened(replace(TLS_OFFER, require_auth=True), limits=limits)
    engine.answer(engine.default_reply(owed(engine, b"EHLO x\r\n")))
    owed(engine, b"AUTH PLAIN\r\n")
    engine.answer(Reply(334, ""))
    engine.bytes_to_send()
    return engine


def test_only_who_is_known_may_send() -> None:
    """The answer to a challenge is no command, and what needs AUTH waits for its success."""
    engine = identifying()
    assert owed(engine, b"MDAw\r\n") == AuthResponse(b"000")
    engine.answer(LATER)
    engine.receive(b"MAIL FROM:<a@b>\r\n")
    assert engine.next_event() == Refused("MAIL", replies.AUTH_FIRST)
    assert owed(engine, b"AUTH PLAIN =\r\n") == Auth("PLAIN", b"")
    engine.answer(replies.OK)
    assert engine.authenticated
    assert isinstance(owed(engine, b"MAIL FROM:<a@b>\r\n"), Mail)


@pytest.mark.parametrize(
    ("sent", "limits", "expected"),
    [
        pytest.param(b"*\r\n", Limits(), replies.AUTH_CANCELLED, id="cancelled"),
        pytest.param(b"NOOP\r\n=\r\n", Limits(), replies.EARLY_TALK, id="something behind it"),
        pytest.param(b"=\r\n", Limits(errors=0), replies.TOO_MANY_ERRORS, id="one error too many before it"),
    ],
)
def test_an_exchange_may_end_by_itself(sent: bytes, limits: Limits, expected: Reply) -> None:
    """The engine answers what is no response, and the exchange is over."""
    engine = identifying()
    engine.grant(limits)
    engine.receive(sent)
    assert AuthResponse(b"", expected) == engine.next_event()
    assert engine.state in (State.GREETED, State.CLOSED)


def test_the_last_failure_hangs_up() -> None:
    """Guessing has a bound of its own, whatever the shell answers."""
    engine = identifying(Limits(auth_failures=1))
    owed(engine, b"=\r\n")
    engine.answer(replies.AUTH_FAILED)
    assert engine.last_word == replies.TOO_MANY_FAILURES


# --- raw verbs


def test_a_raw_verb_needs_no_row() -> None:
    """A shell may bring a verb of its own, at any time; its answer moves nothing."""
    engine = opened(raw_verbs=frozenset({"NOW"}))
    assert owed(engine, b"now UTC\r\n") == Command("NOW", "UTC")
    engine.answer(Reply(250, "12:00"))
    assert engine.state is State.CONNECTED
    assert engine.default_reply(Command("NOW", None)) == replies.UNKNOWN
    assert engine.default_reply(Command("MAIL", None)) == replies.UNKNOWN, "the shell has taken it over"
    assert engine.interpret("NOW", None) == replies.UNKNOWN


def test_a_raw_verb_can_be_interpreted() -> None:
    """What the shell takes over it may hand back, and the answer then moves the state."""
    engine = opened(raw_verbs=frozenset({"EHLO", "MAIL", "RCPT", "QUIT"}))
    assert owed(engine, b"EHLO x\r\n") == Command("EHLO", "x")
    assert engine.interpret("EHLO", "x") == Helo("EHLO", "x")
    engine.answer(replies.OK)
    assert engine.helo == "x"
    assert owed(engine, b"MAIL FROM:<a@b>\r\n") == Command("MAIL", "FROM:<a@b>")
    assert engine.interpret("MAIL", "FROM:a") == replies.Reply(501, "Syntax: MAIL FROM:<address>", "5.5.2")
    assert engine.interpret("MAIL", "FROM:<a@b> SMTPUTF8") == Mail("a@b", {"SMTPUTF8": None}, {}, "FROM:<a@b> SMTPUTF8")
    engine.answer(replies.OK)
    assert engine.smtputf8
    owed(engine, b"QUIT now\r\n")
    refusal = engine.interpret("QUIT", "now")
    assert isinstance(refusal, Reply)
    engine.answer(refusal)
    assert engine.state is State.SENDER, "a malformed QUIT does not quit, even by way of a raw verb"


def test_a_raw_verb_answered_unread_moves_by_its_name() -> None:
    """A shell that replaces MAIL and RCPT wholly still gets a transaction."""
    engine = opened(raw_verbs=frozenset({"MAIL", "RCPT"}))
    engine.answer(engine.default_reply(owed(engine, b"EHLO x\r\n")))
    for line, state in ((b"MAIL whatever\r\n", State.SENDER), (b"RCPT whoever\r\n", State.RECIPIENTS)):
        owed(engine, line)
        engine.answer(replies.OK)
        assert state is engine.state
    assert engine.accepted_recipients == 1


def test_raw_verbs_are_judged_too() -> None:
    """TLS, pipelining and budgets hold for raw verbs."""
    engine = opened(replace(TLS_OFFER, require_tls=True), raw_verbs=frozenset({"NOW", "RSET"}))
    for line in (b"NOW\r\n", b"RSET\r\n"):
        engine.receive(line)
        assert Refused(line[:-2].decode(), replies.TLS_FIRST) == engine.next_event()
    engine = opened(limits=Limits(junk=1), raw_verbs=frozenset({"RSET"}))
    owed(engine, b"RSET\r\n")
    engine.answer(replies.OK)
    engine.receive(b"RSET\r\n")
    assert engine.next_event() == Refused("RSET", replies.TOO_MUCH_JUNK)


# --- budgets


def test_an_endless_command_takes_constant_memory() -> None:
    """Octets without a line end are dropped long before the hang-up."""
    engine = opened(limits=Limits(endless_octets=10_000_000))
    for _ in range(100):
        engine.receive(b"x" * 65_536)
        assert engine.next_event() is Signal.NEED_DATA
        assert len(engine._lines) < 5000
    engine.receive(b"\r\nNOOP\r\n")
    assert engine.next_event() == Refused("", replies.LINE_TOO_LONG)
    assert engine.next_event() == Noop()


def test_early_talk() -> None:
    """A peer that did not wait for the banner never gets one."""
    engine = Engine(OFFER)
    engine.receive(b"NOOP\r\n")
    engine.open(BANNER)
    assert replies.EARLY_TALK.wire == engine.bytes_to_send()
    assert engine.next_event() is Signal.CLOSED


def test_what_comes_too_soon_and_is_tolerated_is_remembered() -> None:
    """Each kind once, until the shell takes it; a peer that waits leaves nothing."""
    engine = Engine(replace(OFFER, strict_pipelining=False))
    engine.receive(b"EHLO x\r\n")
    engine.open(BANNER)
    assert engine.take_untimely() == {"early"}
    engine.answer(engine.default_reply(owed(engine, b"")))
    engine.answer(engine.default_reply(owed(engine, b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n")))
    engine.answer(engine.default_reply(owed(engine, b"")))
    assert engine.untimely == frozenset()
    engine.answer(engine.default_reply(owed(engine, b"NOOP\r\nNOOP\r\n")))
    engine.answer(engine.default_reply(owed(engine, b"")))
    assert engine.take_untimely() == {"pipelining"}
    assert engine.take_untimely() == frozenset()


@pytest.mark.parametrize("soon", [pytest.param(False, id="before the 220"), pytest.param(True, id="with STARTTLS")])
def test_plain_text_before_a_handshake_is_forgotten_but_not_that_it_came(soon: bool) -> None:
    """Where it is tolerated: that somebody put it there is worth knowing behind the handshake too."""
    engine = opened(replace(TLS_OFFER, strict_pipelining=False))
    engine.answer(engine.default_reply(owed(engine, b"EHLO x\r\n")))
    event = owed(engine, b"STARTTLS\r\n" + b"NOOP\r\n" * soon)
    engine.receive(b"NOOP\r\n")
    engine.answer(engine.default_reply(event))
    engine.tls_started()
    assert engine.next_event() is Signal.NEED_DATA
    assert engine.untimely == {"pipelining"}


def test_octets_behind_an_answer_to_a_challenge_may_be_tolerated() -> None:
    """As behind any command that ends a group."""
    engine = identifying()
    engine.offer = replace(engine.offer, strict_pipelining=False)
    assert owed(engine, b"=\r\nNOOP\r\n") == AuthResponse(b"")
    assert engine.untimely == {"pipelining"}


def test_a_message_far_over_the_limit() -> None:
    """Nobody reads on for ever."""
    engine = opened(replace(OFFER, size_octets=1000))
    transact(engine, "c@d")
    engine.receive(b"x" * 1_100_000)
    assert engine.next_event() == Refused("", replies.ENDLESS_MESSAGE)
    assert engine.next_event() is Signal.CLOSED


# --- any bytes

FRAGMENTS = b"""EHLO x|HELO x|LHLO x|MAIL FROM:<a@b>|MAIL FROM:<>|MAIL FROM:<\xc3\xbc@b> SMTPUTF8|RCPT TO:<c@d>|RCPT TO:<no@d>|RCPT TO:<c@d|
DATA|RSET|NOOP|QUIT|VRFY x|EXPN x|HELP|STARTTLS|GET / HTTP/1.1|.|text|..|
AUTH PLAIN|AUTH LOGIN dGVzdA==|MTIzNA==|AHRlc3QAMTIzNA==|*""".replace(b"\n", b"").split(b"|")
ODDMENTS = [
    b"RCPT TO:<" + b"z" * 4200,
    b"\r\n.\r\n",
    b"\r",
    b"\n",
    b".",
    b"\0",
    b"\xff",
    b"\xc3",
    b"\x16\x03\x01",
    b"<",
    b" ",
    b"x" * 300,
    b"y" * 1500,
]
SAID = st.sampled_from([fragment + b"\r\n" for fragment in FRAGMENTS] + ODDMENTS)
TALK = st.lists(st.one_of(SAID, st.binary(max_size=20)), max_size=30).map(b"".join)
LIMITS = Limits(endless_octets=5000, text_line_octets=2000, errors=8, junk=12, unknown=4, recipients=3, recipients_overshoot=1)
SMALL = replace(OFFER, size_octets=4000, auth=("PLAIN", "LOGIN"), auth_tls=False)


def outcome(data: bytes, cuts: list[int], *, lmtp: bool, withheld: bool, greeted: bool) -> tuple[object, ...]:
    """Return all that comes of *data* cut at *cuts*: events, octets sent, mail taken, state."""
    driver = Driver(pipelined(SMALL), lmtp=lmtp, limits=LIMITS, policy=Policy(refuses=frozenset({"no@d"})))
    if greeted:
        driver.feed(b"LHLO x\r\n" if lmtp else b"EHLO x\r\n")
        driver.feed(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n")
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    segments = [data[start:end] for start, end in pairwise(edges)]
    if withheld:
        driver.feed_withheld(segments)
    else:
        for segment in segments:
            driver.feed(segment)
    return normal(driver.events), driver.sent, driver.accepted, driver.engine.state


@settings(max_examples=400, deadline=None)
@given(TALK, st.lists(st.integers(0, 10_000), max_size=12), st.booleans(), st.booleans(), st.booleans())
def test_any_bytes_at_any_split_mean_the_same(data: bytes, cuts: list[int], lmtp: bool, withheld: bool, greeted: bool) -> None:
    """Any bytes, cut anywhere, answered at once or at the end, give the same events and octets as in one piece, and never an exception."""
    expected = outcome(data, [], lmtp=lmtp, withheld=False, greeted=greeted)
    assert expected == outcome(data, cuts, lmtp=lmtp, withheld=withheld, greeted=greeted)
    assert expected == outcome(data, list(range(len(data))), lmtp=lmtp, withheld=withheld, greeted=greeted)


@settings(max_examples=200, deadline=None)
@given(st.lists(TALK, max_size=6), st.booleans(), st.sampled_from([replies.OK, LATER, NO, Reply(354, "Go on"), Reply(421, "Bye")]))
def test_no_bytes_raise_under_the_shipped_terms(segments: list[bytes], lmtp: bool, answer: Reply) -> None:
    """With strict pipelining, STARTTLS offered, and every verb answered in the strangest way, nothing raises and memory stays bounded."""
    driver = Driver(
        TLS_OFFER, lmtp=lmtp, policy=Policy(answers=dict.fromkeys(("EHLO", "MAIL", "RCPT", ".", "RSET", "STARTTLS", "DATA"), answer))
    )
    for segment in segments:
        driver.feed(segment)
        assert len(driver.engine._lines) <= DISCARD_AFTER_OCTETS
        assert driver.engine.next_event() in (Signal.NEED_DATA, Signal.CLOSED)


def test_an_engine_is_small() -> None:
    """Ten thousand idle sessions are ten thousand of these."""
    gc.collect()
    import sys

    engine = opened()
    assert sys.getsizeof(engine) + sys.getsizeof(engine._lines) < 400
    assert not hasattr(engine, "__dict__")


def test_data_is_refused_by_a_hook() -> None:
    """A hook that refuses DATA leaves the transaction as it was (RFC 5321 s3.3)."""
    engine = opened()
    for line in (b"EHLO x", b"MAIL FROM:<a@b>", b"RCPT TO:<c@d>"):
        engine.answer(engine.default_reply(owed(engine, line + b"\r\n")))
    assert owed(engine, b"DATA\r\n") == DataStart()
    engine.answer(LATER)
    assert engine.state is State.RECIPIENTS
    assert not engine.in_content


# --- chunks (RFC 3030)

ENVELOPE = b"EHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"
PIECES = st.sampled_from([b"\r", b"\n", b"\r\n", b".", b"\r\n.\r\n", b"RSET\r\n", b"QUIT\r\n", b"a", b"\0", b"x" * 1100])


def announced(chunks: list[bytes]) -> bytes:
    """Return *chunks* as the peer sends them, the last one said to be the last."""
    last = len(chunks) - 1
    return b"".join(b"BDAT %d%s\r\n%b" % (len(chunk), b" LAST" * (at == last), chunk) for at, chunk in enumerate(chunks))


@given(st.lists(st.lists(PIECES).map(b"".join), min_size=1, max_size=5), st.lists(st.integers(1, 2000), max_size=20), st.booleans())
def test_any_chunks_are_the_message_that_data_would_be(chunks: list[bytes], cuts: list[int], withheld: bool) -> None:
    """Any octets in any chunks and any segments: one message, the octets and defects that DATA gives, and the next command read as one."""
    content = b"".join(chunks)
    if not content.endswith(b"\r\n"):  # what DATA can carry
        chunks, content = [*chunks, b"\r\n"], content + b"\r\n"
    sent = announced(chunks) + b"HELP\r\n"
    segments, at = [], 0
    for cut in cuts:
        segments.append(sent[at : at + cut])
        at += cut
    segments.append(sent[at:])
    driver, other = (Driver(pipelined(replace(OFFER, stray="allow"))) for _ in range(2))
    driver.feed(ENVELOPE)
    said = driver.feed_withheld(segments) if withheld else b"".join(driver.feed(segment) for segment in segments)
    other.feed(ENVELOPE + b"DATA\r\n" + (b"\r\n" + content).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n")
    assert [*["250 2.0.0"] * len(chunks), "214 2.0.0"] == codes(said)
    assert [content] == driver.accepted == other.accepted
    (by_chunks,), (by_dot,) = ([event for event in one.events if isinstance(event, EndOfMessage)] for one in (driver, other))
    assert by_dot == by_chunks


def test_a_chunk_is_answered_when_it_is_whole() -> None:
    """The shell is asked when it is announced, the peer told when it has arrived; an empty one has its end at once."""
    engine = opened()
    transact_to_recipients(engine)
    assert Bdat(4, last=False) == owed(engine, b"BDAT 4\r\n")
    assert engine.answer(Reply(250, "As the shell says"))
    assert (engine.next_event(), engine.bytes_to_send()) == (Signal.NEED_DATA, b"")
    assert (engine.in_content, engine.idle, engine.in_transaction) == (True, False, True)
    engine.receive(b"text")
    assert (engine.next_event(), engine.bytes_to_send()) == (Chunk(b"text"), b"")
    assert (engine.next_event(), engine.bytes_to_send()) == (Signal.NEED_DATA, b"250 As the shell says\r\n")
    assert not engine.in_content
    assert Bdat(0, last=False) == owed(engine, b"BDAT 0\r\n")
    assert engine.answer(replies.CHUNK_OK)
    assert (engine.next_event(), engine.bytes_to_send()) == (Signal.NEED_DATA, replies.CHUNK_OK.wire)
    assert Bdat(0, last=True) == owed(engine, b"BDAT 0 LAST\r\n")
    assert engine.answer(replies.CHUNK_OK)
    assert engine.next_event() == EndOfMessage(4, None, {})
    engine.answer(replies.OK)
    assert (engine.bytes_to_send(), engine.state) == (replies.OK.wire, State.GREETED)


def transact_to_recipients(engine: Engine) -> None:
    """Bring *engine* to where a chunk may come."""
    for line in ENVELOPE.splitlines(keepends=True):
        event = owed(engine, line)
        engine.answer(engine.default_reply(event))
    engine.bytes_to_send()


@pytest.mark.parametrize(("code", "last", "after"), [(354, False, State.FAILED), (451, False, State.FAILED), (550, True, State.GREETED)])
def test_a_chunk_that_the_shell_refuses_goes_by(code: int, last: bool, after: State) -> None:
    """Its octets are no commands, and what comes behind it is no half of a message."""
    engine = opened(pipelined(OFFER))
    transact_to_recipients(engine)
    owed(engine, b"BDAT 6%s\r\nQUIT" % (b" LAST" * last))
    engine.answer(Reply(code, "No"))
    assert (engine.next_event(), engine.bytes_to_send()) == (Signal.NEED_DATA, b"")
    engine.receive(b"\r\nBDAT 6\r\nQUIT\r\n")
    assert isinstance(engine.next_event(), Refused)
    assert engine.state is after
    assert isinstance(engine.next_event(), Refused)
    assert ["503 5.5.1"] == codes(engine.bytes_to_send())[1:]
    assert engine.next_event() is Signal.NEED_DATA


def test_a_chunk_may_be_answered_by_hanging_up() -> None:
    """421 waits for no octets."""
    engine = opened()
    transact_to_recipients(engine)
    owed(engine, b"BDAT 6\r\nQUIT")
    engine.answer(Reply(421, "Later"))
    assert (engine.next_event(), engine.bytes_to_send()) == (Signal.CLOSED, b"421 Later\r\n")


def test_a_shell_may_keep_bdat_for_itself() -> None:
    """A raw verb is a raw verb."""
    engine = opened(raw_verbs=frozenset({"BDAT"}))
    transact_to_recipients(engine)
    assert Command("BDAT", "6 LAST") == owed(engine, b"BDAT 6 LAST\r\n")


@pytest.mark.parametrize("end", [b"RSET\r\n", b"EHLO x\r\n", b"BDAT 0 LAST\r\n", b"QUIT\r\n"])
@pytest.mark.parametrize("chunk", [b"BDAT 3\r\nabc", b"BDAT 11\r\nabcdefghijk"])
def test_nothing_is_left_of_chunks(chunk: bytes, end: bytes) -> None:
    """However a message of chunks ends, and whether one was refused: no state, no count, no octet of it stays."""
    driver = Driver(pipelined(replace(OFFER, size_octets=10)))
    driver.feed(ENVELOPE.replace(b"<a@b>", b"<a@b> BODY=BINARYMIME") + chunk + end)
    engine = driver.engine
    assert (engine.in_transaction, engine.accepted_recipients, engine.binarymime, engine.in_content) == (False, 0, False, False)
    driver.accepted.clear()
    if engine.state is not State.CLOSED:
        driver.drain()
        assert ["250 2.1.0", "250 2.1.5", "250 2.0.0"] == codes(driver.feed(ENVELOPE[8:] + b"BDAT 10 LAST\r\n0123456789"))
        assert [b"0123456789"] == driver.accepted


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        pytest.param(b"BDAT x\r\n", replies.BAD_CHUNK, id="what has no size cannot be waited for"),
        pytest.param(b"BDAT 1\r\nxBDAT 1\r\nx", replies.TOO_MANY_CHUNKS, id="too many small ones"),
    ],
)
def test_chunks_that_hang_up(command: bytes, expected: Reply) -> None:
    """What stands behind them could be anything."""
    driver = Driver(pipelined(OFFER), limits=Limits(small_chunks=1))
    driver.feed(ENVELOPE + command)
    assert driver.engine.last_word == expected


def test_a_recipient_past_a_limit_is_refused_here() -> None:
    """Of a transaction, and of the session's domains."""
    driver = Driver(pipelined(OFFER), limits=Limits(recipients=1))
    assert codes(driver.feed(ENVELOPE + b"RCPT TO:<e@f>\r\n"))[-1] == "452 4.5.3"
    driver = Driver(pipelined(OFFER), limits=Limits(recipient_domains=1))
    assert codes(driver.feed(ENVELOPE + b"RCPT TO:<e@f>\r\n"))[-1] == "452 4.5.3"
    driver.feed(b"RCPT TO:<\0>\r\n")
    assert driver.engine.errors == 1


@pytest.mark.parametrize(
    ("argument", "answer", "expected"),
    [
        pytest.param("6 LAST", Reply(502, "Not here", "5.5.1"), ["502 5.5.1", "250 2.0.0"], id="refused"),
        pytest.param("6", Reply(451, "Later", "4.3.0"), ["451 4.3.0", "250 2.0.0"], id="refused for now"),
        pytest.param("6 LAST", replies.OK, ["502 5.5.1", "250 2.0.0"], id="taken, though nobody can have it"),
        pytest.param("6", replies.TOO_MANY_ERRORS, ["421 4.7.0"], id="hung up"),
        pytest.param("six", replies.NO_BDAT, ["501 5.5.4"], id="who knows where it ends"),
    ],
)
@pytest.mark.parametrize("transaction", [False, True])
def test_the_chunk_of_a_raw_bdat_is_never_read_as_commands(argument: str, answer: Reply, expected: list[str], transaction: bool) -> None:
    """A shell that answers BDAT by itself has no way to take the octets; they go by all the same, and say nothing of who the peer is."""
    engine = opened(raw_verbs=frozenset({"BDAT"}))
    for line in (b"EHLO client.example", *(b"MAIL FROM:<a@client.example>", b"RCPT TO:<b@mx.test>") * transaction):
        engine.answer(engine.default_reply(owed(engine, line + b"\r\n")))
    engine.bytes_to_send()
    engine.receive(f"BDAT {argument}\r\nRSET\r\nRSET\r\n".encode())
    while isinstance(event := engine.next_event(), Command | Refused | Rset):
        if not isinstance(event, Refused):
            engine.answer(answer if isinstance(event, Command) else replies.OK)
    assert codes(engine.bytes_to_send()) == expected
    assert not engine.authenticated


@pytest.mark.parametrize(("failed", "last", "ended"), [(True, True, True), (True, False, False), (False, True, False)])
def test_the_last_chunk_of_a_failed_message_says_that_it_ends_it(failed: bool, last: bool, ended: bool) -> None:
    """So that a shell forgets what came between the chunks; a chunk that is merely out of turn ends nothing."""
    driver = Driver(replace(pipelined(OFFER), size_octets=1))
    driver.feed(b"EHLO x\r\nMAIL FROM:<a@b>\r\n" + b"RCPT TO:<c@d>\r\nBDAT 2\r\nxx" * failed)
    driver.feed(b"BDAT 1 LAST\r\nx" if last else b"BDAT 1\r\nx")
    assert driver.events[-1] == Refused("BDAT", replies.CHUNK_FAILED if failed else replies.SEND_RCPT, ended)
