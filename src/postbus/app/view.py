"""What the sidecar is told of the process, and what it may ask of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from postbus import __version__
from postbus.app import guide, rooms
from postbus.bridge.spool import DeadLetter as Kept
from postbus.bridge.spool import Spool
from postbus.config import redacted, schema
from postbus.config.redact import bare_pattern
from postbus.sidecar.status import Changed, Check, DeadLetter, DeadLetterPage, NoCursorError, Reloaded

if TYPE_CHECKING:
    from postbus.app.process import Process

PAGE = 500
"""Dead letters looked at in one go."""

Act = Callable[[Spool], Callable[[str, str], Awaitable[bool]]]
"""What is done to a dead letter, by event id and sink."""


class View:
    """Answers the sidecar's questions from what is known already."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def live(self) -> Sequence[Check]:
        """Return whether the loop turns in time and the listeners still accept. Never sinks, disks or load."""
        process = self._process
        checks = [process.pulse.check(process.settings.sidecar.loop_lag_max_s)] if process.state == "serving" else []
        if process.state == "serving":
            checks += [
                Check(f"listener.{name}", bool(listener.addresses), "accepting" if listener.addresses else "not accepting")
                for name, listener in process.listeners.items()
            ]
        return checks

    def ready(self) -> Sequence[Check]:
        """Return whether mail can be taken here. Sinks are shown, and count only where ``require_sink`` names them."""
        process = self._process
        checks = [Check("serving", process.state == "serving", process.state)]
        checks += [
            Check(f"listener.{name}", bool(listener.addresses), " ".join(listener.addresses) or "not bound")
            for name, listener in process.listeners.items()
        ]
        if process.spool is not None:
            gate = process.spool.gate()
            checks.append(Check("spool", gate is None, process.spool.reason or f"{process.spool.numbers.messages} messages"))
        checks.append(Check("load", process.load.refusal is None, process.load.detail, counts=False))
        required = process.settings.require_sink
        for name, sink in process.sinks.items():
            health = sink.health()
            checks.append(Check(f"sink.{name}", health.ok, health.detail, counts=name in required))
        if process.problems:
            checks.append(Check("configuration", False, f"the last reload was refused: {len(process.problems)} to mend", counts=False))
        return checks

    def started(self) -> Sequence[Check]:
        """Return whether everything was started once."""
        return [Check("started", self._process.state != "starting", self._process.state)]

    def numbers(self) -> Mapping[str, object]:
        """Return the process in figures."""
        process = self._process
        return {
            "version": __version__,
            "state": process.state,
            "uptime_s": round(time.time() - process.started_s),
            "configuration": {
                "file": str(process.file or "embedded defaults"),
                "sha256": process.loaded.sha256,
                "problems": _counted(process.problems),
            },
            "listeners": {
                name: {
                    "addresses": listener.addresses,
                    "protocol": listener.settings.protocol,
                    "sessions": listener.sessions,
                    "clients": listener.clients,
                }
                for name, listener in process.listeners.items()
            },
            "sessions": {"open": sum(listener.sessions for listener in process.listeners.values())},
            "load": self._load(),
            "routes": {
                name: {"match": " ".join(map(bare_pattern, match.split())), "acceptance": acceptance, "mode": mode, "sinks": sinks}
                for name, match, acceptance, mode, sinks in rooms.told(process.settings)
            },
            "sinks": self._sinks(),
            "spool": self._spool(),
        }

    def _load(self) -> Mapping[str, object]:
        load = self._process.load
        shedding = None if load.refusal is None else load.refusal.reason
        return {"shedding": shedding, "memory_octets": load.used_octets, "memory_max_octets": load.bound_octets}

    def _sinks(self) -> Mapping[str, object]:
        process = self._process
        lanes = {} if process.dispatcher is None else {lane.sink: lane for lane in process.dispatcher.status()}
        shown: dict[str, dict[str, Any]] = {}
        for name, sink in process.sinks.items():
            health = sink.health()
            place = guide.place(process.settings.sinks[name]) if name in process.settings.sinks else ""
            shown[name] = {"kind": sink.kind, "place": place, "ok": health.ok, "detail": health.detail}
        for name, lane in lanes.items():
            row = shown.setdefault(name, {"kind": "not configured any more", "ok": False, "detail": ""})
            row |= {"owed": lane.owed, "queued": lane.queued, "in_flight": lane.in_flight, "paused": lane.paused}
        return shown

    def _spool(self) -> Mapping[str, object] | None:
        spool = self._process.spool
        if spool is None:
            return None
        numbers = spool.numbers
        return {
            "accepting": spool.gate() is None,
            "reason": spool.reason,
            "messages": numbers.messages,
            "octets": numbers.octets,
            "free_octets": numbers.free_octets,
            "dead_letters": sum(numbers.dead_letters.values()),
            "damaged": numbers.damaged,
            "oldest_ms": numbers.oldest_ms,
        }

    def transaction(self, transaction_id: str) -> Sequence[Mapping[str, object]] | None:
        """Return how the events of one of the last transactions stand, ``None`` when it is not remembered."""
        known = self._process.fates.of(transaction_id)
        return None if known is None else [{**asdict(fate), "decided": fate.decided} for fate in known]

    def config(self) -> Mapping[str, object]:
        """Return the configuration in force, redacted."""
        return redacted(self._process.loaded)

    def config_schema(self) -> Mapping[str, object]:
        """Return the schema of the configuration."""
        return schema()


