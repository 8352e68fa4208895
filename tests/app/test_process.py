"""What the whole process decides by itself: whom it turns away before the banner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest

from postbus.app import rooms
from postbus.app.process import SPOOL_UNHEALTHY, Process
from postbus.app.view import View
from postbus.bridge.load import OVERLOADED, Load
from postbus.bridge.spool import Spool
from postbus.config import load
from postbus.server.clients import Refusal

BOTH = {
    "POSTBUS__SINKS__OUT": '{"kind": "file", "path": "events.jsonl"}',
    "POSTBUS__ROUTES__0": '{"name": "held", "match": "held@*", "sinks": "out", "acceptance": "hold"}',
    "POSTBUS__ROUTES__1": '{"name": "kept", "match": "*", "sinks": "out", "acceptance": "spool"}',
}


@dataclass
class FakeSpool:
    """A spool that says how it is."""

    state: str | None
    load: float = 0.0
    spill_folder: None = None

    def gate(self) -> str | None:
        """Say it."""
        return self.state


@pytest.mark.parametrize(
    ("environ", "state", "expected"),
    [
        pytest.param({}, None, None, id="all is well"),
        pytest.param({}, "unhealthy", SPOOL_UNHEALTHY, id="no mail could be taken"),
        pytest.param({}, "full", None, id="a full spool is 452 to each recipient"),
        pytest.param(BOTH, "unhealthy", None, id="held mail can still be taken"),
    ],
)
def test_connections_are_turned_away_only_while_no_mail_could_be_taken(
    environ: dict[str, str], state: str | None, expected: Refusal | None
) -> None:
    """421 before the banner, so that a sender tries another pod; whoever may succeed is let in."""
    loaded = load(None, environ)
    process = Process(loaded, None)
    process.rooms = rooms.build(loaded.settings, {})
    process.spool = cast("Spool", cast("Any", FakeSpool(state)))
    assert expected == process._gate()


@pytest.mark.parametrize(
    ("in_flight", "spooled", "expected"), [(0, 0.0, 0.0), (0, 0.9, 0.9), (128 * 2**20, 0.2, 0.5), (128 * 2**20, None, 0.5)]
)
def test_listeners_are_told_of_the_fullest_part(in_flight: int, spooled: float | None, expected: float) -> None:
    """The spool, where there is one, or the memory of what is held: EHLO's LIMITS follow (RFC 9422)."""
    process = Process(load(None, {}), None)
    process.rooms = rooms.build(process.settings, {})
    process.spool = None if spooled is None else cast("Spool", cast("Any", FakeSpool(None, load=spooled)))
    (listener,) = process._make_listeners().values()
    listener.handler._memory.used_octets = in_flight
    assert listener._load is not None
    assert expected == listener._load()
    assert listener._requiretls is not None
    assert not listener._requiretls()
    if process._temporary is not None:
        process._temporary.cleanup()


def test_load_is_shed_before_anything_else_is_asked() -> None:
    """What was found at the last look decides; ``/readyz?verbose`` shows it, as degraded, and ``/statusz`` the figures."""
    process = Process(load(None, {}), None)
    process.load = Load(used=lambda: 99 << 20, limit=lambda: 100 << 20, release=lambda: None)
    assert process._gate() is None
    process._look_at_load()
    assert process._gate() is OVERLOADED
    (check,) = [check for check in View(process).ready() if check.name == "load"]
    assert (check.ok, check.counts) == (False, False)
    assert "99 MiB in memory" in check.detail
    assert {"shedding": "memory", "memory_octets": 99 << 20, "memory_max_octets": 90 << 20} == View(process).numbers()["load"]
