"""Asking a handler's hooks: now, or later in the connection's task; and what becomes of their mistakes."""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections.abc import Awaitable, Callable, Generator
from typing import Any, final

from mypy_extensions import mypyc_attr

from postbus import telemetry
from postbus.server import limits
from postbus.server.connection import Connection
from postbus.server.envelope import Envelope
from postbus.server.hooks import Hook, Misanswered, reply_of
from postbus.server.outcome import Outcome, Pending, blamed
from postbus.server.plan import Plan
from postbus.server.session import Session
from postbus.smtp import replies
from postbus.smtp.replies import Reply


@mypyc_attr(allow_interpreted_subclasses=True)
class Asking(Connection):
    """A connection with a handler.

    Attributes:
        event_handler: the handler whose hooks are called.
        session, envelope: who is connected; the transaction under way.
    """

    __slots__ = ("_plan", "envelope", "event_handler", "session")

    _refusals: int = 0

    event_handler: Any
    session: Session | None
    envelope: Envelope | None
    _plan: Plan

    @final
    def _ask(self, name: str, hook: Hook, settle: Callable[[Any, Any], Outcome], event: Any, *args: Any) -> Outcome:
        """Call *hook*; *settle* takes what it returns, now or when it is there."""
        try:
            result = hook(self, self.session, self.envelope, *args)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - a handler's
            return self.fault(Pending(_NOTHING, settle, event, name, self.envelope), blamed(error))
        if type(result) not in _ANSWERS and (hasattr(type(result), "__await__") or inspect.isawaitable(result)):
            return Pending(result, settle, event, name, self.envelope)
        return settle(event, result)

    @final
    def _verdict(self, name: str, result: Any) -> Reply:
        """Return the reply *result* stands for; what stands for none is our fault, so 451."""
        if type(result) is Reply and result.code < 300:  # mostly
            return result
        try:
            reply = reply_of(result)
        except Misanswered as error:
            telemetry.hook_misanswered(hook=name, session=self._session_id, error=str(error))
            return replies.LOCAL_ERROR
        if reply.code >= 400:
            telemetry.command_rejected(listener=self.roster.terms.name, code=reply.code)
        return reply

    def _tell_refused(self, reply: Reply) -> None:
        """Count a refusal of our own."""
        telemetry.command_rejected(listener=self.roster.terms.name, code=reply.code)
        self._count_limit(reply)

    def _over(self, refusal: Reply) -> Reply:
        """Return what a peer over a limit is told: *refusal*, or once it has asked in vain too often, the last word."""
        self._refusals += 1
        if self._refusals > self.roster.terms.limits.errors:
            self.reason = "limit"
            refusal = limits.TOO_PERSISTENT
        self._tell_refused(refusal)
        return refusal

    def fault(self, pending: Pending, error: Exception) -> Outcome:
        """A hook raised: log it, let ``handle_exception`` find words if somebody wrote one, else 451."""
        self._log_fault(pending.hook, error)
        if not self._plan.explains or pending.hook == "exception":
            return pending.settle(pending.event, replies.LOCAL_ERROR)
        return Pending(self.handle_exception(error), pending.settle, pending.event, "exception", pending.envelope)

    def handle_exception(self, error: Exception) -> Awaitable[str | Reply]:
        """Return work that finds the status line for *error*."""
        raise TypeError(f"{type(self).__name__} has no words for it") from error

    def _tell(self, name: str, hook: Hook, *args: Any) -> None:
        """Call a hook whose answer nobody waits for."""
        try:
            result = hook(self, *args)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - a handler's
            self._log_fault(name, blamed(error))
            return
        if inspect.isawaitable(result):

            async def finish() -> None:
                try:
                    await result
                except Exception as error:  # noqa: BLE001 - a handler's
                    self._log_fault(name, error)

            self.roster.spawn(finish())

    def _log_fault(self, name: str, error: Exception) -> None:
        secret = name.startswith("auth_")  # its words may quote credentials
        told = traceback.format_tb(error.__traceback__) if secret else traceback.format_exception(error)
        telemetry.hook_failed(hook=name, session=self._session_id, error=type(error).__name__, traceback="".join(told))

    @final
    @property
    def _session_id(self) -> str:
        return self.session.id if self.session is not None else ""


_ANSWERS = frozenset({str, Reply, type(None)})
"""What hooks return most often: ``isawaitable`` asks an abstract class, which takes as long as a short hook."""


class _Nothing:
    """Stands for the work of a hook that has already raised."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


_NOTHING = _Nothing()
