"""SIGTERM under load: exit 0 in time, nothing lost, and nobody is cut off inside a message."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from itertools import repeat
from typing import Any

import pytest

from tests.e2e.conftest import Start
from tests.e2e.harness import Postbus, tree
from tests.e2e.published import Published
from tests.e2e.senders import Desk, Letter, Phase, Traffic, send_until, together

ACKNOWLEDGED = 200
DRAIN_TIMEOUT_S = 15


def _config(acceptance: str) -> dict[str, Any]:
    timeouts = {"answer_timeout_s": 10}
    listeners = {
        "mx": {"address": "127.0.0.1:0", "timeouts": timeouts},
        "lmtp": {"address": "127.0.0.1:0", "protocol": "lmtp", "timeouts": timeouts},
    }
    return tree(listeners=listeners, acceptance=acceptance, hold={"timeout_s": 8}, drain_timeout_s=DRAIN_TIMEOUT_S)


def _senders(postbus: Postbus, traffic: Traffic, letters: Iterator[Letter]) -> Iterator[Any]:
    for number in range(40):
        lmtp = number % 4 == 0
        yield send_until(traffic, postbus.address("lmtp" if lmtp else "mx"), letters, lmtp=lmtp)


@pytest.mark.parametrize("acceptance", ["spool", "hold"])
async def test_sigterm_under_load(start: Start, acceptance: str) -> None:
    """Whoever is in a message gets its true reply, the others 421 between transactions; exit 0 in time; every 250 is kept or published."""
    postbus = await asyncio.to_thread(start, _config(acceptance))
    traffic, desk = Traffic(), Desk("d", big_every=10, mime_every=40)
    async with asyncio.TaskGroup() as group:
        group.create_task(together(_senders(postbus, traffic, (desk.letter() for _ in repeat(None)))))
        await traffic.until(lambda: traffic.pending and traffic.letters_acknowledged >= ACKNOWLEDGED, f"{ACKNOWLEDGED} acknowledged")
        began = time.monotonic()
        assert 0 == await asyncio.to_thread(postbus.terminate)
        assert time.monotonic() - began < DRAIN_TIMEOUT_S
    assert 40 == len(traffic.ends)
    assert {421} == {end.code for end in traffic.ends}, traffic.ends
    assert {end.phase for end in traffic.ends} <= {Phase.IDLE, Phase.GREETING}
    assert ([], set(), {}) == (traffic.cut, traffic.unheard, traffic.refused)
    [stopped] = postbus.log.find("app.stopped")
    assert stopped["in_time"] is True
    published = Published().take_structured(postbus.events())
    if acceptance == "hold":
        assert set() == published.lost(traffic)
    await asyncio.to_thread(postbus.start)
    await asyncio.to_thread(postbus.wait_delivered)
    published = Published().take_structured(postbus.events())
    assert (set(), set()) == (published.lost(traffic), published.strangers(traffic))
    assert ([], []) == (published.renamed, published.misnamed(traffic))
    assert 0 == published.duplicates
