"""A hundred connections, each sending 25 MiB at the same time: how much resident memory that takes at its highest."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from tests.bench.bridge import bridge, defaults
from tests.bench.figures import Series
from tests.bench.measuring import Load, Plan, Server, child, line_of, listener, send

CONNECTIONS = 100
MIB = 1024 * 1024
SIZE_OCTETS = 25 * MIB
WARM_UP = (Load(200), Load(1, size_octets=MIB))
ROUNDS_MAX = 3
"""Each takes a fresh process (memory once grown stays) and 2.5 GB on the disk."""
SAMPLE_S = 0.02


class Peak:
    """The most resident memory of a process and its children, looked at every SAMPLE_S while the context lasts."""

    def __init__(self, process: psutil.Process) -> None:
        self.own_octets = self.family_octets = 0
        self.seconds = 0.0
        self._process = process
        self._end = threading.Event()

    def look(self) -> None:
        """Look once."""
        own = self._process.memory_info().rss
        family = own
        for member in self._process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                family += member.memory_info().rss
        self.own_octets, self.family_octets = max(self.own_octets, own), max(self.family_octets, family)

    def _watch(self) -> None:
        with suppress(psutil.NoSuchProcess):
            while not self._end.wait(SAMPLE_S):
                self.look()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch from a thread."""
        thread = threading.Thread(target=self._watch)
        thread.start()
        try:
            yield
        finally:
            self._end.set()
            thread.join()


def _grown(server: Server, plan: Plan) -> Peak:
    """Return by how much *server* grows, own and with its children."""
    for load in WARM_UP:
        send(server.address, load)
    server.drained()
    before = Peak(server.process)
    before.look()
    peak = Peak(server.process)
    with peak.watching():
        with child("tests.bench.flooding", server.address, str(CONNECTIONS), str(_size_octets(plan))) as clients:
            peak.seconds = float(line_of(clients))
        server.drained()
    peak.own_octets -= before.own_octets
    peak.family_octets -= before.family_octets
    return peak


def _size_octets(plan: Plan) -> int:
    return max(MIB, int(SIZE_OCTETS * min(1.0, plan.share)))


def listener_growth(plan: Plan) -> tuple[Series, None, str]:
    """The library's listener with a folder to spill to; it drops what it accepts."""
    peaks = []
    for number in range(1, min(plan.rounds, ROUNDS_MAX) + 1):
        plan.say(f"round {number}")
        folder = plan.folder / f"spill{number}"
        folder.mkdir()
        with listener("plain", "--spill", str(folder)) as server:
            peaks.append(_grown(server, plan))
        shutil.rmtree(folder)
    return Series("MiB", tuple(peak.own_octets / MIB for peak in peaks)), None, _told(plan, peaks)


def bridge_growth(plan: Plan) -> tuple[Series, None, str]:
    """The default bridge, with its parser processes, less the budget it is configured to hold in memory."""
    peaks = []
    budget_octets = 0
    for number in range(1, min(plan.rounds, ROUNDS_MAX) + 1):
        plan.say(f"round {number}")
        with bridge(plan, f"large-bridge-{number}", defaults()) as (postbus, server):
            config = postbus.get("/config", "application/json").json()
            budget_octets = int(config.get("settings", config)["dispatch"]["in_flight_max_octets"])
            peaks.append(_grown(server, plan))
        shutil.rmtree(postbus.folder)
    alone = Series("MiB", tuple(peak.own_octets / MIB for peak in peaks))
    note = f"; parser processes included; less {budget_octets / MIB:.0f} MiB; the main process alone grew by {alone.median:.0f} MiB"
    return Series("MiB", tuple((peak.family_octets - budget_octets) / MIB for peak in peaks)), None, _told(plan, peaks) + note


def _told(plan: Plan, peaks: list[Peak]) -> str:
    seconds = Series("s", tuple(peak.seconds for peak in peaks))
    return f"{CONNECTIONS} messages of {_size_octets(plan)} octets a round, taken in {seconds.median:.1f} s"
