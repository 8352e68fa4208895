"""How a session begins and ends: who has come, what it is offered, its banner, TLS begun, the line that is left of it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

from mypy_extensions import mypyc_attr

from postbus import telemetry
from postbus.server import limits
from postbus.server.content import Content
from postbus.server.hooks import MISSING
from postbus.server.outcome import Act, Outcome
from postbus.server.plan import Plan, key_of
from postbus.server.preface import refused
from postbus.server.session import Session, tls_of
from postbus.smtp import replies
from postbus.smtp.engine import Engine
from postbus.smtp.replies import Reply
from postbus.smtp.terms import Offer

INSECURE = Reply(554, "Command refused due to lack of security", "5.7.0")  # RFC 3207 s4.1


@mypyc_attr(allow_interpreted_subclasses=True)
class Reception(Content):
    """The life of a session around what is said in it. Attributes without a word here are ``SMTP``'s parameters."""

    __slots__ = (
        "__ident__",
        "_began_at",
        "_greeted",
        "data_size_limit",
        "hostname",
        "require_starttls",
        "tls_context",
    )

    tls_context: ssl.SSLContext | None
    hostname: str
    __ident__: str
    data_size_limit: int | None
    require_starttls: bool
    command_size_limit: int
    line_length_limit: int
    local_part_limit: int
    _call_limits: tuple[Mapping[str, int], int] | None = None
    _auth_required: bool = False
    _auth_require_tls: bool = True
    _auth_terms: tuple[Any, ...] = (False, True, None, (), False)
    _began_at: float
    _greeted: bool

    @classmethod
    def _acts_by_event(cls) -> Mapping[type[Any], Act]:
        """Return what each event of the engine leads to."""
        raise TypeError(f"{cls.__name__} does nothing about any event")

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
        self._offer_external()
        self._set_rset_state()
        hook = self._plan.hooks.starttls
        return None if hook is None else self._ask("STARTTLS", hook, self._tls_judged, None)

    def _tls_judged(self, _event: None, result: Any) -> Outcome:
        if not result or isinstance(result, Reply):
            self.engine.refuse(result if isinstance(result, Reply) else INSECURE)
        return None

    @final
    def _new_session(self, old: Session | None) -> Session:
        session = self._create_session()
        terms = self.roster.terms
        transport = self.transport
        assert transport is not None
        if old is None:
            self._began_at = self.loop.time()
        session.id = self.roster.new_id() if old is None else old.id
        if old is None:
            session.peer = self.peername
            if self.proxied is not None:
                session.proxy_data = self.proxied
                direct = transport.get_extra_info("peername")
                session.proxy_peer = direct if direct != self.peername else None
        else:
            session.peer, session.proxy_peer, session.proxy_data = old.peer, old.proxy_peer, old.proxy_data
            session.peer_host, session.xclient = old.peer_host, old.xclient
        session.listener = terms.name
        session.lmtp = self.lmtp
        session.find_local = transport.get_extra_info
        return session

    @final
    def _greet(self, *, tls: bool) -> Outcome:
        roster = self.roster
        plan = roster.plan
        if plan is None or plan.key != key_of(self, roster):
            plan = roster.plan = Plan(self, roster)
        self._plan = plan
        self.acts = plan.acts
        self._set_rset_state()
        self.engine = Engine(self._offer(), lmtp=self.lmtp, limits=plan.limits, raw_verbs=plan.raw_verbs, tls=tls)
        self._greeted = True
        if plan.external:
            self._offer_external()
        if self.proxied is None:
            return self._wait_or_welcome()
        hook = plan.hooks.proxy
        if hook is None:
            return self._proxy_judged(None, MISSING)
        return self._ask("PROXY", hook, self._proxy_judged, None, self.proxied)

    def _proxy_judged(self, _event: None, result: Any) -> Outcome:
        """Go on if ``handle_PROXY`` said so; without it, if the listener knows whom to trust. Else close without a word."""
        goes_on = self.roster.terms.header is not None if result is MISSING else bool(result) and not isinstance(result, Reply)
        if goes_on:
            return self._wait_or_welcome()
        refused(self.roster.terms.name, self.peername, "handler")
        self.drop("proxy")
        return None

    @final
    def _wait_or_welcome(self) -> Outcome:
        """Greet, after the pause that shows who does not wait for a banner."""
        delay_s = self.roster.terms.timeouts.greet_delay_s
        if delay_s and self.client is not None:
            self.hold(delay_s)
            return None
        return self.welcome()

    def welcome(self) -> Outcome:
        """Ask ``handle_CONNECT``, and greet."""
        hook = self._plan.hooks.connect
        if hook is not None:
            return self._ask("CONNECT", hook, self._connected, None)
        self._open(self._plan.banner)
        return None

    def _offer(self) -> Offer:
        """Return what this peer is offered when its session begins, or when it turns out to be somebody else (PROXY, XCLIENT)."""
        plan = self._plan
        if not plan.special or self.session is None:
            return plan.offer
        peer = self.session.peer
        return replace(plan.offer, **{name: value for networks, name, value in plan.special if peer in networks})

    def _offer_external(self) -> None:
        """Offer EXTERNAL to who has shown a certificate, where it is wanted."""
        session = self.session
        if self._plan.external and session is not None and session.tls is not None and session.tls.client_cert_subject is not None:
            offer = self.engine.offer
            self.engine.offer = replace(offer, auth=tuple(sorted({*offer.auth, "EXTERNAL"})))

    @final
    def _open(self, banner: Reply) -> None:
        """Say *banner*, unless the peer has talked before it."""
        self.engine.open(banner)
        if self.engine.last_word is replies.EARLY_TALK and banner.code < 400:
            self.limited(limits.EARLY)

    def _connected(self, _event: None, result: Any) -> Outcome:
        """``handle_CONNECT`` has decided."""
        self._open(self._banner(result))
        return None

    def _banner(self, result: Any) -> Reply:
        """Return the banner ``handle_CONNECT`` wants: as usual if it said nothing; 220 to greet, 4xx or 5xx to turn the peer away."""
        if result is None or result is MISSING:
            return self._plan.banner
        text = result if isinstance(result, str) else ""
        return Reply.parse(text) if text[:3] == "220" else self._verdict("CONNECT", result)

    def ended(self, error: Exception | None) -> None:
        """Tidy up and tell what the session came to."""
        self._drop_content()
        self.reason = self.reason or ("lost" if error is not None or not self._half_closed else "eof")
        session = self.session
        if session is None:
            return
        if self._greeted and self.engine.untimely:  # no message came to have them
            for kind in self.engine.take_untimely():
                telemetry.defect_tolerated(listener=self.roster.terms.name, kind=kind, count=1)
        telemetry.session_closed(
            listener=session.listener,
            session=session.id,
            peer=str(session.peer[0] if isinstance(session.peer, tuple) else session.peer),
            helo=session.host_name,
            tls=None if session.tls is None else session.tls.version,
            auth=session.auth_mechanism,
            accepted=self.messages_accepted,
            refused=self.messages_refused,
            recipients=self.recipients,
            octets=self.octets,
            duration_s=self.loop.time() - self._began_at,
            outcome=self.reason,
            limit=self.limit or None,
        )
        hook = self._plan.hooks.disconnect if self._greeted else None
        if hook is not None:
            envelope = self.envelope if self.envelope is not None and self.envelope.mail_from is not None else None
            self._tell("DISCONNECT", hook, session, envelope, self.reason)

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

    # --- what subclasses override

    def _create_session(self) -> Session:
        """Return a new session; override it to have one of your own."""
        return Session(self.loop)

    def _set_rset_state(self) -> Any:
        """Forget the transaction, but not the greeting."""
        self._set_post_data_state()
