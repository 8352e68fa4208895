"""AUTH: the floor of a server class that runs the exchange, judges its outcome and remembers who the peer is.

The engine gives an ``Auth``; a task runs the mechanism's method, which may await ``challenge_auth`` as often as it likes; the connection
meanwhile reads as for any command, under the same deadlines. The method's result becomes one reply. A refusal is held back by a timer,
longer each time; the engine ends the session at the last one allowed (``Limits.auth_failures``). Sessions of one client network share a
budget of failures per minute (``clients``); while it is used up, no mechanism runs.

Credentials: they are in no event's ``repr``, in no log line, and of an exception raised while they are at hand only the type and the
places are logged.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import warnings
from base64 import b64encode
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from postbus import telemetry
from postbus.server import sasl
from postbus.server.auth import AuthCallbackType, AuthenticatorType, AuthResult, LoginPassword
from postbus.server.dialog import Dialog
from postbus.server.hooks import MISSING, Misanswered, _Missing, reply_of
from postbus.server.outcome import Answer, Outcome, Pending, Special
from postbus.smtp import exchange, replies
from postbus.smtp.events import Auth, AuthResponse
from postbus.smtp.replies import Reply

DELAY_MAX_S = 10.0

MALFORMED = Reply(501, "Malformed authentication response", "5.5.2")
INVALID_TOKEN = json.dumps({"status": "invalid_token"})  # RFC 7628 s3.2.2
INVALID_TOKEN_XOAUTH2 = json.dumps({"status": "401", "schemes": "bearer", "scope": ""})


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a mechanism's method, or ``handle_AUTH``, returned; *by_hook*: the latter, so it is a status line."""

    result: Any
    by_hook: bool


