"""Where events go. One module per kind of sink; this one says what a sink is.

A sink never raises for what the far side does: every ending of ``send`` is one of three outcomes, named by what the
caller does next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from postbus.event.model import Event


@dataclass(frozen=True, slots=True)
class Sent:
    """The sink holds the event durably, as far as it promises. *detail* is for the log (``topic/partition/offset``, ``200``)."""

    detail: str = ""


@dataclass(frozen=True, slots=True)
class Retry:
    """Not delivered now; trying again may work.

    Attributes:
        why: for log, metric and dead letter; never shown to a peer.
        after_s: the far side asked for at least this pause (Retry-After), or ``None``.
        sink_down: true when the sink as a whole is the trouble (its queue pauses), false when it is this one event.
    """

    why: str
    after_s: float | None = None
    sink_down: bool = True


@dataclass(frozen=True, slots=True)
class Rejected:
    """The far side will never take this event: a dead letter.

    Attributes:
        why: as in ``Retry``.
        too_large: for its size alone, which the sink had promised to carry: somebody's limit is not what we were told.
    """

    why: str
    too_large: bool = False


Outcome = Sent | Retry | Rejected


@dataclass(frozen=True, slots=True)
class Health:
    """What a sink knows of itself without I/O.

    Attributes:
        ok: it works, as far as it knows.
        detail: fit for an unauthenticated page: no secrets, no addresses.
        beginning: it is not ok only since it was started a moment ago; ``send`` waits for its first attempt to reach the far side.
    """

    ok: bool
    detail: str
    beginning: bool = False


class Sink(Protocol):
    """A place events go. Names are the configuration's."""

    name: str
    kind: str
    durable: bool
    """An acknowledged event survives the loss of this process (stdout does not promise that)."""
    secure: bool
    """Events travel over TLS, or never leave the machine."""
    octets: bool
    """Raw-mode events are wanted as octets (``message/rfc822``) instead of base64 in JSON."""
    event_max_octets: int
    """The largest event carried, encoded as this sink sends it."""
    concurrency: int
    """How many ``send`` calls the dispatcher may have in flight."""

    async def start(self) -> None:
        """Make clients; connect in the background. Never fails because the far side is away."""

    async def send(self, event: Event) -> Outcome:
        """Deliver *event* within the sink's own deadline. Raises nothing but ``CancelledError``."""

    async def stop(self, timeout_s: float) -> None:
        """Flush and close within *timeout_s*."""

    def health(self) -> Health:
        """Return what is known now: cheap, no I/O, no awaits."""
