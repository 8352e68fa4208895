"""One SMTP or LMTP session without I/O: bytes in, events out; replies in, bytes out.

The contract, after h11's:

    engine.open(banner)
    engine.receive(data)
    while isinstance(event := engine.next_event(), Event):  # else NEED_DATA, PAUSED or CLOSED
        engine.answer(decide(event))                        # not for Chunk, Refused and a refused EndOfMessage
    transport.write(engine.bytes_to_send())

Nothing is parsed while an answer is owed, so pipelined replies keep their order. A peer's bytes never raise: every fault has
its reply, and the worst of them hang up. What raises (``OutOfTurn``, ``ValueError``) is our own mistake.

The order in which one command is judged, each step a refusal or on to the next: errors so far; characters and length; known here at
all; nothing behind it if it ends a group; TLS if required; junk budget; its place in the sequence (``states``); its argument
(``commands``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from postbus.smtp import defaults, exchange, replies, screening
from postbus.smtp.commands import FORBIDDEN, VERBS, Verb, chunk, greeting_lines
from postbus.smtp.content import CountBody, DotBody, SkippedChunk
from postbus.smtp.conversation import AUTHENTICATING, CLOSED, CONNECTED, OPENING, PAUSED, SHUT, Conversation
from postbus.smtp.events import AuthResponse, Bdat, Command, EndOfMessage, Event, Helo, Mail, Owed, Refused, Signal
from postbus.smtp.parameters import is_binary
from postbus.smtp.replies import Reply
from postbus.smtp.states import BAD_ARGUMENT, TRANSACTION, State
from postbus.smtp.terms import Limits, Offer

_NEED_DATA: Final = Signal.NEED_DATA
_DEFAULT_LIMITS = Limits()
_IDENTIFYING: Final = frozenset({"AUTH", "="})
_RARE: Final = frozenset({"STARTTLS", "AUTH", "=", "BDAT"})


class OutOfTurn(Exception):  # noqa: N818 - names the mistake, and it is ours, not the peer's
    """The shell did what the session's state does not allow."""


