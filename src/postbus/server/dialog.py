"""What each event of the engine leads to: hooks asked, transactions kept, content collected.

``Dialog`` is the middle of a server class, between ``Connection`` (bytes and tasks) and ``SMTP`` (what subclasses see).
"""

from __future__ import annotations

import asyncio
import errno
import inspect
import ssl
import traceback
from collections.abc import Callable, Generator, Mapping
from typing import Any, ClassVar, cast

from postbus import telemetry
from postbus.server.body import CRUMB_OCTETS, Body, Spill
from postbus.server.connection import DISK, UPGRADE, Answer, Connection, Outcome, Pending, Special, blamed
from postbus.server.envelope import Envelope
from postbus.server.hooks import MISSING, Hook, Misanswered, ehlo_reply, message_replies, reply_of
from postbus.server.plan import Plan, key_of
from postbus.server.session import Session, tls_of
from postbus.smtp import replies
from postbus.smtp.engine import Engine
from postbus.smtp.events import (
    Chunk,
    Command,
    DataStart,
    EndOfMessage,
    Expn,
    Helo,
    Help,
    Mail,
    Noop,
    Quit,
    Rcpt,
    Refused,
    Rset,
    StartTls,
    Vrfy,
)
from postbus.smtp.replies import Reply

NULL_SENDER = "<>"  # what aiosmtpd's handlers see for the null reverse-path

DISK_FULL = Reply(452, "Insufficient system storage", "4.3.1")
NOT_ASCII = Reply(554, "Content is not ASCII", "5.6.1")
INSECURE = Reply(554, "Command refused due to lack of security", "5.7.0")  # RFC 3207 s4.1
TOO_MANY_MESSAGES = Reply(421, "Too many messages in one session", "4.7.0")


