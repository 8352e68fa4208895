"""What the program sets up round its loop."""

import gc
from collections.abc import Iterator

import pytest

from postbus.app.loop import COLLECT_EVERY_OBJECTS, spare_the_collector


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
