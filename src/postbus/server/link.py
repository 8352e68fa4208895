"""The transport's side of a connection: reading paused and resumed, limits told, the last word, the end.

Reading is paused for any of the reasons ``TURN`` ... ``UPGRADE``, a set of bits: the transport reads while none is set.

The end has three ways in, in any order, often two of them: the engine closes, the transport is lost, a TLS handshake fails (after which
``connection_lost`` may never come). All lead to ``finish``, which acts once.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, final

from mypy_extensions import mypyc_attr

from postbus import telemetry
from postbus.server import limits
from postbus.server.clients import Client
from postbus.server.roster import SHUTTING_DOWN, Roster
from postbus.server.timers import Timed
from postbus.smtp.engine import Engine
from postbus.smtp.replies import Reply

TURN_OCTETS: Final = 256 * 1024  # per connection and loop turn: one fast peer otherwise gets 8 MB of uvloop's turn
LINGER_OCTETS: Final = 1024 * 1024  # read and dropped after the last word, so that the kernel does not reset it away

# Why reading is paused.
TURN: Final = 1  # the budget of this turn is spent
BUSY: Final = 2  # an answer is owed
DISK: Final = 4  # the disk is behind
PEER: Final = 8  # the peer does not read
UPGRADE: Final = 16  # TLS is being started


@mypyc_attr(allow_interpreted_subclasses=True)
class Link(Timed):
    """One peer's transport, the engine that speaks over it, and the roster it belongs to.

    Attributes:
        transport: None before the connection is made and after it has ended.
        engine: the protocol.
        roster: whom it belongs to.
        busy: an answer is owed that is not ready.
        finished: it has ended for good.
        client: the network that its limits are counted for; None: it is spared.
        limit: the last limit it ran into, a word of ``limits``; ``""``: none.
        reason: why it ended, or is about to: one of a few words, for logs and metrics.
    """

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_half_closed",
        "_octets_before",
        "_paused",
        "_turn_octets",
        "busy",
        "client",
        "engine",
        "finished",
        "loop",
        "reason",
        "roster",
        "transport",
    )

    engine: Engine
    roster: Roster

    # What few connections ever set is, in plain Python, the class' until then: instances beyond 512 octets are malloc's, which is slow.
    limit: str = ""
    _farewell: tuple[Reply, str] | None = None
    _linger_octets: int = 0

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(0.0)
        self.loop = loop
        self.transport: asyncio.Transport | None = None
        self.busy = False
        self.finished = False
        self.reason = ""
        self.client: Client | None = None
        self._half_closed = False
        self._turn_octets = 0
        self._octets_before = 0
        self._paused = 0

    # --- what a connection adds

    def ended(self, error: Exception | None) -> None:
        """It is over; called once."""
        raise TypeError(f"{type(self).__name__} ends nothing") from error

    def tls_failed(self, error: Exception | None) -> None:
        """A handshake failed, or its peer left; called before ``ended``."""

    def _end_tasks(self) -> None:
        """Let nothing go on that is of use to the peer alone."""

    # --- octets

    def flush(self) -> None:
        """Send what the engine has to say."""
        out = self.engine.bytes_to_send()
        if out and self.transport is not None:
            self.transport.write(out)

    @property
    def octets(self) -> int:
        """Received so far."""
        return self._octets_before + self._turn_octets

    def _end_turn(self) -> None:
        self._octets_before += self._turn_octets
        self._turn_octets = 0
        self.pause(TURN)
        self.loop.call_soon(self.resume, TURN)
        if self.closing_at is not None or self.finished:
            self._linger_octets += TURN_OCTETS
            if self._linger_octets > LINGER_OCTETS and self.transport is not None:
                self.transport.abort()
            return
        if 0 < self.roster.terms.session_max_octets < self._octets_before and self._farewell is None:
            self.take_leave(limits.SESSION_TOO_BIG, "limit")

    @final
    def pause(self, reason: int) -> None:
        """Stop reading for *reason*."""
        if not self._paused and self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()
        self._paused |= reason

    @final
    def resume(self, reason: int) -> None:
        """*reason* holds no longer: read again if it was the last."""
        if self._paused & reason:
            self._paused &= ~reason
            if not self._paused and self.transport is not None and not self.transport.is_closing():
                self.transport.resume_reading()

    # --- limits

    def peer_changed(self, peer: Any) -> Reply | None:
        """The connection is about *peer* from now on: its client network's limits are asked anew; return the reply that refuses it.

        For PROXY and XCLIENT; other connections are about whom they come from.
        """
        client, self.client = self.client, None
        if client is not None:
            self.roster.part(client)
        met = self.roster.meet(peer)
        if isinstance(met, Reply):
            return met
        self.client = met
        return None

    def limited(self, limit: str) -> None:
        """The peer has run into *limit*, a word of ``limits``."""
        self.limit = limit
        telemetry.limit_hit(listener=self.roster.terms.name, limit=limit)

    def _count_limit(self, reply: Reply) -> None:
        """If *reply* says that a limit was hit, tell."""
        limit = limits.OF_REPLY.get(reply)
        if limit is not None:
            self.limited(limit)

    # --- the end

    def drain(self) -> None:
        """Say 421 if nothing is under way; else the pump will, once it is done."""
        self.take_leave(SHUTTING_DOWN, "drain")

    def take_leave(self, reply: Reply, reason: str) -> None:
        """Say *reply* as the last word as soon as no transaction is under way and nothing is owed: now, or once the pump comes to it."""
        self._farewell = (reply, reason)
        owing = self.busy and self.pause_until is None
        if self.finished or self.closing_at is not None or owing or self._paused & UPGRADE or self.engine.in_transaction:
            return
        self.refuse(reply, reason)

    def _say_farewell(self, reply: Reply, reason: str) -> None:
        self.reason = reason
        self._count_limit(reply)
        self.engine.refuse(reply)

    def refuse(self, reply: Reply, reason: str) -> None:
        """Say *reply* unasked, as the last word, and hang up."""
        if self.finished or self.closing_at is not None:
            return
        if self._paused & UPGRADE:
            self.abort(reason)
            return
        self._say_farewell(reply, reason)
        self.flush()
        self.hang_up(reason)

    def hang_up(self, reason: str) -> None:
        """Close once everything is sent.

        Input that nobody will read makes the kernel reset the connection, and the reset destroys our last words on their way: so, but
        for QUIT, only our half is closed first, and the peer has ``linger_s`` to close the other.
        """
        transport = self.transport
        self.reason = self.reason or reason
        if transport is None or transport.is_closing() or self.closing_at is not None:
            return
        self.closing_at = self.roster.sweep.now  # closing waits for the peer to read
        if reason == "quit" or self._half_closed or self._paused & PEER or not transport.can_write_eof():
            transport.close()
            return
        self.resume(self._paused)
        try:
            transport.write_eof()
        except OSError:  # the stdlib's loop, when the peer has reset the connection and nobody knows yet
            transport.abort()

    def drop(self, reason: str) -> None:
        """Close without a word."""
        self.reason = self.reason or reason
        if self.transport is not None:
            self.transport.close()
        self.finish(None)

    def abort(self, reason: str) -> None:
        """Cut the connection now."""
        self.reason = self.reason or reason
        if self.transport is not None:
            self.transport.abort()
        self.finish(None)

    def finish(self, error: Exception | None) -> None:
        """Leave the roster and tidy up, once, whoever calls first."""
        if self.finished:
            return
        self.finished = True
        try:
            if self._paused & UPGRADE:
                self.tls_failed(error)
            self._end_tasks()
            self.ended(error)
        finally:
            self.roster.leave(self)
            self.transport = None
