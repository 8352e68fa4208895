"""A listening socket and the sessions it brings: start, drain, new certificates."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import ssl
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from postbus import telemetry
from postbus.server import users
from postbus.server.auth import AuthenticatorType
from postbus.server.clients import Client
from postbus.server.hooks import Hooks
from postbus.server.lmtp import LMTP
from postbus.server.networks import networks_of
from postbus.server.parameter_settings import keywords
from postbus.server.preface import HeaderTerms, read_header, refused
from postbus.server.proxy_protocol import ProxyData
from postbus.server.roster import Gate, Roster, Terms
from postbus.server.settings import ListenerSettings, TimeoutSettings, TlsSettings, address_of
from postbus.server.smtp import SMTP
from postbus.server.timers import Timeouts
from postbus.server.tls import SHUTDOWN_TIMEOUT_S, TlsUnusable, server_context
from postbus.server.users import Passwords
from postbus.smtp.replies import Reply
from postbus.smtp.terms import Limits

ACCEPT_PAUSE_S = 0.5  # out of files: somebody has to hang up first
SEND_BUFFER_OCTETS = 64 * 1024
"""Of replies the kernel keeps for a peer that does not read them. Left to itself it takes 4 MB for each such connection."""
FILES_RESERVED = 128  # of the process's limit on open files: sinks, spool, spilled bodies, the sidecar

Factory = Callable[[], SMTP]


class Listener:
    """Accepts connections on one address and has each served by a *smtp_class* with one handler.

    Attributes:
        name: in logs, metrics and ``session.listener``.
        settings: as given.
        addresses: what it is bound to, ``host:port`` or a path; empty while it is not.
        roster: who is connected; its ``sessions_total`` counts.
    """

    def __init__(
        self,
        handler: Any,
        settings: ListenerSettings | None = None,
        *,
        name: str = "smtp",
        spill_folder: Path | None = None,
        spill_nameless: bool = False,
        smtp_class: type[SMTP] | None = None,
        factory: Factory | None = None,
        gate: Gate | None = None,
        size_octets: Callable[[], int | None] | None = None,
        requiretls: Callable[[], bool] | None = None,
        load: Callable[[], float] | None = None,
        tls_context: ssl.SSLContext | None = None,
        authenticator: AuthenticatorType | None = None,
        sweep_interval_s: float = 1.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Take what it serves with.

        Args:
            handler: an object with ``handle_<VERB>`` hooks.
            settings: where and how to listen; None: the defaults.
            name: of the listener.
            spill_folder: where large content goes, on the file system of whoever takes the files; None: it stays in memory.
            spill_nameless: the files there are open, but have no names: nobody has to take or remove them.
            smtp_class: ``SMTP``, ``LMTP`` or a subclass; None: as ``settings.protocol`` says.
            factory: makes the protocol of each connection, instead of *smtp_class* and *handler*.
            gate: asked before each banner; a reply (421) turns the connection away; ``Refusal`` also says why, in one word.
            size_octets: asked for the largest message taken now; the smaller of it and the settings' is announced.
            requiretls: asked whether what is taken travels on by TLS alone now, so that REQUIRETLS may be offered; None: it does not.
            load: asked how near we are to taking nothing more, 0 to 1; the limits told at EHLO follow from it.
            tls_context: instead of the certificate of the settings.
            authenticator: instead of the user file of the settings.
            sweep_interval_s: how often deadlines are looked at.
            clock: seconds, instead of the loop's, for tests.
        """
        self.name = name
        self.settings = settings or ListenerSettings()
        self.handler = handler
        self.roster: Roster | None = None
        self.addresses: list[str] = []
        self._smtp_class = smtp_class or (LMTP if self.settings.protocol == "lmtp" else SMTP)
        self._factory = factory
        if factory is None:
            Hooks(handler)  # what is wrong with it is better said now than at the first connection
        self._spill_folder = spill_folder
        self._spill_nameless = spill_nameless
        self._gate = gate
        self._size_octets = size_octets
        self._requiretls = requiretls
        self._load = load
        self._tls_context = tls_context
        self._passwords = Passwords(None)
        self._authenticator = authenticator
        self._auth_parameters: dict[str, Any] = {}
        self._sweep_interval_s = sweep_interval_s
        self._clock = clock
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._accepts_from: socket.socket | None = None
        self._handshakes: dict[asyncio.Task[None], Callable[[], None] | None] = {}
        """Each with what is to be done for it if it ends before it began, as one that is cancelled before its first step does."""
        self._watches: list[Callable[[], None]] = []

    @property
    def sessions(self) -> int:
        """How many sessions are open."""
        return 0 if self.roster is None else len(self.roster.connections)

    @property
    def clients(self) -> int:
        """How many client networks are known: connected, or remembered for their rates."""
        return 0 if self.roster is None else len(self.roster.clients)

    @property
    def tls_context(self) -> ssl.SSLContext | None:
        """The context of handshakes that start now."""
        return self._tls_context

    @property
    def sockets(self) -> tuple[Any, ...]:
        """The listening sockets; empty while it does not listen."""
        if not self.addresses:
            return ()
        return (self._accepts_from,) if self._server is None else tuple(self._server.sockets)

    async def start(self) -> None:
        """Bind and accept.

        Raises:
            OSError: the address cannot be bound.
            TlsUnusable: certificate and key cannot be used.
            UsersUnusable: the user file cannot be used.
        """
        loop = asyncio.get_running_loop()
        given = self._tls_context is not None or self.settings.tls.mode == "none"
        context = self._tls_context if given else _context_of(self.settings.tls)
        self._tls_context = context
        if self.settings.auth.users is not None:
            self.admit_users(await asyncio.to_thread(users.read, self.settings.auth.users))
        self.roster = Roster(loop, self._terms(), interval_s=self._sweep_interval_s, clock=self._clock)
        self.roster.tls_context = context
        address = address_of(self.settings.address)
        if isinstance(address, Path):
            await self._bind_path(loop, address)
        else:
            await self._bind_port(loop, *address)
        roster = self.roster
        self._watches = [
            telemetry.watch("postbus_sessions_open", lambda: {(self.name,): len(roster.connections)}),
            telemetry.watch("postbus_clients_known", lambda: {(self.name,): len(roster.clients)}),
        ]

    async def drain(self, deadline_s: float) -> bool:
        """Stop accepting; idle sessions get 421 now, the others once their message has its reply; return whether *deadline_s* was enough.

        After the deadline the rest gets 421 and is cut. Ends the listener; it cannot be started again.
        """
        self.stop_accepting()
        if self.roster is None:
            return True
        open_at_start = self.sessions
        in_time = await self.roster.drain(deadline_s)
        telemetry.listener_drained(listener=self.name, sessions=open_at_start, in_time=in_time)
        await self._closed()
        return in_time

    async def close(self) -> None:
        """Stop accepting and cut every session."""
        self.stop_accepting()
        if self.roster is not None:
            await self.roster.close()
        await self._closed()

    def stop_accepting(self) -> None:
        """Close the listening sockets, and nothing else."""
        if self._server is not None:
            self._server.close()
        if self._accepting is not None:
            self._accepting.cancel()
        for task in self._handshakes:
            task.cancel()
        if self._path is not None:
            with suppress(OSError):  # whoever removed the path before us has done our work
                self._path.unlink()
            self._path = None
        self.addresses = []

    async def _closed(self) -> None:
        self._passwords.close()
        while self._watches:
            self._watches.pop()()
        accepting, self._accepting = self._accepting, None
        await asyncio.gather(*([accepting] if accepting is not None else []), *self._handshakes, return_exceptions=True)
        if self._accepts_from is not None:  # by whom accepted from it, unless that had not begun
            self._accepts_from.close()
        server, self._server = self._server, None
        if server is not None:
            await server.wait_closed()

    def reload(self, tls: TlsSettings | None = None, *, tls_context: ssl.SSLContext | None = None) -> None:
        """Use a fresh context, from *tls* (None: the same files, read again) or as given, for connections from now on.

        Raises:
            TlsUnusable: the files cannot be used; the old context stays.
        """
        settings = tls or self.settings.tls
        if tls_context is None and settings.mode == "none":
            return
        try:
            context = tls_context or _context_of(settings)
        except TlsUnusable as error:
            telemetry.tls_reloaded(listener=self.name, outcome="failed", error=str(error))
            raise
        self.settings = self.settings.model_copy(update={"tls": settings})
        self._tls_context = context
        if self.roster is not None:
            self.roster.tls_context = context
        telemetry.tls_reloaded(listener=self.name, outcome="done", error=None)

    def admit_users(self, known: users.Users | None) -> None:
        """Let *known* log in from now on, and nobody else; who has authenticated before stays."""
        self._passwords.users = known
        if known is not None:
            telemetry.users_loaded(listener=self.name, users=len(known))

    def reconfigure(
        self, settings: ListenerSettings, *, tls_context: ssl.SSLContext | None = None, known: users.Users | None = None
    ) -> None:
        """Grant what *settings* say to connections from now on: limits, timers, offers, certificates. What was bound stays as it is.

        With a *tls_context* (made of *settings*' files) and the users *known* to their file nothing is read and nothing can fail.

        Raises:
            TlsUnusable: the certificate's files cannot be used; nothing has changed.
            UsersUnusable: the user file cannot be used; nothing has changed.
        """
        if known is None and settings.auth.users is not None:
            known = users.read(settings.auth.users)
        tls = tls_followed(self.settings.tls, settings.tls)
        if tls is not None:
            self.reload(tls, tls_context=tls_context)
        bound = {name: getattr(self.settings, name) for name in ("address", "protocol", "backlog", "socket_mode")}
        self.settings = settings.model_copy(update={**bound, "tls": tls or self.settings.tls})
        self.admit_users(known)
        if self.roster is not None:
            self.roster.grant(self._terms())

    # --- inside

    def _terms(self) -> Terms:
        settings, limits, proxy = self.settings, self.settings.limits, self.settings.proxy
        self._auth_parameters = self._authentication()
        return Terms(
            name=self.name,
            connections_max=connections_within(limits.connections_max, resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
            session_max_octets=limits.session_max_octets,
            limits=Limits(
                mails=limits.messages_max,
                recipients=limits.recipients_max,
                recipient_domains=limits.recipient_domains_max,
                errors=limits.errors_max,
                junk=limits.junk_max,
                unknown=limits.unknown_max,
                auth_failures=settings.auth.failures_max,
                errors_slow=limits.errors_slow,
                junk_slow=limits.junk_slow,
                text_line_octets=limits.line_max_octets,
            ),
            timeouts=timeouts_of(settings.timeouts),
            offer={
                "stray": settings.stray,
                "chunking": settings.content.chunking,
                "binarymime": settings.content.binarymime,
                "strict_pipelining": settings.strict_pipelining,
                "lenient_paths": settings.lenient_paths,
                "keywords": keywords(settings.announce, settings.parameters),
                "limits": True,
                "deliverby_min_s": settings.parameters.deliverby_min_s if "DELIVERBY" in settings.announce else 0,
                "unregistered": settings.parameters.unregistered,
                **({"auth_tls": not settings.auth.allow_plaintext} if self._auth_parameters else {}),
            },
            stray_allowed_from=networks_of(settings.content.stray_allowed_from),
            auth_failure_delay_s=settings.auth.failure_delay_s,
            implicit_tls=settings.tls.mode == "implicit",
            spill_folder=self._spill_folder,
            spill_nameless=self._spill_nameless,
            spill_threshold_octets=settings.spill_threshold_octets,
            gate=self._gate,
            clients=settings.clients,
            pipelining_exempt=networks_of(settings.clients.pipelining_exempt),
            size_octets=self._size_octets,
            header=HeaderTerms(networks_of(proxy.trusted), proxy.header_timeout_s) if proxy.header else None,
            xclient=networks_of(proxy.xclient),
            xforward=networks_of(proxy.xforward),
            requiretls=self._requiretls,
            load=self._load,
        )

    def _authentication(self) -> dict[str, Any]:
        """Return what AUTH adds to the parameters of ``SMTP``; nothing where there is none, since a class need not know of it."""
        auth = self.settings.auth
        mechanisms = auth.offered(certificates=self.settings.tls.client_ca is not None)
        if self._authenticator is not None:
            mechanisms = auth.mechanisms
        if self._factory is not None or not (mechanisms or auth.required):
            return {}
        return {
            "authenticator": self._authenticator or self._passwords,
            "auth_mechanisms": mechanisms,
            "auth_required": auth.required,
        }

    def _make(self, client: Client | None = None) -> SMTP:
        """Return the protocol of one new connection; *client*: whom it has been counted for."""
        assert self.roster is not None
        if self._factory is not None:
            server = self._factory()
        else:
            settings = self.settings
            server = self._smtp_class(
                self.handler,
                data_size_limit=settings.limits.message_max_octets,
                enable_SMTPUTF8=settings.smtputf8,
                hostname=settings.hostname,
                ident=settings.ident,
                tls_context=self._tls_context,
                require_starttls=settings.tls.mode == "require",
                loop=self.roster.loop,
                **self._auth_parameters,
            )
        server.join(self.roster)
        server.client = client
        return server

    async def _bind_port(self, loop: asyncio.AbstractEventLoop, host: str, port: int) -> None:
        if self.settings.tls.mode == "implicit":
            family = socket.AF_INET6 if ":" in host or (not host and socket.has_dualstack_ipv6()) else socket.AF_INET
            bound = socket.create_server(
                (host, port), family=family, backlog=self.settings.backlog, dualstack_ipv6=not host and socket.has_dualstack_ipv6()
            )
            _bound_replies(bound)
            self._accept_from(loop, bound)
            self.addresses = [_shown(bound.getsockname())]
            return
        self._server = await loop.create_server(
            self._make, host or None, port, backlog=self.settings.backlog, reuse_address=True, start_serving=False
        )
        for bound in self._server.sockets:
            with socket.socket(fileno=os.dup(bound.fileno())) as twin:  # uvloop lends what is not quite a socket
                _bound_replies(twin)
        await self._server.start_serving()
        self.addresses = [_shown(bound.getsockname()) for bound in self._server.sockets]

    async def _bind_path(self, loop: asyncio.AbstractEventLoop, path: Path) -> None:
        bound = bind_path(path, self.settings.socket_mode)
        self._path = path
        self.addresses = [str(path)]
        if self.settings.tls.mode == "implicit":
            bound.listen(self.settings.backlog)
            self._accept_from(loop, bound)
        else:
            self._server = await loop.create_unix_server(self._make, sock=bound, backlog=self.settings.backlog)

    # --- implicit TLS: we accept by ourselves, so that handshakes are counted, limited and cut like sessions

    def _accept_from(self, loop: asyncio.AbstractEventLoop, bound: socket.socket) -> None:
        bound.setblocking(False)
        self._accepts_from = bound
        self._accepting = loop.create_task(self._accept(loop, bound))

    async def _accept(self, loop: asyncio.AbstractEventLoop, bound: socket.socket) -> None:
        """Accept until cancelled; running out of files only makes a pause."""
        with bound:
            while True:
                await asyncio.sleep(0)  # sock_accept does not yield while somebody waits, and a flood of them would have the loop
                try:
                    peer, address = await loop.sock_accept(bound)
                except OSError as error:
                    telemetry.accept_failed(listener=self.name, error=str(error))
                    await asyncio.sleep(ACCEPT_PAUSE_S)
                    continue
                assert self.roster is not None
                client: Client | Reply | None = self.roster.turn_away(len(self._handshakes), address)
                if client is None and self.roster.terms.header is None:  # behind a proxy its client is met, once that is known
                    client = self.roster.meet(address)
                if isinstance(client, Reply):
                    peer.close()  # a 421 would have to be said inside TLS
                    continue
                task = loop.create_task(self._shake_hands(loop, peer, client))
                self._handshakes[task] = partial(self._give_back, peer, client)
                task.add_done_callback(self._shaken)

    def _shaken(self, task: asyncio.Task[None]) -> None:
        give_back = self._handshakes.pop(task)
        if give_back is not None:
            give_back()

    def _give_back(self, peer: socket.socket, client: Client | None) -> None:
        """Let *peer* go, and its place in the counts of *client*."""
        peer.close()
        if client is not None and self.roster is not None:
            self.roster.part(client)

    async def _shake_hands(self, loop: asyncio.AbstractEventLoop, peer: socket.socket, client: Client | None) -> None:
        """Begin TLS with *peer*, counted for *client*, behind its PROXY header if there is one; then tell the protocol."""
        roster, task = self.roster, asyncio.current_task()
        assert roster is not None
        assert task is not None
        self._handshakes[task] = None  # from here on both are ours
        who: Any = ""
        server: SMTP | None = None
        try:
            who = peer.getpeername()
            made = server = self._make(client)
            header = roster.terms.header or server.header_terms
            if header is not None:
                server.proxied = await self._header(loop, peer, who, header)
                if server.proxied is None:
                    return
            await loop.connect_accepted_socket(
                lambda: made,
                peer,
                ssl=self._tls_context,
                ssl_handshake_timeout=roster.terms.timeouts.handshake_s,
                ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S,
            )
        except (OSError, TimeoutError) as error:
            peer.close()
            why = getattr(error, "reason", None) or type(error).__name__
            telemetry.tls_failed(listener=self.name, peer=str(who[0] if isinstance(who, tuple) else who), error=str(why))
        finally:
            if server is None:
                if client is not None:
                    roster.part(client)
            elif server.transport is None and not server.finished:  # the handshake was the end of it
                roster.leave(server)

    async def _header(self, loop: asyncio.AbstractEventLoop, peer: socket.socket, who: Any, terms: HeaderTerms) -> ProxyData | None:
        """Take the PROXY header from *peer*; None: it is closed, having none that will do."""
        reason, error = "untrusted", ""
        try:
            if terms.trusted is None or who in terms.trusted:
                found = await read_header(loop, peer, terms.timeout_s)
                if found:
                    return found
                reason, error = ("lost", "") if found is None else ("malformed", found.error)
        except TimeoutError:
            reason = "timeout"
        except OSError:
            reason = "lost"
        except asyncio.CancelledError:
            peer.close()
            raise
        peer.close()
        refused(self.name, who, reason, error)
        return None


def _bound_replies(bound: socket.socket) -> None:
    """Bound what the kernel keeps of replies, for each connection that *bound*, a TCP socket, will accept: they inherit it."""
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_OCTETS)


