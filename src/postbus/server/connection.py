"""One connection: bytes to the engine, answers to the peer; the part that knows tasks and TLS, and nothing of mail.

Theory of operation
-------------------
``data_received`` feeds the engine and *pumps*: each event goes to the function that ``acts`` names for its type. That returns

* a ``Reply`` (or a tuple of them): the answer, given in the same call. No task, timer or future is made for it;
* ``Pending``: somebody has to wait. The connection's one long-lived task, made when first needed, does the waiting, so that
  ``asyncio.timeout`` and context variables work in hooks. Meanwhile nothing is parsed, and what arrives pauses reading;
* ``HANDED``: such work is under way already, and has been given the event; or
* None: nothing is owed.

Who owes what: ``busy`` is set from the start of such work to its answer. An answer that takes longer than ``answer_s`` is given for
the hook (451), which is left to finish in a task that no longer belongs to the connection: then ``_shift`` has moved on.
"""

from __future__ import annotations

import asyncio
import inspect
import ssl
import traceback
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, cast, final

from mypy_extensions import mypyc_attr

from postbus import telemetry
from postbus.server import limits
from postbus.server.link import BUSY, PEER, TURN, TURN_OCTETS, UPGRADE, Link
from postbus.server.outcome import Act, Answer, Outcome, Pending, Special, blamed
from postbus.server.preface import HeaderTerms, Preface
from postbus.server.proxy_protocol import ProxyData
from postbus.server.roster import Roster, Terms
from postbus.server.timers import Lapse, Timeouts
from postbus.server.tls import SHUTDOWN_TIMEOUT_S
from postbus.smtp.events import Event, Signal
from postbus.smtp.replies import LOCAL_ERROR, Reply
from postbus.smtp.states import State

TURN_COMMANDS: Final = 100

NEED_DATA: Final = Signal.NEED_DATA  # looking a member up in its class takes 60 ns
PAUSED: Final = Signal.PAUSED

TIMED_OUT = Reply(421, "Timeout, closing connection", "4.4.2")


