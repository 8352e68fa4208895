"""The connections of one listener, and what they share: limits, threads, the sweep, the drain.

A connection is admitted here before its banner and leaves here once, when it has ended for good.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import ssl
import weakref
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from postbus import telemetry
from postbus.server.body import NamelessFile
from postbus.server.client_settings import ClientSettings
from postbus.server.clients import Client, Clients, Refusal
from postbus.server.networks import Networks
from postbus.server.preface import HeaderTerms, Preface
from postbus.server.timers import Sweep, Timeouts
from postbus.smtp.replies import Reply
from postbus.smtp.terms import Limits

if TYPE_CHECKING:
    from postbus.server.connection import Connection
    from postbus.server.envelope import Envelope
    from postbus.server.link import Link
    from postbus.server.plan import Plan

Gate = Callable[[], Reply | Refusal | None]
"""Says before each banner whether a connection can be served now: None if so."""

TOO_MANY_CONNECTIONS = Reply(421, "Too many connections, try again later", "4.3.2")
SHUTTING_DOWN = Reply(421, "Service shutting down, try again", "4.3.2")
CROWDED = Refusal(TOO_MANY_CONNECTIONS, "crowded")
LEAVING = Refusal(SHUTTING_DOWN, "draining")

DISK_THREADS = 4
KEPT_FILES_MAX = 64
"""Descriptors for the content of envelopes that handlers keep after their answer."""
LAST_WORD_S = 1.0  # for the 421s to leave before connections are cut
NOBODY = Networks()


@dataclass(frozen=True, slots=True)
class Terms:
    """What a listener grants each connection.

    Attributes:
        name: the listener's, for logs and metrics.
        connections_max, session_max_octets: 0 or less: no limit.
        limits: of the engine.
        offer: fields of ``smtp.terms.Offer`` that the listener decides.
        stray_allowed_from: peers to whom ``stray`` is ``allow``.
        spill_folder: where content beyond *spill_threshold_octets* goes; None: it stays in memory.
        spill_nameless: the files there have no names, so none outlives its process and handlers may keep them, but cannot take them.
        auth_failure_delay_s: before the answer to a failed AUTH, times the number of failures so far.
        gate: asked before each banner; a reply, or one with the word that says why, refuses the connection.
        clients: what each client network may ask for; None: anything.
        pipelining_exempt: who may talk out of turn.
        size_octets: asked for the largest message taken now, at each connection.
        header: each connection begins with a PROXY header, whose client is the session's peer; None: none does.
        xclient, xforward: who may send these commands.
        requiretls: asked whether REQUIRETLS can be kept now (RFC 8689), at each connection.
        load: asked how near we are to taking nothing more, 0 to 1, at each EHLO; see ``pressure``.
    """

    name: str = "smtp"
    connections_max: int = 0
    session_max_octets: int = 0
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    offer: dict[str, Any] = field(default_factory=dict)
    stray_allowed_from: Networks = field(default_factory=Networks)
    implicit_tls: bool = False
    spill_folder: Path | None = None
    spill_threshold_octets: int = 256 * 1024
    spill_nameless: bool = False
    auth_failure_delay_s: float = 2.0
    gate: Gate | None = None
    clients: ClientSettings | None = None
    pipelining_exempt: Networks = NOBODY
    size_octets: Callable[[], int | None] | None = None
    header: HeaderTerms | None = None
    xclient: Networks = NOBODY
    xforward: Networks = NOBODY
    requiretls: Callable[[], bool] | None = None
    load: Callable[[], float] | None = None


class Roster:
    """Who is connected.

    Attributes:
        terms: what each connection is granted; replaced as a value.
        tls_context: for handshakes that start from now on; None: no TLS.
        connections: the open ones.
        prefaces: connections whose PROXY header is awaited.
        work: tasks that outlive their connection: hooks at work when the peer left or our answer came too late.
        sessions_total: connections admitted so far.
        clients: the client networks that are limited.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, terms: Terms, *, interval_s: float = 1.0, clock: Callable[[], float] | None = None
    ) -> None:
        self.loop = loop
        self.terms = terms
        self.clients = Clients(terms.clients or ClientSettings())
        self.tls_context: ssl.SSLContext | None = None
        self.connections: set[Connection] = set()
        self.prefaces: set[Preface] = set()
        self.work: set[asyncio.Task[Any]] = set()
        self.sessions_total = 0
        self.draining = False
        self.plan: Plan | None = None
        self.sweep = Sweep(loop, self._look, interval_s=interval_s, clock=clock)
        self._pool: ThreadPoolExecutor | None = None
        self._kept_files: weakref.WeakSet[NamelessFile] = weakref.WeakSet()
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._empty: asyncio.Future[None] | None = None

    def grant(self, terms: Terms) -> None:
        """Give connections from now on *terms*."""
        self.terms = terms
        self.clients.follow(terms.clients or ClientSettings())
        self.plan = None  # it was made from the old terms

    # --- coming and going

    def admit(self, connection: Connection, peer: Any = None) -> Reply | None:
        """Enter *connection*, or return the reply that refuses it.

        Args:
            connection: enters.
            peer: whom it is about; None: ``connection.peer_changed`` has been, or will be, told.
        """
        refusal = self.turn_away(0, peer)
        if refusal is None and peer is not None and self.terms.clients is not None:
            met = self.clients.enter(peer, self.sweep.clock())
            if isinstance(met, Refusal):
                refusal = self._refused(met, peer)
            else:
                connection.client = met
        if refusal is not None:
            return refusal
        if not self.connections:
            self.sweep.run()
        self.connections.add(connection)
        self.sessions_total += 1
        return None

    def turn_away(self, handshakes: int, peer: Any = None) -> Reply | None:
        """Return the reply that refuses another connection now, beside those here and *handshakes* that may become some."""
        terms = self.terms
        refusal: Reply | Refusal | None = None
        if self.draining:
            refusal = LEAVING
        elif 0 < terms.connections_max <= len(self.connections) + len(self.prefaces) + handshakes:
            refusal = CROWDED
        elif terms.gate is not None:
            refusal = terms.gate()
        if refusal is None:
            return None
        return self._refused(refusal if isinstance(refusal, Refusal) else Refusal(refusal, "gate"), peer)

    def meet(self, peer: Any) -> Client | Reply | None:
        """Count a connection of *peer* for its client network, to be given to ``part`` later; or return the reply that refuses it.

        None: its network is not limited.
        """
        if self.terms.clients is None:
            return None
        met = self.clients.enter(peer, self.sweep.clock())
        return self._refused(met, peer) if isinstance(met, Refusal) else met

    def part(self, client: Client) -> None:
        """One connection that ``meet`` counted for *client* is over."""
        self.clients.leave(client, self.sweep.clock())

    def _refused(self, refusal: Refusal, peer: Any) -> Reply:
        who = str(peer[0] if isinstance(peer, tuple) and peer else peer or "")
        telemetry.connection_refused(listener=self.terms.name, reason=refusal.reason, code=refusal.reply.code, peer=who)
        return refusal.reply

    def expect(self, preface: Preface) -> None:
        """Give *preface* its time to become a connection."""
        self.sweep.run()
        self.prefaces.add(preface)

    def unexpect(self, preface: Preface) -> None:
        """*preface* has become a connection, or nothing."""
        self.prefaces.discard(preface)
        if not self.connections:
            self._idle()

    def leave(self, link: Link) -> None:
        """The connection of *link* has ended."""
        client, link.client = link.client, None
        if client is not None:
            self.part(client)
        self.connections.discard(cast("Connection", link))
        if not self.connections:
            self._idle()

    def new_id(self) -> str:
        """Return a session id: short, unique in this process, very likely anywhere."""
        return f"{self._prefix}{next(self._numbers):06x}"

    # --- shared means

    @property
    def pool(self) -> ThreadPoolExecutor:
        """Threads for disk work, made on first use."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix=f"{self.terms.name}-spill")
        return self._pool

    def unlink(self, path: Path) -> None:
        """Unlink *path* in a thread."""
        self.pool.submit(path.unlink, True)

    def part_with(self, envelope: Envelope) -> None:
        """The message of *envelope*, which is in a file, has its answer.

        A file with a name is unlinked: a handler has to take it. One without stays for whoever keeps the envelope, but beyond
        KEPT_FILES_MAX of them content that is kept goes to memory, so that descriptors do not run out.
        """
        body = envelope.body
        if body is None or not self.terms.spill_nameless:
            if body is not None:
                body.discard()
            return
        self.pool.submit(self._keep_file, weakref.ref(envelope))  # later, so that what nobody keeps is gone by then

    def _keep_file(self, kept: weakref.ref[Envelope]) -> None:
        """See what to do with content that is *kept*, in a thread."""
        envelope = kept()
        body = None if envelope is None else envelope.body
        file = None if body is None else body.file
        if body is None or file is None:
            return
        if len(self._kept_files) < KEPT_FILES_MAX:
            self._kept_files.add(file)
            return
        with suppress(OSError):  # a disk that fails now fails whoever reads the content
            body.load()

    def keep(self, task: asyncio.Task[Any]) -> None:
        """Hold on to *task* until it is done."""
        self.work.add(task)
        task.add_done_callback(self._worked)

    def spawn(self, work: Awaitable[Any]) -> None:
        """Run *work* in a task of its own, and hold on to it."""
        self.keep(self.loop.create_task(_run(work)))

    def _worked(self, task: asyncio.Task[Any]) -> None:
        self.work.discard(task)
        if not self.connections:
            self._idle()

    # --- time

    def _look(self, now: float, passed_s: float) -> None:
        """Tell every connection of which a deadline has passed."""
        timeouts = self.terms.timeouts
        for connection in tuple(self.connections):
            lapse = connection.lapse(now, passed_s, connection.octets, timeouts)
            if lapse is not None:
                connection.lapsed(lapse)
        for preface in tuple(self.prefaces):
            if now >= preface.deadline:
                preface.expire()

    def _idle(self) -> None:
        """Nobody is connected."""
        if not self.prefaces:
            self.sweep.stop()
        if self._empty is not None and not self.work and not self._empty.done():
            self._empty.set_result(None)

    # --- the end

    async def drain(self, deadline_s: float) -> bool:
        """Let messages in transfer finish, say 421 to everybody else, wait; return whether all left by themselves in *deadline_s*.

        Whoever is left then gets 421 and is cut; hooks still at work are cancelled.
        """
        self.draining = True
        self._close_prefaces()
        for connection in tuple(self.connections):
            connection.drain()
        in_time = await self._emptied(deadline_s)
        if not in_time:
            for connection in tuple(self.connections):
                connection.refuse(SHUTTING_DOWN, "drain")
            await self._emptied(LAST_WORD_S)
        await self.close()
        return in_time

    async def close(self) -> None:
        """Cut what is left and let the threads end."""
        self.draining = True
        self._close_prefaces()
        for connection in tuple(self.connections):
            connection.abort("drain")
        work = tuple(self.work)
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
        self.sweep.stop()
        if self._pool is not None:
            pool, self._pool = self._pool, None
            await self.loop.run_in_executor(None, pool.shutdown)

    def _close_prefaces(self) -> None:
        for preface in tuple(self.prefaces):
            preface.close()

    async def _emptied(self, within_s: float) -> bool:
        if not self.connections and not self.work:
            return True
        self._empty = self.loop.create_future()
        try:
            async with asyncio.timeout(within_s):
                await self._empty
        except TimeoutError:
            return False
        finally:
            self._empty = None
        return True


async def _run(work: Awaitable[Any]) -> Any:
    return await work
