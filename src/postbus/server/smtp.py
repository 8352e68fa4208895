"""An SMTP server's side of one connection: the class people subclass.

The vocabulary is aiosmtpd's: ``handle_<VERB>`` hooks on a handler, ``smtp_<VERB>(arg)`` coroutine methods to override or add,
``push``, ``_call_handler_hook``, ``_set_rset_state``. See ``plan`` for why overriding nothing costs nothing.

Differences, each on purpose: a hook may be a plain function; what goes wrong in one is answered with a fixed ``451 4.3.0``, never with
its text; limits do not creep; ``envelope.mail_from`` of a null sender is ``<>`` (kept); paths need their brackets.
"""

from __future__ import annotations

import asyncio
import inspect
import socket
import ssl
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, cast

from postbus import __version__
from postbus.server.auth import (
    VALID_AUTHMECH,
    AuthCallbackType,
    AuthenticatorType,
    AuthMechanismType,
    AuthResult,
    LoginPassword,
    auth_mechanism,
)
from postbus.server.body import Spill
from postbus.server.envelope import Envelope
from postbus.server.hooks import MISSING, Hooks, _Missing
from postbus.server.identification import Identification
from postbus.server.link import UPGRADE
from postbus.server.outcome import Act, Answer, Outcome, Pending, Special
from postbus.server.plan import DEFAULT_LIMITS, syntax
from postbus.server.preface import HeaderTerms
from postbus.server.session import Session
from postbus.smtp import replies
from postbus.smtp.commands import VERBS
from postbus.smtp.events import (
    Auth,
    AuthResponse,
    Bdat,
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
    Xclient,
    Xforward,
)
from postbus.smtp.replies import Reply

__all__ = [
    "BOGUS_LIMIT",
    "CALL_LIMIT_DEFAULT",
    "DATA_SIZE_DEFAULT",
    "MISSING",
    "SMTP",
    "VALID_AUTHMECH",
    "AuthCallbackType",
    "AuthMechanismType",
    "AuthResult",
    "AuthenticatorType",
    "Envelope",
    "LoginPassword",
    "Session",
    "_Missing",
    "__ident__",
    "__version__",
    "auth_mechanism",
    "call_limits",
    "machine_name",
    "make_loop",
    "syntax",
]

__ident__ = "postbus"
BOGUS_LIMIT = 5  # unknown verbs of a session, the one that ends it not counted
CALL_LIMIT_DEFAULT = 20  # calls of a verb that a ``command_call_limit`` mapping does not name
DATA_SIZE_DEFAULT = 2**25
NEEDS_HELO = frozenset({"MAIL", "RCPT", "DATA", "VRFY"})  # as in aiosmtpd
NEEDS_AUTH = frozenset(name for name, row in VERBS.items() if not row.before_auth)

OLD_HOOKS = {"EHLO": "ehlo_hook", "LHLO": "ehlo_hook", "RSET": "rset_hook"}  # methods of a server, from before handlers had hooks
MALFORMED_ADDRESS = Reply(553, "Error: malformed address", "5.1.3")


@cache
def machine_name() -> str:
    """Return this machine's full name, asked once: it may cost a query."""
    return socket.getfqdn()