UPGRADES = frozenset({("none", "starttls"), ("none", "require"), ("starttls", "require"), ("require", "starttls")})
"""Changes of ``tls.mode`` that the next connections follow. Implicit TLS is accepted differently, and TLS once given stays."""


def tls_followed(old: TlsSettings, new: TlsSettings) -> TlsSettings | None:
    """Return what a listener that goes by *old* makes of *new*: all of it, its files with the old mode, or None: nothing.

    A socket bound for plain connections that took them for encrypted ones would ask for passwords in clear, so no mode is followed halfway.
    """
    if old.mode == new.mode or (old.mode, new.mode) in UPGRADES:
        return new
    return None if "none" in {old.mode, new.mode} else new.model_copy(update={"mode": old.mode})


def bind_path(path: Path, mode: int) -> socket.socket:
    """Return a Unix socket bound to *path*, with permissions *mode*; what a killed process left there is removed.

    Raises:
        OSError: something else is there, or the folder cannot be written.
    """
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        if _listened_at(path):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        path.unlink()
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(str(path))
        path.chmod(mode)
    except OSError:
        bound.close()
        raise
    return bound


def _listened_at(path: Path) -> bool:
    """Return whether a living process listens at the socket *path*: TCP says so at bind, a Unix socket would be taken from it silently."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full queue is an answer too
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True


def connections_within(wanted: int, files: int) -> int:
    """Return how many connections a process with *files* open files may have: accepting until none is left stops everything else too."""
    if files < 0:  # no limit
        return wanted
    return max(1, min(wanted, files - min(FILES_RESERVED, files // 2)))


def timeouts_of(settings: TimeoutSettings) -> Timeouts:
    """Return the timers' form of *settings*."""
    return Timeouts(
        handshake_s=settings.handshake_timeout_s,
        command_s=settings.command_timeout_s,
        data_s=settings.data_timeout_s,
        data_rate_octets_s=settings.data_rate_min_octets_s,
        transaction_s=settings.transaction_timeout_s,
        session_s=settings.session_timeout_s,
        answer_s=settings.answer_timeout_s,
        greet_delay_s=settings.greet_delay_s,
        error_delay_s=settings.error_delay_s,
    )


def _context_of(tls: TlsSettings) -> ssl.SSLContext:
    assert tls.certificate is not None  # the settings say so
    return server_context(tls.certificate, tls.key, tls.client_ca, client_required=tls.client_certificate == "required")


def _shown(name: tuple[Any, ...]) -> str:
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
