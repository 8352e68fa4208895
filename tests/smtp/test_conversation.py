"""Where a session stands and how it moves, whatever is read."""

from __future__ import annotations

import pytest

from postbus.smtp import Command, Engine, Limits, Offer, Reply, Signal, State, replies
from postbus.smtp.conversation import Conversation
from tests.smtp.driver import OFFER, opened, owed, pipelined, transact


def test_push_and_close() -> None:
    """A pushed reply answers nothing; one that closes, closes."""
    engine = opened()
    owed(engine, b"NOOP\r\n")
    engine.push(Reply(250, "one"))
    assert engine.next_event() is Signal.PAUSED
    engine.push(Reply(421, "enough"))
    assert engine.next_event() is Signal.CLOSED
    assert engine.bytes_to_send() == b"250 one\r\n421 enough\r\n"
    engine.push(Reply(250, "nobody is there"))
    assert engine.bytes_to_send() == b""


def test_owing() -> None:
    """An answer is owed from the event to its answer."""
    engine = opened()
    seen = [engine.owing]
    event = owed(engine, b"NOOP\r\n")
    seen.append(engine.owing)
    engine.answer(engine.default_reply(event))
    assert [False, True, False] == [*seen, engine.owing]


def test_nothing_of_a_transaction_is_left_behind_it() -> None:
    """Whatever a transaction brought is forgotten when the state leaves it, and the greeting only where a session begins."""
    engine = opened()
    transact(engine, "c@d", "e@f")
    assert (engine.in_transaction, engine.in_content, engine.accepted_recipients, engine.helo) == (True, True, 2, "x")
    engine.receive(b".\r\n")
    engine.next_event()
    engine.answer(replies.OK)
    assert (engine.in_transaction, engine.in_content, engine.accepted_recipients, engine.helo) == (False, False, 0, "x")
    assert (engine.idle, engine.errors, engine.nuisances, engine.limits, engine.lmtp) == (True, 0, 0, Limits(), False)


def test_what_waits_behind_something_owed_is_a_backlog() -> None:
    """The shell is told to stop reading."""
    engine = opened(pipelined(OFFER))
    owed(engine, b"NOOP\r\nNOOP\r\n")
    assert (engine.backlogged, engine.idle) == (True, False)
    engine.answer(replies.OK)
    assert not engine.backlogged


def test_no_line_passes_unseen_behind_the_last_error() -> None:
    """The bound of errors is met by whatever comes next, a message accepted in between or not."""
    engine = opened(limits=Limits(errors=2))
    engine.grant(Limits(errors=1))
    engine.receive(b"XX\r\nNOOP\r\n")
    engine.next_event()
    assert engine.state is State.CONNECTED
    engine.next_event()
    assert (engine.state, engine.last_word) == (State.CLOSED, replies.TOO_MANY_ERRORS)


def test_a_fault_and_a_refusal_move_by_the_table() -> None:
    """A recipient that cannot be read was named; where nothing is said of a verb nothing moves; an error closes nothing by itself."""
    engine = opened()
    for line in (b"EHLO x\r\n", b"MAIL FROM:<a@b>\r\n"):
        engine.answer(engine.default_reply(owed(engine, line)))
    engine.receive(b"RCPT TO:<\r\n")
    engine.next_event()
    assert engine.state is State.REFUSED
    engine.receive(b"RCPT TO:<\r\n")
    engine.next_event()
    assert (engine.state, engine.errors) == (State.REFUSED, 2)


def test_a_conversation_may_end_before_it_began() -> None:
    """A refusal before the banner is the whole session."""
    conversation: Conversation = Engine(Offer("mx.test"), lmtp=True)
    assert (conversation.state, conversation.lmtp) == (State.OPENING, True)
    conversation.refuse(Reply(421, "Busy", "4.3.2"))
    assert (conversation.state, conversation.bytes_to_send()) == (State.CLOSED, b"421 4.3.2 Busy\r\n")


def test_a_refusal_of_the_shell_is_an_error_too() -> None:
    """It counts against the same bound."""
    engine = opened(limits=Limits(errors=1))
    owed(engine, b"NOOP\r\n")
    engine.answer(Reply(550, "No"))
    engine.receive(b"NOOP\r\n")
    engine.next_event()
    assert (engine.errors, engine.last_word) == (1, replies.TOO_MANY_ERRORS)


def test_where_the_table_says_nothing_nothing_moves() -> None:
    """A command out of order, and one whose fault has no row, leave the session where it stands; a last word is the last."""
    engine = opened()
    for line in (b"RCPT TO:<a@b>\r\n", b"QUIT now\r\n"):
        engine.receive(line)
        engine.next_event()
        assert engine.state is State.CONNECTED
    engine.refuse(Reply(421, "Bye"))
    engine.refuse(Reply(421, "Again"))
    assert engine.last_word == Reply(421, "Bye")


@pytest.mark.parametrize(
    ("line", "reply", "expected"),
    [
        pytest.param(b"RSET", replies.OK, True, id="RSET"),
        pytest.param(b"RSET", replies.LOCAL_ERROR, True, id="RSET, refused"),
        pytest.param(b"RSET x", replies.OK, False, id="malformed RSET"),
        pytest.param(b"EHLO x", replies.OK, True, id="EHLO"),
        pytest.param(b"EHLO x", replies.LOCAL_ERROR, False, id="EHLO, refused"),
        pytest.param(b"NOOP", replies.OK, False, id="NOOP"),
        pytest.param(b"MAIL FROM:<a@b>", replies.OK, False, id="out of order"),
    ],
)
def test_what_ends_a_transaction(line: bytes, reply: Reply, expected: bool) -> None:
    """By verb and answer; outside a transaction nothing does."""
    verb, _, arg = line.decode().partition(" ")
    for transaction in (True, False):
        engine = opened(raw_verbs=frozenset({verb} - {"MAIL"}))
        for line_before in (b"HELO x", b"MAIL FROM:<a@client.example>")[: 1 + transaction]:
            event = owed(engine, line_before + b"\r\n")
            engine.answer(replies.OK if isinstance(event, Command) else engine.default_reply(event))
        engine.interpret(verb, arg or None)
        assert engine.ends_transaction(verb, reply) is (expected and transaction)
