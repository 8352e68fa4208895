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

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from postbus.smtp import exchange, replies
from postbus.smtp.commands import FORBIDDEN, VERBS, Verb, chunk, greeting_lines, help_reply
from postbus.smtp.content import CountBody, DotBody, SkippedChunk
from postbus.smtp.events import AuthResponse, Bdat, Chunk, Command, EndOfMessage, Event, Helo, Help, Mail, Owed, Rcpt, Refused, Signal
from postbus.smtp.framing import Lines
from postbus.smtp.parameters import is_binary
from postbus.smtp.replies import Reply
from postbus.smtp.states import BAD_ARGUMENT, LMTP, SMTP, TRANSACTION, Row, State
from postbus.smtp.terms import Limits, Offer

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # C0, DEL and C1
_CLIENT_HELLO = b"\x16\x03"  # a TLS handshake record (RFC 8446 s5.1), which no command begins with
_VERB_MAX_OCTETS = 16  # of an unknown verb, what a log may see
_NO_ROWS: Mapping[str, Row] = {}
_IDENTIFYING = frozenset({"AUTH", "="})
_DEFAULTS: Mapping[str, Reply] = {
    "MAIL": replies.SENDER_OK,
    "RCPT": replies.RECIPIENT_OK,
    "DATA": replies.START_MAIL,
    "BDAT": replies.CHUNK_OK,
    ".": replies.OK,
    "STARTTLS": replies.START_TLS,
    "AUTH": replies.AUTH_FAILED,
    "=": replies.AUTH_FAILED,
    "RSET": replies.OK,
    "NOOP": replies.OK,
    "VRFY": replies.CANNOT_VRFY,
    "EXPN": replies.NO_EXPN,
    "QUIT": replies.BYE,
    "XFORWARD": replies.OK,
}


class OutOfTurn(Exception):  # noqa: N818 - names the mistake, and it is ours, not the peer's
    """The shell did what the session's state does not allow."""