class Engine(Conversation):
    """One session; see the module's docstring.

    Args:
        offer: what is advertised and accepted; ``engine.offer`` may be replaced at any time.
        lmtp: LHLO instead of HELO and EHLO, and a reply per accepted recipient (RFC 2033).
        limits: bounds of this session.
        raw_verbs: verbs, upper-case, that come as ``Command`` instead of being parsed; they need not be in the verb table.
        tls: TLS is active from the start.

    Attributes (to read):
        helo: the name the peer gave, ``None`` before; esmtp: by EHLO or LHLO.
        tls: TLS is active; smtputf8, binarymime: the open transaction's MAIL said SMTPUTF8, BODY=BINARYMIME.
        authenticated: AUTH has succeeded; to be set by a shell that knows it otherwise.
        errors: refusals since the last accepted message; accepted_recipients: in the open transaction.
        tally: what is counted. nuisances, of it: errors and commands without mail, beyond what is usual, in the whole session: a shell
            that finds more than before answers slower.
        untimely: what was tolerated of octets that came too soon, where ``Offer.strict_pipelining`` is off: ``early`` (before the banner),
            ``pipelining`` (behind a command that ends a group). It is no part of an event, since it hangs on how octets are segmented;
            a shell takes it (``take_untimely``) with each message it accepts.
        last_word: the reply that hung up, if one has.
    """

    __slots__ = ("_raw_verbs",)

    def __init__(
        self,
        offer: Offer,
        *,
        lmtp: bool = False,
        limits: Limits | None = None,
        raw_verbs: frozenset[str] = frozenset(),
        tls: bool = False,
    ) -> None:
        super().__init__(offer, limits or _DEFAULT_LIMITS, lmtp=lmtp, tls=tls)
        self._raw_verbs = raw_verbs

    # --- what the shell does

    def open(self, banner: Reply) -> None:
        """Greet the peer. A banner of 4xx or 5xx ends the session; so does a peer that did not wait for it (RFC 5321 s3.1)."""
        if self._state is not OPENING:
            if self._state is CLOSED:
                return
            msg = "the banner is already sent"
            raise OutOfTurn(msg)
        if self._lines:
            if self.offer.strict_pipelining:
                self._send(replies.EARLY_TALK)
                return
            self._put_up_with("early")
        self._enter(CONNECTED if banner.code < 400 else CLOSED)
        self._send(banner)

    def receive(self, data: bytes) -> None:
        """Take bytes from the peer. What comes while an answer is owed is kept, up to ``Limits.backlog_octets``."""
        signal = self._signal
        if signal is SHUT:
            return
        self._lines.add(data)
        if (self._owed is not None or signal is not None) and len(self._lines) > self._limits.backlog_octets:
            self._send(replies.TOO_FAR_AHEAD)

    def next_event(self) -> Event | Signal:
        """Return the next thing the peer said, or why there is none."""
        if self._owed is not None:
            return PAUSED
        if self._signal is not None:
            return self._signal
        body = self._body
        if body is not None:
            said = body.read(self._lines)
            return self._end(body) if said is None else said
        line = self._lines.take()
        if line is not None:
            return self._command(line)
        return self._wait() if self._lines else _NEED_DATA

    def answer(self, reply: Reply | Sequence[Reply]) -> bool:
        """Give the owed answer; its first digit moves the session. Return whether ``next_event`` has anything new to say.

        Several replies are sent in order and the last one counts; none at all leaves the command without an answer, for shells that
        have pushed it. For ``EndOfMessage``: on LMTP one reply per accepted recipient in order (a single one stands for each), on SMTP
        several are folded. After a hang-up an answer that comes late is dropped.

        Raises:
            OutOfTurn: nothing is owed.
            ValueError: not as many replies as accepted recipients.
        """
        event = self._owed
        if event is None:
            if self._state is CLOSED:
                return True
            msg = "no answer is owed"
            raise OutOfTurn(msg)
        if isinstance(reply, Reply):
            last: Reply | None = reply
            if self._lmtp and event.verb == ".":
                self._out += reply.wire * (self.accepted_recipients - 1)
        else:
            last = self._several(event, reply)
        self._owed = None
        if last is not None:
            self._settle(event, last)
        if self._signal is not None or self._lines:
            return True
        body = self._body  # even an empty chunk has its end to tell; content behind DATA is still to come
        return body is not None and not isinstance(body, DotBody)

    def tls_started(self) -> None:
        """Say that the handshake has ended well: whatever the peer said before is forgotten (RFC 3207 s4.2)."""
        if self._state is CLOSED:
            return
        if self._state is not State.UPGRADING:
            msg = "STARTTLS was not answered with 220"
            raise OutOfTurn(msg)
        self.tls = True
        self.authenticated = False
        self._enter(State.CONNECTED)

    def interpret(self, verb: str, arg: str | None) -> Owed | Reply:
        """Judge a command's place and argument now, as ``next_event`` does for verbs that are not raw.

        An event becomes the one whose answer is owed; a reply is for the caller to answer with. *verb* is upper-case.
        """
        row = VERBS.get(verb)
        move = self._rows.get(verb)
        result: Owed | Reply
        if row is None or move is None:
            result = replies.UNKNOWN
        elif isinstance(move, Reply):
            result = move
        elif verb == "RCPT" and self.accepted_recipients >= self._limits.recipients:
            result = self.tally.surplus_recipient()
        else:
            result = row.parse(arg, self)
            if self.tally.counting:
                result = self.tally.counted(verb, result)
        self._faulted = isinstance(result, Reply)
        if not isinstance(result, Reply):
            self._owed = result
        return result

    def default_reply(self, event: Owed) -> Reply:
        """Return what a server without hooks answers to *event*."""
        return defaults.default_reply(event, self)

    def greeting_lines(self) -> tuple[str, ...]:
        """Return the lines of the answer to EHLO or LHLO."""
        return greeting_lines(self.offer, self._limits, tls=self.tls)

    # --- commands

    def _wait(self) -> Event | Signal:
        """Return what an unfinished line means."""
        if self._lines.starts_with(screening.CLIENT_HELLO):
            return self._refuse("", replies.NOT_TLS)
        if self._lines.endless:
            return self._refuse("", replies.ENDLESS_LINE)
        self._lines.shrink()
        return _NEED_DATA

    def _command(self, line: bytes) -> Event | Signal:
        """Judge one line."""
        length = self._lines.finish(line)
        try:
            text = line.decode("ascii")
            clean = text.isprintable()
        except UnicodeDecodeError:
            text, clean = screening.decode(line)
        verb, _, arg = text.partition(" ")
        verb = verb.upper()
        row = VERBS.get(verb)
        if not clean or length > self._plain_octets:
            event = self._look_closely(line, length, verb, clean=clean)
            if event is not None:
                return event
        raw = verb in self._raw_verbs
        if row is None or not (row.lmtp if self._lmtp else row.smtp):
            if not raw:
                return self._unknown_verb(verb)
            refusal = replies.TLS_FIRST if self.offer.require_tls and not self.tls else None
        else:
            refusal = self._turn_away(row)
        argument = arg.strip(" ") or None
        if refusal is not None:
            return self._refuse(verb, refusal) if verb != "BDAT" else self._skip(chunk(argument), refusal)
        if raw:
            self._owed = command = Command(verb, argument)
            return command
        result = self.interpret(verb, argument)
        if isinstance(result, Reply):
            self._move(verb, BAD_ARGUMENT)
            return self._refuse(verb, result) if verb != "BDAT" else self._skip(chunk(argument), result)
        return result

    def _look_closely(self, line: bytes, length: int, verb: str, *, clean: bool) -> Event | None:
        """Return what a line is that may not be a plain command: the answer to a challenge, or refused unread; ``None``: a command yet."""
        if self._state is AUTHENTICATING:
            return self._response(line, length)
        suspect = screening.Suspect(line, length, self._lines.head(line, length), verb, clean)
        refusal = screening.judge(suspect, self._limits, exhausted=self.tally.exhausted)
        if refusal is None:
            return None
        row = VERBS.get(verb)
        if row is not None and refusal is row.malformed:
            self._move(verb, BAD_ARGUMENT)
        return self._refuse("", refusal)

    def _turn_away(self, row: Verb) -> Reply | None:
        """Return why a known verb may not come now, for reasons that its row gives; counts junk."""
        offer = self.offer
        if row.ends_group and self._lines:
            if offer.strict_pipelining:
                return replies.EARLY_TALK
            self._put_up_with("pipelining")
        if not row.before_tls and offer.require_tls and not self.tls:
            return replies.TLS_FIRST
        if not row.before_auth and offer.require_auth and not self.authenticated:
            return replies.AUTH_FIRST
        return self.tally.junk() if row.junk else None

    def _unknown_verb(self, verb: str) -> Refused:
        return self._refuse(verb, replies.NOT_HTTP if verb in FORBIDDEN else self.tally.unknown())

    def _response(self, line: bytes, length: int) -> AuthResponse:
        """Read the answer to a challenge; like AUTH itself it ends a pipelined group."""
        judged: bytes | Reply
        if self.tally.exhausted:
            judged = replies.TOO_MANY_ERRORS
        elif self._lines and self.offer.strict_pipelining:
            judged = replies.EARLY_TALK
        else:
            if self._lines:
                self._put_up_with("pipelining")
            judged = exchange.judge(line, length)
        if not isinstance(judged, Reply):
            self._owed = event = AuthResponse(judged)
            return event
        self._error()
        self._enter(State.GREETED)
        self._send(judged)
        return AuthResponse(b"", judged)

    # --- content

    def _end(self, body: DotBody | CountBody | SkippedChunk) -> Event | Signal:
        """Return what the end of *body* means, which is all read, or more than enough."""
        if body.overrun:
            return self._refuse("", replies.ENDLESS_MESSAGE)
        self._body = None
        if isinstance(body, DotBody):
            return self._end_of_message(body)
        return self._skipped(body) if isinstance(body, SkippedChunk) else self._end_of_chunk(body)

    def _end_of_message(self, body: DotBody | CountBody) -> EndOfMessage:
        refusal = body.refusal
        event = EndOfMessage(body.size_octets, refusal, body.defects)
        if refusal is None:
            self._owed = event
        else:
            if self._lmtp:
                self._out += refusal.wire * (self.accepted_recipients - 1)
            self._settle(event, refusal)
        return event

    # --- chunks

    def _take(self, event: Bdat, reply: Reply) -> None:
        """Read the chunk *event* announces; *reply* is sent when it is whole."""
        if self._chunks is None:
            self._chunks = CountBody(self.offer, self._limits)
        self._chunks.begin(event.size_octets, reply, last=event.last)
        self._move("BDAT", 2)
        self._body = self._chunks

    def _skip(self, announced: Bdat | None, reply: Reply) -> Event | Signal:
        """Answer with *reply* once the chunk *announced* has gone by; at once where that cannot be waited for."""
        if announced is None or reply.close:
            return self._refuse("BDAT", reply if reply.close else replies.BAD_CHUNK)
        self._pass_by(announced, reply)
        return self.next_event()

    def _pass_by(self, announced: Bdat, reply: Reply) -> None:
        self._body = SkippedChunk(self.offer, self._limits, announced.size_octets, reply, last=announced.last)

    def _end_of_chunk(self, body: CountBody) -> Event | Signal:
        if body.last:
            return self._end_of_message(body)
        if body.small > self._limits.small_chunks:
            return self._refuse("BDAT", replies.TOO_MANY_CHUNKS)
        refusal = body.refusal
        if refusal is None:
            self._move("BDAT", 2)
            self._out += body.reply.wire
            return self.next_event()
        self._move("BDAT", 5)
        self._chunks = None
        self._error()
        self._send(refusal)
        return EndOfMessage(body.size_octets, refusal, body.defects)

    def _skipped(self, body: SkippedChunk) -> Refused:
        """Answer a chunk that has gone by. On LMTP a last one has as many replies as recipients were accepted (RFC 2033 s4.3)."""
        reply = body.reply
        if reply.code >= 500:
            self._error()
        self._out += reply.wire * (self.accepted_recipients if self._lmtp and body.last and self.in_transaction else 1)
        ends = body.last and self._state is State.FAILED
        if ends:
            self._move(".", 5)
        return Refused("BDAT", reply, ends)

    # --- replies

    def _several(self, event: Owed, several: Sequence[Reply]) -> Reply | None:
        """Send all but the reply that counts, and return that one; ``None`` if there is none."""
        if event.verb == "." and len(several) != self.accepted_recipients:
            msg = f"{len(several)} replies for {self.accepted_recipients} recipients"
            raise ValueError(msg)
        if not several:
            return None
        if event.verb == "." and not self._lmtp:
            return replies.fold(several)
        for reply in several[:-1]:
            self._out += reply.wire
            if event.verb == "." and reply.code < 300:
                self.tally.forgive()
        last = several[-1]
        return replace(last, close=True) if any(reply.close for reply in several) else last

    def _settle(self, event: Owed, reply: Reply) -> None:
        """Send the reply that counts, and go where the table says."""
        verb = event.verb
        digit = reply.code // 100
        if digit == 2:
            if verb == "RCPT":
                self.accepted_recipients += self._state in TRANSACTION  # a raw RCPT may be answered out of turn
            elif verb == ".":
                self.tally.forgive()
            elif isinstance(event, Mail) and event.parameters:
                self.smtputf8 = "SMTPUTF8" in event.parameters
                self.binarymime = is_binary(event.parameters)
            elif isinstance(event, Helo):
                self.helo = event.hostname
                self.esmtp = verb != "HELO"
            elif verb in _RARE and self._settle_rare(event, reply):
                return
        elif verb == "BDAT" and self._settle_rare(event, reply):
            return
        elif digit == 5:
            reply = self._failed(verb, reply)
        if self._faulted:
            digit = BAD_ARGUMENT
            self._faulted = False
        row = self._rows.get(verb)  # as in _move and _send, which would be two calls for every command
        if row and not isinstance(row, Reply):
            target = row.get(digit)
            if target is not None:
                self._enter(target)
        self._out += reply.wire
        if reply.close:
            self.last_word = reply
            self._enter(CLOSED)

    def _settle_rare(self, event: Owed, reply: Reply) -> bool:
        """Do what only AUTH, STARTTLS and BDAT need; return whether there is nothing more to do, not even to send *reply*."""
        if isinstance(event, Bdat):
            return self._settle_chunk(event, reply)
        if isinstance(event, Command) and event.verb == "BDAT":
            return self._settle_raw_chunk(event, reply)
        if event.verb == "STARTTLS":
            return self._talked_early()
        self.authenticated = True
        return False

    def _settle_chunk(self, event: Bdat, reply: Reply) -> bool:
        """Take or skip the chunk: its answer has to wait for its octets, unless it hangs up."""
        if reply.close:
            return False
        if reply.code < 300:
            self._take(event, reply)
            return True
        self._chunks = None
        self._move("BDAT", 5)  # what comes behind it would be half a message
        self._pass_by(event, reply)
        return True

    def _settle_raw_chunk(self, event: Command, reply: Reply) -> bool:
        """Skip the chunk of a raw BDAT that was not interpreted: its octets must not be read as commands, whatever was answered."""
        announced = chunk(event.arg)
        self._faulted = False
        if announced is None:
            self._send(replies.BAD_CHUNK)
            return True
        return self._settle_chunk(announced, reply if reply.code >= 400 else replies.NO_BDAT)

    def _failed(self, verb: str, reply: Reply) -> Reply:
        """Count a refusal of the shell's; return *reply*, or what the last failure of AUTH is told instead."""
        self._error()
        if verb not in _IDENTIFYING:
            return reply
        return self.tally.auth_failure() or reply

    def _talked_early(self) -> bool:
        """Forget plain text sent before the handshake: it must not be taken for what came through it (CVE-2021-38542 and family).

        Return whether it ends the session.
        """
        if not self._lines:
            return False
        self._lines.clear()
        if not self.offer.strict_pipelining:
            self._put_up_with("pipelining")
            return False
        self._send(replies.EARLY_TALK)
        return True
