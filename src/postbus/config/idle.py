"""Settings that somebody wrote and that change nothing, since another one decides: a table, looked through for warnings.

What is wrong or dangerous is said in ``check``; here stands what its writer would miss one day.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from postbus.config.finding import Path
from postbus.config.tree import Settings
from postbus.server.settings import ListenerSettings


class Idle(NamedTuple):
    """One row: where in a listener, when it is idle, why, and what would be right."""

    path: Path
    idle: Callable[[ListenerSettings], bool]
    said: str
    remedy: str


def _no_password(listener: ListenerSettings) -> bool:
    auth = listener.auth
    return auth.users is None and not auth.required and "mechanisms" in auth.model_fields_set and set(auth.mechanisms) != {"EXTERNAL"}


def _plain_for_nobody(listener: ListenerSettings) -> bool:
    auth = listener.auth
    return auth.allow_plaintext and not auth.required and not auth.offered(certificates=listener.tls.client_ca is not None)


ROWS = (
    Idle(
        ("content", "binarymime"),
        lambda one: one.content.binarymime and "binarymime" in one.content.model_fields_set and not one.content.chunking,
        "BINARYMIME is nothing without CHUNKING, which is off",
        "set content.chunking to true, or remove this",
    ),
    Idle(
        ("content", "stray_allowed_from"),
        lambda one: bool(one.content.stray_allowed_from) and one.stray == "allow",
        "stray is allow for everybody",
        "set stray to reject, or remove this",
    ),
    Idle(
        ("clients", "pipelining_exempt"),
        lambda one: bool(one.clients.pipelining_exempt) and not one.strict_pipelining,
        "strict_pipelining is off for everybody",
        "set strict_pipelining to true, or remove this",
    ),
    Idle(
        ("timeouts", "greet_delay_s"),
        lambda one: one.timeouts.greet_delay_s > 0 and not one.strict_pipelining,
        "banners wait for nothing: strict_pipelining is off, so who talks before one may",
        "set strict_pipelining to true, or remove this",
    ),
    Idle(
        ("auth", "mechanisms"),
        _no_password,
        "PLAIN and LOGIN are not offered: there is no user file",
        "name one in auth.users; make it: postbus passwd FILE NAME",
    ),
    Idle(
        ("auth", "allow_plaintext"),
        _plain_for_nobody,
        "AUTH is not offered: there is no user file",
        "name one in auth.users, or remove this",
    ),
)
"""Of every listener."""


def idle(settings: Settings) -> Iterator[tuple[Path, str, str]]:
    """Yield where something stands that changes nothing, why, and what would be right."""
    for name, listener in settings.listeners.items():
        for row in ROWS:
            if row.idle(listener):
                yield ("listeners", name, *row.path), row.said, row.remedy
    if settings.received and all(route.mode == "raw" for route in settings.routes):
        yield ("received",), "no event lists headers: every route has mode raw", "remove it, or set a route's mode to parsed or both"