class Engine:
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
        nuisances: errors and commands without mail, beyond what is usual, in the whole session: a shell that finds more than before
            answers slower.
        last_word: the reply that hung up, if one has.
    """

    __slots__ = ("_auth_failures", "_body", "_chunks", "_counting", "_domains", "_ended", "_faulted", "_junk", "_limits", "_lines", "_lmtp",
                 "_mails", "_out", "_owed", "_plain_octets", "_raw_verbs", "_rows", "_signal", "_state", "_surplus", "_table", "_unknown",
                 "accepted_recipients", "authenticated", "binarymime", "errors", "esmtp", "helo", "last_word", "nuisances", "offer",
                 "smtputf8",
                 "tls")  # fmt: skip

    def __init__(
        self,
        offer: Offer,
        *,
        lmtp: bool = False,
        limits: Limits | None = None,
        raw_verbs: frozenset[str] = frozenset(),
        tls: bool = False,
    ) -> None:
        self.offer = offer
        self.tls = tls
        self.helo: str | None = None
        self.esmtp = False
        self.authenticated = False
        self.smtputf8 = False
        self.binarymime = False
        self.errors = self.nuisances = 0
        self.last_word: Reply | None = None
        self.accepted_recipients = 0
        self._limits = limits = limits or _DEFAULT_LIMITS
        self._counting = limits.mails > 0 or limits.recipient_domains > 0
        self._lmtp = lmtp
        self._raw_verbs = raw_verbs
        self._table = LMTP if lmtp else SMTP
        self._lines = Lines(limits.endless_octets)
        self._body: DotBody | CountBody | SkippedChunk | None = None
        self._chunks: CountBody | None = None
        self._ended = self._faulted = False
        self._out = b""
        self._owed: Owed | None = None
        self._junk = self._unknown = self._surplus = self._mails = self._auth_failures = 0
        self._domains: set[str] = set()  # of recipients named, where their number is limited
        self._enter(State.OPENING)

    # --- what the shell does

    def open(self, banner: Reply) -> None:
        """Greet the peer. A banner of 4xx or 5xx ends the session; so does a peer that did not wait for it (RFC 5321 s3.1)."""
        if self._state is not State.OPENING:
            if self._state is State.CLOSED:
                return
            msg = "the banner is already sent"
            raise OutOfTurn(msg)
        if self._lines and self.offer.strict_pipelining:
            self._send(replies.EARLY_TALK)
            return
        self._enter(State.CONNECTED if banner.code < 400 else State.CLOSED)
        self._send(banner)

    def receive(self, data: bytes) -> None:
        """Take bytes from the peer. What comes while an answer is owed is kept, up to ``Limits.backlog_octets``."""
        if self._signal is Signal.CLOSED:
            return
        self._lines.add(data)
        if (self._owed is not None or self._signal is not None) and len(self._lines) > self._limits.backlog_octets:
            self._send(replies.TOO_FAR_AHEAD)

    def next_event(self) -> Event | Signal:
        """Return the next thing the peer said, or why there is none."""
        if self._owed is not None:
            return Signal.PAUSED
        if self._signal is not None:
            return self._signal
        body = self._body
        if body is not None:
            return self._read_content(body) if isinstance(body, DotBody) else self._read_chunk(body)
        line = self._lines.take()
        if line is not None:
            return self._command(line)
        return self._wait() if self._lines else Signal.NEED_DATA

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
            if self._state is State.CLOSED:
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
        return self._signal is not None or bool(self._lines) or self._in_chunk

    def push(self, reply: Reply) -> None:
        """Send a further reply that answers nothing; after a hang-up there is nobody to send it to."""
        if self._state is not State.CLOSED:
            self._send(reply)

    def bytes_to_send(self) -> bytes:
        """Return what is to be sent to the peer, and forget it; ``b""`` if nothing."""
        out = self._out
        self._out = b""
        return out

    def grant(self, limits: Limits) -> None:
        """Put other *limits* into force; meant for a greeting, whose answer then tells them (RFC 9422). What was counted stays counted."""
        self._limits = limits
        self._counting = limits.mails > 0 or limits.recipient_domains > 0

    def tls_started(self) -> None:
        """Say that the handshake has ended well: whatever the peer said before is forgotten (RFC 3207 s4.2)."""
        if self._state is State.CLOSED:
            return
        if self._state is not State.UPGRADING:
            msg = "STARTTLS was not answered with 220"
            raise OutOfTurn(msg)
        self.tls = True
        self.authenticated = False
        self._enter(State.CONNECTED)

    def refuse(self, reply: Reply) -> None:
        """Have the last word unasked (421: time-out, shutdown) and be closed."""
        if self._state is not State.CLOSED:
            self._send(reply)
            self._enter(State.CLOSED)

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
            self._surplus += 1
            result = replies.TOO_MANY_RECIPIENTS
        else:
            result = row.parse(arg, self)
            if self._counting:
                result = self._counted(verb, result)
        self._faulted = isinstance(result, Reply)
        if not isinstance(result, Reply):
            self._owed = result
        return result

    def _counted(self, verb: str, result: Owed | Reply) -> Owed | Reply:
        """Return *result*, or why it is one too many for the session."""
        limits = self._limits
        if verb == "MAIL" and limits.mails:
            self._mails += 1
            if self._mails > limits.mails:
                return replies.TOO_MANY_MAILS
        elif limits.recipient_domains and isinstance(result, Rcpt):
            domains = {*self._domains, _domain(result.address)}
            if len(domains) > limits.recipient_domains:
                self._surplus += 1
                return replies.TOO_MANY_DOMAINS
            self._domains = domains
        return result

    def default_reply(self, event: Owed) -> Reply:
        """Return what a server without hooks answers to *event*."""
        if isinstance(event, Helo):
            return _greeting_reply(self.offer, self._limits, tls=self.tls, extended=event.verb != "HELO")
        if isinstance(event, Help):
            return help_reply(event.arg, lmtp=self._lmtp, esmtp=self.esmtp)
        if event.verb == "XCLIENT" and not isinstance(event, Command):
            return Reply(220, f"{self.offer.hostname} {'LMTP' if self._lmtp else 'ESMTP'}")
        return replies.UNKNOWN if isinstance(event, Command) else _DEFAULTS[event.verb]

    def greeting_lines(self) -> tuple[str, ...]:
        """Return the lines of the answer to EHLO or LHLO."""
        return greeting_lines(self.offer, self._limits, tls=self.tls)

    # --- what the shell sees

    @property
    def limits(self) -> Limits:
        """The limits in force."""
        return self._limits

    @property
    def state(self) -> State:
        """Where the session stands."""
        return self._state

    @property
    def in_transaction(self) -> bool:
        """Whether a sender is known: from MAIL's 2xx to the end of the transaction, however it ends."""
        return self._state in TRANSACTION

    @property
    def in_content(self) -> bool:
        """Whether the peer is sending content."""
        return (self._state is State.CONTENT or self._state is State.CHUNK) and self._owed is None

    @property
    def idle(self) -> bool:
        """Whether nothing would be lost by hanging up: no transaction, nothing buffered, nothing owed."""
        return self._owed is None and not self._lines and (self._state is State.CONNECTED or self._state is State.GREETED)

    @property
    def owing(self) -> bool:
        """Whether an answer is owed."""
        return self._owed is not None

    @property
    def backlogged(self) -> bool:
        """Whether octets wait behind something owed: the shell should stop reading until it is answered."""
        return (self._owed is not None or self._signal is Signal.PAUSED) and bool(self._lines)

    # --- commands

    def _wait(self) -> Event | Signal:
        """Return what an unfinished line means."""
        if self._lines.starts_with(_CLIENT_HELLO):
            return self._refuse("", replies.NOT_TLS)
        if self._lines.endless:
            return self._refuse("", replies.ENDLESS_LINE)
        self._lines.shrink()
        return Signal.NEED_DATA

    def _command(self, line: bytes) -> Event | Signal:
        """Judge one line."""
        length = self._lines.finish(line)
        try:
            text = line.decode("ascii")
            clean = text.isprintable()
        except UnicodeDecodeError:
            text, clean = _decode(line)
        verb, _, arg = text.partition(" ")
        verb = verb.upper()
        row = VERBS.get(verb)
        if not clean or length > self._plain_octets or self.errors >= self._limits.errors:
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
        if self._state is State.AUTHENTICATING:
            return self._response(line, length)
        row = VERBS.get(verb)
        refusal = self._bad_line(line, length, row, clean=clean)
        if refusal is None:
            return None
        if row is not None and refusal is row.malformed:
            self._move(verb, BAD_ARGUMENT)
        return self._refuse("", refusal)

    def _bad_line(self, line: bytes, length: int, row: Verb | None, *, clean: bool) -> Reply | None:
        """Return why a line is refused unread, if it is: errors before it, its length, its characters."""
        allowance = row.allowance_octets if row is not None else 0
        for bad, reply in (
            (line.startswith(_CLIENT_HELLO), replies.NOT_TLS),
            (length > self._limits.endless_octets, replies.ENDLESS_LINE),
            (self.errors >= self._limits.errors, replies.TOO_MANY_ERRORS),
            (length > self._limits.command_octets + allowance, self._too_long(line, length)),
            (not clean, row.malformed if row is not None else replies.UNKNOWN),
        ):
            if bad:
                return reply
        return None

    def _too_long(self, line: bytes, length: int) -> Reply:
        """Return the answer to an overlong line, which may have lost all but its first and last octets."""
        row = VERBS.get(self._lines.head(line, length).partition(b" ")[0].decode("latin-1").upper())
        return replies.LINE_TOO_LONG if row is None else row.too_long

    def _turn_away(self, row: Verb) -> Reply | None:
        """Return why a known verb may not come now, for reasons that its row gives; counts junk."""
        offer = self.offer
        if row.ends_group and self._lines and offer.strict_pipelining:
            return replies.EARLY_TALK
        if not row.before_tls and offer.require_tls and not self.tls:
            return replies.TLS_FIRST
        if not row.before_auth and offer.require_auth and not self.authenticated:
            return replies.AUTH_FIRST
        if row.junk:
            self._junk += 1
            if self._junk > self._limits.junk:
                return replies.TOO_MUCH_JUNK
            self.nuisances += self._junk > self._limits.junk_slow
        return None

    def _unknown_verb(self, verb: str) -> Refused:
        if verb in FORBIDDEN:
            return self._refuse(verb, replies.NOT_HTTP)
        self._unknown += 1
        return self._refuse(verb, replies.UNKNOWN if self._unknown <= self._limits.unknown else replies.TOO_MANY_UNKNOWN)

    def _response(self, line: bytes, length: int) -> AuthResponse:
        """Read the answer to a challenge; like AUTH itself it ends a pipelined group."""
        judged: bytes | Reply
        if self.errors >= self._limits.errors:
            judged = replies.TOO_MANY_ERRORS
        elif self._lines and self.offer.strict_pipelining:
            judged = replies.EARLY_TALK
        else:
            judged = exchange.judge(line, length)
        if not isinstance(judged, Reply):
            self._owed = event = AuthResponse(judged)
            return event
        self._err()
        self._enter(State.GREETED)
        self._send(judged)
        return AuthResponse(b"", judged)

    # --- content

    def _read_content(self, body: DotBody) -> Event | Signal:
        if not self._ended:
            data = self._lines.rest()
            if not data:
                return Signal.NEED_DATA
            piece, rest = body.feed(data)
            if body.overrun:
                return self._refuse("", replies.ENDLESS_MESSAGE)
            if rest is not None:
                self._lines.add(rest)
                self._ended = True
            if piece and not body.hopeless:
                return Chunk(piece)
            if rest is None:
                return Signal.NEED_DATA
        return self._end_of_message(body)

    def _end_of_message(self, body: DotBody | CountBody) -> EndOfMessage:
        refusal = body.refusal
        event = EndOfMessage(body.size_octets, refusal, body.defects)
        self._body = None
        self._ended = False
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

    @property
    def _in_chunk(self) -> bool:
        """Whether a chunk is being read or skipped: even an empty one has its end to tell."""
        return self._body is not None and not isinstance(self._body, DotBody)

    def _read_chunk(self, body: CountBody | SkippedChunk) -> Event | Signal:
        data = self._lines.some(body.left_octets)
        piece = body.feed(data)
        if body.overrun:
            return self._refuse("", replies.ENDLESS_MESSAGE)
        if piece and not body.hopeless:
            return Chunk(piece)
        if body.left_octets:
            return Signal.NEED_DATA
        self._body = None
        return self._skipped(body) if isinstance(body, SkippedChunk) else self._end_of_chunk(body)

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
        self._err()
        self._send(refusal)
        return EndOfMessage(body.size_octets, refusal, body.defects)

    def _skipped(self, body: SkippedChunk) -> Refused:
        """Answer a chunk that has gone by. On LMTP a last one has as many replies as recipients were accepted (RFC 2033 s4.3)."""
        reply = body.reply
        if reply.code >= 500:
            self._err()
        self._out += reply.wire * (self.accepted_recipients if self._lmtp and body.last and self.in_transaction else 1)
        if body.last:
            self._move(".", 5)
        return Refused("BDAT", reply)

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
                self._forgive()
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
                self._forgive()
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
            self._enter(_CLOSED)

    def _settle_rare(self, event: Owed, reply: Reply) -> bool:
        """Do what only AUTH, STARTTLS and BDAT need; return whether there is nothing more to do, not even to send *reply*."""
        if isinstance(event, Bdat):
            return self._settle_chunk(event, reply)
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

    def _failed(self, verb: str, reply: Reply) -> Reply:
        """Count a refusal of the shell's; return *reply*, or what the last failure of AUTH is told instead."""
        self._err()
        if verb not in _IDENTIFYING:
            return reply
        self._auth_failures += 1
        return reply if self._auth_failures < self._limits.auth_failures else replies.TOO_MANY_FAILURES

    def _talked_early(self) -> bool:
        """Forget plain text sent before the handshake: it must not be taken for what came through it (CVE-2021-38542 and family).

        Return whether it ends the session.
        """
        ends = bool(self._lines) and self.offer.strict_pipelining
        self._lines.clear()
        if ends:
            self._send(replies.EARLY_TALK)
        return ends

    def _move(self, verb: str, digit: int) -> None:
        """Go where the table says."""
        self._faulted = False
        row = self._rows.get(verb)
        if row and not isinstance(row, Reply):
            target = row.get(digit)
            if target is not None:
                self._enter(target)

    def _refuse(self, verb: str, reply: Reply) -> Refused:
        """Answer a bad command; 452 for a surplus recipient is an error only when there are very many."""
        if reply.code >= 500 or self._surplus > self._limits.recipients_overshoot:
            self._err()
        self._send(reply)
        return Refused(verb[:_VERB_MAX_OCTETS], reply)

    def _send(self, reply: Reply) -> None:
        self._out += reply.wire
        if reply.close:
            self.last_word = reply
            self._enter(State.CLOSED)

    def _err(self) -> None:
        """Count an error."""
        self.errors += 1
        self.nuisances += self.errors > self._limits.errors_slow

    def _forgive(self) -> None:
        """Forget past errors: a peer that delivers mail is no nuisance, and a busy relay makes some in a long session."""
        self.errors = self._junk = self._unknown = 0

    def _enter(self, state: State) -> None:
        """Go to *state*; all of the transaction is forgotten here, and nowhere else."""
        self._state = state
        self._rows = self._table.get(state, _NO_ROWS)
        if state is _CONTENT:
            self._body = DotBody(self.offer, self._limits)
            return
        if state not in TRANSACTION:
            self._body = None
            self._chunks = None
            self._ended = False
            self.smtputf8 = self.binarymime = False
            self.accepted_recipients = self._surplus = 0
            # Lines up to here may be read as commands without a closer look; answers to a challenge never.
            self._plain_octets = -1 if state is State.AUTHENTICATING else self._limits.command_octets
        if state is _CONNECTED:  # a beginning: banner, TLS, XCLIENT
            self.helo = None
            self.esmtp = False
        if state is _CLOSED:
            self._owed = None
            self._lines.clear()
        self._signal = _SIGNALS.get(state)


