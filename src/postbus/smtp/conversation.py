"""Where a session stands, what is to be sent, and how it moves: the half of the engine that reads nothing.

``Conversation`` knows no command. It holds the state and what goes with it (offer, limits, counts, the open transaction), takes replies
for the peer, and goes where the transition table says. What a transaction leaves behind is forgotten in one place, ``_enter``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from postbus.smtp.content import CountBody, DotBody, SkippedChunk
from postbus.smtp.events import Owed, Refused, Signal
from postbus.smtp.framing import Lines
from postbus.smtp.replies import Reply
from postbus.smtp.states import BAD_ARGUMENT, LMTP, SMTP, TRANSACTION, Row, State
from postbus.smtp.tally import Tally
from postbus.smtp.terms import Limits, Offer

# Looking a member up in its class takes 60 ns, a name 5.
OPENING: Final = State.OPENING
CONNECTED: Final = State.CONNECTED
GREETED: Final = State.GREETED
CONTENT: Final = State.CONTENT
CHUNK: Final = State.CHUNK
AUTHENTICATING: Final = State.AUTHENTICATING
CLOSED: Final = State.CLOSED
PAUSED: Final = Signal.PAUSED
SHUT: Final = Signal.CLOSED

_SIGNALS: Final[Mapping[State, Signal]] = {State.OPENING: Signal.PAUSED, State.UPGRADING: Signal.PAUSED, State.CLOSED: Signal.CLOSED}
_NO_ROWS: Final[Mapping[str, Row]] = {}
_PUNCTUAL: frozenset[str] = frozenset()
_VERB_MAX_OCTETS = 16  # of an unknown verb, what a log may see


class Conversation:
    """One session without its reading; the attributes are told in ``engine.Engine``, which is the whole of it."""

    __slots__ = ("_body", "_chunks", "_faulted", "_limits", "_lines", "_lmtp", "_out", "_owed", "_plain_octets", "_rows", "_signal",
                 "_state", "_table", "accepted_recipients", "authenticated", "binarymime", "esmtp", "helo", "last_word", "offer",
                 "smtputf8", "tally", "tls", "untimely")  # fmt: skip

    def __init__(self, offer: Offer, limits: Limits, *, lmtp: bool, tls: bool) -> None:
        self.offer = offer
        self.tls = tls
        self.helo: str | None = None
        self.esmtp = False
        self.authenticated = False
        self.smtputf8 = False
        self.binarymime = False
        self.last_word: Reply | None = None
        self.accepted_recipients = 0
        self.untimely: frozenset[str] = _PUNCTUAL
        self._limits = limits
        self.tally = Tally(limits)
        self._lmtp = lmtp
        self._table = LMTP if lmtp else SMTP
        self._lines = Lines(limits.endless_octets)
        self._body: DotBody | CountBody | SkippedChunk | None = None  # what is being read
        self._chunks: CountBody | None = None  # those of the open transaction
        self._out = b""
        self._owed: Owed | None = None
        self._faulted = False  # the engine itself has refused the argument of the command owed an answer
        self._state: State = OPENING
        self._rows = _NO_ROWS
        self._signal: Signal | None = PAUSED
        self._plain_octets = limits.command_octets

    # --- what the shell does

    def push(self, reply: Reply) -> None:
        """Send a further reply that answers nothing; after a hang-up there is nobody to send it to."""
        if self._state is not CLOSED:
            self._send(reply)

    def refuse(self, reply: Reply) -> None:
        """Have the last word unasked (421: time-out, shutdown) and be closed."""
        if self._state is not CLOSED:
            self._send(reply)
            self._enter(CLOSED)

    def bytes_to_send(self) -> bytes:
        """Return what is to be sent to the peer, and forget it; ``b""`` if nothing."""
        out = self._out
        self._out = b""
        return out

    def take_untimely(self) -> frozenset[str]:
        """Return ``untimely``, and forget it."""
        untimely, self.untimely = self.untimely, _PUNCTUAL
        return untimely

    def grant(self, limits: Limits) -> None:
        """Put other *limits* into force; meant for a greeting, whose answer then tells them (RFC 9422). What was counted stays counted."""
        self._limits = limits
        self.tally.grant(limits)

    # --- what the shell sees

    @property
    def lmtp(self) -> bool:
        """Whether the protocol is LMTP."""
        return self._lmtp

    @property
    def limits(self) -> Limits:
        """The limits in force."""
        return self._limits

    @property
    def errors(self) -> int:
        """Refusals since the last accepted message."""
        return self.tally.errors

    @property
    def nuisances(self) -> int:
        """Errors and commands without mail beyond what is usual, in the whole session."""
        return self.tally.nuisances

    @property
    def state(self) -> State:
        """Where the session stands."""
        return self._state

    @property
    def in_transaction(self) -> bool:
        """Whether a sender is known: from MAIL's 2xx to the end of the transaction, however it ends."""
        return self._state in TRANSACTION

    def ends_transaction(self, verb: str, reply: Reply) -> bool:
        """Return whether the transaction under way ends when *verb* is answered with *reply*, for shells that answer a raw verb."""
        row = self._rows.get(verb)
        digit = BAD_ARGUMENT if self._faulted else reply.code // 100
        target = None if row is None or isinstance(row, Reply) else row.get(digit)
        return self.in_transaction and target is not None and target not in TRANSACTION

    @property
    def in_content(self) -> bool:
        """Whether the peer is sending content."""
        return (self._state is CONTENT or self._state is CHUNK) and self._owed is None

    @property
    def idle(self) -> bool:
        """Whether nothing would be lost by hanging up: no transaction, nothing buffered, nothing owed."""
        return self._owed is None and not self._lines and (self._state is CONNECTED or self._state is GREETED)

    @property
    def owing(self) -> bool:
        """Whether an answer is owed."""
        return self._owed is not None

    @property
    def backlogged(self) -> bool:
        """Whether octets wait behind something owed: the shell should stop reading until it is answered."""
        return (self._owed is not None or self._signal is PAUSED) and bool(self._lines)

    # --- how it moves

    def _send(self, reply: Reply) -> None:
        self._out += reply.wire
        if reply.close:
            self.last_word = reply
            self._enter(CLOSED)

    def _refuse(self, verb: str, reply: Reply) -> Refused:
        """Answer a bad command."""
        self.tally.refusal(reply)
        self._beware()
        self._send(reply)
        return Refused(verb[:_VERB_MAX_OCTETS], reply)

    def _put_up_with(self, kind: str) -> None:
        """Remember octets that came too soon and were taken all the same."""
        if kind not in self.untimely:
            self.untimely |= {kind}

    def _error(self) -> None:
        """Count an error that was answered otherwise."""
        self.tally.error()
        self._beware()

    def _beware(self) -> None:
        """See to it that no line passes unseen behind the last error there may be."""
        if self.tally.exhausted:
            self._plain_octets = -1

    def _move(self, verb: str, digit: int) -> None:
        """Go where the table says."""
        self._faulted = False
        row = self._rows.get(verb)
        if row and not isinstance(row, Reply):
            target = row.get(digit)
            if target is not None:
                self._enter(target)

    def _enter(self, state: State) -> None:
        """Go to *state*; all of the transaction is forgotten here, and nowhere else."""
        self._state = state
        self._rows = self._table.get(state, _NO_ROWS)
        if state in TRANSACTION:
            if state is CONTENT:
                self._body = DotBody(self.offer, self._limits)
            return
        self._body = None
        self._chunks = None
        self.smtputf8 = self.binarymime = False
        self.accepted_recipients = self.tally.surplus = 0
        # Lines up to here may be read as commands without a closer look; an answer to a challenge is none.
        self._plain_octets = -1 if state is AUTHENTICATING or self.tally.errors >= self._limits.errors else self._limits.command_octets
        if state is CONNECTED:  # a beginning: banner, TLS, XCLIENT
            self.helo = None
            self.esmtp = False
        elif state is CLOSED:
            self._owed = None
            self._lines.clear()
        self._signal = _SIGNALS.get(state)
