"""A mail server for tests, and the mail it got: what the ``postbus_smtpd`` fixture (``postbus.pytest_plugin``) gives.

Usable without pytest too::

    with Smtpd() as smtpd:
        send_mail_to(smtpd.host, smtpd.port)
        (mail,) = smtpd.wait()
        assert mail.message["Subject"] == "Hello"
"""

from __future__ import annotations

import email.policy
import ssl
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email import message_from_bytes
from email.message import EmailMessage
from functools import cached_property
from types import TracebackType
from typing import Any, Final, Literal, Self

from postbus.server.auth import AuthResult, LoginPassword
from postbus.server.auth_settings import AuthSettings
from postbus.server.controller import Controller
from postbus.server.envelope import Envelope
from postbus.server.hooks import MISSING
from postbus.server.lmtp import LMTP
from postbus.server.session import Session, Tls
from postbus.server.settings import LimitSettings, ListenerSettings
from postbus.server.smtp import SMTP
from postbus.smtp.replies import Reply

WAIT_S: Final = 5.0

PATIENT: Final = ListenerSettings(
    auth=AuthSettings(failure_delay_s=0, failures_max=1000), limits=LimitSettings(errors_max=1000, junk_max=10_000, unknown_max=1000)
)
"""A test may make many mistakes, and has no time to be made to wait for them."""

Stage = Literal["CONNECT", "HELO", "MAIL", "RCPT", "DATA"]
"""Where a server can say no: at the banner, at HELO, EHLO or LHLO, at MAIL, at each RCPT, or behind the content."""


@dataclass(frozen=True)
class Received:
    """One message that the server took.

    Attributes:
        mail_from: the sender; ``""`` is the null one.
        rcpt_tos: the recipients it was taken for, in order.
        content: the octets, dots taken out.
        mail_params, rcpt_params: parameters by upper-case name, of MAIL and of each recipient; None where one has no value.
        helo: what the client called itself.
        peer: (host, port, ...) of the client.
        tls: the TLS session it came through, or None.
        login: who logged in, or None.
    """

    mail_from: str
    rcpt_tos: tuple[str, ...]
    content: bytes
    mail_params: Mapping[str, str | None]
    rcpt_params: tuple[Mapping[str, str | None], ...]
    helo: str | None
    peer: Any
    tls: Tls | None
    login: str | None

    @cached_property
    def message(self) -> EmailMessage:
        """The content parsed, by ``email.policy.default``."""
        return message_from_bytes(self.content, policy=email.policy.default)

    @property
    def text(self) -> str:
        """The plain text of the message, else its HTML; ``""`` without either."""
        body = self.message.get_body(("plain", "html"))
        return "" if body is None else str(body.get_content())


@dataclass
class _Rule:
    """Says no to what fits."""

    at: Stage
    reply: Reply | None  # None: the connection is cut
    sender: str | None
    recipient: str | None
    times: int | None

    def fits(self, at: Stage, sender: str | None, recipients: Iterable[str]) -> bool:
        """Return whether it says no now; None in the rule fits all."""
        return (
            self.at == at
            and self.times != 0
            and (self.sender is None or self.sender == sender)
            and (self.recipient is None or self.recipient in recipients)
        )