def _counted(problems: Sequence[str]) -> list[str]:
    """Return how many *problems* there are, for an open page: each repeats a part of the configuration."""
    return [f"{len(problems)} to mend: the log and `postbus check` name them"] if problems else []


class Admin:
    """What may be asked for with the bearer token."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def page(self, *, sink: str | None, after: str | None, limit: int) -> DeadLetterPage:
        """Return some dead letters; without a spool there are none."""
        spool = self._process.spool
        if spool is None:
            return DeadLetterPage((), 0)
        found, cursor = await self._find(spool, None, sink, limit, after)
        letters = [
            DeadLetter(
                event_id=letter.event_id,
                sink=letter.sink,
                reason=letter.why,
                dead_since_ms=letter.at_ms,
                recipient=letter.recipient,
                mail_from=letter.mail_from,
                route=letter.route,
                size_octets=letter.size_octets,
                attempts=letter.attempt,
            )
            for letter in found
        ]
        total = sum(count for name, count in spool.numbers.dead_letters.items() if sink in {None, name})
        return DeadLetterPage(letters, total, cursor)

    async def _find(
        self, spool: Spool, event_id: str | None, sink: str | None, limit: int, after: str | None
    ) -> tuple[list[Kept], str | None]:
        """Return at most *limit* letters that fit, and where the list goes on."""
        found: list[Kept] = []
        cursor = after or ""
        while True:
            try:
                page = await spool.dead_letters(PAGE, cursor)
            except ValueError as error:
                raise NoCursorError(str(error)) from error
            for letter in page:
                if event_id in {None, letter.event_id} and sink in {None, letter.sink}:
                    found.append(letter)
                    if len(found) == limit:
                        return found, letter.cursor
            if len(page) < PAGE:
                return found, None
            cursor = page[-1].cursor

    async def _change(self, act: Act, event_id: str | None, sink: str | None, after: str | None, limit: int | None) -> Changed:
        """Do *act* to the letters that fit, at most *limit* of them."""
        spool, count, cursor = self._process.spool, 0, after
        if spool is None:
            return Changed(0)
        while True:
            found, cursor = await self._find(spool, event_id, sink, limit or PAGE, cursor)
            count += sum(await asyncio.gather(*(act(spool)(letter.event_id, letter.sink) for letter in found)))
            if cursor is None or limit is not None:
                return Changed(count, cursor)

    async def replay(self, *, event_id: str | None, sink: str | None, after: str | None, limit: int | None) -> Changed:
        """Put dead letters back into their queues."""
        return await self._change(lambda spool: spool.replay, event_id, sink, after, limit)

    async def drop(self, *, event_id: str | None, sink: str | None, after: str | None, limit: int | None) -> Changed:
        """Forget dead letters."""
        return await self._change(lambda spool: spool.drop, event_id, sink, after, limit)

    async def reload(self) -> Reloaded:
        """Read the configuration again."""
        return await self._process.reload()

    def drain(self) -> None:
        """Begin to drain."""
        self._process.stop("asked through the sidecar")
