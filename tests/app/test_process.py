"""What the whole process decides by itself: whom it turns away before the banner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest

from postbus.app import rooms
from postbus.app.process import SPOOL_UNHEALTHY, Process
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