class _Inbox:
    """The handler: asks the rules, keeps what it takes."""

    def __init__(self, smtpd: Smtpd) -> None:
        self.smtpd = smtpd

    def _judge(self, server: SMTP, at: Stage, sender: str | None = None, recipients: Iterable[str] = ()) -> Any:
        """Return what the rules say at this stage; MISSING: nothing."""
        rule = self.smtpd._spend(at, "" if sender == "<>" else sender, tuple(recipients))  # noqa: SLF001 - one part with it
        if rule is None:
            return MISSING
        if rule.reply is None:
            server.abort("test")
        return rule.reply or MISSING

    def handle_CONNECT(self, server: SMTP, session: Session, envelope: Envelope) -> Any:
        del session, envelope
        return self._judge(server, "CONNECT")

    def handle_HELO(self, server: SMTP, session: Session, envelope: Envelope, hostname: str) -> Any:
        del session, envelope, hostname
        return self._judge(server, "HELO")

    def handle_EHLO(self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]) -> Any:
        del session, envelope, hostname
        said = self._judge(server, "HELO")
        return responses if said is MISSING else said

    def handle_MAIL(self, server: SMTP, session: Session, envelope: Envelope, address: str, mail_options: list[str]) -> Any:
        del envelope, mail_options
        if self.smtpd.login_needed and not session.authenticated:
            return "530 5.7.0 Authentication required"
        return self._judge(server, "MAIL", address)

    def handle_RCPT(self, server: SMTP, session: Session, envelope: Envelope, address: str, rcpt_options: list[str]) -> Any:
        del session, rcpt_options
        return self._judge(server, "RCPT", envelope.mail_from, [address])

    def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> Any:
        said = self._judge(server, "DATA", envelope.mail_from, envelope.rcpt_tos)
        if said is not MISSING:
            return said
        if not server.finished:
            self.smtpd._take(_received(session, envelope))  # noqa: SLF001 - one part with it
        return "250 2.0.0 OK"


def _received(session: Session, envelope: Envelope) -> Received:
    login = getattr(session.auth_data, "login", session.login_data)
    return Received(
        mail_from="" if envelope.mail_from in {None, "<>"} else str(envelope.mail_from),
        rcpt_tos=tuple(envelope.rcpt_tos),
        content=envelope.original_content or b"",
        mail_params=dict(envelope.mail_params),
        rcpt_params=tuple(dict(parameters) for parameters in envelope.rcpt_params),
        helo=session.host_name,
        peer=session.peer,
        tls=session.tls,
        login=login.decode("utf-8", "replace") if isinstance(login, bytes) else login,
    )