class Dialog(Connection):
    """The events of one session, and what is done about them.

    Attributes:
        session, envelope: who is connected; the transaction under way.
        messages_accepted, messages_refused, recipients: of this session, so far.
    """

    __slots__ = (
        "__ident__",
        "_answered",
        "_began_at",
        "_content_event",
        "_disk_event",
        "_greeted",
        "_partial",
        "_pieces",
        "_plan",
        "_pushed",
        "_raw",
        "_size_octets",
        "_spill",
        "data_size_limit",
        "decode_data",
        "enable_SMTPUTF8",
        "envelope",
        "event_handler",
        "hostname",
        "messages_accepted",
        "messages_refused",
        "recipients",
        "require_starttls",
        "session",
        "tls_context",
    )

    lmtp: ClassVar[bool] = False

    event_handler: Any
    session: Session | None
    envelope: Envelope | None
    tls_context: ssl.SSLContext | None
    hostname: str
    __ident__: str
    data_size_limit: int | None
    enable_SMTPUTF8: bool  # noqa: N815 - aiosmtpd's name
    require_starttls: bool
    messages_accepted: int
    messages_refused: int
    recipients: int
    decode_data: bool
    _began_at: float
    _greeted: bool
    _plan: Plan
    _pieces: list[bytes]
    _size_octets: int
    _spill: Spill | None
    _disk_event: asyncio.Future[None] | None
    _content_event: asyncio.Future[EndOfMessage] | None
    _raw: bool
    _answered: bool
    _pushed: Reply | None
    _partial: str

    # --- the life of a session

    def begin(self) -> Outcome:
        """Greet a plain connection."""
        self.session = self._new_session(None)
        return self._greet(tls=False)

    def secured(self, transport: asyncio.BaseTransport) -> Outcome:
        """Forget all that was said in plain text (RFC 3207 s4.2); on an implicit TLS listener nothing was."""
        implicit = self.session is None
        self.session = session = self._new_session(self.session)
        session.ssl, session.tls = tls_of(transport)
        telemetry.tls_started(listener=session.listener, version=session.tls.version)
        if implicit:
            return self._greet(tls=True)
        self.engine.tls_started()
        self._set_rset_state()
        hook = self._plan.hooks.starttls
        return None if hook is None else self._ask("STARTTLS", hook, self._tls_judged, None)

    def _tls_judged(self, _event: None, result: Any) -> Outcome:
        if not result or isinstance(result, Reply):
            self.engine.refuse(result if isinstance(result, Reply) else INSECURE)
        return None

    def _new_session(self, old: Session | None) -> Session:
        session = self._create_session()
        terms = self.roster.terms
        transport = self.transport
        assert transport is not None
        if old is None:
            self._began_at = self.loop.time()
        session.id = self.roster.new_id() if old is None else old.id
        session.peer = transport.get_extra_info("peername") if old is None else old.peer
        session.listener = terms.name
        session.lmtp = self.lmtp
        session.find_local = transport.get_extra_info
        return session

    def _greet(self, *, tls: bool) -> Outcome:
        roster = self.roster
        plan = roster.plan
        if plan is None or plan.key != key_of(self, roster):
            plan = roster.plan = Plan(self, roster)
        self._plan = plan
        self._set_rset_state()
        self.engine = Engine(plan.offer, lmtp=self.lmtp, limits=roster.terms.limits, raw_verbs=plan.raw_verbs, tls=tls)
        self._greeted = True
        hook = plan.hooks.connect
        if hook is not None:
            return self._ask("CONNECT", hook, self._connected, None)
        self.engine.open(plan.banner)
        return None

    def _connected(self, _event: None, result: Any) -> Outcome:
        """``handle_CONNECT`` said nothing (greet as usual), or words of its own: 220 to greet, 4xx or 5xx to turn the peer away."""
        banner = self._plan.banner
        if result is not None and result is not MISSING:
            text = result if isinstance(result, str) else ""
            banner = Reply.parse(text) if text[:3] == "220" else self._verdict("CONNECT", result)
        self.engine.open(banner)
        return None

    def ended(self, error: Exception | None) -> None:
        """Tidy up and tell what the session came to."""
        self._drop_content()
        self.reason = self.reason or ("lost" if error is not None or not self._half_closed else "eof")
        session = self.session
        if session is None:
            return
        telemetry.session_closed(
            listener=session.listener,
            session=session.id,
            peer=str(session.peer[0] if isinstance(session.peer, tuple) else session.peer),
            helo=session.host_name,
            tls=None if session.tls is None else session.tls.version,
            accepted=self.messages_accepted,
            refused=self.messages_refused,
            recipients=self.recipients,
            octets=self.octets,
            duration_s=self.loop.time() - self._began_at,
            outcome=self.reason,
        )
        hook = self._plan.hooks.disconnect if self._greeted else None
        if hook is not None:
            envelope = self.envelope if self.envelope is not None and self.envelope.mail_from is not None else None
            self._say_goodbye(hook, session, envelope)

    def _say_goodbye(self, hook: Hook, session: Session, envelope: Envelope | None) -> None:
        """Call ``handle_DISCONNECT``; nobody waits for it."""
        try:
            result = hook(self, session, envelope, self.reason)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - a handler's
            self._log_fault("DISCONNECT", blamed(error))
            return
        if inspect.isawaitable(result):

            async def finish() -> None:
                try:
                    await result
                except Exception as error:  # noqa: BLE001 - a handler's
                    self._log_fault("DISCONNECT", error)

            self.roster.spawn(finish())

    def tls_failed(self, error: Exception | None) -> None:
        """Count the handshake that failed."""
        peer = self.transport.get_extra_info("peername") if self.transport is not None else ""
        why = getattr(error, "reason", None) or (type(error).__name__ if error is not None else "closed")
        telemetry.tls_failed(listener=self.roster.terms.name, peer=str(peer[0] if isinstance(peer, tuple) else peer), error=str(why))

    def tls_context_now(self) -> ssl.SSLContext:
        """Return the context STARTTLS was offered with, or the listener's for implicit TLS."""
        context = self.tls_context or self.roster.tls_context
        assert context is not None
        return context

    # --- asking hooks

    def _ask(self, name: str, hook: Hook, settle: Callable[[Any, Any], Outcome], event: Any, *args: Any) -> Outcome:
        """Call *hook*; *settle* takes what it returns, now or when it is there."""
        try:
            result = hook(self, self.session, self.envelope, *args)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - a handler's
            return self.fault(Pending(_NOTHING, settle, event, name, self.envelope), blamed(error))
        if type(result) is not str and inspect.isawaitable(result):
            return Pending(result, settle, event, name, self.envelope)
        return settle(event, result)

    def _verdict(self, name: str, result: Any) -> Reply:
        """Return the reply *result* stands for; what stands for none is our fault, so 451."""
        try:
            reply = reply_of(result)
        except Misanswered as error:
            telemetry.hook_misanswered(hook=name, session=self._session_id, error=str(error))
            return replies.LOCAL_ERROR
        if reply.code >= 400:
            telemetry.command_rejected(listener=self.roster.terms.name, code=reply.code)
        return reply

    def fault(self, pending: Pending, error: Exception) -> Outcome:
        """A hook raised: log it, let ``handle_exception`` find words if somebody wrote one, else 451."""
        self._log_fault(pending.hook, error)
        if not self._plan.explains or pending.hook == "exception":
            return pending.settle(pending.event, replies.LOCAL_ERROR)
        return Pending(self.handle_exception(error), pending.settle, pending.event, "exception", pending.envelope)

    async def handle_exception(self, error: Exception) -> str | Reply:
        """Return the status line for *error*, raised by a hook or an ``smtp_<VERB>`` method. Override it, or give the handler one."""
        hook = self._plan.hooks.exception
        if hook is None:
            return replies.LOCAL_ERROR
        result = hook(error)
        return cast("str | Reply", await result if inspect.isawaitable(result) else result)

    def _log_fault(self, name: str, error: Exception) -> None:
        telemetry.hook_failed(
            hook=name, session=self._session_id, error=type(error).__name__, traceback="".join(traceback.format_exception(error))
        )

    @property
    def _session_id(self) -> str:
        return self.session.id if self.session is not None else ""

    def late_answer(self, pending: Pending) -> Answer:
        """The answer took too long: 451. The work keeps its envelope; the session gets a new one."""
        telemetry.answer_late(listener=self.roster.terms.name, session=self._session_id, hook=pending.hook)
        if isinstance(pending.event, EndOfMessage):
            self._spill = None if pending.hook != "spill" else self._spill
            self._drop_content()
            self.messages_refused += 1
            self._set_post_data_state()
        self._raw = False
        return replies.LOCAL_ERROR

    def too_late(self, pending: Pending, result: Any) -> None:
        """A hook ended after its peer had left or had been answered. If it accepted a message, the sender will send it again."""
        if isinstance(result, Exception):
            self._log_fault(pending.hook, result)
        if not isinstance(pending.event, EndOfMessage):
            return
        if pending.hook == "DATA":
            said = result if isinstance(result, list | tuple) else [result]
            words = [str(each) if isinstance(each, str | Reply) else type(each).__name__ for each in said[:1]]
            telemetry.reply_lost(listener=self.roster.terms.name, session=self._session_id, reply="".join(words)[:40])
        if pending.envelope is not None and pending.envelope.body is not None:
            pending.envelope.body.discard()

    def outlives(self, pending: Pending) -> bool:
        """A peer that vanishes behind the dot cancels nothing."""
        return isinstance(pending.event, EndOfMessage) and pending.hook == "DATA"

    # --- commands, the fast way

    def _on_helo(self, event: Helo) -> Outcome:
        session, hooks = self.session, self._plan.hooks
        assert session is not None
        before = (self.envelope, session.extended_smtp)
        self._set_rset_state()
        session.extended_smtp = event.verb != "HELO"
        hook = hooks.ehlo if session.extended_smtp else hooks.helo
        if hook is None:
            session.host_name = event.hostname
            self.mail_at = None
            return self.engine.default_reply(event)

        def settle(_event: Helo, result: Any) -> Outcome:
            reply = self._greeting(event, result)
            if reply.code >= 400:  # a refused greeting changes nothing (RFC 5321 s4.1.4)
                self.envelope, session.extended_smtp = before
            else:
                self.mail_at = None
                session.host_name = session.host_name or event.hostname
            return reply

        if hooks.ehlo_has_responses and session.extended_smtp:
            lines = self.engine.greeting_lines()
            marked = [f"250-{line}" for line in lines[:-1]] + [f"250 {lines[-1]}"]
            return self._ask("EHLO", hook, settle, event, event.hostname, marked)
        return self._ask(event.verb, hook, settle, event, event.hostname)

    def _greeting(self, event: Helo, result: Any) -> Reply:
        if result is MISSING:
            return self.engine.default_reply(event)
        if event.verb == "HELO":
            return self._verdict("HELO", result)
        if not self._plan.hooks.ehlo_has_responses:  # the 4-argument form: our lines first, its line last
            own = self._verdict("EHLO", result)
            return own if own.code >= 400 else Reply(250, (*self.engine.greeting_lines(), own.lines[-1]))
        try:
            return ehlo_reply(result)
        except Misanswered:
            return self._verdict("EHLO", None)

    def _on_mail(self, event: Mail) -> Outcome:
        if 0 < self.roster.terms.messages_max <= self.messages_accepted + self.messages_refused:
            self.reason = "limit"
            return TOO_MANY_MESSAGES
        envelope = self.envelope
        assert envelope is not None
        address = event.address or NULL_SENDER
        options: list[str] = []
        parameters = event.parameters
        if parameters:
            envelope.mail_params = dict(parameters)
            envelope.smtp_utf8 = "SMTPUTF8" in parameters
            options = _options(event)
        if event.defects:
            _add_defects(envelope, event.defects)
        self.mail_at = self.roster.sweep.now
        hook = self._plan.hooks.mail
        if hook is not None:
            return self._ask("MAIL", hook, self._mailed, event, address, options)
        envelope.mail_from = address
        envelope.mail_options = options
        return replies.SENDER_OK

    def _mailed(self, event: Mail, result: Any) -> Outcome:
        envelope = self.envelope
        assert envelope is not None
        reply = replies.SENDER_OK if result is MISSING else self._verdict("MAIL", result)
        if reply.code >= 400:
            self.mail_at = None
            self.envelope = self._create_envelope()
        elif envelope.mail_from is None:
            envelope.mail_from = event.address or NULL_SENDER
            envelope.mail_options = _options(event)
        return reply

    def _on_rcpt(self, event: Rcpt) -> Outcome:
        envelope = self.envelope
        assert envelope is not None
        options = _options(event) if event.parameters else []
        if event.defects:
            _add_defects(envelope, event.defects)
        hook = self._plan.hooks.rcpt
        if hook is None:
            envelope.rcpt_tos.append(event.address)
            envelope.rcpt_options.extend(options)
            envelope.rcpt_params.append(dict(event.parameters))
            return replies.RECIPIENT_OK
        before = len(envelope.rcpt_tos)

        def settle(_event: Rcpt, result: Any) -> Outcome:
            if result is MISSING:
                envelope.rcpt_tos.append(event.address)
                envelope.rcpt_options.extend(options)
                result = replies.RECIPIENT_OK
            reply = result if type(result) is Reply and result.code < 300 else self._verdict("RCPT", result)
            if reply.code >= 400:
                del envelope.rcpt_tos[before:]  # one accepted RCPT, one recipient
            elif len(envelope.rcpt_tos) > before:
                envelope.rcpt_params.append(dict(event.parameters))
            return reply

        return self._ask("RCPT", hook, settle, event, event.address, options)

    def _on_data(self, _event: DataStart) -> Outcome:
        envelope = self.envelope
        assert envelope is not None
        if not envelope.rcpt_tos:  # a hook said 250 and kept nobody
            return replies.SEND_RCPT
        self.credit_s = self.roster.terms.timeouts.data_s
        self.credited_octets = self.octets
        return replies.START_MAIL

    def _on_rset(self, event: Rset) -> Outcome:
        self._set_rset_state()
        self.mail_at = None
        return self._simple("RSET", self._plan.hooks.rset, event)

    def _on_noop(self, event: Noop) -> Outcome:
        hook = self._plan.hooks.noop
        return replies.OK if hook is None else self._simple("NOOP", hook, event, event.arg)

    def _on_quit(self, event: Quit) -> Outcome:
        self.reason = "quit"
        return self._simple("QUIT", self._plan.hooks.quit, event)

    def _on_vrfy(self, event: Vrfy) -> Outcome:
        return self._simple("VRFY", self._plan.hooks.vrfy, event, event.arg.strip("<>"))

    def _on_expn(self, event: Expn) -> Outcome:
        return self._simple("EXPN", self._plan.hooks.expn, event, event.arg)

    def _on_help(self, event: Help) -> Outcome:
        hook = self._plan.hooks.help
        if hook is not None:
            return self._simple("HELP", hook, event, event.arg)
        return self._help(event)

    def _simple(self, name: str, hook: Hook | None, event: Any, *args: Any) -> Outcome:
        """Ask a hook whose reply is all there is to it."""
        if hook is None:
            return self.engine.default_reply(event)

        def settle(_event: Any, result: Any) -> Outcome:
            return self.engine.default_reply(event) if result is MISSING else self._verdict(name, result)

        return self._ask(name, hook, settle, event, *args)

    def _help(self, event: Help) -> Reply:
        """Return the answer to HELP, the verbs of a subclass included."""
        texts = self._plan.syntaxes(self)
        if event.arg is None and texts:
            reply = self.engine.default_reply(event)
            return Reply(reply.code, (*reply.lines, " ".join(sorted(texts))), reply.enhanced)
        own = texts.get((event.arg or "").strip().upper())
        return self.engine.default_reply(event) if own is None else Reply(214, f"Syntax: {own}", "2.0.0")

    def _on_starttls(self, _event: StartTls) -> Outcome:
        self.pause(UPGRADE)  # before the 220 is written: what comes next is no command any more
        return replies.START_TLS

    def _on_refused(self, event: Refused) -> Outcome:
        telemetry.command_rejected(listener=self.roster.terms.name, code=event.reply.code)
        return None

    # --- content

    def _on_chunk(self, event: Chunk) -> Outcome:
        octets = event.octets
        self._size_octets += len(octets)
        spill = self._spill
        if spill is not None:
            spill.feed(octets)
            if spill.behind:
                self.stalled = True
                self.pause(DISK)
            return None
        pieces = self._pieces
        if pieces and len(pieces[-1]) + len(octets) <= CRUMB_OCTETS:
            pieces[-1] += octets
        else:
            pieces.append(octets)
        terms = self.roster.terms
        if self._size_octets > terms.spill_threshold_octets and terms.spill_folder is not None:
            self._spill = spill = Spill(terms.spill_folder, self.roster.pool, self.loop, self._disk_moved)
            pieces, self._pieces = self._pieces, []
            for piece in pieces:
                spill.feed(piece)
        return None

    def _disk_moved(self) -> None:
        """A batch is on disk."""
        spill = self._spill
        if spill is None or self.finished:
            return
        if not spill.behind:
            self.stalled = False
            self.resume(DISK)
        if self._disk_event is not None and spill.whole and not self._disk_event.done():
            self._disk_event.set_result(None)

    def _on_end(self, event: EndOfMessage) -> Outcome:
        self.credit_s = None
        self.mail_at = None
        if self._content_event is not None:  # the smtp_DATA of a subclass waits for it
            self.busy = True
            self.owing_at = self.roster.sweep.now
            self._content_event.set_result(event)
            self._content_event = None
            return Special.HANDED
        pieces = self._pieces
        if event.refusal is None and len(pieces) == 1 and self._spill is None:  # most mail is one piece
            self._pieces = []
            self._size_octets = 0
            return self._deliver(event, Body(pieces[0]))
        return self._end(event)

    def _end(self, event: EndOfMessage) -> Outcome:
        if event.refusal is not None:
            self._drop_content()
            self._set_post_data_state()
            self.messages_refused += 1
            telemetry.command_rejected(listener=self.roster.terms.name, code=event.refusal.code)
            return None
        spill = self._spill
        if spill is not None:
            spill.end()
            self._disk_event = self.loop.create_future()
            return Pending(self._disk_event, self._stored, event, "spill", self.envelope)
        pieces, self._pieces = self._pieces, []
        self._size_octets = 0
        return self._deliver(event, Body(pieces[0] if len(pieces) == 1 else b"".join(pieces)))

    def _stored(self, event: EndOfMessage, _result: None) -> Outcome:
        """The content is in its file, or the disk failed."""
        spill, self._spill, self._disk_event = self._spill, None, None
        assert spill is not None
        size_octets, self._size_octets = self._size_octets, 0
        if spill.fault is not None:
            full = spill.fault.errno in {errno.ENOSPC, errno.EDQUOT}
            telemetry.spill_failed(listener=self.roster.terms.name, session=self._session_id, error=str(spill.fault))
            return self._messaged(event, DISK_FULL if full else replies.LOCAL_ERROR)
        body = Body(None, path=spill.path, size_octets=size_octets, digest=spill.digest, unlink=self.roster.unlink)
        return self._deliver(event, body)

    def _deliver(self, event: EndOfMessage, body: Body) -> Outcome:
        """Give a whole message to ``handle_DATA``."""
        envelope = self.envelope
        assert envelope is not None
        envelope.body = body
        if event.defects:
            _add_defects(envelope, event.defects)
        if self.decode_data:
            envelope.decode = "utf-8" if self.enable_SMTPUTF8 else "ascii"
            if not self.enable_SMTPUTF8 and not body.read().isascii():
                return self._messaged(event, NOT_ASCII)
        hook = self._plan.hooks.data
        if hook is None:
            return self._messaged(event, replies.OK)
        return self._ask("DATA", hook, self._messaged, event)

    def _messaged(self, _event: EndOfMessage, result: Any) -> Outcome:
        """The message has its answer: forget it."""
        engine, envelope = self.engine, self.envelope
        recipients = engine.accepted_recipients
        answer: Answer
        try:
            answer = message_replies(replies.OK if result is MISSING else result, recipients, lmtp=self.lmtp)
        except Misanswered as error:
            telemetry.hook_misanswered(hook="DATA", session=self._session_id, error=str(error))
            answer = replies.LOCAL_ERROR
        if answer.code < 300 if type(answer) is Reply else any(reply.code < 300 for reply in cast("tuple[Reply, ...]", answer)):
            self.messages_accepted += 1
            self.recipients += recipients
        else:
            self.messages_refused += 1
        if envelope is not None and envelope.body is not None and envelope.body.path is not None:
            envelope.body.discard()  # a handler may keep an envelope with a small body, but a file it has to take
        self._set_post_data_state()
        return answer

    def _drop_content(self) -> None:
        """Forget content that is not whole, or that nobody wants."""
        spill, self._spill = self._spill, None
        self._pieces = []
        self._size_octets = 0
        if spill is None:
            return
        spill.drop()
        self.stalled = False
        self.resume(DISK)
        waiting, self._disk_event = self._disk_event, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    # --- raw verbs

    def _on_command(self, event: Command) -> Outcome:
        """Call the method of a raw verb."""
        self._raw = True
        self._answered = False
        self._pushed = None
        name = self._plan.methods[event.verb]
        return Pending(getattr(self, name)(event.arg), self._commanded, event, name, self.envelope)

    def _commanded(self, event: Command, result: Any) -> Outcome:
        """The method has returned: what it pushed last is the answer, unless it gave one by calling its superclass."""
        self._raw = False
        self._partial = ""
        pushed, self._pushed = self._pushed, None
        if not self._answered:  # *result* is what ``fault`` puts in place of an exception, or None
            return pushed if pushed is not None else self._verdict(f"smtp_{event.verb}", result)
        if pushed is not None:
            self.engine.push(pushed)
        return None

    # --- what subclasses override

    def _create_session(self) -> Session:
        """Return a new session; override it to have one of your own."""
        return Session(self.loop)

    def _create_envelope(self) -> Envelope:
        """Return a new envelope; override it to have one of your own."""
        return Envelope()

    def _set_post_data_state(self) -> None:
        """A message is over: begin with a new envelope."""
        self.envelope = self._create_envelope()

    def _set_rset_state(self) -> None:
        """Forget the transaction, but not the greeting."""
        self._set_post_data_state()

    acts: ClassVar[Mapping[type[Any], Callable[[Any, Any], Outcome]]] = {
        Helo: _on_helo,
        Mail: _on_mail,
        Rcpt: _on_rcpt,
        DataStart: _on_data,
        Chunk: _on_chunk,
        EndOfMessage: _on_end,
        StartTls: _on_starttls,
        Rset: _on_rset,
        Noop: _on_noop,
        Vrfy: _on_vrfy,
        Expn: _on_expn,
        Help: _on_help,
        Quit: _on_quit,
        Command: _on_command,
        Refused: _on_refused,
    }


def _options(event: Mail | Rcpt) -> list[str]:
    """Return the parameters as aiosmtpd's list of upper-case words."""
    return [key if value is None else f"{key}={value.upper()}" for key, value in event.parameters.items()]


def _add_defects(envelope: Envelope, defects: Mapping[str, int]) -> None:
    for kind, count in defects.items():
        envelope.defects[kind] = envelope.defects.get(kind, 0) + count


class _Nothing:
    """Stands for the work of a hook that has already raised."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


_NOTHING = _Nothing()