@mypyc_attr(allow_interpreted_subclasses=True)
class Connection(Link):
    """The asyncio side of a session.

    Attributes:
        acts: what each event of the engine leads to, by its type.
        header_terms: a PROXY header is wanted, though no listener says so (aiosmtpd's ``proxy_protocol_timeout``); None: not.
        proxied: the PROXY header; None: there was none.
        peername: who has connected: as the socket names it, or the client that the PROXY header of a listener's proxy names.
    """

    __slots__ = (
        "_command_timeout_s",
        "_handshake_task",
        "_has_roster",
        "_job",
        "_paid_for",
        "_partial",
        "_pending",
        "_shift",
        "_task",
        "_wake",
        "acts",
        "peername",
    )

    acts: Mapping[type[Any], Act]

    # As in Link: what few connections ever set.
    header_terms: HeaderTerms | None = None
    proxied: ProxyData | None = None

    def __init__(self, loop: asyncio.AbstractEventLoop, command_timeout_s: float = 300) -> None:
        super().__init__(loop)
        self._command_timeout_s = command_timeout_s
        self._has_roster = False
        self.peername: Any = None
        self._paid_for = 0
        self._partial = ""  # lines pushed of a reply whose last one has not come: ``250-...``
        self._shift = 0
        self._task: asyncio.Task[None] | None = None
        self._wake: asyncio.Future[None] | None = None
        self._job: Pending | None = None
        self._pending: Pending | None = None
        self._handshake_task: asyncio.Task[None] | None = None

    # --- what a protocol adds

    def begin(self) -> Outcome:
        """The connection may speak: open the engine, or return work that will."""
        raise TypeError(f"{type(self).__name__} begins nothing")

    def welcome(self) -> Outcome:
        """The peer has waited long enough for its banner."""
        raise TypeError(f"{type(self).__name__} welcomes nobody")

    def secured(self, transport: asyncio.BaseTransport) -> Outcome:
        """TLS has started over *transport*."""
        raise TypeError(f"{type(self).__name__} cannot be secured over {transport!r}")

    def fault(self, pending: Pending, error: Exception) -> Outcome:
        """*pending*'s work raised: return what answers its event."""
        del error
        return pending.settle(pending.event, LOCAL_ERROR)

    def late_answer(self, pending: Pending) -> Answer:
        """Return what the peer is told instead of *pending*'s answer, which is not ready."""
        del pending
        return LOCAL_ERROR

    def unanswered_late(self, pending: Pending) -> None:
        """As ``late_answer``, but the peer is owed none: the method of a raw verb has answered and works on, or content is on its way."""

    def too_late(self, pending: Pending, result: Any) -> None:
        """*pending*'s work is done, but its peer has left or was answered without it. *result* may be the exception it raised."""

    def outlives(self, pending: Pending) -> bool:
        """Return whether *pending*'s work goes on when the peer leaves."""
        del pending
        return False

    # --- asyncio's side

    def join(self, roster: Roster) -> None:
        """Belong to *roster*; before the connection is made."""
        self.roster = roster
        self._has_roster = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit the peer, or turn it away; behind a proxy, once its PROXY header is there."""
        if not self._has_roster:  # a bare protocol, without a listener
            self.join(Roster(self.loop, Terms(timeouts=Timeouts(command_s=self._command_timeout_s))))
        header = self.roster.terms.header or self.header_terms
        if header is not None and self.proxied is None:
            Preface.open(self, cast("asyncio.Transport", transport), header)
            return
        self.transport = cast("asyncio.Transport", transport)
        self.peername = transport.get_extra_info("peername")
        if self.proxied is not None and self.roster.terms.header is not None:
            self.peername = self.proxied.client or self.peername
        refusal = self.roster.admit(self, self.peername if self.client is None else None)
        if refusal is not None:
            self.finished = True
            self.roster.leave(self)
            self.transport.write(refusal.wire)
            self.transport.close()
            return
        self.opened_at = self.waiting_at = self.roster.sweep.now
        try:
            self._act(self.secured(transport) if self.roster.terms.implicit_tls else self.begin())
        except Exception as error:  # noqa: BLE001 - a mistake of ours, or of a subclass
            self.failed(error)

    def data_received(self, data: bytes) -> None:
        """Feed the engine, and act on what it understands."""
        self._turn_octets += len(data)
        if self._turn_octets >= TURN_OCTETS:
            self._end_turn()
        if self.finished or self.closing_at is not None:
            return
        try:
            self.engine.receive(data)
            if self.busy:
                self.pause(BUSY)
            else:
                self.pump()
        except Exception as error:  # noqa: BLE001 - the top of a callback: a mistake of ours ends this session and no other
            self.failed(error)

    def eof_received(self) -> bool | None:
        """Keep a half-open connection as long as something is owed to its other half."""
        self._half_closed = True
        if self.transport is None or self.closing_at is not None:
            return None
        if self.transport.can_write_eof() and (self.busy or self._paused):
            return True
        self.closing_at = self.roster.sweep.now  # the transport closes itself once its buffer is empty, if the peer reads
        return None

    def pause_writing(self) -> None:
        """The peer does not read: take no more commands from it."""
        self.pause(PEER)

    def resume_writing(self) -> None:
        """The peer reads again."""
        self.resume(PEER)
        if not self.busy and not self.finished:
            self.pump()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing comes or goes any more."""
        self.finish(exc)

    # --- the pump

    @final
    def pump(self) -> None:
        """Act on every event there is, up to TURN_COMMANDS answers."""
        if self._paused & PEER:
            return
        engine = self.engine
        tally = engine.tally
        acts = self.acts
        left = TURN_COMMANDS
        event: Event | Signal
        while True:
            if tally.nuisances != self._paid_for and self._slow_down():
                event = PAUSED
                break
            event = engine.next_event()
            act = acts.get(type(event))
            if act is None:
                break
            outcome = act(self, event)
            if outcome is None:
                continue
            if type(outcome) is Pending:
                self._start(outcome)
                break
            if type(outcome) is Special:
                break
            more = engine.answer(cast("Answer", outcome))
            if self._farewell is not None and not engine.in_transaction:
                self._say_farewell(*self._farewell)
            elif not more:
                event = NEED_DATA
                break
            left -= 1
            if not left:
                self.pause(TURN)
                self.busy = True
                self.loop.call_soon(self._next_turn)
                break
        out = engine.bytes_to_send()
        if out and self.transport is not None:
            self.transport.write(out)
            self.waiting_at = self.roster.sweep.now
        if event is not NEED_DATA or self._half_closed:
            self._settle(event)

    @final
    def _settle(self, event: Any) -> None:
        """See whether the conversation is over, or TLS begins."""
        if event is Signal.CLOSED:
            last_word = self.engine.last_word if self.reason != "quit" else None
            if last_word is not None and limits.OF_REPLY.get(last_word) != self.limit != limits.EARLY:  # else it is counted already
                self._count_limit(last_word)
            self.hang_up(self.reason or "refused")
        elif self._paused & UPGRADE and self._handshake_task is None and self.engine.state is State.UPGRADING:
            self.upgrade()
        elif self._half_closed and event is Signal.NEED_DATA and self.transport is not None:
            self.hang_up("eof")

    def _act(self, outcome: Outcome) -> None:
        """Do for one *outcome* what ``pump`` does for many."""
        if isinstance(outcome, Pending):
            self._start(outcome)
            self.flush()
            return
        self._give(outcome)
        self.pump()

    @final
    def _give(self, outcome: Outcome) -> None:
        """Answer with *outcome*, if it is an answer; and if this was the last one before a drain's end, say so."""
        if isinstance(outcome, Reply | tuple):
            self.engine.answer(self._completed(outcome) if self._partial else outcome)
        if self._farewell is not None and not self.engine.in_transaction:
            self._say_farewell(*self._farewell)

    def _completed(self, answer: Answer) -> Answer:
        """Return *answer* behind the lines pushed ahead of it, ``250-...``; but for those of another code (RFC 5321 s4.2.1)."""
        begun, self._partial = self._partial, ""
        first, *rest = answer if isinstance(answer, tuple) else (answer,)
        try:
            whole = replace(Reply.parse(f"{begun}{first}"), close=first.close)
        except ValueError:
            return answer
        return (whole, *rest) if isinstance(answer, tuple) else whole

    def _next_turn(self) -> None:
        self.busy = False
        if self.finished:
            return
        self._give(None)
        self.pump()
        if not self.busy:
            self.resume(TURN | BUSY)
        elif self._pending is not None:  # the pump has met work that waits, and nobody else ends the turn
            self.resume(TURN)

    # --- work that waits

    @final
    def _start(self, pending: Pending) -> None:
        """Have the connection's task do *pending*'s work."""
        self.busy = True
        self.owing_at = self.roster.sweep.now
        self._job = self._pending = pending
        if self._task is None:
            self._task = self.loop.create_task(self._work(self._shift))
        elif self._wake is not None:
            wake, self._wake = self._wake, None
            if not wake.done():
                wake.set_result(None)

    async def _work(self, shift: int) -> None:
        """Do one job after the other, until the connection ends or an answer comes too late."""
        try:
            while self._job is not None:
                pending, self._job = self._job, None
                outcome = await self.resolve(pending, shift)
                if outcome is Special.GONE:
                    return
                self.busy = False
                self.owing_at = None
                self._pending = None
                self._give(outcome)
                self.pump()
                self.resume(BUSY)
                await self._rest()
        except Exception as error:  # noqa: BLE001 - the top of a task: a mistake of ours ends this session and no other
            self.failed(error)

    @final
    async def _rest(self) -> None:
        """Wait for the next job, unless the pump has brought one or the connection is over."""
        if self._job is None and not self.finished:
            self._wake = self.loop.create_future()
            await self._wake

    @final
    async def resolve(self, outcome: Outcome, shift: int) -> Outcome:
        """Wait until *outcome* is an answer. GONE: the peer has left, or was answered without it since *shift*."""
        while isinstance(outcome, Pending):
            self._pending = pending = outcome
            result: Any = None
            fault: Exception | None = None
            try:
                result = await pending.work
            except (Exception, asyncio.CancelledError) as error:
                task = asyncio.current_task(self.loop)
                if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                    self.too_late(pending, error)
                    raise
                fault = blamed(error)
            if shift != self._shift or self.finished or self.closing_at is not None:
                self.too_late(pending, fault or result)
                return Special.GONE
            outcome = pending.settle(pending.event, result) if fault is None else self.fault(pending, fault)
            fault = None  # its traceback has this frame, and so would keep the mail until the garbage collector comes
        return outcome

    def failed(self, error: Exception) -> None:
        """We made a mistake: log it, end the session."""
        telemetry.session_failed(
            listener=self.roster.terms.name, error=type(error).__name__, traceback="".join(traceback.format_exception(error))
        )
        self.abort("failed")

    # --- limits

    def _slow_down(self) -> bool:
        """Answer a peer slower that makes many mistakes, or wants much but mail; return whether it has to wait.

        No task waits. What it sends meanwhile is not looked at, and beyond what one read brings, not read.
        """
        self._paid_for = self.engine.nuisances
        delay_s = self.roster.terms.timeouts.error_delay_s
        if self.client is None or not delay_s:
            return False
        self.limited(limits.SLOWED)
        self.hold(delay_s)
        return True

    def hold(self, delay_s: float) -> None:
        """Let the peer wait for *delay_s* and up to a sweep."""
        self.busy = True
        self.pause_until = self.roster.sweep.clock() + delay_s

    def _go_on(self) -> None:
        """The peer has waited long enough."""
        self.pause_until = None
        self.waiting_at = self.roster.sweep.now
        if self.engine.state is not State.OPENING:
            self._next_turn()
            return
        self.busy = False
        self._act(self.welcome())
        if not self.busy:
            self.resume(BUSY)

    # --- deadlines

    def lapsed(self, lapse: Lapse) -> None:
        """The sweep found that a deadline has passed."""
        try:
            if lapse is Lapse.LINGER:
                self.abort(self.reason)
            elif lapse is Lapse.ANSWER:
                self._answer_late()
            elif lapse is Lapse.PAUSE:
                self._go_on()
            else:
                self.limited(limits.OF_LAPSE[lapse])
                self.refuse(TIMED_OUT, "timeout")
        except Exception as error:  # noqa: BLE001 - a mistake of ours ends this session, and the sweep goes on to the next
            self.failed(error)

    def _answer_late(self) -> None:
        """Answer for a hook that takes too long; it goes on, but for itself."""
        task, self._task = self._task, None
        self._shift += 1
        self._wake = None
        if task is not None:
            self.roster.keep(task)
        self.busy = False
        self.owing_at = None
        pending, self._pending = self._pending, None
        if pending is None or pending.event is None:
            self.refuse(TIMED_OUT, "timeout")
            return
        if self.engine.owing:
            self._give(self.late_answer(pending))
        else:
            self.unanswered_late(pending)
        self.pump()
        self.resume(BUSY)

    # --- TLS

    def upgrade(self) -> asyncio.Task[None]:
        """Start TLS: reading stops before anything else, or the ClientHello is lost; then a task of its own shakes hands."""
        self.pause(UPGRADE)
        self.busy = True
        self.owing_at = None
        self._handshake_task = self.loop.create_task(self._handshake())
        return self._handshake_task

    async def _handshake(self) -> None:
        """Shake hands; while that goes on, decrypted data may arrive already and is only buffered (RFC 3207)."""
        context, transport = self.tls_context_now(), self.transport
        assert transport is not None
        try:
            secure = await self.loop.start_tls(
                transport,
                cast("asyncio.Protocol", self),
                context,
                server_side=True,
                ssl_handshake_timeout=self.roster.terms.timeouts.handshake_s,
                ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S,
            )
        except Exception as error:  # noqa: BLE001 - whatever the loop's TLS makes of a peer's octets ends this session and no other
            self._handshake_task = None
            self.reason = "tls"
            transport.abort()
            self.finish(error)  # connection_lost may never come
            return
        self._handshake_task = None
        if self.finished or secure is None:
            transport.abort()
            self.finish(None)
            return
        self.transport = secure
        self._paused = 0
        self.pause_until = None  # the answer that was to be slow is sent; what comes now is another session's
        self.waiting_at = self.roster.sweep.now
        try:
            outcome = self.secured(secure)
            if self._pending is None:  # else the STARTTLS method of a subclass is at work, and ends by itself
                self.busy = False
                self._act(outcome)
        except Exception as error:  # noqa: BLE001 - the top of a task; the stdlib's transport, closed by now, raises where it is asked
            self.failed(error)

    def tls_context_now(self) -> ssl.SSLContext:
        """Return the context for a handshake that starts now."""
        raise TypeError(f"{type(self).__name__} has no TLS")

    def _end_tasks(self) -> None:
        """Cancel the tasks, but for a hook that has a whole message in hand; an owner still waits for all of them."""
        task, self._task = self._task, None
        shaking, self._handshake_task = self._handshake_task, None
        pending = self._pending
        if task is not None:
            self.roster.keep(task)
            if not (self.busy and pending is not None and self.outlives(pending)) and task is not asyncio.current_task(self.loop):
                task.cancel()
                if self._job is not None and inspect.iscoroutine(self._job.work):
                    self._job.work.close()
        if shaking is not None and shaking is not asyncio.current_task(self.loop):
            self.roster.keep(shaking)
            shaking.cancel()