class Smtpd:
    """A running server in a thread, on a free port of 127.0.0.1.

    Attributes:
        host, port: where it listens, once started.
        login_needed: mail is taken from who has logged in, and nobody else.
        messages: what it has taken so far, in order. ``wait`` is what a test of something that sends later needs.
    """

    def __init__(
        self,
        *,
        protocol: Literal["smtp", "lmtp"] = "smtp",
        tls: Literal["none", "starttls", "require", "implicit"] = "none",
        tls_context: ssl.SSLContext | None = None,
        users: Mapping[str, str] | None = None,
        settings: ListenerSettings | None = None,
        **parameters: Any,
    ) -> None:
        """Take how it serves.

        Args:
            protocol: SMTP or LMTP.
            tls: whether TLS is spoken, and when: not at all, offered by STARTTLS, required, or from the first octet.
            tls_context: the server's; None: one made with a certificate of ``trustme``, which has to be installed; see ``client_context``.
            users: passwords by name: AUTH is offered, and needed before MAIL, without TLS too.
            settings: limits, timeouts and policies of the listener; None: ``PATIENT``.
            parameters: what ``SMTP`` takes, such as ``data_size_limit=1000`` or ``enable_SMTPUTF8=False``.
        """
        self.host = "127.0.0.1"
        self.login_needed = users is not None
        self.messages: list[Received] = []
        self._changed = threading.Condition()
        self._rules: list[_Rule] = []
        self._authority: Any = None
        context = tls_context
        if context is None and tls != "none":
            context = self._certified()
        if tls in {"starttls", "require"}:
            parameters |= {"tls_context": context, "require_starttls": tls == "require"}
        if users is not None:
            parameters |= _authentication(users)
        self._controller = _Serving(
            _Inbox(self), self.host, 0, settings=settings or PATIENT, ssl_context=context if tls == "implicit" else None, **parameters
        )
        self._controller.smtp_class = LMTP if protocol == "lmtp" else SMTP

    # --- life

    @property
    def port(self) -> int:
        """The port it listens on; 0 before it has started."""
        return self._controller.port

    @property
    def address(self) -> tuple[str, int]:
        """(host, port), as sockets take it."""
        return self.host, self.port

    def start(self) -> None:
        """Start serving."""
        self._controller.start()

    def stop(self) -> None:
        """Stop serving; harmless when it does not."""
        self._controller.stop(no_assert=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    # --- what came

    def wait(self, count: int = 1, *, timeout_s: float = WAIT_S) -> list[Received]:
        """Return the first *count* messages, waiting until they are there.

        Raises:
            TimeoutError: fewer came within *timeout_s* seconds; it says which.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.messages) >= count, timeout_s):
                came = "; ".join(f"{mail.mail_from or '<>'} to {', '.join(mail.rcpt_tos)}" for mail in self.messages) or "none"
                raise TimeoutError(f"{len(self.messages)} of {count} messages came within {timeout_s} s: {came}")
            return self.messages[:count]

    def clear(self) -> None:
        """Forget what came."""
        with self._changed:
            self.messages.clear()

    # --- what it says no to

    def refuse(
        self,
        reply: str = "550 5.7.1 Refused",
        *,
        at: Stage | None = None,
        sender: str | None = None,
        recipient: str | None = None,
        times: int | None = None,
    ) -> None:
        """Answer *reply* from now on.

        Args:
            reply: 4xx or 5xx with its text, such as ``"451 4.3.0 Try later"``.
            at: where; None: at RCPT.
            sender: only for this one; ``""`` is the null sender.
            recipient: only for this one; at DATA, only for mail that has it.
            times: how often; None: until ``accept_all``.

        Raises:
            ValueError: *reply* is none, or refuses nothing.
        """
        parsed = Reply.parse(reply)
        if parsed.code < 400:
            raise ValueError(f"{reply!r} refuses nothing: 4xx or 5xx does")
        self._add(_Rule(at or "RCPT", parsed, sender, recipient, times))

    def hang_up(self, at: Stage = "DATA", *, times: int | None = None) -> None:
        """Cut the connection without a reply, as a crashing server does: at *at*, *times* times (None: until ``accept_all``)."""
        self._add(_Rule(at, None, None, None, times))

    def accept_all(self) -> None:
        """Forget every refusal."""
        with self._changed:
            self._rules.clear()

    def _add(self, rule: _Rule) -> None:
        with self._changed:
            self._rules.insert(0, rule)  # what was said last is asked first

    def _spend(self, at: Stage, sender: str | None, recipients: tuple[str, ...]) -> _Rule | None:
        with self._changed:
            rule = next((rule for rule in self._rules if rule.fits(at, sender, recipients)), None)
            if rule is not None and rule.times is not None:
                rule.times -= 1
            return rule

    def _take(self, mail: Received) -> None:
        with self._changed:
            self.messages.append(mail)
            self._changed.notify_all()

    # --- TLS

    def client_context(self) -> ssl.SSLContext:
        """Return a context that trusts this server, where it made its certificate itself.

        Raises:
            ValueError: it did not.
        """
        if self._authority is None:
            raise ValueError("no certificate was made here: tls is none, or a tls_context was given")
        context = ssl.create_default_context()
        self._authority.configure_trust(context)
        return context

    def _certified(self) -> ssl.SSLContext:
        try:
            import trustme  # noqa: PLC0415 - only tests of TLS need it
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("TLS needs a certificate: install trustme, which makes one, or give a tls_context") from error
        self._authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert("localhost", self.host).configure_cert(context)
        return context


class _Serving(Controller):
    """Serves SMTP or LMTP."""

    smtp_class: type[SMTP] = SMTP

    def factory(self) -> SMTP:
        return self.smtp_class(self.handler, **self.SMTP_kwargs)


def _authentication(users: Mapping[str, str]) -> dict[str, Any]:
    """Return the parameters of a server where *users*, name to password, can log in, without TLS too."""

    def authenticate(_server: Any, _session: Any, _envelope: Any, _mechanism: str, said: LoginPassword) -> AuthResult:
        known = users.get(said.login.decode("utf-8", "replace"))
        return AuthResult(success=known is not None and known.encode() == said.password, handled=False, auth_data=said)

    return {"authenticator": authenticate, "auth_require_tls": False}
