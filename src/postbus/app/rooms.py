"""What a reload can replace: sinks and routes, built as a whole before anything is swapped; and what it cannot."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from postbus.bridge.routing import Router
from postbus.config import Settings, changes
from postbus.server.listener import UPGRADES
from postbus.sinks import Sink
from postbus.sinks.registry import SinkUnusableError, make
from postbus.sinks.settings import ClientTls, Secret, over_tls

Mark = tuple[int, int, int] | None
"""A file's inode, size and time of change; ``None`` where it cannot be seen."""
Marks = Mapping[str, tuple[Mark, ...]]


class UnbuildableError(Exception):
    """A sink cannot be made; the text says which and why. Only what another package brings gets so far: ``check`` sees the rest."""


@dataclass(frozen=True, slots=True)
class Rooms:
    """Sinks by name and the router over them.

    Attributes:
        size_octets: the largest message some route takes; ``None``: any.
        all_spool: every route promises the spool.
        all_tls: every sink that a route leads to, best-effort ones too, is reached by TLS alone.
        carried: the largest event of each sink, as the router was told.
        marks: what the files that sinks refer to were like when they were made.
    """

    sinks: Mapping[str, Sink]
    router: Router
    size_octets: int | None
    all_spool: bool
    all_tls: bool
    carried: Mapping[str, int]
    marks: Marks

    def outdated(self) -> bool:
        """Return whether a sink carries other sizes now than the router knows."""
        return any(sink.event_max_octets != self.carried[name] for name, sink in self.sinks.items())


def marks(settings: Settings, file: Path | None = None) -> Marks:
    """Return what tells one state of the referred files from another, by what refers to them; *file* is the configuration. Blocks."""
    found = {f"sinks.{name}": tuple(map(_mark, _referred(said))) for name, said in settings.sinks.items()}
    for name, listener in settings.listeners.items():
        tls = listener.tls
        files = (tls.certificate, tls.key, tls.client_ca, listener.auth.users)
        found[f"listeners.{name}"] = tuple(_mark(path) for path in files if path is not None)
    return {**found, "file": (_mark(file),)} if file is not None else found


def _mark(path: Path) -> Mark:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _referred(said: object) -> Iterator[Path]:
    """Yield the files of secrets and of TLS that *said* refers to, however deep."""
    match said:
        case Secret() | ClientTls():
            yield from (value for _, value in said if isinstance(value, Path))
        case BaseModel():
            for _, value in said:
                yield from _referred(value)
        case Mapping():
            for value in said.values():
                yield from _referred(value)
        case list() | tuple():
            for value in said:
                yield from _referred(value)


def build(settings: Settings, now: Marks, old: Settings | None = None, rooms: Rooms | None = None) -> Rooms:
    """Return the rooms of *settings*; sinks of *rooms* whose settings (in *old*) and files (*now*) are the same are used again.

    Raises:
        UnbuildableError: nothing has been started or changed.
    """
    chosen: dict[str, Sink] = {}
    for name, said in settings.sinks.items():
        key = f"sinks.{name}"
        try:
            if old is not None and rooms is not None and old.sinks.get(name) == said and rooms.marks.get(key) == now.get(key):
                chosen[name] = rooms.sinks[name]
            else:
                chosen[name] = make(name, said)
        except SinkUnusableError as error:
            raise UnbuildableError(f"sinks.{name}: {error}") from error
    return routed(settings, chosen, now)


def routed(settings: Settings, sinks: Mapping[str, Sink], now: Marks) -> Rooms:
    """Return the rooms over *sinks* as they are now."""
    router = Router(settings.routes, sinks, settings.acceptance)
    promises = {route.acceptance or settings.acceptance for route in settings.routes}
    carried = {name: sink.event_max_octets for name, sink in sinks.items()}
    used = {name for route in settings.routes for name in (*route.sinks, *route.best_effort)}
    all_tls = all(over_tls(settings.sinks[name]) for name in used)
    return Rooms(sinks, router, router.message_max_octets, promises == {"spool"}, all_tls, carried, now)


def needs_spool(settings: Settings) -> bool:
    """Return whether some route answers 250 for what is only in the spool."""
    return any((route.acceptance or settings.acceptance) == "spool" for route in settings.routes)


LIVE = tuple(
    re.compile(pattern)
    for pattern in (
        r"hostname|acceptance|drain_timeout_s|watch_interval_s|hops_max|load\..*",
        r"routes(\[.*)?",
        r"sinks(\..*)?",
        r"retry\..*",
        r"require_sink(\[.*)?",
        r"telemetry\.(log_level|log_format|log_addresses)",
        r"sidecar\.loop_lag_max_s",
        r"listeners\.\w+\.(hostname|ident|smtputf8|stray|strict_pipelining|lenient_paths|announce|spill_threshold_octets)(\[.*)?",
        r"listeners\.\w+\.(auth|clients|content|limits|parameters|proxy|timeouts)\..*",
        r"listeners\.\w+\.tls\.(certificate|key|client_ca|client_certificate)",
    )
)
"""Paths of which a change is in force once a reload has ended; for a listener: for its next connections. All others need a restart."""


def needs_restart(old: Settings, new: Settings) -> list[str]:
    """Return what a reload from *old* to *new* does not put into force, by path; a listener that comes or goes with what to do."""
    return [said for path in changes(old, new) if (said := _restart(path, old, new)) is not None]


def _restart(path: str, old: Settings, new: Settings) -> str | None:
    if any(pattern.fullmatch(path) for pattern in LIVE):
        return None
    part, _, name = path.partition(".")
    if part == "listeners" and name not in old.listeners and name in new.listeners:
        return f"{path} (new: restart to listen there)"
    if part == "listeners" and name in old.listeners and name not in new.listeners:
        return f"{path} (removed: it listens until the restart)"
    listener, _, field = name.partition(".")
    if part == "listeners" and field == "tls.mode" and (old.listeners[listener].tls.mode, new.listeners[listener].tls.mode) in UPGRADES:
        return None
    return path


def upgraded(started: Settings, now: Settings) -> Settings:
    """Return what the process goes by until its next start: as it *started*, with the TLS that listeners have come to by reloads."""
    listeners = {
        name: said.model_copy(update={"tls": now.listeners[name].tls})
        if name in now.listeners and (said.tls.mode, now.listeners[name].tls.mode) in UPGRADES
        else said
        for name, said in started.listeners.items()
    }
    return started.model_copy(update={"listeners": listeners})


def told(settings: Settings) -> Sequence[tuple[str, str, str, str, str]]:
    """Return each route as (name, patterns, acceptance, mode, sinks), for log and terminal."""
    return [
        (
            route.name,
            " ".join(route.match),
            route.acceptance or settings.acceptance,
            route.mode,
            " ".join([*route.sinks, *(f"{name} (best effort)" for name in route.best_effort)]),
        )
        for route in settings.routes
    ]