def make_loop() -> asyncio.AbstractEventLoop:
    """Return the running loop, else the thread's current one, else a new one, made current: Python 3.14 makes none by itself."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 and 3.13 still make one, and say so
            return asyncio.get_event_loop()
    except RuntimeError:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        return loop


def call_limits(limit: Any) -> tuple[Mapping[str, int], int] | None:
    """Return (calls by verb, calls of any other verb) as *limit*, a ``command_call_limit``, says; None: nothing is counted.

    Raises:
        TypeError: *limit* is neither a number nor a mapping of verbs to numbers.
    """
    if limit is None:
        return None
    if isinstance(limit, int):
        return {}, limit
    if not isinstance(limit, Mapping) or not all(isinstance(calls, int) for calls in limit.values()):
        raise TypeError("command_call_limit must be int or Dict[str, int]")
    return limit, limit.get("*", CALL_LIMIT_DEFAULT)


class SMTP(Identification, asyncio.Protocol):
    """One SMTP session; ``LMTP`` is the other protocol.

    Class attributes, to set in a subclass:
        command_size_limit: longest command line in octets with its CRLF, before what its verb's extensions allow (RFC 5321 s4.5.3.1.4).
        line_length_limit: longest content line in octets; beyond it the message gets 550 5.6.0. aiosmtpd's 1001 refuses unwrapped base64.
        local_part_limit: longest local part in octets (RFC 5321 s4.5.3.1.1 says 64); 0: as long as the command allows.

    Attributes:
        event_handler: the handler whose hooks are called.
        session: who is connected.
        envelope: the transaction under way.
        lmtp: speaks LMTP.
        messages_accepted, messages_refused, recipients: of this session, so far.
    """

    command_size_limit: int = DEFAULT_LIMITS.command_octets
    line_length_limit: int = DEFAULT_LIMITS.text_line_octets
    local_part_limit: int = 0

    def __init__(
        self,
        handler: Any,
        *,
        data_size_limit: int | None = DATA_SIZE_DEFAULT,
        enable_SMTPUTF8: bool = False,  # noqa: N803 - aiosmtpd's name
        decode_data: bool = False,
        hostname: str | None = None,
        ident: str | None = None,
        tls_context: ssl.SSLContext | None = None,
        require_starttls: bool = False,
        timeout: float = 300,
        auth_required: bool = False,
        auth_require_tls: bool = True,
        auth_exclude_mechanism: Iterable[str] | None = None,
        auth_callback: AuthCallbackType | None = None,
        authenticator: AuthenticatorType | None = None,
        auth_mechanisms: Iterable[str] | None = None,
        command_call_limit: int | dict[str, int] | None = None,
        proxy_protocol_timeout: float | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Take aiosmtpd's parameters.

        Args:
            handler: an object with ``handle_<VERB>`` hooks.
            data_size_limit: largest message in octets, announced as SIZE; None: no limit.
            enable_SMTPUTF8: offer SMTPUTF8 (RFC 6531).
            decode_data: ``envelope.content`` is text.
            hostname: our name; None: the machine's.
            ident: words behind the name in the banner.
            tls_context: offer STARTTLS with it.
            require_starttls: take mail only after STARTTLS.
            timeout: seconds to wait for a command, where no listener decides it.
            command_call_limit: how often one verb may come in a session, by verb (``"*"``: any other), or for all alike; then 421 4.7.0.
                None: only what the listener's limits say.
            auth_required: take mail only after AUTH.
            auth_require_tls: AUTH only under TLS, begun by STARTTLS or with the first octet.
            auth_exclude_mechanism: mechanisms not to offer.
            auth_callback: judges a login and a password; the old form.
            authenticator: judges what a mechanism has learnt, and says so in an ``AuthResult``; a plain function or a coroutine.
            auth_mechanisms: which of our mechanisms to offer, beside those of the handler or a subclass; None: LOGIN and PLAIN where
                somebody can judge them. EXTERNAL, OAUTHBEARER and XOAUTH2 are offered only by being named here.
            proxy_protocol_timeout: each connection begins with a PROXY header, whole within so many seconds; ``handle_PROXY`` judges it,
                and without that hook nobody gets in. ``session.peer`` stays the proxy: a listener's setting, which knows whom to trust, is
                the better way. None: no header.
            loop: the running loop; None: asked for.

        Warns:
            UserWarning: AUTH is required in plain text.

        Raises:
            TypeError: *command_call_limit* is neither a number nor a mapping of verbs to numbers.
            ValueError: *proxy_protocol_timeout* is no time.
        """
        super().__init__(loop or make_loop(), timeout)
        self.event_handler = handler
        self.data_size_limit = None if data_size_limit is None else int(data_size_limit)
        self.enable_SMTPUTF8 = bool(enable_SMTPUTF8)
        self.decode_data = bool(decode_data)
        self.hostname = hostname or machine_name()
        self.__ident__ = ident or "postbus"
        self.tls_context = tls_context
        self.require_starttls = bool(tls_context and require_starttls)
        if command_call_limit is not None:
            self._call_limits = call_limits(command_call_limit)
            self._calls = {}
        if auth_required and not auth_require_tls:
            warnings.warn("Requiring AUTH while not requiring TLS can lead to security vulnerabilities!", stacklevel=2)
        judged = authenticator is not None or auth_callback is not None
        if auth_required or not auth_require_tls or auth_mechanisms is not None or auth_exclude_mechanism or judged:
            self._authenticator = authenticator
            self._auth_callback = auth_callback if authenticator is None else None
            self._auth_required = bool(auth_required)
            self._auth_require_tls = bool(auth_require_tls)
            self._auth_terms = (
                auth_required,
                auth_require_tls,
                None if auth_mechanisms is None else tuple(auth_mechanisms),
                tuple(auth_exclude_mechanism or ()),
                judged,
            )
        if proxy_protocol_timeout is not None:
            if proxy_protocol_timeout <= 0:
                raise ValueError("proxy_protocol_timeout must be > 0")
            self.header_terms = HeaderTerms(None, proxy_protocol_timeout)
        self.session: Session | None = None
        self.envelope: Envelope | None = None
        self.messages_accepted = 0
        self.messages_refused = 0
        self.recipients = 0
        self._pieces: list[bytes] = []
        self._size_octets = 0
        self._spill: Spill | None = None
        self._disk_event: asyncio.Future[None] | None = None
        self._content_event = None
        self._raw = False
        self._began_at = 0.0
        self._greeted = False

    @classmethod
    def _acts_by_event(cls) -> Mapping[type[Any], Act]:
        """Return what each event of the engine leads to, whatever else is called so in a subclass."""
        return {
            Bdat: super()._on_bdat,
            Chunk: super()._on_chunk,
            EndOfMessage: super()._on_end,
            Auth: super()._on_auth,
            AuthResponse: super()._on_auth_response,
            Helo: super()._on_helo,
            Mail: super()._on_mail,
            Rcpt: super()._on_rcpt,
            DataStart: super()._on_data,
            StartTls: super()._on_starttls,
            Xclient: super()._on_xclient,
            Xforward: super()._on_xforward,
            Rset: super()._on_rset,
            Noop: super()._on_noop,
            Vrfy: super()._on_vrfy,
            Expn: super()._on_expn,
            Help: super()._on_help,
            Quit: super()._on_quit,
            Command: super()._on_command,
            Refused: super()._on_refused,
        }

    # --- what subclasses call and override

    @property
    def _handle_hooks(self) -> dict[str, Callable[..., Any]]:
        """The handler's hooks by name: ``{"DATA": handler.handle_DATA}``."""
        return self._plan.hooks.by_name if self._greeted else Hooks(self.event_handler).by_name

    @property
    def _smtp_methods(self) -> dict[str, Callable[..., Any]]:
        """The methods of this server by verb: ``{"DATA": self.smtp_DATA}``."""
        return {name.removeprefix("smtp_").upper(): getattr(self, name) for name in dir(self) if name.startswith("smtp_")}

    @property
    def _tls_protocol(self) -> Any:
        """Something true while TLS is active, which is what programs ask it for; else None."""
        return self.session.ssl if self.session is not None else None

    @property
    def command_size_limits(self) -> Mapping[str, int]:
        """Longest line of each verb in octets, what its extensions allow included; the same in every session, however often EHLO comes."""
        return {verb: self.command_size_limit + row.allowance_octets for verb, row in VERBS.items()}

    @property
    def max_command_size_limit(self) -> int:
        """The longest of them."""
        return max(self.command_size_limits.values())

    async def _call_handler_hook(self, command: str, *args: Any) -> Any:
        """Return what ``handle_<command>(self, session, envelope, *args)`` returns, or MISSING if the handler has none."""
        hook = self._plan.hooks.by_name.get(command)
        if hook is None:
            return MISSING
        result = hook(self, self.session, self.envelope, *args)
        return await result if inspect.isawaitable(result) else result

    async def handle_exception(self, error: Exception) -> str | Reply:
        """Return the status line for *error*, raised by a hook or an ``smtp_<VERB>`` method. Override it, or give the handler one."""
        hook = self._plan.hooks.exception
        if hook is None:
            return replies.LOCAL_ERROR
        result = hook(error)
        return cast("str | Reply", await result if inspect.isawaitable(result) else result)

    async def push(self, status: str | bytes | Reply) -> None:
        """Send a status line; the last one pushed by an ``smtp_<VERB>`` method answers the command.

        An override sees, as text, the answer to every command that has a method, but for the banner, lines too long or too strange to
        have one, and 451 for its own exception.

        Raises:
            ValueError: *status* is no reply line.
        """
        if self._unheard:
            return
        reply = self._to_reply(status)
        if reply is None:
            return
        if self._said is not None:
            self._said.append(reply)
            return
        if self._raw and not self._answered:
            reply, self._pushed = self._pushed, reply
        if reply is not None:
            self.engine.push(reply)
        self.flush()

    @property
    def _unheard(self) -> bool:
        """The caller is a method whose command was answered without it: its words would be taken for another command's answer."""
        return asyncio.current_task(self.loop) in self.roster.work

    def _to_reply(self, status: str | bytes | Reply) -> Reply | None:
        """Return the reply *status* completes; the lines of a long one may be pushed one by one (``250-`` ... ``250 ``)."""
        if isinstance(status, Reply):
            return status
        text = status.decode("utf-8", "replace") if isinstance(status, bytes) else status
        self._partial += text
        if text.rpartition("\n")[2][3:4] == "-":
            self._partial += "\r\n"
            return None
        whole, self._partial = self._partial, ""
        return Reply.parse(whole)

    async def check_helo_needed(self, helo: str = "HELO") -> bool:
        """Push 503 and return True if the peer has not greeted."""
        assert self.session is not None
        if self.session.host_name:
            return False
        await self.push(f"503 5.5.1 Error: send {helo} first")
        return True

    async def check_auth_needed(self, caller_method: str) -> bool:
        """Push 530 and return True if the peer has to authenticate first; *caller_method* is the verb."""
        del caller_method
        assert self.session is not None
        if not self._auth_required or self.session.authenticated:
            return False
        await self.push(replies.AUTH_FIRST)
        return True

    async def _perform(self, verb: str, arg: str | None) -> None:
        """Do what the verb does by default; every ``smtp_<VERB>`` method here is this."""
        if self._unheard:
            return
        if self._plan.checks_helo and verb in NEEDS_HELO and await self.check_helo_needed("LHLO" if self.lmtp else "HELO"):
            return
        if self._plan.checks_auth and verb in NEEDS_AUTH and await self.check_auth_needed(verb):
            return
        shift = self._shift
        event = self.engine.interpret(verb, arg or None)
        if isinstance(event, Reply):
            await self.push(str(event))
            return
        if isinstance(event, Mail | Rcpt) and 0 < self.local_part_limit < len(event.address.rpartition("@")[0].encode()):
            await self._settle_answer(MALFORMED_ADDRESS)
            return
        old_hook = getattr(self, OLD_HOOKS.get(verb, ""), None)
        if old_hook is not None:
            await old_hook()
        await self._conclude(event, shift)
        if shift != self._shift or self.finished:  # the session has moved on: what it is about now is no business of this call's
            return
        if isinstance(event, DataStart) and self.engine.in_content:
            await self._wait_for_content(shift)
        elif isinstance(event, StartTls) and self._paused & UPGRADE:
            await asyncio.wait({self.upgrade()})

    async def _wait_for_content(self, shift: int) -> None:
        """Wait for a message's end, doing the waiting for pieces of it that are streamed, and answer it."""
        while True:
            self.busy = False
            self.owing_at = None
            self._content_event = self.loop.create_future()
            self.loop.call_soon(self._next_turn)
            what = await self._content_event
            if not isinstance(what, Pending):
                await self._conclude(what, shift)
                return
            if await self.resolve(what, shift) is Special.GONE:
                return

    async def _conclude(self, event: Any, shift: int) -> None:
        """Answer *event* as the fast way would."""
        outcome = self._end(event) if isinstance(event, EndOfMessage) else self.acts[type(event)](self, event)
        await self._settle_answer(await self.resolve(outcome, shift))

    async def _settle_answer(self, answer: Outcome) -> None:
        """Give *answer* to the engine, behind what was pushed before it."""
        pushed, self._pushed = self._pushed, None
        if pushed is not None:
            self.engine.push(pushed)
        if isinstance(answer, Reply):
            answer = self._with_pushed(answer)
        if isinstance(answer, Reply | tuple):
            if self._plan.pushes:
                answer = await self._pushed_through(answer)
            self._answered = True
            self.engine.answer(answer)
        elif answer is None:
            self._answered = True
        self.flush()

    async def _pushed_through(self, answer: Answer) -> Answer:
        """Return *answer* as an overridden ``push`` passes it on; one that passes on nothing cannot leave the peer without an answer."""
        each = answer if isinstance(answer, tuple) else (answer,)
        said: list[Reply] = []
        self._said = said
        try:
            for reply in each:
                await self.push(str(reply))
        finally:
            self._said = None
        if len(said) != len(each):
            return answer
        kept = tuple(replace(new, close=new.close or old.close) for new, old in zip(said, each, strict=True))
        return kept if isinstance(answer, tuple) else kept[0]

    @syntax("HELO hostname")
    async def smtp_HELO(self, hostname: str | None) -> None:
        """HELO (RFC 5321 s4.1.1.1)."""
        await self._perform("HELO", hostname)

    @syntax("EHLO hostname")
    async def smtp_EHLO(self, hostname: str | None) -> None:
        """EHLO (RFC 5321 s4.1.1.1)."""
        await self._perform("EHLO", hostname)

    @syntax("MAIL FROM: <address>", extended=" [SP <mail-parameters>]")
    async def smtp_MAIL(self, arg: str | None) -> None:
        """MAIL (RFC 5321 s4.1.1.2)."""
        await self._perform("MAIL", arg)

    @syntax("RCPT TO: <address>", extended=" [SP <mail-parameters>]")
    async def smtp_RCPT(self, arg: str | None) -> None:
        """RCPT (RFC 5321 s4.1.1.3)."""
        await self._perform("RCPT", arg)

    @syntax("DATA")
    async def smtp_DATA(self, arg: str | None) -> None:
        """DATA (RFC 5321 s4.1.1.4); returns once the message is answered."""
        await self._perform("DATA", arg)

    @syntax("RSET")
    async def smtp_RSET(self, arg: str | None) -> None:
        """RSET (RFC 5321 s4.1.1.5)."""
        await self._perform("RSET", arg)

    @syntax("NOOP [ignored]")
    async def smtp_NOOP(self, arg: str | None) -> None:
        """NOOP (RFC 5321 s4.1.1.9)."""
        await self._perform("NOOP", arg)

    @syntax("QUIT")
    async def smtp_QUIT(self, arg: str | None) -> None:
        """QUIT (RFC 5321 s4.1.1.10)."""
        await self._perform("QUIT", arg)

    @syntax("VRFY <address>")
    async def smtp_VRFY(self, arg: str | None) -> None:
        """VRFY (RFC 5321 s4.1.1.6)."""
        await self._perform("VRFY", arg)

    @syntax("EXPN <list>")
    async def smtp_EXPN(self, arg: str | None) -> None:
        """EXPN (RFC 5321 s4.1.1.7)."""
        await self._perform("EXPN", arg)

    @syntax("HELP [command]")
    async def smtp_HELP(self, arg: str | None) -> None:
        """HELP (RFC 5321 s4.1.1.8)."""
        await self._perform("HELP", arg)

    async def smtp_XCLIENT(self, arg: str | None) -> None:
        """XCLIENT, from those who may (Postfix's XCLIENT_README)."""
        await self._perform("XCLIENT", arg)

    async def smtp_XFORWARD(self, arg: str | None) -> None:
        """XFORWARD, from those who may (Postfix's XFORWARD_README)."""
        await self._perform("XFORWARD", arg)

    @syntax("STARTTLS", when="tls_context")
    async def smtp_STARTTLS(self, arg: str | None) -> None:
        """STARTTLS (RFC 3207); returns once the handshake has ended."""
        await self._perform("STARTTLS", arg)

    @syntax("AUTH <mechanism>")
    async def smtp_AUTH(self, arg: str | None) -> None:
        """AUTH (RFC 4954); returns once the exchange has ended."""
        await self._perform("AUTH", arg)