_DEFAULT_LIMITS = Limits()
_RARE = frozenset({"STARTTLS", "AUTH", "=", "BDAT"})
_CONNECTED, _CONTENT, _CLOSED = State.CONNECTED, State.CONTENT, State.CLOSED  # looking a member up in its class takes 60 ns, a name 5
_SIGNALS: Mapping[State, Signal] = {State.OPENING: Signal.PAUSED, State.UPGRADING: Signal.PAUSED, State.CLOSED: Signal.CLOSED}


def _decode(line: bytes) -> tuple[str, bool]:
    """Return a line that is not ASCII as text, and whether it is UTF-8 without control characters (C1 included).

    A verb is ASCII; a letter whose upper case happens to be one makes none.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return line.decode("latin-1"), False
    return text if text.partition(" ")[0].isascii() else "", _CONTROL.search(text) is None


@lru_cache(maxsize=64)
def _greeting_reply(offer: Offer, limits: Limits, *, tls: bool, extended: bool) -> Reply:
    return Reply(250, greeting_lines(offer, limits, tls=tls) if extended else offer.hostname)


def _domain(address: str) -> str:
    """Return what tells one recipient domain from another; ``""`` for ``postmaster`` without one."""
    return address.rpartition("@")[2].lower() if "@" in address else ""
