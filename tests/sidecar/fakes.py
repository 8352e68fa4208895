"""Fakes of what the sidecar is handed: settable, and full of canaries where real ones would hold secrets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

from postbus.sidecar.app import make_app
from postbus.sidecar.server import Sidecar
from postbus.sidecar.settings import SidecarSettings
from postbus.sidecar.status import Changed, Check, DeadLetter, DeadLetterPage, NoCursorError, Reloaded

TOKEN = "canary-token-5f1e"
MAILBOX = "canary-mailbox@example.com"
LETTER = DeadLetter("01ABC", "orders", "404 Not Found", 1_700_000_000_000, MAILBOX, "sender@example.org", "all", 1234, 7)


@dataclass
class FakeStatus:
    """A process of which everything can be said."""

    live_checks: list[Check] = field(default_factory=lambda: [Check("loop", True, "0.001 s late")])
    ready_checks: list[Check] = field(
        default_factory=lambda: [Check("listener.mx", True), Check("spool", True), Check("sink.orders", False, "refused", counts=False)]
    )
    started_checks: list[Check] = field(default_factory=lambda: [Check("configuration", True)])
    broken: bool = False

    def live(self) -> Sequence[Check]:
        """Return the settable checks."""
        if self.broken:
            raise RuntimeError("canary-exception-text")
        return self.live_checks

    def ready(self) -> Sequence[Check]:
        """Return the settable checks."""
        return self.ready_checks

    def started(self) -> Sequence[Check]:
        """Return the settable checks."""
        return self.started_checks

    def numbers(self) -> Mapping[str, object]:
        """Return nested numbers with something to escape."""
        return {
            "version": "1.2.3",
            "listeners": {"mx": {"open": 3, "address": "127.0.0.1:2525"}},
            "note": "<b>\r\nfaked: line",
            "none": None,
            "list": [1, {"a": 2}],
        }

    def transaction(self, transaction_id: str) -> Sequence[Mapping[str, object]] | None:
        """Return one event of the one transaction there is."""
        return [{"event_id": "01E", "sink": "orders", "word": "delivered", "decided": True}] if transaction_id == "01T" else None

    def config(self) -> Mapping[str, object]:
        """Return a redacted configuration."""
        return {"sinks": {"orders": {"kind": "webhook", "url": "https://***@hooks.example.com/?***"}}}

    def config_schema(self) -> Mapping[str, object]:
        """Return a schema."""
        return {"type": "object", "title": "Settings"}


@dataclass
class FakeDeadLetters:
    """One dead letter, and what was asked of it."""

    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)

    async def page(self, *, sink: str | None, after: str | None, limit: int) -> DeadLetterPage:
        """Return the one letter."""
        self.asked.append(("page", sink, after))
        if after == "nonsense":
            raise NoCursorError
        return DeadLetterPage([LETTER][:limit], total=1, next_after=None)

    async def replay(self, *, event_id: str | None, sink: str | None, after: str | None, limit: int | None) -> Changed:
        """Replay the letter if it is meant."""
        self.asked.append(("replay", event_id, sink))
        if after == "nonsense":
            raise NoCursorError
        return Changed(int(event_id in {None, LETTER.event_id}))

    async def drop(self, *, event_id: str | None, sink: str | None, after: str | None, limit: int | None) -> Changed:
        """Drop the letter if it is meant."""
        self.asked.append(("drop", event_id, sink))
        return Changed(int(event_id in {None, LETTER.event_id}))


@dataclass
class FakeActions:
    """Counts drains; reloads as told."""

    outcome: Reloaded = field(default_factory=lambda: Reloaded(changed=("routes",)))
    drains: int = 0

    async def reload(self) -> Reloaded:
        """Return what was set."""
        return self.outcome

    def drain(self) -> None:
        """Count."""
        self.drains += 1


@dataclass
class House:
    """A running sidecar and what stands behind it."""

    sidecar: Sidecar
    http: httpx.AsyncClient
    status: FakeStatus
    letters: FakeDeadLetters
    actions: FakeActions


@asynccontextmanager
async def house(token: str | None = TOKEN, *, spool: bool = True, **settings: object) -> AsyncIterator[House]:
    """Run a sidecar on a free port of loopback, with a client for it."""
    status, letters, actions = FakeStatus(), FakeDeadLetters(), FakeActions()
    app = make_app(status, dead_letters=letters if spool else None, actions=actions, token=lambda: token)
    sidecar = Sidecar(app, SidecarSettings.model_validate({"address": "127.0.0.1:0", **settings}))
    await sidecar.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://{sidecar.address}", timeout=10, trust_env=False) as http:
            yield House(sidecar, http, status, letters, actions)
    finally:
        await sidecar.stop()
