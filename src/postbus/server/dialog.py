"""What each event of the engine leads to: hooks asked, transactions kept, methods called.

A server class has ten floors, each a class that derives from the one below: ``Timed`` (deadlines), ``Link`` (the transport),
``Connection`` (bytes and tasks), ``Asking`` (hooks), ``Streaming`` and ``Content`` (what comes behind DATA), ``Reception`` (how a session
begins and ends), ``Dialog`` (every other event), ``Identification`` (AUTH), ``SMTP`` (what subclasses see). Those up to ``Dialog`` are
compiled in the image (pyproject.toml).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, final

from mypy_extensions import mypyc_attr

from postbus.server.envelope import Envelope
from postbus.server.hooks import MISSING, Hook, Misanswered, ehlo_reply
from postbus.server.link import UPGRADE
from postbus.server.outcome import Outcome, Pending
from postbus.server.pressure import lowered
from postbus.server.reception import Reception
from postbus.server.session import speak_for
from postbus.smtp import replies
from postbus.smtp.events import (
    Command,
    DataStart,
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
    Xclient,
    Xforward,
)
from postbus.smtp.replies import Reply

NULL_SENDER = "<>"  # what aiosmtpd's handlers see for the null reverse-path


@mypyc_attr(allow_interpreted_subclasses=True)
class Dialog(Reception):
    """The events of one session, and what is done about them."""

    __slots__ = ("_raw",)

    _calls: dict[str, int]
    _raw: bool
    _answered: bool = False
    _pushed: Reply | None = None
    _said: list[Reply] | None = None

    # --- commands, the fast way

    def _on_helo(self, event: Helo) -> Outcome:
        session, hooks = self.session, self._plan.hooks
        assert session is not None
        extended = event.verb != "HELO"
        before = (self.envelope, session.extended_smtp, self.engine.limits)
        self._set_rset_state()
        session.extended_smtp = extended
        load = self.roster.terms.load
        if load is not None:
            self.engine.grant(lowered(self._plan.limits, load()) if extended else self._plan.limits)
        hook = hooks.ehlo if extended else hooks.helo
        if hook is None:
            session.host_name = event.hostname
            self._forget_message(before[0])
            return self.engine.default_reply(event)

        def settle(_event: Helo, result: Any) -> Outcome:
            reply = self._greeting(event, result)
            if reply.code >= 400:  # a refused greeting changes nothing (RFC 5321 s4.1.4)
                self.envelope, session.extended_smtp, granted = before
                self.engine.grant(granted)
            else:
                self._forget_message(before[0])
                session.host_name = session.host_name or event.hostname
                self.engine.authenticated = self.engine.authenticated or bool(session.authenticated)  # a hook may know the peer
            return reply

        if hooks.ehlo_has_responses and extended:
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
            return own if own.code >= 400 else Reply(250, (*self.engine.greeting_lines(), *self._pushed_lines(), *own.lines))
        try:
            return self._with_pushed(ehlo_reply(result))
        except Misanswered:
            return self._verdict("EHLO", None)

    def _pushed_lines(self) -> tuple[str, ...]:
        """Return the lines (``250-KEYWORD``) that a hook has pushed ahead of its greeting's last one, and forget them."""
        begun, self._partial = self._partial, ""
        return tuple(line[4:] for line in begun.splitlines())

    def _with_pushed(self, reply: Reply) -> Reply:
        """Return *reply* with the lines pushed ahead of it, behind our name."""
        pushed = self._pushed_lines() if self._partial else ()
        return Reply(reply.code, (reply.lines[0], *pushed, *reply.lines[1:])) if pushed and reply.code == 250 else reply

    def _on_mail(self, event: Mail) -> Outcome:
        client = self.client
        if client is not None:
            refusal = self.roster.clients.take_message(client, self.roster.sweep.now)
            if refusal is not None:
                return self._over(refusal)
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
            self._tolerate(envelope, event.defects)
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
        client = self.client
        if client is not None:
            refusal = self.roster.clients.take_recipient(client, self.roster.sweep.now)
            if refusal is not None:
                return self._over(refusal)
        envelope = self.envelope
        assert envelope is not None
        options = _options(event) if event.parameters else []
        hook = self._plan.hooks.rcpt
        if hook is None:
            if event.defects:
                self._tolerate(envelope, event.defects)
            envelope.rcpt_tos.append(event.address)
            envelope.rcpt_options.extend(options)
            envelope.rcpt_params.append(dict(event.parameters))
            return replies.RECIPIENT_OK
        before, options_before = len(envelope.rcpt_tos), len(envelope.rcpt_options)

        def settle(_event: Rcpt, result: Any) -> Outcome:
            if result is MISSING:
                envelope.rcpt_tos.append(event.address)
                envelope.rcpt_options.extend(options)
                result = replies.RECIPIENT_OK
            reply = self._verdict("RCPT", result)
            if reply.code >= 400:
                del envelope.rcpt_tos[before:]  # one accepted RCPT, one recipient; of a refused one nothing is left
                del envelope.rcpt_options[options_before:]
                return reply
            if event.defects:
                self._tolerate(envelope, event.defects)
            for _ in envelope.rcpt_tos[before:]:  # a hook may make several of one
                envelope.rcpt_params.append(dict(event.parameters))
            return reply

        return self._ask("RCPT", hook, settle, event, event.address, options)

    def _on_data(self, _event: DataStart) -> Outcome:
        envelope = self.envelope
        assert envelope is not None
        if not envelope.rcpt_tos:  # a hook said 250 and kept nobody
            return replies.SEND_RCPT
        self._give_credit()
        return replies.START_MAIL

    def _on_rset(self, event: Rset) -> Outcome:
        self._forget_message(self.envelope)
        self._set_rset_state()
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

    @final
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

    def _on_xclient(self, event: Xclient) -> Outcome:
        """Begin anew, with the client the peer speaks for: all that was said is forgotten, and the banner's policy is asked again."""
        old = self.session
        assert old is not None
        self.session = session = self._new_session(old)
        session.ssl, session.tls = old.ssl, old.tls
        speak_for(session, event.attributes)
        self._set_rset_state()
        self.mail_at = None
        offer = self.engine.offer  # who may speak for others is not changed by speaking for another
        self.engine.offer = replace(self._offer(), xclient=offer.xclient, xforward=offer.xforward)
        self.engine.authenticated = bool(session.authenticated)  # nor is EXTERNAL offered: the certificate is not this client's
        refusal = self.peer_changed(session.peer)
        if refusal is not None:
            return replace(refusal, close=True)
        hook = self._plan.hooks.connect
        return self._welcomed_again(event, None) if hook is None else self._ask("CONNECT", hook, self._welcomed_again, event)

    def _welcomed_again(self, _event: Xclient, result: Any) -> Outcome:
        banner = self._banner(result)
        return banner if banner.code < 400 else replace(banner, close=True)

    def _on_xforward(self, event: Xforward) -> Outcome:
        """Keep what is said for the next transaction: it ends with that, as in Postfix."""
        assert self.envelope is not None
        self.envelope.xforward.update(event.attributes)
        return replies.OK

    def _on_refused(self, event: Refused) -> Outcome:
        if event.reply is replies.TOO_MANY_MAILS:
            self.reason = "limit"
        self._tell_refused(event.reply)
        if event.ended:
            self._set_post_data_state()  # hooks between the chunks may have left something
            self._give(None)  # a farewell may have waited for this
        return None

    # --- raw verbs

    def _on_command(self, event: Command) -> Outcome:
        """Call the method of a raw verb."""
        if self._plan.counts and self._spent(event.verb):
            self.reason = "limit"
            return Reply(421, f"{event.verb} sent too many times", "4.7.0")
        self._raw = True
        self._answered = False
        self._pushed = None
        name = self._plan.methods[event.verb]
        envelope = self.envelope

        def settle(event: Command, result: Any) -> Outcome:
            outcome = self._commanded(event, result)
            if isinstance(outcome, Reply):
                self._outlive(event, outcome, envelope)
            return outcome

        return Pending(getattr(self, name)(event.arg), settle, event, name, envelope)

    def _outlive(self, event: Command, answer: Reply, envelope: Envelope | None) -> None:
        """Forget the transaction of *envelope* where *answer* to a method's verb ends it, and the method has not, or not all of it."""
        if self.engine.ends_transaction(event.verb, answer):
            self._forget_message(envelope)
            if self.envelope is envelope:
                self._set_rset_state()

    def _spent(self, verb: str) -> bool:
        """Count a call of *verb*; return whether that was one too many."""
        assert self._call_limits is not None
        of_its_own, of_any = self._call_limits
        self._calls[verb] = calls = self._calls.get(verb, 0) + 1
        return calls > of_its_own.get(verb, of_any)

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

    def unanswered_late(self, pending: Pending) -> None:
        """As above; and what a method that works on behind its answer says now is no answer."""
        self._raw = False
        super().unanswered_late(pending)

    def late_answer(self, pending: Pending) -> Reply:
        """As for any other command; the method goes on, but what it says is not heard (``SMTP.push``).

        To the session the command is one that was refused: what it began is undone, and what its hook still does to the envelope it was
        given does not reach the transaction.
        """
        self._raw = False
        self._partial = ""
        answer = super().late_answer(pending)
        if isinstance(pending.event, Helo | Mail | Rcpt):
            pending.settle(pending.event, answer)
        elif isinstance(pending.event, Command):
            self._outlive(pending.event, answer, pending.envelope)
        elif isinstance(pending.event, Xclient):
            return replace(answer, close=True)  # nobody has judged the client that the session is about now
        if self.envelope is not None and self.envelope is pending.envelope:
            self.envelope = self.envelope.parted()
        return answer


def _options(event: Mail | Rcpt) -> list[str]:
    """Return the parameters as aiosmtpd's list of upper-case words."""
    return [key if value is None else f"{key}={value.upper()}" for key, value in event.parameters.items()]
