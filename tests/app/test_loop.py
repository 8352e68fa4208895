"""What the program sets up round its loop."""

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import pytest

from postbus.app import loop
from postbus.app.loop import COLLECT_EVERY_OBJECTS, EXIT_OK, spare_the_collector


@pytest.fixture
def collector() -> Iterator[None]:
    """Leave the garbage collector as it was found."""
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


@pytest.mark.usefixtures("collector")
def test_the_collector_leaves_what_stays_alone() -> None:
    """What exists is walked over no more; what comes later is still collected."""
    spare_the_collector()
    assert gc.get_freeze_count() > 10_000
    assert gc.get_threshold()[0] == COLLECT_EVERY_OBJECTS
    ring: list[object] = []
    ring.append(ring)
    del ring
    assert gc.collect() >= 1


@pytest.mark.usefixtures("collector")
def test_a_started_program_spares_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the start, when all is there that stays."""
    steps: list[str] = []

    class Process:
        """One that starts and is told to stop at once."""

        def stop(self, why: str) -> None:
            """Never called here."""

        def reload_soon(self) -> None:
            """Never called here."""

        async def start(self) -> None:
            """Start."""
            steps.append("start")

        async def stopped(self) -> None:
            """Run."""
            steps.append("run")

    monkeypatch.setattr(loop, "spare_the_collector", lambda: steps.append("spare"))
    process: Any = Process()
    assert EXIT_OK == asyncio.run(loop._serve(process))
    assert ["start", "spare", "run"] == steps
