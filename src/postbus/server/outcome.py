"""What an event leads to: its answer, or work that will give one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any

from postbus.smtp.replies import Reply

Answer = Reply | tuple[Reply, ...]


class Pending:
    """Work whose result answers an event.

    Attributes:
        work: what to wait for.
        settle: takes the event and the result, returns the answer or more work.
        event: what is to be answered; None for the banner.
        hook: who works, for logs: ``DATA``, ``smtp_NOW``, ``spill``.
        envelope: the transaction it works on, which may no longer be the connection's when it is done.
    """

    __slots__ = ("envelope", "event", "hook", "settle", "work")

    def __init__(self, work: Awaitable[Any], settle: Callable[[Any, Any], Outcome], event: Any, hook: str, envelope: Any) -> None:
        self.work = work
        self.settle = settle
        self.event = event
        self.hook = hook
        self.envelope = envelope


def blamed(error: BaseException) -> Exception:
    """Return what a handler is told that *error* was: ``CancelledError`` that nobody asked for is a mistake like any other."""
    return error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__} raised, though nothing was cancelled")


class Special(Enum):
    """What is neither an answer nor work."""

    HANDED = "work under way took the event"
    GONE = "nobody waits for the answer any more"


Outcome = Answer | Pending | Special | None
Act = Callable[[Any, Any], Outcome]