class Identification(Dialog):
    """Who the peer is. Attributes that begin with ``_auth`` are ``SMTP``'s parameters."""

    _authenticator: AuthenticatorType | None = None
    _auth_callback: AuthCallbackType | None = None
    _auth_failures: int = 0
    _response_event: asyncio.Future[AuthResponse] | None = None

    if TYPE_CHECKING:  # what the floors above bring

        async def _call_handler_hook(self, command: str, *args: Any) -> Any: ...

        async def push(self, status: str | bytes | Reply) -> None: ...  # noqa: D102

        async def _pushed_through(self, answer: Answer) -> Answer: ...

        @property
        def _unheard(self) -> bool: ...

    AuthLoginUsernameChallenge: ClassVar[str] = "User Name\x00"
    AuthLoginPasswordChallenge: ClassVar[str] = "Password\x00"
    auth_failure_delay_s: ClassVar[float | None] = None
    """Instead of the listener's: seconds before the answer to a failed AUTH, times the number of failures so far."""

    # --- the exchange

    def _on_auth(self, event: Auth) -> Outcome:
        """Run the mechanism; what its method pushes last answers the command, unless it returns something better."""
        client = self.client
        if client is not None:
            refusal = self.roster.clients.may_guess(client, self.roster.sweep.now)
            if refusal is not None:
                return self._over(refusal)
        raw = self._raw  # the method of a subclass is at work, and goes on behind this
        if self._pushed is not None:
            self.engine.push(self._pushed)
        self._raw, self._answered, self._pushed = True, False, None

        def settle(_event: Auth, result: Any) -> Outcome:
            pushed, self._pushed = self._pushed, None
            self._raw, self._partial = raw, ""
            return self._identified(event, result, pushed)

        return Pending(self._identify(event), settle, event, f"auth_{event.mechanism}", self.envelope)

    async def _identify(self, event: Auth) -> Verdict:
        args = [event.mechanism]
        if event.initial is not None:
            args.append(b64encode(event.initial).decode() or exchange.EMPTY)
        status = await self._call_handler_hook("AUTH", args)
        if status is not MISSING:
            return Verdict(status, by_hook=True)
        owner, name = self._plan.mechanisms[event.mechanism]
        result = getattr(self.event_handler if owner == "handler" else self, name)(self, args)
        while inspect.isawaitable(result):  # a method may return what ``_authenticate`` gave it, unawaited
            result = await result
        return Verdict(result, by_hook=False)

    async def challenge_auth(
        self, challenge: str | bytes, encode_to_b64: bool = True, log_client_response: bool = False
    ) -> _Missing | bytes:
        """Send *challenge* and return what the client answers, decoded; MISSING: it has cancelled, or sent no base64, and was told so.

        Args:
            challenge: text is sent as UTF-8; ``334`` is put before it.
            encode_to_b64: it is not base64 yet.
            log_client_response: nothing is logged whatever it says; it is there for aiosmtpd's sake.
        """
        if log_client_response:
            warnings.warn("log_client_response has no effect: what a client answers is never logged", stacklevel=2)
        if self._unheard or not self.engine.owing:
            return MISSING
        octets = challenge.encode() if isinstance(challenge, str) else challenge
        answer: Answer = Reply(334, (b64encode(octets) if encode_to_b64 else octets).decode("ascii"))
        if self._plan.pushes:
            answer = await self._pushed_through(answer)
        pushed, self._pushed = self._pushed, None
        if pushed is not None:
            self.engine.push(pushed)
        self._response_event = waiting = self.loop.create_future()
        self.engine.answer(answer)
        self.owing_at = None
        self.loop.call_soon(self._next_turn)  # sends it, and reads on
        response = await waiting
        return MISSING if response.refusal is not None else response.octets

    async def _auth_interact(self, server_message: str) -> _Missing | bytes:
        """As ``challenge_auth``, of a line in base64 with its ``334``; the old form."""
        warnings.warn("Use challenge_auth() instead of _auth_interact()", DeprecationWarning, stacklevel=2)
        return await self.challenge_auth(server_message.removeprefix("334 "), encode_to_b64=False)

    def _on_auth_response(self, event: AuthResponse) -> Outcome:
        """Hand an answer to the method that waits for it."""
        waiting, self._response_event = self._response_event, None
        if event.refusal is not None:
            telemetry.command_rejected(listener=self.roster.terms.name, code=event.refusal.code)
        if waiting is None or waiting.done():  # the 334 was pushed by somebody who did not wait
            return None if event.refusal is not None else replies.AUTH_FAULT
        self.busy = True
        self.owing_at = self.roster.sweep.now
        waiting.set_result(event)
        return Special.HANDED

    # --- the verdict

    def _identified(self, event: Auth, verdict: Any, pushed: Reply | None) -> Outcome:
        """Return the answer to AUTH; a refusal comes late."""
        if not self.engine.owing:  # cancelled or malformed, and told so by the engine
            telemetry.auth_ended(listener=self.roster.terms.name, mechanism=event.mechanism, outcome="cancelled")
            return None
        reply = self._judge(verdict, pushed)
        session = self.session
        assert session is not None
        if reply.code < 300:
            session.authenticated = True
            session.auth_mechanism = event.mechanism
            session.auth_identity = _identity(session.auth_data, session.login_data)
        elif not session.authenticated:
            session.authenticated = False
        outcome: Literal["success", "fault", "failure"] = "success" if reply.code < 300 else "fault" if reply.code < 500 else "failure"
        telemetry.auth_ended(listener=self.roster.terms.name, mechanism=event.mechanism, outcome=outcome)
        telemetry.auth_told(
            listener=self.roster.terms.name,
            session=session.id,
            peer=str(session.peer[0] if isinstance(session.peer, tuple) else session.peer),
            mechanism=event.mechanism,
            outcome=outcome,
            identity=session.auth_identity if outcome == "success" else None,
        )
        if outcome != "failure":
            return reply
        if self.client is not None:  # now, not behind the delay: who hangs up meanwhile has learnt that it was wrong
            self.roster.clients.failed(self.client, self.roster.sweep.now)
        return self._late(event, reply)

    def _judge(self, verdict: Any, pushed: Reply | None) -> Reply:
        """Return the reply a method's result stands for; success is kept in the session."""
        if not isinstance(verdict, Verdict):  # what stands for an exception
            return self._status(verdict)
        result = verdict.result
        if verdict.by_hook:
            return pushed or replies.AUTH_FAILED if result is None else self._status(result)
        if isinstance(result, AuthResult):
            return self._judge_result(result, pushed)
        if result is None:  # the method has answered by itself
            return pushed or replies.AUTH_FAILED
        if result is MISSING or result is False:
            return replies.AUTH_FAILED
        assert self.session is not None
        self.session.login_data = result
        return replies.AUTHENTICATED

    def _judge_result(self, result: AuthResult, pushed: Reply | None) -> Reply:
        if not result.success:
            if result.handled:
                return pushed or replies.AUTH_FAILED
            reply = replies.AUTH_FAILED if result.message is None else self._status(result.message)
            return reply if reply.code >= 400 else replies.AUTH_FAILED  # words of success make none
        reply = replies.AUTHENTICATED if result.message is None else self._status(result.message)
        if reply.code < 300:
            assert self.session is not None
            self.session.auth_data = result.auth_data
            self.session.login_data = getattr(result.auth_data, "login", None)
        return reply

    def _status(self, result: Any) -> Reply:
        """Return the reply of a status line; what is none is our fault, and ours are 454 here (RFC 4954 s6)."""
        if result is replies.LOCAL_ERROR:
            return replies.AUTH_FAULT
        try:
            return reply_of(result)
        except Misanswered as error:
            telemetry.hook_misanswered(hook="AUTH", session=self._session_id, error=str(error))
            return replies.AUTH_FAULT

    def _late(self, event: Auth, reply: Reply) -> Outcome:
        """Return *reply*, held back by a timer that holds nothing else."""
        self._auth_failures += 1
        terms = self.roster.terms
        step_s = terms.auth_failure_delay_s if self.auth_failure_delay_s is None else self.auth_failure_delay_s
        delay_s = min(step_s * self._auth_failures, DELAY_MAX_S, terms.timeouts.answer_s / 2)
        if delay_s <= 0:
            return reply
        self.owing_at = self.roster.sweep.now  # what it took to judge is no part of the delay
        held = self.loop.create_future()
        self.loop.call_later(delay_s, _let_go, held)
        return Pending(held, lambda _event, _result: reply, event, "auth delay", self.envelope)

    def late_answer(self, pending: Pending) -> Reply:
        """454 for an authenticator that takes too long; its result counts no more."""
        answer = super().late_answer(pending)
        return replies.AUTH_FAULT if isinstance(pending.event, Auth) else answer

    # --- what subclasses call and override

    def _authenticate(self, mechanism: str, auth_data: Any) -> Any:
        """Ask ``authenticator``, or ``auth_callback``; return an ``AuthResult``, or an awaitable of one."""
        if self._authenticator is not None:
            return self._authenticator(self, self.session, self.envelope, mechanism, auth_data)
        if self._auth_callback is None or not isinstance(auth_data, LoginPassword):
            return AuthResult(success=False, handled=False)
        good = self._auth_callback(mechanism, *auth_data)
        return _told(good, auth_data) if inspect.isawaitable(good) else _result(good, auth_data)

    async def _checked(self, mechanism: str, auth_data: Any) -> Any:
        """Return what ``_authenticate`` comes to."""
        result = self._authenticate(mechanism, auth_data)
        return await result if inspect.isawaitable(result) else result

    async def _first(self, args: list[str], challenge: str = "") -> _Missing | bytes:
        """Return the initial response, asked for by *challenge* where the client sent none."""
        if len(args) < 2:
            return await self.challenge_auth(challenge)
        return b"" if args[1] == exchange.EMPTY else exchange.decode(args[1]) or b""

    async def _malformed(self) -> AuthResult:
        await self.push(MALFORMED)
        return AuthResult(success=False)

    async def auth_PLAIN(self, _: Any, args: list[str]) -> Any:
        """PLAIN (RFC 4616). Who wants to be somebody else is refused."""
        octets = await self._first(args)
        if octets is MISSING:
            return AuthResult(success=False)
        said = sasl.read_plain(octets)
        if said is None:
            return await self._malformed()
        authzid, who = said
        if authzid not in {b"", who.login}:
            return AuthResult(success=False, handled=False)
        return await self._checked("PLAIN", who)

    async def auth_LOGIN(self, _: Any, args: list[str]) -> Any:
        """LOGIN (draft-murchison-sasl-login: never a standard, but what old clients know)."""
        login = await self._first(args, self.AuthLoginUsernameChallenge)
        password = MISSING if login is MISSING else await self.challenge_auth(self.AuthLoginPasswordChallenge)
        if login is MISSING or password is MISSING:
            return AuthResult(success=False)
        who = sasl.login_password(login, password)
        return await (self._malformed() if who is None else self._checked("LOGIN", who))

    async def auth_EXTERNAL(self, _: Any, args: list[str]) -> Any:
        """EXTERNAL (RFC 4422 appendix A): the certificate the client has shown in TLS says who it is."""
        octets = await self._first(args)
        if octets is MISSING:
            return AuthResult(success=False)
        session = self.session
        assert session is not None
        subject = session.tls.client_cert_subject if session.tls is not None else None
        shown = sasl.read_external(octets, (session.ssl or {}).get("peercert") or {}, subject) if subject is not None else None
        return AuthResult(success=False, handled=False) if shown is None else await self._checked("EXTERNAL", shown)

    async def auth_OAUTHBEARER(self, _: Any, args: list[str]) -> Any:
        """OAUTHBEARER (RFC 7628): a failure is told in a challenge first, so that the client knows to get another token."""
        return await self._bear("OAUTHBEARER", args, sasl.read_oauthbearer, INVALID_TOKEN)

    async def auth_XOAUTH2(self, _: Any, args: list[str]) -> Any:
        """XOAUTH2, which came before OAUTHBEARER and is what Google's and Microsoft's clients speak."""
        return await self._bear("XOAUTH2", args, sasl.read_xoauth2, INVALID_TOKEN_XOAUTH2)

    async def _bear(self, mechanism: str, args: list[str], read: Callable[[bytes], Any], error: str) -> Any:
        octets = await self._first(args)
        if octets is MISSING:
            return AuthResult(success=False)
        token = read(octets)
        if token is None:
            return await self._malformed()
        result = await self._checked(mechanism, token)
        failed = isinstance(result, AuthResult) and not result.success and not (result.message or "").startswith("4")
        if failed and self._pushed is None:
            await self.challenge_auth(error)  # the client answers ^A, or nothing, or cancels
        return result


def _result(good: Any, auth_data: Any) -> AuthResult:
    return AuthResult(success=True, auth_data=auth_data) if good else AuthResult(success=False, handled=False)


async def _told(good: Awaitable[Any], auth_data: Any) -> AuthResult:
    return _result(await good, auth_data)


def _let_go(held: asyncio.Future[None]) -> None:
    if not held.done():
        held.set_result(None)


def _identity(auth_data: Any, login_data: Any) -> str | None:
    """Return the user's name where somebody said it: ``auth_data.login``, or what a mechanism of the old form returned."""
    login = getattr(auth_data, "login", login_data)
    if isinstance(login, bytes):
        return login.decode("utf-8", "backslashreplace")
    return login if isinstance(login, str) else None
