"""What a reload can replace: sinks and routes, built as a whole before anything is swapped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from postbus.bridge.routing import Router
from postbus.config import Settings
from postbus.server.settings import ListenerSettings
from postbus.sinks import Sink
from postbus.sinks.registry import make


@dataclass(frozen=True, slots=True)
class Rooms:
    """Sinks by name and the router over them.

    Attributes:
        size_octets: the largest message some route takes; ``None``: any.
        all_spool: every route promises the spool.
    """

    sinks: Mapping[str, Sink]
    router: Router
    size_octets: int | None
    all_spool: bool


def build(settings: Settings, old: Settings | None = None, sinks: Mapping[str, Sink] | None = None) -> Rooms:
    """Return the rooms of *settings*; of *old*'s *sinks*, those whose settings are the same are used again."""
    known = sinks or {}
    chosen = {
        name: known[name] if old is not None and name in known and old.sinks.get(name) == said else make(name, said)
        for name, said in settings.sinks.items()
    }
    router = Router(settings.routes, chosen, settings.acceptance)
    promises = {route.acceptance or settings.acceptance for route in settings.routes}
    return Rooms(chosen, router, router.message_max_octets, promises == {"spool"})


def needs_spool(settings: Settings) -> bool:
    """Return whether some route answers 250 for what is only in the spool."""
    return any((route.acceptance or settings.acceptance) == "spool" for route in settings.routes)


LIVE = frozenset(
    {"routes", "sinks", "acceptance", "retry", "listeners", "require_sink", "drain_timeout_s", "watch_interval_s", "telemetry"}
)
"""Top-level keys of which a change takes effect at once, as far as ``restart_keys`` does not say otherwise."""

FIXED = ("address", "protocol", "backlog", "socket_mode")
"""What a listener has bound once."""


def changed_keys(old: Settings, new: Settings) -> list[str]:
    """Return the top-level keys that differ, in the tree's order."""
    return [name for name in type(old).model_fields if getattr(old, name) != getattr(new, name)]


def restart_keys(old: Settings, new: Settings) -> list[str]:
    """Return what differs and cannot be changed under way."""
    found = [name for name in changed_keys(old, new) if name not in LIVE]
    if needs_spool(new) and not needs_spool(old):
        found.append("acceptance")
    names = {**old.listeners, **new.listeners}
    return found + [f"listeners.{name}" for name in names if _rebound(old.listeners.get(name), new.listeners.get(name))]


def _rebound(old: ListenerSettings | None, new: ListenerSettings | None) -> bool:
    if old is None or new is None:
        return True
    return any(getattr(old, field) != getattr(new, field) for field in FIXED) or (old.tls.mode == "implicit") != (
        new.tls.mode == "implicit"
    )


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
