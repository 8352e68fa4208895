"""What the sidecar needs to know and to ask for, as Protocols over plain data.

The composition root hands over objects that satisfy these; the sidecar imports nothing of what they speak for. Everything a ``Status``
returns is known already: no I/O, no awaits, no secrets, no mail addresses, because it is shown to whoever can reach the port.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Check:
    """One line of a probe.

    Attributes:
        name: ``[a-z0-9_.-]+``, unique within its probe (``listener.mx``, ``spool``, ``sink.orders``).
        ok: whether it holds now.
        detail: why, or how; fit for an unauthenticated page.
        counts: whether the probe's answer depends on it; false shows a sink as degraded without making the pod unready.
    """

    name: str
    ok: bool
    detail: str = ""
    counts: bool = True


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One event that was given up. Holds addresses: only for those who show the token."""

    event_id: str
    sink: str
    reason: str
    dead_since_ms: int
    recipient: str
    mail_from: str
    route: str
    size_octets: int
    attempts: int


class NoCursorError(ValueError):
    """What was passed as *after* is no cursor of ours."""


@dataclass(frozen=True, slots=True)
class DeadLetterPage:
    """Some dead letters, oldest first; *next_after* continues the list, ``None`` ends it."""

    letters: Sequence[DeadLetter]
    total: int
    next_after: str | None = None


@dataclass(frozen=True, slots=True)
class Changed:
    """How many dead letters were changed; *next_after* goes on behind the last one looked at, ``None``: there are no more."""

    count: int
    next_after: str | None = None


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload did. *problems* non-empty: nothing changed."""

    changed: Sequence[str] = field(default=())
    needs_restart: Sequence[str] = field(default=())
    problems: Sequence[str] = field(default=())


class Status(Protocol):
    """What is known of the process."""

    def live(self) -> Sequence[Check]:
        """Return the checks of /livez: event loop, accept tasks, dispatcher heartbeat. Never sinks, disks or load."""

    def ready(self) -> Sequence[Check]:
        """Return the checks of /readyz: listeners bound, spool healthy, not draining; sinks with ``counts`` as configured."""

    def started(self) -> Sequence[Check]:
        """Return the checks of /startupz: configuration read, spool scanned, listeners bound, each sink tried once."""

    def numbers(self) -> Mapping[str, object]:
        """Return what /statusz shows: JSON-able and nested at will; the app chooses the keys."""

    def transaction(self, transaction_id: str) -> Sequence[Mapping[str, object]] | None:
        """Return how each event of a recent transaction stands, without addresses; ``None``: it is not remembered."""

    def config(self) -> Mapping[str, object]:
        """Return the effective configuration, redacted."""

    def config_schema(self) -> Mapping[str, object]:
        """Return the configuration's JSON Schema."""


class DeadLetters(Protocol):
    """The dead letters of the spool. All raise ``NoCursorError``."""

    async def page(self, *, sink: str | None, after: str | None, limit: int) -> DeadLetterPage:
        """Return at most *limit* letters of *sink* (``None``: of all) behind the cursor *after*."""

    async def replay(self, *, event_id: str | None, sink: str | None, after: str | None, limit: int | None) -> Changed:
        """Queue letters for delivery again, with their ids unchanged; ``None`` means any, all, and from the first."""

    async def drop(self, *, event_id: str | None, sink: str | None, after: str | None, limit: int | None) -> Changed:
        """Forget letters for good; ``None`` means any, all, and from the first."""


class Actions(Protocol):
    """What the process can be asked to do."""

    async def reload(self) -> Reloaded:
        """Read the configuration again, as SIGHUP does."""

    def drain(self) -> None:
        """Begin to drain, as SIGTERM does; return at once."""
